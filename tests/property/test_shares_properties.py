"""Calls of a pipeline by shard, compiled, against one call after another through router and packer."""

import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shardproxy.client.routing import Router
from shardproxy.client.settings import Settings
from shardproxy.client.wire import Coding, pack
from shardproxy.core.commands import builtin
from shardproxy.core.shares import gather

SHARDS = {name: {"primary": f"redis://127.0.0.1:{7001 + n}", "weight": n + 1} for n, name in enumerate("abc")}
ROUTERS = [
    Router(Settings.from_shards(SHARDS, {}, **pool).pool, builtin(), Coding())
    for pool in ({}, {"distribution": "ketama", "hash_tag": "{}"}, {"distribution": "modula"})
]
NAMES = ["GET", "get", b"GET", "SET", b"HSET", "OBJECT ENCODING", "XGROUP CREATE"]
ELSEWHERE = ["MGET", "PING", "EVAL", "XREAD", "BLPOP", "NOSUCH", "TIME", 5, None]  # looked at one by one
BUT = "NEVER_DECODE"

plain = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.binary(max_size=12),
    st.integers(),
    st.floats(),
    st.sampled_from(["{a}b", "{}{a}", "x" * 1500, b"\0\r\n"]),
)
odd = st.sampled_from(
    [None, True, [], bytearray(b"x"), memoryview(b"x"), "\ud800", type("Text", (str,), {})("x")]
)
options = st.sampled_from([{}, {"withscores": True}])
simple = st.tuples(
    st.builds(
        lambda name, args: (name, *args), st.sampled_from(NAMES), st.lists(plain, min_size=1, max_size=4)
    ),
    options,
)
others = st.one_of(
    st.tuples(st.builds(lambda name, arg: (name, arg), st.sampled_from(ELSEWHERE), plain), options),
    st.tuples(
        st.builds(lambda name, args: (name, *args), st.sampled_from(NAMES), st.tuples(plain, odd)), options
    ),
    st.tuples(st.builds(lambda arg: ("GET", arg), odd), options),
    st.tuples(st.sampled_from([("GET",), ("OBJECT ENCODING",)]), options),
    st.tuples(st.builds(lambda arg: ("GET", arg), plain), st.just({BUT: True})),
)


def one_by_one(
    router: Router, calls: list[Any], numbers: list[int]
) -> dict[int, tuple[bytes, list[int], bool]]:
    found: dict[int, tuple[bytes, list[int], bool]] = {}
    for number in numbers:
        args = calls[number][0]
        command = router.command(args[0])
        at = router.place(command, args)
        data, owners, writes = found.get(at, (b"", [], False))
        found[at] = data + pack(args), [*owners, number], writes or not command.reads
    return found


@given(
    st.sampled_from(ROUTERS), st.lists(simple, max_size=12), others, st.lists(simple, max_size=3), st.data()
)
def test_as_one_after_another(router: Router, calls: list[Any], end: Any, more: list[Any], data: Any) -> None:
    for name in NAMES:
        router.command(name)
    everything = [*calls, end, *more]
    first = data.draw(st.integers(0, len(calls)))
    # not all calls are sent again, and they keep their numbers
    numbers = [number for number in range(len(calls)) if number < first or data.draw(st.booleans())]
    numbers += range(len(calls), len(everything))
    stop, found = gather(router.pool.ring, router.commands, everything, numbers, first, BUT)
    assert stop == numbers.index(len(calls))
    assert found == one_by_one(router, everything, numbers[first:stop])
    assert list(found) == sorted(found)


def test_nothing_is_kept() -> None:
    router = ROUTERS[0]
    router.command("GET")
    key, call = "a key of its own", ("GET", "a key of its own", 1)
    before = sys.getrefcount(key), sys.getrefcount(call)
    for _ in range(100):
        gather(router.pool.ring, router.commands, [(call, {}), (("GET", None), {})], [0, 1], 0, BUT)
    assert (sys.getrefcount(key), sys.getrefcount(call)) == before
