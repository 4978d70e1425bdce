from shardproxy.core.commands cimport Row
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.engine cimport Client, Engine

# Of a client whose permit is not NULL: whether the command may run. If not, it has been answered.
cdef bint permitted(Engine e, Client *c, Request *r, const Row *row) noexcept
# It has logged in as this user; None: as nobody any more.
cdef void note_login(Engine e, Client *c, bytes name) noexcept
# The permit of whoever this client has logged in as.
cdef void assign(Engine e, Client *c) noexcept
# Users or the table have changed: every client gets its permit anew.
cdef int install_users(Engine e) except -1
