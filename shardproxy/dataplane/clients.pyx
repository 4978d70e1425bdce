"""What clients send: read, and cut into commands.

Rules: input that cannot be taken yet (budget, barrier) stays where it is and the client is not read. A length that a
client announces is a promise, not memory. Nothing here writes to a socket. A client that does not speak RESP is told
why and closed.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy

from shardproxy.core.buffers cimport buf_append, buf_consume, buf_head, buf_release, buf_reserve, buf_tail
from shardproxy.core.resp cimport REQ_BAD, REQ_MORE, REQ_OK, Request, parse_request
from shardproxy.dataplane.counters cimport ANSWERED_HERE, CLIENT_BYTES_IN, COMMANDS, PROTOCOL_ERRORS, STALLS
from shardproxy.dataplane.engine cimport SCRATCH, TEXT, Client, Engine
from shardproxy.dataplane.openings cimport opening_readable
from shardproxy.dataplane.origins cimport account, is_full
from shardproxy.dataplane.routing cimport WAIT, route
from shardproxy.dataplane.slots cimport bytes_of, client_close, in_flight, part, slot_answer
from shardproxy.dataplane.system cimport recv
from shardproxy.dataplane.tls cimport TLS_ROOM, Tls, tls_recv, tls_why


cdef enum:
    HANDLED_AT_ONCE = 16        # commands for handlers, which take their time, before others have their turn
    JOIN = 16384                # a longer beginning of a command stays in the client's own buffer


cdef void client_readable(Engine e, Client *c) noexcept:
    if c.opening:
        opening_readable(e, c)
        return
    read_some(e, c)
    if c.tls != NULL and (<Tls>c.tls).over and not c.dead:
        # it has said that it will send no more, and may keep the connection open
        c.eof = True
        e.mark_dirty(c)


cdef inline ssize_t read_into(Engine e, Client *c, char *p, size_t room) noexcept:
    return recv(c.fd, p, room, 0) if c.tls == NULL else tls_recv(e, <Tls>c.tls, c.fd, p, room)


cdef void read_some(Engine e, Client *c) noexcept:
    cdef ssize_t got
    cdef size_t room = SCRATCH, used, before = c.inp.len
    cdef bint large = before > JOIN or c.stalled
    if c.eof or c.leaving:
        return
    if large:
        # a value comes in pieces, and gets room as they come: a length is a promise, not memory
        room = c.progress.want - before if c.progress.want > before else JOIN
        room = JOIN if room < JOIN else 16 * SCRATCH if room > 16 * SCRATCH else room
        if c.tls != NULL and room < TLS_ROOM:
            room = TLS_ROOM
        if buf_reserve(&c.inp, room) < 0:
            client_close(e, c, "out of memory")
            return
        got = read_into(e, c, buf_tail(&c.inp), room)
    else:
        # the beginning of a command is joined with its rest in the scratch, so that a client holds no more than it sent
        room = SCRATCH if SCRATCH < e.eff_soft else e.eff_soft
        if before:
            memcpy(e.scratch, buf_head(&c.inp), before)
        room = room - before if room > 2 * before else before
        if c.tls != NULL and room < TLS_ROOM:
            room = TLS_ROOM
        got = read_into(e, c, e.scratch + before, room)
    if got <= 0:
        if got < 0 and (errno == EAGAIN or errno == EINTR):
            return
        if got < 0:
            client_close(e, c, tls_why(c.tls))
            return
        c.eof = True
        e.mark_dirty(c)
        if c.waiting:
            part(e, c)
        return
    c.active = e.now
    e.count[<int>CLIENT_BYTES_IN] += got
    if large:
        c.inp.len += got
        if c.stalled:
            e.mark_dirty(c)     # kept for later, see slots.watch
        else:
            take_held(e, c)
        return
    if c.commands == 0 and e.scratch[0] == 22 and before + got > 1 and e.scratch[1] == 3:
        protocol_error(e, c, "Protocol error: this is a TLS handshake, and here is a port without TLS")
        return
    used = take(e, c, e.scratch, before + got, True)
    if used == 0 and before and not (c.dead or c.leaving):
        if buf_append(&c.inp, e.scratch + before, got) < 0:
            client_close(e, c, "out of memory")
        return
    buf_release(&c.inp)
    if c.dead or c.leaving:
        return
    if used < before + got:
        if buf_append(&c.inp, e.scratch + used, before + got - used) < 0:
            client_close(e, c, "out of memory")


cdef void take_held(Engine e, Client *c) noexcept:
    cdef size_t used = take(e, c, buf_head(&c.inp), c.inp.len, False)
    if c.dead or c.leaving:
        buf_release(&c.inp)
        return
    if c.inp.p == NULL:         # given away whole, see forward
        return
    buf_consume(&c.inp, used)
    if c.inp.len == 0:
        buf_release(&c.inp)


cdef void client_resume(Engine e, Client *c) noexcept:
    c.stalled = c.barred = False
    if c.inp.len:
        take_held(e, c)
    if c.hung and not c.dead and not c.stalled and not c.eof and not c.leaving:
        client_readable(e, c)
        e.mark_resuming(c)
    e.mark_dirty(c)


cdef size_t take(Engine e, Client *c, const char *p, size_t n, bint scratch) noexcept:
    """Every whole command in p[0 .. n) for which there is room; how many bytes that was."""
    cdef Request *r = &e.request
    cdef uint64_t handled = e.count[<int>ANSWERED_HERE]
    cdef size_t at = 0
    cdef int status
    while at < n:
        if (in_flight(c) >= e.eff_requests or bytes_of(c) > e.eff_soft
                or e.count[<int>ANSWERED_HERE] - handled >= HANDLED_AT_ONCE
                or c.origin != NULL and is_full(e, c)):
            stall(e, c)
            break
        r.limits.stranger = c.permit != NULL and c.permit == e.stranger
        status = parse_request(r, &c.progress, p + at, n - at)
        if status == REQ_MORE:
            break
        if status == REQ_BAD:
            protocol_error(e, c, r.error)
            return n
        if status == REQ_OK:
            if is_http(r, p[at] != c'*'):
                protocol_error(e, c, "this is an HTTP request, and here is a Redis port: possibly a cross-protocol "
                               "attack")
                return n
            if route(e, c, r) == WAIT:
                c.barred = True
                stall(e, c)
                break
            c.commands += 1
            e.count[<int>COMMANDS] += 1
            if c.caching:
                # it holds for one command, or one transaction, but for CLIENT's own
                if not c.tx_state and memcmp(e.table.table[c.last_row].name, "client|", 7) != 0:
                    c.caching = 0
            if c.dead or c.leaving or c.inp.p == NULL and not scratch:
                at = n
                break
        at += r.size
    if c.origin != NULL:
        account(c)
    return at


cdef void stall(Engine e, Client *c) noexcept:
    if not c.stalled:
        c.stalled = True
        e.count[<int>STALLS] += 1
    e.mark_dirty(c)


cdef void protocol_error(Engine e, Client *c, const char *why) noexcept:
    cdef char text[TEXT]
    cdef int n = snprintf(text, TEXT, "-ERR %s\r\n", why)
    e.count[<int>PROTOCOL_ERRORS] += 1
    c.reply_mode = 0
    slot_answer(e, c, text, n if n < TEXT else TEXT - 1)
    c.leaving = True
    e.mark_dirty(c)
    e.event("protocol_error", {"client": c.id, "reason": why.decode(errors="replace")})


cdef bint is_http(const Request *r, bint inline_) noexcept nogil:
    """As Redis tells it (POST, Host:), and any request line."""
    cdef const char *last = r.argv[r.argc - 1]
    if r.argl[0] == 4 and memcmp(r.argv[0], "POST", 4) == 0 or r.argl[0] == 5 and memcmp(r.argv[0], "Host:", 5) == 0:
        return True
    return inline_ and r.argc == 3 and r.argl[2] == 8 and memcmp(last, "HTTP/1.", 7) == 0 and r.argv[1][0] == c'/'
