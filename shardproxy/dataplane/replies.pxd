from shardproxy.core.buffers cimport Buf
from shardproxy.dataplane.engine cimport Engine, Entry, Node, Upstream

cdef void upstream_readable(Engine e, Upstream *u) noexcept
# The FIFO's head, `entry`, has all that it was promised; sick: its node says that it is not well.
cdef void answered(Engine e, Upstream *u, Node *node, const Entry *entry, bint sick) noexcept
# The beginning of what a node sent, fit for an error line; until the next call.
cdef const char *printable(Engine e, Buf *b) noexcept
