"""The texts of scripts, so that an EVALSHA finds its script on whichever node it comes to.

    SCRIPT LOAD, EVAL ──▶ the store        EVALSHA ──▶ its script ──▶ is it known on this connection? ──▶ sent as it came
                                                                                   └─ no: SCRIPT LOAD, then EVALSHA

Rules: what a node knows is kept for each connection, a bit a script, so that it is lost with the connection, and a text
sent on one is never counted on by another that may be faster. The SCRIPT LOAD is part of the request that it goes before:
one entry, whose first reply is thrown away, so that both are sent again, or neither. A node that answers NOSCRIPT to what
it should know has forgotten all. The store is bounded in bytes: what SCRIPT LOAD brought outlives what EVAL did, and of
each the least lately used goes first. That EVAL has run a script somewhere is not counted on: newer nodes forget these.
"""

from hashlib import sha1

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcpy, memset

from shardproxy.core.buffers cimport Buf, buf_append, buf_head, counted_alloc, counted_free
from shardproxy.core.commands cimport ANY_CALL, FLAG_CONTAINER, FLAG_SHA, FLAG_TEXT, Row
from shardproxy.core.hashing cimport xxh64
from shardproxy.core.resp cimport REQ_OK, Progress, Request, parse_request
from shardproxy.core.script_store cimport (
    DIGEST, Script, Scripts, cost_of, script_by_digest, script_by_text, script_drop, script_loaded, script_oldest, script_put,
    script_text, script_touch, unhex,
)
from shardproxy.dataplane.counters cimport SCRIPT_BYTES, SCRIPTS_SENT
from shardproxy.dataplane.engine cimport Client, Engine, Entry, Node, Upstream
from shardproxy.dataplane.sending cimport NO_KEY, node_of

cdef enum:
    TAUGHT_MOST = 1 << 20       # bytes that wait to be told to the other workers


# --- what is kept ---

cdef void forget(Engine e, Script *script) noexcept:
    """Its number will be another's."""
    cdef uint32_t i, number = script.number
    for i in range(e.upstream_count):
        if e.upstreams[i] != NULL and number < e.upstreams[i].known_room * 8:
            e.upstreams[i].known[number >> 3] &= ~(1 << (number & 7))
    script_drop(e.script_store, script)


cdef Script *learn_text(Engine e, const char *p, size_t n, bint loaded, bint share) noexcept:
    cdef Scripts *s = e.script_store
    cdef Script *script = script_by_text(s, p, n, xxh64(p, n))
    cdef bytes text, digest
    if script != NULL:
        if loaded and not script.loaded:
            script_loaded(s, script)
        script_touch(s, script)
        return script
    if cost_of(n) > s.limit:
        return NULL
    text = p[:n]
    digest = sha1(text).digest()
    if share and e.taught is not None and e.taught_bytes + n <= TAUGHT_MOST:
        e.taught.append(text)
        e.taught_bytes += n
    while s.bytes + cost_of(n) > s.limit:
        forget(e, script_oldest(s))
    script = script_put(s, digest, p, n, loaded)
    e.count[<int>SCRIPT_BYTES] = s.bytes
    return script


# --- which script? ---

cdef Script *script_find(Engine e, const char *hex, size_t n) noexcept:
    cdef unsigned char digest[DIGEST]
    return script_by_digest(e.script_store, digest) if unhex(hex, n, digest) else NULL


cdef Script *script_of(Engine e, const Request *r, const Row *row) noexcept:
    cdef Script *script
    if r.argc < 2:
        return NULL
    if row.flags & FLAG_TEXT:
        learn_text(e, r.argv[1], r.argl[1], False, True)
        return NULL
    if not row.flags & FLAG_SHA:
        return NULL
    script = script_find(e, r.argv[1], r.argl[1])
    if script != NULL:
        script_touch(e.script_store, script)
    return script


cdef int node_of_script(Engine e, const Request *r, const Row *row) noexcept:
    cdef unsigned char digest[DIGEST]
    cdef Script *script
    cdef bytes name
    if r.argc < 2:
        return NO_KEY
    if row.flags & FLAG_TEXT:
        script = learn_text(e, r.argv[1], r.argl[1], False, True)
        name = script.digest[:DIGEST] if script != NULL else sha1(r.argv[1][:r.argl[1]]).digest()
    elif row.flags & FLAG_SHA and unhex(r.argv[1], r.argl[1], digest):
        name = digest[:DIGEST]
    else:
        return node_of(e, r.argv[1], r.argl[1])
    name = name.hex().encode()
    return node_of(e, name, len(name))


# --- before what calls it ---

cdef inline bint knows(const Upstream *u, uint32_t number) noexcept nogil:
    return number < u.known_room * 8 and u.known[number >> 3] >> (number & 7) & 1


cdef void note(Upstream *u, uint32_t number) noexcept:
    """This connection's node will know it before it reads anything that comes now."""
    cdef uint32_t room = (number | 255) // 8 + 1
    cdef uint8_t *more
    if room > u.known_room:
        more = <uint8_t *>counted_alloc(room)
        if more == NULL:
            return              # it is told again
        memset(more, 0, room)
        if u.known_room:
            memcpy(more, u.known, u.known_room)
            counted_free(u.known, u.known_room)
        u.known = more
        u.known_room = room
    u.known[number >> 3] |= 1 << (number & 7)


cdef void unlearn(Upstream *u) noexcept nogil:
    if u.known_room:
        counted_free(u.known, u.known_room)
        u.known = NULL
        u.known_room = 0


cdef void unlearn_node(Node *node) noexcept nogil:
    cdef Upstream *u = node.first
    while u != NULL:
        unlearn(u)
        u = u.after


cdef size_t put_load(Script *script, Buf *out) noexcept nogil:
    """SCRIPT LOAD of it; 0: no memory."""
    cdef char head[64]
    cdef size_t n = snprintf(head, sizeof(head), "*3\r\n$6\r\nSCRIPT\r\n$4\r\nLOAD\r\n$%zu\r\n", script.size)
    cdef size_t before = out.len
    if buf_append(out, head, n) < 0 or buf_append(out, script_text(script), script.size) < 0 or \
            buf_append(out, "\r\n", 2) < 0:
        out.len = before
        return 0
    return out.len - before


cdef void precede(Engine e, Upstream *u, Script *script) noexcept:
    cdef Entry *entry = &u.fifo[(u.tail - 1) & u.mask]
    cdef size_t n
    entry.trusting = True
    if knows(u, script.number):
        return
    n = put_load(script, &u.out)
    if n == 0:
        return                  # NOSCRIPT is what it answers then
    u.given += n
    e.mark_upstream(u)
    entry.prefix += n
    entry.loads += 1
    entry.skip += 1
    note(u, script.number)
    e.count[<int>SCRIPTS_SENT] += 1


cdef const Row *next_row(Engine e, Request *r, const char **p, size_t *n) noexcept:
    """One after another of the commands p[0 .. n) of a transaction; NULL: no more."""
    cdef Progress progress
    cdef const Row *row
    cdef const Row *sub
    memset(&progress, 0, sizeof(progress))
    r.limits = e.request.limits
    if n[0] == 0 or parse_request(r, &progress, p[0], n[0]) != REQ_OK:
        return NULL
    p[0] += r.size
    n[0] -= r.size
    row = e.table.find(r.argv[0], r.argl[0])
    if row != NULL and row.flags & FLAG_CONTAINER and r.argc > 1:
        sub = e.table.find_sub(row, r.argv[1], r.argl[1])
        row = sub if sub != NULL else row
    return row


cdef void precede_run(Engine e, Upstream *u, Client *c) noexcept:
    cdef const char *p = buf_head(&c.tx)
    cdef size_t n = c.tx.len
    cdef const Row *row = next_row(e, &e.again, &p, &n)
    cdef Script *script
    while row != NULL:
        script = script_of(e, &e.again, row)
        if script != NULL:
            precede(e, u, script)
        row = next_row(e, &e.again, &p, &n)


cdef int node_of_run(Engine e, Client *c) noexcept:
    """Of a transaction without a key: its first script's."""
    cdef const char *p = buf_head(&c.tx)
    cdef size_t n = c.tx.len
    cdef const Row *row = next_row(e, &e.again, &p, &n)
    while row != NULL:
        if row.flags & ANY_CALL:
            return node_of_script(e, &e.again, row)
        row = next_row(e, &e.again, &p, &n)
    return NO_KEY


cdef size_t precede_again(Engine e, const char *p, size_t n, Buf *out) noexcept:
    cdef const char *end = p + n
    cdef Script *script
    cdef int line
    # *N, $n, name, $40: its second argument comes after four lines
    for line in range(4):
        p = <const char *>memchr(p, c'\n', end - p)
        if p == NULL:
            return 0
        p += 1
    if end - p < 2 * DIGEST:
        return 0
    script = script_find(e, p, 2 * DIGEST)
    return put_load(script, out) if script != NULL else 0


# --- for handlers and other workers ---

cdef bytes teach(Engine e, bytes text, bint loaded):
    learn_text(e, text, len(text), loaded, False)
    return sha1(text).hexdigest().encode()


cdef void forget_scripts(Engine e) noexcept:
    cdef uint32_t i
    cdef Scripts *s = e.script_store
    while s.count:
        script_drop(s, script_oldest(s))
    e.count[<int>SCRIPT_BYTES] = 0
    if e.taught is not None:
        e.taught.clear()
        e.taught_bytes = 0
    for i in range(e.upstream_count):
        if e.upstreams[i] != NULL:
            unlearn(e.upstreams[i])


cdef list all_scripts(Engine e):
    cdef list found = []
    cdef Script *script
    cdef int loaded
    for loaded in range(2):
        script = e.script_store.oldest[loaded]
        while script != NULL:
            found.append((script_text(script)[:script.size], bool(loaded)))
            script = script.newer
    return found
