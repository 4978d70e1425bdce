from shardproxy.dataplane.engine cimport Engine, Node

# Swap a topology in. credentials: shard name -> (username or None, password or None).
cdef int install(Engine e, topology, credentials) except -1
# Fill in a node's socket address; False when its host name is not known now.
cdef bint resolve(str address, Node *node)
