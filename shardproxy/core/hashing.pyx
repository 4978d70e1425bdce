"""The hashes that place keys: XXH64 for our own ring, and every key hash of twemproxy.

Owns: bytes -> number, and which part of a key is hashed (`hash_tag`, in the .pxd). Must never know of
rings or shards. The functions the data plane calls touch no Python object and cannot fail.

twemproxy's hashes are reproduced with their habits, since a key must land where twemproxy put it: some add
bytes as *signed* chars (as on x86), the two "64-bit" FNVs keep only the low half, crc32 only 15 bits.

Sources: XXH64, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md; MD5, RFC 1321; FNV,
http://www.isthe.com/chongo/tech/comp/fnv/; one_at_a_time and jenkins (lookup3),
https://burtleburtle.net/bob/hash/doobs.html; hsieh (SuperFastHash),
http://www.azillionmonkeys.com/qed/hash.html; murmur (MurmurHash2), https://github.com/aappleby/smhasher.
"""

from libc.math cimport fabs, floor, sin
from libc.stdint cimport int8_t, uint8_t, uint16_t
from libc.string cimport memcpy, memset


cdef inline uint32_t word16(const uint8_t *p) noexcept nogil:
    return p[0] | (<uint32_t>p[1] << 8)


cdef inline uint32_t word32(const uint8_t *p) noexcept nogil:
    # Little-endian on any machine; compilers make one load of it
    return word16(p) | (word16(p + 2) << 16)


cdef inline uint64_t word64(const uint8_t *p) noexcept nogil:
    return word32(p) | (<uint64_t>word32(p + 4) << 32)


cdef inline uint32_t signed8(uint8_t byte) noexcept nogil:
    return <uint32_t><int8_t>byte


cdef inline uint32_t rotl32(uint32_t x, int bits) noexcept nogil:
    return (x << bits) | (x >> (32 - bits))


# ------------------------------------------------------------------------------------------------ XXH64

cdef extern from *:
    """
    #define P1 0x9E3779B185EBCA87ULL
    #define P2 0xC2B2AE3D27D4EB4FULL
    #define P3 0x165667B19E3779F9ULL
    #define P4 0x85EBCA77C2B2AE63ULL
    #define P5 0x27D4EB2F165667C5ULL
    """
    const uint64_t P1, P2, P3, P4, P5


cdef inline uint64_t rotl(uint64_t x, int bits) noexcept nogil:
    return (x << bits) | (x >> (64 - bits))


cdef inline uint64_t lane(uint64_t acc, uint64_t value) noexcept nogil:
    return rotl(acc + value * P2, 31) * P1


cdef inline uint64_t fold(uint64_t h, uint64_t acc) noexcept nogil:
    return (h ^ lane(0, acc)) * P1 + P4


cdef uint64_t xxh64(const char *data, size_t n) noexcept nogil:
    cdef const uint8_t *p = <const uint8_t *>data
    cdef const uint8_t *end = p + n
    cdef uint64_t h = P5
    cdef uint64_t a = P1 + P2, b = P2, c = 0, d = 0 - P1
    if n >= 32:
        while end - p >= 32:
            a = lane(a, word64(p))
            b = lane(b, word64(p + 8))
            c = lane(c, word64(p + 16))
            d = lane(d, word64(p + 24))
            p += 32
        h = rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18)
        h = fold(fold(fold(fold(h, a), b), c), d)
    h += n
    while end - p >= 8:
        h = rotl(h ^ lane(0, word64(p)), 27) * P1 + P4
        p += 8
    if end - p >= 4:
        h = rotl(h ^ (word32(p) * P1), 23) * P2 + P3
        p += 4
    while p < end:
        h = rotl(h ^ (p[0] * P5), 11) * P1
        p += 1
    h = (h ^ (h >> 33)) * P2
    h = (h ^ (h >> 29)) * P3
    return h ^ (h >> 32)


cdef KeyHash key_hash(str name) except? NULL:
    raise ValueError(f"unknown hash {name!r}")


KEY_HASHES = ("xxh64",)


def hash_key(str name, bytes data):
    if name == "xxh64":
        return xxh64(data, len(data))
    return key_hash(name)(data, len(data))


def _xxh64(bytes data):
    return xxh64(data, len(data))

globals()["xxh64"] = _xxh64  # Cython does not let one scope have a def and a cdef of the same name
