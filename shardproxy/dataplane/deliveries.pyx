"""Whose a reply is: a client's slot, a part of a split command, or nobody's any more.

An entry names its client by index and generation, so that a reply for a client that has left goes nowhere.
"""

from libc.stdint cimport uint16_t, uint32_t

from shardproxy.core.buffers cimport Buf, buf_append, buf_release
from shardproxy.core.fanout cimport PART_ANSWERED, PART_FAILED, Fan, fan_free, fan_merge
from shardproxy.dataplane.counters cimport LATE_REPLIES
from shardproxy.dataplane.engine cimport (
    TO_ASK, TO_CLIENT, TO_LATE, TO_PART, Client, Engine, Entry, Slot,
)
from shardproxy.dataplane.links cimport ask_feed, ask_forget
from shardproxy.dataplane.slots cimport client_close, client_keep, slot_at, slot_feed


cdef void deliver_apart(Engine e, const Entry *entry, const char *p, size_t n, bint last) noexcept:
    cdef Client *c
    if entry.to == TO_PART:
        c = e.client_at(entry.client, entry.generation)
        if c != NULL:
            fan_feed(e, c, entry, p, n, last)
    elif entry.to == TO_ASK:
        ask_feed(e, entry.slot, p, n, last)
    elif entry.to == TO_LATE and last:
        e.count[<int>LATE_REPLIES] += 1


cdef void deliver_error(Engine e, const Entry *entry, bint begun) noexcept:
    cdef Client *c
    if entry.to == TO_CLIENT or entry.to == TO_PART:
        c = e.client_at(entry.client, entry.generation)
        if c == NULL:
            return
        if entry.to == TO_PART:
            fan_fail(e, c, entry.slot, entry.part)
        elif begun:
            client_close(e, c, "a node was lost in the middle of its reply")
        else:
            slot_feed(e, c, entry.slot, e.text, e.text_size, True)
    elif entry.to == TO_ASK:
        ask_forget(e, entry.slot)
        ask_feed(e, entry.slot, e.text, e.text_size, True)


# --- split commands ---

cdef void fan_feed(Engine e, Client *c, const Entry *entry, const char *p, size_t n, bint last) noexcept:
    cdef Fan *f = slot_at(c, entry.slot).fan
    if not client_keep(e, c, &f.part[entry.part].reply, p, n):
        return
    if last:
        f.part[entry.part].state = PART_ANSWERED
        fan_done(e, c, entry.slot)


cdef void fan_fail(Engine e, Client *c, uint32_t slot, uint16_t part) noexcept:
    cdef Fan *f = slot_at(c, slot).fan
    c.held -= f.part[part].reply.len
    buf_release(&f.part[part].reply)
    if buf_append(&f.part[part].reply, e.text, e.text_size) < 0:
        client_close(e, c, "out of memory")
        return
    c.held += e.text_size
    f.part[part].state = PART_FAILED
    fan_done(e, c, slot)


cdef void fan_done(Engine e, Client *c, uint32_t slot) noexcept:
    """A part is complete; with the last one the client gets its reply."""
    cdef Slot *s = slot_at(c, slot)
    cdef Fan *f = s.fan
    cdef Buf out
    cdef int i
    f.open -= 1
    if f.open:
        return
    for i in range(f.parts):
        c.held -= f.part[i].reply.len
    s.fan = NULL
    out.p = NULL
    out.off = out.len = out.cap = 0
    if not s.discard and fan_merge(f, e.shard_names, &out) < 0:
        fan_free(f)
        buf_release(&out)
        client_close(e, c, "out of memory")
        return
    fan_free(f)
    slot_feed(e, c, slot, out.p, out.len, True)
    buf_release(&out)
