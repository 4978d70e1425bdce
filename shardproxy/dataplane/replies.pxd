from shardproxy.dataplane.engine cimport Engine, Entry, Node, Upstream

cdef void upstream_readable(Engine e, Upstream *u) noexcept
# The FIFO's head, `entry`, has all that it was promised; sick: its node says that it is not well.
cdef void answered(Engine e, Upstream *u, Node *node, const Entry *entry, bint sick) noexcept
# Resets an upstream for what it has sent, of which the beginning is quoted behind `why`.
cdef void quoted(Engine e, Upstream *u, const char *why) noexcept
