"""What goes wrong between us and a node: connections lost, deadlines passed, nodes out; and what becomes of requests then.

Rules: a deadline that passes answers the client and leaves the entry, marked late, so that the reply is counted off when
it comes. What may have run and is not a read is never sent twice: it answers `UNKNOWN outcome`. What nothing was written
of, and reads, stay in the queue, in their order, before anything newer, and go out again; when the node is out they go
where their keys are now. Every failure is evidence, but not what looks late because our own loop was.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memset

from shardproxy.core.buffers cimport Buf, buf_append, buf_head, buf_release, queue_free
from shardproxy.dataplane.answers cimport UNBLOCKED
from shardproxy.dataplane.connecting cimport failed
from shardproxy.dataplane.counters cimport (
    RETRIES, RETRY_BUDGET_EMPTY, SHARD_DOWN, TIMEOUTS, UNKNOWN_OUTCOMES, UPSTREAM_LOSSES, UPSTREAM_RESETS,
)
from shardproxy.dataplane.deliveries cimport deliver_error
from shardproxy.dataplane.dues cimport Walk, due_anew, due_front, walk_from, walk_on
from shardproxy.dataplane.engine cimport (
    DOWN, HOLD, SERVE, TEXT, TO_ASK, TO_CLIENT, TO_LATE, TO_NOBODY, TO_PART, UP, WAITING, Client, Engine, Entry, Node,
    Upstream,
)
from shardproxy.dataplane.memcached cimport meta_again
from shardproxy.dataplane.memcached_replies cimport rewind
from shardproxy.dataplane.private cimport private_lost
from shardproxy.dataplane.scripts cimport precede_again, unlearn
from shardproxy.dataplane.sending cimport send_again
from shardproxy.dataplane.waiting cimport time_left, wait_again
from shardproxy.dataplane.upstreams cimport fit, shrink, upstream_leave

cdef enum:
    SETTLED = 1000000           # a connection that has lasted so long was a good one, even if nothing was asked on it
    PRUNE_ABOVE = 256           # entries that nobody waits for any more
    GHOSTS = 1000               # of one node that are remembered


cdef void blame(Engine e, Node *node, const char *why, bint refused) noexcept:
    node.failed += 1
    node.streak += 1
    node.refused = node.refused or refused
    snprintf(node.failure, TEXT, "%s", why)
    if not node.failing and not node.gone:
        node.failing = True
        e.event("node_failing", {"node": node.name.decode(errors="replace"), "reason": why.decode(errors="replace")})


cdef str named(const Upstream *u):
    """A connection, in the words of CLIENT KILL; a memcached's has no ID. A node that has restarted counts anew: its address is ours all the same."""
    cdef bytes address = u.address
    words = ([f"ID {u.id}"] if u.id else []) + ([f"ADDR {address.decode(errors='replace')}"] if address else [])
    return " ".join(words)


cdef void ghost(Engine e, Upstream *u) noexcept:
    """Requests are on a connection that we leave or lose: the node may read them later, unless it is told not to.

    Whoever connects to it next tells it, before anything else is sent.
    """
    cdef bytes address = e.node_list[u.node].name
    cdef list known
    if e.node_list[u.node].gone:
        return                  # it never returns
    if (u.id or u.address[0]) and u.head != u.tail and u.fifo[u.head & u.mask].start < u.written:
        known = e.ghosts.setdefault(address.decode(errors="replace"), [])
        known.append(named(u))
        del known[:-GHOSTS]


cdef void upstream_lost(Engine e, Upstream *u, const char *why, bint reset) noexcept:
    """Close it, keep what may be sent again, answer the others, and say when it may be tried again."""
    cdef bint was_up = u.state == UP, good = u.proved or e.now > u.since + SETTLED
    cdef bint begun = u.midway and not u.push
    cdef Node *node = e.node_list[u.node]
    cdef int failures = u.failures
    cdef uint64_t moving = u.moving
    cdef char reason[TEXT]
    if u.state == DOWN:
        return
    snprintf(reason, TEXT, "%s", why)
    e.count[<int>(UPSTREAM_RESETS if reset else UPSTREAM_LOSSES)] += 1
    if was_up:
        node.lost += 1
        if u.raised:
            node.speaks = 0     # it may come back newer
        e.event("upstream_lost", {"node": node.name.decode(errors="replace"), "reason": reason.decode(errors="replace"),
                                  "in_flight": u.tail - u.head})
        ghost(e, u)
    upstream_leave(e, u)
    u.moving = moving
    u.wanted = True
    if begun:
        # part of its first reply has been passed on: nobody can take that back
        lost_error(e, u, &u.fifo[u.head & u.mask], reason, True)
        u.head += 1
    if was_up and good:
        u.retry_at = e.now
        snprintf(u.why, TEXT, "%s", reason)
        if u.head != u.tail or begun:
            blame(e, node, reason, False)
        sift(e, u, reason)
    else:
        u.failures = failures
        failed(e, u, reason, False)


cdef void lost_error(Engine e, Upstream *u, Entry *entry, const char *reason, bint begun) noexcept:
    cdef Node *node = e.node_list[u.node]
    if entry.start >= u.written or not entry.write:
        e.count[<int>SHARD_DOWN] += entry.to != TO_NOBODY and entry.to != TO_LATE
        e.text_size = snprintf(e.text, TEXT, "-SHARDDOWN shard '%.100s' at %.100s is down: %.90s\r\n",
                               node.shard, node.name, reason)
    else:
        e.count[<int>UNKNOWN_OUTCOMES] += 1
        e.text_size = snprintf(e.text, TEXT, "-UNKNOWN outcome: shard '%.80s' at %.80s was lost before it "
                               "answered (%.60s); the command may have run\r\n", node.shard, node.name, reason)
        if u.moving:
            e.text_size = snprintf(e.text, TEXT, "%s", UNBLOCKED)
    fit(e)
    deliver_error(e, entry, begun)


cdef bint repeatable(Engine e, Upstream *u, Entry *entry) noexcept:
    """Whether it may be sent (again); a read that was sent has used up one of its tries then."""
    if entry.to == TO_NOBODY or entry.to == TO_LATE or entry.tries == 0 or entry.due <= e.now:
        return False
    if entry.start >= u.written:
        return True
    if entry.write or entry.tries == 1:
        return False
    # the first time is not from the budget: it is one write on one connection, however many there are
    if entry.tries <= e.retries:
        if e.retry_tokens < 1:
            e.count[<int>RETRY_BUDGET_EMPTY] += 1
            return False
        e.retry_tokens -= 1
    entry.tries -= 1
    e.count[<int>RETRIES] += 1
    e.node_list[u.node].retries += 1
    return True


cdef inline uint64_t end_of(const Upstream *u, uint32_t i) noexcept nogil:
    """Where the bytes of entry i end, in all that this upstream was given."""
    return u.given if i + 1 == u.tail else u.fifo[(i + 1) & u.mask].start


cdef void order(Engine e, Upstream *u) noexcept:
    """A read is not repeated behind a write of the same client that may have run: it would see the future."""
    cdef uint32_t i = u.tail
    cdef Entry *entry
    cdef Client *c
    e.losses += 1
    while i != u.head:
        i -= 1
        entry = &u.fifo[i & u.mask]
        if entry.start >= u.written or entry.to == TO_NOBODY:
            continue
        c = e.client_at(entry.client, entry.generation)
        if c == NULL:
            continue
        if entry.write:
            c.unsure = e.losses
        elif c.unsure == e.losses:
            entry.tries = 0


cdef bint keep_bytes(Engine e, Entry *entry, const char *p, size_t n, Buf *out) noexcept:
    """A request that goes out again, on another connection, whose node may not know its script."""
    cdef size_t at = out.len
    if entry.trusting and not entry.loads:
        entry.prefix = precede_again(e, p, n, out)
        entry.loads = entry.prefix != 0
    entry.skip = entry.loads
    if n and buf_append(out, p, n) < 0:
        out.len = at
        return False
    entry.start = at
    return True


cdef void sift(Engine e, Upstream *u, const char *reason) noexcept:
    cdef uint32_t i = u.head, w = u.head
    cdef Entry entry
    cdef Buf out
    cdef uint64_t start, end
    cdef Node *node = e.node_list[u.node]
    # with nowhere else to go, what waits for a node that refuses us is told so
    cdef bint keep = u.failures == 0 or e.holds and not node.stays and not node.gone
    keep = keep and not e.closed and not e.closing
    if u.private:
        private_lost(e, u)
        keep = False
    if u.head == u.tail and u.out.len == 0:
        u.base = u.written = u.given = u.again = 0
        return
    memset(&out, 0, sizeof(out))
    order(e, u)
    unlearn(u)
    while i != u.tail:
        entry = u.fifo[i & u.mask]
        start = entry.start
        end = end_of(u, i)
        i += 1
        if keep and repeatable(e, u, &entry) and keep_bytes(e, &entry, buf_head(&u.out) + (start - u.base), end - start, &out):
            if entry.total:
                rewind(e, &entry)
            u.fifo[w & u.mask] = entry
            w += 1
        else:
            lost_error(e, u, &entry, reason, False)
    u.tail = w
    u.kept = u.head
    u.unsent = 0
    due_anew(u)
    buf_release(&u.out)
    u.out = out
    u.base = u.written = 0
    u.given = u.again = out.len
    shrink(u)


cdef inline bint belongs(const Entry *queued, const Entry *run) noexcept nogil:
    """Whether the one is of the other's transaction: its bytes are scripts for that, and nothing else."""
    return queued.to == TO_NOBODY and queued.prefix != 0 and queued.start + queued.prefix == run.start


cdef void prune(Engine e, Upstream *u) noexcept:
    cdef uint32_t i = u.head, w, first, ahead
    cdef Entry entry
    cdef Entry *waiting
    cdef Buf out
    cdef uint64_t start, end, prefix = 0
    cdef uint32_t loads = 0
    cdef bint said
    if u.unsent == 0:
        return                  # none of them is late
    u.unsent = 0
    while i != u.tail and u.fifo[i & u.mask].start < u.written:
        i += 1
    if i != u.tail and i != u.head and belongs(&u.fifo[(i - 1) & u.mask], &u.fifo[i & u.mask]):
        i += 1
    if i == u.tail:
        return
    w = first = i
    memset(&out, 0, sizeof(out))
    start = u.fifo[i & u.mask].start
    if start > u.base and buf_append(&out, buf_head(&u.out), start - u.base) < 0:
        u.doomed = True
        return
    while i != u.tail:
        entry = u.fifo[i & u.mask]
        start = entry.start
        end = end_of(u, i)
        ahead = 0
        # what answers to nobody are the +QUEUED of the transaction whose EXEC comes next, which have no bytes of their own,
        # or CLIENT CACHING; else it is said to the connection (SELECT, UNWATCH), which counts on it
        waiting = &u.fifo[i & u.mask]
        while waiting.to == TO_NOBODY and i + ahead + 1 != u.tail:
            ahead += 1
            waiting = &u.fifo[(i + ahead) & u.mask]
        said = entry.to == TO_NOBODY and entry.write and end - start > entry.prefix
        i += 1
        if said:
            pass
        elif waiting.to == TO_LATE or waiting.to != TO_ASK and e.client_at(waiting.client, waiting.generation) == NULL:
            # another may count on the script that this one brings
            if entry.prefix and buf_append(&out, buf_head(&u.out) + (start - u.base), entry.prefix) < 0:
                u.doomed = True
            prefix += entry.prefix
            loads += entry.loads
            continue
        if end > start and buf_append(&out, buf_head(&u.out) + (start - u.base), end - start) < 0:
            u.doomed = True
        entry.start = u.base + out.len - (end - start) - prefix
        entry.prefix += prefix
        entry.loads += loads
        entry.skip = entry.loads
        prefix = loads = 0
        u.fifo[w & u.mask] = entry
        w += 1
    if prefix:
        out.len -= prefix
        unlearn(u)
    u.tail = w
    due_anew(u)
    if <int>(u.kept - first) > 0:       # past the +QUEUED of a transaction, which has no bytes of its own
        u.kept = first
    buf_release(&u.out)
    u.out = out
    u.given = u.base + out.len
    if u.again > u.given:
        u.again = u.given


cdef void deadlines(Engine e, Upstream *u) noexcept:
    """Only after all that the node has sent was read: what has arrived is not late."""
    cdef Entry *entry
    cdef Walk walk
    if e.now < u.look:
        due_front(u)
    else:
        walk_from(u, &walk)
        entry = walk_on(u, &walk, e.now)
        while entry != NULL:
            if entry.to != TO_NOBODY and entry.to != TO_LATE:
                if not (u.midway and entry == &u.fifo[u.head & u.mask]):
                    give_up(e, u, entry)
                overdue(e, u, entry)
            entry = walk_on(u, &walk, e.now)
    if u.unsent > PRUNE_ABOVE and (u.state != UP or e.node_list[u.node].mode == HOLD):
        prune(e, u)
    elif u.late == u.head and u.head != u.tail and e.attempt_timeout < e.timeout:
        entry = &u.fifo[u.head & u.mask]
        # of what may take longer than others, nothing is known so soon
        if entry.at + e.attempt_timeout <= e.now and entry.due <= entry.asked + e.timeout:
            overdue(e, u, entry)


cdef void give_up(Engine e, Upstream *u, Entry *entry) noexcept:
    """Its client is told; its place is kept, for the reply that will come."""
    cdef Node *node = e.node_list[u.node]
    cdef bint unsent = entry.start >= u.written and (u.state != UP or node.mode == HOLD)
    e.count[<int>TIMEOUTS] += 1
    node.timeouts += 1
    u.unsent += entry.start >= u.written
    e.text_size = snprintf(
        e.text, TEXT, "-TIMEOUT shard '%.80s' at %.80s could not be asked within %llu ms; the command has not run\r\n"
        if unsent else "-TIMEOUT shard '%.80s' at %.80s did not answer within %llu ms; the command may still run\r\n",
        node.shard, node.name, <unsigned long long>((entry.due - entry.asked) // 1000))
    deliver_error(e, entry, False)
    entry.to = TO_LATE


cdef inline void overdue(Engine e, Upstream *u, const Entry *entry) noexcept:
    """One piece of evidence for all that were waiting when the last one was taken: one slow command holds up many."""
    cdef Node *node = e.node_list[u.node]
    if u.state == UP and entry.start < u.written and entry.at > node.blamed and e.lagged != e.now:
        node.blamed = e.now
        blame(e, node, "it does not answer in time", False)


cdef void leave(Engine e, Node *node) noexcept:
    cdef Upstream *u = node.first
    cdef Upstream *after
    while u != NULL:
        after = u.after
        leave_upstream(e, node, u)
        u = after


cdef void leave_upstream(Engine e, Node *node, Upstream *u) noexcept:
    cdef Upstream old
    cdef Entry entry
    cdef uint32_t i
    cdef uint64_t start, end
    cdef Client *c
    cdef bint begun = u.midway and not u.push, waited = u.lease & WAITING
    cdef uint64_t left = time_left(e, u)
    if u.state == UP:
        ghost(e, u)
    upstream_leave(e, u)
    u.moving = waited
    if u.private:
        private_lost(e, u)
    order(e, u)
    # its queue is taken away whole: what is sent again may come back to this very upstream
    old = u[0]
    u.head = u.tail = u.late = u.kept = u.fence = 0
    u.fifo = NULL
    u.mask = 0
    memset(&u.out, 0, sizeof(Buf))
    u.base = u.written = u.given = u.again = 0
    i = old.head
    while i != old.tail:
        entry = old.fifo[i & old.mask]
        start = entry.start
        end = end_of(&old, i)
        i += 1
        c = e.client_at(entry.client, entry.generation)
        if waited and c != NULL and entry.to == TO_CLIENT and (start >= old.written or not entry.write):
            wait_again(e, c, entry.slot, buf_head(&old.out) + (start - old.base), end - start, left)
        elif begun or c == NULL or entry.to == TO_ASK or not repeatable(e, &old, &entry):
            lost_error(e, &old, &entry, node.why, begun)
            begun = False
        else:
            start += entry.prefix
            (meta_again if node.memcached else send_again)(e, c, &entry, buf_head(&old.out) + (start - old.base), end - start)
    u.moving = 0
    buf_release(&old.out)
    queue_free(<void **>&old.fifo, &old.mask, sizeof(Entry))
