"""The reactor: one epoll set nested in the asyncio loop, and the tick that serves it.

A tick is one epoll_wait (at most 256 events), one bounded read a ready socket, then one write a dirty socket, then the
frees; it never blocks and never raises. Deadlines are checked after the tick's reads. Accepting, topology and what
Python sees of the engine are here too; parsing, routing and replies are in clients, upstreams and slots.
"""

import os
import socket as sockets

from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EMFILE, ENFILE, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset, strncpy
from posix.unistd cimport close, read

from cpython.buffer cimport PyBUF_CONTIG, PyBuffer_Release, PyObject_GetBuffer

from shardproxy.core.buffers cimport buf_release, buf_total, buf_trim
from shardproxy.core.commands cimport CommandTable
from shardproxy.core.ring cimport Ring
from shardproxy.dataplane.calls cimport client_handle
from shardproxy.dataplane.clients cimport client_readable, client_resume
from shardproxy.dataplane.counters cimport (
    ACCEPT_FAILURES, BUCKETS, BUFFER_BYTES, CLIENTS, CLIENTS_ACCEPTED, CLIENTS_REFUSED, COUNTERS, TICKS,
)
from shardproxy.dataplane.engine cimport (
    DOWN, MAX_SHARED, OF_CLIENT, OF_LISTENER, OF_UPSTREAM, OF_WAKE, SCRATCH, TO_ASKER, UP, Client, Engine, Node,
    Shard, Upstream, monotonic_us, sockaddr_storage,
)
from shardproxy.dataplane.slots cimport client_close, client_flush, client_free, in_flight
from shardproxy.dataplane.system cimport (
    AF_INET, AF_INET6, AF_UNIX, EFD_CLOEXEC, EFD_NONBLOCK, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLERR,
    EPOLLEXCLUSIVE, EPOLLHUP, EPOLLIN, EPOLLOUT, IPPROTO_TCP, MSG_NOSIGNAL, SOCK_CLOEXEC, SOCK_NONBLOCK,
    TCP_NODELAY, accept4, epoll_create1, epoll_ctl, epoll_event, epoll_wait, eventfd, recv, send, setsockopt,
    sockaddr, sockaddr_in, sockaddr_in6, sockaddr_un, tag,
)
from shardproxy.dataplane.upstreams cimport (
    give, keep_alive, promise, upstream_flush, upstream_for, upstream_free, upstream_readable, upstream_writable,
    upstreams_due,
)

from shardproxy.dataplane.counters import HISTOGRAMS, PAGE_BYTES, TABLE

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t keep)

cdef extern from "<netinet/in.h>" nogil:
    unsigned short htons(unsigned short n)

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *to)

cdef enum:
    EVENTS = 256
    ROUNDS = 4                  # times a tick goes round for input that had waited
    ACCEPTS = 64                # connections taken a tick

cdef uint64_t DEADLINE_STEP = 10000     # us between looks at deadlines
STATES = ("down", "connecting", "greeting", "up")

DENIED = (
    b"-DENIED shardproxy is running in protected mode because no users are configured: only clients on this machine "
    b"are served. Connect over the loopback interface or a unix socket, or set protected_mode = false in "
    b"shardproxy.toml if everybody who can reach this port may use it.\r\n"
)
TOO_MANY = b"-ERR max number of clients reached\r\n"


cdef class Reactor(Engine):
    """One worker's engine. All its methods are called from the loop's thread; see reactor.pyi."""
    cdef epoll_event events[EVENTS]
    cdef dict listeners             # descriptor -> protected
    cdef list paused_listeners      # taken out of the epoll set until there are descriptors again
    cdef Py_buffer page_view
    cdef bint has_page
    cdef uint64_t deadline_check
    cdef uint64_t trim_at
    cdef uint64_t ask_number
    cdef object topology
    cdef int spare_fd

    def __cinit__(self):
        self.epoll = self.wake_fd = self.spare_fd = -1

    def __init__(self, limits, dispatch, *, on_event, id_base=0, page=None):
        cdef epoll_event ev
        if self.epoll != -1:
            raise RuntimeError("a reactor is initialised once")
        self.dispatch = dispatch
        self.on_event = on_event
        self.meta = {}
        self.greetings = {}
        self.askers = {}
        self.asked = {}
        self.listeners = {}
        self.paused_listeners = []
        self.next_id = id_base
        self.random_state = int.from_bytes(os.urandom(8), "little") | 1
        self.connections = 1
        self.timeout = self.connect_timeout = 1000000
        self.reset_after = 10000000
        self.take_limits(limits)
        self.take_page(page)
        self.scratch = <char *>malloc(SCRATCH)
        self.upstreams = <Upstream **>calloc(65536, sizeof(Upstream *))
        if self.scratch == NULL or self.upstreams == NULL:
            raise MemoryError
        self.grow_clients(64)
        self.now = monotonic_us()
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.epoll < 0 or self.wake_fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.spare_fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        ev.events = EPOLLIN
        ev.data.u64 = tag(OF_WAKE, 0, 0)
        epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.wake_fd, &ev)

    cdef take_limits(self, limits):
        self.budget.clients = limits.maxclients
        self.budget.requests = limits.client_requests
        self.budget.soft = limits.client_output_soft
        self.budget.hard = limits.client_output_hard
        self.budget.memory = limits.memory
        self.budget.queue = limits.memory // 2
        self.budget.idle = int(limits.idle_timeout * 1e6)
        self.keepalive = int(limits.tcp_keepalive)
        self.request.limits.max_arguments = limits.max_arguments
        self.request.limits.max_value = limits.max_value
        self.request.limits.max_inline = limits.max_inline
        self.request.limits.max_request = limits.max_request
        self.eff_requests = self.budget.requests
        self.eff_soft = self.budget.soft

    cdef take_page(self, page):
        if page is None:
            page = bytearray(PAGE_BYTES)
        PyObject_GetBuffer(page, &self.page_view, PyBUF_CONTIG)
        self.has_page = True
        if <size_t>self.page_view.len < <size_t>PAGE_BYTES:
            raise ValueError(f"the counters' page takes {PAGE_BYTES} bytes")
        self.page = page
        self.count = <uint64_t *>self.page_view.buf

    cdef int grow_clients(self, uint32_t room) except -1:
        cdef Client **clients = <Client **>realloc(self.client_list, room * sizeof(Client *))
        cdef uint32_t i
        if clients == NULL:
            raise MemoryError
        self.client_list = clients
        for name in range(5):
            self.grow_list(name, room)
        for i in range(self.client_room, room):
            self.client_list[i] = NULL
            self.client_generations[i] = 1
        # the lowest index is taken first
        for i in range(room - self.client_room):
            self.free_clients[i] = room - 1 - i
        self.free_count = room - self.client_room
        self.client_room = room
        return 0

    cdef int grow_list(self, int which, uint32_t room) except -1:
        cdef uint32_t **list_ = (
            &self.client_generations if which == 0 else &self.free_clients if which == 1
            else &self.dirty_clients if which == 2 else &self.resuming if which == 3 else &self.dead
        )
        cdef uint32_t *more = <uint32_t *>realloc(list_[0], room * sizeof(uint32_t))
        if more == NULL:
            raise MemoryError
        list_[0] = more
        return 0

    # --- the tick ---

    def fileno(self):
        return self.epoll

    def tick(self):
        cdef int n, i, kind
        cdef uint32_t index, generation, events
        cdef uint64_t data
        cdef Client *c
        cdef Upstream *u
        if self.closed:
            return
        n = epoll_wait(self.epoll, self.events, EVENTS, 0)
        self.now = monotonic_us()
        self.in_tick = True
        self.count[<int>TICKS] += 1
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
                    client_close(self, c, NULL)
                    continue
                if events & EPOLLOUT:
                    self.mark_dirty(c)
                if events & EPOLLIN:
                    client_readable(self, c)
            elif kind == OF_UPSTREAM:
                u = self.upstreams[index]
                if u == NULL or u.fd < 0 or (u.generation & 0x3fffffff) != generation:
                    continue
                if events & (EPOLLOUT | EPOLLERR | EPOLLHUP) and not events & EPOLLIN or u.state == 1:
                    upstream_writable(self, u)
                if events & EPOLLIN and u.fd >= 0 and u.state >= 2:
                    upstream_readable(self, u)
            elif kind == OF_LISTENER:
                self.take_connections(<int>index)
            else:
                self.awake = False
                read(self.wake_fd, &data, 8)
        if self.now >= self.deadline_check:
            self.deadline_check = self.now + DEADLINE_STEP
            upstreams_due(self)
        self.finish()
        self.in_tick = False

    cdef void share_memory(self) noexcept:
        """When memory is short every client's budget shrinks, so that none of them must be closed."""
        cdef size_t used = buf_total(), share
        self.count[<int>BUFFER_BYTES] = used
        self.eff_requests = self.budget.requests
        self.eff_soft = self.budget.soft
        if used * 4 > self.budget.memory and self.client_count:
            share = (self.budget.memory - used) // self.client_count if used < self.budget.memory else 0
            if share < 4096:
                share = 4096
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
            self.resuming_count = 0
        if self.dirty_client_count or self.resuming_count:
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

    cdef void write_upstreams(self) noexcept:
        cdef uint32_t i
        cdef Upstream *u
        for i in range(self.upstream_count):
            u = self.upstreams[i]
            if u != NULL and u.dirty:
                upstream_flush(self, u)

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
            buf_release(&worst.inp)
            buf_release(&worst.out)
            buf_release(&worst.tx)

    def flush(self):
        """Write what was queued outside of a tick."""
        if not self.closed and not self.in_tick:
            self.now = monotonic_us()
            self.in_tick = True
            self.finish()
            self.in_tick = False

    def cron(self):
        """What happens by the clock; called ten times a second."""
        cdef uint32_t i
        cdef Client *c
        cdef epoll_event ev
        if self.closed:
            return
        self.now = monotonic_us()
        self.in_tick = True
        upstreams_due(self)
        for fd in self.paused_listeners:
            ev.events = EPOLLIN
            ev.data.u64 = tag(OF_LISTENER, <uint32_t>fd, 0)
            epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &ev)
        self.paused_listeners.clear()
        if self.budget.idle:
            for i in range(self.client_room):
                c = self.client_list[i]
                if c != NULL and not c.dead and c.head == c.tail and self.now > c.active + self.budget.idle:
                    client_close(self, c, "idle for longer than idle_timeout")
        self.finish()
        self.in_tick = False
        if self.now > self.trim_at:
            self.trim_at = self.now + 5000000
            buf_trim(64)
            malloc_trim(1 << 20)

    # --- listeners ---

    def listen(self, int fd, *, bint protected):
        cdef epoll_event ev
        # exclusive: of the workers that share a unix socket, one is woken
        ev.events = EPOLLIN | EPOLLEXCLUSIVE
        ev.data.u64 = tag(OF_LISTENER, <uint32_t>fd, 0)
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &ev) < 0:
            raise OSError(errno, os.strerror(errno))
        self.listeners[fd] = protected

    def unlisten(self, int fd):
        cdef epoll_event ev
        if self.listeners.pop(fd, None) is not None:
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, fd, &ev)
            if fd in self.paused_listeners:
                self.paused_listeners.remove(fd)

    cdef void take_connections(self, int listener) noexcept:
        cdef sockaddr_storage address
        cdef uint32_t size
        cdef int i, fd
        cdef epoll_event ev
        cdef bint protected
        if listener not in self.listeners:
            return
        protected = self.listeners[listener]
        for i in range(ACCEPTS):
            size = sizeof(address)
            fd = accept4(listener, <sockaddr *>&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if fd < 0:
                if errno == EINTR or errno == ECONNABORTED:
                    continue
                if errno != EAGAIN:
                    # out of descriptors: one client is told and let go, then the listener rests until the next cron
                    self.count[<int>ACCEPT_FAILURES] += 1
                    if (errno == EMFILE or errno == ENFILE) and self.spare_fd >= 0:
                        close(self.spare_fd)
                        fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
                        if fd >= 0:
                            turn_away(fd, TOO_MANY)
                        self.spare_fd = accept_spare()
                    epoll_ctl(self.epoll, EPOLL_CTL_DEL, listener, &ev)
                    self.paused_listeners.append(listener)
                return
            if self.client_count >= self.budget.clients:
                self.count[<int>CLIENTS_REFUSED] += 1
                turn_away(fd, TOO_MANY)
            elif protected and not is_local(&address):
                self.count[<int>CLIENTS_REFUSED] += 1
                turn_away(fd, DENIED)
            else:
                self.take_client(fd, address.ss_family)

    cdef void take_client(self, int fd, int family) noexcept:
        cdef Client *c
        cdef epoll_event ev
        cdef int one = 1
        try:
            if self.free_count == 0:
                self.grow_clients(self.client_room * 2)
        except MemoryError:
            close(fd)
            return
        c = <Client *>calloc(1, sizeof(Client))
        if c == NULL:
            close(fd)
            return
        if family != AF_UNIX:
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
            keep_alive(self, fd)
        self.free_count -= 1
        c.index = self.free_clients[self.free_count]
        c.generation = self.client_generations[c.index]
        self.next_id += 1
        c.id = self.next_id
        c.fd = fd
        c.proto = 2
        c.tx_shard = -1
        c.created = c.active = self.now
        c.events = EPOLLIN
        self.client_list[c.index] = c
        self.client_count += 1
        self.count[<int>CLIENTS_ACCEPTED] += 1
        self.count[<int>CLIENTS] = self.client_count
        ev.events = EPOLLIN
        ev.data.u64 = tag(OF_CLIENT, c.index, c.generation)
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &ev) < 0:
            client_close(self, c, "epoll has no room for it")

    # --- topology ---

    def set_commands(self, CommandTable table):
        self.table = table

    def set_topology(self, topology, credentials):
        """Swap the topology in. credentials: shard name -> (username or None, password or None)."""
        pool = topology.pools[0]
        cdef int i, n = len(pool.shards)
        cdef bytes name
        cdef Shard *shards = <Shard *>calloc(n, sizeof(Shard))
        cdef const char **names = <const char **>calloc(n, sizeof(char *))
        cdef Node *nodes = <Node *>calloc(n, sizeof(Node))
        cdef uint32_t *shares = <uint32_t *>calloc(n, sizeof(uint32_t))
        if self.topology is not None:
            raise NotImplementedError("the topology of a running engine cannot be changed yet")
        if shards == NULL or names == NULL or nodes == NULL or shares == NULL:
            raise MemoryError
        self.topology = topology
        self.ring = pool.ring
        self.partial_nil = pool.partial == "nil"
        self.timeout = int(pool.timeout * 1e6) or 1 << 60
        self.connect_timeout = int(pool.connect_timeout * 1e6)
        self.reset_after = int(pool.reset_after * 1e6) or 1 << 60
        self.connections = min(pool.connections_per_node, MAX_SHARED)
        for i, shard in enumerate(pool.shards):
            name = shard.name.encode()
            strncpy(shards[i].name, name, sizeof(shards[i].name) - 1)
            names[i] = shards[i].name
            shards[i].node = i
            name = shard.node.address.encode()
            strncpy(nodes[i].name, name, sizeof(nodes[i].name) - 1)
            strncpy(nodes[i].shard, shards[i].name, sizeof(nodes[i].shard) - 1)
            nodes[i].resolved = resolve(shard.node.address, &nodes[i])
            self.greetings[i] = tuple(greeting(proto, *credentials.get(shard.name, (None, None))) for proto in (2, 3))
        self.shards = shards
        self.shard_names = names
        self.shard_count = n
        self.node_list = nodes
        self.node_count = n
        self.shares = shares

    def ask(self, int shard, bytes request, done, int proto=2):
        """Send one request to a shard's node on a shared upstream; done(raw reply) is called once, also on failure."""
        cdef Upstream *u
        cdef uint32_t number
        if self.closed:
            return done(b"-ERR shardproxy is stopping\r\n")
        if not self.in_tick:
            self.now = monotonic_us()
        u = upstream_for(self, shard, proto, 0)
        if u == NULL:
            return done(self.text[:self.text_size])
        number = u.tail
        self.askers[(u.index, u.generation, number)] = done
        if promise(self, u, TO_ASKER, 0, 0, 0, 0, False, 1) < 0:
            del self.askers[(u.index, u.generation, number)]
            return done(b"-ERR out of memory\r\n")
        give(self, u, request, len(request))
        if not self.in_tick:
            self.wake()

    # --- what Python sees ---

    def clients(self):
        cdef uint32_t i
        cdef list found = []
        for i in range(self.client_room):
            if self.client_list[i] != NULL and not self.client_list[i].dead:
                found.append(client_handle(self, self.client_list[i]))
        return found

    def find_client(self, unsigned long long number):
        cdef uint32_t i
        for i in range(self.client_room):
            if self.client_list[i] != NULL and not self.client_list[i].dead and self.client_list[i].id == number:
                return client_handle(self, self.client_list[i])
        return None

    def nodes(self):
        """What the engine knows of each node, in the order of the shards."""
        cdef int i, k, proto
        cdef Node *node
        cdef Upstream *u
        cdef list found = []
        for i in range(self.node_count):
            node = &self.node_list[i]
            upstreams = []
            best = -1
            for proto in range(2):
                for k in range(MAX_SHARED):
                    u = node.shared[proto][k]
                    if u != NULL:
                        best = max(best, u.state)
                        upstreams.append({
                            "protocol": proto + 2, "state": STATES[u.state], "in_flight": u.tail - u.head,
                            "queue_bytes": u.out.len, "failures": u.failures,
                        })
            found.append({
                "shard": node.shard.decode(), "address": node.name.decode(),
                "state": "out" if node.why[0] else "up" if best == UP else "unknown",
                "reason": node.why.decode(errors="replace"), "requests": node.requests,
                "errors": node.errors, "lost": node.lost, "upstreams": upstreams,
                "latency": {h: [node.latency[j][k] for k in range(BUCKETS)] for j, h in enumerate(HISTOGRAMS)},
            })
        return found

    def counters(self):
        return {name: self.count[i] for i, (name, _, _) in enumerate(TABLE)}

    def latency(self):
        cdef int i, j
        return {name: [self.count[COUNTERS + j * BUCKETS + i] for i in range(BUCKETS)]
                for j, name in enumerate(HISTOGRAMS)}

    @property
    def client_total(self):
        return self.client_count

    # --- the end ---

    def drain(self):
        """Accept no more; clients with nothing in flight go now, the others after their last reply."""
        cdef uint32_t i
        cdef Client *c
        self.draining = True
        for fd in list(self.listeners):
            self.unlisten(fd)
        for i in range(self.client_room):
            c = self.client_list[i]
            if c != NULL and not c.dead:
                c.leaving = True
                self.mark_dirty(c)
        self.flush()

    def idle(self):
        return self.client_count == 0

    def close(self):
        """Close every connection; what is in flight is not answered. Listeners belong to the caller."""
        cdef uint32_t i
        cdef Client *c
        cdef Upstream *u
        if self.closed or self.epoll < 0:
            return
        self.in_tick = True
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
        for i in range(self.upstream_count):
            if self.upstreams[i] != NULL:
                upstream_free(self, self.upstreams[i])
        self.upstream_count = 0
        self.in_tick = False
        self.closed = True
        close(self.epoll)
        close(self.wake_fd)
        close(self.spare_fd)

    def __dealloc__(self):
        if self.has_page:
            PyBuffer_Release(&self.page_view)


def close_check():
    """For tests: bytes that buffers own now."""
    return buf_total()


cdef int accept_spare() noexcept:
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


cdef void turn_away(int fd, bytes text) noexcept:
    send(fd, <const char *>text, len(text), MSG_NOSIGNAL)
    close(fd)


cdef bint is_local(sockaddr_storage *address) noexcept nogil:
    cdef sockaddr_in *four = <sockaddr_in *>address
    cdef sockaddr_in6 *six = <sockaddr_in6 *>address
    cdef unsigned char *b
    if address.ss_family == AF_INET:
        return (<unsigned char *>&four.sin_addr)[0] == 127
    if address.ss_family == AF_INET6:
        b = six.sin6_addr.s6_addr
        # ::1 and ::ffff:127.x.x.x
        if b[10] == 0xff and b[11] == 0xff:
            return b[12] == 127
        for i in range(15):
            if b[i]:
                return False
        return b[15] == 1
    return address.ss_family == AF_UNIX


cdef bint resolve(str address, Node *node):
    """Fill in the node's socket address; False when its host name is not known now."""
    cdef sockaddr_in *four = <sockaddr_in *>&node.address
    cdef sockaddr_in6 *six = <sockaddr_in6 *>&node.address
    cdef sockaddr_un *path = <sockaddr_un *>&node.address
    cdef bytes text
    memset(&node.address, 0, sizeof(node.address))
    if address.startswith("/"):
        text = os.fsencode(address)
        if len(text) >= sizeof(path.sun_path):
            return False
        node.address.ss_family = AF_UNIX
        memcpy(path.sun_path, <const char *>text, len(text))
        node.address_size = sizeof(sockaddr_un)
        return True
    host, _, port = address.rpartition(":")
    try:
        found = sockets.getaddrinfo(host.strip("[]"), int(port), type=sockets.SOCK_STREAM)
    except OSError:
        return False
    family, _, _, _, where = found[0]
    text = where[0].encode()
    node.address.ss_family = family
    if family == AF_INET:
        inet_pton(AF_INET, text, &four.sin_addr)
        four.sin_port = htons(where[1])
        node.address_size = sizeof(sockaddr_in)
    else:
        inet_pton(AF_INET6, text, &six.sin6_addr)
        six.sin6_port = htons(where[1])
        node.address_size = sizeof(sockaddr_in6)
    return True


def greeting(proto, username, password):
    """What a new upstream says first, and how many replies that has: log in, choose the protocol, show life."""
    parts = []
    if proto == 3:
        parts.append([b"HELLO", b"3", *([b"AUTH", (username or "default").encode(), password.encode()]
                                        if password else [])])
    elif password:
        parts.append([b"AUTH", *([username.encode()] if username else []), password.encode()])
    parts.append([b"PING"])
    packed = b"".join(b"*%d\r\n" % len(part) + b"".join(b"$%d\r\n%b\r\n" % (len(a), a) for a in part)
                      for part in parts)
    return packed, len(parts)
