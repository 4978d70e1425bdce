"""The store of last values read: what is kept, what ends it, and that its bytes are counted and bounded."""

import pytest
from servers import pack

from shardproxy.core.buffers import total_bytes
from shardproxy.core.commands import builtin
from shardproxy.dataplane.stale import STAMP_BYTES, StaleStore, kinds

S = 1_000_000  # a second, in the engine's microseconds
MB = 1 << 20
GET = pack("GET", "k")
ONE, TWO = b"$3\r\none\r\n", b"$3\r\ntwo\r\n"


def store(limit: int = MB, max_age: int = 30 * S, settle: int = S, hash_bits: int = 64) -> StaleStore:
    return StaleStore(limit, max_age, settle, hash_bits)


def test_the_last_reply_is_kept() -> None:
    it = store()
    assert it.get(GET, 2, 1 * S) is None
    it.put(GET, 2, ONE, 1 * S, 1 * S)
    it.put(GET, 2, TWO, 2 * S, 2 * S)
    assert it.get(GET, 2, 3 * S) == TWO
    assert len(it) == 1


def test_of_the_same_request_and_protocol_only() -> None:
    it = store()
    it.put(pack("HGET", "k", "f"), 2, ONE, S, S)
    for other in (
        GET,
        pack("HGET", "k", "g"),
        pack("HGET", "kf", ""),
        pack("HMGET", "k", "f"),
        pack("HLEN", "k"),
    ):
        assert it.get(other, 2, S) is None
    assert it.get(pack("HGET", "k", "f"), 3, S) is None
    assert it.get(pack("hGeT", "k", "f"), 2, S) == ONE


@pytest.mark.parametrize("name", kinds())
def test_every_kind_is_a_read_of_one_key_that_comes_first(name: str) -> None:
    row = builtin().row(name.encode())
    assert row is not None and "readonly" in row.flags and row.kind == "forward" and not row.walk
    (spec,) = row.key_specs
    assert (spec.begin, spec.index, spec.find, spec.last) == ("index", 1, "range", 0)
    it, request = store(), pack(name.upper(), "k", *("1",) * (abs(row.arity) - 2))
    it.put(request, 2, ONE, S, S)
    assert it.get(request, 2, S) == ONE
    it.drop(b"k", S)
    assert it.get(request, 2, S) is None


@pytest.mark.parametrize(
    "request_",
    [
        *(pack(*words.split()) for words in ("TTL k", "SRANDMEMBER k", "MGET a b", "SET k v", "PING")),
        *(b"", b"*", b"*2\r\n", b"*2\r\n$3\r\nGET\r\n", b"*2\r\n$3\r\nGET\r\n$5\r\nk\r\n", b"GET k\r\n"),
        *(b"*2\r\n$9999999999999999999\r\nGET\r\n", b"*2\r\n$3\r\nGET", b"*1\r\n$3\r\nGET\r\n", GET[:-3]),
    ],
)
def test_nothing_else_is_kept(request_: bytes) -> None:
    it = store()
    it.put(request_, 2, ONE, S, S)
    assert len(it) == 0
    it.put(GET, 2, ONE, S, S)
    assert it.get(request_, 2, S) is None


def test_it_may_be_so_old_and_no_older() -> None:
    it = store(max_age=30 * S)
    it.put(GET, 2, ONE, S, S)
    assert it.get(GET, 2, 31 * S) == ONE
    assert it.get(GET, 2, 31 * S + 1) is None
    it.expire(31 * S)
    assert len(it) == 1
    it.expire(31 * S + 1)
    assert len(it) == 0


def test_a_write_ends_all_that_is_kept_of_its_key() -> None:
    it = store()
    for args in (("GET", "k"), ("STRLEN", "k"), ("HGET", "k", "f"), ("HGET", "k", "g"), ("GET", "other")):
        it.put(pack(*args), 2, ONE, S, S)
        it.put(pack(*args), 3, ONE, S, S)
    it.drop(b"k", 2 * S)
    assert len(it) == 2
    assert it.get(pack("GET", "other"), 3, S) == ONE


def test_a_read_that_a_write_may_have_overtaken_is_not_kept() -> None:
    it = store(settle=S)
    it.drop(b"k", 10 * S)
    it.put(
        GET, 2, ONE, 9 * S, 20 * S
    )  # sent before the write: it may have run before it, however late it came
    it.put(GET, 2, ONE, 11 * S, 20 * S)  # the write may still have been on its way
    assert it.get(GET, 2, 20 * S) is None
    it.put(GET, 2, TWO, 11 * S + 1, 20 * S)
    assert it.get(GET, 2, 20 * S) == TWO


def test_clear_is_a_write_to_every_key() -> None:
    it = store(settle=S)
    it.put(GET, 2, ONE, S, S)
    it.clear(10 * S)
    assert len(it) == 0
    it.put(GET, 2, ONE, 11 * S, 12 * S)
    assert len(it) == 0
    it.put(GET, 2, ONE, 11 * S + 1, 12 * S)
    assert len(it) == 1


@pytest.mark.parametrize("frame", [b"$70000\r\n" + b"x" * 70000 + b"\r\n", b"-WRONGTYPE no\r\n"])
def test_a_newer_reply_that_cannot_be_kept_ends_the_older_one(frame: bytes) -> None:
    it = store()
    it.put(GET, 2, ONE, S, S)
    it.put(GET, 2, frame, S, S)
    assert it.get(GET, 2, S) is None
    assert len(it) == 0


@pytest.mark.parametrize(
    "frame", [b"-LOADING Redis is loading\r\n", b"-ERR x\r\n", b"-", b"!9\r\nSYNTAX it\r\n"]
)
def test_an_error_says_nothing_of_the_value(frame: bytes) -> None:
    it = store()
    it.put(GET, 2, ONE, S, S)
    it.put(GET, 2, frame, S, S)
    assert it.get(GET, 2, S) == ONE


def test_the_oldest_go_when_it_is_full() -> None:
    it = store(limit=MB)
    for number in range(2_000):
        it.put(pack("GET", f"k{number}"), 2, b"$1000\r\n" + b"x" * 1000 + b"\r\n", S, S)
        it.put(GET, 2, ONE, S, S)
        assert it.size <= MB
    assert it.get(GET, 2, S) == ONE
    assert it.get(pack("GET", "k1999"), 2, S) is not None
    assert it.get(pack("GET", "k0"), 2, S) is None
    assert 500 < len(it) < 1_000


def test_bytes_are_counted_with_the_buffers_and_given_back() -> None:
    before = total_bytes()
    it = store()
    empty = it.size
    assert total_bytes() - before == empty
    for size in (0, 5, 500, 50_000, 400, 90_000, 10):
        for key in ("a", "b", "c"):
            it.put(pack("GET", key), 2, b"$%d\r\n%b\r\n" % (size, b"x" * size), S, S)
            assert total_bytes() - before == it.size
    it.shrink(1)
    assert len(it) == 2
    it.shrink(MB)
    assert it.size == empty
    it.put(GET, 2, ONE, S, S)
    del it
    assert total_bytes() == before


@pytest.mark.parametrize("limit", [1, 1_000, 4_000])
def test_a_limit_too_small_for_anything_keeps_nothing(limit: int) -> None:
    it = store(limit=limit)
    for number in range(100):
        it.put(pack("GET", number), 2, b"$200\r\n" + b"x" * 200 + b"\r\n", S, S)
        assert it.size <= limit or len(it) == 0


def test_many_of_one_key_are_found_and_dropped() -> None:
    it = store(limit=64 * MB)
    for number in range(100_000):
        it.put(pack("HGET", "k", number), 2, b":%d\r\n" % number, S, S)
    assert len(it) == 100_000
    assert it.get(pack("HGET", "k", 77_777), 2, S) == b":77777\r\n"
    it.drop(b"k", S)
    assert len(it) == 0


def test_a_write_through_another_worker_ends_what_was_kept() -> None:
    """What is kept here is served only if it was asked for when that write was surely done."""
    stamps = bytearray(STAMP_BYTES)
    here, there = (StaleStore(MB, 30 * S, S, stamps=stamps) for _ in range(2))
    other = pack("GET", "other")
    for request in (GET, other):
        here.put(request, 2, ONE, 1 * S, 1 * S)
    there.drop(b"k", 2 * S)
    assert here.get(GET, 2, 3 * S) is None
    assert here.get(other, 2, 3 * S) == ONE
    # asked for too soon after it: it may have overtaken the write
    here.put(GET, 2, ONE, 3 * S, 4 * S)
    assert here.get(GET, 2, 4 * S) is None
    here.put(GET, 2, TWO, 3 * S + 1, 4 * S)
    assert here.get(GET, 2, 4 * S) == TWO
    # a tick that began before another worker's does not make its write any older
    there.drop(b"k", 1 * S)
    assert here.get(GET, 2, 4 * S) == TWO
    there.clear(5 * S)
    assert here.get(GET, 2, 5 * S) is here.get(other, 2, 5 * S) is None
