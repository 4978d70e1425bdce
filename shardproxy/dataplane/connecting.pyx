"""A connection to a node on its way: the socket, TLS, until the node has answered the greeting and it is up.

Rules: one that does not come about is tried again, later each time; the node is blamed for it, and says why in errors.
What is said in the greeting is greetings'; what goes wrong once it is there is losses'.
"""

from libc.errno cimport EADDRNOTAVAIL, ECONNREFUSED, EINPROGRESS, ENOBUFS, ENOENT, ENOMEM, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport strlen
from posix.unistd cimport close

from shardproxy.dataplane.counters cimport UPSTREAM_CONNECTS
from shardproxy.dataplane.engine cimport (
    CONNECTING, DOWN, GREETING, OF_UPSTREAM, SCRATCH, TEXT, UP, Engine, Node, Upstream,
)
from shardproxy.dataplane.greetings cimport greet
from shardproxy.dataplane.losses cimport blame, prune, sift, upstream_lost
from shardproxy.dataplane.system cimport (
    AF_UNIX, EPOLL_CTL_ADD, EPOLLIN, EPOLLOUT, IPPROTO_TCP, SO_ERROR, SO_KEEPALIVE, SOCK_CLOEXEC, SOCK_NONBLOCK,
    SOCK_STREAM, SOL_SOCKET, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_NODELAY, TCP_USER_TIMEOUT, connect,
    epoll_ctl, epoll_event, getsockopt, setsockopt, sockaddr, socket, tag,
)
from shardproxy.dataplane.tls cimport FAILED, GONE, SHAKEN, Tls, tls_new, tls_recv, tls_shake, tls_why

cdef extern from "<string.h>" nogil:
    const char *strerror(int number)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        SO_LINGER
    struct linger:
        int l_onoff
        int l_linger

cdef enum:
    BACKOFF_FIRST = 50000       # us
    BACKOFF_MOST = 5000000


cdef void keep_alive(Engine e, int fd) noexcept:
    """TCP notices a peer that is gone without a word while nothing is sent."""
    cdef int on = e.keepalive > 0, third = e.keepalive // 3 + 1, count = 3
    if on:
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on))
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &e.keepalive, sizeof(int))
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &third, sizeof(int))
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(int))


cdef void set_why(Engine e, Upstream *u, const char *why) noexcept:
    cdef Node *node = e.node_list[u.node]
    cdef Upstream *other = node.first
    snprintf(u.why, TEXT, "%s", why)
    while other != NULL:
        if other.state == UP:
            return              # the node is there; it is this protocol, or this connection, that it refuses
        other = other.after
    if strlen(node.why) == 0:
        e.event("node_down", {"node": node.name.decode(errors="replace"), "reason": why.decode(errors="replace")})
    snprintf(node.why, TEXT, "%s", why)


cdef void start(Engine e, Upstream *u) noexcept:
    cdef Node *node = e.node_list[u.node]
    cdef epoll_event ev
    cdef int one = 1, ms, fd, status
    cdef linger none
    u.wanted = True
    u.progress = e.now
    if not node.resolved:
        failed(e, u, "its host name cannot be resolved", False)
        return
    fd = socket(node.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        later(e, u, strerror(errno))        # it is us who lack a descriptor, or memory: no evidence
        return
    if node.address.ss_family != AF_UNIX:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
        # and a node that is gone while bytes wait for its acknowledgement; clients may take their time to read
        ms = 30000 if e.reset_after < 30000000 else <int>(e.reset_after // 1000 if e.reset_after < 1 << 40 else 0)
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms))
        keep_alive(e, fd)
        if node.memcached:
            # it has no CLIENT KILL, and is waited for no longer than memcached_greetings' PATIENCE. Closed by RST, also when
            # our process dies: no byte is sent again by our kernel, and of what a node that hangs has not read yet it runs
            # no more than it takes at once
            none.l_onoff = 1
            none.l_linger = 0
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none))
    status = connect(fd, <const sockaddr *>&node.address, node.address_size)
    if status < 0 and errno != EINPROGRESS:
        status = errno
        close(fd)
        if status == EADDRNOTAVAIL or status == ENOBUFS or status == ENOMEM:
            later(e, u, strerror(status))   # nor when it is a port
        else:
            failed(e, u, strerror(status), refusal(status))
        return
    u.fd = fd
    u.state = CONNECTING
    u.events = EPOLLOUT
    ev.events = EPOLLOUT
    ev.data.u64 = tag(OF_UPSTREAM, u.index, u.generation)
    if epoll_ctl(e.epoll, EPOLL_CTL_ADD, fd, &ev) < 0:
        upstream_lost(e, u, strerror(errno), False)


cdef inline bint refusal(int number) noexcept nogil:
    """Nobody is there: no use in asking again to be sure."""
    return number == ECONNREFUSED or number == ENOENT


cdef void failed(Engine e, Upstream *u, const char *why, bint refused) noexcept:
    blame(e, e.node_list[u.node], why, refused)
    later(e, u, why)


cdef void later(Engine e, Upstream *u, const char *why) noexcept:
    """A connection that did not come about: the next try is later, and later each time; all of it is left to chance."""
    cdef uint64_t wait = BACKOFF_FIRST
    cdef int i
    for i in range(u.failures if u.failures < 10 else 10):
        wait *= 2
    if wait > BACKOFF_MOST:
        wait = BACKOFF_MOST
    u.failures += 1
    u.retry_at = e.now + e.random() % (wait + 1)
    set_why(e, u, why)
    sift(e, u, why)


cdef void upstream_ready(Engine e, Upstream *u) noexcept:
    cdef Node *node = e.node_list[u.node]
    u.state = UP
    u.proved = u.more = u.full = False
    if u.proto == 3 and not u.raised:
        node.speaks = 3
    u.since = u.progress = u.measured = e.now
    u.done = 0
    prune(e, u)
    try_now(e, u)
    e.count[<int>UPSTREAM_CONNECTS] += 1
    if node.why[0]:
        node.why[0] = 0
        e.event("node_up", {"node": node.name.decode(errors="replace")})
    if u.out.len:
        e.mark_upstream(u)


cdef void try_now(Engine e, Upstream *u) noexcept nogil:
    """What has waited until it may be written: how long the node takes counts from now."""
    cdef uint32_t i = u.tail
    while i != u.head and u.fifo[(i - 1) & u.mask].start >= u.written:
        i -= 1
        u.fifo[i & u.mask].at = e.now


cdef void upstream_writable(Engine e, Upstream *u) noexcept:
    cdef int error = 0
    cdef uint32_t size = sizeof(error)
    if u.state == CONNECTING:
        getsockopt(u.fd, SOL_SOCKET, SO_ERROR, &error, &size)
        if error:
            close(u.fd)
            u.fd = -1
            u.state = DOWN
            u.generation += 1
            failed(e, u, strerror(error), refusal(error))
            return
        u.state = GREETING
        watch(e, u, EPOLLIN)
        if u.node in e.secured:
            context, name = e.secured[u.node]
            u.tls = tls_new(e, context, False, name)
            if u.tls == NULL:
                upstream_lost(e, u, e.text, False)
            else:
                shake(e, u, True)
        else:
            greet(e, u)
        return
    e.mark_upstream(u)


cdef bint shake(Engine e, Upstream *u, bint first) noexcept:
    """The TLS handshake, then the greeting; False: it is not done, or has failed."""
    cdef int status = tls_shake(e, <Tls>u.tls, u.fd, first)
    if status == FAILED:
        upstream_lost(e, u, tls_why(u.tls), False)
    elif status == GONE:
        upstream_lost(e, u, "it closed the connection in the TLS handshake", False)
    elif status == SHAKEN:
        greet(e, u)
    return status == SHAKEN and u.state == GREETING


cdef void say(Engine e, Upstream *u, bytes greeting) noexcept:
    cdef const char *why
    # small, and the first bytes on a new connection: it always fits
    if pass_on(u, greeting, len(greeting)) != len(greeting):
        if u.tls != NULL:
            tls_recv(e, <Tls>u.tls, u.fd, e.scratch, SCRATCH)       # its alert says why it has closed
        why = tls_why(u.tls)
        if why == NULL:
            why = "could not write to it"
        upstream_lost(e, u, why, False)
