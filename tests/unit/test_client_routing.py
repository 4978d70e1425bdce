"""client/routing and everywhere: where a command goes, pure; with the same words as the proxy."""

from typing import Any

import pytest
from redis.exceptions import ClusterCrossSlotError, ResponseError

from shardproxy.client import errors
from shardproxy.client.routing import FOREVER, Router
from shardproxy.client.settings import Settings
from shardproxy.client.wire import Coding
from shardproxy.core import errors as texts
from shardproxy.core.commands import builtin
from shardproxy.core.shares import spread
from shardproxy.core.topology import Topology

SHARDS = {name: f"redis://127.0.0.1:{port}" for port, name in enumerate("abc", 7001)}
TABLE, PLAIN = builtin(), Coding()


def settings(**pool: Any) -> Settings:
    return Settings.from_shards(SHARDS, {}, **pool)


def router(topology: Topology | None = None, coding: Coding = PLAIN, **pool: Any) -> Router:
    topology = topology or settings(**pool).topology
    return Router(topology.pools[0], TABLE, coding)


def home(key: bytes) -> int:
    found = settings().pool.ring.locate(key)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("args", "key"),
    [
        (("GET", "x"), b"x"),
        (("get", b"x"), b"x"),
        ((b"SET", "x", 1, "EX", 5), b"x"),
        (("GET", 17), b"17"),
        (("GET", 1.5), b"1.5"),
        (("GET", memoryview(b"x")), b"x"),
        (("GET", "ü"), "ü".encode()),
        (("GET", "{tag}x"), b"tag"),
        (("OBJECT ENCODING", "x"), b"x"),
        (("OBJECT", "ENCODING", "x"), b"x"),
        (("MEMORY USAGE", "x", "SAMPLES", 5), b"x"),
        (("XGROUP CREATE", "x", "group", "$"), b"x"),
        (("XREAD", "COUNT", 1, "STREAMS", "x", 0), b"x"),
        (("EVAL", "return 1", 1, "x", "argument"), b"x"),
        (("EVAL", "return 1", 0), b"e0e1f9fabfc9d4800c877a703b823ac0578ff8db"),
        (
            ("EVALSHA", "E0E1F9FABFC9D4800C877A703B823AC0578FF8DB", 0),
            b"e0e1f9fabfc9d4800c877a703b823ac0578ff8db",
        ),
        (("PUBLISH", "x", "message"), b"x"),
        (("SPUBLISH", "x", "message"), b"x"),
        (("BLPOP", "x", 1), b"x"),
        (("SUNION", "{x}1", "{x}2"), b"x"),
        (("MGET", "{x}1", "{x}2"), b"x"),
        (("SORT", "x", "BY", "nosort"), b"x"),
        (("ZUNION", 2, "{x}1", "{x}2", "WITHSCORES"), b"x"),
    ],
)
def test_to_the_shard_of_its_key(args: tuple[Any, ...], key: bytes) -> None:
    plan = router().plan(args)
    assert plan.shard == home(key) and plan.split is None and plan.everywhere is None
    if plan.command.key_at and " " not in str(args[0]) and plan.command is router().command(args[0]):
        assert router().place(plan.command, args) == plan.shard


def test_the_fast_path_agrees_with_the_slow_one_for_every_command_with_one_key() -> None:
    here, found = router(), 0
    for row in TABLE.records:
        command = here.command(row.name.replace("|", " ")) if not row.subcommands else None
        if command is None or not command.key_at:
            continue
        found += 1
        words = row.name.split("|")
        args: list[Any] = [" ".join(words), *(f"argument-{n}" for n in range(30))]
        args[command.key_at] = "the key"
        size = row.arity if row.arity > 0 else 1 - row.arity
        args = args[: max(size - len(words) + 1, command.key_at + 1)]
        assert here.place(command, args) == here.plan(args).shard == home(b"the key"), row.name
    assert found > 100


REFUSED = [
    (("SUNION", "a", "b"), "CROSSSLOT Keys in request don't hash to the same slot"),
    (("RENAME", "a", "b"), "CROSSSLOT Keys in request don't hash to the same slot"),
    (("GET",), texts.wrong_arity("get")),
    (("GET", "a", "b", "c"), texts.wrong_arity("get")),
    (("MSET", "a"), texts.wrong_arity("mset")),
    (("MSET", "a", 1, "b"), texts.wrong_arity("mset")),
    (("OBJECT FOO", "x"), texts.unknown_subcommand("object", b"FOO")),
    (("OBJECT", "FOO", "x"), texts.unknown_subcommand("object", b"FOO")),
    (("NOSUCH", "x"), "ERR unknown command 'NOSUCH', with args beginning with: "),
    (("SORT", "a", "BY", "w_*"), "ERR 'SORT' with a BY or GET pattern reads keys of other"),
    (("MULTI",), "ERR 'MULTI' is not supported yet: use pipeline(), or transaction()"),
    (("SELECT", 1), "ERR 'SELECT' is not supported yet: the client's connections are shared"),
    (("CLIENT ID",), "ERR 'CLIENT ID' is not supported yet: the client's connections are shared"),
    (("MIGRATE", "h", 1, "k", 0, 1), "ERR 'MIGRATE' is not supported yet: it would move keys away"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "text"), REFUSED)
def test_refused_in_the_proxys_words(args: tuple[Any, ...], text: str) -> None:
    with pytest.raises(ResponseError) as caught:
        router().plan(args)
    assert str(errors.refusal(text)) in str(caught.value)
    assert type(caught.value) is type(errors.refusal(text))
    assert isinstance(caught.value, ClusterCrossSlotError) == text.startswith("CROSSSLOT")


def test_what_this_library_says_of_shards_the_proxy_says_too() -> None:
    for name in ("DOWN", "NO_PLACE", "NOT_ASKED", "TIMED_OUT", "UNKNOWN", "CROSS_SHARD"):
        assert getattr(errors, name) in texts.ENGINE
    for name in ("PATTERN", "NO_KEY", "UNKNOWN_COMMAND"):
        assert getattr(errors, name) in texts.ENGINE


def split(*args: Any) -> Any:
    found = router().plan(args).split
    assert found is not None
    return found


def answers(found: Any) -> list[Any]:
    return [
        [b"of " + (key if isinstance(key, bytes) else key.encode()) for key in part[1:]]
        for part in found.parts
    ]


def test_mget_is_split_and_merged_in_order() -> None:
    keys = [f"key:{number}" for number in range(50)]
    found = split("MGET", *keys)
    assert sorted(found.shards) == found.shards == [0, 1, 2]
    for shard, part in zip(found.shards, found.parts, strict=True):
        assert part[0] == b"MGET"
        assert part[1:] == [key for key in keys if home(key.encode()) == shard]
    replies = answers(found)
    assert found.merged(replies) == [f"of {key}".encode() for key in keys]


@pytest.mark.parametrize("count", [2, 3, 90])
def test_the_compiled_split_is_the_plain_one(count: int) -> None:
    here = Router(
        Settings.from_shards({f"s{n}": f"redis://h:{n + 1}" for n in range(count)}, {}).pool, TABLE, PLAIN
    )
    keys = ["key", b"key", "{tag}", "ü", b"\xff\0", *(f"k{n}" for n in range(200))]
    fast = here.plan(("DEL", *keys)).split
    slow = here._split(here.command("DEL"), ("DEL", *keys), [b"DEL", *map(here.key, keys)]).split
    assert fast is not None and slow is not None
    assert (fast.homes, fast.shards, fast.keys) == (slow.homes, slow.shards, slow.keys)
    assert [list(map(here.key, part)) for part in fast.parts] == slow.parts
    with pytest.raises(IndexError):
        spread([0, 0], {0: [1]})
    with pytest.raises(IndexError):
        spread([0, 1], {0: [1]})
    assert spread([2, 0, 2], {0: ["a"], 2: ["b", "c"]}) == ["b", "a", "c"]
    assert spread([], {}) == []


def test_a_key_twice_is_answered_twice() -> None:
    found = split("MGET", "a", "b", "a", "c", "a")
    replies = answers(found)
    assert found.merged(replies) == [b"of a", b"of b", b"of a", b"of c", b"of a"]


def test_mset_keeps_values_with_their_keys_and_del_sums() -> None:
    found = split("MSET", "a", 1, "b", b"two", "c", 3.5)
    pairs = zip(*[iter(each for part in found.parts for each in part[1:])] * 2, strict=True)
    assert dict(pairs) == {"a": 1, "b": b"two", "c": 3.5}
    found = split("MSET", "a", 1, 17, 2, "b", 3)
    pairs = zip(*[iter(each for part in found.parts for each in part[1:])] * 2, strict=True)
    assert dict(pairs) == {b"a": b"1", b"17": b"2", b"b": b"3"}
    assert found.merged([b"OK"] * len(found.parts)) == b"OK"
    assert split("DEL", "a", "b", "c").merged([1, 1]) == 2


def test_partial_results_by_key() -> None:
    keys = [f"key:{number}" for number in range(20)]
    found = split("MGET", *keys)
    down = errors.down("b", "127.0.0.1:7002", "connection refused")
    replies = answers(found)
    replies[found.shards.index(1)] = down
    partial = found.partial(replies)
    for key in keys:
        if home(key.encode()) == 1:
            assert partial.errors[key] is down and key not in partial.results
        else:
            assert partial.results[key] == f"of {key}".encode() and key not in partial.errors
    assert "shard 'b' at 127.0.0.1:7002 is down" in str(partial) and "key:" not in str(partial)
    deleted = split("DEL", *keys).partial([7, down, 9])
    assert deleted.results[next(key for key in keys if home(key.encode()) == 0)] == 7


def test_how_long_a_command_may_wait() -> None:
    def waits(*args: Any) -> float | None:
        return router().plan(args).waits

    assert waits("GET", "a") is None
    assert waits("BLPOP", "a", 0.5) == 0.5
    assert waits("BLPOP", "a", 0) == FOREVER
    assert waits("BLMPOP", 2, 1, "a", "LEFT") == 2
    assert waits("XREAD", "BLOCK", 1500, "STREAMS", "a", "$") == 1.5
    assert waits("XREAD", "STREAMS", "a", "$") is None
    assert waits("BLPOP", "a", "nonsense") == 0


def test_a_shard_that_is_out_and_moves_has_stand_ins() -> None:
    topology = settings(kind="cache", on_shard_down="rehash").topology
    topology = topology.with_node_state("127.0.0.1:7002", "out", "gone")
    here, pool = router(topology), topology.pools[0]
    for number in range(500):
        key = b"key:%d" % number
        expected = pool.home(key)
        if expected.name == "b":
            stand_in = pool.stand_in(key)
            assert stand_in is not None
            expected = stand_in
        assert here.names[here.locate(key)] == expected.name != "b"
    assert router(topology.with_node_state("127.0.0.1:7002", "out", "gone", swept=False)).locate(
        b"b"
    ) == home(b"b")


def test_everybodys_keys_stay_where_nothing_moves() -> None:
    topology = settings().topology.with_node_state("127.0.0.1:7002", "out", "gone")
    assert all(router(topology).locate(b"%d" % key) == home(b"%d" % key) for key in range(200))


def test_another_encoding() -> None:
    here = router(coding=Coding("latin-1"))
    assert here.plan(("GET", "ü")).shard == home(b"\xfc")


def test_merging_what_all_shards_answered() -> None:
    def merged(name: str, *replies: Any) -> Any:
        found = router().plan((name, *["x"] * 3)[: 2 if name in ("KEYS", "CONFIG GET") else 1]).everywhere
        assert found is not None and found.who == "all"
        return found.merge(replies)

    assert merged("DBSIZE", 1, 2, 3) == 6
    assert merged("KEYS", [b"a"], [], [b"b"]) == [b"a", b"b"]
    assert merged("FLUSHALL", b"OK", b"OK") == b"OK"
    assert merged("PUBSUB NUMSUB", [b"a", 1, b"b", 0], [b"a", 2, b"b", 0]) == [b"a", 3, b"b", 0]
    assert merged("CONFIG GET", [b"a", b"1", b"b", b"2"], [b"b", b"3"]) == [b"b", b"2", b"a", b"1"]
    assert merged("CONFIG GET", {b"a": b"1"}, {b"a": b"2"}) == {b"a": b"1"}
    with pytest.raises(ResponseError, match="on_all"):
        merged("FLUSHALL", b"OK", b"QUEUED")
