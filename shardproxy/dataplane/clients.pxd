from shardproxy.dataplane.engine cimport Client, Engine

cdef void client_readable(Engine e, Client *c) noexcept
# Look again at input that had to wait.
cdef void client_resume(Engine e, Client *c) noexcept
