from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from shardproxy.core.buffers cimport buf_append, queue_grow
from shardproxy.dataplane.dues cimport due_add
from shardproxy.dataplane.engine cimport SERVE, UP, WAITING, Client, Engine, Entry, Node, Upstream

cdef enum:
    MAX_QUEUE = 4194304         # requests on one upstream
    ALWAYS = 64                 # so many may always wait for a node

# What every request passes is inline: a function of another module is called through a pointer.

# Before a request: a client takes to another number of connections a node when all it has asked for is answered.
cdef inline void keep_lane(Engine e, Client *c) noexcept nogil:
    if c.lanes != e.connections and (c.head == c.tail or c.lanes == 0):
        c.lanes = <uint8_t>e.connections
        c.lane = <uint8_t>(c.index % c.lanes)

# Nothing speaks against one more request on this shared upstream; else `connected` looks closer.
cdef inline bint at_ease(Engine e, const Upstream *u) noexcept nogil:
    cdef uint32_t waiting = u.tail - u.head
    return (u.state == UP and not u.doomed and (u.given - u.written) * e.shared_count <= e.budget.queue
            and (waiting <= ALWAYS or waiting <= MAX_QUEUE and e.now <= u.fifo[u.head & u.mask].at + e.patience))

# The upstream that this client's commands for that node, due then, travel on; NULL: e.text is the error line, e.missing says whether
# reads find nothing instead, e.crowded whether a client that has requests in flight should rather wait.
cdef inline Upstream *upstream_for(Engine e, int number, Client *c, uint64_t due) noexcept:
    cdef Node *node = e.node_list[number]
    cdef Upstream *u
    keep_lane(e, c)
    if node.mode == SERVE and not node.memcached and c.own == NULL and not c.tracking and c.db == 0:
        u = node.shared[c.proto - 2][c.lane]
        if u != NULL and at_ease(e, u):
            return u
    return upstream_found(e, number, c, due)

cdef Upstream *upstream_found(Engine e, int number, Client *c, uint64_t due) noexcept
# The same for who is no client.
cdef Upstream *upstream_at(Engine e, int number, uint8_t proto, uint16_t db, uint64_t due) noexcept
# To a node that need not serve its shard any more, but answers; NULL: there is no way.
cdef Upstream *upstream_anyhow(Engine e, int number, uint64_t due) noexcept
cdef Upstream *own_of(Client *c, int number) noexcept nogil
# One more upstream of that node, not connected; NULL: no memory.
cdef Upstream *upstream_new(Engine e, int number, uint8_t proto, uint16_t db) noexcept
cdef void upstream_give_up(Engine e, Upstream *u) noexcept
# Promise the next `frames` replies to somebody, until `due`: 0, or what blocks, for ever. The request's bytes follow in u.out.
# -1: no memory.
cdef inline int promise(Engine e, Upstream *u, uint8_t to, uint32_t client, uint32_t generation, uint32_t slot,
                        uint16_t part, bint write, uint8_t tries, uint32_t frames, uint64_t due) noexcept:
    cdef Entry *entry
    if u.fifo == NULL or u.tail - u.head > u.mask:
        if queue_grow(<void **>&u.fifo, &u.mask, u.head, u.tail, sizeof(Entry), 64) < 0:
            return -1
    if u.head == u.tail:
        u.progress = e.now
    entry = &u.fifo[u.tail & u.mask]
    u.tail += 1
    entry.client = client
    entry.generation = generation
    entry.slot = slot
    entry.part = part
    entry.to = to
    entry.write = write
    entry.tries = 0 if u.private else tries     # what it has been told before is lost with it
    entry.form = entry.trusting = entry.fault = 0
    entry.frames = frames
    entry.at = entry.asked = e.now
    entry.start = u.given
    entry.prefix = 0
    entry.loads = entry.skip = 0
    entry.total = entry.tally = 0
    e.node_list[u.node].requests[write] += generation != 0      # a client's: not what we ask
    due_add(u, entry, 0 if u.lease & WAITING else due)
    return 0

cdef inline int give(Engine e, Upstream *u, const char *p, size_t n) noexcept:
    if buf_append(&u.out, p, n) < 0:
        u.doomed = True         # part of a request cannot be left in there
        return -1
    u.given += n
    e.mark_upstream(u)
    return 0

cdef void upstream_flush(Engine e, Upstream *u) noexcept
cdef void upstream_done(Upstream *u) noexcept nogil
cdef void upstream_leave(Engine e, Upstream *u) noexcept
cdef void release(Engine e, Node *node) noexcept
cdef void fit(Engine e) noexcept
cdef void shrink(Upstream *u) noexcept
# Deadlines, connections that take too long, upstreams that make no progress, and reconnecting.
cdef void upstreams_due(Engine e) noexcept
cdef void upstreams_free(Engine e) noexcept
