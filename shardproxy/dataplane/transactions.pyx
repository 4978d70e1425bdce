"""MULTI ... EXEC: held here, sent to its shard as one run; WATCH on an upstream of the client's own.

Rules: a command is checked when it comes (known, arity, may stand here, same shard) and answered QUEUED; nothing reaches
a node before EXEC, so a client that vanishes leaves nothing behind. The run is one block of bytes on the shared
upstream, or the client's own where it watches keys: nobody else's command can be inside it. When what was watched is
lost with its connection, or may live elsewhere now, EXEC answers as if it had changed.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf

from shardproxy.core.buffers cimport buf_append, buf_head, buf_release
from shardproxy.core.commands cimport (
    ANY_CALL, FLAG_CHANNEL, FLAG_IN_MULTI, FLAG_KEYLESS, FLAG_NO_MULTI, FLAG_REPLICATES, KIND_LOCAL, KIND_REFUSED, Row,
)
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.absence cimport drop_stale_run, remember
from shardproxy.dataplane.answers cimport refuse, refuse_bytes, refuse_row, say, spoken
from shardproxy.dataplane.calls cimport call_handler
from shardproxy.dataplane.counters cimport TRANSACTIONS
from shardproxy.dataplane.dues cimport due_of
from shardproxy.dataplane.engine cimport (
    QUEUED, TEXT, TO_CLIENT, TO_NOBODY, TX_BROKEN, TX_NONE, TX_OPEN, WATCHING, Client, Engine, Upstream,
)
from shardproxy.dataplane.observing cimport observe_run
from shardproxy.dataplane.private cimport lease, say_unheard
from shardproxy.dataplane.routing cimport TAKEN, WAIT
from shardproxy.dataplane.scripts cimport node_of_run, precede_run
from shardproxy.dataplane.sending cimport ANSWERED, NO_KEY, anywhere, node_of_command, send_to
from shardproxy.dataplane.slots cimport client_close, slot_answer, slot_open
from shardproxy.dataplane.upstreams cimport give, own_of, promise, upstream_for


cdef int transaction(Engine e, Client *c, Request *r, const Row *row) noexcept:
    cdef char first = row.name[0]
    if first == c'm':
        begin(e, c, r)
    elif first == c'w':
        return watch(e, c, r, row)
    elif first == c'u':
        return unwatch(e, c, r, row)
    elif not c.tx_state:
        say(e, c, "-ERR EXEC without MULTI\r\n" if first == c'e' else "-ERR DISCARD without MULTI\r\n")
    else:
        if first == c'd':
            say(e, c, "+OK\r\n")
        elif c.tx_mixed and c.head != c.tail:
            return WAIT
        else:
            execute(e, c, r, row)
        if c.watching >= 0:
            forget_watched(e, c)
        c.tx_state = TX_NONE
        buf_release(&c.tx)
    return TAKEN


cdef void begin(Engine e, Client *c, Request *r) noexcept:
    if c.tx_state:
        say(e, c, "-ERR MULTI calls can not be nested\r\n")
        return
    c.tx_state = TX_OPEN
    c.tx_shard = -1
    c.tx_count = 0
    c.tx_mixed = c.tx_replicates = False
    c.tx_allowed = e.allowed[1]
    c.tx_calls = False
    if buf_append(&c.tx, r.raw, r.raw_size) < 0:
        client_close(e, c, "out of memory")
        return
    say(e, c, "+OK\r\n")


cdef void execute(Engine e, Client *c, Request *r, const Row *row) noexcept:
    """The run: MULTI, what was queued, EXEC, in one block of bytes."""
    cdef Upstream *u
    cdef int node
    cdef uint32_t tail
    cdef int64_t slot
    cdef bint bad
    cdef uint64_t due = e.now + c.tx_allowed
    if c.tx_state == TX_BROKEN:
        say(e, c, "-EXECABORT Transaction discarded because of previous errors.\r\n")
        return
    if c.watching >= 0 and (c.unwatched or c.watch_placement != e.placement):
        say(e, c, "_\r\n" if c.proto == 3 else "*-1\r\n")      # what was watched may have changed
        return
    if c.tx_shard >= 0 and c.tx_placement != e.placement:
        say(e, c, "-EXECABORT Transaction discarded because its keys have moved to another shard; try it again.\r\n")
        return
    if c.tx_count == 0 and c.watching < 0:
        say(e, c, "*0\r\n")
        return
    node = node_of_transaction(e, c)
    if e.node_list[node].memcached:
        no_transaction(e, c, node)
        return
    if e.on_command is not None:
        observe_run(e, c)
    if c.tx_mixed:
        # a handler sends the run, before it returns, and puts its own results between the node's
        u = own_of(c, node) if c.watching >= 0 else NULL
        tail = u.tail if u != NULL else 0
        call_handler(e, c, r, row, (node, c.watching >= 0, buf_head(&c.tx)[:c.tx.len], c.tx_allowed / 1e6))
        c.holding = True
        if u == NULL or u.tail != tail:
            sent(e, c)
        return
    u = upstream_for(e, node, c, due)
    if u == NULL:
        slot_answer(e, c, e.text, e.text_size)
        return
    slot = slot_open(e, c)
    if slot < 0:
        return
    c.wrote |= <uint64_t>1 << (u.node & 63)
    # +OK and +QUEUED have been said already; should the node refuse a command, EXEC answers EXECABORT
    bad = promise(e, u, TO_NOBODY, 0, 0, 0, QUEUED, True, 0, 1 + c.tx_count, due) < 0
    if not bad and c.tx_calls:
        precede_run(e, u, c)
    if bad or promise(e, u, TO_CLIENT, c.index, c.generation, <uint32_t>slot, 0, True, 0, 1, due) < 0:
        u.doomed = True
        client_close(e, c, "out of memory")
        return
    u.fifo[(u.tail - 1) & u.mask].trusting = c.tx_calls
    if give(e, u, buf_head(&c.tx), c.tx.len) == 0:
        give(e, u, r.raw, r.raw_size)
    sent(e, c)


cdef void no_transaction(Engine e, Client *c, int node) noexcept:
    e.text_size = snprintf(e.text, TEXT, "-ERR transactions are not possible on a memcached shard ('%.100s')\r\n",
                           e.node_list[node].shard)
    refuse(e, c, e.text)


cdef void sent(Engine e, Client *c) noexcept:
    """EXEC is on its way."""
    cdef Upstream *u = own_of(c, c.watching) if c.watching >= 0 else NULL
    e.count[<int>TRANSACTIONS] += 1
    if e.stale != NULL:
        drop_stale_run(e, buf_head(&c.tx), c.tx.len)
    if u != NULL:
        # EXEC itself forgets them, whatever it answers
        u.lease &= ~WATCHING
        c.watching = -1
        c.watched = 0


cdef int node_of_transaction(Engine e, Client *c) noexcept:
    cdef int node = c.watching if c.watching >= 0 else c.tx_shard
    if node < 0 and c.tx_calls:
        node = node_of_run(e, c)
    return node if node >= 0 else e.shards[anywhere(e)]


cdef int watch(Engine e, Client *c, Request *r, const Row *row) noexcept:
    cdef int node
    if c.tx_state:
        say(e, c, "-ERR WATCH inside MULTI is not allowed\r\n")
        return TAKEN
    node = node_of_command(e, c, r, row)
    if node < 0:
        return TAKEN
    if e.node_list[node].memcached:
        no_transaction(e, c, node)
        return TAKEN
    if c.watching >= 0 and (c.unwatched or c.watch_placement != e.placement):
        say(e, c, "+OK\r\n")      # EXEC will find nothing anyhow
        return TAKEN
    if c.watching >= 0 and c.watching != node:
        refuse(e, c, "-CROSSSLOT Keys in request don't hash to the same slot\r\n")
        return TAKEN
    if own_of(c, node) == NULL and c.head != c.tail:
        return WAIT
    if lease(e, c, node, WATCHING) == NULL:
        slot_answer(e, c, e.text, e.text_size)
        return TAKEN
    c.watching = node
    c.watch_placement = e.placement
    c.unwatched = False
    c.watched += r.argc - 1
    return send_to(e, c, r, row, node)


cdef int unwatch(Engine e, Client *c, Request *r, const Row *row) noexcept:
    if c.tx_state:
        queue(e, c, r, row)
        return TAKEN
    if c.watching >= 0:
        forget_watched(e, c)
    say(e, c, "+OK\r\n")
    return TAKEN


cdef void forget_watched(Engine e, Client *c) noexcept:
    cdef Upstream *u = own_of(c, c.watching)
    c.watching = -1
    c.watched = 0
    c.unwatched = False
    if u == NULL or not u.lease & WATCHING:
        return
    u.lease &= ~WATCHING
    say_unheard(e, u, "*1\r\n$7\r\nUNWATCH\r\n", 17)


cdef void abort_exec(Engine e, Client *c, const char *why) noexcept:
    refuse_bytes(e, c, b"-EXECABORT Transaction discarded because of: %b\r\n" % why)
    c.tx_state = TX_NONE
    buf_release(&c.tx)
    if c.watching >= 0:
        forget_watched(e, c)


cdef void queue(Engine e, Client *c, Request *r, const Row *row) noexcept:
    cdef int shard = NO_KEY
    cdef bint local = row.kind == KIND_LOCAL and not row.flags & FLAG_IN_MULTI or row.flags & FLAG_CHANNEL
    if row.flags & FLAG_NO_MULTI:
        refuse(e, c, "-ERR Command not allowed inside a transaction\r\n")
        return
    if row.kind == KIND_REFUSED:
        refuse_row(e, c, row)
        return
    if not local and not row.flags & FLAG_IN_MULTI:
        refuse_bytes(e, c, b"-ERR '%b' is not supported inside MULTI\r\n" % spoken(row))
        return
    if not local:
        shard = node_of_command(e, c, r, row)
    if shard == ANSWERED:
        return
    if shard == NO_KEY and not local and not row.flags & (FLAG_KEYLESS | ANY_CALL):
        refuse_bytes(e, c, b"-ERR '%b' without a key is not supported yet: it says no shard\r\n" % spoken(row))
        return
    if shard >= 0 and e.node_list[shard].memcached:
        no_transaction(e, c, shard)
        return
    if shard >= 0:
        if c.tx_shard >= 0 and c.tx_shard != shard or c.watching >= 0 and c.watching != shard and not (
                c.unwatched or c.watch_placement != e.placement):
            refuse(e, c, "-CROSSSLOT Keys in request don't hash to the same slot\r\n")
            return
        if c.tx_shard < 0:
            c.tx_placement = e.placement
        c.tx_shard = shard
        if e.displaced:
            remember(e, r, row)
    if c.tx_state == TX_OPEN:
        if <int64_t>(c.tx.len + r.raw_size) > e.request.limits.max_request:
            refuse(e, c, "-ERR the transaction is larger than max_request\r\n")
            return
        if buf_append(&c.tx, r.raw, r.raw_size) < 0:
            client_close(e, c, "out of memory")
            return
        c.tx_count += 1
        c.tx_calls = c.tx_calls or row.flags & ANY_CALL != 0
        c.tx_mixed = c.tx_mixed or local
        c.tx_replicates = c.tx_replicates or row.flags & FLAG_REPLICATES
        if due_of(e, row) - e.now > c.tx_allowed:
            c.tx_allowed = due_of(e, row) - e.now
    say(e, c, "+QUEUED\r\n")
