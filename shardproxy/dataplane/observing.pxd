from libc.stdint cimport uint8_t, uint64_t
from shardproxy.core.commands cimport Row
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.engine cimport Client, Engine

# Clients' next commands wait; ends: us. Never shorter, nor for fewer commands, than before.
cdef void pause(Engine e, uint8_t what, uint64_t ends) noexcept
cdef void unpause(Engine e) noexcept
# The same, of all commands and of its own: until then (us), or now (0).
cdef void hold(Engine e, uint64_t until) noexcept
# A command is shown to who monitors; the commands of a transaction that is being sent.
cdef void observe(Engine e, Client *c, Request *r, const Row *row) noexcept
cdef void observe_run(Engine e, Client *c) noexcept
