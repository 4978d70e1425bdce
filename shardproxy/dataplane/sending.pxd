from shardproxy.core.commands cimport Row
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.engine cimport Client, Engine

cdef enum:
    NO_KEY = -1                 # instead of a shard
    MALFORMED = -2
    ANSWERED = -3               # with an error

cdef void forward(Engine e, Client *c, Request *r, const Row *row) noexcept
cdef void split(Engine e, Client *c, Request *r, const Row *row) noexcept
# The shard of all keys of a command, NO_KEY, MALFORMED, or ANSWERED.
cdef int shard_of_command(Engine e, Client *c, Request *r, const Row *row) noexcept
