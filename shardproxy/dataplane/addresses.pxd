from shardproxy.dataplane.engine cimport Client, Engine, sockaddr_storage

# One end of a client's connection: its own, or ours.
cdef str address_text(Engine e, Client *c, bint peer)
# HOST:PORT of an IP address.
cdef str numeric_text(sockaddr_storage *address)
