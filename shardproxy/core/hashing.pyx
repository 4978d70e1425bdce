"""The hashes that place keys: XXH64 for our own ring, every key hash of twemproxy, and mcrouter's Ch3.

Owns: bytes -> number, and which part of a key is hashed (`hash_tag`, in the .pxd). Must never know of
rings or shards. The functions the data plane calls touch no Python object and cannot fail.

twemproxy's hashes are reproduced with their habits, since a key must land where twemproxy put it: some add
bytes as *signed* chars (as on x86), the "64-bit" FNVs keep only the low half, crc32 15 bits, crc16 all 32.

Sources: XXH64, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md; MD5, RFC 1321; FNV,
http://www.isthe.com/chongo/tech/comp/fnv/; one_at_a_time and jenkins (lookup3),
https://burtleburtle.net/bob/hash/doobs.html; hsieh (SuperFastHash),
http://www.azillionmonkeys.com/qed/hash.html; murmur (MurmurHash2, MurmurHash64A),
https://github.com/aappleby/smhasher; Ch3 (furc_hash), https://github.com/facebook/mcrouter.
"""

from libc.math cimport fabs, floor, sin
from libc.stdint cimport int8_t, uint8_t
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


# ------------------------------------------------------------------------------- twemproxy's key hashes

cdef uint32_t one_at_a_time(const char *key, size_t n) noexcept nogil:
    cdef const uint8_t *p = <const uint8_t *>key
    cdef uint32_t h = 0
    cdef size_t i
    for i in range(n):
        h += signed8(p[i])
        h += h << 10
        h ^= h >> 6
    h += h << 3
    h ^= h >> 11
    return h + (h << 15)


# The "64-bit" ones are cut to the low half, which no higher bit can reach: all four fit in 32 bits
cdef inline uint32_t fnv1(const char *key, size_t n, uint32_t h, uint32_t prime) noexcept nogil:
    cdef size_t i
    for i in range(n):
        h = (h * prime) ^ signed8(key[i])
    return h


cdef inline uint32_t fnv1a(const char *key, size_t n, uint32_t h, uint32_t prime) noexcept nogil:
    cdef size_t i
    for i in range(n):
        h = (h ^ signed8(key[i])) * prime
    return h


cdef uint32_t fnv1_32(const char *key, size_t n) noexcept nogil:
    return fnv1(key, n, 0x811C9DC5U, 0x01000193U)


cdef uint32_t fnv1a_32(const char *key, size_t n) noexcept nogil:
    return fnv1a(key, n, 0x811C9DC5U, 0x01000193U)


cdef uint32_t fnv1_64(const char *key, size_t n) noexcept nogil:
    return fnv1(key, n, 0x84222325U, 0x1B3U)


cdef uint32_t fnv1a_64(const char *key, size_t n) noexcept nogil:
    return fnv1a(key, n, 0x84222325U, 0x1B3U)


cdef uint32_t crc16_table[256]  # the XMODEM one, highest bit first
cdef uint32_t crc32_table[256]  # lowest bit first


cdef void fill_tables() noexcept:
    cdef uint32_t byte, high, low, bit
    for byte in range(256):
        high, low = byte << 8, byte
        for bit in range(8):
            high = (high << 1) ^ (0x1021 if high & 0x8000 else 0)
            low = (low >> 1) ^ (0xEDB88320U if low & 1 else 0)
        crc16_table[byte] = high & 0xFFFF
        crc32_table[byte] = low


cdef uint32_t crc16(const char *key, size_t n) noexcept nogil:
    # Never cut to 16 bits: the upper half holds what was shifted out
    cdef uint32_t h = 0
    cdef size_t i
    for i in range(n):
        h = (h << 8) ^ crc16_table[((h >> 8) ^ <uint8_t>key[i]) & 0xFF]
    return h


cdef uint32_t crc32a(const char *key, size_t n) noexcept nogil:
    cdef uint32_t h = 0xFFFFFFFFU
    cdef size_t i
    for i in range(n):
        h = (h >> 8) ^ crc32_table[(h ^ <uint8_t>key[i]) & 0xFF]
    return ~h


cdef uint32_t crc32(const char *key, size_t n) noexcept nogil:
    return (crc32a(key, n) >> 16) & 0x7FFF


cdef uint32_t hsieh(const char *key, size_t n) noexcept nogil:
    cdef const uint8_t *p = <const uint8_t *>key
    cdef uint32_t h = 0
    if n == 0:
        return 0
    while n >= 4:
        h += word16(p)
        h = (h << 16) ^ (word16(p + 2) << 11) ^ h
        h += h >> 11
        p += 4
        n -= 4
    if n == 3:
        h += word16(p)
        h ^= h << 16
        h ^= signed8(p[2]) << 18
        h += h >> 11
    elif n == 2:
        h += word16(p)
        h ^= h << 11
        h += h >> 17
    elif n == 1:
        h += p[0]
        h ^= h << 10
        h += h >> 1
    h ^= h << 3
    h += h >> 5
    h ^= h << 4
    h += h >> 17
    h ^= h << 25
    return h + (h >> 6)


cdef uint32_t murmur(const char *key, size_t n) noexcept nogil:
    cdef const uint8_t *p = <const uint8_t *>key
    cdef uint32_t m = 0x5BD1E995U, k
    cdef uint32_t h = (0xDEADBEEFU * <uint32_t>n) ^ <uint32_t>n  # the seed depends on the length
    while n >= 4:
        k = word32(p) * m
        h = (h * m) ^ ((k ^ (k >> 24)) * m)
        p += 4
        n -= 4
    if n:
        if n == 3:
            h ^= <uint32_t>p[2] << 16
        if n >= 2:
            h ^= <uint32_t>p[1] << 8
        h = (h ^ p[0]) * m
    h = (h ^ (h >> 13)) * m
    return h ^ (h >> 15)


cdef uint32_t jenkins(const char *key, size_t n) noexcept nogil:
    cdef uint32_t a, b, c
    cdef uint8_t last[12]
    cdef const uint8_t *p = <const uint8_t *>key
    a = b = c = 0xDEADBEEFU + <uint32_t>n + 13
    if n == 0:
        return c
    while n > 12:
        a += word32(p)
        b += word32(p + 4)
        c += word32(p + 8)
        a = (a - c) ^ rotl32(c, 4); c += b
        b = (b - a) ^ rotl32(a, 6); a += c
        c = (c - b) ^ rotl32(b, 8); b += a
        a = (a - c) ^ rotl32(c, 16); c += b
        b = (b - a) ^ rotl32(a, 19); a += c
        c = (c - b) ^ rotl32(b, 4); b += a
        p += 12
        n -= 12
    memset(last, 0, 12)
    memcpy(last, p, n)
    a += word32(last)
    b += word32(last + 4)
    c += word32(last + 8)
    c = (c ^ b) - rotl32(b, 14)
    a = (a ^ c) - rotl32(c, 11)
    b = (b ^ a) - rotl32(a, 25)
    c = (c ^ b) - rotl32(b, 16)
    a = (a ^ c) - rotl32(c, 4)
    b = (b ^ a) - rotl32(a, 14)
    return (c ^ b) - rotl32(b, 24)


# -------------------------------------------------------------------------------------------------- MD5

cdef uint32_t md5_sines[64]
cdef int *md5_turns = [7, 12, 17, 22, 5, 9, 14, 20, 4, 11, 16, 23, 6, 10, 15, 21]


cdef void md5_block(uint32_t *state, const uint8_t *block) noexcept nogil:
    cdef uint32_t a = state[0], b = state[1], c = state[2], d = state[3], f
    cdef int i, word
    for i in range(64):
        if i < 16:
            f, word = (b & c) | (~b & d), i
        elif i < 32:
            f, word = (d & b) | (~d & c), (5 * i + 1) & 15
        elif i < 48:
            f, word = b ^ c ^ d, (3 * i + 5) & 15
        else:
            f, word = c ^ (b | ~d), (7 * i) & 15
        f += a + md5_sines[i] + word32(block + 4 * word)
        a, d, c = d, c, b
        b += rotl32(f, md5_turns[(i >> 4) * 4 + (i & 3)])
    state[0] += a
    state[1] += b
    state[2] += c
    state[3] += d


cdef void md5(const char *data, size_t n, uint32_t *digest) noexcept nogil:
    cdef const uint8_t *p = <const uint8_t *>data
    cdef uint8_t tail[128]
    cdef uint64_t bits = <uint64_t>n * 8
    cdef size_t padded, i
    digest[0], digest[1], digest[2], digest[3] = 0x67452301U, 0xEFCDAB89U, 0x98BADCFEU, 0x10325476U
    while n >= 64:
        md5_block(digest, p)
        p += 64
        n -= 64
    padded = 64 if n < 56 else 128
    memset(tail, 0, padded)
    memcpy(tail, p, n)
    tail[n] = 0x80
    for i in range(8):
        tail[padded - 8 + i] = <uint8_t>(bits >> (8 * i))
    md5_block(digest, tail)
    if padded == 128:
        md5_block(digest, tail + 64)


cdef uint32_t md5_first(const char *key, size_t n) noexcept nogil:
    cdef uint32_t digest[4]
    md5(key, n, digest)
    return digest[0]


# -------------------------------------------------------------------------------------- mcrouter's Ch3

cdef extern from *:
    """
    #define MURMUR64_M 0xC6A4A7935BD1E995ULL
    #define CH3_SEED 4193360111ULL
    """
    const uint64_t MURMUR64_M, CH3_SEED

cdef enum:
    CH3_TRIES = 32
    CH3_STRIDE = 23  # 2^23 buckets at most, and from one bit of a number to its next
    CH3_WORDS = CH3_TRIES * CH3_STRIDE * (CH3_STRIDE + 1) // 64 + 1


cdef inline uint64_t murmur64a_mix(uint64_t h, uint64_t k) noexcept nogil:
    k *= MURMUR64_M
    return (h ^ ((k ^ (k >> 47)) * MURMUR64_M)) * MURMUR64_M


cdef inline uint64_t murmur64a_end(uint64_t h) noexcept nogil:
    h = (h ^ (h >> 47)) * MURMUR64_M
    return h ^ (h >> 47)


cdef uint64_t murmur64a(const char *key, size_t n) noexcept nogil:
    cdef const uint8_t *p = <const uint8_t *>key
    cdef uint64_t h = CH3_SEED ^ (n * MURMUR64_M), rest = 0
    cdef size_t i
    for i in range(n // 8):
        h = murmur64a_mix(h, word64(p + 8 * i))
    if n & 7:
        for i in range(n & 7):
            rest |= <uint64_t>p[(n & ~<size_t>7) + i] << (8 * i)
        h = (h ^ rest) * MURMUR64_M
    return murmur64a_end(h)


cdef struct Bits:
    # A stream of bits that a key has, 64 of each hash: the first is the key's, each other one the last one's
    uint64_t words[CH3_WORDS]
    uint32_t known


cdef inline uint32_t bit_of(Bits *bits, uint32_t at) noexcept nogil:
    while bits.known <= at >> 6:
        bits.words[bits.known] = murmur64a_end(
            murmur64a_mix(CH3_SEED ^ (8 * MURMUR64_M), bits.words[bits.known - 1])
        )
        bits.known += 1
    return (bits.words[at >> 6] >> (at & 63)) & 1


cdef uint32_t ch3(const char *key, size_t n, uint32_t buckets) noexcept nogil:
    # A walk down the levels of a binary tree: a bit says whether the bucket is in the half that the last
    # doubling added; of such a half, more bits say which bucket. One that is not there (yet) is tried again.
    cdef Bits bits
    cdef uint32_t level = 0, at, number, i
    if buckets <= 1:
        return 0
    while <uint64_t>1 << level < buckets:
        level += 1
    bits.words[0] = murmur64a(key, n)
    bits.known = 1
    at = level
    for _ in range(CH3_TRIES):
        while not bit_of(&bits, at):
            level -= 1
            if level == 0:
                return 0
            at = level
        number = 1
        at += CH3_STRIDE
        for i in range(level - 1):
            number = number << 1 | bit_of(&bits, at)
            at += CH3_STRIDE
        if number < buckets:
            return number
    return 0


# ---------------------------------------------------------------------------------------------- by name

cdef struct NamedHash:
    const char *name
    KeyHash function

cdef NamedHash *TWEMPROXY = [
    NamedHash("one_at_a_time", one_at_a_time), NamedHash("md5", md5_first), NamedHash("crc16", crc16),
    NamedHash("crc32", crc32), NamedHash("crc32a", crc32a), NamedHash("fnv1_64", fnv1_64),
    NamedHash("fnv1a_64", fnv1a_64), NamedHash("fnv1_32", fnv1_32), NamedHash("fnv1a_32", fnv1a_32),
    NamedHash("hsieh", hsieh), NamedHash("murmur", murmur), NamedHash("jenkins", jenkins),
]

fill_tables()
cdef int step
for step in range(64):
    md5_sines[step] = <uint32_t>floor(fabs(sin(step + 1)) * 4294967296.0)

# twemproxy's twelve, then our own
KEY_HASHES = (*[TWEMPROXY[step].name.decode() for step in range(12)], "xxh64")


cdef KeyHash key_hash(str name) except? NULL:
    for i in range(12):
        if TWEMPROXY[i].name == name.encode():
            return TWEMPROXY[i].function
    raise ValueError(f"no twemproxy key hash {name!r}; there are {', '.join(KEY_HASHES[:12])}")


def hash_key(str name, bytes data):
    """The hash of that name (one of KEY_HASHES): 64 bits for "xxh64", else the 32 bits that twemproxy uses.

    Raises ValueError when there is no hash of that name.
    """
    if name == "xxh64":
        return xxh64(data, len(data))
    return key_hash(name)(data, len(data))


def _xxh64(bytes data):
    """XXH64 with seed 0, 64 bits: equal to `xxhash.xxh64_intdigest`."""
    return xxh64(data, len(data))

globals()["xxh64"] = _xxh64  # one Cython scope cannot have a def and a cdef of the same name


def ch3_bucket(bytes data, uint32_t buckets):
    """The bucket, from 0, of so many (at most 2^23), where mcrouter's Ch3 puts a key."""
    if not 0 < buckets <= 1 << CH3_STRIDE:
        raise ValueError(f"{buckets} buckets; from 1 to {1 << CH3_STRIDE}")
    return ch3(data, len(data), buckets)
