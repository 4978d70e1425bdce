from libc.stdint cimport uint32_t
from shardproxy.dataplane.engine cimport Engine, sockaddr_storage

cdef void take_connections(Engine e, int listener) noexcept
# Room for so many clients in every list; raises MemoryError.
cdef int grow_clients(Engine e, uint32_t room) except -1
cdef int open_spare() noexcept                  # the descriptor kept for running out of them; -1: none
cdef bint is_local(sockaddr_storage *address) noexcept nogil
