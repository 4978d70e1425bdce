"""Private upstreams: for what a connection that many clients share cannot do. WATCH, what blocks, tracking, handlers' Links.

Rules: a client gets one when everything that it has sent is answered, and while it has one, all its commands for that
node travel on it: so order needs no care. It goes back to the node's pool when nothing keeps it and nothing is in its
queue; one that is not provably clean is closed. What was told to a connection that is lost (WATCH) is lost with it,
and said.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdio cimport snprintf
from libc.string cimport strlen

from shardproxy.dataplane.connecting cimport start
from shardproxy.dataplane.counters cimport OVERLOADED
from shardproxy.dataplane.deliveries cimport deliver_error
from shardproxy.dataplane.engine cimport (
    DOWN, HOLD, SERVE, TEXT, TO_ASK, TO_NOBODY, TRACKING, UP, WAITING, WATCHING, Client, Engine, Node, Upstream,
)
from shardproxy.dataplane.links cimport link_lost
from shardproxy.dataplane.losses cimport ghost
from shardproxy.dataplane.slots cimport client_push, client_push_in_order
from shardproxy.dataplane.upstreams cimport fit, give, own_of, promise, upstream_give_up, upstream_leave, upstream_new

cdef const char *NOTHING_IS_KNOWN = ">2\r\n$10\r\ninvalidate\r\n_\r\n"    # what a node sends for FLUSHALL

cdef enum:
    POOL_MOST = 16              # that wait in one node's pool


cdef Upstream *lease(Engine e, Client *c, int number, uint8_t why) noexcept:
    cdef Upstream *u = own_of(c, number)
    cdef Node *node = e.node_list[number]
    if u == NULL:
        if c.tracking and tracking_setup(e, c, number) is None:
            e.text_size = snprintf(e.text, TEXT, "-SHARDDOWN shard '%.100s' at %.100s is down: the connection for its "
                                   "invalidations is not there yet\r\n", node.shard, node.name)
            return NULL
        u = private_new(e, number, c.proto, c.db) if c.tracking else private_of(e, number, c.proto, c.db)
        if u == NULL:
            return NULL
        if c.tracking:
            u.lease = TRACKING
        u.owned = True
        u.owner = c.index
        u.owner_generation = c.generation
        u.next_own = c.own
        c.own = u
        if u.state == DOWN and (node.mode == SERVE or node.mode == HOLD):
            start(e, u)
            if u.over:
                e.text_size = snprintf(e.text, TEXT, "-SHARDDOWN shard '%.100s' at %.100s is down: %.90s\r\n",
                                       node.shard, node.name, u.why)
                fit(e)
                return NULL
    u.lease |= why
    return u


cdef Upstream *private_of(Engine e, int number, uint8_t proto, uint16_t db) noexcept:
    cdef Node *node = e.node_list[number]
    cdef Upstream *u = node.pool
    while u != NULL:
        if u.proto == proto and u.db == db and u.state == UP:
            unpool(node, u)
            return u
        u = u.next_own
    return private_new(e, number, proto, db)


cdef Upstream *private_new(Engine e, int number, uint8_t proto, uint16_t db) noexcept:
    cdef Node *node = e.node_list[number]
    cdef Upstream *u
    if node.privates >= e.private_most and node.pool != NULL:
        # idle ones, of another protocol or database, make room; they are counted until the end of the tick
        private_drop(e, node.pool)
    elif node.privates >= e.private_most:
        e.count[<int>OVERLOADED] += 1
        e.text_size = snprintf(e.text, TEXT, "-OVERLOADED shard '%.100s' at %.100s: %u private connections are in use\r\n",
                               node.shard, node.name, node.privates)
        fit(e)
        return NULL
    u = upstream_new(e, number, proto, db)
    if u == NULL:
        e.text_size = snprintf(e.text, TEXT, "-ERR out of memory\r\n")
        return NULL
    u.private = True
    node.privates += 1
    return u


cdef void unlease(Engine e, Upstream *u, uint8_t why) noexcept:
    cdef Node *node = e.node_list[u.node]
    cdef Client *c
    cdef Upstream *other
    cdef int pooled = 0
    if why & WAITING and u.lease & WAITING:
        u.wait_until = u.wait_ends = u.moving = 0
        u.recalled = False
        u.lease &= ~WAITING
        c = owner_of(e, u)
        if c != NULL:
            c.waiting = waits_on(c) != NULL     # it may have gone on elsewhere
    u.lease &= ~why
    if u.lease or u.head != u.tail or u.over:
        return
    if u.owned:
        disown(e, u)
    other = node.pool
    while other != NULL:
        pooled += 1
        other = other.next_own
    if u.state != UP or node.gone or u.spent or pooled >= POOL_MOST:
        private_drop(e, u)
        return
    u.idle_since = e.now
    u.next_own = node.pool
    node.pool = u


cdef Client *owner_of(Engine e, Upstream *u) noexcept:
    """Also one that is dead, as long as it is not freed."""
    cdef Client *c
    if not u.owned or u.owner >= e.client_room:
        return NULL
    c = e.client_list[u.owner]
    return c if c != NULL and c.generation == u.owner_generation else NULL


cdef object tracking_setup(Engine e, Client *c, int number):
    mine = e.meta[c.id]["tracking"]
    return mine.get(number, mine.get(-1))


cdef void tracked(Engine e, Client *c, const char *p, size_t n) noexcept:
    """In order: who reads a value after it was told to forget it would keep it for ever."""
    cdef object redirected
    if c.dead:
        return
    redirected = e.meta[c.id]["redirected"]
    if redirected is not None:
        e.told.append((redirected, (p[:n],)))
        e.wake()
    elif c.proto == 3 and c.waiting:
        client_push(e, c, p, n)     # all before what waits is answered, and that may take for ever
    elif c.proto == 3:
        client_push_in_order(e, c, p, n)


cdef void forget_all(Engine e, Client *c) noexcept:
    tracked(e, c, NOTHING_IS_KNOWN, strlen(NOTHING_IS_KNOWN))


cdef Upstream *waits_on(Client *c) noexcept nogil:
    cdef Upstream *u = c.own
    while u != NULL and not u.lease & WAITING:
        u = u.next_own
    return u


cdef void unchain(Upstream **head, Upstream *u) noexcept:
    while head[0] != NULL and head[0] != u:
        head = &head[0].next_own
    if head[0] == u:
        head[0] = u.next_own
    u.next_own = NULL


cdef void unpool(Node *node, Upstream *u) noexcept:
    unchain(&node.pool, u)


cdef void disown(Engine e, Upstream *u) noexcept:
    cdef Client *c = owner_of(e, u)
    if c != NULL:
        unchain(&c.own, u)
    u.owned = False


cdef void private_lost(Engine e, Upstream *u) noexcept:
    cdef Client *c
    if u.over:
        return
    u.over = True
    e.over_count += 1
    if u.owned:
        c = owner_of(e, u)
        if c != NULL:
            if u.lease & TRACKING and c.tracking:
                forget_all(e, c)
            c.unwatched = c.unwatched or u.lease & WATCHING
            if u.lease & WAITING:
                c.waiting = False
        disown(e, u)
    elif not u.linked:
        unpool(e.node_list[u.node], u)
    u.lease = 0
    if u.linked:
        link_lost(e, u)


cdef void private_drop(Engine e, Upstream *u) noexcept:
    cdef uint32_t i
    if u.over:
        return
    private_lost(e, u)
    if u.state == UP:
        ghost(e, u)
    upstream_leave(e, u)
    i = u.head
    e.text_size = snprintf(e.text, TEXT, "-ERR the connection was closed before it answered\r\n")
    while i != u.tail:
        if u.fifo[i & u.mask].to == TO_ASK:
            deliver_error(e, &u.fifo[i & u.mask], False)
        i += 1
    u.tail = u.head


cdef void abandon(Engine e, Client *c) noexcept:
    cdef Upstream *u
    while c.own != NULL:
        u = c.own
        if u.lease == 0 and u.head == u.tail:
            unlease(e, u, 0)
        else:
            private_drop(e, u)
    e.wake()


cdef void tune(Engine e, Client *c, uint8_t proto, uint16_t db) noexcept:
    cdef Upstream *u = own_of(c, c.watching) if c.watching >= 0 else NULL
    cdef char text[64]
    cdef char number[8]
    if u != NULL and u.lease == WATCHING and u.state == UP:
        # keys stay watched, in the database that they were named in
        if proto != c.proto and e.node_list[u.node].speaks == 2:
            u.raised = proto == 3
        elif proto != c.proto:
            say_unheard(e, u, text, snprintf(text, sizeof(text), "*2\r\n$5\r\nHELLO\r\n$1\r\n%d\r\n", proto))
            u.spent = True      # an old node may have refused
        if db != c.db:
            say_unheard(e, u, text, snprintf(text, sizeof(text), "*2\r\n$6\r\nSELECT\r\n$%d\r\n%d\r\n",
                                             snprintf(number, sizeof(number), "%d", db), db))
        u.proto = proto
        u.db = db
        # the others are given back
        unchain(&c.own, u)
        c.proto = proto
        abandon(e, c)
        u.next_own = NULL
        c.own = u
    else:
        c.proto = proto         # first: who has become RESP2 is told nothing by a push
        abandon(e, c)
    c.db = db


cdef void say_unheard(Engine e, Upstream *u, const char *p, size_t n) noexcept:
    """Whose reply nobody needs."""
    if promise(e, u, TO_NOBODY, 0, 0, 0, 0, True, 0, 1, e.now + e.allowed[1]) < 0:
        u.doomed = True
    else:
        give(e, u, p, n)


cdef void give_up_lost(Engine e) noexcept:
    cdef uint32_t i
    e.over_count = 0
    for i in range(e.upstream_count):
        if e.upstreams[i].over:
            upstream_give_up(e, e.upstreams[i])
