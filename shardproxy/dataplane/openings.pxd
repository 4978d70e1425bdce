from shardproxy.dataplane.engine cimport Client, Engine, Origin, sockaddr_storage

# What holds for the clients of one listener.
cdef class Entrance:
    cdef bint protected         # only clients on this machine
    cdef bint tls
    cdef object allow           # core/networks.Networks of clients; None: all
    cdef object announcers      # Networks of who may send a PROXY header, which all must; None: nobody does

# A client that has not begun to talk.
cdef class Opening:
    cdef Entrance entrance
    cdef object index, generation
    cdef bytes header           # of a PROXY header, what has come; None: it is done, or there is none

# The text that turns this address away; None: it may come in, and is counted for its origin, if that is watched.
cdef bytes refusal(Engine e, Entrance entrance, sockaddr_storage *address, Origin **origin)
# Whether one more client may open; False: the listener rests.
cdef bint may_open(Engine e, int listener) noexcept
cdef void opening_begins(Engine e, Client *c, Entrance entrance) noexcept
cdef void opening_readable(Engine e, Client *c) noexcept
cdef void opening_ends(Engine e, Client *c) noexcept
cdef void openings_due(Engine e) noexcept
cdef void wake_listeners(Engine e) noexcept
