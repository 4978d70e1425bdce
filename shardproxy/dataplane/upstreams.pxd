from libc.stdint cimport uint8_t, uint16_t, uint32_t
from shardproxy.dataplane.engine cimport Engine, Node, Upstream

# The upstream that this client's commands for that node travel on; NULL: e.text is the error line, e.missing says whether
# reads find nothing instead, e.crowded whether a client that has requests in flight should rather wait.
cdef Upstream *upstream_for(Engine e, int number, uint8_t proto, uint32_t spread) noexcept
# Promise the next `frames` replies to somebody. The request's bytes follow in u.out. -1: no memory.
cdef int promise(Engine e, Upstream *u, uint8_t to, uint32_t client, uint32_t generation, uint32_t slot,
                 uint16_t part, bint write, uint8_t tries, uint32_t frames) noexcept
cdef int give(Engine e, Upstream *u, const char *p, size_t n) noexcept
cdef void upstream_writable(Engine e, Upstream *u) noexcept
cdef void upstream_flush(Engine e, Upstream *u) noexcept
cdef void upstream_done(Upstream *u) noexcept nogil
cdef void upstream_leave(Engine e, Upstream *u) noexcept
cdef void release(Engine e, Node *node) noexcept
cdef void failed(Engine e, Upstream *u, const char *why, bint refused) noexcept
cdef void fit(Engine e) noexcept
cdef void shrink(Upstream *u) noexcept
# Deadlines, connections that take too long, upstreams that make no progress, and reconnecting.
cdef void upstreams_due(Engine e) noexcept
cdef void upstream_free(Engine e, Upstream *u) noexcept
cdef void upstream_ready(Engine e, Upstream *u) noexcept
# Go on with its TLS handshake; True: it is done, and the greeting is on its way.
cdef bint shake(Engine e, Upstream *u, bint first) noexcept
cdef void keep_alive(Engine e, int fd) noexcept
