from shardproxy.core.commands cimport Row
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.engine cimport Client, Engine

# Opens the command's slot and hands it to the handlers. held: see Call.
cdef void call_handler(Engine e, Client *c, Request *r, const Row *row, object held) noexcept
# The same of one whose keys are on the memcached node of this number.
cdef void call_memcached(Engine e, Client *c, Request *r, const Row *row, int node) noexcept
