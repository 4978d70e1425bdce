import bisect
import itertools
import random

import pytest
import xxhash

from shardproxy.core.hashing import KEY_HASHES, ch3_bucket, hash_key, xxh64
from shardproxy.core.ring import Ring, twemproxy_name

ABC = [("a", 1), ("b", 2), ("c", 1)]


def equal(count: int, prefix: str = "node-") -> list[tuple[str, int]]:
    return [(f"{prefix}{number}", 1) for number in range(1, count + 1)]


def shares(ring: Ring) -> list[float]:
    """The part of the circle that each shard owns, exactly."""
    points = ring.points()
    arcs = [0] * len(ring.names)
    for (before, _), (at, owner) in itertools.pairwise([(points[-1][0] - 2**64, 0), *points]):
        arcs[owner] += at - before
    return [arc / 2**64 for arc in arcs]


def random_keys(count: int, seed: int = 0) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(rng.randint(0, 24)) for _ in range(count)]


# ---------------------------------------------------------------------------------------- the default ring


def test_points_and_search_are_as_documented() -> None:
    points = sorted(
        (xxhash.xxh64_intdigest(f"{name}-{i}".encode()), name)
        for name, weight in ABC
        for i in range(7 * weight)
    )
    ring = Ring(ABC, virtual_nodes=7)
    assert [(at, ring.names[owner]) for at, owner in ring.points()] == points
    for key in random_keys(5000):
        key = key.replace(b"{", b"")
        found = bisect.bisect_left(points, (xxhash.xxh64_intdigest(key), ""))
        assert ring.names[ring.locate(key) or 0] == points[found % len(points)][1]


def test_a_key_on_a_point_belongs_to_it() -> None:
    ring = Ring(ABC)
    for owner, (name, weight) in enumerate(ABC):
        for i in range(160 * weight):
            assert ring.locate(f"{name}-{i}".encode()) == owner


def test_order_of_configuration_numbers_the_shards_and_moves_no_key() -> None:
    ring, turned = Ring(ABC), Ring(ABC[::-1])
    assert turned.names == ("c", "b", "a") and turned.weights == (1, 2, 1)
    assert ring.fingerprint == turned.fingerprint
    for key in random_keys(500):
        assert ring.names[ring.locate(key) or 0] == turned.names[turned.locate(key) or 0]


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"plain", b"plain"),
        (b"", b""),
        (b"{user1000}.following", b"user1000"),
        (b"foo{}{bar}", b"foo{}{bar}"),
        (b"{}{foo}", b"{}{foo}"),
        (b"foo{{bar}}zap", b"{bar"),
        (b"foo{bar}{zap}", b"bar"),
        (b"foo}{bar}", b"bar"),
        (b"foo{bar", b"foo{bar"),
        (b"foo}bar{", b"foo}bar{"),
        (b"{\x00\xff}", b"\x00\xff"),
        (b"{a}", b"a"),
        (b"{", b"{"),
        (b"{}", b"{}"),
    ],
)
def test_hash_tags_of_redis_cluster(key: bytes, hashed: bytes) -> None:
    assert Ring(ABC).hash_of(key) == xxh64(hashed)
    assert Ring(ABC, hash_tag="").hash_of(key) == xxh64(key)
    other = key.replace(b"{", b"<").replace(b"}", b">")
    assert Ring(ABC, hash_tag="<>").hash_of(other) == xxh64(hashed.replace(b"{", b"<").replace(b"}", b">"))
    assert Ring(ABC, "ketama").hash_of(key) == hash_key("fnv1a_64", key)
    assert Ring(ABC, "modula", hash="md5", hash_tag="{}").hash_of(key) == hash_key("md5", hashed)


def test_one_character_may_open_and_close_a_tag() -> None:
    assert Ring(ABC, hash_tag="$$").hash_of(b"a$b$c$d") == xxh64(b"b")


@pytest.mark.parametrize("prefix", ["node-", "redis", "10.0.0.", "shard_", "cache-eu-"])
def test_balance_up_to_24_shards(prefix: str) -> None:
    for count in range(1, 25):
        assert max(shares(Ring(equal(count, prefix)))) * count <= 1.25


def test_keys_follow_the_shares() -> None:
    ring = Ring([("small", 1), ("middle", 2), ("large", 5)])
    counts = [0, 0, 0]
    keys = 40_000
    for number in range(keys):
        counts[ring.locate(b"user:%d" % number) or 0] += 1
    for count, share in zip(counts, shares(ring), strict=True):
        assert abs(count / keys - share) < 0.01


# ------------------------------------------------------------------------------------------------ stand-ins


def test_stand_ins_are_the_next_points_that_are_not_out() -> None:
    ring = Ring([("a", 1), ("b", 3), ("c", 1), ("d", 2)], virtual_nodes=5)
    points = ring.points()
    for out in itertools.chain.from_iterable(itertools.combinations(range(4), n) for n in range(5)):
        for key in random_keys(200):
            start = bisect.bisect_left(points, (ring.hash_of(key), -1))
            walk = (points[(start + i) % len(points)][1] for i in range(len(points)))
            assert ring.locate(key, out) == next((owner for owner in walk if owner not in out), None)


@pytest.mark.parametrize("distribution", ["modula", "ch3"])
def test_stand_ins_of_modula_and_ch3_are_the_next_entries(distribution: str) -> None:
    ring = Ring([("a", 1), ("b", 2), ("c", 1)], distribution)
    home = {ring.locate(key): key for key in random_keys(100)}
    assert [ring.locate(home[0], [0]), ring.locate(home[1], [1]), ring.locate(home[2], [2])] == [1, 2, 0]
    assert ring.locate(home[0], [0, 1]) == 2
    assert ring.locate(home[0], [0, 1, 2]) is None


@pytest.mark.parametrize("distribution", ["ring", "ketama", "modula", "ch3"])
def test_one_shard_has_everything(distribution: str) -> None:
    ring = Ring([("only", 3)], distribution)
    assert {ring.locate(key) for key in random_keys(100)} == {0}
    assert ring.locate(b"x", [0]) is None


def test_locate_refuses_a_number_that_is_no_shards() -> None:
    for number in (-1, 3):
        with pytest.raises(ValueError, match=f"no shard {number}; there are 3"):
            Ring(ABC).locate(b"x", [number])


# --------------------------------------------------------------------------------------- ketama and modula


def counts(weights: list[int]) -> list[int]:
    ring = Ring([(f"s{i}", weight) for i, weight in enumerate(weights)], "ketama")
    owners = [owner for _, owner in ring.points()]
    return [owners.count(number) for number in range(len(weights))]


def test_float32_decides_how_many_points_ketama_has() -> None:
    # Computed in C with twemproxy's expression: 39 groups of four instead of 40
    short = [25, 47, 50, 55, 61, 71, 94, 100, 107, 109, 110, 115, 122, 142, 159, 163, 188, 193, 200]
    assert [n for n in range(1, 201) if len(Ring(equal(n), "ketama").points()) != 160 * n] == short
    assert counts([1] * 25) == [156] * 25
    assert counts([1, 1, 1, 10, 12]) == [28, 28, 28, 320, 380]


def test_points_of_ketama() -> None:
    names = [("10.0.0.1", 1), ("10.0.0.2", 1), ("10.0.0.3", 1)]
    ring = Ring(names, "ketama", hash="md5")
    assert {563378236, 920037467, 4058903954, 1084864719} < {at for at, owner in ring.points() if owner == 0}
    keys = [b"foo", b"bar", b"baz", b"user:1000", b"session:abc"]
    assert [ring.hash_of(key) for key in keys[:3]] == [3675831724, 421377335, 2768240243]
    assert [ring.locate(key) for key in keys] == [1, 1, 0, 2, 2]
    ring = Ring([(f"{name}:6379", 1) for name, _ in names], "ketama", hash="md5")
    assert [ring.locate(key) for key in keys] == [2, 2, 2, 0, 1]


def test_a_shard_may_have_no_points_in_ketama() -> None:
    ring = Ring([("tiny", 1), ("huge", 1000)], "ketama")
    assert {owner for _, owner in ring.points()} == {1}
    assert ring.locate(b"x", [1]) is None


def test_modula_counts_entries_of_names_by_length_then_bytes() -> None:
    ring = Ring([("bb", 1), ("b", 2), ("a", 1), ("B", 1)], "modula", hash="crc32a")
    assert [ring.names[owner] for _, owner in ring.points()] == ["B", "a", "b", "b", "bb"]
    for key in random_keys(100):
        assert ring.locate(key) == ring.points()[hash_key("crc32a", key) % 5][1]


def test_equal_points_belong_to_the_name_that_sorts_first() -> None:
    # These two were found by trying names: a point of one is a point of the other
    names = [f"n{number}" for number in range(1500)]
    points = Ring([(name, 1) for name in names], "ketama").points()
    twins = [(p[0], p[1], q[1]) for p, q in itertools.pairwise(points) if p[0] == q[0]]
    assert twins
    for at, one, two in twins:
        first, second = sorted([names[one], names[two]], key=lambda name: (len(name), name))
        for order in ([first, second], [second, first]):
            ring = Ring([(name, 1) for name in order], "ketama")
            owners = [ring.names[owner] for point, owner in ring.points() if point == at]
            assert owners == [first, second]


@pytest.mark.parametrize(
    ("alias", "host", "port", "name"),
    [
        (None, "10.0.0.1", 6379, "10.0.0.1:6379"),
        (None, "10.0.0.1", 11211, "10.0.0.1"),
        ("server1", "10.0.0.1", 6379, "server1"),
        ("server1", "10.0.0.1", 11211, "server1"),
        (None, "/run/redis.sock", 0, "/run/redis.sock:"),
        ("local", "/run/redis.sock", 0, "local"),
    ],
)
def test_names_of_twemproxy(alias: str | None, host: str, port: int, name: str) -> None:
    assert twemproxy_name(alias, host, port) == name


# ---------------------------------------------------------------------------------- fingerprint and errors


def test_the_fingerprint_is_over_points_and_names() -> None:
    ring = Ring([("a", 1), ("é", 1)], virtual_nodes=2)
    text = "ring xxh64 {}\n" + "".join(f"{at} {ring.names[owner]}\n" for at, owner in ring.points())
    assert ring.fingerprint == f"{xxhash.xxh64_intdigest(text.encode()):016x}"


def test_ch3_counts_entries_of_names_by_length_then_bytes() -> None:
    ring = Ring([("10", 1), ("9", 2), ("0", 1)], "ch3", hash_tag="{}")
    assert ring.points() == [(0, 2), (1, 1), (2, 1), (3, 0)]
    for key in random_keys(200):
        assert (
            ring.locate(b"a{%b}" % key.replace(b"}", b""))
            == [2, 1, 1, 0][ch3_bucket(key.replace(b"}", b"") or b"a{}", 4)]
        )


def test_a_shard_more_takes_keys_of_ch3_and_moves_no_others() -> None:
    keys = random_keys(500)
    for count in range(1, 20):
        less, more = (
            Ring([(str(number), 1) for number in range(total)], "ch3") for total in (count, count + 1)
        )
        assert {more.locate(key) for key in keys if more.locate(key) != less.locate(key)} <= {count}


def test_whatever_moves_a_key_changes_the_fingerprint() -> None:
    rings = [
        Ring(ABC),
        Ring(ABC[:2]),
        Ring([("a", 2), ("b", 2), ("c", 1)]),
        Ring([("A", 1), ("b", 2), ("c", 1)]),
        Ring(ABC, virtual_nodes=161),
        Ring(ABC, hash_tag=""),
        Ring(ABC, hash_tag="<>"),
        *(Ring(ABC, "ketama", hash=name) for name in KEY_HASHES[:12]),
        *(Ring(ABC, "modula", hash=name) for name in KEY_HASHES[:12]),
        Ring(ABC, "ch3"),
        Ring(ABC, "ketama", hash_tag="{}"),
    ]
    assert len({ring.fingerprint for ring in rings}) == len(rings)
    assert all(len(ring.fingerprint) == 16 for ring in rings)


@pytest.mark.parametrize(
    ("shards", "options", "message"),
    [
        ([], {}, "a ring of 0 shards; from 1 to 65535"),
        (equal(65536), {"virtual_nodes": 1}, "a ring of 65536 shards; from 1 to 65535"),
        ([("a", 1), ("a", 2)], {}, "two shards are named 'a'"),
        ([("", 1)], {}, "a shard is named ''; a text that is not empty"),
        ([(b"a", 1)], {}, "a shard is named b'a'; a text that is not empty"),
        ([("a", 0)], {}, "shard 'a' has weight 0; a whole number from 1"),
        ([("a", -3)], {}, "shard 'a' has weight -3; a whole number from 1"),
        ([("a", 1.5)], {}, "shard 'a' has weight 1.5; a whole number from 1"),
        ([("a", True)], {}, "shard 'a' has weight True; a whole number from 1"),
        ([("a", 2**31)], {"distribution": "ketama"}, "the weights add up to 2147483648; at most 2147483647"),
        ([("a", 6554)], {}, "a ring of 1048640 points; at most 1048576: lower the weights or virtual_nodes"),
        ([("a", 2**31 - 1)], {}, "a ring of 343597383520 points; at most 1048576"),
        ([("a", 2**20 + 1)], {"distribution": "modula"}, "a ring of 1048577 points; at most 1048576"),
        (ABC, {"distribution": "random"}, "no distribution 'random'; there are ring, ketama, modula, ch3"),
        (ABC, {"virtual_nodes": 0}, "virtual_nodes is 0; at least 1"),
        (ABC, {"hash": "md5"}, "distribution ring hashes keys with xxh64, not 'md5'"),
        (ABC, {"distribution": "ch3", "hash": "md5"}, "distribution ch3 hashes keys with ch3, not 'md5'"),
        (ABC, {"hash": "ch3"}, "distribution ring hashes keys with xxh64, not 'ch3'"),
        (ABC, {"distribution": "ketama", "hash": "ch3"}, "no twemproxy key hash 'ch3'"),
        (ABC, {"distribution": "ketama", "hash": "xxh64"}, "no twemproxy key hash 'xxh64'; there are one_at"),
        (ABC, {"distribution": "modula", "hash": "sha1"}, "no twemproxy key hash 'sha1'; there are one_at"),
        (ABC, {"hash_tag": "{"}, "hash_tag is '{'; two ASCII characters, or none"),
        (ABC, {"hash_tag": "{}{"}, "hash_tag is '{}{'; two ASCII characters, or none"),
        (ABC, {"hash_tag": "«»"}, "hash_tag is '«»'; two ASCII characters, or none"),
    ],
)
def test_what_makes_no_ring(shards: list[tuple[str, int]], options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Ring(shards, **options)  # type: ignore[arg-type]  # some are wrong on purpose
    assert str(caught.value).startswith(message)


def test_the_largest_ring() -> None:
    ring = Ring([("a", 6000), ("b", 553)])
    points = ring.points()
    assert len(points) == 6553 * 160
    for key in random_keys(100):
        found = bisect.bisect_left(points, (ring.hash_of(key), -1))
        assert ring.locate(key) == points[found % len(points)][1]
