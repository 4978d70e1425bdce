"""Sending a command to the shard, or the shards, of its keys.

Rules: a command whose keys share a shard goes out as it came, byte for byte. One that may be split makes one request
a shard, whose arguments are the client's own bytes. A shard that is down answers at once.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.stdlib cimport realloc
from libc.string cimport memset

from shardproxy.core.buffers cimport Buf, buf_head, buf_release
from shardproxy.core.commands cimport FLAG_KEYLESS, FLAG_MOVABLE, FLAG_READONLY, MERGE_ARRAY, Row
from shardproxy.core.fanout cimport Fan, fan_new
from shardproxy.core.resp cimport Request, put_number, raw_argument
from shardproxy.dataplane.answers cimport refuse, refuse_bytes, spoken
from shardproxy.dataplane.counters cimport FANNED_OUT, FORWARDED
from shardproxy.dataplane.deliveries cimport fan_fail
from shardproxy.dataplane.engine cimport SCRATCH, TO_CLIENT, TO_PART, Client, Engine, Upstream
from shardproxy.dataplane.slots cimport client_close, slot_answer, slot_at, slot_open
from shardproxy.dataplane.upstreams cimport give, promise, upstream_for


cdef int shard_of_command(Engine e, Client *c, Request *r, const Row *row) noexcept:
    """The shard of all its keys, NO_KEY, MALFORMED, or ANSWERED (with an error)."""
    cdef int i, n, shard, other
    if 0 < row.first < r.argc and not row.flags & FLAG_MOVABLE and row.last == row.first:
        return e.ring.shard_of(r.argv[row.first], r.argl[row.first])
    if row.flags & FLAG_KEYLESS:
        return NO_KEY
    n = find_keys(e, c, r, row)
    if n == MALFORMED and 0 < row.first < r.argc:
        return e.ring.shard_of(r.argv[row.first], r.argl[row.first])
    if n < 0:
        return n
    if n == 0:
        return NO_KEY
    shard = e.ring.shard_of(r.argv[e.positions[0]], r.argl[e.positions[0]])
    for i in range(1, n):
        other = e.ring.shard_of(r.argv[e.positions[i]], r.argl[e.positions[i]])
        if other != shard:
            refuse(e, c, "-CROSSSLOT Keys in request don't hash to the same slot\r\n")
            return ANSWERED
    return shard


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


cdef int find_keys(Engine e, Client *c, Request *r, const Row *row) noexcept:
    """Fills e.positions and says how many; MALFORMED or ANSWERED."""
    cdef int n
    if room_for_keys(e, r.argc) < 0:
        refuse(e, c, "-ERR out of memory\r\n")
        return ANSWERED
    n = e.table.keys(row, r.argc, r.argv, r.argl, e.positions, e.key_room)
    if n >= 0:
        return n
    if n == -1:
        return MALFORMED
    if n == -2 and e.shard_count == 1:
        # whatever the pattern matches, it is on the only shard there is
        return e.table.positions(row, r.argc, r.argv, r.argl, e.positions, NULL, e.key_room)
    if n == -2:
        refuse_bytes(e, c, b"-ERR '%b' with a BY or GET pattern reads keys of other shards: not supported\r\n"
                     % spoken(row))
    else:
        refuse_bytes(e, c, b"-ERR '%b' with BLOCK is not supported yet: it needs a connection of its own\r\n"
                     % spoken(row))
    return ANSWERED


cdef void forward(Engine e, Client *c, Request *r, const Row *row) noexcept:
    cdef int shard = shard_of_command(e, c, r, row)
    if shard == MALFORMED:
        shard = 0               # any node says what is wrong with it, in its own words
    if shard >= 0:
        send_to(e, c, r, shard, not row.flags & FLAG_READONLY)
    elif shard == NO_KEY:
        refuse_bytes(e, c, b"-ERR '%b' without a key is not supported yet: it says no shard\r\n" % spoken(row))


cdef inline void charge(Client *c, uint32_t slot, const Request *r) noexcept:
    """The request's bytes count for its client's budget until it is answered."""
    slot_at(c, slot).cost = <uint32_t>(r.raw_size if r.raw_size < 0xffffffff else 0xffffffff)
    c.sent += slot_at(c, slot).cost


cdef inline void send_to(Engine e, Client *c, Request *r, int shard, bint write) noexcept:
    cdef Upstream *u = upstream_for(e, shard, c.proto, c.index)
    cdef int64_t slot
    cdef Buf swap
    if u == NULL:
        slot_answer(e, c, e.text, e.text_size)
        return
    slot = slot_open(e, c)
    if slot < 0:
        return
    charge(c, <uint32_t>slot, r)
    if promise(e, u, TO_CLIENT, c.index, c.generation, <uint32_t>slot, 0, write, 1) < 0:
        client_close(e, c, "out of memory")
        return
    e.count[<int>FORWARDED] += 1
    if r.raw_size > SCRATCH and u.out.len == 0 and r.raw == buf_head(&c.inp) and r.raw_size == c.inp.len:
        # a large value is handed over, not copied
        swap = u.out
        u.out = c.inp
        c.inp = swap
        buf_release(&c.inp)
        u.given += r.raw_size
        u.dirty = True
        return
    give(e, u, r.raw, r.raw_size)


# --- to several shards ---

cdef void split(Engine e, Client *c, Request *r, const Row *row) noexcept:
    """One request a shard that has keys: e.owners has each key's shard, e.shares how many each has."""
    cdef int first = row.first, step = row.step, keys, i, shard, parts = 0, part
    cdef uint32_t at = 0
    cdef uint32_t *ends = e.shares + e.shard_count
    cdef int64_t slot
    cdef Fan *f
    if (r.argc - first) % step:
        refuse_bytes(e, c, b"-ERR wrong number of arguments for '%b' command\r\n" % row.name)
        return
    keys = (r.argc - first) // step
    if room_for_keys(e, keys) < 0:
        refuse(e, c, "-ERR out of memory\r\n")
        return
    memset(e.shares, 0, e.shard_count * sizeof(uint32_t))
    for i in range(keys):
        shard = e.ring.shard_of(r.argv[first + i * step], r.argl[first + i * step])
        e.owners[i] = <uint16_t>shard
        parts += e.shares[shard] == 0
        e.shares[shard] += 1
    if parts == 1:
        send_to(e, c, r, e.owners[0], not row.flags & FLAG_READONLY)
        return
    slot = slot_open(e, c)
    if slot < 0:
        return
    f = fan_new(row.merge, c.proto, e.partial_nil, <uint16_t>parts, keys)
    if f == NULL:
        client_close(e, c, "out of memory")
        return
    slot_at(c, <uint32_t>slot).fan = f
    charge(c, <uint32_t>slot, r)
    e.count[<int>FANNED_OUT] += 1
    part = 0
    for shard in range(e.shard_count):
        ends[shard] = at
        at += e.shares[shard]
        if e.shares[shard]:
            f.part[part].shard = <uint16_t>shard
            part += 1
    # the keys' numbers, sorted by shard: each one goes where its shard's next one goes
    for i in range(keys):
        e.positions[ends[e.owners[i]]] = i
        ends[e.owners[i]] += 1
    if row.merge == MERGE_ARRAY:
        for part in range(parts):
            shard = f.part[part].shard
            for at in range(ends[shard] - e.shares[shard], ends[shard]):
                f.owner[e.positions[at]] = <uint16_t>part
    # replies come after this tick's reads, so that f lives until its last part has failed or been sent
    for part in range(parts):
        shard = f.part[part].shard
        if not send_share(e, c, r, row, shard, <uint32_t>slot, <uint16_t>part):
            fan_fail(e, c, <uint32_t>slot, <uint16_t>part)
        if c.dead:
            return


cdef bint send_share(Engine e, Client *c, Request *r, const Row *row, int shard, uint32_t slot,
                     uint16_t part) noexcept:
    cdef Upstream *u = upstream_for(e, shard, c.proto, c.index)
    cdef uint32_t k, end = e.shares[e.shard_count + shard]
    cdef int i, step = row.step, first = row.first
    cdef size_t n, m
    cdef const char *p
    cdef char line[32]
    if u == NULL:
        return False
    if promise(e, u, TO_PART, c.index, c.generation, slot, part, not row.flags & FLAG_READONLY, 1) < 0:
        client_close(e, c, "out of memory")
        return True
    n = put_number(line, c'*', first + <int64_t>e.shares[shard] * step)
    if give(e, u, line, n) < 0:
        return True
    for i in range(first):
        p = raw_argument(r, i, &n)
        if give(e, u, p, n) < 0:
            return True
    for k in range(end - e.shares[shard], end):
        i = e.positions[k]
        p = raw_argument(r, first + i * step, &n)
        if step == 2:
            raw_argument(r, first + i * step + 1, &m)
            n += m
        if give(e, u, p, n) < 0:
            return True
    return True
