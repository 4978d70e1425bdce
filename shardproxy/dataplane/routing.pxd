from shardproxy.core.resp cimport Request
from shardproxy.dataplane.engine cimport Client, Engine

cdef enum:
    TAKEN = 0
    WAIT = 1                    # leave it in the input: its turn comes later

cdef int route(Engine e, Client *c, Request *r) noexcept
