from libc.stdint cimport uint16_t, uint32_t
from shardproxy.dataplane.engine cimport TO_CLIENT, Client, Engine, Entry
from shardproxy.dataplane.slots cimport slot_feed

# Bytes of the reply that the FIFO's head (a copy of it) stands for; `last`: its final frame is complete.
cdef inline void deliver(Engine e, const Entry *entry, const char *p, size_t n, bint last) noexcept:
    cdef Client *c
    if entry.to == TO_CLIENT:
        c = e.client_at(entry.client, entry.generation)
        if c != NULL:
            slot_feed(e, c, entry.slot, p, n, last)
    else:
        deliver_apart(e, entry, p, n, last)

cdef void deliver_apart(Engine e, const Entry *entry, const char *p, size_t n, bint last) noexcept
# e.text is the error line for whoever waits; `begun`: part of the reply has been passed on.
cdef void deliver_error(Engine e, const Entry *entry, bint begun) noexcept
# A part of a split command that no node will answer: e.text is its error line.
cdef void fan_fail(Engine e, Client *c, uint32_t slot, uint16_t part) noexcept
