"""A merged reply is what one node with all the keys would have said."""

from hypothesis import given
from hypothesis import strategies as st

from shardproxy.core.fanout import merge
from shardproxy.core.resp import Scanner

NAMES = [f"shard-{number}" for number in range(6)]
FAILED = b"-SHARDDOWN it is down\r\n"

values = st.one_of(
    st.binary(max_size=30).map(lambda body: b"$%d\r\n%b\r\n" % (len(body), body)),
    st.sampled_from([b"$-1\r\n", b"_\r\n", b":7\r\n", b"*2\r\n+a\r\n*0\r\n", b"|1\r\n+a\r\n:1\r\n+v\r\n"]),
)


def used(keys: list[tuple[int, bytes]]) -> list[int]:
    """The shards that have keys, in their order: the parts."""
    return sorted({shard for shard, _ in keys})


def array(items: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(items) + b"".join(items)


keys_of = st.lists(st.tuples(st.integers(0, 5), values), min_size=1, max_size=40)


@given(keys_of, st.sets(st.integers(0, 5)), st.booleans(), st.sampled_from([2, 3]))
def test_mget(keys: list[tuple[int, bytes]], down: set[int], nil: bool, proto: int) -> None:
    parts = used(keys)
    replies = [
        (shard, FAILED if shard in down else array([v for s, v in keys if s == shard]), shard not in down)
        for shard in parts
    ]
    got = merge("array", [parts.index(shard) for shard, _ in keys], replies, NAMES, proto, nil)
    lost = [shard for shard in parts if shard in down]
    if lost and not nil:
        assert Scanner().feed(got) == [got]
        assert got.startswith(b"-SHARDDOWN it is down [failed on: ")
        said, _, done = got[got.index(b"[failed on: ") + 12 : -3].decode().partition("; done on: ")
        assert said.split(", ") == [NAMES[shard] for shard in lost]
        assert (done.split(", ") if done else []) == [NAMES[shard] for shard in parts if shard not in down]
    else:
        null = b"_\r\n" if proto == 3 else b"$-1\r\n"
        assert got == array([null if shard in down else value for shard, value in keys])


@given(st.lists(st.one_of(st.integers(0, 10**12), st.none()), min_size=1, max_size=6), st.booleans())
def test_sums(counts: list[int | None], nil: bool) -> None:
    replies = [
        (shard, FAILED if count is None else b":%d\r\n" % count, count is not None)
        for shard, count in enumerate(counts)
    ]
    got = merge("sum", [], replies, NAMES, 2, nil)
    answered = [count for count in counts if count is not None]
    if answered and (nil or len(answered) == len(counts)):
        assert got == b":%d\r\n" % sum(answered)
    else:
        assert got.startswith(b"-SHARDDOWN it is down [failed on: ")


@given(
    st.lists(st.sampled_from([b"+OK\r\n", b"-OOM no\r\n", b":1\r\n", None]), min_size=1, max_size=6),
    st.booleans(),
)
def test_ok_only_when_all_say_ok(replies: list[bytes | None], nil: bool) -> None:
    parts = [(shard, reply or FAILED, reply is not None) for shard, reply in enumerate(replies)]
    got = merge("ok", [], parts, NAMES, 2, nil)
    assert (got == b"+OK\r\n") == all(reply == b"+OK\r\n" for reply in replies)
    assert Scanner().feed(got) == [got]
