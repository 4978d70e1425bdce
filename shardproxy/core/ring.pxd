from libc.stdint cimport uint16_t, uint32_t, uint64_t
from shardproxy.core.hashing cimport KeyHash

cdef class Ring:
    """Immutable. Shards are numbered in the order of `names`."""
    cdef readonly tuple names
    cdef readonly tuple weights
    cdef readonly str distribution
    cdef readonly str fingerprint
    # The shard that owns a key, hash tag applied: 0 .. len(names)-1.
    cdef int shard_of(self, const char *key, size_t n) noexcept nogil
    # The same past shards whose bit is set in `out` (bytes, one a shard; NULL: none); -1 when all are out.
    cdef int stand_in(self, const char *key, size_t n, const unsigned char *out) noexcept nogil
