from libc.stdint cimport uint32_t

from shardproxy.dataplane.engine cimport OF_UPSTREAM, Engine, Upstream
from shardproxy.dataplane.system cimport EPOLL_CTL_MOD, MSG_NOSIGNAL, epoll_ctl, epoll_event, send, tag
from shardproxy.dataplane.tls cimport Tls, tls_pass

cdef void start(Engine e, Upstream *u) noexcept
# The next try is later; refused: nobody is there, so that there is no need to ask again to be sure.
cdef void failed(Engine e, Upstream *u, const char *why, bint refused) noexcept
cdef void upstream_writable(Engine e, Upstream *u) noexcept
cdef void try_now(Engine e, Upstream *u) noexcept nogil
cdef void upstream_ready(Engine e, Upstream *u) noexcept
# Go on with its TLS handshake; True: it is done, and the greeting is on its way.
cdef bint shake(Engine e, Upstream *u, bint first) noexcept
# Bytes of a greeting.
cdef void say(Engine e, Upstream *u, bytes greeting) noexcept
cdef void keep_alive(Engine e, int fd) noexcept

# Every write passes these two.

# As send; what is encrypted counts as sent.
cdef inline ssize_t pass_on(Upstream *u, const char *p, size_t n) noexcept:
    return send(u.fd, p, n, MSG_NOSIGNAL) if u.tls == NULL else tls_pass(<Tls>u.tls, u.fd, p, n)

cdef inline void watch(Engine e, Upstream *u, uint32_t events) noexcept:
    cdef epoll_event ev
    if events != u.events:
        u.events = events
        ev.events = events
        ev.data.u64 = tag(OF_UPSTREAM, u.index, u.generation)
        epoll_ctl(e.epoll, EPOLL_CTL_MOD, u.fd, &ev)
