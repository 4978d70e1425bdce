from libc.stdint cimport uint32_t, uint64_t
from shardproxy.dataplane.engine cimport Client, Engine, Upstream

# What comes for an Ask: bytes of its reply, in pieces; the pieces are put together.
cdef void ask_feed(Engine e, uint32_t number, const char *p, size_t n, bint last) noexcept
# What has come of it is not all, and never will be.
cdef void ask_forget(Engine e, uint32_t number) noexcept
# A whole frame for a Link: a push, or anything on a stream.
cdef void link_frame(Engine e, Upstream *u, const char *p, size_t n) noexcept
cdef void link_lost(Engine e, Upstream *u) noexcept
# What handlers are to be told: at the end of the tick, where they may do anything.
cdef void tell(Engine e) noexcept
# A handler's request on an upstream; -1: no memory.
cdef int ask(Engine e, Upstream *u, Client *c, const char *p, size_t n, uint32_t frames, bint write, uint64_t due,
             done) except -2
cdef uint64_t due_in(Engine e, double timeout, bint write) noexcept
cdef object open_link(Engine e, int number, int proto, int db, setup, bint stream, on_frame, on_lost)

cdef class Link:
    cdef Engine engine
    cdef uint32_t index
    cdef readonly object setup  # (bytes, replies): what it says first, after the greeting
    cdef object on_frame
    cdef object on_lost
    cdef Upstream *at(self)
