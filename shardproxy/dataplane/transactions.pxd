from shardproxy.core.commands cimport Row
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.engine cimport Client, Engine

# MULTI, EXEC, DISCARD, WATCH, UNWATCH. TAKEN, or WAIT: see routing
cdef int transaction(Engine e, Client *c, Request *r, const Row *row) noexcept
# Nothing is watched any more, and the node is told.
cdef void forget_watched(Engine e, Client *c) noexcept
cdef void abort_exec(Engine e, Client *c, const char *why) noexcept                # EXEC itself is refused
cdef void queue(Engine e, Client *c, Request *r, const Row *row) noexcept          # anything between them
