"""What clients send: read, cut into commands, and sent where they belong.

    bytes ── parse_request ──▶ row of the command table ──▶ one shard: forward
                                                       ├──▶ several shards: split
                                                       ├──▶ MULTI ... EXEC: held back, then one run
                                                       └──▶ anything else: a handler, or an error

Rules: a command that is taken from the input opens exactly one slot, in order, before the next is looked at. Input
that cannot be taken yet (budget, barrier) stays where it is and the client is not read. Nothing here writes to a
socket. Errors have Redis's own texts where Redis has one.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport realloc
from libc.string cimport memcmp, memcpy, memset, strlen

from shardproxy.core.buffers cimport (
    Buf, buf_append, buf_consume, buf_head, buf_release, buf_reserve, buf_tail,
)
from shardproxy.core.commands cimport (
    FLAG_BARRIER, FLAG_CONTAINER, FLAG_IN_MULTI, FLAG_KEYLESS, FLAG_MOVABLE, FLAG_WRITE, KIND_FANOUT, KIND_FORWARD,
    KIND_LOCAL, KIND_MULTI, KIND_REFUSED, MERGE_ARRAY, MERGE_OK, Row,
)
from shardproxy.core.fanout cimport Fan, fan_new
from shardproxy.core.resp cimport (
    REQ_BAD, REQ_EMPTY, REQ_MORE, REQ_OK, Request, parse_request, put_number, raw_argument,
)
from shardproxy.dataplane.calls cimport call_handler
from shardproxy.dataplane.counters cimport (
    CLIENT_BYTES_IN, COMMANDS, FANNED_OUT, FORWARDED, PROTOCOL_ERRORS, REFUSED, STALLS, TRANSACTIONS,
)
from shardproxy.dataplane.engine cimport (
    SCRATCH, TEXT, TO_CLIENT, TO_NOBODY, TO_PART, TX_BROKEN, TX_NONE, TX_OPEN, Client, Engine, Slot, Upstream,
)
from shardproxy.dataplane.slots cimport client_close, in_flight, slot_answer, slot_at, slot_feed, slot_open
from shardproxy.dataplane.system cimport recv
from shardproxy.dataplane.upstreams cimport fan_fail, give, promise, upstream_for

cdef enum:
    NO_KEY = -1                 # instead of a shard
    MALFORMED = -2
    ANSWERED = -3

cdef enum:
    TAKEN = 0
    WAIT = 1                    # leave it in the input: its turn comes later


cdef void say(Engine e, Client *c, const char *text) noexcept:
    slot_answer(e, c, text, strlen(text))


cdef void refuse(Engine e, Client *c, const char *text) noexcept:
    """An error reply instead of the command; inside MULTI the transaction is lost."""
    e.count[<int>REFUSED] += 1
    if c.tx_state:
        c.tx_state = TX_BROKEN
    say(e, c, text)


cdef void refuse_object(Engine e, Client *c, bytes text) noexcept:
    refuse(e, c, text)


# --- reading ---

cdef void client_readable(Engine e, Client *c) noexcept:
    cdef ssize_t got
    cdef size_t room = SCRATCH, used
    cdef bint direct = c.inp.len > 0
    if c.stalled or c.eof or c.leaving:
        return
    if room > e.eff_soft:
        room = e.eff_soft
    if direct:
        # a large value comes in large pieces, but only as it comes: a length is a promise, not memory
        if c.progress.want > c.inp.len + room and c.inp.len > SCRATCH:
            room = c.progress.want - c.inp.len
            if room > 16 * SCRATCH:
                room = 16 * SCRATCH
        if buf_reserve(&c.inp, room) < 0:
            client_close(e, c, "out of memory")
            return
        got = recv(c.fd, buf_tail(&c.inp), room, 0)
    else:
        got = recv(c.fd, e.scratch, room, 0)
    if got <= 0:
        if got < 0 and (errno == EAGAIN or errno == EINTR):
            return
        if got < 0:
            client_close(e, c, NULL)
            return
        c.eof = True
        e.mark_dirty(c)
        return
    c.active = e.now
    e.count[<int>CLIENT_BYTES_IN] += got
    if direct:
        c.inp.len += got
        take_held(e, c)
        return
    used = take(e, c, e.scratch, got)
    if c.dead or c.leaving:
        return
    if used < <size_t>got:
        if buf_append(&c.inp, e.scratch + used, got - used) < 0:
            client_close(e, c, "out of memory")


cdef void take_held(Engine e, Client *c) noexcept:
    cdef size_t used = take(e, c, buf_head(&c.inp), c.inp.len)
    if c.dead or c.leaving:
        buf_release(&c.inp)
        return
    if c.inp.p == NULL:         # given away whole, see forward
        return
    buf_consume(&c.inp, used)
    if c.inp.len == 0:
        buf_release(&c.inp)


cdef void client_resume(Engine e, Client *c) noexcept:
    c.stalled = False
    if c.inp.len:
        take_held(e, c)
    e.mark_dirty(c)


cdef size_t take(Engine e, Client *c, const char *p, size_t n) noexcept:
    """Every whole command in p[0 .. n) for which there is room; how many bytes that was."""
    cdef Request *r = &e.request
    cdef size_t at = 0
    cdef int status
    while at < n:
        if in_flight(c) >= e.eff_requests or c.out.len + c.held > e.eff_soft:
            stall(e, c)
            break
        status = parse_request(r, &c.progress, p + at, n - at)
        if status == REQ_MORE:
            break
        if status == REQ_BAD:
            protocol_error(e, c, r.error)
            return n
        if status == REQ_OK:
            if is_http(r):
                protocol_error(e, c, "this is an HTTP request, and here is a Redis port: possibly a cross-protocol "
                               "attack")
                return n
            if command(e, c, r) == WAIT:
                stall(e, c)
                break
            c.commands += 1
            e.count[<int>COMMANDS] += 1
            if c.dead or c.leaving or c.inp.p == NULL and p != e.scratch:
                return n
        at += r.size
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


cdef bint is_http(const Request *r) noexcept nogil:
    """As Redis tells it (POST, Host:), and any request line."""
    cdef const char *last = r.argv[r.argc - 1]
    if r.argl[0] == 4 and memcmp(r.argv[0], "POST", 4) == 0 or r.argl[0] == 5 and memcmp(r.argv[0], "Host:", 5) == 0:
        return True
    return r.argc == 3 and r.argl[2] == 8 and memcmp(last, "HTTP/1.", 7) == 0 and r.argv[1][0] == c'/'


# --- one command ---

cdef int command(Engine e, Client *c, Request *r) noexcept:
    cdef const Row *row = e.table.find(r.argv[0], r.argl[0])
    cdef const Row *sub
    cdef char text[TEXT]
    if row == NULL:
        unknown(e, c, r)
        return TAKEN
    if row.flags & FLAG_CONTAINER and r.argc > 1:
        sub = e.table.find_sub(row, r.argv[1], r.argl[1])
        if sub != NULL:
            row = sub
        elif row.kind != KIND_LOCAL or row.arity < 0 and row.arity < -1:
            unknown_sub(e, c, r, row)
            return TAKEN
    if (row.arity > 0 and r.argc != row.arity) or r.argc < -row.arity:
        snprintf(text, TEXT, "-ERR wrong number of arguments for '%s' command\r\n", row.name)
        refuse(e, c, text)
        return TAKEN
    if row.flags & FLAG_BARRIER and c.head != c.tail:
        return WAIT
    c.last_row = row.id
    if row.kind == KIND_MULTI:
        transaction(e, c, r, row)
        return TAKEN
    if c.tx_state and not immediate(row):
        queue(e, c, r, row)
        return TAKEN
    if row.kind == KIND_FORWARD:
        forward(e, c, r, row)
    elif row.kind == KIND_FANOUT:
        split(e, c, r, row)
    elif row.kind == KIND_LOCAL:
        call_handler(e, c, r, row)
    else:
        refused(e, c, row)
    return TAKEN


cdef inline bint immediate(const Row *row) noexcept nogil:
    """Run even between MULTI and EXEC, as Redis does."""
    return memcmp(row.name, "reset", 6) == 0 or memcmp(row.name, "quit", 5) == 0


cdef void unknown(Engine e, Client *c, Request *r) noexcept:
    cdef bytes text = b"-ERR unknown command '%b', with args beginning with: " % clean(r.argv[0], r.argl[0], 128)
    cdef bytes args = b""
    cdef int i
    for i in range(1, r.argc):
        if len(args) >= 128:
            break
        args += b"'%b' " % clean(r.argv[i], r.argl[i], 128 - len(args))
    refuse_object(e, c, text + args + b"\r\n")


cdef void unknown_sub(Engine e, Client *c, Request *r, const Row *row) noexcept:
    cdef bytes name = row.name
    refuse_object(e, c, b"-ERR unknown subcommand '%b'. Try %b HELP.\r\n"
                  % (clean(r.argv[1], r.argl[1], 128), name.upper()))


cdef bytes clean(const char *p, size_t n, size_t most):
    return p[:n if n < most else most].split(b"\0")[0].replace(b"\r", b" ").replace(b"\n", b" ")


cdef void refused(Engine e, Client *c, const Row *row) noexcept:
    refuse_object(e, c, b"-ERR '%b' is not supported yet: %b\r\n" % (spoken(row), e.table.whys[row.id]))


cdef bytes spoken(const Row *row):
    cdef bytes name = row.name
    return name.replace(b"|", b" ").upper()


# --- to one shard ---

cdef int shard_of_command(Engine e, Client *c, Request *r, const Row *row) noexcept:
    """The shard of all its keys, NO_KEY, MALFORMED, or ANSWERED (with an error)."""
    cdef int i, n, shard, other
    if row.first and not row.flags & FLAG_MOVABLE and row.last == row.first:
        return e.ring.shard_of(r.argv[row.first], r.argl[row.first])
    if row.flags & FLAG_KEYLESS:
        return NO_KEY
    n = find_keys(e, c, r, row)
    if n < 0:
        return n
    if n == 0:
        return NO_KEY
    shard = e.ring.shard_of(r.argv[e.positions[0]], r.argl[e.positions[0]])
    for i in range(1, n):
        other = e.ring.shard_of(r.argv[e.positions[i]], r.argl[e.positions[i]])
        if other != shard:
            refuse(e, c, "-CROSSSLOT Keys in request don't hash to the same slot\r\n")
            return ANSWERED
    return shard


cdef int find_keys(Engine e, Client *c, Request *r, const Row *row) noexcept:
    """Fills e.positions and says how many; MALFORMED or ANSWERED."""
    cdef int n
    cdef int *more
    if r.argc > e.position_room:
        more = <int *>realloc(e.positions, 2 * r.argc * sizeof(int))
        if more == NULL:
            refuse(e, c, "-ERR out of memory\r\n")
            return ANSWERED
        e.positions = more
        e.position_room = 2 * r.argc
    n = e.table.keys(row, r.argc, r.argv, r.argl, e.positions, e.position_room)
    if n >= 0:
        return n
    if n == -1:
        return MALFORMED
    if n == -2 and e.shard_count == 1:
        # whatever the pattern matches, it is on the only shard there is
        return e.table.positions(row, r.argc, r.argv, r.argl, e.positions, NULL, e.position_room)
    if n == -2:
        refuse_object(e, c, b"-ERR '%b' with a BY or GET pattern reads keys of other shards: not supported\r\n"
                      % spoken(row))
    else:
        refuse_object(e, c, b"-ERR '%b' with BLOCK is not supported yet: it needs a connection of its own\r\n"
                      % spoken(row))
    return ANSWERED


cdef void forward(Engine e, Client *c, Request *r, const Row *row) noexcept:
    cdef int shard = shard_of_command(e, c, r, row)
    if shard == MALFORMED:
        shard = 0               # any node says what is wrong with it, in its own words
    if shard >= 0:
        send_to(e, c, r, shard, row.flags & FLAG_WRITE != 0)
    elif shard == NO_KEY:
        refuse_object(e, c, b"-ERR '%b' without a key is not supported yet: it says no shard\r\n" % spoken(row))


cdef inline void send_to(Engine e, Client *c, Request *r, int shard, bint write) noexcept:
    cdef Upstream *u = upstream_for(e, shard, c.proto, c.index)
    cdef int64_t slot
    cdef Buf swap
    if u == NULL:
        slot_answer(e, c, e.text, e.text_size)
        return
    slot = slot_open(e, c)
    if slot < 0:
        return
    if promise(e, u, TO_CLIENT, c.index, c.generation, <uint32_t>slot, 0, write, 1) < 0:
        client_close(e, c, "out of memory")
        return
    e.count[<int>FORWARDED] += 1
    if r.raw_size > SCRATCH and u.out.len == 0 and r.raw == buf_head(&c.inp) and r.raw_size == c.inp.len:
        # a large value is handed over, not copied
        swap = u.out
        u.out = c.inp
        c.inp = swap
        buf_release(&c.inp)
        u.given += r.raw_size
        u.dirty = True
        return
    give(e, u, r.raw, r.raw_size)


# --- to several shards ---

cdef int room_for_split(Engine e, int keys) noexcept:
    cdef void *more
    if keys > e.owner_room:
        more = realloc(e.owners, 2 * keys * sizeof(uint16_t))
        if more == NULL:
            return -1
        e.owners = <uint16_t *>more
        e.owner_room = 2 * keys
    return 0


cdef void split(Engine e, Client *c, Request *r, const Row *row) noexcept:
    """One request a shard that has keys; e.owners has each key's shard, e.shares how many each has."""
    cdef int first = row.first, step = row.step, keys, i, shard, parts = 0, part
    cdef int64_t slot
    cdef Fan *f
    if (r.argc - first) % step:
        refuse_object(e, c, b"-ERR wrong number of arguments for '%b' command\r\n" % row.name)
        return
    keys = (r.argc - first) // step
    if room_for_split(e, keys) < 0:
        refuse(e, c, "-ERR out of memory\r\n")
        return
    memset(e.shares, 0, e.shard_count * sizeof(uint32_t))
    for i in range(keys):
        shard = e.ring.shard_of(r.argv[first + i * step], r.argl[first + i * step])
        e.owners[i] = <uint16_t>shard
        parts += e.shares[shard] == 0
        e.shares[shard] += 1
    if parts == 1:
        send_to(e, c, r, e.owners[0], row.flags & FLAG_WRITE != 0)
        return
    slot = slot_open(e, c)
    if slot < 0:
        return
    f = fan_new(row.merge, c.proto, e.partial_nil, <uint16_t>parts, keys)
    if f == NULL:
        client_close(e, c, "out of memory")
        return
    slot_at(c, <uint32_t>slot).fan = f
    e.count[<int>FANNED_OUT] += 1
    part = 0
    for shard in range(e.shard_count):
        if e.shares[shard] == 0:
            continue
        f.part[part].shard = <uint16_t>shard
        part += 1
    if row.merge == MERGE_ARRAY:
        for i in range(keys):
            f.owner[i] = part_of(f, e.owners[i])
    # replies come after this tick's reads, so that f lives until its last part has failed or been sent
    for part in range(parts):
        shard = f.part[part].shard
        if not send_share(e, c, r, row, shard, <uint32_t>slot, <uint16_t>part, keys):
            fan_fail(e, c, <uint32_t>slot, <uint16_t>part)
        if c.dead:
            return


cdef inline uint16_t part_of(Fan *f, int shard) noexcept nogil:
    """Parts are in the order of their shards."""
    cdef int low = 0, high = f.parts - 1, middle
    while low < high:
        middle = (low + high) // 2
        if f.part[middle].shard < shard:
            low = middle + 1
        else:
            high = middle
    return <uint16_t>low


cdef bint send_share(Engine e, Client *c, Request *r, const Row *row, int shard, uint32_t slot, uint16_t part,
                     int keys) noexcept:
    cdef Upstream *u = upstream_for(e, shard, c.proto, c.index)
    cdef int i, step = row.step, first = row.first
    cdef size_t n, m
    cdef const char *p
    cdef char line[32]
    if u == NULL:
        return False
    if promise(e, u, TO_PART, c.index, c.generation, slot, part, row.flags & FLAG_WRITE != 0, 1) < 0:
        client_close(e, c, "out of memory")
        return True
    n = put_number(line, c'*', first + <int64_t>e.shares[shard] * step)
    if give(e, u, line, n) < 0:
        return True
    for i in range(first):
        p = raw_argument(r, i, &n)
        if give(e, u, p, n) < 0:
            return True
    for i in range(keys):
        if e.owners[i] != shard:
            continue
        p = raw_argument(r, first + i * step, &n)
        if step == 2:
            raw_argument(r, first + i * step + 1, &m)
            n += m
        if give(e, u, p, n) < 0:
            return True
    return True


# --- MULTI ... EXEC ---

cdef void transaction(Engine e, Client *c, Request *r, const Row *row) noexcept:
    """MULTI, EXEC, DISCARD. Commands are held here and go to their shard as one run."""
    cdef Upstream *u
    cdef int64_t slot
    cdef int shard
    if memcmp(row.name, "multi", 6) == 0:
        if c.tx_state:
            say(e, c, "-ERR MULTI calls can not be nested\r\n")
            return
        c.tx_state = TX_OPEN
        c.tx_shard = -1
        c.tx_count = 0
        buf_append(&c.tx, r.raw, r.raw_size)
        say(e, c, "+OK\r\n")
        return
    if not c.tx_state:
        say(e, c, "-ERR EXEC without MULTI\r\n" if row.name[0] == c'e' else "-ERR DISCARD without MULTI\r\n")
        return
    if row.name[0] == c'd':
        say(e, c, "+OK\r\n")
    elif c.tx_state == TX_BROKEN:
        say(e, c, "-EXECABORT Transaction discarded because of previous errors.\r\n")
    elif c.tx_count == 0:
        say(e, c, "*0\r\n")
    else:
        shard = c.tx_shard if c.tx_shard >= 0 else 0
        u = upstream_for(e, shard, c.proto, c.index)
        if u == NULL:
            slot_answer(e, c, e.text, e.text_size)
        else:
            slot = slot_open(e, c)
            if slot >= 0:
                # +OK and +QUEUED have been said already; should the node refuse a command, EXEC answers EXECABORT
                if promise(e, u, TO_NOBODY, 0, 0, 0, 0, True, 1 + c.tx_count) < 0 or \
                        promise(e, u, TO_CLIENT, c.index, c.generation, <uint32_t>slot, 0, True, 1) < 0:
                    u.doomed = True
                elif give(e, u, buf_head(&c.tx), c.tx.len) == 0:
                    give(e, u, r.raw, r.raw_size)
                e.count[<int>TRANSACTIONS] += 1
    c.tx_state = TX_NONE
    buf_release(&c.tx)


cdef void queue(Engine e, Client *c, Request *r, const Row *row) noexcept:
    cdef int shard
    if row.kind == KIND_REFUSED:
        if memcmp(row.name, "watch", 6) == 0:
            say(e, c, "-ERR WATCH inside MULTI is not allowed\r\n")
            return
        refused(e, c, row)
        return
    if not row.flags & FLAG_IN_MULTI:
        refuse_object(e, c, b"-ERR '%b' is not supported inside MULTI\r\n" % spoken(row))
        return
    if row.kind == KIND_FANOUT and (r.argc - row.first) % row.step:
        refuse_object(e, c, b"-ERR wrong number of arguments for '%b' command\r\n" % row.name)
        return
    shard = shard_of_command(e, c, r, row)
    if shard == ANSWERED:
        return
    if shard == NO_KEY and not row.flags & FLAG_KEYLESS:
        refuse_object(e, c, b"-ERR '%b' without a key is not supported yet: it says no shard\r\n" % spoken(row))
        return
    if shard >= 0:
        if c.tx_shard >= 0 and c.tx_shard != shard:
            refuse(e, c, "-CROSSSLOT Keys in request don't hash to the same slot\r\n")
            return
        c.tx_shard = shard
    if c.tx_state == TX_OPEN:
        if <int64_t>(c.tx.len + r.raw_size) > e.request.limits.max_request:
            refuse(e, c, "-ERR the transaction is larger than max_request\r\n")
            return
        if buf_append(&c.tx, r.raw, r.raw_size) < 0:
            client_close(e, c, "out of memory")
            return
        c.tx_count += 1
    say(e, c, "+QUEUED\r\n")
