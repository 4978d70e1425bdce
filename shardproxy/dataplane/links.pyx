"""What handlers ask of nodes: a request of their own on any upstream (`ask`), or a connection of their own (`Link`).

Rules: nobody is called back from within a parser. What has come is put aside and told at the end of the tick, when a
callback may do anything: ask, answer, close. An ask is always answered: with the reply's bytes, or with an error
line as a client would get it.
"""

from libc.stdint cimport uint32_t, uint64_t
from shardproxy.dataplane.connecting cimport start
from shardproxy.dataplane.counters cimport PUSHES_DROPPED
from shardproxy.dataplane.engine cimport KEPT, TEXT, TO_ASK, UP, Client, Engine, Upstream, monotonic_us
from shardproxy.dataplane.private cimport private_drop, private_new, private_of, unlease
from shardproxy.dataplane.scripts cimport precede_run
from shardproxy.dataplane.upstreams cimport give, promise

ASK_MOST = 1 << 29              # bytes of one reply, as Redis's longest bulk


cdef class Waiting:
    """An ask that is not answered yet."""
    cdef object done
    cdef list pieces
    cdef size_t size


cdef int ask(Engine e, Upstream *u, Client *c, const char *p, size_t n, uint32_t frames, bint write, uint64_t due,
             done) except -2:
    cdef Waiting it = Waiting.__new__(Waiting)
    it.done = done
    e.next_ask += 1
    e.asks[e.next_ask] = it
    if promise(e, u, TO_ASK, c.index if c != NULL else 0, c.generation if c != NULL else 0, e.next_ask, 0, write,
               e.retries + 1, frames, due) < 0:
        del e.asks[e.next_ask]
        raise MemoryError
    if c != NULL and c.tx_state and c.tx_calls:
        precede_run(e, u, c)    # the run of its transaction
    if e.node_list[u.node].memcached:
        u.fifo[(u.tail - 1) & u.mask].total = frames
    give(e, u, p, n)
    return 0


cdef uint64_t due_in(Engine e, double timeout, bint write) noexcept:
    """Seconds: 0 is never, below 0 as for a client's command."""
    e.now = e.now if e.in_tick else monotonic_us()
    return e.now + e.allowed[write] if timeout < 0 else e.now + <uint64_t>(timeout * 1e6) if timeout else 0


cdef void ask_feed(Engine e, uint32_t number, const char *p, size_t n, bint last) noexcept:
    cdef Waiting it = e.asks.get(number)
    if it is None:
        return
    it.size += n
    if it.size > <size_t>ASK_MOST:
        it.pieces = None
    elif last and it.pieces is None:
        e.told.append((it.done, (p[:n],)))
    else:
        if it.pieces is None:
            it.pieces = []
        it.pieces.append(p[:n])
    if not last:
        return
    del e.asks[number]
    if it.size > <size_t>ASK_MOST:
        e.told.append((it.done, (b"-ERR the reply of a node is too large\r\n",)))
    elif it.pieces is not None:
        e.told.append((it.done, (b"".join(it.pieces),)))
    if not e.in_tick:
        e.wake()


cdef void ask_forget(Engine e, uint32_t number) noexcept:
    cdef Waiting it = e.asks.get(number)
    if it is not None:
        it.pieces = None
        it.size = 0


cdef void link_frame(Engine e, Upstream *u, const char *p, size_t n) noexcept:
    cdef Link link = e.links[u.index]
    if link.on_frame is None:
        e.count[<int>PUSHES_DROPPED] += 1       # nobody asked for it
    else:
        e.told.append((link.on_frame, (p[:n],)))


cdef void link_lost(Engine e, Upstream *u) noexcept:
    cdef Link link = e.links.pop(u.index)
    u.linked = False
    if link.on_lost is not None:
        e.told.append((link.on_lost, (u.why.decode(errors="replace"),)))
    if not e.in_tick:
        e.wake()


cdef void tell(Engine e) noexcept:
    cdef list told
    while e.told:
        told = e.told
        e.told = []
        for callback, args in told:
            try:
                callback(*args)
            except Exception as error:
                e.event("handler_failed", {"command": "", "error": type(error).__name__})


cdef object open_link(Engine e, int number, int proto, int db, setup, bint stream, on_frame, on_lost):
    cdef Link link
    cdef Upstream *u
    e.text[0] = 0
    if stream or setup[1]:
        u = private_new(e, number, <unsigned char>proto, <unsigned short>db)
    else:
        u = private_of(e, number, <unsigned char>proto, <unsigned short>db)
    if u == NULL:
        raise ConnectionError(e.text[1:e.text_size].decode(errors="replace").strip())
    link = Link.__new__(Link)
    link.engine = e
    link.index = u.index
    link.setup = setup
    u.linked = True
    u.stream = stream
    u.lease = KEPT
    e.links[u.index] = link
    if u.state != UP:
        start(e, u)
        if u.over:              # refused at once
            raise ConnectionError(f"SHARDDOWN shard '{e.node_list[number].shard.decode(errors='replace')}' at "
                                  f"{e.node_list[number].name.decode(errors='replace')} is down: {u.why.decode(errors='replace')}")
    link.on_frame = on_frame
    link.on_lost = on_lost
    e.wake()
    return link


cdef class Link:
    """See links.pyi."""

    def __init__(self):
        raise TypeError("only the engine makes links")

    cdef Upstream *at(self):
        if self.engine.closed or self.engine.links.get(self.index) is not self:
            return NULL
        return self.engine.upstreams[self.index]

    @property
    def alive(self):
        return self.at() != NULL

    @property
    def node_client_id(self):
        cdef Upstream *u = self.at()
        return u.id if u != NULL else 0

    def ask(self, bytes request, done, int frames=1, double timeout=-1):
        cdef Upstream *u = self.at()
        if u == NULL:
            self.engine.told.append((done, (b"-ERR the connection is closed\r\n",)))
        else:
            ask(self.engine, u, NULL, request, len(request), frames, True, due_in(self.engine, timeout, True), done)
        self.engine.wake()

    def send(self, bytes request):
        cdef Upstream *u = self.at()
        if u != NULL:
            give(self.engine, u, request, len(request))
            self.engine.wake()

    def release(self):
        cdef Upstream *u = self.at()
        if u == NULL or u.stream or self.setup[1]:
            self.close()
            return
        del self.engine.links[self.index]
        u.linked = False
        unlease(self.engine, u, KEPT)
        if u.head != u.tail:
            private_drop(self.engine, u)
        self.engine.wake()

    def close(self):
        cdef Upstream *u = self.at()
        self.on_lost = self.on_frame = None
        if u != NULL:
            private_drop(self.engine, u)
            self.engine.wake()
