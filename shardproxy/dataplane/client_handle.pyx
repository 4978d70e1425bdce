"""A client as handlers see it: what it is, what it has asked for, what is done to it.

It is a handle (index and generation): it stays safe to use after the client is gone, when writing through it does nothing
and reading gives the values of an empty client.
"""

from libc.stdint cimport uint32_t

from shardproxy.core.buffers cimport buf_release
from shardproxy.dataplane.addresses cimport address_text
from shardproxy.dataplane.counters cimport FAILED_LOGINS
from shardproxy.dataplane.engine cimport (
    KEPT, REPLY_ON, SERVE, TO_NOBODY, TRACKING, TX_NONE, UP, Client, Engine, Node, Upstream, monotonic_us,
)
from shardproxy.dataplane.permissions cimport assign, note_login
from shardproxy.dataplane.private cimport abandon, forget_all, lease, private_drop, tracking_setup, tune, waits_on
from shardproxy.dataplane.slots cimport client_close, client_push, in_flight, slot_at
from shardproxy.dataplane.tls cimport Tls
from shardproxy.dataplane.upstreams cimport give, own_of, promise
from shardproxy.dataplane.waiting cimport unblock

REPLY_MODES = ("on", "off", "skip")
NONE = (0, 0, 0)
UNTRACKED = ("", -1)
TRACKING_OFF = b"*3\r\n$6\r\nCLIENT\r\n$8\r\nTRACKING\r\n$3\r\nOFF\r\n"


cdef object make_handle(Engine e, uint32_t index, uint32_t generation):
    cdef ClientHandle handle = ClientHandle.__new__(ClientHandle)
    cdef Client *c = e.client_at(index, generation)
    handle.engine = e
    handle.index = index
    handle.generation = generation
    handle.number = c.id if c != NULL else 0
    return handle


cdef object client_handle(Engine e, Client *c):
    return make_handle(e, c.index, c.generation)


cdef void answer_last(Client *c) noexcept:
    """CLIENT REPLY ON and RESET are answered themselves: theirs is the slot that was opened last."""
    if c.head != c.tail:
        slot_at(c, c.tail - 1).discard = False


cdef void drop_tracking(Engine e, Client *c) noexcept:
    cdef Upstream *u = c.own
    cdef Upstream *after
    while u != NULL:
        after = u.next_own
        if u.lease == TRACKING:
            private_drop(e, u)
        elif u.lease & TRACKING:
            u.lease = u.lease & ~TRACKING | KEPT
        u = after


cdef class ClientHandle:
    """A client connection, for handlers. Times are seconds, sizes bytes."""

    def __init__(self):
        raise TypeError("only the engine makes clients")

    cdef Client *at(self):
        return NULL if self.engine.closed else self.engine.client_at(self.index, self.generation)

    cdef object text(self, str what):
        cdef dict mine = self.engine.meta.get(self.number)
        return mine.get(what, b"") if mine is not None else b""

    cdef void set_text(self, str what, value):
        if self.at() != NULL:
            self.engine.meta.setdefault(self.number, {})[what] = value

    @property
    def alive(self):
        return self.at() != NULL

    @property
    def id(self):
        return self.number

    @property
    def name(self):
        return self.text("name")

    @name.setter
    def name(self, bytes value):
        self.set_text("name", value)

    @property
    def lib_name(self):
        return self.text("lib_name")

    @lib_name.setter
    def lib_name(self, bytes value):
        self.set_text("lib_name", value)

    @property
    def lib_ver(self):
        return self.text("lib_ver")

    @lib_ver.setter
    def lib_ver(self, bytes value):
        self.set_text("lib_ver", value)

    @property
    def tls(self):
        cdef Client *c = self.at()
        return (<Tls>c.tls).session.version() if c != NULL and c.tls != NULL else None

    @property
    def user(self):
        """Whom it has logged in as; b"": nobody, so it is the default user."""
        return self.text("user")

    def login(self, bytes name):
        """It is this user from now on; b"": nobody."""
        cdef Client *c = self.at()
        if c != NULL:
            note_login(self.engine, c, name or None)
            assign(self.engine, c)

    def login_failed(self):
        self.engine.count[<int>FAILED_LOGINS] += 1

    @property
    def proto(self):
        cdef Client *c = self.at()
        return c.proto if c != NULL else 2

    @proto.setter
    def proto(self, int value):
        cdef Client *c = self.at()
        if value not in (2, 3):
            raise ValueError("the protocol is 2 or 3")
        if c != NULL and c.proto != value:
            tune(self.engine, c, <unsigned char>value, c.db)

    @property
    def db(self):
        cdef Client *c = self.at()
        return c.db if c != NULL else 0

    @db.setter
    def db(self, int value):
        cdef Client *c = self.at()
        if c != NULL and c.db != value:
            self.engine.databases.add(value)
            tune(self.engine, c, c.proto, <unsigned short>value)

    @property
    def blocked_at(self):
        """(node number, CLIENT ID there) of the upstream on which it waits for data; None: it does not."""
        cdef Client *c = self.at()
        cdef Upstream *u = waits_on(c) if c != NULL else NULL
        return (u.node, u.id) if u != NULL else None

    def unblock(self, bint error, done):
        """The node is told to let it go; False: there is nothing to tell, or it cannot be told now."""
        cdef Client *c = self.at()
        cdef Upstream *u = waits_on(c) if c != NULL else NULL
        return u != NULL and unblock(self.engine, u, error, done)

    @property
    def waiting(self):
        """It is blocked, as Redis calls it."""
        cdef Client *c = self.at()
        return bool(c.waiting) if c != NULL else False

    @waiting.setter
    def waiting(self, bint value):
        """A handler makes it wait: when it leaves meanwhile it is closed, see slots.part."""
        cdef Client *c = self.at()
        if c != NULL:
            c.waiting = value
            c.waits_since = monotonic_us()
            self.engine.mark_dirty(c)
            self.engine.wake()

    @property
    def watched(self):
        """Keys that it has named to WATCH."""
        cdef Client *c = self.at()
        return c.watched if c != NULL else 0

    @property
    def monitors(self):
        """It is shown what others send: MONITOR."""
        cdef Client *c = self.at()
        return bool(c.monitors) if c != NULL else False

    @monitors.setter
    def monitors(self, bint value):
        cdef Client *c = self.at()
        if c != NULL:
            c.monitors = value

    @property
    def wrote(self):
        """Numbers of the nodes to which it has sent what may write."""
        cdef Client *c = self.at()
        cdef int i
        return [i for i in range(self.engine.node_count)
                if c.wrote >> (i & 63) & 1 and self.engine.node_list[i].used] if c != NULL else []

    def push(self, bytes data, bytes resp3=None):
        """Whole frames that belong to no command: they go out between frames. resp3: what they are there."""
        cdef Client *c = self.at()
        if c != NULL:
            if resp3 is not None and c.proto == 3:
                data = resp3
            client_push(self.engine, c, data, len(data))
            if not self.engine.in_tick:
                self.engine.wake()

    def when_gone(self, callback):
        """callback(id), after the client has left."""
        if self.at() != NULL:
            callbacks = self.engine.meta.setdefault(self.number, {}).setdefault("gone", [])
            if callback not in callbacks:
                callbacks.append(callback)

    @property
    def subscriptions(self):
        """(channels, patterns, shard channels) that it has subscribed to."""
        cdef dict mine = self.engine.meta.get(self.number)
        return mine.get("subscriptions", NONE) if mine is not None else NONE

    @subscriptions.setter
    def subscriptions(self, tuple counts):
        cdef Client *c = self.at()
        if c != NULL:
            self.set_text("subscriptions", counts)
            c.subscriber = any(counts)

    @property
    def tracked(self):
        """What CLIENT LIST shows of its tracking: (flags, whom it redirects to)."""
        cdef dict mine = self.engine.meta.get(self.number)
        return mine.get("tracked", UNTRACKED) if mine is not None else UNTRACKED

    @tracked.setter
    def tracked(self, tuple value):
        self.set_text("tracked", value)

    @property
    def tracking(self):
        cdef Client *c = self.at()
        return bool(c.tracking) if c != NULL else False

    def track(self, dict setups, redirected=None):
        """See client_handle.pyi."""
        cdef Client *c = self.at()
        cdef Upstream *u
        if c == NULL:
            return
        mine = self.engine.meta.setdefault(self.number, {})
        c.tracking = setups is not None
        mine["tracking"], mine["redirected"] = setups, redirected
        u = c.own
        while u != NULL:
            # what keeps it (WATCH) stays; it will not be another's
            setup, count = tracking_setup(self.engine, c, u.node) if c.tracking else (TRACKING_OFF, 1)
            if promise(self.engine, u, TO_NOBODY, 0, 0, 0, 0, True, 0, count, self.engine.now + self.engine.allowed[1]) < 0:
                raise MemoryError
            give(self.engine, u, setup, len(setup))
            u.lease |= TRACKING
            u = u.next_own
        if not c.tracking:
            drop_tracking(self.engine, c)
        self.engine.wake()

    def track_everywhere(self):
        """Has an upstream of its own to every node that serves; False: not to all of them."""
        cdef Client *c = self.at()
        cdef Upstream *u
        cdef Node *node
        cdef int i
        cdef bint all_there = True
        if c == NULL or not c.tracking:
            return True
        self.engine.now = monotonic_us()
        for i in range(self.engine.shard_count):
            node = self.engine.node_list[self.engine.shards[i]]
            if node.mode == SERVE:
                u = lease(self.engine, c, self.engine.shards[i], TRACKING)
                all_there = all_there and u != NULL and u.state == UP
        self.engine.wake()
        return all_there

    def track_again(self, int node):
        """What it was told by that node counts no more: its upstream there is closed, and the client is told."""
        cdef Client *c = self.at()
        cdef Upstream *u = own_of(c, node) if c != NULL else NULL
        if u != NULL:
            private_drop(self.engine, u)
            self.engine.wake()

    def invalidate(self):
        """It, or whom it redirects to, is told to forget everything."""
        cdef Client *c = self.at()
        if c != NULL and c.tracking:
            forget_all(self.engine, c)
            self.engine.wake()

    @property
    def caching(self):
        cdef Client *c = self.at()
        return c.caching if c != NULL else 0

    @caching.setter
    def caching(self, int value):
        cdef Client *c = self.at()
        if c != NULL:
            c.caching = value

    def kill(self, str reason):
        """Close it now; what is in flight is not answered."""
        cdef Client *c = self.at()
        cdef bytes why = reason.encode()
        if c != NULL:
            client_close(self.engine, c, why)
            self.engine.wake()

    @property
    def addr(self):
        cdef Client *c = self.at()
        return address_text(self.engine, c, True) if c != NULL else "?:0"

    @property
    def laddr(self):
        cdef Client *c = self.at()
        return address_text(self.engine, c, False) if c != NULL else "?:0"

    @property
    def fd(self):
        cdef Client *c = self.at()
        return c.fd if c != NULL else -1

    @property
    def age(self):
        cdef Client *c = self.at()
        return (monotonic_us() - c.created) / 1e6 if c != NULL else 0.0

    @property
    def idle(self):
        cdef Client *c = self.at()
        return (monotonic_us() - c.active) / 1e6 if c != NULL else 0.0

    @property
    def last_command(self):
        cdef Client *c = self.at()
        # the table may be another one by now, with fewer learned commands
        if c == NULL or not c.commands or c.last_row >= len(self.engine.table.names):
            return "NULL"
        return self.engine.table.names[c.last_row]

    @property
    def total_commands(self):
        cdef Client *c = self.at()
        return c.commands if c != NULL else 0

    @property
    def query_buffer(self):
        cdef Client *c = self.at()
        return c.inp.len if c != NULL else 0

    @property
    def output_bytes(self):
        cdef Client *c = self.at()
        return c.out.len + c.held if c != NULL else 0

    @property
    def total_memory(self):
        cdef Client *c = self.at()
        return c.inp.cap + c.out.cap + c.tx.cap + c.held + sizeof(Client) if c != NULL else 0

    @property
    def pending(self):
        cdef Client *c = self.at()
        return in_flight(c) if c != NULL else 0

    @property
    def in_multi(self):
        """Commands queued since MULTI; -1 outside of a transaction."""
        cdef Client *c = self.at()
        return <int>c.tx_count if c != NULL and c.tx_state else -1

    @property
    def multi_memory(self):
        cdef Client *c = self.at()
        return c.tx.cap if c != NULL else 0

    @property
    def no_evict(self):
        cdef Client *c = self.at()
        return bool(c.no_evict) if c != NULL else False

    @no_evict.setter
    def no_evict(self, bint value):
        cdef Client *c = self.at()
        if c != NULL:
            c.no_evict = value

    @property
    def no_touch(self):
        cdef Client *c = self.at()
        return bool(c.no_touch) if c != NULL else False

    @no_touch.setter
    def no_touch(self, bint value):
        cdef Client *c = self.at()
        if c != NULL:
            c.no_touch = value

    @property
    def reply_mode(self):
        cdef Client *c = self.at()
        return REPLY_MODES[c.reply_mode if c != NULL else 0]

    @reply_mode.setter
    def reply_mode(self, str value):
        cdef Client *c = self.at()
        cdef int mode = REPLY_MODES.index(value)
        if c != NULL:
            c.reply_mode = mode
            if mode == REPLY_ON:
                answer_last(c)

    def close_after_reply(self, str reason=None):
        """Take no more from this client, and close it when its last reply is out."""
        cdef Client *c = self.at()
        if c != NULL:
            c.leaving = True
            self.engine.mark_dirty(c)
            if reason is not None:
                self.engine.event("client_closed", {"client": c.id, "reason": reason})

    def reset(self):
        """What RESET undoes: login, transaction, watched keys, database, protocol, reply mode, name."""
        cdef Client *c = self.at()
        if c != NULL:
            c.tx_state = TX_NONE
            buf_release(&c.tx)
            c.tracking = c.subscriber = False
            c.caching = 0
            abandon(self.engine, c)
            c.watching = -1
            c.watched = 0
            c.unwatched = c.monitors = False
            c.db = 0
            c.proto = 2
            c.reply_mode = REPLY_ON
            answer_last(c)
            c.no_evict = c.no_touch = False
            if self.number in self.engine.meta:
                for what in ("name", "subscriptions", "tracking", "redirected", "tracked"):
                    self.engine.meta[self.number].pop(what, None)
            self.login(b"")
