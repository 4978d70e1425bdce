from shardproxy.dataplane.engine cimport Client, Engine, Origin, sockaddr_storage

# One more client from there, counted; NULL: it has as many as it may, or there is no memory.
cdef Origin *admit(Engine e, sockaddr_storage *address) noexcept
# One fewer, c, whose memory is released; NULL: it did not come about.
cdef void depart(Engine e, Origin *o, Client *c) noexcept
# Bring its part of what its address has in flight up to date.
cdef void account(Client *c) noexcept nogil
# Whether this client's address has as much in flight as it may. All these are of a client that has an origin.
cdef bint is_full(Engine e, Client *c) noexcept nogil
# The same of one that has stopped; if there is no room, it is in line and will be looked at again.
cdef bint has_room(Engine e, Client *c) noexcept
# It has been written to: if there is room now, the first in line is looked at again.
cdef void flushed(Engine e, Client *c) noexcept
cdef bytes host_of(sockaddr_storage *address)   # an address without its port
