import hashlib
import random
import zlib

import pytest
import xxhash

from shardproxy.core.hashing import KEY_HASHES, ch3_bucket, hash_key, xxh64

LENGTHS = [*range(70), 127, 128, 1000, 4097]


def texts(seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(length) for length in LENGTHS for _ in range(5)]


def test_xxh64_equals_the_xxhash_package() -> None:
    for data in texts(1):
        assert xxh64(data) == hash_key("xxh64", data) == xxhash.xxh64_intdigest(data)


def test_md5_is_the_first_little_endian_word_of_the_digest() -> None:
    for data in texts(2):
        assert hash_key("md5", data) == int.from_bytes(hashlib.md5(data).digest()[:4], "little")


def test_crc32a_is_the_usual_crc32_and_crc32_fifteen_bits_of_it() -> None:
    for data in texts(3):
        assert hash_key("crc32a", data) == zlib.crc32(data)
        assert hash_key("crc32", data) == zlib.crc32(data) >> 16 & 0x7FFF


def test_fnv_adds_signed_bytes_and_the_64_bit_ones_keep_the_low_half() -> None:
    offsets = {32: (0x811C9DC5, 0x01000193), 64: (0xCBF29CE484222325, 0x100000001B3)}
    for data in texts(4):
        for bits, (start, prime) in offsets.items():
            one = other = start
            for byte in data:
                signed = byte - 256 if byte > 127 else byte
                one = one * prime % 2**bits ^ signed % 2**bits
                other = (other ^ signed % 2**bits) * prime % 2**bits
            assert hash_key(f"fnv1_{bits}", data) == one % 2**32
            assert hash_key(f"fnv1a_{bits}", data) == other % 2**32


# What a live nutcracker agreed with (tests/integration/test_nutcracker_placement.py)
GOLDEN = """
one_at_a_time 0 ca2e9442 238678dd b563b74f 54cc64c2 8d87fd4a
md5 d98c1dd4 b975c10c db18bdac 2e986207 daeea645 73a1f1a7
crc16 0 7c87 c3caf96 e1644671 1e0d6e25 34b18c3b
crc32 0 68b7 c73 1f74 265e 3e55
crc32a 0 e8b7be43 8c736521 9f7417e3 265ea2ec 3e55d6a2
fnv1_64 84222325 8601b7be 6ba13533 d39e3d21 93edf0fa 859932f5
fnv1a_64 84222325 8601ec8c fed9d577 ae7b4289 8f0e6190 b5ab977d
fnv1_32 811c9dc5 50c5d7e 408f5e13 a6affca1 914c917a f4e95795
fnv1a_32 811c9dc5 e40c292c a9f37ed7 507c1d89 626cb2b0 841961d
hsieh 0 93642e87 76d4d427 ddec1969 b2876529 2dcf609e
murmur 0 4b41757c c4e0338f 8e24aec7 a3e1075d 4305273f
jenkins deadbefc e0a38690 99f84f99 48c4d84 201bd2b5 2e573588
xxh64 ef46db3751d8e999 d24ec4f1a98c6e5b 33bf00a859c4ba3f 4836ae4227b0500a 9f49840836c4364b d615be4c64566082
"""


@pytest.mark.parametrize("line", GOLDEN.strip().splitlines())
def test_golden_vectors(line: str) -> None:
    name, *values = line.split()
    keys = [b"", b"a", b"foo", b"user:1000", b"\xff\xfe\x80", bytes(range(200, 240))]
    assert [f"{hash_key(name, key):x}" for key in keys] == values


def test_every_hash_is_tried_above() -> None:
    assert [line.split()[0] for line in GOLDEN.strip().splitlines()] == list(KEY_HASHES)


def test_an_unknown_hash_is_named() -> None:
    with pytest.raises(ValueError, match="no twemproxy key hash 'sha1'; there are one_at_a_time, md5"):
        hash_key("sha1", b"x")


# What mcrouter's own tests (mcrouter/lib/test/Ch3HashTest.cpp) expect of it
EVERY_BYTE = bytes((byte - 128) % 256 for byte in range(256))


@pytest.mark.parametrize(
    ("key", "buckets", "bucket"),
    [
        (b"sample", 100, 97),
        (b"sample", 1, 0),
        (b"", 100, 72),
        (b"", 1 << 23, 6173600),
        (b"sample", 1 << 23, 5167780),
        (EVERY_BYTE, 99999, 31015),
        (EVERY_BYTE[::-1], 99999, 67101),
    ],
)
def test_ch3_of_mcrouter(key: bytes, buckets: int, bucket: int) -> None:
    assert ch3_bucket(key, buckets) == bucket


def test_ch3_counts_as_mcrouter_counts() -> None:
    found = [ch3_bucket(b"%d" % number, 10) for number in range(10_000)]
    counts = [995, 955, 1046, 968, 1032, 972, 1016, 1038, 1010, 968]
    assert [found.count(bucket) for bucket in range(10)] == counts


@pytest.mark.parametrize("buckets", [0, (1 << 23) + 1])
def test_buckets_that_ch3_does_not_have(buckets: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 8388608"):
        ch3_bucket(b"a", buckets)
