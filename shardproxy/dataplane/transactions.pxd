from shardproxy.core.commands cimport Row
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.engine cimport Client, Engine

cdef void transaction(Engine e, Client *c, Request *r, const Row *row) noexcept    # MULTI, EXEC, DISCARD
cdef void abort_exec(Engine e, Client *c, const char *why) noexcept                # EXEC itself is refused
cdef void queue(Engine e, Client *c, Request *r, const Row *row) noexcept          # anything between them
