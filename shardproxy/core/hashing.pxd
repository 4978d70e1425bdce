from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memchr

# One of twemproxy's key hashes (they take signed chars); XXH64 cut to 32 bits is never used here.
ctypedef uint32_t (*KeyHash)(const char *key, size_t n) noexcept nogil

cdef uint64_t xxh64(const char *data, size_t n) noexcept nogil
# The four little-endian words of a digest
cdef void md5(const char *data, size_t n, uint32_t *digest) noexcept nogil
# mcrouter's Ch3: the number of the bucket, of 0 .. buckets-1 (at most 2^23), that a key is in
cdef uint32_t ch3(const char *key, size_t n, uint32_t buckets) noexcept nogil
# Raises ValueError when twemproxy has no hash of that name
cdef KeyHash key_hash(str name) except? NULL


cdef inline const char *hash_tag(const char *key, size_t *n, int opening, int closing) noexcept nogil:
    """The part of a key that is hashed; `n` goes in as the key's length and comes out as that part's.

    Redis Cluster's rule and twemproxy's are the same one: from the first `opening` to the first `closing`
    after it; the whole key when either is missing or nothing stands between them.
    """
    cdef const char *start = <const char *>memchr(key, opening, n[0])
    cdef const char *stop
    if start == NULL:
        return key
    start += 1
    stop = <const char *>memchr(start, closing, n[0] - (start - key))
    if stop == NULL or stop == start:
        return key
    n[0] = stop - start
    return start
