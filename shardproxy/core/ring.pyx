"""Which shard a key belongs to: our own ring, and ketama and modula as twemproxy has them.

Owns: the points, and the walk from a key to a shard. Must never know addresses, node states (they come in
as `out`) or commands. A Ring is immutable, and a lookup touches no Python object: it is a binary search in
a flat array, between bounds that the upper bits of the hash look up (one or two steps, whatever the size).

docs/placement.md says how a key finds its shard, for those who write it in another language.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort

from shardproxy.core.hashing cimport hash_tag as tagged
from shardproxy.core.hashing cimport key_hash, xxh64

DISTRIBUTIONS = ("ring", "ketama", "modula")
MAX_SHARDS = 0xFFFF  # `owner` is 16 bits
MAX_POINTS = 1 << 20  # 6553 shards of 160 points: some 14 MB


cdef int by_place(const void *a, const void *b) noexcept nogil:
    cdef const Point *p = <const Point *>a
    cdef const Point *q = <const Point *>b
    if p.at != q.at:
        return -1 if p.at < q.at else 1
    return -1 if p.rank < q.rank else p.rank > q.rank


cdef class Ring:
    def __cinit__(self):
        self.at = NULL
        self.owner = NULL
        self.index = NULL

    def __dealloc__(self):
        free(self.at)
        free(self.owner)
        free(self.index)

    def __init__(self, shards, distribution="ring", virtual_nodes=160, hash=None, hash_tag=None):
        self.names = tuple([name for name, _ in shards])
        self.weights = tuple([weight for _, weight in shards])
        self.distribution = distribution
        self.virtual_nodes = virtual_nodes
        self.hash = "xxh64"
        self.hash_tag = "{}" if hash_tag is None else hash_tag
        if len(self.names) < 1:
            raise ValueError("no shards")
        self.shards = len(self.names)
        self.modula = False
        self.hasher = NULL
        self.opening, self.closing = (ord(self.hash_tag[0]), ord(self.hash_tag[1])) if self.hash_tag else (-1, -1)
        self._build()

    def _build(self):
        cdef uint32_t size = sum(self.weights) * self.virtual_nodes
        cdef Point *points = <Point *>malloc(size * sizeof(Point))
        cdef uint32_t n = 0
        cdef int shard
        rank = {name: i for i, name in enumerate(sorted(self.names))}
        for shard, name in enumerate(self.names):
            for i in range(self.weights[shard] * self.virtual_nodes):
                label = f"{name}-{i}".encode()
                points[n] = Point(xxh64(label, len(label)), rank[name], shard)
                n += 1
        self.lay_out(points, size)
        free(points)
        self.fingerprint = f"{0:016x}"

    cdef int lay_out(self, Point *points, uint32_t size) except -1:
        # Sorts the points and takes them over into the arrays that lookups use
        cdef int bits = max(1, int(size).bit_length())
        cdef uint32_t i, slot
        qsort(points, size, sizeof(Point), by_place)
        self.size = size
        self.shift = 64 - bits
        self.at = <uint64_t *>malloc(size * sizeof(uint64_t))
        self.owner = <uint16_t *>malloc(size * sizeof(uint16_t))
        self.index = <uint32_t *>malloc(((1 << bits) + 1) * sizeof(uint32_t))
        if self.at == NULL or self.owner == NULL or self.index == NULL:
            raise MemoryError
        for i in range(size):
            self.at[i] = points[i].at
            self.owner[i] = points[i].owner
        i = 0
        for slot in range((1 << bits) + 1):
            while i < size and (self.at[i] >> self.shift) < slot:
                i += 1
            self.index[slot] = i

    cdef uint64_t place(self, const char *key, size_t n) noexcept nogil:
        if self.opening >= 0:
            key = tagged(key, &n, self.opening, self.closing)
        if self.hasher == NULL:
            return xxh64(key, n)
        return <uint64_t>self.hasher(key, n) << 32

    cdef uint32_t point_at(self, uint64_t place) noexcept nogil:
        cdef uint32_t slot, low, high, middle
        if self.modula:
            return (place >> 32) % self.size
        slot = place >> self.shift
        low, high = self.index[slot], self.index[slot + 1]
        while low < high:
            middle = (low + high) >> 1
            if self.at[middle] < place:
                low = middle + 1
            else:
                high = middle
        return low if low < self.size else 0

    cdef int shard_of(self, const char *key, size_t n) noexcept nogil:
        if self.shards == 1:
            return 0
        return self.owner[self.point_at(self.place(key, n))]

    cdef int stand_in(self, const char *key, size_t n, const unsigned char *out) noexcept nogil:
        cdef uint32_t start, i
        cdef int shard = 0
        if out == NULL:
            return self.shard_of(key, n)
        start = self.point_at(self.place(key, n))
        for i in range(start, self.size):
            if not out[self.owner[i]]:
                return self.owner[i]
        for i in range(start):
            if not out[self.owner[i]]:
                return self.owner[i]
        return -1

    def locate(self, bytes key, out=()):
        cdef bytearray flags
        if not out:
            return self.shard_of(key, len(key))
        flags = bytearray(self.shards)
        for shard in out:
            flags[shard] = 1
        found = self.stand_in(key, len(key), flags)
        return None if found < 0 else found

    def hash_of(self, bytes key):
        return self.place(key, len(key))

    def points(self):
        return [(self.at[i], self.owner[i]) for i in range(self.size)]
