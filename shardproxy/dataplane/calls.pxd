from libc.stdint cimport uint32_t
from shardproxy.core.commands cimport Row
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.engine cimport Client, Engine, sockaddr_storage

# Opens the command's slot and hands it to the handlers. held: see Call.
cdef void call_handler(Engine e, Client *c, Request *r, const Row *row, object held) noexcept
# The same of one whose keys are on the memcached node of this number.
cdef void call_memcached(Engine e, Client *c, Request *r, const Row *row, int node) noexcept
cdef str address_text(Engine e, Client *c, bint peer)
cdef object client_handle(Engine e, Client *c)
# HOST:PORT of an IP address.
cdef str numeric_text(sockaddr_storage *address)

cdef class ClientHandle:
    cdef Engine engine
    cdef uint32_t index, generation
    cdef unsigned long long number
    cdef Client *at(self)
    cdef object text(self, str what)
    cdef void set_text(self, str what, value)
