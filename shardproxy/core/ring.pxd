cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from shardproxy.core.hashing cimport KeyHash

cdef struct Point:
    uint64_t at
    uint32_t rank       # orders equal points
    uint16_t owner

@cython.final
cdef class Ring:
    """Immutable. Shards are numbered in the order of `names`."""
    cdef readonly tuple names
    cdef readonly tuple weights
    cdef readonly str distribution
    cdef readonly int virtual_nodes
    cdef readonly str hash
    cdef readonly str hash_tag
    cdef readonly str fingerprint
    cdef KeyHash hasher             # NULL: XXH64 (of a ring), or ch3
    cdef int opening, closing       # of a hash tag; opening < 0: no tags
    cdef int shards
    cdef bint listed                # modula and ch3: a key's hash is the number of an entry
    # Sorted points and, beside them, whose they are. A 32-bit point stands in the upper half, so that one
    # search serves ring and ketama; the points of modula and ch3 are their entries, 0 .. size-1.
    cdef uint32_t size
    cdef uint64_t *at
    cdef uint16_t *owner
    # The first point at or after h lies between index[h >> shift] and index[(h >> shift) + 1]
    cdef uint32_t *index
    cdef int shift

    # The shard that owns a key, hash tag applied: 0 .. len(names)-1.
    cdef int shard_of(self, const char *key, size_t n) noexcept nogil
    # The same past shards whose byte is set in `out` (one byte a shard; NULL: none are); -1 when all are out.
    cdef int stand_in(self, const char *key, size_t n, const unsigned char *out) noexcept nogil

    cdef uint64_t place(self, const char *key, size_t n) noexcept nogil
    cdef uint32_t point_of(self, uint64_t place) noexcept nogil
    cdef int lay_out(self, Point *points) except -1
