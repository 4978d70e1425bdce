from libc.stdint cimport uint32_t, uint64_t
from shardproxy.dataplane.engine cimport Engine, sockaddr_storage

cdef void take_connections(Engine e, int listener) noexcept
# Room for so many clients in every list; raises MemoryError.
cdef int grow_clients(Engine e, uint32_t room) except -1
cdef int open_spare() noexcept                  # the descriptor kept for running out of them; -1: none
# A client that was counted for its address has left.
cdef void depart(Engine e, uint64_t id) noexcept
# One more client of an address, known by its id; False: there are too many.
cdef bint admit(Engine e, sockaddr_storage *address, unsigned long long id) noexcept
cdef bytes host_of(sockaddr_storage *address)   # without its port
cdef bint is_local(sockaddr_storage *address) noexcept nogil
