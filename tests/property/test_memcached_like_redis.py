"""Redis's commands on memcached answer what a Redis answers: random programs on both, reply by reply.

Once through core/memcached's programs alone, and once through a proxy with memcached shards, where the
engine's own translation takes part; in RESP2 and RESP3.

    pytest tests/property/test_memcached_like_redis.py                            CI: the same programs always
    SHARDPROXY_EXAMPLES=5000 pytest tests/property/test_memcached_like_redis.py   long: others each time

What is compared loosely, because memcached cannot know it: TTLs (whole seconds, rounded up), OBJECT
ENCODING of what APPEND and its kin have made, MEMORY USAGE, and DBSIZE, which may count what has expired.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from servers import MemcachedNode, ProxyProcess, RedisNode, toml
from stepper import Stepper

from shardproxy.core.memcached import PROGRAMS

LONG = os.environ.get("SHARDPROXY_EXAMPLES")
EXAMPLES = int(LONG or 60)
MOST = 25  # commands of a program

many = settings(
    max_examples=EXAMPLES,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    print_blob=bool(LONG),
)

Args: TypeAlias = tuple[bytes, ...]
Answer: TypeAlias = "Callable[[Args], bytes]"

KEYS = [b"a", b"b", b"c:1", b"{tag}d", b"with space", b"\r\nHD\r\n", bytes(range(186)), b"\x80\xff"]
VALUES = [
    *(b"", b"0", b"1", b"-1", b"9", b"10", b"99", b"-10", b"100", b"-100", b"007", b" 1", b"1 ", b"+1"),
    *(b"-0", b"9223372036854775807", b"-9223372036854775808", b"18446744073709551615", b"9" * 25, b"1.5"),
    *(b"-0.75", b"abc", b"3.0e3", b"inf", b"nan", bytes(range(256)), b"x" * 5000, b"VA 2\r\nHD\r\n"),
    *(b"y" * 44, b"z" * 45),
]
INTEGERS = [
    *(b"0", b"1", b"-1", b"9", b"10", b"-10", b"99", b"-100", b"1000", b"9223372036854775807"),
    *(b"-9223372036854775808", b"9223372036854775808", b"abc", b"1.5", b"", b" 1", b"01", b"-0"),
]
FLOATS = [
    *(b"0.1", b"0.2", b"1", b"-1", b"1e3", b"-1.5", b"5.0e-2", b".5", b"5.", b"1e-20", b"0", b"0x1p3"),
    *(b"3.14159265358979323846", b"12345678901234567.89", b"0x.8", b"-0x1.8p-1", b"+2", b"-0", b"1e400"),
    *(b"1e4932", b"-1e4932", b"1e5000", b"1e-5000", b"1e-4950", b"7" * 4900, b"inf", b"-inf", b"infinity"),
    *(b"nan", b"abc", b"", b" 1", b"1 ", b"1e", b"."),
]
ODD_TIMES = [b"0", b"-1", b"abc", b"", b"9223372036854775807", b"-9223372036854775808", b"1.5"]
# Stand for times that are different in every command of a program: two that are the same a moment later are
# not to memcached's seconds. Which is less than a step apart Redis itself would tell by the millisecond.
SOON, SOON_MS, AT, AT_MS = b"<s>", b"<ms>", b"<at>", b"<at ms>"
STEP, FIRST = 50, 100  # seconds


def one(*texts: str | bytes) -> Any:
    return st.sampled_from([each if isinstance(each, bytes) else each.encode() for each in texts])


def form(*parts: Any) -> Any:
    """A command: words, or strategies of an argument or of several."""
    made = [st.just(part.encode()) if isinstance(part, str) else part for part in parts]
    return st.tuples(*made).map(
        lambda found: tuple(
            arg for part in found for arg in (part if isinstance(part, (list, tuple)) else [part])
        )
    )


def mostly(time: bytes) -> Any:
    odd = [each for each in ODD_TIMES if (time, each) != (AT_MS, ODD_TIMES[4])]  # which memcached cannot keep
    return st.one_of(st.just(time), st.just(time), st.just(time), one(*odd))


key, value = one(*KEYS[:4], *KEYS), one(*VALUES)
integer, number = one(*INTEGERS), one(*FLOATS)
some_keys = st.lists(key, min_size=1, max_size=4)
lifetime = st.one_of(
    st.tuples(one("EX", "ex"), mostly(SOON)),
    st.tuples(one("PX", "Px"), mostly(SOON_MS)),
    st.tuples(one("EXAT"), st.one_of(mostly(AT), one("1"))),
    st.tuples(one("PXAT"), st.one_of(mostly(AT_MS), one("1"))),
)
set_options = st.lists(
    st.one_of(
        *[lifetime, st.tuples(one("NX", "nx")), st.tuples(one("XX"))],
        *[st.tuples(one("GET", "get")), st.tuples(one("KEEPTTL")), st.tuples(one("EX", "PERSIST", "zz", ""))],
    ),
    max_size=3,
).map(lambda found: [arg for part in found for arg in part])
conditions = st.lists(one("NX", "XX", "GT", "LT", "nx", "zz"), max_size=1) | st.lists(
    one("NX", "XX", "GT", "LT", "gt"), max_size=3
)
persist_ex, two = st.tuples(one("PERSIST"), one("EX")), st.tuples(one("SYNC"), one("ASYNC"))
samples = st.tuples(one("SAMPLES", "zz"), one("1", "-1", "abc"))
pairs = st.lists(st.tuples(key, value), min_size=1, max_size=3).map(lambda found: sum(found, ()))
offset = one("0", "1", "5", "300", "-1", "abc", "536870912", "9223372036854775807")

COMMANDS = {
    "get": form("GET", key),
    "set": form("SET", key, value, set_options),
    "setex": form("SETEX", key, mostly(SOON), value),
    "psetex": form("PSETEX", key, mostly(SOON_MS), value),
    "setnx": form("SETNX", key, value),
    "getset": form("GETSET", key, value),
    "getdel": form("GETDEL", key),
    "getex": form("GETEX", key, st.just([]) | lifetime | one("PERSIST", "KEEPTTL") | persist_ex),
    "mget": form("MGET", some_keys),
    "mset": form("MSET", pairs),
    "del": form("DEL", some_keys),
    "unlink": form("UNLINK", some_keys),
    "exists": form("EXISTS", some_keys),
    "touch": form("TOUCH", some_keys),
    "expire": form("EXPIRE", key, mostly(SOON), conditions),
    "pexpire": form("PEXPIRE", key, mostly(SOON_MS), conditions),
    "expireat": form("EXPIREAT", key, mostly(AT), conditions),
    "pexpireat": form("PEXPIREAT", key, mostly(AT_MS), conditions),
    "persist": form("PERSIST", key),
    "ttl": form("TTL", key),
    "pttl": form("PTTL", key),
    "expiretime": form("EXPIRETIME", key),
    "pexpiretime": form("PEXPIRETIME", key),
    "strlen": form("STRLEN", key),
    "append": form("APPEND", key, value),
    "incr": form("INCR", key),
    "decr": form("DECR", key),
    "incrby": form("INCRBY", key, integer),
    "decrby": form("DECRBY", key, integer),
    "incrbyfloat": form("INCRBYFLOAT", key, number),
    "getrange": form("GETRANGE", key, integer, integer),
    "setrange": form("SETRANGE", key, offset, value),
    "type": form("TYPE", key),
    "object|encoding": form("OBJECT", "ENCODING", key),
    "memory|usage": form("MEMORY", "USAGE", key, st.just([]) | samples),
    "dbsize": form("DBSIZE"),
    "flushall": form("FLUSHALL", st.just([]) | one("ASYNC", "sync", "zz") | two),
    "flushdb": form("FLUSHDB"),
    "ping": form("PING", st.just([]) | value),
}  # fmt: skip
# what programs meet most: values that are there, numbers, TTLs
OFTEN = [
    "set",
    "set",
    "set",
    "incr",
    "incrby",
    "decrby",
    "append",
    "expire",
    "ttl",
    "get",
    "getex",
    "setrange",
]


@st.composite
def programs(draw: Any) -> list[Args]:
    names = st.sampled_from([*COMMANDS, *OFTEN])
    found: list[Args] = []
    for _ in range(draw(st.integers(1, MOST))):
        args = draw(COMMANDS[draw(names)])
        if draw(st.integers(0, 40)) == 0:
            args = draw(st.sampled_from([args[:-1] or args, (*args, b"1")]))
        found.append(args)
    return found


def timed(program: Sequence[Args], now: int) -> list[Args]:
    """With times in place of what stands for them: each so many seconds from the others."""
    found = []
    for at, args in enumerate(program):
        ahead = FIRST + STEP * (7 * at % MOST)
        times = {
            SOON: b"%d" % ahead,
            SOON_MS: b"%d" % (ahead * 1000 + 300),
            AT: b"%d" % (now + ahead + STEP // 2),
            AT_MS: b"%d" % ((now + ahead + STEP // 2) * 1000 + 700),
        }
        found.append(tuple(times.get(arg, arg) for arg in args))
    return found


# --- comparing ---

UNITS = {b"TTL": 1, b"EXPIRETIME": 1, b"PTTL": 1000, b"PEXPIRETIME": 1000}


def same(args: Args, theirs: bytes, ours: bytes) -> bool:
    name = args[0].upper()
    if theirs == ours:
        return True
    if theirs[:1] != ours[:1] or theirs[:1] in b"-_" or theirs == b"$-1\r\n":
        return False
    if name in UNITS and theirs[1:2] != b"-" and ours[1:2] != b"-":
        return abs(int(theirs[1:]) - int(ours[1:])) <= 2 * UNITS[name]
    return (name == b"OBJECT" and ours != b"$-1\r\n") or name in (b"MEMORY", b"DBSIZE")


def check(program: Sequence[Args], redis: Answer, memcached: Answer) -> None:
    for flush in (redis, memcached):
        assert flush((b"FLUSHALL",)) == b"+OK\r\n"
    done: list[Args] = []
    for args in timed(program, int(time.time())):
        done.append(args)
        theirs, ours = redis(args), memcached(args)
        assert same(args, theirs, ours), f"after {done}:\nredis     {theirs!r}\nmemcached {ours!r}"


class World:
    def __init__(self, stack: ExitStack) -> None:
        self.redis = stack.enter_context(RedisNode())
        self.nodes = [stack.enter_context(MemcachedNode()) for _ in range(2)]
        self.proxy = stack.enter_context(
            ProxyProcess(toml({f"m{at}": node.url for at, node in enumerate(self.nodes)}))
        )


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


@pytest.mark.parametrize("proto", [2, 3], ids=["RESP2", "RESP3"])
def test_the_same_replies_of_programs_alone(world: World, proto: int) -> None:
    with world.redis.raw() as redis, Stepper(world.nodes[0].port) as stepper:
        redis.ask("HELLO", proto)

        @many
        @given(program=programs())
        def run(program: list[Args]) -> None:
            check(program, lambda args: redis.ask(*args), lambda args: stepper.ask(*args, proto=proto))

        run()


@pytest.mark.parametrize("proto", [2, 3], ids=["RESP2", "RESP3"])
def test_the_same_replies_through_the_proxy(world: World, proto: int) -> None:
    with world.redis.raw() as redis, world.proxy.raw() as proxy:
        for raw in (redis, proxy):
            raw.ask("HELLO", proto)

        @many
        @given(program=programs())
        def run(program: list[Args]) -> None:
            check(program, lambda args: redis.ask(*args), lambda args: proxy.ask(*args))

        run()


def test_every_command_that_is_possible_is_compared() -> None:
    assert set(COMMANDS) == set(PROGRAMS)


@pytest.mark.parametrize("value", VALUES)
def test_object_encoding_of_what_set_has_written(world: World, value: bytes) -> None:
    with world.redis.raw() as redis, Stepper(world.nodes[0].port) as stepper:
        for ask in (redis.ask, stepper.ask):
            assert ask("SET", "encoded", value) == b"+OK\r\n"
        assert stepper.ask("OBJECT", "ENCODING", "encoded") == redis.ask("OBJECT", "ENCODING", "encoded")
