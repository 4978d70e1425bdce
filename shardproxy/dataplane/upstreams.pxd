from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from shardproxy.dataplane.engine cimport Client, Engine, Node, Upstream

# The upstream that this client's commands for that node, due then, travel on; NULL: e.text is the error line, e.missing says whether
# reads find nothing instead, e.crowded whether a client that has requests in flight should rather wait.
cdef Upstream *upstream_for(Engine e, int number, Client *c, uint64_t due) noexcept
# Before a request: a client takes to another number of connections a node when all it has asked for is answered.
cdef void keep_lane(Engine e, Client *c) noexcept nogil
# The same for who is no client.
cdef Upstream *upstream_at(Engine e, int number, uint8_t proto, uint16_t db, uint64_t due) noexcept
# To a node that need not serve its shard any more, but answers; NULL: there is no way.
cdef Upstream *upstream_anyhow(Engine e, int number, uint64_t due) noexcept
cdef Upstream *own_of(Client *c, int number) noexcept nogil
# One more upstream of that node, not connected; NULL: no memory.
cdef Upstream *upstream_new(Engine e, int number, uint8_t proto, uint16_t db) noexcept
cdef void upstream_give_up(Engine e, Upstream *u) noexcept
cdef void start(Engine e, Upstream *u) noexcept
# Promise the next `frames` replies to somebody, until `due`: 0, or what blocks, for ever. The request's bytes follow in u.out.
# -1: no memory.
cdef int promise(Engine e, Upstream *u, uint8_t to, uint32_t client, uint32_t generation, uint32_t slot,
                 uint16_t part, bint write, uint8_t tries, uint32_t frames, uint64_t due) noexcept
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
cdef void upstreams_free(Engine e) noexcept
cdef void upstream_ready(Engine e, Upstream *u) noexcept
# Go on with its TLS handshake; True: it is done, and the greeting is on its way.
cdef bint shake(Engine e, Upstream *u, bint first) noexcept
# Bytes of a greeting.
cdef void say(Engine e, Upstream *u, bytes greeting) noexcept
cdef void keep_alive(Engine e, int fd) noexcept
