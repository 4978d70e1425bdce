"""When what an upstream owes falls due: entries of several classes, each with its own time, share one FIFO.

Rules: nothing is reordered. Entries of one class fall due in their order, so that a walk from the front ends at the first
that has not; `disorder` is where that holds from, and before it a walk goes on. Nothing is walked before `look`, and a
long walk puts off the next, so that a queue of millions costs no more than a part of the time. The timer is set for the
earliest `look` and left there while requests come and are answered: it is moved when it has gone off, once a timeout.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from shardproxy.core.buffers cimport queue_free, queue_grow
from shardproxy.dataplane.engine cimport TO_LATE, Engine, Entry, Upstream
from shardproxy.dataplane.system cimport TFD_TIMER_ABSTIME, itimerspec, timerfd_settime

cdef enum:
    PER_US = 16                 # entries that a walk may look at for each microsecond until the next one
    ALARM_STEP = 5000           # us: the timer goes off no sooner, and so no more often


cdef void due_anew(Upstream *u) noexcept nogil:
    u.late = u.head
    u.disorder = u.tail
    u.look = 0


cdef void walk_from(Upstream *u, Walk *w) noexcept nogil:
    w.i = w.disorder = u.late
    w.soonest = NEVER
    w.latest = 0


cdef Entry *walk_on(Upstream *u, Walk *w, uint64_t now) noexcept nogil:
    cdef Entry *entry
    cdef uint64_t next_walk
    while w.i != u.tail:
        entry = &u.fifo[w.i & u.mask]
        w.i += 1
        if entry.due <= now:
            return entry
        if entry.due < w.soonest:
            w.soonest = entry.due
        if <int>(w.i - u.disorder) > 0:
            break               # the rest is later
        if entry.due < w.latest:
            w.disorder = w.i
        else:
            w.latest = entry.due
    else:
        u.latest = w.latest
    u.disorder = w.disorder
    next_walk = now + (w.i - u.late) // PER_US
    u.look = w.soonest if w.soonest > next_walk else next_walk
    u.walked = now
    due_front(u)
    return NULL


# --- the timer ---

cdef void due_alarm(Engine e, uint64_t look) noexcept:
    cdef itimerspec when
    cdef uint64_t at = look if look > e.now + ALARM_STEP else e.now + ALARM_STEP
    e.armed = look
    memset(&when, 0, sizeof(when))
    when.it_value.tv_sec = <long>(at // 1000000)
    when.it_value.tv_nsec = <long>(at % 1000000 * 1000)
    timerfd_settime(e.timer_fd, TFD_TIMER_ABSTIME, &when, NULL)


cdef void due_alarms(Engine e) noexcept:
    cdef uint64_t soonest = NEVER
    cdef uint32_t i
    cdef Upstream *u
    for i in range(e.upstream_count):
        u = e.upstreams[i]
        if u.head != u.tail and u.look < soonest:
            soonest = u.look
    if soonest < e.armed:
        due_alarm(e, soonest)


# --- for tests ---

cdef class DueQueue:
    """An upstream's FIFO without an upstream."""
    cdef Upstream *u

    def __cinit__(self):
        self.u = <Upstream *>calloc(1, sizeof(Upstream))
        if self.u == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.u != NULL:
            queue_free(<void **>&self.u.fifo, &self.u.mask, sizeof(Entry))
            free(self.u)

    def promise(self, uint32_t name, uint64_t due):
        cdef Upstream *u = self.u
        cdef Entry *entry
        if u.fifo == NULL or u.tail - u.head > u.mask:
            if queue_grow(<void **>&u.fifo, &u.mask, u.head, u.tail, sizeof(Entry), 4) < 0:
                raise MemoryError
        entry = &u.fifo[u.tail & u.mask]
        u.tail += 1
        memset(entry, 0, sizeof(Entry))
        entry.client = name
        due_add(u, entry, due)

    def answer(self):
        """The first one's name, and whether it was late."""
        cdef Upstream *u = self.u
        cdef Entry *entry = &u.fifo[u.head & u.mask]
        if u.late == u.head:
            u.late += 1
        u.head += 1
        return entry.client, entry.to == TO_LATE

    def fall_due(self, uint64_t now):
        """The names of those that do, once each."""
        cdef Walk w
        cdef Entry *entry
        cdef list found = []
        due_front(self.u)
        if now < self.u.look:
            return found
        walk_from(self.u, &w)
        entry = walk_on(self.u, &w, now)
        while entry != NULL:
            if entry.to != TO_LATE:
                entry.to = TO_LATE
                found.append(entry.client)
            entry = walk_on(self.u, &w, now)
        return found

    def prune(self):
        """Take those out that were late."""
        cdef Upstream *u = self.u
        cdef uint32_t i = u.head, w = u.head
        while i != u.tail:
            if u.fifo[i & u.mask].to != TO_LATE:
                u.fifo[w & u.mask] = u.fifo[i & u.mask]
                w += 1
            i += 1
        u.tail = w
        due_anew(u)

    def __len__(self):
        return self.u.tail - self.u.head

    @property
    def late(self):
        """How many at the front have passed their time."""
        return self.u.late - self.u.head

    @property
    def look(self):
        return self.u.look
