from shardproxy.dataplane.engine cimport Engine, Upstream

cdef void greet(Engine e, Upstream *u) noexcept
cdef void greeted(Engine e, Upstream *u) noexcept
# A lost connection that its greeting was to kill is gone, or not.
cdef void killed(Engine e, Upstream *u, bint done) noexcept
# Whether an error says that the node does not speak RESP3.
cdef bint no_hello(const char *p, size_t n) noexcept nogil
