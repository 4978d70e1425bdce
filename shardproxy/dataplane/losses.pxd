from shardproxy.dataplane.engine cimport Engine, Node, Upstream

# A piece of evidence against a node.
cdef void blame(Engine e, Node *node, const char *why, bint refused) noexcept
cdef str named(const Upstream *u)
cdef void ghost(Engine e, Upstream *u) noexcept
cdef void upstream_lost(Engine e, Upstream *u, const char *why, bint reset) noexcept
# What may be sent again stays in the queue of an upstream that is down; the rest is answered.
cdef void sift(Engine e, Upstream *u, const char *reason) noexcept
# What is not written yet and whose client has been answered, or has left, is not to be written.
cdef void prune(Engine e, Upstream *u) noexcept
cdef void deadlines(Engine e, Upstream *u) noexcept
# The node is out: its connections are closed; what may be sent elsewhere is, the rest is answered.
cdef void leave(Engine e, Node *node) noexcept
