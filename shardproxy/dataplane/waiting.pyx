"""What waits for data: BLPOP and its like, XREAD BLOCK. Each on an upstream of its client's own.

Rules: it waits as long as it was asked to, past every deadline of ours, and its client's later commands wait for it. When
its keys move it waits on where they are now, and its client does not notice: the old node is told to let it go, and only
when that says that nothing came, the command goes to the new one, with what is left of its time. Where that cannot be
known, because the node is gone, the client gets Redis's -UNBLOCKED: what it may have popped is not popped again.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memset, strlen

from shardproxy.core.buffers cimport Buf, buf_append, buf_head, buf_release
from shardproxy.core.commands cimport FLAG_CONTAINER, FLAG_READONLY, Row
from shardproxy.core.resp cimport REQ_OK, Progress, Request, parse_request, put_number, raw_argument
from shardproxy.dataplane.absence cimport remember
from shardproxy.dataplane.answers cimport UNBLOCKED
from shardproxy.dataplane.engine cimport TEXT, TO_CLIENT, TO_NOBODY, UP, WAITING, Client, Engine, Entry, Upstream
from shardproxy.dataplane.links cimport ask
from shardproxy.dataplane.private cimport lease, owner_of, private_drop, say_unheard, unlease, waits_on
from shardproxy.dataplane.routing cimport TAKEN, WAIT
from shardproxy.dataplane.sending cimport NO_KEY, locate, send_to
from shardproxy.dataplane.slots cimport client_close, slot_answer, slot_feed
from shardproxy.dataplane.upstreams cimport give, own_of, promise, upstream_anyhow, upstream_for

cdef enum:
    # us that a node may be late, beyond the timeout: it looks at what waits ten times a second, and less often when busy
    PATIENCE = 1000000
    ABOUT = 5000                # us: a node's clock and ours may differ by so much about the end of a wait


cdef int block(Engine e, Client *c, Request *r, const Row *row, int node) noexcept:
    """Waits for data, on an upstream of the client's own; its later commands wait for it."""
    cdef Upstream *u
    cdef double seconds
    if c.head != c.tail:
        return WAIT
    u = own_of(c, node)
    if u != NULL and u.unblocked:
        private_drop(e, u)
    u = lease(e, c, node, WAITING)
    if u == NULL:
        slot_answer(e, c, e.text, e.text_size)
        return TAKEN
    send_to(e, c, r, row, node)
    if c.dead or u.over:
        return TAKEN
    if c.head == c.tail:
        unlease(e, u, WAITING)
        return TAKEN
    seconds = patience(r, row)
    wait_for(e, u, <uint64_t>(seconds * 1e6) if 0 < seconds < 1e9 else 0)
    c.holding = c.waiting = True
    c.waits_since = e.now
    e.mark_dirty(c)             # epoll is to say when it leaves
    return TAKEN


cdef void wait_for(Engine e, Upstream *u, uint64_t time) noexcept:
    u.wait_ends = e.now + time if time else 0
    u.wait_until = u.wait_ends + e.timeout + PATIENCE if time else 0
    u.moving = 0
    u.recalled = False


cdef int timeout_at(const Request *r, const Row *row):
    """Which argument says how long it may wait; -1: none."""
    cdef int i
    if row.name[0] == c'x':
        for i in range(1, r.argc - 1):
            if r.argl[i] == 5 and r.argv[i][:5].lower() == b"block":
                return i + 1
        return -1
    return 1 if memcmp(row.name, "blmpop", 7) == 0 or memcmp(row.name, "bzmpop", 7) == 0 else r.argc - 1


cdef double patience(const Request *r, const Row *row) noexcept:
    """How long it may wait, in seconds; 0: for ever, or it is not known."""
    cdef int i = timeout_at(r, row)
    try:
        return float(r.argv[i][:r.argl[i]]) / (1000 if row.name[0] == c'x' else 1) if i > 0 else 0
    except ValueError:
        return 0


cdef uint64_t time_left(Engine e, const Upstream *u) noexcept:
    """us; 0: for ever."""
    if not u.wait_ends:
        return 0
    return u.wait_ends - e.now if u.wait_ends > e.now + ABOUT else ABOUT


# --- elsewhere ---

cdef const Row *read_again(Engine e, const char *p, size_t n) noexcept:
    """The command into e.again; NULL: it is none."""
    cdef Progress progress
    cdef const Row *row
    cdef const Row *sub
    memset(&progress, 0, sizeof(progress))
    e.again.limits = e.request.limits
    if parse_request(&e.again, &progress, p, n) != REQ_OK:
        return NULL
    row = e.table.find(e.again.argv[0], e.again.argl[0])
    sub = e.table.find_sub(row, e.again.argv[1], e.again.argl[1]) \
        if row != NULL and row.flags & FLAG_CONTAINER and e.again.argc > 1 else NULL
    return sub if sub != NULL else row


cdef void follow_keys(Engine e) noexcept:
    cdef uint32_t i, slot
    cdef Client *c
    cdef Upstream *u
    cdef Entry *entry
    cdef const Row *row
    cdef const char *p
    cdef size_t n
    cdef Buf kept
    cdef uint64_t left
    e.moving = False
    for i in range(e.client_room):
        c = e.client_list[i]
        u = waits_on(c) if c != NULL and not c.dead and c.waiting else NULL
        if u == NULL or u.over or u.head == u.tail:
            continue
        entry = &u.fifo[(u.tail - 1) & u.mask]
        p = buf_head(&u.out) + (entry.start - u.base)
        n = u.given - entry.start
        row = read_again(e, p, n) if entry.to == TO_CLIENT else NULL
        if row == NULL or locate(e, &e.again, row) == u.node:
            u.moving = 0        # but when it was recalled it begins again
            continue
        if entry.start >= u.written:
            # the old node has not heard of it
            memset(&kept, 0, sizeof(kept))
            if buf_append(&kept, p, n) < 0:
                client_close(e, c, "out of memory")
                continue
            slot = entry.slot
            left = time_left(e, u)
            private_drop(e, u)
            wait_again(e, c, slot, buf_head(&kept), kept.len, left)
            buf_release(&kept)
            continue
        if not u.moving:
            u.moving = e.now + e.timeout
        e.moving = True
        if unblock(e, u, False, None):
            u.recalled = True


cdef bint unblock(Engine e, Upstream *u, bint error, object done):
    cdef Upstream *way
    cdef char text[TEXT]
    cdef char number[24]
    cdef int n, digits
    if u.state != UP or u.id == 0 or u.written != u.given:
        return False
    way = upstream_anyhow(e, u.node, e.now + e.allowed[1])      # a drained one as well
    if way == NULL:
        return False
    u.spent = u.unblocked = True
    u.recalled = False          # whoever asks last gets the nil
    digits = snprintf(number, sizeof(number), "%lld", <long long>u.id)
    n = snprintf(text, TEXT, "*4\r\n$6\r\nCLIENT\r\n$7\r\nUNBLOCK\r\n$%d\r\n%s\r\n%s\r\n", digits, number,
                 "$5\r\nERROR" if error else "$7\r\nTIMEOUT")
    if done is not None:
        ask(e, way, NULL, text, n, 1, True, e.now + e.allowed[1], done)
    else:
        say_unheard(e, way, text, n)
    e.wake()
    return True


cdef void wait_elsewhere(Engine e, Upstream *u, Entry *entry) noexcept:
    cdef Client *c = owner_of(e, u)
    if c == NULL or c.dead or entry.to != TO_CLIENT or u.wait_ends and e.now + ABOUT >= u.wait_ends:
        return
    entry.to = TO_NOBODY
    wait_again(e, c, entry.slot, buf_head(&u.out) + (entry.start - u.base), u.given - entry.start, time_left(e, u))


cdef void wait_again(Engine e, Client *c, uint32_t slot, const char *p, size_t n, uint64_t left) noexcept:
    cdef const Row *row = read_again(e, p, n)
    cdef Request *r = &e.again
    cdef int node = locate(e, r, row) if row != NULL else NO_KEY
    cdef Upstream *u
    if node < 0:
        # its keys are not together any more
        slot_feed(e, c, slot, UNBLOCKED, strlen(UNBLOCKED), True)
        return
    u = lease(e, c, node, WAITING)
    if u == NULL:
        slot_feed(e, c, slot, e.text, e.text_size, True)
        return
    if upstream_for(e, node, c, 0) == NULL:
        slot_feed(e, c, slot, e.text, e.text_size, True)
        unlease(e, u, WAITING)
        return
    if e.displaced:
        remember(e, r, row)
    if promise(e, u, TO_CLIENT, c.index, c.generation, slot, 0, not row.flags & FLAG_READONLY, 0, 1, 0) < 0:
        client_close(e, c, "out of memory")
        return
    c.wrote |= <uint64_t>1 << (node & 63)
    put(e, u, r, row, left)
    wait_for(e, u, left)
    c.waiting = True
    c.waits_since = e.now
    e.mark_dirty(c)


cdef void put(Engine e, Upstream *u, const Request *r, const Row *row, uint64_t left) noexcept:
    """The request, with so much time."""
    cdef int i, at = timeout_at(r, row) if left else -1
    cdef char text[64]
    cdef char number[32]
    cdef const char *p
    cdef size_t n
    if at < 0:
        give(e, u, r.raw, r.raw_size)
        return
    n = put_number(text, c'*', r.argc)
    if give(e, u, text, n) < 0:
        return
    for i in range(r.argc):
        p = raw_argument(r, i, &n)
        if i == at:
            if row.name[0] == c'x':
                n = snprintf(number, sizeof(number), "%llu", <unsigned long long>(left // 1000))
            else:
                n = snprintf(number, sizeof(number), "%.3f", left / 1e6)
            n = snprintf(text, sizeof(text), "$%d\r\n%s\r\n", <int>n, number)
            p = text
        if give(e, u, p, n) < 0:
            return
