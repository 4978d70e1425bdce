from libc.stdint cimport uint32_t, uint64_t

# One of twemproxy's key hashes (they take signed chars), or XXH64 cut to 32 bits is never used here.
ctypedef uint32_t (*KeyHash)(const char *key, size_t n) noexcept nogil

cdef uint64_t xxh64(const char *data, size_t n) noexcept nogil
# NULL when there is no such hash
cdef KeyHash key_hash(str name) except? NULL
