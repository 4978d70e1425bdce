"""Sending a command to the shard, or the shards, of its keys.

Rules: a command whose keys share a shard goes out as it came, byte for byte. One that may be split makes one request
a shard, whose arguments are the client's own bytes. A shard that is down answers at once. While a shard's keys are
elsewhere, what is written there is remembered.
"""

from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport realloc
from libc.string cimport memset

from shardproxy.core.buffers cimport Buf, buf_head, buf_release
from shardproxy.core.commands cimport (
    ANY_CALL, FLAG_ACROSS, FLAG_CHANNEL, FLAG_CONTAINER, FLAG_KEYLESS, FLAG_MOVABLE, FLAG_READONLY, FLAG_WAITS, MERGE_ARRAY,
    Row,
)
from shardproxy.core.fanout cimport Fan, fan_new, fan_widen
from shardproxy.core.script_store cimport Script
from shardproxy.core.resp cimport REQ_OK, Progress, Request, parse_request, put_number, raw_argument
from shardproxy.dataplane.absence cimport drop_stale, instead, part_missing, remember, remember_key
from shardproxy.dataplane.answers cimport refuse, refuse_bytes, spoken
from shardproxy.dataplane.calls cimport call_handler
from shardproxy.dataplane.counters cimport FANNED_OUT, FORWARDED, OVERLOADED, REHASHED
from shardproxy.dataplane.deliveries cimport deliver_error
from shardproxy.dataplane.dues cimport due_of
from shardproxy.dataplane.engine cimport MOVE, SCRATCH, TEXT, TO_CLIENT, TO_PART, Client, Engine, Entry, Node, Upstream
from shardproxy.dataplane.memcached cimport meta_can, meta_ready, meta_send, meta_share
from shardproxy.dataplane.routing cimport TAKEN, WAIT
from shardproxy.dataplane.scripts cimport node_of_script, precede, script_of
from shardproxy.dataplane.slots cimport client_close, slot_answer, slot_at, slot_feed, slot_open
from shardproxy.dataplane.stale cimport stale_drop
from shardproxy.dataplane.upstreams cimport give, keep_lane, promise, upstream_for
from shardproxy.dataplane.waiting cimport block


cdef enum:
    CROSS = -4                  # its keys have no node in common
    PATTERN = -5
    NO_MEMORY = -6


cdef int node_of(Engine e, const char *key, size_t n) noexcept:
    """The number of the node that has a key now; sets e.displaced when that is not its home."""
    return node_now(e, key, n)


cdef inline int node_now(Engine e, const char *key, size_t n) noexcept:
    cdef int shard = e.ring.shard_of(key, n)
    return away(e, shard, key, n) if e.displacing and e.absent[shard] else e.shards[shard]


cdef int away(Engine e, int shard, const char *key, size_t n) noexcept:
    """The same of a key whose home is absent."""
    cdef Node *home = e.node_list[e.shards[shard]]
    cdef int other = e.ring.stand_in(key, n, e.apart[home.memcached]) if home.mode == MOVE else -1
    if other < 0:
        return e.shards[shard]
    e.displaced = True
    return e.shards[other]


cdef int anywhere(Engine e) noexcept:
    """The first shard whose keys are with it; a memcached's only if there is no other."""
    cdef int i
    for i in range(e.shard_count):
        if not e.absent[i] and not e.node_list[e.shards[i]].memcached:
            return i
    for i in range(e.shard_count):
        if not e.absent[i]:
            return i
    return 0


cdef int locate(Engine e, Request *r, const Row *row) noexcept:
    return node_of_all(e, r, row)


cdef inline int node_of_all(Engine e, Request *r, const Row *row) noexcept:
    """The node of all keys of a command; NO_KEY, or what else stands in its way."""
    e.displaced = False
    e.blocks = row.flags & FLAG_WAITS != 0
    if 0 < row.first < r.argc and not row.flags & FLAG_MOVABLE and row.last == row.first:
        return node_now(e, r.argv[row.first], r.argl[row.first])
    return node_of_several(e, r, row)


cdef int node_of_several(Engine e, Request *r, const Row *row) noexcept:
    cdef int i, n, node, other
    if row.flags & FLAG_KEYLESS:
        return NO_KEY
    if row.flags & FLAG_CHANNEL:
        return node_of(e, r.argv[1], r.argl[1])
    n = find_keys(e, r, row)
    if n == MALFORMED and 0 < row.first < r.argc:
        return node_of(e, r.argv[row.first], r.argl[row.first])
    if n <= 0:
        return n if n < 0 else NO_KEY
    node = node_of(e, r.argv[e.positions[0]], r.argl[e.positions[0]])
    for i in range(1, n):
        other = node_of(e, r.argv[e.positions[i]], r.argl[e.positions[i]])
        if other != node:
            return CROSS
    return node


cdef int node_of_command(Engine e, Client *c, Request *r, const Row *row) noexcept:
    cdef int found = locate(e, r, row)
    return found if found >= MALFORMED else no_node(e, c, row, found)


cdef int no_node(Engine e, Client *c, const Row *row, int found) noexcept:
    if found == CROSS:
        refuse(e, c, "-CROSSSLOT Keys in request don't hash to the same slot\r\n")
    elif found == PATTERN:
        refuse_bytes(e, c, b"-ERR '%b' with a BY or GET pattern reads keys of other shards: not supported\r\n"
                     % spoken(row))
    else:
        refuse(e, c, "-ERR out of memory\r\n")
    return ANSWERED


cdef int room_for_keys(Engine e, int n) noexcept:
    """In e.positions and e.owners; -1: no memory."""
    cdef void *more
    if n <= e.key_room:
        return 0
    more = realloc(e.positions, 2 * n * sizeof(int))
    if more == NULL:
        return -1
    e.positions = <int *>more
    more = realloc(e.owners, 2 * n * sizeof(uint16_t))
    if more == NULL:
        return -1
    e.owners = <uint16_t *>more
    e.key_room = 2 * n
    return 0


cdef int find_keys(Engine e, Request *r, const Row *row) noexcept:
    """Fills e.positions and says how many; MALFORMED, PATTERN or NO_MEMORY. Sets e.blocks when XREAD does."""
    cdef int n
    if room_for_keys(e, r.argc) < 0:
        return NO_MEMORY
    n = e.table.keys(row, r.argc, r.argv, r.argl, e.positions, e.key_room)
    if n >= 0:
        return n
    if n == -1:
        return MALFORMED
    if n == -2 and e.shard_count > 1:
        return PATTERN
    # a pattern names keys of the only shard there is
    e.blocks = e.blocks or n == -3
    return e.table.positions(row, r.argc, r.argv, r.argl, e.positions, NULL, e.key_room)


# --- to one node ---

cdef int forward(Engine e, Client *c, Request *r, const Row *row) noexcept:
    cdef int node = node_of_all(e, r, row)
    if node == CROSS and e.emulates and row.flags & FLAG_ACROSS:
        if c.head != c.tail:
            return WAIT
        call_handler(e, c, r, row, None)
        c.holding = True
        return TAKEN
    if node == MALFORMED:
        node = e.shards[anywhere(e)]    # any node says what is wrong with it, in its own words
    if node >= 0:
        if e.blocks and not e.node_list[node].memcached:
            return block(e, c, r, row, node)
        return send_to(e, c, r, row, node)
    if node < MALFORMED:
        no_node(e, c, row, node)
        return TAKEN
    if row.flags & ANY_CALL:
        return send_to(e, c, r, row, node_of_script(e, r, row))
    refuse_bytes(e, c, b"-ERR '%b' without a key is not supported yet: it says no shard\r\n" % spoken(row))
    return TAKEN


cdef inline void charge(Client *c, uint32_t slot, const Request *r) noexcept:
    """The request's bytes count for its client's budget until it is answered."""
    cdef uint32_t cost = UINT32_MAX if r.raw_size > UINT32_MAX else <uint32_t>r.raw_size
    slot_at(c, slot).cost = cost
    c.sent += cost


cdef int send_to(Engine e, Client *c, Request *r, const Row *row, int node) noexcept:
    cdef Upstream *u
    cdef int64_t slot
    cdef bint write = not row.flags & FLAG_READONLY, meta = e.node_list[node].memcached
    cdef uint64_t due = 0 if e.blocks else due_of(e, row)
    cdef Script *script = NULL
    cdef Buf swap
    cdef uint32_t frames = 1
    cdef int taken = TAKEN
    if meta:
        frames = meta_ready(e, c, r, row, node, &taken)
        if frames == 0:
            return taken
    if write and e.stale != NULL:
        drop_stale(e, r, row)
    u = upstream_for(e, node, c, due)
    if row.flags & ANY_CALL:
        script = script_of(e, r, row)
    if u == NULL:
        if e.crowded and c.head != c.tail:
            e.count[<int>OVERLOADED] -= 1       # it is not told so: it waits
            return WAIT
        slot = slot_open(e, c)
        if slot >= 0 and not (e.down and instead(e, c, r, row, <uint32_t>slot, e.node_list[node].out)):
            slot_feed(e, c, <uint32_t>slot, e.text, e.text_size, True)
        return TAKEN
    if e.displaced:
        e.count[<int>REHASHED] += 1
        remember(e, r, row)
    if write:
        c.wrote |= <uint64_t>1 << (node & 63)
    slot = slot_open(e, c)
    if slot < 0:
        return TAKEN
    charge(c, <uint32_t>slot, r)
    e.retry_tokens += e.retry_share
    if promise(e, u, TO_CLIENT, c.index, c.generation, <uint32_t>slot, 0, write, e.retries + 1, frames, due) < 0:
        client_close(e, c, "out of memory")
        return TAKEN
    e.count[<int>FORWARDED] += 1
    if meta:
        meta_send(e, u, r, row)
        return TAKEN
    if script != NULL:
        precede(e, u, script)
    if r.raw_size > SCRATCH and u.out.len == 0 and r.raw == buf_head(&c.inp) and r.raw_size == c.inp.len:
        # a large value is handed over, not copied
        swap = u.out
        u.out = c.inp
        c.inp = swap
        buf_release(&c.inp)
        u.given += r.raw_size
        e.mark_upstream(u)
        return TAKEN
    give(e, u, r.raw, r.raw_size)
    return TAKEN


# --- to several shards ---

cdef int count_shares(Engine e, Request *r, const Row *row, int keys) noexcept:
    """Fills e.owners, each key's node, and e.shares, how many each node has; how many nodes have any."""
    cdef int i, at, node, parts = 0
    memset(e.shares, 0, e.node_count * sizeof(uint32_t))
    e.displaced = e.blocks = False
    for i in range(keys):
        at = row.first + i * row.step
        node = node_now(e, r.argv[at], r.argl[at])
        e.owners[i] = <uint16_t>node
        parts += e.shares[node] == 0
        e.shares[node] += 1
    return parts


cdef void sort_shares(Engine e, int keys) noexcept:
    """The keys' numbers into e.positions, sorted by node; where each node's end, into the second half of e.shares."""
    cdef int i, node
    cdef uint32_t at = 0
    cdef uint32_t *ends = e.shares + e.node_count
    for node in range(e.node_count):
        ends[node] = at
        at += e.shares[node]
    # each key goes where its node's next one goes
    for i in range(keys):
        e.positions[ends[e.owners[i]]] = i
        ends[e.owners[i]] += 1


cdef int split(Engine e, Client *c, Request *r, const Row *row) noexcept:
    """One request a node that has keys: e.owners has each key's node, e.shares how many each has."""
    cdef int first = row.first, step = row.step, keys, i, shard, parts, part
    cdef uint64_t due = due_of(e, row)
    cdef Upstream *u
    cdef uint32_t at
    cdef uint32_t *ends = e.shares + e.node_count
    cdef int64_t slot
    cdef Fan *f
    if (r.argc - first) % step:
        refuse_bytes(e, c, b"-ERR wrong number of arguments for '%b' command\r\n" % row.name)
        return TAKEN
    keys = (r.argc - first) // step
    if room_for_keys(e, keys) < 0:
        refuse(e, c, "-ERR out of memory\r\n")
        return TAKEN
    parts = count_shares(e, r, row, keys)
    if parts == 1 and not (row.merge == MERGE_ARRAY and e.node_list[e.owners[0]].memcached):
        return send_to(e, c, r, row, e.owners[0])
    if e.memcached and not meta_can(e, r, row, keys):
        refuse(e, c, e.text)
        return TAKEN
    if not row.flags & FLAG_READONLY:
        for i in range(keys):
            if e.displaced:
                remember_key(e, r.argv[first + i * step], r.argl[first + i * step])
            if e.stale != NULL:
                stale_drop(e.stale, r.argv[first + i * step], r.argl[first + i * step], e.now)
    keep_lane(e, c)
    slot = slot_open(e, c)
    if slot < 0:
        return TAKEN
    f = fan_new(row.merge, c.proto, e.partial_nil, <uint16_t>parts, keys)
    if f == NULL:
        client_close(e, c, "out of memory")
        return TAKEN
    slot_at(c, <uint32_t>slot).fan = f
    charge(c, <uint32_t>slot, r)
    e.count[<int>FANNED_OUT] += 1
    part = 0
    for shard in range(e.node_count):
        if e.shares[shard]:
            f.part[part].shard = <uint16_t>shard
            part += 1
    sort_shares(e, keys)
    if row.merge == MERGE_ARRAY:
        for part in range(parts):
            shard = f.part[part].shard
            for at in range(ends[shard] - e.shares[shard], ends[shard]):
                f.owner[e.positions[at]] = <uint16_t>part
    # replies come after this tick's reads, so that f lives until its last part has failed or been sent
    for part in range(parts):
        shard = f.part[part].shard
        u = upstream_for(e, shard, c, due)
        if u == NULL:
            part_missing(e, c, row, <uint32_t>slot, <uint16_t>part, e.shares[shard])
        else:
            send_share(e, c, r, row, u, shard, <uint32_t>slot, <uint16_t>part, e.retries + 1, due)
        if c.dead:
            return TAKEN
    return TAKEN


cdef void send_share(Engine e, Client *c, Request *r, const Row *row, Upstream *u, int shard, uint32_t slot,
                     uint16_t part, uint8_t tries, uint64_t due) noexcept:
    cdef uint32_t k, end = e.shares[e.node_count + shard]
    cdef int i, step = row.step, first = row.first
    cdef size_t n, m
    cdef const char *p
    cdef char line[32]
    if e.node_list[shard].memcached:
        meta_share(e, c, r, row, u, end - e.shares[shard], end, slot, part, tries, due)
        return
    if not row.flags & FLAG_READONLY:
        c.wrote |= <uint64_t>1 << (shard & 63)
    e.retry_tokens += e.retry_share
    if promise(e, u, TO_PART, c.index, c.generation, slot, part, not row.flags & FLAG_READONLY, tries, 1, due) < 0:
        client_close(e, c, "out of memory")
        return
    n = put_number(line, c'*', first + <int64_t>e.shares[shard] * step)
    if give(e, u, line, n) < 0:
        return
    for i in range(first):
        p = raw_argument(r, i, &n)
        if give(e, u, p, n) < 0:
            return
    for k in range(end - e.shares[shard], end):
        i = e.positions[k]
        p = raw_argument(r, first + i * step, &n)
        if step == 2:
            raw_argument(r, first + i * step + 1, &m)
            n += m
        if give(e, u, p, n) < 0:
            return


# --- again ---

cdef void send_again(Engine e, Client *c, const Entry *entry, const char *p, size_t n) noexcept:
    cdef Request *r = &e.again
    cdef Progress progress
    cdef const Row *row = NULL
    cdef const Row *sub
    cdef int node = NO_KEY
    cdef Upstream *u
    cdef Script *script
    memset(&progress, 0, sizeof(progress))
    r.limits = e.request.limits
    e.text_size = snprintf(e.text, TEXT, "-SHARDDOWN its shard is down, and its keys have no other place in common\r\n")
    if parse_request(r, &progress, p, n) == REQ_OK:
        row = e.table.find(r.argv[0], r.argl[0])
        sub = e.table.find_sub(row, r.argv[1], r.argl[1]) if row != NULL and row.flags & FLAG_CONTAINER and r.argc > 1 else NULL
        row = sub if sub != NULL else row
    if row == NULL:
        deliver_error(e, entry, False)
        return
    if entry.to == TO_PART:
        share_again(e, c, r, row, entry)
        return
    node = locate(e, r, row)
    if node == NO_KEY and row.flags & ANY_CALL:
        node = node_of_script(e, r, row)
    u = upstream_for(e, node, c, entry.due) if node >= 0 else NULL
    if u == NULL:
        if not (node >= 0 and e.down and instead(e, c, r, row, entry.slot, e.node_list[node].out)):
            deliver_error(e, entry, False)
        return
    if e.displaced:
        e.count[<int>REHASHED] += 1
        remember(e, r, row)
    if promise(e, u, TO_CLIENT, c.index, c.generation, entry.slot, 0, entry.write, entry.tries, 1, entry.due) < 0:
        client_close(e, c, "out of memory")
        return
    u.fifo[(u.tail - 1) & u.mask].asked = entry.asked
    if row.flags & ANY_CALL:
        script = script_of(e, r, row)
        if script != NULL:
            precede(e, u, script)
    give(e, u, p, n)
    u.again = u.given


cdef void share_again(Engine e, Client *c, Request *r, const Row *row, const Entry *entry) noexcept:
    """A share of a split command: its keys may have as many stand-ins as there are."""
    cdef int first = row.first, step = row.step, keys = (r.argc - first) // step, i, node, parts
    cdef uint32_t k
    cdef uint32_t *ends = e.shares + e.node_count
    cdef Fan *f = slot_at(c, entry.slot).fan
    cdef Upstream *u
    cdef uint16_t part = entry.part
    if room_for_keys(e, keys) < 0:
        deliver_error(e, entry, False)
        return
    parts = count_shares(e, r, row, keys)
    if e.displaced and not row.flags & FLAG_READONLY:
        for i in range(keys):
            remember_key(e, r.argv[first + i * step], r.argl[first + i * step])
    f = fan_widen(f, entry.part, <uint16_t>parts, e.owners)
    if f == NULL:
        deliver_error(e, entry, False)
        return
    slot_at(c, entry.slot).fan = f
    sort_shares(e, keys)
    # the parts are numbered in the order in which their nodes first come among the keys
    for i in range(keys):
        node = e.owners[i]
        k = e.shares[node]
        if k == 0 or e.positions[ends[node] - k] != i:
            continue
        f.part[part].shard = <uint16_t>node
        u = upstream_for(e, node, c, entry.due)
        if u == NULL:
            part_missing(e, c, row, entry.slot, part, k)
        else:
            e.count[<int>REHASHED] += 1
            send_share(e, c, r, row, u, node, entry.slot, part, entry.tries, entry.due)
            if not c.dead:
                u.fifo[(u.tail - 1) & u.mask].asked = entry.asked
                u.again = u.given
        if c.dead or slot_at(c, entry.slot).fan == NULL:
            return
        part = <uint16_t>(f.parts - parts + 1) if part == entry.part else part + 1
