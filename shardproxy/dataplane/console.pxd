from shardproxy.dataplane.engine cimport Engine

cdef class Console(Engine):
    pass
