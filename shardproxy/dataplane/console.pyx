"""What Python tells an engine and asks it: listeners, topology, users, scripts; nodes asked for handlers; what is seen of it.

Rules: nothing here is called for a request. See reactor.pyi for what each of these is.
"""

import os

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from shardproxy.core.commands cimport CommandTable
from shardproxy.core.script_store cimport Script
from shardproxy.dataplane.absence cimport flushed, wrote
from shardproxy.dataplane.client_handle cimport ClientHandle, client_handle
from shardproxy.dataplane.counters cimport BUCKETS, COUNTERS
from shardproxy.dataplane.engine cimport (
    MOVE, OF_LISTENER, PAUSE_ALL, PAUSE_WRITES, UP, Client, Engine, Node, Upstream, monotonic_us,
)
from shardproxy.dataplane.links cimport ask, due_in, open_link
from shardproxy.dataplane.losses cimport named
from shardproxy.dataplane.memcached cimport install_ops
from shardproxy.dataplane.nodes cimport answered, install, move, settled
from shardproxy.dataplane.openings cimport Entrance
from shardproxy.dataplane.permissions cimport install_users
from shardproxy.dataplane.observing cimport hold, pause, unpause
from shardproxy.dataplane.scripts cimport all_scripts, forget_scripts, script_find, teach
from shardproxy.dataplane.sending cimport node_of
from shardproxy.dataplane.sieve cimport sieve
from shardproxy.dataplane.system cimport EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLEXCLUSIVE, EPOLLIN, epoll_ctl, epoll_event, tag
from shardproxy.dataplane.upstreams cimport upstream_at, upstream_for

from shardproxy.core import errors
from shardproxy.dataplane.counters import HISTOGRAMS, TABLE

STATES = ("down", "connecting", "greeting", "up")
STOPPED = b"-ERR the connection is closed\r\n"


cdef bytes meta_refusal(Engine e, int node, bytes request):
    """What a handler gets that asks a memcached in RESP."""
    shard = e.node_list[node].shard.decode(errors="replace")
    words = request.split(b"\r\n", 3)
    name = words[2].decode(errors="replace").upper() if len(words) > 3 else "this"
    return b"-%b\r\n" % errors.not_on_memcached(name, shard).encode()


cdef class Console(Engine):
    """A part of Reactor."""

    # --- listeners ---

    def listen(self, int fd, *, bint protected, bint tls=False, allow=None, announcers=None):
        cdef epoll_event ev
        cdef Entrance entrance = Entrance.__new__(Entrance)
        entrance.protected = protected
        entrance.tls = tls
        entrance.allow = allow
        entrance.announcers = announcers
        if fd in self.listeners:
            self.listeners[fd] = entrance
            return
        # exclusive: of the workers that share a unix socket, one is woken
        ev.events = EPOLLIN | EPOLLEXCLUSIVE
        ev.data.u64 = tag(OF_LISTENER, <uint32_t>fd, 0)
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &ev) < 0:
            raise OSError(errno, os.strerror(errno))
        self.listeners[fd] = entrance

    def unlisten(self, int fd):
        cdef epoll_event ev
        if self.listeners.pop(fd, None) is not None:
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, fd, &ev)
            if fd in self.paused_listeners:
                self.paused_listeners.remove(fd)

    def set_tls(self, context, *, bint names_users=False):
        self.tls = context
        self.names_users = names_users

    # --- topology: see reactor.pyi ---

    def set_commands(self, CommandTable table):
        self.table = table
        install_ops(self)
        install_users(self)

    def logins(self, bytes user):
        return self.logins_of.get(user, 0)

    def set_users(self, users):
        self.users = users
        install_users(self)
        self.wake()

    def set_topology(self, topology, credentials, tls=None):
        if self.in_tick:
            raise RuntimeError("a topology is set between ticks: call_soon")
        self.now = monotonic_us()
        install(self, topology, credentials, tls or {})
        self.budget.queue = self.budget.memory // 4

    def settled(self):
        self.now = monotonic_us()
        return settled(self)

    def evidence(self):
        cdef int i
        cdef Node *node
        cdef list found = []
        for i in range(self.node_count):
            node = self.node_list[i]
            if not node.used or node.gone or not (node.ok or node.failed or node.refused):
                continue
            found.append((node.name.decode(errors="replace"), node.ok, node.failed, node.slow, node.streak,
                          bool(node.refused), node.failure.decode(errors="replace")))
            node.ok = node.failed = node.slow = 0
            node.refused = node.failing = False
        return found

    def take_written(self, str address):
        for (_, where), number in self.numbers.items():
            if where == address:
                overflow = self.written_bytes.pop(number, 0) < 0
                return list(self.written.pop(number, ())), overflow
        return [], False

    def used_databases(self):
        return list(self.databases)

    def answered(self, str address):
        return all(answered(self, number) for (_, where), number in self.numbers.items() if where == address)

    def take_ghosts(self, str address):
        found = self.ghosts.pop(address, [])
        for index, told in self.killed.items():         # by whoever is just connecting, if nothing comes between
            if self.upstreams[<int>index].killing and self.node_list[self.upstreams[<int>index].node].name == address.encode():
                found += told
        return found

    # --- scripts, and all keys: see reactor.pyi ---

    def teach(self, bytes text, bint loaded):
        return teach(self, text, loaded)

    def knows_script(self, bytes sha, bint loaded=False):
        cdef Script *script = script_find(self, sha, len(sha))
        return script != NULL and (script.loaded or not loaded)

    def scripts(self):
        return all_scripts(self)

    def forget_scripts(self):
        forget_scripts(self)

    def share_scripts(self):
        self.taught = []

    def take_taught(self):
        cdef list found = self.taught
        if found:
            self.taught = []
            self.taught_bytes = 0
        return found or []

    def flushed(self):
        self.now = self.now if self.in_tick else monotonic_us()
        flushed(self)

    def sieve(self, int node, bytes frame, int at=0):
        return sieve(self, node, frame, at)

    def blocked(self):
        cdef uint32_t i
        cdef int found = 0
        for i in range(self.client_room):
            found += self.client_list[i] != NULL and self.client_list[i].waiting
        return found

    def pause(self, bint everything, double seconds):
        self.now = self.now if self.in_tick else monotonic_us()
        pause(self, PAUSE_ALL if everything else PAUSE_WRITES, self.now + <uint64_t>(min(seconds, 1e9) * 1e6))

    def unpause(self):
        unpause(self)
        self.wake()

    def hold(self, double seconds):
        self.now = self.now if self.in_tick else monotonic_us()
        hold(self, self.now + <uint64_t>(seconds * 1e6) if seconds else 0)
        self.wake()

    def monitor(self, on_command):
        self.on_command = on_command

    def connection_ids(self):
        cdef uint32_t i
        cdef Upstream *u
        found = {}
        for i in range(self.upstream_count):
            u = self.upstreams[i]
            if u.node < self.node_count and u.state == UP and (u.id or u.address[0]):     # one that is going has no node
                found.setdefault(self.node_list[u.node].name.decode(errors="replace"), []).append(named(u))
        return found

    def set_address(self, str node, str address):
        move(self, node, address)

    # --- what handlers ask of nodes: see reactor.pyi ---

    def placed(self):
        cdef int i
        return [(self.shards[i], self.node_list[self.shards[i]].shard.decode()) for i in range(self.shard_count)
                if self.node_list[self.shards[i]].mode != MOVE]

    def speaks(self, int node):
        return self.node_list[node].speaks if 0 <= node < self.node_count else 0

    def node_of_shard(self, str name):
        for (shard, _), number in self.numbers.items():
            if shard == name:
                return number
        return None

    def shard_of(self, int node):
        if not 0 <= node < self.node_count or not self.node_list[node].used:
            raise ValueError("there is no such node")
        return self.node_list[node].shard.decode(errors="replace")

    def node_of(self, bytes key):
        return node_of(self, key, len(key))

    def placements(self):
        return self.placement

    def count_receivers(self, dict channels, dict shards, bint patterns):
        self.counted_channels = channels
        self.counted_shards = shards
        self.counted_patterns = patterns

    def ask(self, int node, bytes request, done, *, ClientHandle client=None, int proto=2, int db=0, bint write=True,
            int frames=1, keys=(), double timeout=-1, bint meta=False):
        cdef Client *c = client.at() if client is not None else NULL
        cdef Upstream *u
        cdef uint64_t due = due_in(self, timeout, write)
        if not 0 <= node < self.node_count or not self.node_list[node].used:
            raise ValueError("there is no such node")
        if meta and not self.node_list[node].memcached:
            raise ValueError("it is no memcached")
        if self.closed:         # a handler that has not heard yet
            done(STOPPED)
            return
        if self.node_list[node].memcached and not meta:
            self.told.append((done, (meta_refusal(self, node, request),)))
            self.wake()
            return
        if c != NULL:
            u = upstream_for(self, node, c, due)
        else:
            u = upstream_at(self, node, <uint8_t>proto, <uint16_t>db, due)
        if u == NULL:
            self.told.append((done, (self.text[:self.text_size],)))
        else:
            if write:
                for key in keys:
                    wrote(self, key, len(key))
                if c != NULL:
                    c.wrote |= <uint64_t>1 << (node & 63)
            ask(self, u, c, request, len(request), frames, write, due, done)
        self.wake()

    def memcached(self, int node):
        cdef Node *it
        if not 0 <= node < self.node_count or not self.node_list[node].used:
            raise ValueError("there is no such node")
        it = self.node_list[node]
        if not it.memcached:
            return None
        return it.item_most, it.ahead / 1e6 if it.clock_known else None

    def open_link(self, int node, *, int proto=3, int db=0, setup=(b"", 0), bint stream=False, on_frame=None, on_lost=None):
        if not 0 <= node < self.node_count or not self.node_list[node].used:
            raise ValueError("there is no such node")
        if self.closed:
            raise ConnectionError(STOPPED.decode().strip("-\r\n"))
        if self.node_list[node].memcached and not stream:
            raise ConnectionError(meta_refusal(self, node, b"").decode(errors="replace").strip("-\r\n"))
        self.now = self.now if self.in_tick else monotonic_us()
        # of memcached's there is one protocol
        return open_link(self, node, 2 if self.node_list[node].memcached else proto, db, setup, stream, on_frame, on_lost)

    # --- what Python sees ---

    def client(self, unsigned long long id):
        cdef uint32_t i
        for i in range(self.client_room):
            if self.client_list[i] != NULL and self.client_list[i].id == id and not self.client_list[i].dead:
                return client_handle(self, self.client_list[i])
        return None

    def clients(self):
        cdef uint32_t i
        cdef list found = []
        for i in range(self.client_room):
            if self.client_list[i] != NULL and not self.client_list[i].dead:
                found.append(client_handle(self, self.client_list[i]))
        return found

    def nodes(self):
        """What the engine knows of each node, in the order of the shards."""
        cdef int i, k
        cdef Node *node
        cdef Upstream *u
        cdef list found = []
        for i in range(self.node_count):
            node = self.node_list[i]
            if not node.used or node.gone:
                continue
            upstreams = []
            best = -1
            u = node.first
            while u != NULL:
                best = max(best, u.state)
                if not u.private:
                    upstreams.append({
                        "protocol": u.proto, "database": u.db, "state": STATES[u.state], "in_flight": u.tail - u.head,
                        "queue_bytes": u.given - u.written, "failures": u.failures,
                    })
                u = u.after
            found.append({
                "shard": node.shard.decode(errors="replace"), "address": node.name.decode(errors="replace"),
                "state": "out" if node.why[0] else "up" if best == UP else "unknown",
                "reason": node.why.decode(errors="replace"), "requests": node.requests[0] + node.requests[1],
                "errors": node.errors[0] + node.errors[1], "lost": node.lost, "timeouts": node.timeouts, "retries": node.retries,
                "upstreams": upstreams, "private": node.privates,
                "classes": {h: {"requests": node.requests[j], "errors": node.errors[j]} for j, h in enumerate(HISTOGRAMS)},
                "latency": {h: [node.latency[j][k] for k in range(BUCKETS)] for j, h in enumerate(HISTOGRAMS)},
            })
        return found

    def counters(self):
        return {name: self.count[i] for i, (name, _, _) in enumerate(TABLE)}

    def latency(self):
        cdef int i, j
        return {name: [self.count[COUNTERS + j * BUCKETS + i] for i in range(BUCKETS)]
                for j, name in enumerate(HISTOGRAMS)}

    def set_max_clients(self, int most):
        self.budget.clients = most
