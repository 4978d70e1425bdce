"""A client's reply queue: slots in the order of its commands, and the client's output.

Rules: replies leave in the order of the commands, whatever order they come in; what comes before its turn is held
in its slot; a push may enter the output only between frames. Output is written once, at the end of the tick.
A client over its hard budget is closed with a reason; between the soft one and that it is only not read.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memset
from posix.unistd cimport close

from shardproxy.core.buffers cimport Buf, buf_append, buf_consume, buf_head, buf_release, queue_free, queue_grow
from shardproxy.core.fanout cimport fan_free
from shardproxy.dataplane.counters cimport (
    CLIENT_BYTES_OUT, CLIENTS, CLIENTS_CLOSED, CLIENTS_KILLED, STALLS,
)
from shardproxy.dataplane.engine cimport OF_CLIENT, SCRATCH, Client, Engine, Slot
from shardproxy.dataplane.openings cimport opening_ends
from shardproxy.dataplane.origins cimport depart, flushed, has_room
from shardproxy.dataplane.permissions cimport note_login
from shardproxy.dataplane.private cimport abandon
from shardproxy.dataplane.system cimport (
    EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, EPOLLRDHUP, MSG_NOSIGNAL, MSG_PEEK, SHUT_WR, epoll_ctl, epoll_event, recv, send,
    shutdown, tag,
)
from shardproxy.dataplane.tls cimport Tls, tls_behind, tls_end, tls_free, tls_midway, tls_send, tls_why


cdef enum:
    ON_ITS_WAY = 100000         # us: a reply that did not have to wait has come by then
    STRANGERS_OUTPUT = 17408    # bytes: Redis closes who has not logged in beyond its fixed buffer and 1 KB


cdef int slots_grow(Engine e, Client *c) noexcept:
    if queue_grow(<void **>&c.slots, &c.mask, c.head, c.tail, sizeof(Slot), 4) < 0:
        client_close(e, c, "out of memory")
        return -1
    return 0


cdef void drain(Engine e, Client *c) noexcept:
    """What is at the front of the queue goes out; the first slot that is open may already have begun."""
    cdef Slot *s
    cdef bint moved
    while c.head != c.tail:
        s = &c.slots[c.head & c.mask]
        moved = s.held.len != 0
        if moved:
            c.held -= s.held.len
            if c.out.len == 0 and s.held.len > 4096:
                buf_release(&c.out)
                c.out = s.held
                s.held.p = NULL
                s.held.off = s.held.len = s.held.cap = 0
            elif buf_append(&c.out, buf_head(&s.held), s.held.len) < 0:
                client_close(e, c, "out of memory")
                return
        if s.held.p != NULL:
            buf_release(&s.held)
        if not s.filled:
            c.midway = c.midway or moved
            return
        c.midway = False
        if c.aside.len and not aside_out(e, c):
            return
        c.sent -= s.cost
        c.head += 1


cdef inline bint has_come(const Slot *s) noexcept nogil:
    return s.filled or s.held.len != 0


cdef bint client_keep(Engine e, Client *c, Buf *where, const char *p, size_t n) noexcept:
    return keep(e, c, where, p, n)


cdef inline bint keep(Engine e, Client *c, Buf *where, const char *p, size_t n) noexcept:
    if buf_append(where, p, n) < 0:
        client_close(e, c, "out of memory")
        return False
    if where != &c.out:
        c.held += n
    if c.out.len + c.held > e.budget.hard:
        client_close(e, c, "more reply bytes are waiting than client_output_hard allows")
        return False
    if c.permit != NULL and c.permit == e.stranger and c.out.len + c.held > STRANGERS_OUTPUT:
        client_close(e, c, "it has not logged in, and does not read what it is told")
        return False
    return True


cdef void slot_feed(Engine e, Client *c, uint32_t slot, const char *p, size_t n, bint last) noexcept:
    cdef Slot *s = slot_at(c, slot)
    if c.dead:
        return
    if not s.discard and n:
        if not keep(e, c, &c.out if slot == c.head else &s.held, p, n):
            return
    if last:
        s.filled = True
        if slot == c.head:
            c.midway = False
            if c.aside.len and not aside_out(e, c):
                return
            c.sent -= s.cost
            c.head += 1
            if c.head != c.tail and has_come(slot_at(c, c.head)):
                drain(e, c)
    elif slot == c.head and n and not s.discard:
        c.midway = True
    e.mark_dirty(c)


cdef bint aside_out(Engine e, Client *c) noexcept:
    """The pushes that waited for the end of a frame."""
    if buf_append(&c.out, buf_head(&c.aside), c.aside.len) < 0:
        client_close(e, c, "out of memory")
        return False
    buf_release(&c.aside)
    return True


cdef void client_push(Engine e, Client *c, const char *p, size_t n) noexcept:
    # who leaves is still told what its last commands are answered by a push: UNSUBSCRIBE, then a protocol error
    if c.dead or c.leaving and c.head == c.tail:
        return
    if buf_append(&c.aside if c.midway else &c.out, p, n) < 0:
        client_close(e, c, "out of memory")
    elif c.out.len + c.aside.len + c.held > e.budget.hard:
        client_close(e, c, "more reply bytes are waiting than client_output_hard allows")
    elif not c.subscriber or in_time(e, c):
        e.mark_dirty(c)


cdef void client_push_in_order(Engine e, Client *c, const char *p, size_t n) noexcept:
    cdef uint8_t mode = c.reply_mode
    if c.dead or c.leaving:
        return
    c.reply_mode = 0
    slot_answer(e, c, p, n)
    c.reply_mode = mode


cdef bint in_time(Engine e, Client *c) noexcept:
    """A subscriber takes its messages as fast as they come; or for some time it does not; or it is closed."""
    cdef size_t owed = c.out.len + c.aside.len + c.held
    if owed <= e.budget.pubsub_soft or c.dead:
        c.over_since = 0
        return not c.dead
    if owed > e.budget.pubsub_hard:
        client_close(e, c, "more messages are waiting than pubsub_output_hard allows")
        return False
    if c.over_since == 0:
        c.over_since = e.now
        e.some_are_over = True
    elif e.now > c.over_since + e.budget.pubsub_time:
        client_close(e, c, "more messages are waiting than pubsub_output_soft allows, for longer than pubsub_output_time")
        return False
    return True


cdef void slot_answer(Engine e, Client *c, const char *p, size_t n) noexcept:
    cdef int64_t slot = slot_open(e, c)
    if slot >= 0:
        slot_feed(e, c, <uint32_t>slot, p, n, True)


cdef void part(Engine e, Client *c) noexcept:
    """It has closed its side and waits for data: nobody waits who has left, as in Redis.

    But what it asked for may have been there, and the reply is on its way, which Redis would have sent at once.
    """
    if e.now >= c.waits_since + ON_ITS_WAY:
        client_close(e, c, NULL)
    elif not c.parting:
        c.parting = e.some_are_parting = True
        e.mark_dirty(c)


cdef void watch(Engine e, Client *c) noexcept:
    """Tell epoll what this client waits for, if that has changed."""
    cdef epoll_event ev
    cdef uint32_t events = 0
    if c.hung:
        if c.waiting:
            part(e, c)          # epoll will not say that it has left
        return
    # a client that writes a whole pipeline before it reads a reply would wait for ever if it were not read either
    if not (c.eof or c.leaving) and (not c.stalled or (c.blocked or c.waiting) and c.inp.len < e.eff_input):
        events = EPOLLIN
    if c.blocked:
        events |= EPOLLOUT
    if c.waiting and not c.parting:
        events |= EPOLLRDHUP
    if events != c.events:
        c.events = events
        ev.events = events
        ev.data.u64 = tag(OF_CLIENT, c.index, c.generation)
        epoll_ctl(e.epoll, EPOLL_CTL_MOD, c.fd, &ev)


cdef inline bint midway(Client *c) noexcept:
    """Whether it has begun something: a command, a TLS record, a handshake."""
    return c.inp.len > 0 or tls_midway(c.tls) or c.opening and c.tls != NULL


cdef bint unread(Client *c) noexcept:
    """Whether it has sent something that has not been read yet."""
    cdef char byte
    return recv(c.fd, &byte, 1, MSG_PEEK) > 0


cdef void client_flush(Engine e, Client *c) noexcept:
    cdef ssize_t n
    c.blocked = False
    while c.out.len or tls_behind(c.tls):
        if c.tls == NULL:
            n = send(c.fd, buf_head(&c.out), c.out.len, MSG_NOSIGNAL)
        else:
            n = tls_send(<Tls>c.tls, c.fd, buf_head(&c.out), c.out.len)
        if n < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                c.blocked = True
                break
            client_close(e, c, tls_why(c.tls))
            return
        e.count[<int>CLIENT_BYTES_OUT] += n
        c.active = e.now
        buf_consume(&c.out, n)
    if c.out.len == 0 and c.out.p != NULL:
        buf_release(&c.out)
    if c.head == c.tail:
        if c.mask > 63:
            queue_free(<void **>&c.slots, &c.mask, sizeof(Slot))
        if c.out.len == 0 and (c.leaving or (c.eof and not c.stalled)):
            client_close(e, c, NULL)
            return
        # what is left of its input, unless it waits for its turn, is the beginning of a command: some grace for the rest
        if (e.draining and c.out.len == 0 and not c.stalled and (not midway(c) or e.now > e.grace_ends)
                and not unread(c)):
            client_close(e, c, NULL)
            return
    if c.stalled and c.paused and not c.leaving:
        pass                    # until the pause is over: see observing.resume
    elif c.stalled and not c.leaving:
        if (c.head == c.tail if c.barred else in_flight(c) <= e.eff_requests // 2) and bytes_of(c) <= e.eff_soft // 2:
            if c.origin == NULL or c.barred or has_room(e, c):
                e.mark_resuming(c)
    elif not c.leaving and (in_flight(c) >= e.eff_requests or bytes_of(c) > e.eff_soft):
        c.stalled = True
        e.count[<int>STALLS] += 1
    if c.origin != NULL:
        flushed(e, c)
    watch(e, c)


cdef void client_close(Engine e, Client *c, const char *reason) noexcept:
    cdef epoll_event ev
    if c.dead:
        return
    c.dead = True
    if c.opening:
        opening_ends(e, c)
    e.count[<int>CLIENTS_CLOSED] += 1
    epoll_ctl(e.epoll, EPOLL_CTL_DEL, c.fd, &ev)
    e.dead[e.dead_count] = c.index
    e.dead_count += 1
    if reason != NULL:
        e.count[<int>CLIENTS_KILLED] += 1
        e.event("client_closed", {"client": c.id, "reason": reason.decode()})


cdef void client_release(Client *c) noexcept:
    cdef Slot *s
    while c.head != c.tail:
        s = slot_at(c, c.head)
        if s.fan != NULL:
            fan_free(s.fan)
        buf_release(&s.held)
        c.head += 1
    c.held = c.sent = 0
    queue_free(<void **>&c.slots, &c.mask, sizeof(Slot))
    buf_release(&c.inp)
    buf_release(&c.out)
    buf_release(&c.tx)
    buf_release(&c.aside)


cdef void client_free(Engine e, Client *c) noexcept:
    """The second phase: nothing of this tick can name it any more."""
    cdef int turn
    if c.tls != NULL:
        tls_end(<Tls>c.tls, c.fd)
        tls_free(&c.tls)
    if c.leaving:
        # with unread input close would send a reset, and the client might lose our last words
        shutdown(c.fd, SHUT_WR)
        for turn in range(8):
            if recv(c.fd, e.scratch, SCRATCH, 0) <= 0:
                break
    close(c.fd)
    if c.own != NULL:
        abandon(e, c)
    client_release(c)
    note_login(e, c, None)
    mine = e.meta.pop(c.id, None)
    if mine is not None and "gone" in mine:
        for callback in mine["gone"]:
            e.told.append((callback, (c.id,)))
        e.wake()
    if e.announced:
        e.announced.pop(c.id, None)
    if c.origin != NULL:
        depart(e, c.origin, c)
    e.client_list[c.index] = NULL
    e.client_generations[c.index] += 1
    e.free_clients[e.free_count] = c.index
    e.free_count += 1
    e.client_count -= 1
    e.count[<int>CLIENTS] = e.client_count
    free(c)
