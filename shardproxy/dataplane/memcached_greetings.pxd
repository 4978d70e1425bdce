from shardproxy.dataplane.engine cimport Engine, Upstream

# What it has read before it is up.
cdef void meta_greeted(Engine e, Upstream *u) noexcept
# It waits until the node has closed others: is it time to look again?
cdef void look_again(Engine e, Upstream *u) noexcept
