from libc.stdint cimport uint32_t, uint64_t
from shardproxy.core.commands cimport Row
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.engine cimport Client, Engine, Entry, Upstream

# TAKEN, or WAIT: see routing
cdef int block(Engine e, Client *c, Request *r, const Row *row, int node) noexcept
# Keys have moved: who waits for some is to wait where they are now. Again until all do.
cdef void follow_keys(Engine e) noexcept
# The node has let one go that is to wait elsewhere: `entry`, whose reply is nil, is nobody's then.
cdef void wait_elsewhere(Engine e, Upstream *u, Entry *entry) noexcept
# A command that waited, p[0 .. n), for the client's slot, where its keys are now; left: us, 0 for ever.
cdef void wait_again(Engine e, Client *c, uint32_t slot, const char *p, size_t n, uint64_t left) noexcept
cdef uint64_t time_left(Engine e, const Upstream *u) noexcept
# The node is told to let it go; `done` gets what it says. False: it cannot be told now.
cdef bint unblock(Engine e, Upstream *u, bint error, object done)
