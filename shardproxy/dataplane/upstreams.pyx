"""Connections to nodes: which one a request travels on, its bytes on their way out, and the end of a connection.

Rules: requests go out in the order they were promised, and only a reply, or the loss of the connection, takes an entry
from the FIFO. The bytes of a read stay in the out-buffer until it is answered, behind what is sent. Nothing is
written while the node's shard is held. How one comes about is connecting's; what goes wrong is losses'.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.unistd cimport close

from shardproxy.core.buffers cimport buf_consume, buf_head, buf_release, queue_free
from shardproxy.core.resp cimport Scan
from shardproxy.dataplane.connecting cimport pass_on, start, try_now, watch
from shardproxy.dataplane.counters cimport HELD, OVERLOADED, SHARD_DOWN, UPSTREAM_BYTES_OUT
from shardproxy.dataplane.engine cimport (
    CACHING_YES, CONNECTING, DOWN, HOLD, MAX_UPSTREAMS, MISS, NOWHERE, SERVE, TEXT, TO_NOBODY, TRACKING, UP, WAITING,
    Client, Engine, Entry, Node, Upstream,
)
from shardproxy.dataplane.greetings cimport killed
from shardproxy.dataplane.losses cimport deadlines, prune, sift, upstream_lost
from shardproxy.dataplane.memcached_greetings cimport look_again
from shardproxy.dataplane.private cimport lease, private_drop
from shardproxy.dataplane.scripts cimport unlearn
from shardproxy.dataplane.system cimport EPOLLIN, EPOLLOUT
from shardproxy.dataplane.tls cimport Tls, tls_behind, tls_end, tls_free

cdef enum:
    POOL_IDLE = 60000000        # us that a private one waits for its next client
    PORTION = 50                # part of what a node answers in a second that it gets at once of requests sent again


# --- requests ---

cdef Upstream *upstream_found(Engine e, int number, Client *c, uint64_t due) noexcept:
    if e.node_list[number].memcached:
        return usable(e, number, NULL, 2, 0, c.lane, due)    # there is one protocol and one database
    if c.tracking:
        return tracking_one(e, number, c, due)
    return usable(e, number, own_of(c, number) if c.own != NULL else NULL, c.proto, c.db, c.lane, due)


cdef Upstream *tracking_one(Engine e, int number, Client *c, uint64_t due) noexcept:
    """Its own, where the node remembers what it reads; made when it first needs one."""
    cdef Node *node = e.node_list[number]
    cdef Upstream *u = own_of(c, number)
    if u == NULL and (node.mode == SERVE or node.mode == HOLD):
        u = lease(e, c, number, TRACKING)
        if u == NULL:
            e.missing = e.crowded = e.down = False
            return NULL
    u = usable(e, number, u, c.proto, c.db, c.lane, due)
    if u != NULL and c.caching:
        if promise(e, u, TO_NOBODY, 0, 0, 0, 0, False, 0, 1, due) < 0:
            u.doomed = True
        elif c.caching & CACHING_YES:
            give(e, u, "*3\r\n$6\r\nCLIENT\r\n$7\r\nCACHING\r\n$3\r\nYES\r\n", 38)
        else:
            give(e, u, "*3\r\n$6\r\nCLIENT\r\n$7\r\nCACHING\r\n$2\r\nNO\r\n", 37)
    return u


cdef Upstream *upstream_at(Engine e, int number, uint8_t proto, uint16_t db, uint64_t due) noexcept:
    if e.node_list[number].memcached:
        proto, db = 2, 0
    return usable(e, number, NULL, proto, db, 0, due)


cdef inline Upstream *own_of(Client *c, int number) noexcept nogil:
    cdef Upstream *u = c.own
    while u != NULL and u.node != number:
        u = u.next_own
    return u


cdef Upstream *shared_of(Engine e, int number, uint8_t proto, uint16_t db, uint32_t k) noexcept:
    """Of a database other than 0: they are few, and looked for."""
    cdef Upstream *u = e.node_list[number].first
    while u != NULL:
        if not u.private and u.db == db and u.proto == proto and u.place == k:
            return u
        u = u.after
    return NULL


cdef Upstream *usable(Engine e, int number, Upstream *u, uint8_t proto, uint16_t db, uint32_t k,
                      uint64_t due) noexcept:
    cdef Node *node = e.node_list[number]
    e.missing = e.crowded = e.down = False
    if node.mode and node.mode != HOLD:
        shard_down(e, node, node.why)
        return NULL
    return connected(e, number, u, proto, db, k, due)


cdef Upstream *upstream_anyhow(Engine e, int number, uint64_t due) noexcept:
    if e.node_list[number].out or e.node_list[number].memcached:
        return NULL
    return connected(e, number, NULL, 2, 0, 0, due)


cdef Upstream *connected(Engine e, int number, Upstream *u, uint8_t proto, uint16_t db, uint32_t k,
                         uint64_t due) noexcept:
    """NULL: e.text is the error line."""
    cdef Node *node = e.node_list[number]
    if u == NULL:
        u = node.shared[proto - 2][k] if db == 0 else shared_of(e, number, proto, db, k)
    if u == NULL:
        u = upstream_new(e, number, proto, db)
        if u == NULL:
            e.text_size = snprintf(e.text, TEXT, "-ERR out of memory\r\n")
            return NULL
        u.place = <uint8_t>k
        e.shared_count += 1
        if db == 0:
            node.shared[proto - 2][k] = u
    if u.state == DOWN and e.now >= u.retry_at and u.failures == 0:
        start(e, u)
    if u.over or u.doomed or not (e.holds and not node.stays) and (u.state == DOWN or u.state != UP and u.failures):
        shard_down(e, node, u.why)
        return NULL
    if (u.given - u.written) * (e.shared_count + u.private) > e.budget.queue or u.tail - u.head > MAX_QUEUE:
        e.count[<int>OVERLOADED] += 1
        e.text_size = snprintf(e.text, TEXT, "-OVERLOADED shard '%.100s' at %.100s: %llu bytes wait for it\r\n",
                               node.shard, node.name, <unsigned long long>(u.given - u.written))
        return NULL
    if u.tail - u.head > ALWAYS and late_for(e, u, due):
        e.crowded = True
        e.count[<int>OVERLOADED] += 1
        e.text_size = snprintf(e.text, TEXT, "-OVERLOADED shard '%.100s' at %.100s: %llu requests wait for it, more than it "
                               "answers in time\r\n", node.shard, node.name, <unsigned long long>(u.tail - u.head))
        fit(e)
        return NULL
    if node.mode == HOLD:
        e.count[<int>HELD] += 1
    return u


cdef inline bint late_for(Engine e, Upstream *u, uint64_t due) noexcept nogil:
    """Little's law: what waits is more than the node answers until then; and it does lag behind.

    Where a node that has stopped altogether will be out, and its keys elsewhere, before the deadline, waiting is better.
    """
    if e.holds and not e.node_list[u.node].stays and e.now > u.progress + e.patience:
        return False
    # what is sent again goes out in portions: while some wait, how long the queue is says nothing of the node's pace
    if u.again > u.written:
        return False
    return (e.now > u.fifo[u.head & u.mask].at + e.patience
            and u.state == UP and u.tail - u.head > u.rate * (due - e.now) / 1e6)


cdef void shard_down(Engine e, Node *node, const char *why) noexcept:
    if why[0] == 0:
        why = "it answers again, and is being probed"
    e.missing = e.reads_miss or node.mode == MISS
    e.down = True
    e.count[<int>SHARD_DOWN] += 1
    e.text_size = snprintf(e.text, TEXT, "-SHARDDOWN shard '%.100s' at %.100s is down: %.90s\r\n",
                           node.shard, node.name, why)
    fit(e)


cdef void fit(Engine e) noexcept:
    """snprintf says how long the text would have been."""
    if e.text_size >= TEXT:
        memcpy(e.text + TEXT - 3, "\r\n", 3)
        e.text_size = TEXT - 1


cdef Upstream *upstream_new(Engine e, int number, uint8_t proto, uint16_t db) noexcept:
    cdef Node *node = e.node_list[number]
    cdef Upstream *u
    if e.spare_upstream_count:
        e.spare_upstream_count -= 1
        u = e.upstreams[e.spare_upstreams[e.spare_upstream_count]]
    else:
        u = <Upstream *>calloc(1, sizeof(Upstream)) if e.upstream_count < MAX_UPSTREAMS else NULL
        if u == NULL:
            return NULL
        u.index = e.upstream_count
        e.upstreams[u.index] = u
        e.upstream_count += 1
    u.node = <uint16_t>number
    u.proto = proto
    u.db = db
    u.fd = -1
    u.before = NULL
    u.after = node.first
    if u.after != NULL:
        u.after.before = u
    node.first = u
    return u


cdef void upstream_give_up(Engine e, Upstream *u) noexcept:
    """It is nobody's any more: closed, with nothing in its queue. Only at the end of a tick."""
    cdef Node *node = e.node_list[u.node]
    upstream_leave(e, u)
    buf_release(&u.out)
    u.base = u.written = u.given = u.again = u.unsent = 0
    u.head = u.tail = u.late = u.kept = u.fence = 0
    shrink(u)
    if u.before != NULL:
        u.before.after = u.after
    else:
        node.first = u.after
    if u.after != NULL:
        u.after.before = u.before
    if u.private:
        node.privates -= 1
    else:
        e.shared_count -= 1
        if u.db == 0:
            node.shared[u.proto - 2][u.place] = NULL
    u.before = u.after = u.next_own = NULL
    u.private = u.owned = u.linked = u.stream = u.over = False
    u.lease = 0
    u.node = NOWHERE
    e.spare_upstreams[e.spare_upstream_count] = u.index
    e.spare_upstream_count += 1


cdef void upstream_done(Upstream *u) noexcept nogil:
    """Let go of the bytes that nobody can need again: of requests answered, and of writes that are all written.

    The others stay in `out` behind what is sent, so that a read that is lost with its connection can go out again, and
    what waits for data can wait elsewhere; and of all of them where replies are raised by what was asked.
    """
    cdef uint64_t end
    cdef uint32_t after
    if <int>(u.head - u.kept) > 0:
        u.kept = u.head
    while u.kept != u.tail and u.fifo[u.kept & u.mask].write and not u.lease & WAITING and not u.raised:
        after = u.kept + 1
        end = u.given if after == u.tail else u.fifo[after & u.mask].start
        if end > u.written:
            break
        u.kept = after
    end = u.written
    if u.kept != u.tail and u.fifo[u.kept & u.mask].start < end:
        end = u.fifo[u.kept & u.mask].start
    if end > u.base:
        buf_consume(&u.out, end - u.base)
        u.base = end
        if u.out.len == 0 and u.out.cap > 65536:
            buf_release(&u.out)


cdef uint64_t portion(const Upstream *u) noexcept nogil:
    """How far to write while requests are sent again: what was in flight at a node that is lost does not fall on another at once.

    The rest waits in its order, and what is newer behind it; replies make room.
    """
    cdef uint32_t ahead = <uint32_t>(ALWAYS + u.rate / PORTION)
    if u.tail - u.head <= ahead:
        return u.given
    return u.fifo[(u.head + ahead) & u.mask].start


cdef void upstream_flush(Engine e, Upstream *u) noexcept:
    cdef ssize_t n
    cdef uint64_t end
    cdef Node *node
    u.dirty = False
    if u.state != UP or u.doomed:
        return                  # it may be nobody's by now
    node = e.node_list[u.node]
    if node.mode == HOLD or node.follows != NOWHERE:
        return
    end = portion(u) if u.again > u.written else u.given
    while u.written < end or tls_behind(u.tls):
        n = pass_on(u, buf_head(&u.out) + (u.written - u.base), end - u.written)
        if n < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                watch(e, u, EPOLLIN | EPOLLOUT)
                u.full = True
                return
            upstream_lost(e, u, "connection lost", False)
            return
        u.written += n
        if u.full:
            # the node has taken something since; what a socket takes at once says nothing about the node
            u.full = False
            u.progress = e.now
        e.count[<int>UPSTREAM_BYTES_OUT] += n
    if u.head != u.tail and (u.out.cap > 65536 or u.fifo[(u.tail - 1) & u.mask].write):
        upstream_done(u)
    watch(e, u, EPOLLIN)


# --- by the clock ---

cdef void upstreams_due(Engine e) noexcept:
    cdef Upstream *u
    cdef Node *node
    cdef uint32_t i
    for i in range(<uint32_t>e.node_count):
        node = e.node_list[i]
        # one that is not gone has the number of the one that was
        if node.follows != NOWHERE and (not e.node_list[node.follows].gone or idle(e, e.node_list[node.follows])):
            node.follows = NOWHERE
            release(e, node)
    for i in range(e.upstream_count):
        u = e.upstreams[i]
        if u.node == NOWHERE:
            continue
        node = e.node_list[u.node]
        if u.state == DOWN:
            # who drains connects for what waits already, and for nothing else
            if u.wanted and e.now >= u.retry_at and not (e.draining and u.head == u.tail) and not node.out and not u.private:
                start(e, u)
        elif u.doomed:
            upstream_lost(e, u, "out of memory", True)
        elif u.state != UP:
            if u.killing and node.memcached:
                look_again(e, u)
            # from the end of a lag of our own: what has come meanwhile is only being read
            if e.now > (u.progress if u.progress > e.lagged else e.lagged) + e.connect_timeout:
                upstream_lost(e, u, "it does not accept the connection in time" if u.state == CONNECTING
                              else "it accepts the connection and says nothing", True)
        shrink(u)
        if u.wait_until and e.now > u.wait_until:
            u.wait_until = 0
            upstream_lost(e, u, "it does not answer a command that blocks when its time is over", True)
        if u.more:
            u.more = False      # the last read was full: this once, look later
        elif u.head != u.tail:
            deadlines(e, u)
            # what has time left may take it: one script, and no byte meanwhile; nor is what blocks ever late
            if u.state == UP and u.late != u.head and u.fifo[u.head & u.mask].start < u.written \
                    and e.now > u.progress + e.reset_after:
                upstream_lost(e, u, "it makes no progress at all", True)
        if e.now > u.measured + 100000:
            # while nothing may go out, that nothing comes back says nothing
            if (u.head != u.tail or u.done) and u.state == UP and node.mode != HOLD:
                u.rate = (u.rate + u.done * 1e6 / (e.now - u.measured)) / 2
            u.done = 0
            u.measured = e.now
        if u.private:
            if node.gone and u.state == DOWN and not u.over:
                private_drop(e, u)
            elif node.gone and (u.head == u.tail or u.lease & WAITING and not u.moving) and not u.over:
                upstream_lost(e, u, "it has left the ring", False)
            elif u.moving and e.now > u.moving and not u.over:
                upstream_lost(e, u, "its keys have moved", False)
            elif not u.owned and not u.linked and e.now > u.idle_since + POOL_IDLE and not u.over:
                private_drop(e, u)
        elif node.gone and u.head == u.tail:
            upstream_give_up(e, u)
    for i in range(<uint32_t>e.node_count):
        node = e.node_list[i]
        if node.used and node.gone and node.first == NULL:
            node.used = False


cdef bint idle(Engine e, Node *node) noexcept nogil:
    """Nothing that it was sent may still be running, but for what its clients have been told of."""
    cdef Upstream *u = node.first
    while u != NULL:
        if u.late != u.tail and not u.lease & WAITING:
            return False
        u = u.after
    return True


cdef void release(Engine e, Node *node) noexcept:
    """What was held for it may go."""
    cdef Upstream *u = node.first
    while u != NULL:
        prune(e, u)
        try_now(e, u)
        e.mark_upstream(u)
        if u.head != u.tail:
            u.progress = e.now
        u = u.after


cdef void upstream_leave(Engine e, Upstream *u) noexcept:
    """Close it without a word, and forget what it was about; its queue is the caller's."""
    if u.tls != NULL:
        tls_end(<Tls>u.tls, u.fd)
        tls_free(&u.tls)
    if u.fd >= 0:
        close(u.fd)
        u.fd = -1
    u.state = DOWN
    u.doomed = u.wanted = u.midway = u.push = u.more = u.full = False
    u.wait_until = u.wait_ends = u.moving = 0
    u.spent = u.recalled = u.unblocked = False
    u.refusal[0] = 0
    u.events = 0
    buf_release(&u.inp)
    u.scanned = 0
    memset(&u.scan, 0, sizeof(Scan))
    u.failures = 0
    u.retry_at = 0
    u.id = 0
    u.address[0] = 0
    while u.killing:
        killed(e, u, False)
    u.generation += 1
    unlearn(u)


cdef void shrink(Upstream *u) noexcept:
    """What a flood has made grow is given back when it is empty."""
    if u.head == u.tail and u.mask > 4095:
        queue_free(<void **>&u.fifo, &u.mask, sizeof(Entry))


cdef void upstreams_free(Engine e) noexcept:
    """All are lost before the first is freed: why one is looks at the others of its node."""
    cdef Upstream *u
    cdef uint32_t i
    for i in range(e.upstream_count):
        u = e.upstreams[i]
        if u != NULL and u.node != NOWHERE:
            upstream_lost(e, u, "shardproxy is closing the connection", False)
            sift(e, u, "shardproxy is closing the connection")
    for i in range(e.upstream_count):
        if e.upstreams[i] != NULL:
            upstream_free(e, e.upstreams[i])
    e.upstream_count = 0


cdef void upstream_free(Engine e, Upstream *u) noexcept:
    unlearn(u)
    buf_release(&u.out)
    queue_free(<void **>&u.fifo, &u.mask, sizeof(Entry))
    e.upstreams[u.index] = NULL
    free(u)
