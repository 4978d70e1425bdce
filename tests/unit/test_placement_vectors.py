"""docs/placement-vectors.json against the code, and against docs/placement.md done a second time, slowly.

`PYTHONPATH=. python tests/unit/test_placement_vectors.py` writes the file anew. Placement must never change:
a line of it that does is a key that moves. tests/integration/test_nutcracker_placement.py asks twemproxy too.
"""

import bisect
import json
import math
import random
import struct
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
import xxhash

from shardproxy.core.hashing import KEY_HASHES, hash_key
from shardproxy.core.ring import Ring

FILE = Path(__file__).parents[2] / "docs" / "placement-vectors.json"

EQUAL = {"a": 1, "b": 1, "c": 1}
WEIGHTED = {"alpha": 1, "beta": 2, "gamma-3": 3, "größe": 1}
TWEMPROXY = {"10.0.0.1": 1, "10.0.0.2:6379": 1, "cache-1": 10, "b": 1, "zz": 12}
RINGS: list[dict[str, Any]] = [
    {"distribution": "ring", "shards": {"only": 1}},
    {"distribution": "ring", "shards": EQUAL},
    {"distribution": "ring", "shards": WEIGHTED},
    {"distribution": "ring", "shards": WEIGHTED, "virtual_nodes": 40, "hash_tag": "<>"},
    {"distribution": "ring", "shards": {f"node-{i}": 1 for i in range(1, 25)}, "hash_tag": ""},
    {"distribution": "ketama", "shards": TWEMPROXY},
    {"distribution": "ketama", "shards": TWEMPROXY, "hash": "md5", "hash_tag": "{}"},
    {"distribution": "ketama", "shards": {f"10.0.0.{i}:6379": 1 for i in range(1, 26)}},
    *({"distribution": "modula", "shards": TWEMPROXY, "hash": name} for name in KEY_HASHES[:12]),
    {"distribution": "modula", "shards": TWEMPROXY, "hash_tag": "{}"},
    {"distribution": "ch3", "shards": {str(i): 1 for i in range(5)}},
    {"distribution": "ch3", "shards": {str(i): 1 for i in range(64)}, "hash_tag": "{}"},
]


def keys() -> list[bytes]:
    rng = random.Random("placement vectors")
    plain = [b"foo", b"user:1000", b"session:abc", "größe".encode(), b"\xff\x80\x00\r\n"]
    tags = [
        b"{user1000}.following",
        b"{user1000}.followers",
        b"foo{}{bar}",
        b"{}{foo}",
        b"foo{{bar}}zap",
        b"foo{bar",
    ]
    return [*plain, *tags, b"a<b>c", b"<>{x}", *(rng.randbytes(length) for length in range(1, 41))]


def ring_of(described: dict[str, Any]) -> Ring:
    options = {
        option: described[option] for option in ("virtual_nodes", "hash", "hash_tag") if option in described
    }
    return Ring([*described["shards"].items()], described["distribution"], **options)


def vectors() -> dict[str, Any]:
    rings = []
    for described in RINGS:
        ring = ring_of(described)
        placed = {key.hex(): ring.names[ring.locate(key) or 0] for key in keys()}
        rings.append(
            {
                "distribution": ring.distribution,
                "hash": ring.hash,
                "hash_tag": ring.hash_tag,
                **({"virtual_nodes": ring.virtual_nodes} if ring.distribution == "ring" else {}),
                "shards": described["shards"],
                "fingerprint": ring.fingerprint,
                "keys": placed,
            }
        )
    hashes = {
        name: {key.hex(): f"{hash_key(name, key):0{16 if name == 'xxh64' else 8}x}" for key in keys()[:20]}
        for name in KEY_HASHES
    }
    return {"about": "See placement.md. Keys are in hexadecimal.", "hashes": hashes, "rings": rings}


def written() -> str:
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"


def slow(described: dict[str, Any], key: bytes) -> str:
    """docs/placement.md, word for word; twemproxy's key hashes are taken from the code."""
    shards: dict[str, int] = described["shards"]
    distribution = described["distribution"]
    if tag := described["hash_tag"].encode():
        start = key.find(tag[:1]) + 1
        stop = key.find(tag[1:], start) if start else -1
        if stop > start:
            key = key[start:stop]
    if distribution == "ring":
        points = [
            (xxhash.xxh64_intdigest(f"{name}-{i}".encode()), name.encode())
            for name, weight in shards.items()
            for i in range(weight * described["virtual_nodes"])
        ]
        at = xxhash.xxh64_intdigest(key)
    elif distribution == "ch3":
        return sorted(shards, key=lambda name: (len(name), name))[slow_ch3(key, len(shards))]
    else:
        at = hash_key(described["hash"], key)
        order = sorted(map(str.encode, shards), key=lambda name: (len(name), name))
        if distribution == "modula":
            entries = [name for name in order for _ in range(shards[name.decode()])]
            return entries[at % len(entries)].decode()
        points = []
        for rank, name in enumerate(order):
            part = float32(float32(shards[name.decode()] / sum(shards.values())) * 160) / 4
            for i in range(math.floor(float32(part * len(shards)))):
                digest = md5(name + b"-%d" % i).digest()
                points += [(word, b"%9d " % rank + name) for word in struct.unpack("<4I", digest)]
    points.sort()
    owner = points[bisect.bisect_left(points, (at, b"")) % len(points)][1]
    return (owner if distribution == "ring" else owner[10:]).decode()


M, SEED, MASK = 0xC6A4A7935BD1E995, 4193360111, (1 << 64) - 1


def murmur64a(data: bytes) -> int:
    h = SEED ^ (len(data) * M & MASK)
    for at in range(0, len(data) // 8 * 8, 8):
        k = int.from_bytes(data[at : at + 8], "little") * M & MASK
        h = (h ^ ((k ^ k >> 47) * M & MASK)) * M & MASK
    if rest := data[len(data) // 8 * 8 :]:
        h = (h ^ int.from_bytes(rest, "little")) * M & MASK
    h = (h ^ h >> 47) * M & MASK
    return h ^ h >> 47


def slow_ch3(key: bytes, buckets: int) -> int:
    words = [murmur64a(key)]
    while len(words) < 300:
        words.append(murmur64a(words[-1].to_bytes(8, "little")))

    def bit(at: int) -> int:
        return words[at // 64] >> at % 64 & 1

    level = (buckets - 1).bit_length()
    at = level
    for _ in range(32):
        while level and not bit(at):
            level -= 1
            at = level
        if not level:
            return 0
        chosen = [bit(at + 23 * step) for step in range(1, level)]
        at += 23 * level
        number = int("1" + "".join(map(str, chosen)), 2)
        if number < buckets:
            return number
    return 0


def float32(number: float) -> float:
    return float(struct.unpack("f", struct.pack("f", number))[0])


def test_the_file_is_what_the_code_does() -> None:
    assert FILE.read_text(encoding="utf-8") == written()


@pytest.mark.parametrize("number", range(len(RINGS)))
def test_the_slow_way_agrees(number: int) -> None:
    described = json.loads(FILE.read_text(encoding="utf-8"))["rings"][number]
    assert {key: slow(described, bytes.fromhex(key)) for key in described["keys"]} == described["keys"]


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
