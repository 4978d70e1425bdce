from shardproxy.core.commands cimport Row
from shardproxy.dataplane.engine cimport Client, Engine

cdef void say(Engine e, Client *c, const char *text) noexcept
# An error reply instead of the command; inside MULTI the transaction is lost.
cdef void refuse(Engine e, Client *c, const char *text) noexcept
cdef void refuse_bytes(Engine e, Client *c, bytes text) noexcept
cdef void refuse_row(Engine e, Client *c, const Row *row) noexcept
# A row's name as people write it: CLIENT SETNAME.
cdef bytes spoken(const Row *row)
# At most `most` bytes of an argument, fit for an error line.
cdef bytes clean(const char *p, size_t n, size_t most)

# Redis's own words, for who waits on a node that cannot be waited on any more.
cdef const char *UNBLOCKED
