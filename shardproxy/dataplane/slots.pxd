from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset
from shardproxy.core.buffers cimport Buf
from shardproxy.dataplane.engine cimport REPLY_ON, REPLY_SKIP, Client, Engine, Slot

# A new slot at the end of the client's queue: its number; -1: no memory (the client is closed).
cdef inline int64_t slot_open(Engine e, Client *c) noexcept:
    cdef uint32_t number = c.tail
    cdef Slot *s
    if (c.slots == NULL or number - c.head > c.mask) and slots_grow(e, c) < 0:
        return -1
    c.tail += 1
    s = &c.slots[number & c.mask]
    memset(s, 0, sizeof(Slot))
    s.discard = c.reply_mode
    if c.reply_mode == REPLY_SKIP:
        c.reply_mode = REPLY_ON
    return number

cdef int slots_grow(Engine e, Client *c) noexcept
# n bytes of the reply that fills it; `last`: that was all.
cdef void slot_feed(Engine e, Client *c, uint32_t slot, const char *p, size_t n, bint last) noexcept
# More of a reply, into a buffer of the client's. False: it was over its hard budget, and is closed.
cdef bint client_keep(Engine e, Client *c, Buf *where, const char *p, size_t n) noexcept
# Frames that belong to no command: into the output, between frames.
cdef void client_push(Engine e, Client *c, const char *p, size_t n) noexcept
# The same, but after the replies to all that it has sent so far.
cdef void client_push_in_order(Engine e, Client *c, const char *p, size_t n) noexcept
# Whether a subscriber is not too slow; else it is closed.
cdef bint in_time(Engine e, Client *c) noexcept
# A slot and its reply in one go.
cdef void slot_answer(Engine e, Client *c, const char *p, size_t n) noexcept
cdef void part(Engine e, Client *c) noexcept     # it waits, and has closed its side: let it go, soon
cdef void client_flush(Engine e, Client *c) noexcept
# Out of the epoll set at once; freed at the end of the tick. A reason is logged, NULL is an ordinary end.
cdef void client_close(Engine e, Client *c, const char *reason) noexcept
cdef void client_release(Client *c) noexcept    # all memory that a dead client holds
cdef void client_free(Engine e, Client *c) noexcept

cdef inline size_t bytes_of(Client *c) noexcept nogil:
    """What a client makes us hold, besides its input."""
    return c.out.len + c.held + c.sent

cdef inline Slot *slot_at(Client *c, uint32_t slot) noexcept nogil:
    return &c.slots[slot & c.mask]

cdef inline uint32_t in_flight(Client *c) noexcept nogil:
    return c.tail - c.head
