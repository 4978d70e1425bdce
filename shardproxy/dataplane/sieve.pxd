from shardproxy.dataplane.engine cimport Engine

cdef object sieve(Engine e, int number, bytes frame, Py_ssize_t at)
