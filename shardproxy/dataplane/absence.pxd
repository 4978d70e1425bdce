from libc.stdint cimport uint16_t, uint32_t
from shardproxy.core.commands cimport Row
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.engine cimport Client, Engine

# The keys that this writes while they are not at home.
cdef void remember(Engine e, Request *r, const Row *row) noexcept
cdef void remember_key(Engine e, const char *key, size_t n) noexcept
# A handler writes this key.
cdef void wrote(Engine e, const char *key, size_t n) noexcept
# What is kept of keys that are being written is old now.
cdef void drop_stale(Engine e, Request *r, const Row *row) noexcept
cdef void drop_stale_run(Engine e, const char *p, size_t n) noexcept
# Fills the slot of a command whose shard is down (out: its node is surely gone) with what the pool says; False: with nothing, the error is to come.
cdef bint instead(Engine e, Client *c, Request *r, const Row *row, uint32_t slot, bint out) noexcept
# The same for a part of a split command, which has `keys` keys; or the part fails.
cdef void part_missing(Engine e, Client *c, const Row *row, uint32_t slot, uint16_t part, uint32_t keys) noexcept
# A handler has flushed all databases, or one.
cdef void flushed(Engine e) noexcept
