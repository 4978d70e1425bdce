"""Connections to nodes: made, kept, written to, given up.

Rules: requests go out in the order they were promised, and only a reply, or the loss of the connection, takes an entry
from the FIFO. A deadline that passes answers the client and leaves the entry, marked late, so that the reply is
counted off when it comes. An upstream is reset when it makes no progress at all. What is lost with a connection is
answered at once: `SHARDDOWN` for reads and where nothing of the request was written, `UNKNOWN outcome` for a write
that may have run.
"""

from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strlen
from posix.unistd cimport close

from shardproxy.core.buffers cimport buf_append, buf_consume, buf_head, buf_release, queue_free, queue_grow
from shardproxy.core.resp cimport Scan
from shardproxy.dataplane.counters cimport (
    SHARD_DOWN, TIMEOUTS, UNKNOWN_OUTCOMES, UPSTREAM_BYTES_OUT, UPSTREAM_CONNECTS, UPSTREAM_LOSSES, UPSTREAM_RESETS,
)
from shardproxy.dataplane.deliveries cimport deliver_error
from shardproxy.dataplane.engine cimport (
    CONNECTING, DOWN, GREETING, MAX_SHARED, OF_UPSTREAM, TEXT, TO_CLIENT, TO_LATE, TO_NOBODY, TO_PART, UP, Engine, Entry, Node, Upstream,
)
from shardproxy.dataplane.system cimport (
    AF_UNIX, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, IPPROTO_TCP, MSG_NOSIGNAL, SO_ERROR, SO_KEEPALIVE,
    SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_NODELAY,
    TCP_USER_TIMEOUT, connect, epoll_ctl, epoll_event, getsockopt, send, setsockopt, sockaddr, socket, tag,
)

cdef extern from "<string.h>" nogil:
    const char *strerror(int number)

cdef enum:
    BACKOFF_FIRST = 50000       # us
    BACKOFF_MOST = 5000000
    SETTLED = 1000000           # a connection that has lasted so long was a good one, even if nothing was asked on it
    MAX_QUEUE = 4194304         # requests on one upstream


# --- connecting ---

cdef void keep_alive(Engine e, int fd) noexcept:
    """TCP notices a peer that is gone without a word while nothing is sent."""
    cdef int on = e.keepalive > 0, third = e.keepalive // 3 + 1, count = 3
    if on:
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on))
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &e.keepalive, sizeof(int))
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &third, sizeof(int))
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(int))

cdef void set_why(Engine e, Upstream *u, const char *why) noexcept:
    cdef Node *node = &e.node_list[u.node]
    cdef int k
    cdef Upstream *other
    snprintf(u.why, TEXT, "%s", why)
    for k in range(2 * MAX_SHARED):
        other = node.shared[k // MAX_SHARED][k % MAX_SHARED]
        if other != NULL and other.state == UP:
            return              # the node is there; it is this protocol, or this connection, that it refuses
    if strlen(node.why) == 0:
        e.event("node_down", {"node": node.name.decode(errors="replace"), "reason": why.decode(errors="replace")})
    snprintf(node.why, TEXT, "%s", why)


cdef void start(Engine e, Upstream *u) noexcept:
    cdef Node *node = &e.node_list[u.node]
    cdef epoll_event ev
    cdef int one = 1, ms, fd, status
    cdef char text[TEXT]
    u.wanted = True
    u.progress = e.now
    if not node.resolved:
        failed(e, u, "its host name cannot be resolved")
        return
    fd = socket(node.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        failed(e, u, strerror(errno))
        return
    if node.address.ss_family != AF_UNIX:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
        # and a node that is gone while bytes wait for its acknowledgement; clients may take their time to read
        ms = 30000 if e.reset_after < 30000000 else <int>(e.reset_after // 1000 if e.reset_after < 1 << 40 else 0)
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms))
        keep_alive(e, fd)
    status = connect(fd, <const sockaddr *>&node.address, node.address_size)
    if status < 0 and errno != EINPROGRESS:
        snprintf(text, TEXT, "%s", strerror(errno))
        close(fd)
        failed(e, u, text)
        return
    u.fd = fd
    u.state = CONNECTING
    u.events = EPOLLOUT
    ev.events = EPOLLOUT
    ev.data.u64 = tag(OF_UPSTREAM, u.index, u.generation)
    if epoll_ctl(e.epoll, EPOLL_CTL_ADD, fd, &ev) < 0:
        upstream_lost(e, u, strerror(errno), False)


cdef void failed(Engine e, Upstream *u, const char *why) noexcept:
    """A connection that did not come about: the next try is later, and later each time."""
    cdef uint64_t wait = BACKOFF_FIRST
    cdef int i
    for i in range(u.failures if u.failures < 10 else 10):
        wait *= 2
    if wait > BACKOFF_MOST:
        wait = BACKOFF_MOST
    u.failures += 1
    u.retry_at = e.now + wait // 2 + e.random() % (wait // 2 + 1)
    set_why(e, u, why)


cdef void upstream_ready(Engine e, Upstream *u) noexcept:
    cdef Node *node = &e.node_list[u.node]
    u.state = UP
    u.proved = u.more = u.full = False
    u.since = u.progress = e.now
    e.count[<int>UPSTREAM_CONNECTS] += 1
    if node.why[0]:
        node.why[0] = 0
        e.event("node_up", {"node": node.name.decode(errors="replace")})
    if u.out.len:
        u.dirty = True


cdef void upstream_writable(Engine e, Upstream *u) noexcept:
    cdef int error = 0
    cdef uint32_t size = sizeof(error)
    cdef bytes greeting
    if u.state == CONNECTING:
        getsockopt(u.fd, SOL_SOCKET, SO_ERROR, &error, &size)
        if error:
            upstream_lost(e, u, strerror(error), False)
            return
        greeting, u.greetings = e.greetings[u.node][u.proto - 2]
        u.state = GREETING
        watch(e, u, EPOLLIN)
        # small, and the first bytes on a new connection: it always fits
        if send(u.fd, <const char *>greeting, len(greeting), MSG_NOSIGNAL) != len(greeting):
            upstream_lost(e, u, "could not write to it", False)
        return
    u.dirty = True


cdef inline void watch(Engine e, Upstream *u, uint32_t events) noexcept:
    cdef epoll_event ev
    if events != u.events:
        u.events = events
        ev.events = events
        ev.data.u64 = tag(OF_UPSTREAM, u.index, u.generation)
        epoll_ctl(e.epoll, EPOLL_CTL_MOD, u.fd, &ev)


# --- requests ---

cdef Upstream *upstream_for(Engine e, int shard, uint8_t proto, uint32_t spread) noexcept:
    cdef int number = e.shards[shard].node
    cdef Node *node = &e.node_list[number]
    cdef int k = <int>(spread % e.connections)
    cdef Upstream *u = node.shared[proto - 2][k]
    if u == NULL:
        u = upstream_new(e, number, proto)
        if u == NULL:
            e.text_size = snprintf(e.text, TEXT, "-ERR out of memory\r\n")
            return NULL
        node.shared[proto - 2][k] = u
    if u.state == DOWN and e.now >= u.retry_at and u.failures == 0:
        start(e, u)
    if u.doomed or u.state == DOWN or u.state != UP and u.failures:
        shard_down(e, shard, u)
        return NULL
    if u.out.len > e.budget.queue // e.upstream_count or u.tail - u.head > MAX_QUEUE:
        e.text_size = snprintf(e.text, TEXT, "-OVERLOADED shard '%.100s' at %.100s: %llu bytes wait for it\r\n",
                               e.shards[shard].name, node.name, <unsigned long long>u.out.len)
        return NULL
    node.requests += 1
    return u


cdef void shard_down(Engine e, int shard, Upstream *u) noexcept:
    e.count[<int>SHARD_DOWN] += 1
    e.text_size = snprintf(e.text, TEXT, "-SHARDDOWN shard '%.100s' at %.100s is down: %.90s\r\n",
                           e.shards[shard].name, e.node_list[u.node].name, u.why)
    fit(e)


cdef inline void fit(Engine e) noexcept:
    """snprintf says how long the text would have been."""
    if e.text_size >= TEXT:
        memcpy(e.text + TEXT - 3, "\r\n", 3)
        e.text_size = TEXT - 1


cdef Upstream *upstream_new(Engine e, int node, uint8_t proto) noexcept:
    cdef Upstream *u = <Upstream *>calloc(1, sizeof(Upstream))
    if u == NULL:
        return NULL
    if e.upstream_count == 65536:
        free(u)
        return NULL
    u.index = e.upstream_count
    e.upstreams[u.index] = u
    e.upstream_count += 1
    u.node = <uint16_t>node
    u.proto = proto
    u.fd = -1
    return u


cdef int promise(Engine e, Upstream *u, uint8_t to, uint32_t client, uint32_t generation, uint32_t slot,
                 uint16_t part, bint write, uint32_t frames) noexcept:
    cdef Entry *entry
    if u.fifo == NULL or u.tail - u.head > u.mask:
        if queue_grow(<void **>&u.fifo, &u.mask, u.head, u.tail, sizeof(Entry), 64) < 0:
            return -1
    if u.head == u.tail:
        u.progress = e.now
    entry = &u.fifo[u.tail & u.mask]
    u.tail += 1
    entry.client = client
    entry.generation = generation
    entry.slot = slot
    entry.part = part
    entry.to = to
    entry.write = write
    entry.frames = frames
    entry.at = e.now
    entry.start = u.given
    return 0


cdef int give(Engine e, Upstream *u, const char *p, size_t n) noexcept:
    if buf_append(&u.out, p, n) < 0:
        u.doomed = True         # part of a request cannot be left in there
        return -1
    u.given += n
    u.dirty = True
    return 0


cdef void upstream_flush(Engine e, Upstream *u) noexcept:
    cdef ssize_t n
    u.dirty = False
    if u.state != UP or u.doomed:
        return
    while u.out.len:
        n = send(u.fd, buf_head(&u.out), u.out.len, MSG_NOSIGNAL)
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
        buf_consume(&u.out, n)
    if u.out.cap > 65536:
        buf_release(&u.out)
    watch(e, u, EPOLLIN)


# --- what goes wrong ---

cdef void upstream_lost(Engine e, Upstream *u, const char *why, bint reset) noexcept:
    """Close it, answer everybody who waits on it, and say when it may be tried again."""
    cdef uint8_t was = u.state
    cdef bint begun = u.midway and not u.push
    cdef Entry entry
    cdef Node *node = &e.node_list[u.node]
    cdef char reason[TEXT]
    if was == DOWN:
        return
    snprintf(reason, TEXT, "%s", why)
    # the descriptor of an upstream is not named by anything but its own events, which carry the generation
    if u.fd >= 0:
        close(u.fd)
        u.fd = -1
    u.state = DOWN
    u.doomed = False
    u.events = 0
    buf_release(&u.inp)
    buf_release(&u.out)
    u.scanned = 0
    u.midway = u.push = False
    memset(&u.scan, 0, sizeof(Scan))
    e.count[<int>(UPSTREAM_RESETS if reset else UPSTREAM_LOSSES)] += 1
    if was == UP:
        if u.proved or e.now > u.since + SETTLED:
            u.failures = 0
            u.retry_at = e.now
            snprintf(u.why, TEXT, "%s", reason)
        else:
            failed(e, u, reason)
        node.lost += 1
        e.event("upstream_lost", {"node": node.name.decode(errors="replace"), "reason": reason.decode(errors="replace"),
                                  "in_flight": u.tail - u.head})
    else:
        failed(e, u, reason)
    while u.head != u.tail:
        entry = u.fifo[u.head & u.mask]
        if entry.start >= u.written or not entry.write:
            e.count[<int>SHARD_DOWN] += entry.to != TO_NOBODY and entry.to != TO_LATE
            e.text_size = snprintf(e.text, TEXT, "-SHARDDOWN shard '%.100s' at %.100s is down: %.90s\r\n",
                                   node.shard, node.name, reason)
        else:
            e.count[<int>UNKNOWN_OUTCOMES] += 1
            e.text_size = snprintf(e.text, TEXT, "-UNKNOWN outcome: shard '%.80s' at %.80s was lost before it "
                                   "answered (%.60s); the command may have run\r\n", node.shard, node.name, reason)
        fit(e)
        deliver_error(e, &entry, begun)
        begun = False
        u.head += 1
    u.late = u.head
    shrink(u)
    u.given = u.written = 0
    u.generation += 1


cdef void shrink(Upstream *u) noexcept:
    """What a flood has made grow is given back when it is empty."""
    if u.head == u.tail and u.mask > 4095:
        queue_free(<void **>&u.fifo, &u.mask, sizeof(Entry))


cdef void deadlines(Engine e, Upstream *u) noexcept:
    """Only after all that the node has sent was read: what has arrived is not late."""
    cdef Entry *entry
    cdef Node *node = &e.node_list[u.node]
    while u.late != u.tail:
        entry = &u.fifo[u.late & u.mask]
        if entry.at + e.timeout > e.now:
            return
        if not (u.late == u.head and u.midway) and (entry.to == TO_CLIENT or entry.to == TO_PART):
            e.count[<int>TIMEOUTS] += 1
            e.text_size = snprintf(e.text, TEXT, "-TIMEOUT shard '%.80s' at %.80s did not answer within %llu ms; "
                                   "the command may still run\r\n", node.shard, node.name, <unsigned long long>(e.timeout // 1000))
            deliver_error(e, entry, False)
            entry.to = TO_LATE
        u.late += 1


cdef void upstreams_due(Engine e) noexcept:
    cdef Upstream *u
    cdef uint32_t i
    for i in range(e.upstream_count):
        u = e.upstreams[i]
        if u == NULL:
            continue
        if u.state == DOWN:
            if u.wanted and e.now >= u.retry_at and not e.draining:
                start(e, u)
        elif u.doomed:
            upstream_lost(e, u, "out of memory", True)
        elif u.state != UP:
            if e.now > u.progress + e.connect_timeout:
                upstream_lost(e, u, "it does not accept the connection in time" if u.state == CONNECTING
                              else "it accepts the connection and says nothing", True)
        shrink(u)
        if u.more:
            u.more = False      # the last read was full: this once, look later
        elif u.head != u.tail:
            deadlines(e, u)
            if u.state == UP and u.head != u.tail and e.now > u.progress + e.reset_after:
                upstream_lost(e, u, "it makes no progress at all", True)


cdef void upstream_free(Engine e, Upstream *u) noexcept:
    upstream_lost(e, u, "shardproxy is closing the connection", False)
    queue_free(<void **>&u.fifo, &u.mask, sizeof(Entry))
    e.upstreams[u.index] = NULL
    free(u)
