from libc.stdint cimport uint8_t, uint16_t
from shardproxy.dataplane.engine cimport Client, Engine, Upstream

# The client's own upstream of that node, lent to it for `why`; NULL: e.text is the error line.
cdef Upstream *lease(Engine e, Client *c, int number, uint8_t why) noexcept
# `why` is over; with nothing left that keeps it, and nothing in its queue, the upstream goes to the pool.
cdef void unlease(Engine e, Upstream *u, uint8_t why) noexcept
# Whose it is: also one that is dead, as long as it is not freed.
cdef Client *owner_of(Engine e, Upstream *u) noexcept
# The one on which it waits for data; NULL: it does not.
cdef Upstream *waits_on(Client *c) noexcept nogil
# A private upstream that nobody has; NULL: e.text is the error line.
cdef Upstream *private_of(Engine e, int number, uint8_t proto, uint16_t db) noexcept
# A new one, also when the pool has some.
cdef Upstream *private_new(Engine e, int number, uint8_t proto, uint16_t db) noexcept
# Its connection is gone: whoever had it is told. Its queue is the caller's.
cdef void private_lost(Engine e, Upstream *u) noexcept
# Closed at the end of the tick, without blame for the node; handlers that wait for replies get e.text.
cdef void private_drop(Engine e, Upstream *u) noexcept
# The client leaves, or needs other ones: what it watches counts as changed.
cdef void abandon(Engine e, Client *c) noexcept
# The client goes on with this protocol and database, and so does what it watches keys on.
cdef void tune(Engine e, Client *c, uint8_t proto, uint16_t db) noexcept
# A request of the engine's own, of which it needs no more than that it is in its place.
cdef void say_unheard(Engine e, Upstream *u, const char *p, size_t n) noexcept
# Those that were lost or dropped are given up: only at the end of a tick.
cdef void give_up_lost(Engine e) noexcept
