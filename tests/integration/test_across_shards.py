"""cross_shard = "emulate": the same replies and the same values as one Redis gives, over three nodes."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from servers import ProxyProcess, Raw, RedisNode, redis_nodes, shards_of, toml

SETUP = """
SADD s1 a b c|SADD s2 b c d|SADD s3 c d e|SADD s4 c
ZADD z1 1 a 2 b 3 c|ZADD z2 10 b 20 c|ZADD z3 5 c
RPUSH l1 a b c b|RPUSH l2 x|RPUSH l3 3 1 2
PFADD h1 a b c|PFADD h2 c d|PFADD h3 e
SET t1 foobar|SET t2 abcdef|SET t3 zzz|SET n1 5
GEOADD g1 13.361389 38.115556 Palermo 15.087269 37.502669 Catania
SET life 1 EX 1000
""".strip().replace("\n", "|")

PROGRAM = """
SINTER s1 s2 s3|SUNION s1 s2 s3 nothing|SDIFF s1 s2|SINTERCARD 3 s1 s2 s3|SINTERCARD 3 s1 s2 s3 LIMIT 1
SINTERSTORE d1 s1 s2 s3|SMEMBERS d1|SUNIONSTORE d2 s1 s2 s3|SDIFFSTORE d3 s1 s4|SMEMBERS d3|TTL d1
SUNIONSTORE s1 s1 s2|SMEMBERS s1|SINTERSTORE d1 s1 nothing|EXISTS d1
ZUNION 3 z1 z2 z3 WITHSCORES|ZINTER 2 z1 z2 WEIGHTS 2 1|ZDIFF 2 z1 z3|ZINTERCARD 2 z1 z2
ZUNIONSTORE e1 3 z1 z2 z3 AGGREGATE MAX|ZRANGE e1 0 -1 WITHSCORES|ZINTERSTORE e2 2 z1 z3|ZDIFFSTORE e3 2 z1 z2
ZRANGESTORE e4 z1 0 1|ZRANGE e4 0 -1|TTL e4
PFCOUNT h1 h2 h3|PFMERGE h4 h1 h2 h3|PFCOUNT h4|PFMERGE h1 h2|PFCOUNT h1
BITOP AND b1 t1 t2 t3|GET b1|BITOP NOT b2 t1|GET b2|BITOP OR t1 t1 nothing|GET t1|LCS t2 t3|LCS t2 t2
SORT l3 STORE sorted|LRANGE sorted 0 -1|GEOSEARCHSTORE g2 g1 FROMLONLAT 15 37 BYRADIUS 200 km|ZCARD g2
RENAME life life2|TTL life2|EXISTS life|RENAME nothing y|RENAMENX t3 t2|GET t2
RENAMENX t3 fresh|GET fresh|GET t3
COPY life2 life3|TTL life3|COPY n1 life3|COPY n1 life3 REPLACE|GET life3
COPY nothing x|COPY n1 n2 DB 3|SELECT 3|GET n2
SELECT 0|COPY n1 n3 WRONG
SMOVE s2 s3 b|SMEMBERS s2|SMEMBERS s3|SMOVE s2 s3 none|SMOVE s2 t2 c|SISMEMBER s2 c|SMOVE nothing s3 x
SMOVE nothing t2 x
LMOVE l1 l2 LEFT RIGHT|LRANGE l1 0 -1|LRANGE l2 0 -1|LMOVE l1 l2 RIGHT LEFT|LRANGE l2 0 -1
RPOPLPUSH l1 l2|LRANGE l2 0 -1
LMOVE nothing l2 LEFT LEFT|LMOVE l1 t2 LEFT LEFT|LRANGE l1 0 -1|LMOVE l1 l2 UP LEFT
LMPOP 3 nothing1 nothing2 l2 LEFT COUNT 2|LMPOP 2 no1 no2 LEFT|ZMPOP 3 no z2 z1 MIN|ZMPOP 2 no z1 MAX COUNT 5
LMPOP 2 l1 LEFT|LMPOP 2 l2 RIGHT|LMPOP 3 l1 l2 LEFT|ZMPOP 2 z1 MIN|ZMPOP 2 z2 MAX|ZMPOP 3 z1 z2 MIN
SINTER s1 t2|SUNIONSTORE d9 s1 t2|EXISTS d9|PFCOUNT h1 s1|RENAME s1 s9|SCARD s9|PFMERGE s9 h1|DBSIZE
""".strip().replace("\n", "|")

UNORDERED = ("SINTER", "SUNION", "SDIFF", "SMEMBERS")


@pytest.fixture(scope="module")
def one() -> Iterator[RedisNode]:
    with RedisNode() as node:
        yield node


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def proxy(nodes: list[RedisNode]) -> Iterator[ProxyProcess]:
    with ProxyProcess(toml(shards_of(nodes), pool='cross_shard = "emulate"')) as proxy:
        yield proxy


def clean(nodes: list[RedisNode]) -> None:
    for node in nodes:
        with node.raw() as direct:
            direct.ask("FLUSHALL")


def ordered(command: str, frame: bytes) -> bytes | list[bytes]:
    return sorted(frame.split(b"\r\n")) if command.split()[0] in UNORDERED else frame


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("salt", ["", "x", "longer:"])
def test_the_replies_are_those_of_one_redis(
    one: RedisNode, nodes: list[RedisNode], proxy: ProxyProcess, proto: int, salt: str
) -> None:
    """Other names of keys, other shards."""
    clean([one, *nodes])
    with one.raw() as direct, proxy.raw() as raw:
        for client in (direct, raw):
            client.ask("HELLO", proto)
        for command in f"{SETUP}|{PROGRAM}".split("|"):
            words = command.split()
            for at in range(1, len(words)):
                if words[at][:1].islower() and words[at][-1:].isdigit() and salt:
                    words[at] = salt + words[at]
            expected, found = direct.ask(*words), raw.ask(*words)
            assert ordered(command, found) == ordered(command, expected), words
    leftovers = []
    for node in nodes:
        with node.raw() as direct:
            leftovers += [key for key in direct.value("KEYS", "*") if key.startswith("shardproxy:")]
    assert leftovers == []


def test_later_commands_of_a_pipeline_come_later(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    clean(nodes)
    with proxy.raw() as raw:
        for turn in range(20):
            raw.send(
                b"SET p1 %d|RENAME p1 p2|GET p2|SADD q1 a|SADD q2 b|SUNION q1 q2|DEL q1 q2|".replace(
                    b"|", b"\r\n"
                )
                % turn
            )
            replies = raw.frames(7)
            assert replies[1] == b"+OK\r\n"
            assert replies[2].endswith(b"\r\n%d\r\n" % turn)
            assert replies[5].startswith(b"*2\r\n")


def test_a_shard_that_is_down_loses_nothing(nodes: list[RedisNode]) -> None:
    with ExitStack() as stack:
        three = stack.enter_context(redis_nodes(3))
        proxy = stack.enter_context(ProxyProcess(toml(shards_of(three), pool='cross_shard = "emulate"')))
        raw = stack.enter_context(proxy.raw())
        by_shard: dict[str, str] = {}
        for number in range(200):
            place = json.loads(raw.value("PROXY", "LOCATE", f"k{number}"))
            by_shard.setdefault(place["shard"], f"k{number}")
        source, target = by_shard["a"], by_shard["b"]
        raw.ask("SET", source, "precious")
        three[1].kill()
        assert raw.ask("RENAME", source, target).startswith((b"-SHARDDOWN", b"-UNKNOWN", b"-TIMEOUT"))
        assert raw.value("GET", source) == "precious"


def test_it_is_refused_where_the_pool_does_not_say_so(nodes: list[RedisNode]) -> None:
    with ProxyProcess(toml(shards_of(nodes))) as proxy, proxy.raw() as raw:
        answers = {raw.ask("SUNION", f"a{n}", f"b{n}")[:10] for n in range(20)}
        assert b"-CROSSSLOT" in answers


def test_msetnx_and_transactions_are_not_emulated(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw:
        assert b"-CROSSSLOT" in {raw.ask("MSETNX", f"a{n}", 1, f"b{n}", 1)[:10] for n in range(20)}
        raw.ask("MULTI")
        assert b"-CROSSSLOT" in {raw.ask("RENAME", f"a{n}", f"b{n}")[:10] for n in range(20)}
        assert raw.ask("EXEC").startswith(b"-EXECABORT")


def test_elements_that_others_take_meanwhile_are_moved_once(
    proxy: ProxyProcess, nodes: list[RedisNode]
) -> None:
    """Two clients move a list at the same time: each element arrives, at most a refusal in between."""
    clean(nodes)
    with proxy.raw() as one, proxy.raw() as two:
        one.ask("RPUSH", "from", *range(50))
        for client in (one, two):
            client.send(b"LMOVE from to LEFT RIGHT\r\n" * 60)
        for client in (one, two):
            for frame in client.frames(60):
                assert frame.startswith((b"$", b"-TRYAGAIN")), frame
        moved = _list(one, "to")
        assert set(moved) | set(_list(one, "from")) == {str(n) for n in range(50)}


def _list(raw: Raw, key: str) -> list[str]:
    found: list[str] = raw.value("LRANGE", key, 0, -1)
    return found
