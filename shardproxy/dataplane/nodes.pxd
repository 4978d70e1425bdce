from shardproxy.dataplane.engine cimport Engine, Node

# Swap a topology in. credentials: shard name -> (username or None, password or None).
cdef int install(Engine e, topology, credentials, tls) except -1
# Whether all that was in flight when the last topology came is done, or past its deadline.
cdef bint settled(Engine e) noexcept
# Whether a node owes no reply to what was sent before the last topology, given up or not.
cdef bint answered(Engine e, int node) noexcept
# What a node's host name stands for now, "IP:PORT"; connections that are up stay.
cdef void move(Engine e, str node, str address)
# Fill in a node's socket address; False when its host name is not known now.
cdef bint resolve(str address, Node *node, bint names)
