"""RESP3 clients of nodes that speak RESP2 only see what a RESP3 node would have sent, byte for byte."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from every_command import SEEDS
from servers import ProxyProcess, Raw, RedisNode, frame_end, pack, shards_of, toml, until

from shardproxy.core import raising

OLD = ("--rename-command", "HELLO", "")
# A command a line; what it answers does not depend on chance
CALLS = """
ZRANGE @z 0 -1 WITHSCORES
ZRANGE @z 0 -1
ZREVRANGE @z 0 -1 withscores
ZRANGEBYSCORE @z -inf +inf WITHSCORES LIMIT 0 2
ZREVRANGEBYSCORE @z +inf -inf WITHSCORES
ZRANDMEMBER @z 9 WITHSCORES
ZRANDMEMBER @_z
ZUNION 2 @z @y WITHSCORES
ZINTER 2 @z @y WEIGHTS 2 3 WITHSCORES
ZDIFF 2 @z @y
ZADD @z INCR 1.5 a
ZADD @z NX INCR 1 a
ZADD @z CH 7 a
ZADD @z inf a
ZSCORE @z a
ZSCORE @z nosuch
ZINCRBY @z -inf b
ZMSCORE @z a nosuch b
ZRANK @z nosuch
ZPOPMIN @z
ZPOPMAX @z 2
ZPOPMIN @_z
BZPOPMIN @z 1
BZPOPMAX @_z 0.01
ZMPOP 1 @z MIN COUNT 2
BZMPOP 1 1 @z MAX COUNT 2
ZMPOP 1 @_z MIN
ZSCAN @z 0
GET @s
GET @h
MGET @s @_s @n
HGETALL @h
HGETALL @_h
HGETALL @s
HMGET @h a nosuch
HRANDFIELD @h 5 WITHVALUES
SMEMBERS @_t
SINTER @t @_u
SPOP @_t 5
SPOP @_t
SRANDMEMBER @_t
LCS @s @s IDX WITHMATCHLEN
LCS @s @s
GEOPOS @g a nosuch b
GEODIST @g a b
GEORADIUS @g 15 37 200 km ASC WITHCOORD WITHDIST WITHHASH
GEOSEARCH @g FROMLONLAT 15 37 BYRADIUS 200 km ASC WITHCOORD
GEORADIUSBYMEMBER @g a 200 km ASC WITHDIST
XINFO STREAM @x
XINFO GROUPS @x
XREAD COUNT 1 STREAMS @x 0
XREAD COUNT 1 STREAMS @x $
XREAD BLOCK 5 STREAMS @x $
XREADGROUP GROUP g d COUNT 1 STREAMS @x >
XRANGE @x - +
XAUTOCLAIM @x g d 0 0
LPOP @_l 2
LPOS @l nosuch
LMPOP 1 @l LEFT
BLPOP @_l 0.01
BLPOP @l 1
SORT @l ALPHA
BITFIELD @b OVERFLOW FAIL INCRBY u2 0 9
OBJECT ENCODING @_s
SET @s x GET
SET @s x XX GET
EVAL 'return{1,false,{"a",false}}' 1 @s
EXISTS @s @_s
DEL @s
"""


def shared_key(line: str) -> str:
    return line.replace("@_", "{t}no-").replace("@", "{t}")


def words(line: str) -> list[str]:
    return shlex.split(shared_key(line))


def seed(raw: Raw) -> None:
    raw.ask("FLUSHALL")
    for line in SEEDS.strip().splitlines():
        raw.ask(*words(line))


@pytest.fixture(scope="module")
def old() -> Iterator[RedisNode]:
    with RedisNode(*OLD) as node:
        yield node


@pytest.fixture(scope="module")
def proxy(old: RedisNode) -> Iterator[ProxyProcess]:
    # a second shard, so that MGET and its kind are merged
    with RedisNode(*OLD) as other:
        top = "[limits]\nclient_output_hard = '4mb'\nclient_output_soft = '1mb'"
        with ProxyProcess(toml(shards_of([old, other]), top=top)) as process:
            yield process


@pytest.fixture
def both(redis: RedisNode, proxy: ProxyProcess) -> Iterator[tuple[Raw, Raw]]:
    """A plain Redis, and the proxy, in RESP3."""
    with redis.raw() as plain, proxy.raw() as raw:
        for each in (plain, raw):
            assert each.ask("HELLO", 3).startswith(b"%")
            each.ask("SCRIPT", "FLUSH")
        yield plain, raw


def sorted_map(frame: bytes) -> object:
    """What comes in no order, in one."""
    if frame[:1] not in b"*%~":
        return frame
    at, items = frame.index(b"\r\n") + 2, []
    while at < len(frame):
        end = frame_end(frame, at)
        items.append(frame[at:end])
        at = end
    return frame[:2], sorted(items)


def test_the_replies_are_those_of_a_resp3_node(both: tuple[Raw, Raw]) -> None:
    for line in CALLS.strip().splitlines():
        found = []
        for raw in both:
            seed(raw)
            found.append(raw.ask(*words(line)))
        if "RAND" in line:
            assert sorted_map(found[0]) == sorted_map(found[1]), line
        else:
            assert found[0] == found[1], line


def test_in_a_transaction_and_in_a_pipeline(both: tuple[Raw, Raw]) -> None:
    lines = ["HGETALL @h", "ZSCORE @z a", "SET @s 1", "ZSCORE @z nosuch", "ZPOPMIN @z 1", "GET @_s"]
    packed = [pack(*words(line)) for line in lines]
    found = []
    for raw in both:
        seed(raw)
        frames: list[bytes] = []
        raw.send(b"".join(packed))
        frames += raw.frames(len(packed))
        for extra in (b"", b"PING\r\n", b"CLIENT SETNAME x\r\n"):  # the last one's EXEC is a handler's
            raw.send(b"MULTI\r\n" + b"".join(packed) + extra + b"EXEC\r\n")
            frames += raw.frames(len(packed) + 2 + bool(extra))
        raw.send(b"WATCH {t}s\r\n")
        raw.frame()
        raw.send(b"MULTI\r\n" + packed[0] + b"EXEC\r\n" + packed[1])
        frames += raw.frames(4)
        found.append(frames)
    assert found[0] == found[1]


def test_what_watches_may_change_its_protocol(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw:
        seed(raw)
        for proto, begins in ((3, b"%2"), (2, b"*4"), (3, b"%2")):
            raw.ask("WATCH", "{t}h")
            raw.ask("HELLO", proto)
            assert raw.ask("HGETALL", "{t}h").startswith(begins)
            raw.send(b"MULTI\r\nHGETALL {t}h\r\nEXEC\r\n")
            assert raw.frames(3)[2].startswith(b"*1\r\n" + begins)


def test_what_administrators_ask_is_a_map(both: tuple[Raw, Raw]) -> None:
    for asked in (
        "CONFIG GET maxmemory",
        "MEMORY STATS",
        "INFO server",
        "FUNCTION LIST",
        "LATENCY HISTOGRAM get",
    ):
        one, other = (raw.ask(*asked.split()) for raw in both)
        assert one[:1] == other[:1], asked


def test_large_replies(both: tuple[Raw, Raw]) -> None:
    for raw in both:
        raw.ask("DEL", "large", "huge", "text")
        raw.ask("ZADD", "large", *(f"{n:0100}" for n in range(4000)))
        raw.ask("SET", "text", "x" * 2_000_000)
    for asked in ("ZRANGE large 0 -1 WITHSCORES", "GET text"):
        found = [raw.ask(*asked.split()) for raw in both]
        assert found[0] == found[1], asked
    _, raw = both
    for _ in range(8):  # beyond client_output_hard
        raw.ask("RPUSH", "huge", *("y" * 1000 for _ in range(1000)))
    assert raw.ask("LRANGE", "huge", 0, -1).startswith(
        b"-ERR the reply is too large to be made RESP3 of: shard '"
    )
    assert raw.ask("LINDEX", "huge", 0) == b"$1000\r\n" + b"y" * 1000 + b"\r\n"


def test_a_subscriber_gets_pushes(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        raw.ask("HELLO", 3)
        assert raw.ask("SUBSCRIBE", "c").startswith(b">3")
        other.ask("PUBLISH", "c", "hello")
        assert raw.frame() == b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\nhello\r\n"


def test_tracking_is_refused(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        for each, proto in ((raw, 3), (other, 2)):
            each.ask("HELLO", proto)
            redirect = ["REDIRECT", raw.value("CLIENT", "ID")] if proto == 2 else []
            for options in ([], ["BCAST"]):
                said = each.ask("CLIENT", "TRACKING", "ON", *redirect, *options).decode()
                assert said.startswith("-ERR CLIENT TRACKING needs nodes that speak RESP3: shard '"), said
            assert each.ask("SET", "k", 1) == b"+OK\r\n"
        assert b"flags\r\n~1\r\n$3\r\noff" in raw.ask("CLIENT", "TRACKINGINFO")


def test_with_a_password_and_a_node_that_becomes_newer(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secret").chmod(0o600)
    secret = ("--requirepass", "secret")
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(RedisNode(*OLD, *secret))
        proxy = stack.enter_context(
            ProxyProcess(toml(shards_of([node]), pool=f"password_file = '{tmp_path}/secret'"))
        )
        raw = stack.enter_context(proxy.raw())
        raw.ask("HELLO", 3)
        raw.ask("HSET", "h", "a", 1)
        assert raw.ask("HGETALL", "h") == b"%1\r\n$1\r\na\r\n$1\r\n1\r\n"
        assert raw.ask("CLIENT", "TRACKING", "ON").startswith(b"-ERR")
        node.kill()
        node.options = secret
        node.start()
        until(lambda: raw.ask("HSET", "h", "a", 1).startswith(b":"), "it is back")
        assert raw.ask("HGETALL", "h") == b"%1\r\n$1\r\na\r\n$1\r\n1\r\n"
        assert raw.ask("CLIENT", "TRACKING", "ON") == b"+OK\r\n"


def test_what_fits_no_shape_is_left_alone() -> None:
    for frame in (
        b"+OK\r\n",
        b":1\r\n",
        b"-ERR no\r\n",
        b"*0\r\n",
        b"*3\r\n:1\r\n:2\r\n:3\r\n",
        b"$1\r\nx\r\n",
    ):
        for name in (
            "HGETALL",
            "ZPOPMIN",
            "XREAD",
            "FUNCTION LIST",
            "XINFO STREAM",
            "ZMPOP",
            "GEOPOS",
            "EXEC",
        ):
            made = raising.raised(pack(*name.split(), "k"), 1, frame)
            assert frame_end(made) == len(made), (name, frame, made)
    assert raising.raised(pack("HGETALL", "k"), 1, b"*-1\r\n") == b"_\r\n"
    assert raising.raised(pack("XREAD", "k"), 1, b"*1\r\n*1\r\n:1\r\n") == b"*1\r\n*1\r\n:1\r\n"
