"""The last values read, kept for `stale_while_down`: what a read answers while its shard is down and nothing else can.

    a reply to a read ──▶ stale_put        a write, to anywhere ──▶ stale_drop of its keys
    a read, its shard down ──▶ stale_get

Rules: only reads of one key whose reply is all that matters (GET's class: KINDS), and the whole request is what is
looked up, so that no argument is ever ignored. Any write to the key that is seen here drops all that is kept of it,
whichever command asked. A read that may have overtaken a write is not kept: requests travel on several connections,
so a reply may be older than a write that was answered before it; a write that is answered at all has run `settle`
after it came, and what was read sooner does not count. Bounded in bytes, the oldest go first. Workers of
one proxy share the times of writes, by hash: what was asked for before such a time, and as long after it as a write may be on
its way, is not served, whoever wrote and whichever key of that hash. What another proxy writes is not seen; max_age is
all that bounds it. One thread.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset, strlen

from shardproxy.core.buffers cimport counted_alloc, counted_free
from shardproxy.core.hashing cimport xxh64

cdef enum:
    FRAME_MOST = 65536          # larger ones pass through in pieces and are never whole here
    QUESTION_MOST = 65536
    A_BUCKET = 512              # bytes of the limit for each place of the tables
    BUCKETS_LEAST = 64
    BUCKETS_MOST = 1 << 20
    PER_PUT = 8                 # old ones that are freed on the way
    PER_CRON = 4096
    KIND_COUNT = 17
    NAME_MOST = 9

cdef const char **KINDS = [
    "get", "getrange", "strlen",
    "hget", "hmget", "hgetall", "hlen", "hexists",
    "lrange", "lindex", "llen",
    "smembers", "sismember", "scard",
    "zscore", "zrange", "zcard",
]

# A request as the store sees it
cdef struct Question:
    const char *p               # all arguments but the name, as RESP
    size_t n
    const char *key
    size_t key_size
    uint8_t kind


# --- reading requests ---

cdef int64_t header(const char *p, size_t n, size_t *at, char mark) noexcept nogil:
    """The number of "$12\r\n" at p[at], and at past it; -1: that is not what stands there."""
    cdef size_t i = at[0]
    cdef int64_t value = 0
    if i >= n or p[i] != mark:
        return -1
    i += 1
    while i < n and c'0' <= p[i] <= c'9' and value < <int64_t>1 << 40:
        value = value * 10 + (p[i] - c'0')
        i += 1
    if i == at[0] + 1 or i + 2 > n or p[i] != c'\r' or p[i + 1] != c'\n':
        return -1
    at[0] = i + 2
    return value


cdef bint understand(Question *q, const char *p, size_t n) noexcept nogil:
    """False: not a request of GET's class."""
    cdef size_t at = 0
    cdef int64_t size
    cdef char name[NAME_MOST]
    cdef int i
    if header(p, n, &at, c'*') < 2:
        return False
    size = header(p, n, &at, c'$')
    if size < 3 or size > NAME_MOST or at + size + 2 > n:
        return False
    for i in range(size):
        name[i] = p[at + i] | 0x20 if c'A' <= p[at + i] <= c'Z' else p[at + i]
    at += size + 2
    q.p = p + at
    q.n = n - at
    name_kind(q, name, <size_t>size)
    if q.kind == KIND_COUNT or q.n > QUESTION_MOST:
        return False
    size = header(p, n, &at, c'$')
    if size < 0 or at + size > n:
        return False
    q.key = p + at
    q.key_size = size
    return True


cdef inline void name_kind(Question *q, const char *name, size_t n) noexcept nogil:
    q.kind = 0
    while q.kind < KIND_COUNT and (strlen(KINDS[q.kind]) != n or memcmp(KINDS[q.kind], name, n) != 0):
        q.kind += 1


cdef inline uint64_t hash_of(const Stale *s, const Question *q) noexcept nogil:
    return (xxh64(q.p, q.n) + q.kind * <uint64_t>0x9E3779B97F4A7C15) & s.cut


# --- the tables ---

cdef Stale *stale_new(size_t limit, uint64_t max_age, uint64_t settle, uint64_t *stamps) noexcept nogil:
    cdef Stale *s = <Stale *>counted_alloc(sizeof(Stale))
    cdef size_t size = BUCKETS_LEAST
    if s == NULL:
        return NULL
    while size < BUCKETS_MOST and 2 * size * A_BUCKET <= limit:
        size *= 2
    memset(s, 0, sizeof(Stale))
    s.mask = <uint32_t>(size - 1)
    s.cut = ~<uint64_t>0
    s.limit = limit
    s.max_age = max_age
    s.settle = settle
    s.asked = <Kept **>counted_alloc(size * sizeof(Kept *))
    s.keys = <Kept **>counted_alloc(size * sizeof(Kept *))
    s.shared = stamps != NULL
    s.written = stamps if s.shared else <uint64_t *>calloc(WORDS, sizeof(uint64_t))
    s.bytes = s.tables = sizeof(Stale) + size * 2 * sizeof(Kept *)
    if s.asked == NULL or s.keys == NULL or s.written == NULL:
        stale_free(s)
        return NULL
    memset(s.asked, 0, size * sizeof(Kept *))
    memset(s.keys, 0, size * sizeof(Kept *))
    return s


cdef void stale_free(Stale *s) noexcept nogil:
    cdef size_t size = <size_t>s.mask + 1
    while s.oldest != NULL:
        forget(s, s.oldest)
    counted_free(s.asked, size * sizeof(Kept *))
    counted_free(s.keys, size * sizeof(Kept *))
    if not s.shared:
        free(s.written)
    counted_free(s, sizeof(Stale))


cdef Kept *find(Stale *s, const Question *q, uint64_t hashed, uint8_t proto) noexcept nogil:
    cdef Kept *k = s.asked[hashed & s.mask]
    while k != NULL:
        if (k.asked == hashed and k.kind == q.kind and k.proto == proto and k.question == q.n
                and memcmp(<char *>(k + 1), q.p, q.n) == 0):
            return k
        k = k.next_asked
    return NULL


cdef void link(Stale *s, Kept *k) noexcept nogil:
    """Into both chains; k.asked and k.key say which."""
    cdef Kept **slot = &s.asked[k.asked & s.mask]
    k.next_asked = slot[0]
    if k.next_asked != NULL:
        k.next_asked.slot_asked = &k.next_asked
    slot[0] = k
    k.slot_asked = slot
    slot = &s.keys[k.key & s.mask]
    k.next_key = slot[0]
    if k.next_key != NULL:
        k.next_key.slot_key = &k.next_key
    slot[0] = k
    k.slot_key = slot


cdef void age_first(Stale *s, Kept *k) noexcept nogil:
    k.older = s.newest
    k.newer = NULL
    if s.newest != NULL:
        s.newest.newer = k
    else:
        s.oldest = k
    s.newest = k


cdef void age_out(Stale *s, Kept *k) noexcept nogil:
    if k.newer != NULL:
        k.newer.older = k.older
    else:
        s.newest = k.older
    if k.older != NULL:
        k.older.newer = k.newer
    else:
        s.oldest = k.newer


cdef void forget(Stale *s, Kept *k) noexcept nogil:
    k.slot_asked[0] = k.next_asked
    if k.next_asked != NULL:
        k.next_asked.slot_asked = k.slot_asked
    k.slot_key[0] = k.next_key
    if k.next_key != NULL:
        k.next_key.slot_key = k.slot_key
    age_out(s, k)
    s.count -= 1
    s.bytes -= k.room
    counted_free(k, k.room)


# --- when what was written ---

cdef inline bint settled(const Stale *s, uint64_t key, uint64_t sent) noexcept nogil:
    """What was asked for then has seen all writes to such a key that have come by now."""
    cdef uint64_t written = s.written[key & (STAMPS - 1)]
    if s.written[STAMPS] > written:
        written = s.written[STAMPS]
    return written == 0 or sent > written + s.settle


cdef inline void stamp(uint64_t *word, uint64_t now) noexcept nogil:
    # another worker's tick may have begun later
    if word[0] < now:
        word[0] = now


# --- what the engine calls ---

cdef void stale_put(Stale *s, const char *request, size_t n, uint8_t proto, const char *frame, size_t m, uint64_t sent,
                    uint64_t now) noexcept nogil:
    cdef Question q
    cdef Kept *k
    cdef uint64_t hashed, key
    cdef size_t need
    cdef bint bad
    cdef int i
    if not understand(&q, request, n):
        return
    if frame != NULL and m and (frame[0] == c'-' or frame[0] == c'!') and (
            m < 10 or memcmp(frame, "-WRONGTYPE", 10) != 0):
        return                  # LOADING and the like: says nothing of the value
    key = xxh64(q.key, q.key_size) & s.cut
    hashed = hash_of(s, &q)
    k = find(s, &q, hashed, proto)
    need = sizeof(Kept) + q.n + m
    # what cannot be kept still takes the place of what was: nobody may be shown an older value than he has seen
    bad = (not settled(s, key, sent) or m == 0 or m > FRAME_MOST or frame[0] == c'-' or s.tables + need > s.limit)
    if k != NULL and (bad or need > k.room or need < k.room // 2):
        forget(s, k)
        k = NULL
    if bad:
        return
    for i in range(PER_PUT):
        if s.oldest == NULL or s.oldest == k or s.oldest.at + s.max_age >= now:
            break
        forget(s, s.oldest)
    if k == NULL:
        while s.oldest != NULL and s.bytes + need > s.limit:
            forget(s, s.oldest)
        k = <Kept *>counted_alloc(need) if s.bytes + need <= s.limit else NULL
        if k == NULL:
            return
        k.asked = hashed
        k.key = key
        k.kind = q.kind
        k.proto = proto
        k.question = <uint32_t>q.n
        k.room = <uint32_t>need
        memcpy(<char *>(k + 1), q.p, q.n)
        link(s, k)
        s.count += 1
        s.bytes += need
    else:
        age_out(s, k)
    age_first(s, k)
    k.at = now
    k.sent = sent
    k.frame = <uint32_t>m
    memcpy(<char *>(k + 1) + q.n, frame, m)


cdef const char *stale_get(Stale *s, const char *request, size_t n, uint8_t proto, uint64_t now,
                           size_t *m) noexcept nogil:
    cdef Question q
    cdef Kept *k
    if s.count == 0 or not understand(&q, request, n):
        return NULL
    k = find(s, &q, hash_of(s, &q), proto)
    if k == NULL or k.at + s.max_age < now or s.shared and not settled(s, k.key, k.sent):
        return NULL
    m[0] = k.frame
    return <char *>(k + 1) + k.question


cdef void stale_drop(Stale *s, const char *key, size_t n, uint64_t now) noexcept nogil:
    cdef uint64_t hashed = xxh64(key, n) & s.cut
    cdef Kept *k = s.keys[hashed & s.mask]
    cdef Kept *following
    stamp(&s.written[hashed & (STAMPS - 1)], now)
    while k != NULL:
        following = k.next_key
        if k.key == hashed:
            forget(s, k)
        k = following


cdef void stale_clear(Stale *s, uint64_t now) noexcept nogil:
    while s.oldest != NULL:
        forget(s, s.oldest)
    stamp(&s.written[STAMPS], now)


cdef void stale_expire(Stale *s, uint64_t now) noexcept nogil:
    cdef int i
    for i in range(PER_CRON):
        if s.oldest == NULL or s.oldest.at + s.max_age >= now:
            return
        forget(s, s.oldest)


cdef void stale_shrink(Stale *s, size_t bytes) noexcept nogil:
    cdef size_t goal = s.bytes - bytes if bytes < s.bytes else 0
    while s.oldest != NULL and s.bytes > goal:
        forget(s, s.oldest)


# --- for tests ---

cdef class StaleStore:
    """A store for tests; hash_bits: fewer make collisions."""
    cdef Stale *s
    cdef uint64_t[::1] stamps

    def __cinit__(self, size_t limit, uint64_t max_age, uint64_t settle=0, int hash_bits=64, stamps=None):
        if stamps is not None:
            self.stamps = memoryview(stamps).cast("B").cast("Q")
        self.s = stale_new(limit, max_age, settle, &self.stamps[0] if stamps is not None else NULL)
        if self.s == NULL:
            raise MemoryError
        if hash_bits < 64:
            self.s.cut = (<uint64_t>1 << hash_bits) - 1

    def __dealloc__(self):
        if self.s != NULL:
            stale_free(self.s)

    def put(self, bytes request, uint8_t proto, bytes frame, uint64_t sent, uint64_t now):
        stale_put(self.s, request, len(request), proto, frame, len(frame), sent, now)

    def get(self, bytes request, uint8_t proto, uint64_t now):
        cdef size_t m = 0
        cdef const char *found = stale_get(self.s, request, len(request), proto, now, &m)
        return None if found == NULL else found[:m]

    def drop(self, bytes key, uint64_t now):
        stale_drop(self.s, key, len(key), now)

    def clear(self, uint64_t now):
        stale_clear(self.s, now)

    def expire(self, uint64_t now):
        stale_expire(self.s, now)

    def shrink(self, size_t n):
        stale_shrink(self.s, n)

    @property
    def size(self):
        return self.s.bytes

    def __len__(self):
        return self.s.count


STAMP_BYTES = WORDS * sizeof(uint64_t)


def kinds():
    return tuple(KINDS[i].decode() for i in range(KIND_COUNT))
