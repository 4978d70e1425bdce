from libc.stdint cimport uint32_t, uint64_t
from shardproxy.core.commands cimport FLAG_READONLY, FLAG_SCRIPT, Row
from shardproxy.dataplane.engine cimport Engine, Entry, Upstream

cdef extern from *:
    """
    #define SP_NEVER UINT64_MAX
    """
    const uint64_t NEVER "SP_NEVER"

# The loop calls tick when something falls due, also when nothing else happens. `look`: of an upstream.
cdef void due_alarm(Engine e, uint64_t look) noexcept
# After a look at what has fallen due: the same, of the upstream with the earliest.
cdef void due_alarms(Engine e) noexcept

# One walk over what has fallen due.
cdef struct Walk:
    uint32_t i
    uint32_t disorder
    uint64_t soonest            # of those that have not fallen due
    uint64_t latest

# When a command that is read now falls due, by the class of its row.
cdef inline uint64_t due_of(Engine e, const Row *row) noexcept nogil:
    return e.now + e.allowed[2 if row.flags & FLAG_SCRIPT else not row.flags & FLAG_READONLY]

# The entry before u.tail is new. `due` of 0 is never.
cdef inline void due_add(Upstream *u, Entry *entry, uint64_t due) noexcept nogil:
    if u.tail - u.head == 1:
        u.look = NEVER
        u.latest = 0
        u.disorder = u.head
    if due == 0:
        due = NEVER
    entry.due = due
    if due < u.look:
        u.look = due
    if due < u.latest:
        u.disorder = u.tail
    else:
        u.latest = due

# u.late again: what was ahead of some that the last walk has seen may have been answered since.
cdef inline void due_front(Upstream *u) noexcept nogil:
    while u.late != u.tail and u.fifo[u.late & u.mask].due <= u.walked:
        u.late += 1

# Entries were taken out of the middle, or moved: all are looked at again.
cdef void due_anew(Upstream *u) noexcept nogil
# Each entry that is due by now, in the FIFO's order; NULL: that was all. Those that an earlier walk has seen may come again.
cdef void walk_from(Upstream *u, Walk *w) noexcept nogil
cdef Entry *walk_on(Upstream *u, Walk *w, uint64_t now) noexcept nogil
