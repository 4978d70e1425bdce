"""The texts of scripts by their SHA1 and by themselves: bounded in bytes; those that go first are known.

Pure memory: who has been told of which is not known here. A script's number is small and its own for as long as it is
kept, and another's afterwards. What SCRIPT LOAD brought outlives what EVAL did; of each the least lately used goes first.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memset

from shardproxy.core.buffers cimport counted_alloc, counted_free
from shardproxy.core.hashing cimport xxh64

cdef enum:
    A_CHAIN = 1024              # bytes of the limit for each chain
    CHAINS_LEAST = 64
    CHAINS_MOST = 1 << 17


# --- the store ---

cdef Scripts *scripts_new(size_t limit) noexcept:
    cdef Scripts *s = <Scripts *>counted_alloc(sizeof(Scripts))
    cdef uint32_t chains = CHAINS_LEAST
    if s == NULL:
        return NULL
    memset(s, 0, sizeof(Scripts))
    while chains < CHAINS_MOST and chains < limit // A_CHAIN:
        chains *= 2
    s.mask = chains - 1
    s.limit = limit
    s.digests = <Script **>counted_alloc(chains * sizeof(Script *))
    s.texts = <Script **>counted_alloc(chains * sizeof(Script *))
    if s.digests == NULL or s.texts == NULL:
        scripts_free(s)
        return NULL
    memset(s.digests, 0, chains * sizeof(Script *))
    memset(s.texts, 0, chains * sizeof(Script *))
    return s


cdef void scripts_free(Scripts *s) noexcept:
    cdef size_t chains = (s.mask + 1) * sizeof(Script *)
    while s.count:
        script_drop(s, script_oldest(s))
    if s.digests != NULL:
        counted_free(s.digests, chains)
    if s.texts != NULL:
        counted_free(s.texts, chains)
    free(s.spare)
    counted_free(s, sizeof(Scripts))


cdef inline size_t cost(const Script *script) noexcept nogil:
    return sizeof(Script) + script.size


cdef inline Script **by_digest(Scripts *s, const unsigned char *digest) noexcept nogil:
    cdef uint64_t some
    memcpy(&some, digest, 8)
    return &s.digests[some & s.mask]


cdef Script *script_by_text(Scripts *s, const char *p, size_t n, uint64_t hash) noexcept nogil:
    cdef Script *script = s.texts[hash & s.mask]
    while script != NULL and (script.hash != hash or script.size != n or memcmp(script_text(script), p, n)):
        script = script.next_text
    return script


cdef Script *script_by_digest(Scripts *s, const unsigned char *digest) noexcept nogil:
    cdef Script *script = by_digest(s, digest)[0]
    while script != NULL and memcmp(script.digest, digest, DIGEST):
        script = script.next_digest
    return script


cdef void take_out(Scripts *s, Script *script) noexcept nogil:
    """Of the order of use."""
    if script.newer != NULL:
        script.newer.older = script.older
    else:
        s.newest[script.loaded] = script.older
    if script.older != NULL:
        script.older.newer = script.newer
    else:
        s.oldest[script.loaded] = script.newer


cdef void put_first(Scripts *s, Script *script) noexcept nogil:
    script.newer = NULL
    script.older = s.newest[script.loaded]
    if script.older != NULL:
        script.older.newer = script
    else:
        s.oldest[script.loaded] = script
    s.newest[script.loaded] = script


cdef void script_touch(Scripts *s, Script *script) noexcept nogil:
    if s.newest[script.loaded] != script:
        take_out(s, script)
        put_first(s, script)


cdef void script_drop(Scripts *s, Script *script) noexcept:
    cdef Script **at = by_digest(s, script.digest)
    while at[0] != script:
        at = &at[0].next_digest
    at[0] = script.next_digest
    at = &s.texts[script.hash & s.mask]
    while at[0] != script:
        at = &at[0].next_text
    at[0] = script.next_text
    take_out(s, script)
    s.count -= 1
    s.bytes -= cost(script)
    s.spare[s.spare_count] = script.number
    s.spare_count += 1
    counted_free(script, cost(script))


cdef Script *script_oldest(Scripts *s) noexcept nogil:
    return s.oldest[0] if s.oldest[0] != NULL else s.oldest[1]


cdef void script_loaded(Scripts *s, Script *script) noexcept nogil:
    take_out(s, script)
    script.loaded = True
    put_first(s, script)


cdef Script *script_put(Scripts *s, const unsigned char *digest, const char *p, size_t n, bint loaded) noexcept:
    cdef Script *script
    cdef Script **at
    cdef void *more
    if s.numbers == s.spare_room:
        # room to give every number back, so that a drop cannot fail
        more = realloc(s.spare, (2 * s.spare_room + 64) * sizeof(uint32_t))
        if more == NULL:
            return NULL
        s.spare = <uint32_t *>more
        s.spare_room = 2 * s.spare_room + 64
    script = <Script *>counted_alloc(sizeof(Script) + n)
    if script == NULL:
        return NULL
    memcpy(script.digest, digest, DIGEST)
    memcpy(script_text(script), p, n)
    script.size = n
    script.hash = xxh64(p, n)
    script.loaded = loaded
    if s.spare_count:
        s.spare_count -= 1
        script.number = s.spare[s.spare_count]
    else:
        script.number = s.numbers
        s.numbers += 1
    at = by_digest(s, digest)
    script.next_digest = at[0]
    at[0] = script
    at = &s.texts[script.hash & s.mask]
    script.next_text = at[0]
    at[0] = script
    put_first(s, script)
    s.count += 1
    s.bytes += cost(script)
    return script


cdef bint unhex(const char *p, size_t n, unsigned char *digest) noexcept nogil:
    """False: it is no SHA1. Upper case is as good, as it is to Redis."""
    cdef size_t i
    cdef unsigned char c, v
    if n != 2 * DIGEST:
        return False
    for i in range(n):
        c = p[i]
        if c'0' <= c <= c'9':
            v = c - c'0'
        elif c'a' <= (c | 32) <= c'f':
            v = (c | 32) - c'a' + 10
        else:
            return False
        digest[i >> 1] = v << 4 if i & 1 == 0 else digest[i >> 1] | v
    return True
