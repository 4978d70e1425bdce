from libc.stdint cimport uint32_t

from shardproxy.dataplane.engine cimport Client, Engine

cdef object make_handle(Engine e, uint32_t index, uint32_t generation)
cdef object client_handle(Engine e, Client *c)

cdef class ClientHandle:
    cdef Engine engine
    cdef uint32_t index, generation
    cdef unsigned long long number
    cdef Client *at(self)
    cdef object text(self, str what)
    cdef void set_text(self, str what, value)
