"""The reactor: one epoll set nested in the asyncio loop, and the tick that serves it.

A tick is one epoll_wait (at most 256 events), one bounded read a ready socket, then one write a dirty socket, then the
frees; it never blocks and never raises. Deadlines are checked after the tick's reads. What Python tells and asks the engine
besides is in console; parsing, routing and replies are in clients, upstreams and slots.
"""

import os

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, malloc
from posix.unistd cimport close, read

from shardproxy.core.buffers cimport buf_total, buf_trim
from shardproxy.core.script_store cimport scripts_new
from shardproxy.dataplane.arrivals cimport grow_clients, open_spare, take_connections
from shardproxy.dataplane.clients cimport client_readable, client_resume
from shardproxy.dataplane.connecting cimport upstream_writable
from shardproxy.dataplane.console cimport Console
from shardproxy.dataplane.counters cimport BUFFER_BYTES, RETRIES_LEFT, TICKS
from shardproxy.dataplane.dues cimport NEVER, due_alarm, due_alarms
from shardproxy.dataplane.engine cimport (
    CIPHER, CONNECTING, MAX_UPSTREAMS, OF_CLIENT, OF_LISTENER, OF_UPSTREAM, OF_WAKE, SCRATCH, Client, Upstream,
    monotonic_us,
)
from shardproxy.dataplane.links cimport tell
from shardproxy.dataplane.openings cimport openings_due, wake_listeners
from shardproxy.dataplane.observing cimport hold, unpause
from shardproxy.dataplane.private cimport give_up_lost
from shardproxy.dataplane.replies cimport upstream_readable
from shardproxy.dataplane.slots cimport client_close, client_flush, client_free, client_release, in_time, part
from shardproxy.dataplane.stale cimport stale_expire, stale_shrink
from shardproxy.dataplane.system cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT,
    EPOLLRDHUP, TFD_CLOEXEC, TFD_NONBLOCK, CLOCK_MONOTONIC, epoll_create1, epoll_ctl, epoll_event, epoll_wait,
    eventfd, tag, timerfd_create,
)
from shardproxy.dataplane.upstreams cimport upstream_flush, upstreams_due, upstreams_free
from shardproxy.dataplane.waiting cimport follow_keys

from shardproxy.dataplane.counters import PAGE_BYTES

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t keep)

cdef enum:
    EVENTS = 256
    HANDSHAKES = 4              # steps of TLS handshakes with clients a tick: each may take a millisecond
    ROUNDS = 4                  # times a tick goes round for input that had waited

cdef uint64_t CRON = 100000
cdef double RETRIES_AT_FIRST = 10       # tokens of the retry budget
cdef double RETRIES_MOST = 1000
cdef uint64_t DEADLINE_STEP = 10000     # us between looks at deadlines
cdef uint64_t DEADLINE_LATEST = 200000  # us that a busy engine may put them off
cdef uint64_t GRACE = 1000000           # us for the rest of a command when draining


cdef class Reactor(Console):
    """One worker's engine. All its methods are called from the loop's thread; see reactor.pyi."""
    cdef epoll_event events[EVENTS]
    cdef uint64_t[::1] page         # keeps the memory of `count` alive
    cdef uint64_t[::1] stamp_words  # and that of `stamps`
    cdef uint64_t deadline_check
    cdef uint64_t trim_at

    def __cinit__(self):
        self.epoll = self.wake_fd = self.timer_fd = self.spare_fd = -1

    def __init__(self, limits, dispatch, *, on_event, id_base=0, page=None, misses=None, raised=None, stamps=None):
        cdef epoll_event ev
        if self.epoll != -1:
            raise RuntimeError("a reactor is initialised once")
        self.dispatch = dispatch
        self.on_event = on_event
        self.meta = {}
        self.permits = {}
        self.logins_of = {}
        self.origins = {}
        self.greetings = {}
        self.numbers = {}
        self.written = {}
        self.written_bytes = {}
        self.databases = {0}
        self.ghosts = {}
        self.killed = {}
        self.asks = {}
        self.links = {}
        self.told = []
        self.counted_channels = {}
        self.counted_shards = {}
        self.private_most = 1000
        self.misses = misses
        self.raised = raised
        self.retry_tokens = RETRIES_AT_FIRST
        self.slow_call = self.attempt_timeout = 1000000
        self.lag_most = self.attempt_timeout // 4
        self.listeners = {}
        self.opening = {}
        self.announced = {}
        self.secured = {}
        self.paused_listeners = []
        self.next_id = id_base
        self.random_state = int.from_bytes(os.urandom(8), "little") | 1
        self.connections = 1
        self.timeout = self.connect_timeout = self.longest = 1000000
        self.allowed = [1000000, 1000000, 1000000]
        self.patience = 250000
        self.reset_after = 10000000
        self.take_limits(limits)
        self.take_page(page)
        self.script_store = scripts_new(limits.scripts)
        if stamps is not None:
            self.stamp_words = memoryview(stamps).cast("B").cast("Q")
            self.stamps = &self.stamp_words[0]
        self.scratch = <char *>malloc(SCRATCH)
        self.cipher = <char *>malloc(CIPHER)
        self.upstreams = <Upstream **>calloc(MAX_UPSTREAMS, sizeof(Upstream *))
        self.dirty_upstreams = <uint32_t *>calloc(MAX_UPSTREAMS, sizeof(uint32_t))
        self.spare_upstreams = <uint32_t *>calloc(MAX_UPSTREAMS, sizeof(uint32_t))
        if (self.scratch == NULL or self.script_store == NULL or self.cipher == NULL or self.upstreams == NULL or self.dirty_upstreams == NULL
                or self.spare_upstreams == NULL):
            raise MemoryError
        grow_clients(self, 64)
        self.now = monotonic_us()
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        self.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        self.armed = NEVER
        if self.epoll < 0 or self.wake_fd < 0 or self.timer_fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.spare_fd = open_spare()
        ev.events = EPOLLIN
        ev.data.u64 = tag(OF_WAKE, 0, 0)
        epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.wake_fd, &ev)
        ev.data.u64 = tag(OF_WAKE, 1, 0)
        epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.timer_fd, &ev)

    cdef take_limits(self, limits):
        self.budget.clients = limits.maxclients
        self.budget.per_address = limits.clients_per_address
        self.budget.address_requests = limits.address_requests
        self.budget.address_bytes = limits.address_bytes
        self.budget.requests = limits.client_requests
        self.budget.soft = limits.client_output_soft
        self.budget.hard = limits.client_output_hard
        self.budget.pubsub_soft = limits.pubsub_output_soft
        self.budget.pubsub_hard = limits.pubsub_output_hard
        self.budget.pubsub_time = int(limits.pubsub_output_time * 1e6)
        self.budget.memory = limits.memory
        self.budget.idle = int(limits.idle_timeout * 1e6)
        self.keepalive = int(limits.tcp_keepalive)
        self.handshakes = limits.handshakes
        self.handshake_timeout = int(limits.handshake_timeout * 1e6)
        self.request.limits.max_arguments = limits.max_arguments
        self.request.limits.max_value = limits.max_value
        self.request.limits.max_inline = limits.max_inline
        self.request.limits.max_request = limits.max_request
        self.eff_requests = self.budget.requests
        self.eff_soft = self.budget.soft

    cdef take_page(self, page):
        if page is None:
            page = bytearray(PAGE_BYTES)
        if memoryview(page).nbytes != PAGE_BYTES:
            raise ValueError(f"the counters' page takes {PAGE_BYTES} bytes")
        self.page = memoryview(page).cast("B").cast("Q")
        self.count = &self.page[0]

    # --- the tick ---

    def fileno(self):
        return self.epoll

    def tick(self):
        cdef int n, i, kind
        cdef uint32_t index, generation, events
        cdef uint64_t data
        cdef Client *c
        cdef Upstream *u
        if self.closed or self.in_tick:
            return
        n = epoll_wait(self.epoll, self.events, EVENTS, 0)
        self.now = monotonic_us()
        # cron comes ten times a second: what is later than that has made others late
        if self.now > self.seen + CRON + self.lag_most:
            self.lagged = self.now
        self.seen = self.now
        if self.retry_tokens > RETRIES_MOST:
            self.retry_tokens = RETRIES_MOST
        self.in_tick = True
        self.turns = HANDSHAKES
        self.count[<int>TICKS] += 1
        self.count[<int>RETRIES_LEFT] = <uint64_t>self.retry_tokens
        self.share_memory()
        for i in range(n):
            data = self.events[i].data.u64
            events = self.events[i].events
            kind = <int>(data >> 62)
            generation = <uint32_t>(data >> 32) & 0x3fffffff
            index = <uint32_t>data
            if kind == OF_CLIENT:
                c = self.client_list[index] if index < self.client_room else NULL
                if c == NULL or c.dead or (c.generation & 0x3fffffff) != generation:
                    continue
                if events & (EPOLLHUP | EPOLLERR) and not events & EPOLLIN:
                    if c.stalled and not events & EPOLLERR:
                        self.hang(c)
                    else:
                        client_close(self, c, NULL)
                    continue
                if events & EPOLLOUT:
                    self.mark_dirty(c)
                if events & EPOLLIN:
                    client_readable(self, c)
                elif events & EPOLLRDHUP and c.waiting:
                    part(self, c)
            elif kind == OF_UPSTREAM:
                u = self.upstreams[index] if index < self.upstream_count else NULL
                if u == NULL or u.fd < 0 or (u.generation & 0x3fffffff) != generation:
                    continue
                if u.state == CONNECTING:
                    upstream_writable(self, u)
                    continue
                if events & EPOLLOUT:
                    self.mark_upstream(u)
                if events & (EPOLLIN | EPOLLERR | EPOLLHUP):
                    upstream_readable(self, u)
            elif kind == OF_LISTENER:
                take_connections(self, <int>index)
            elif index == 0:
                self.awake = False
                read(self.wake_fd, &data, 8)
            else:
                read(self.timer_fd, &data, 8)
                self.armed = NEVER
                self.deadline_check = self.deadline_check if self.deadline_check < self.now else self.now
        # after the reads, and only when every ready socket has had its turn
        if self.now >= self.deadline_check and (n < EVENTS or self.now > self.deadline_check + DEADLINE_LATEST):
            self.deadline_check = self.now + DEADLINE_STEP
            upstreams_due(self)
            due_alarms(self)
        self.finish()
        self.in_tick = False

    cdef void hang(self, Client *c) noexcept:
        """A unix socket whose other end is closed: epoll would say so for ever, but what it has sent is to be done."""
        cdef epoll_event ev
        c.hung = True
        epoll_ctl(self.epoll, EPOLL_CTL_DEL, c.fd, &ev)

    cdef void share_memory(self) noexcept:
        """When memory is short every client's budget shrinks, so that none of them must be closed."""
        cdef size_t used = buf_total(), share
        self.count[<int>BUFFER_BYTES] = used
        if self.stale != NULL:
            used -= self.stale.bytes    # given up before a client has to wait: see cron
        self.eff_requests = self.budget.requests
        self.eff_soft = self.budget.soft
        self.eff_input = self.budget.memory // 4
        if used * 4 > self.budget.memory and self.client_count:
            share = (self.budget.memory // 2 - used) // self.client_count if used * 2 < self.budget.memory else 0
            if share < 4096:
                share = 4096
            self.eff_input = share
            if share < self.eff_soft:
                self.eff_soft = share
            if share // 256 < self.eff_requests:
                self.eff_requests = <uint32_t>(share // 256)

    cdef void finish(self) noexcept:
        """The second half of a tick: writes, input that had waited, frees."""
        cdef int turn
        cdef uint32_t i, n
        cdef Client *c
        for turn in range(ROUNDS):
            tell(self)
            self.write_upstreams()
            i = 0
            while i < self.dirty_client_count:      # grows meanwhile
                c = self.client_list[self.dirty_clients[i]]
                i += 1
                c.dirty = False
                if not c.dead:
                    client_flush(self, c)
            self.dirty_client_count = 0
            n = self.resuming_count
            if n == 0:
                break
            for i in range(n):
                c = self.client_list[self.resuming[i]]
                c.resuming = False
                if not c.dead:
                    client_resume(self, c)
            # a client that hangs has marked itself again
            for i in range(n, self.resuming_count):
                self.resuming[i - n] = self.resuming[i]
            self.resuming_count -= n
        if self.dirty_client_count or self.resuming_count or self.told:
            self.wake()
        if buf_total() > self.budget.memory:
            self.close_greediest()
        for i in range(self.dead_count):
            c = self.client_list[self.dead[i]]
            if not (c.dirty or c.resuming):
                client_free(self, c)
                self.dead[i] = 0xffffffff
        n = 0
        for i in range(self.dead_count):
            if self.dead[i] != 0xffffffff:
                self.dead[n] = self.dead[i]
                n += 1
        self.dead_count = n
        if self.over_count:
            give_up_lost(self)

    cdef void write_upstreams(self) noexcept:
        cdef uint32_t i = 0
        cdef Upstream *u
        while i < self.dirty_upstream_count:    # grows meanwhile
            u = self.upstreams[self.dirty_upstreams[i]]
            upstream_flush(self, u)
            if u.look < self.armed and u.head != u.tail:
                due_alarm(self, u.look)
            i += 1
        self.dirty_upstream_count = 0

    cdef void close_greediest(self) noexcept:
        """Over the process's budget: whoever holds most goes, until the rest fits."""
        cdef uint32_t i
        cdef size_t most, mine
        cdef Client *c
        cdef Client *worst
        while buf_total() > self.budget.memory:
            worst = NULL
            most = 65536
            for i in range(self.client_room):
                c = self.client_list[i]
                if c == NULL or c.dead:
                    continue
                mine = c.inp.cap + c.out.cap + c.tx.cap + c.held
                if mine > most:
                    worst = c
                    most = mine
            if worst == NULL:
                return
            client_close(self, worst, "the process is over its memory budget, and this client held most of it")
            client_release(worst)

    def cron(self):
        """What happens by the clock; called ten times a second."""
        cdef uint32_t i
        cdef Client *c
        if self.closed or self.in_tick:
            return
        self.tick()
        self.in_tick = True
        if self.pausing and (self.now >= self.pause_ends or self.draining):
            unpause(self)
        if self.held_until and (self.now >= self.held_until or self.draining):
            hold(self, 0)
        if self.moving:
            follow_keys(self)
        wake_listeners(self)
        if self.opening:
            openings_due(self)
        if self.budget.idle:
            for i in range(self.client_room):
                c = self.client_list[i]
                if c != NULL and not c.dead and c.head == c.tail and c.out.len == 0 and self.now > c.active + self.budget.idle:
                    client_close(self, c, "idle for longer than idle_timeout")
        if self.some_are_over:
            self.some_are_over = False
            for i in range(self.client_room):
                c = self.client_list[i]
                if c != NULL and c.over_since and in_time(self, c) and c.over_since:
                    self.some_are_over = True
        if self.some_are_parting:
            self.some_are_parting = False
            for i in range(self.client_room):
                c = self.client_list[i]
                if c != NULL and c.parting and not c.dead:
                    self.some_are_parting = True
                    if c.waiting:
                        part(self, c)
        if self.draining:
            for i in range(self.client_room):
                c = self.client_list[i]
                if c != NULL and not c.dead:
                    self.mark_dirty(c)
        self.finish()
        self.in_tick = False
        if self.stale != NULL:
            stale_expire(self.stale, self.now)
            if buf_total() * 2 > self.budget.memory:
                stale_shrink(self.stale, buf_total() - self.budget.memory // 2)
        if self.now > self.trim_at:
            self.trim_at = self.now + 5000000
            buf_trim(1 << 18)
            malloc_trim(1 << 20)

    # --- the end ---

    def drain(self):
        """Accept no more. A client goes when everything that it has sent is answered."""
        self.draining = True
        self.grace_ends = monotonic_us() + GRACE
        for fd in list(self.listeners):
            self.unlisten(fd)
        self.cron()
        self.wake()

    def idle(self):
        return self.client_count == 0

    def close(self):
        """Close every connection; what is in flight is not answered. Listeners belong to the caller."""
        cdef uint32_t i
        cdef Client *c
        if self.closed or self.epoll < 0:
            return
        self.in_tick = self.closing = True
        for fd in list(self.listeners):
            self.unlisten(fd)
        for i in range(self.client_room):
            c = self.client_list[i]
            if c != NULL:
                client_close(self, c, NULL)
        self.dirty_client_count = self.resuming_count = 0
        for i in range(self.dead_count):
            client_free(self, self.client_list[self.dead[i]])
        self.dead_count = 0
        upstreams_free(self)
        self.in_tick = False
        self.closed = True
        close(self.epoll)
        close(self.wake_fd)
        close(self.timer_fd)
        close(self.spare_fd)
