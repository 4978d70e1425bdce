"""MULTI ... EXEC without WATCH: held here, sent to its shard as one run.

Rules: a command is checked when it comes (known, arity, may stand here, same shard) and answered QUEUED; nothing reaches
a node before EXEC, so a client that vanishes leaves nothing behind. The run is one block of bytes on the shared
upstream: nobody else's command can be inside it.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcmp

from shardproxy.core.buffers cimport buf_append, buf_head, buf_release
from shardproxy.core.commands cimport FLAG_IN_MULTI, FLAG_KEYLESS, KIND_REFUSED, Row
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.absence cimport drop_stale_run, remember
from shardproxy.dataplane.answers cimport refuse, refuse_bytes, refuse_row, say, spoken
from shardproxy.dataplane.counters cimport TRANSACTIONS
from shardproxy.dataplane.engine cimport TO_CLIENT, TO_NOBODY, TX_BROKEN, TX_NONE, TX_OPEN, Client, Engine, Upstream
from shardproxy.dataplane.sending cimport ANSWERED, NO_KEY, anywhere, node_of_command
from shardproxy.dataplane.slots cimport client_close, slot_answer, slot_open
from shardproxy.dataplane.upstreams cimport give, promise, upstream_for


cdef void transaction(Engine e, Client *c, Request *r, const Row *row) noexcept:
    """MULTI, EXEC, DISCARD. Commands are held here and go to their shard as one run."""
    cdef Upstream *u
    cdef int64_t slot
    cdef int shard
    if memcmp(row.name, "multi", 6) == 0:
        if c.tx_state:
            say(e, c, "-ERR MULTI calls can not be nested\r\n")
            return
        c.tx_state = TX_OPEN
        c.tx_shard = -1
        c.tx_count = 0
        if buf_append(&c.tx, r.raw, r.raw_size) < 0:
            client_close(e, c, "out of memory")
            return
        say(e, c, "+OK\r\n")
        return
    if not c.tx_state:
        say(e, c, "-ERR EXEC without MULTI\r\n" if row.name[0] == c'e' else "-ERR DISCARD without MULTI\r\n")
        return
    if row.name[0] == c'd':
        say(e, c, "+OK\r\n")
    elif c.tx_state == TX_BROKEN:
        say(e, c, "-EXECABORT Transaction discarded because of previous errors.\r\n")
    elif c.tx_shard >= 0 and c.tx_placement != e.placement:
        say(e, c, "-EXECABORT Transaction discarded because its keys have moved to another shard; try it again.\r\n")
    elif c.tx_count == 0:
        say(e, c, "*0\r\n")
    else:
        shard = c.tx_shard if c.tx_shard >= 0 else e.shards[anywhere(e)]
        u = upstream_for(e, shard, c.proto, c.index)
        if u == NULL:
            slot_answer(e, c, e.text, e.text_size)
        else:
            slot = slot_open(e, c)
            if slot >= 0:
                # +OK and +QUEUED have been said already; should the node refuse a command, EXEC answers EXECABORT
                if promise(e, u, TO_NOBODY, 0, 0, 0, 0, True, 0, 1 + c.tx_count) < 0 or \
                        promise(e, u, TO_CLIENT, c.index, c.generation, <uint32_t>slot, 0, True, 0, 1) < 0:
                    u.doomed = True
                    client_close(e, c, "out of memory")
                elif give(e, u, buf_head(&c.tx), c.tx.len) == 0:
                    give(e, u, r.raw, r.raw_size)
                e.count[<int>TRANSACTIONS] += 1
                if e.stale != NULL:
                    drop_stale_run(e, buf_head(&c.tx), c.tx.len)
    c.tx_state = TX_NONE
    buf_release(&c.tx)


cdef void abort_exec(Engine e, Client *c) noexcept:
    say(e, c, "-EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command\r\n")
    c.tx_state = TX_NONE
    buf_release(&c.tx)


cdef void queue(Engine e, Client *c, Request *r, const Row *row) noexcept:
    cdef int shard
    if row.kind == KIND_REFUSED:
        if memcmp(row.name, "watch", 6) == 0:
            say(e, c, "-ERR WATCH inside MULTI is not allowed\r\n")
            return
        refuse_row(e, c, row)
        return
    if not row.flags & FLAG_IN_MULTI:
        refuse_bytes(e, c, b"-ERR '%b' is not supported inside MULTI\r\n" % spoken(row))
        return
    shard = node_of_command(e, c, r, row)
    if shard == ANSWERED:
        return
    if shard == NO_KEY and not row.flags & FLAG_KEYLESS:
        refuse_bytes(e, c, b"-ERR '%b' without a key is not supported yet: it says no shard\r\n" % spoken(row))
        return
    if shard >= 0:
        if c.tx_shard >= 0 and c.tx_shard != shard:
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
    say(e, c, "+QUEUED\r\n")
