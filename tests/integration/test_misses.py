"""core/misses against a real Redis: its answers are the server's own for missing keys, byte by byte."""

from collections.abc import Iterator
from random import Random

import pytest
from servers import Raw, RedisNode, pack

from shardproxy.core.command_rows import Row
from shardproxy.core.commands import builtin
from shardproxy.core.misses import FORMS, UNKNOWABLE, reply

TABLE = builtin()
READS = {
    row.name: row
    for row in TABLE.records
    if "readonly" in row.flags and row.kind in ("forward", "fanout")
}  # fmt: skip

# Each must be answered: what clients commonly send, and at least one line for every form
LINES = r"""
GET k
MGET k / MGET a b c d e f g h i j k l
STRLEN k
GETRANGE k 0 -1
SUBSTR k 2 5
LCS a b / LCS a b LEN / LCS a b IDX / LCS a b IDX MINMATCHLEN 4 WITHMATCHLEN
GETBIT k 7 / GETBIT k 100000000
BITCOUNT k / BITCOUNT k 0 -1 / BITCOUNT k 0 5 BIT / BITCOUNT k 0 5 byte
BITPOS k 0 / BITPOS k 1 / BITPOS k 1 2 / BITPOS k 0 2 -1 / BITPOS k 1 2 -1 BIT
BITFIELD_RO k / BITFIELD_RO k GET u8 0 / bitfield_ro k get i64 #3 GET u63 100 get i5 1
PFCOUNT k / PFCOUNT a b c
EXISTS k / EXISTS k k b
TOUCH k / TOUCH k b
TYPE k
TTL k
PTTL k
EXPIRETIME k
PEXPIRETIME k
DUMP k
OBJECT ENCODING k
OBJECT FREQ k
OBJECT IDLETIME k
OBJECT REFCOUNT k
MEMORY USAGE k / MEMORY USAGE k SAMPLES 0
SORT_RO k / SORT_RO k DESC ALPHA LIMIT 0 10 / SORT_RO k BY nosort GET # GET #
HGET k f
HMGET k f / HMGET k f g h i j k l m n o p
HGETALL k
HKEYS k
HVALS k
HLEN k
HSTRLEN k f
HEXISTS k f
HRANDFIELD k / HRANDFIELD k 3 / HRANDFIELD k -3 WITHVALUES / HRANDFIELD k 0
HSCAN k 0 / HSCAN k 17 MATCH a* COUNT 100
LINDEX k -1
LLEN k
LRANGE k 0 -1 / LRANGE k 0 9223372036854775807
LPOS k e / LPOS k e RANK -1 MAXLEN 0 / LPOS k e COUNT 0 / LPOS k e MAXLEN 3 COUNT 2 RANK 2
SCARD k
SISMEMBER k m
SMISMEMBER k m / SMISMEMBER k m n o
SMEMBERS k
SRANDMEMBER k / SRANDMEMBER k 5 / SRANDMEMBER k -5
SDIFF k / SDIFF a b
SINTER k / SINTER a b
SUNION k / SUNION a b
SINTERCARD 1 k / SINTERCARD 2 a b LIMIT 3
SSCAN k 0 / SSCAN k 0 COUNT 5
ZCARD k
ZCOUNT k -inf +inf / ZCOUNT k (1 2.5
ZLEXCOUNT k - + / ZLEXCOUNT k [a (b
ZSCORE k m
ZMSCORE k m / ZMSCORE k m n
ZRANK k m
ZREVRANK k m
ZRANDMEMBER k / ZRANDMEMBER k 2 / ZRANDMEMBER k -2 WITHSCORES
ZRANGE k 0 -1 / ZRANGE k 0 -1 REV WITHSCORES / ZRANGE k (1 inf BYSCORE LIMIT 0 3 WITHSCORES
ZRANGE k - [x BYLEX REV
ZREVRANGE k 0 -1 / ZREVRANGE k 0 -1 WITHSCORES
ZRANGEBYSCORE k -inf inf / ZRANGEBYSCORE k (1e3 5 LIMIT 0 9223372036854775807 WITHSCORES
ZREVRANGEBYSCORE k +inf -inf WITHSCORES
ZRANGEBYLEX k - + / ZRANGEBYLEX k [a [b LIMIT 1 -1
ZREVRANGEBYLEX k + -
ZDIFF 1 k / ZDIFF 2 a b WITHSCORES
ZINTER 1 k / ZINTER 2 a b WEIGHTS 1 -2.5 AGGREGATE MAX WITHSCORES
ZUNION 2 a b / ZUNION 1 k WITHSCORES AGGREGATE sum / ZUNION 1 k WEIGHTS inf
ZINTERCARD 1 k / ZINTERCARD 2 a b LIMIT 0
ZSCAN k 0 / ZSCAN k 0 MATCH *
GEODIST k a b / GEODIST k a b KM
GEOHASH k / GEOHASH k a b
GEOPOS k / GEOPOS k a b
GEOSEARCH k FROMMEMBER m BYRADIUS 1 km
GEOSEARCH k FROMLONLAT 15 37 BYBOX 400 400 km ASC COUNT 3 ANY WITHDIST
GEOSEARCH k BYRADIUS 100 m FROMLONLAT -15 -37.5 WITHCOORD WITHHASH DESC
GEOSEARCH k FROMMEMBER m BYBOX 1 2 ft
GEORADIUS_RO k 15 37 200 km / GEORADIUS_RO k 15 37 200 km WITHDIST COUNT 5 ASC
GEORADIUSBYMEMBER_RO k m 200 km / GEORADIUSBYMEMBER_RO k m 200 mi WITHCOORD WITHHASH COUNT 1 ANY
XLEN k
XRANGE k - + / XRANGE k (5-1 6 COUNT 0 / XRANGE k 0 + COUNT 10
XREVRANGE k + - / XREVRANGE k + - COUNT 1
XREAD STREAMS k 0 / XREAD COUNT 2 STREAMS a b 0-0 $
XPENDING k g / XPENDING k g - + 10 / XPENDING k g IDLE 9000 - + 10 c
XPENDING k g - + 10 c / XPENDING k g IDLE 1 0 5 1
XINFO STREAM k / XINFO STREAM k FULL / XINFO STREAM k FULL COUNT 10
XINFO GROUPS k
XINFO CONSUMERS k g
"""
WORDS = [
    *b"""
    k a b m 0 1 2 -1 3 7 +1 1.5 -0 01 (1 [a (a - + inf -inf nan 1e3 (inf $ 5-1 (5-1 > * # 181 86
    9223372036854775807 -9223372036854775808 9223372036854775808 18446744073709551615 4294967296
    LIMIT limit COUNT WITHSCORES WITHVALUES BYSCORE BYLEX REV GET BY ALPHA ASC DESC MATCH RANK MAXLEN
    LEN IDX MINMATCHLEN WITHMATCHLEN BYTE BIT u8 i64 u64 i65 #2 SAMPLES FULL STREAMS IDLE AGGREGATE
    SUM max WEIGHTS FROMMEMBER FROMLONLAT BYRADIUS BYBOX km m ft ANY WITHDIST WITHCOORD WITHHASH
    nosort w_* OVERFLOW WRAP SET
    """.split(),
    *(b"", b"with space", b"line\r\nend\r\n", b"nul\0nul", b"\xff\xfe", b" 1", b"1 "),
]


def row_of(args: list[bytes]) -> Row:
    row = TABLE.row(*args)
    assert row is not None, args
    return row


def lines() -> list[list[bytes]]:
    return [one.split() for line in LINES.encode().splitlines() for one in line.split(b" / ") if one.strip()]


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def server(request: pytest.FixtureRequest, redis: RedisNode) -> Iterator[tuple[Raw, int]]:
    with redis.raw() as raw:
        raw.ask("HELLO", request.param)
        raw.ask("FLUSHALL")
        yield raw, request.param


def test_every_read_has_a_form_or_a_reason() -> None:
    assert set(FORMS) | set(UNKNOWABLE) == set(READS)
    assert not set(FORMS) & set(UNKNOWABLE)
    assert {row_of(args).name for args in lines()} == set(FORMS)


def test_the_lines_are_answered_as_redis_answers_them(server: tuple[Raw, int]) -> None:
    raw, proto = server
    for args in lines():
        assert reply(row_of(args).name, args, proto) == raw.ask(*args), args


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_answered_is_what_redis_answers(server: tuple[Raw, int], seed: int) -> None:
    """The lines with words replaced, added and left out, and random ones: None, or the server's own bytes."""
    raw, proto = server
    rnd = Random(seed)
    programs = lines()
    asked: list[tuple[list[bytes], bytes]] = []
    while len(asked) < 4_000:
        args = list(rnd.choice(programs))
        for _ in range(rnd.choice((1, 1, 2, 3))):
            at = rnd.randrange(1, len(args) + 1)
            words = rnd.choice((WORDS, rnd.choice(programs)[1:] or WORDS))
            args[at : at + rnd.randrange(2)] = [rnd.choice(words)] * rnd.choice((0, 1, 1))
        row = TABLE.row(*args)
        if row is None or row.name not in FORMS or b"BLOCK" in args:
            continue
        answer = reply(row.name, args, proto)
        if answer is not None:
            asked.append((args, answer))
    for start in range(0, len(asked), 500):
        part = asked[start : start + 500]
        raw.send(b"".join(pack(*args) for args, _ in part))
        for (args, answer), frame in zip(part, raw.frames(len(part)), strict=True):
            assert answer == frame, args


def test_the_commands_that_are_split_answer_for_a_part() -> None:
    assert reply("mget", [b"MGET", b"a", b"b"], 2) == b"*2\r\n$-1\r\n$-1\r\n"
    assert reply("exists", [b"EXISTS", b"a", b"b"], 3) == b":0\r\n"


def test_what_is_not_known_is_not_answered() -> None:
    assert reply("eval_ro", [b"EVAL_RO", b"return 1", b"1", b"k"], 2) is None
    assert reply("set", [b"SET", b"k", b"v"], 2) is None
    assert reply("get", [b"GET"], 2) is None
    assert reply("lrange", [b"LRANGE", b"k", b"a", b"b"], 2) is None
    assert reply("zrange", [b"ZRANGE", b"k", b"0", b"-1", b"NEWER"], 2) is None
