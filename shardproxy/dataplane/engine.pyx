"""The state that all parts of the engine share, and the few operations on its lists.

Lists and FIFOs hold indices, with a generation where what they name may be gone by the time they are read; nothing
holds a bare pointer across a tick. Everything runs on one thread, inside `Reactor.tick` or a call from the loop.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from posix.unistd cimport write

from shardproxy.core.resp cimport request_free
from shardproxy.core.script_store cimport scripts_free
from shardproxy.dataplane.stale cimport stale_free

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *t)
    int CLOCK_MONOTONIC
    int CLOCK_REALTIME


cdef uint64_t monotonic_us() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000 + t.tv_nsec // 1000


cdef int64_t wall_us() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_REALTIME, &t)
    return <int64_t>t.tv_sec * 1000000 + t.tv_nsec // 1000


cdef class Engine:
    cdef void event(self, str name, dict fields):
        """Tell the server something worth a log line; what goes wrong there stays there."""
        try:
            self.on_event(name, fields)
        except Exception as error:
            import sys
            sys.unraisablehook(type("Unraisable", (), {
                "exc_type": type(error), "exc_value": error, "exc_traceback": error.__traceback__,
                "err_msg": f"in the handler of the event {name!r}", "object": self.on_event,
            })())

    cdef void wake(self) noexcept:
        """Have the loop call tick again although no socket is ready."""
        cdef uint64_t one = 1
        if not self.awake and not self.closed:
            self.awake = write(self.wake_fd, &one, 8) == 8

    cdef uint64_t random(self) noexcept nogil:
        # xorshift64: only to spread retries
        self.random_state ^= self.random_state << 13
        self.random_state ^= self.random_state >> 7
        self.random_state ^= self.random_state << 17
        return self.random_state

    def __dealloc__(self):
        cdef int i
        request_free(&self.request)
        request_free(&self.again)
        if self.stale != NULL:
            stale_free(self.stale)
        if self.script_store != NULL:
            scripts_free(self.script_store)
        free(self.client_list)
        free(self.client_generations)
        free(self.free_clients)
        free(self.upstreams)
        free(self.dirty_upstreams)
        free(self.spare_upstreams)
        if self.node_list != NULL:
            for i in range(self.node_count):
                free(self.node_list[i])
        free(self.node_list)
        free(self.shards)
        free(self.absent)
        if self.apart != NULL:
            free(self.apart[0])
            free(self.apart[1])
            free(self.apart)
        free(self.ops)
        free(self.shard_names)
        free(self.dirty_clients)
        free(self.resuming)
        free(self.dead)
        free(self.scratch)
        free(self.cipher)
        free(self.owners)
        free(self.shares)
        free(self.positions)
