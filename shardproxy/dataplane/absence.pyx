"""While a shard is not there: what its requests get instead, and what is remembered of them.

Rules: every key that is written while its home's keys are with stand-ins is remembered, within `remember` bytes a node,
else that there were too many. What a read gets instead of its shard's reply (the last value read, or that nothing is
there) is what the pool's policy says and nothing else; a write gets the error.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.string cimport memcmp, memset

from shardproxy.core.commands cimport FLAG_CONTAINER, FLAG_READONLY, MERGE_ARRAY, MERGE_SUM, Row
from shardproxy.core.resp cimport REQ_OK, Progress, Request, parse_request
from shardproxy.dataplane.counters cimport MISSES, REMEMBERED, STALE_SERVED
from shardproxy.dataplane.deliveries cimport deliver, fan_fail
from shardproxy.dataplane.engine cimport TO_PART, Client, Engine, Entry
from shardproxy.dataplane.sending cimport MALFORMED, find_keys
from shardproxy.dataplane.slots cimport slot_feed
from shardproxy.dataplane.stale cimport stale_clear, stale_drop, stale_get

cdef enum:
    KEY_COST = 96               # bytes that a remembered key takes besides its own


cdef void remember(Engine e, Request *r, const Row *row) noexcept:
    """A write goes to a stand-in: when the key's home is back, what it still has of it is old."""
    cdef int i, n
    if row.flags & FLAG_READONLY:
        return
    if memcmp(row.name, "move", 5) == 0 or memcmp(row.name, "copy", 5) == 0:
        reach(e, r)
    n = find_keys(e, r, row)
    if n < 0 and 0 < row.first < r.argc:
        e.positions[0] = row.first
        n = 1
    for i in range(n):
        remember_key(e, r.argv[e.positions[i]], r.argl[e.positions[i]])


cdef void reach(Engine e, Request *r) noexcept:
    """MOVE, COPY: into another database, if there is a number of one."""
    cdef bytes last = r.argv[r.argc - 1][:r.argl[r.argc - 1]]
    if last.isdigit() and len(last) < 6:
        e.databases.add(int(last))
    elif r.argc > 4:            # COPY source destination DB number REPLACE
        last = r.argv[4][:r.argl[4]]
        if last.isdigit() and len(last) < 6:
            e.databases.add(int(last))


cdef void remember_key(Engine e, const char *key, size_t n) noexcept:
    cdef int shard = e.ring.shard_of(key, n), home = e.shards[shard]
    cdef set keys
    if not e.absent[shard]:
        return
    held = e.written_bytes.get(home, 0)
    if held < 0:
        return                  # too many: forgotten, all of that node is old
    keys = e.written.setdefault(home, set())
    name = key[:n]
    if name not in keys:
        keys.add(name)
        held += n + KEY_COST
        if held > <int64_t>e.remember:
            keys.clear()
            held = -1
        e.written_bytes[home] = held
        e.count[<int>REMEMBERED] += 1


cdef void wrote(Engine e, const char *key, size_t n) noexcept:
    """A handler writes this key."""
    if e.displacing:
        remember_key(e, key, n)
    if e.stale != NULL:
        stale_drop(e.stale, key, n, e.now)


cdef void drop_stale(Engine e, Request *r, const Row *row) noexcept:
    """What is kept of keys that are being written is old now."""
    cdef int i, n = find_keys(e, r, row)
    if n < MALFORMED:           # which the node refuses
        stale_clear(e.stale, e.now)
    for i in range(n):
        stale_drop(e.stale, r.argv[e.positions[i]], r.argl[e.positions[i]], e.now)


cdef void flushed(Engine e) noexcept:
    """Every key is gone: also those of shards that are out, whatever their nodes still have."""
    cdef int i
    for i in range(e.shard_count):
        if e.absent[i]:
            e.written[e.shards[i]] = set()
            e.written_bytes[e.shards[i]] = -1
    if e.stale != NULL:
        stale_clear(e.stale, e.now)


cdef void drop_stale_run(Engine e, const char *p, size_t n) noexcept:
    """The same for the commands of a transaction, when it is sent."""
    cdef Request *r = &e.again
    cdef Progress progress
    cdef const Row *row
    cdef const Row *sub
    r.limits = e.request.limits
    while n:
        memset(&progress, 0, sizeof(progress))
        if parse_request(r, &progress, p, n) != REQ_OK:
            stale_clear(e.stale, e.now)
            return
        row = e.table.find(r.argv[0], r.argl[0])
        if row != NULL and row.flags & FLAG_CONTAINER and r.argc > 1:
            sub = e.table.find_sub(row, r.argv[1], r.argl[1])
            row = sub if sub != NULL else row
        if row != NULL and not row.flags & FLAG_READONLY:
            drop_stale(e, r, row)
        p += r.size
        n -= r.size


cdef bint instead(Engine e, Client *c, Request *r, const Row *row, uint32_t slot, bint out) noexcept:
    """Of a shard that is down: the last value read, or nothing found; False: the error."""
    cdef size_t n
    cdef const char *kept
    if out and e.stale != NULL and c.db == 0 and row.flags & FLAG_READONLY:
        kept = stale_get(e.stale, r.raw, r.raw_size, c.proto, e.now, &n)
        if kept != NULL:
            e.count[<int>STALE_SERVED] += 1
            slot_feed(e, c, slot, kept, n, True)
            return True
    return e.missing and answer_miss(e, c, r, row, slot)


cdef bint answer_miss(Engine e, Client *c, Request *r, const Row *row, uint32_t slot) noexcept:
    """As for keys that do not exist; False: it is not known what that would be."""
    cdef bytes name = row.name, answer
    cdef list args
    cdef int i
    if e.misses is None or not row.flags & FLAG_READONLY:
        return False
    args = [r.argv[i][:r.argl[i]] for i in range(r.argc)]
    try:
        found = e.misses(name.decode(), args, c.proto)
    except Exception:
        return False
    if found is None:
        return False
    answer = found
    e.count[<int>MISSES] += 1
    slot_feed(e, c, slot, answer, len(answer), True)
    return True


cdef void part_missing(Engine e, Client *c, const Row *row, uint32_t slot, uint16_t part, uint32_t keys) noexcept:
    """A part of a split command for a shard that is down: nothing is found, or it fails."""
    cdef bytes answer
    cdef Entry entry
    if not e.missing or not row.flags & FLAG_READONLY or row.merge != MERGE_ARRAY and row.merge != MERGE_SUM:
        fan_fail(e, c, slot, part)
        return
    answer = b":0\r\n" if row.merge == MERGE_SUM else b"*%d\r\n%b" % (keys, (b"_\r\n" if c.proto == 3 else b"$-1\r\n") * keys)
    memset(&entry, 0, sizeof(entry))
    entry.to = TO_PART
    entry.client = c.index
    entry.generation = c.generation
    entry.slot = slot
    entry.part = part
    e.count[<int>MISSES] += 1
    deliver(e, &entry, answer, len(answer), True)
