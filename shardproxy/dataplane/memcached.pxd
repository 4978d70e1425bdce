from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from shardproxy.core.commands cimport Row
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.engine cimport Client, Engine, Entry, Upstream

# Which row is which command that has a form in the meta protocol; after each change of the table.
cdef int install_ops(Engine e) except -1
# A command for a memcached node: how many replies it will have, when it is written by meta_send, which comes next. 0: it is
# a handler's, or refused: `taken` is TAKEN, or WAIT.
cdef uint32_t meta_ready(Engine e, Client *c, Request *r, const Row *row, int node, int *taken) noexcept
# The same command, to an upstream that has promised these replies.
cdef void meta_send(Engine e, Upstream *u, Request *r, const Row *row) noexcept
# The keys e.positions[from .. to) of a command that was split: their share; the caller has looked whether it can be
# (meta_can).
cdef void meta_share(Engine e, Client *c, Request *r, const Row *row, Upstream *u, uint32_t at, uint32_t end, uint32_t slot,
                     uint16_t part, uint8_t tries, uint64_t due) noexcept
# Whether each key of a command that is split, and its value, can be on the memcached node that e.owners gives it to; else
# e.text says why not.
cdef bint meta_can(Engine e, Request *r, const Row *row, int keys) noexcept
# A request in the meta protocol that was on a node that is out goes where its keys are now: as sending.send_again.
cdef void meta_again(Engine e, Client *c, const Entry *entry, const char *p, size_t n) noexcept
