"""The failover tests again, where the node that fails is a memcached: among its like, and on a mixed ring."""

import contextlib
from collections.abc import Sequence

import pytest
from asking import node_of, shard_of
from servers import MemcachedNode, ProxyProcess, RedisNode, pack, toml, until
from test_outages import (  # noqa: F401  # they are tests and fixtures of this module too
    KEYS,
    Stage,
    policy,
    stage,
    test_error_its_keys_are_refused_and_nothing_moves,
    test_hung_two_errors_at_most,
    test_killed_a_client_that_only_reads_sees_no_error,
    test_killed_in_the_middle_of_a_pipeline_of_reads,
    test_miss_reads_find_nothing_and_writes_are_refused,
    test_only_the_keys_of_the_node_move_and_they_spread,
    test_stopped_for_a_moment_ten_times_nothing_moves,
    test_two_of_three_out_the_third_holds_all,
)

KINDS = {
    "memcached": [MemcachedNode, MemcachedNode, MemcachedNode],
    "mixed": [MemcachedNode, MemcachedNode, RedisNode],
}
HEALTH = 'timeout = "500ms"\nhealth = { interval = "500ms", probe = "deep" }'


MIXED_TOO = (
    "test_a_stand_in",
    "test_a_write_that",
    "test_killed_a_client",
    "test_hung",
)  # else it is one stand-in


@pytest.fixture
def kinds(ring: str) -> Sequence[type[RedisNode | MemcachedNode]]:
    return KINDS[ring]


@pytest.fixture
def workers(ring: str) -> int:
    return 2 if ring == "memcached" else 1


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "ring" in metafunc.fixturenames:
        rings = [*KINDS] if metafunc.function.__name__.startswith(MIXED_TOO) else ["memcached"]
        metafunc.parametrize("ring", rings)


def test_a_stand_in_speaks_the_same_protocol(stage: Stage) -> None:  # noqa: F811  # the fixture
    """Keys of `a` go to memcacheds; with all of these gone they are refused, never put on a Redis."""
    mine = stage.keys_of("a")
    stage.nodes["a"].kill()
    assert not stage.read(*mine)
    stage.becomes("a", "out")
    for key in mine:
        assert stage.raw.ask("SET", key, "meanwhile") == b"+OK\r\n"
    there = {shard: stage.nodes[shard].keys("key:") & set(mine) for shard in "bc"}
    assert there["b"] | there["c"] == set(mine)
    assert bool(there["c"]) is isinstance(stage.nodes["c"], MemcachedNode)


def test_a_write_that_may_have_run_is_not_sent_again(stage: Stage) -> None:  # noqa: F811  # the fixture
    """Doubled increments would show on the stand-in or, when the node wakes, on the node."""
    keys = stage.keys_of("a")[:40]
    for key in keys:
        stage.raw.ask("DEL", key)
    stage.nodes["a"].pause()
    stage.raw.send(b"".join(pack("INCR", key) for key in keys))
    replies = stage.raw.frames(len(keys))
    # SHARDDOWN: it was at its first step, which reads
    fit = (b"-TIMEOUT", b"-UNKNOWN", b"-SHARDDOWN", b":1\r\n")
    assert all(reply.startswith(fit) for reply in replies), replies
    stage.becomes("a", "out")
    unclear = {key for key, reply in zip(keys, replies, strict=True) if not reply.startswith(b":")}
    assert unclear
    assert {stage.raw.value("GET", key) for key in unclear} == {None}
    stage.nodes["a"].resume()
    stage.becomes("a", "up")
    assert {stage.raw.value("GET", key) for key in unclear} <= {None, "1"}


def test_no_stand_in_of_its_protocol() -> None:
    rehash = f'kind = "cache"\non_shard_down = "rehash"\non_return = "invalidate"\n{HEALTH}'
    with contextlib.ExitStack() as stack:
        memcached, *redis = (stack.enter_context(kind()) for kind in (MemcachedNode, RedisNode, RedisNode))
        shards = {name: node.url for name, node in zip("abc", (memcached, *redis), strict=True)}
        proxy = stack.enter_context(ProxyProcess(toml(shards, pool=rehash)))
        raw = stack.enter_context(proxy.raw())
        for shard in "abc":
            until(lambda shard=shard: node_of(raw, shard)["state"] == "up")
        keys = [key for key in KEYS if shard_of(raw, key) == "a"][:50]
        memcached.kill()
        raw.ask("GET", keys[0])
        until(lambda: node_of(raw, "a")["state"] == "out")
        for key in keys:
            assert raw.ask("SET", key, "1").startswith(b"-SHARDDOWN shard 'a' at ")
        memcached.start()
        until(lambda: raw.ask("SET", keys[0], "1") == b"+OK\r\n")


@pytest.mark.parametrize("on_return", ["invalidate", "flush"])
def test_nothing_old_is_read_when_it_returns(on_return: str) -> None:
    """Killed it comes back empty; hung it has what it had, and what was in its sockets runs when it wakes."""
    pool = f'kind = "cache"\non_shard_down = "rehash"\non_return = "{on_return}"\n{HEALTH}'
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(MemcachedNode()) for _ in range(3)]
        shards = {name: node.url for name, node in zip("abc", nodes, strict=True)}
        proxy = stack.enter_context(ProxyProcess(toml(shards, pool=pool)))
        raw = stack.enter_context(proxy.raw())

        def becomes(state: str) -> None:
            until(lambda: (node_of(raw, "a")["state"], node_of(raw, "a")["swept"]) == (state, True))

        becomes("up")
        keys = [key for key in KEYS if shard_of(raw, key) == "a"]
        for turn in range(2):
            raw.send(b"".join(pack("SET", key, f"before {turn}") for key in keys))
            assert raw.frames(len(keys)) == [b"+OK\r\n"] * len(keys)
            nodes[0].pause()
            raw.send(b"".join(pack("SET", key, f"old {turn}") for key in keys))
            for frame in raw.frames(len(keys)):
                assert frame.startswith((b"-TIMEOUT", b"-UNKNOWN", b"+OK")), frame
            becomes("out")
            written = keys[: len(keys) // 2 + 10]  # the others it may still have when it is back
            for key in written:
                assert raw.ask("SET", key, f"new {turn}") == b"+OK\r\n"
            nodes[0].resume()
            while node_of(raw, "a")["state"] != "up":
                assert set(raw.value("MGET", *written)) <= {f"new {turn}", None}
            becomes("up")
            assert set(raw.value("MGET", *written)) == {None}
            for node in nodes[1:]:  # what stand-ins had is swept
                assert not node.keys("key:") & set(keys)


def test_a_restart_is_seen_and_forgotten() -> None:
    with MemcachedNode() as node, ProxyProcess(toml({"a": node.url})) as proxy, proxy.raw() as raw:
        for turn in range(3):
            assert raw.ask("SET", "key", f"{turn}") == b"+OK\r\n"
            node.kill()
            until(lambda: raw.ask("SET", "key", "1").startswith(b"-SHARDDOWN shard 'a'"))
            node.start()
            until(lambda: raw.ask("GET", "key") == b"$-1\r\n")


def test_down_is_said_at_once_to_whoever_waits() -> None:
    """A write in flight when its node dies: UNKNOWN; a read goes out again, and says that it is down."""
    with MemcachedNode() as node:
        pool = 'timeout = "1h"\nattempt_timeout = "1h"\nhealth = { interval = "1h" }'
        with (
            ProxyProcess(toml({"a": node.url}, pool=pool)) as proxy,
            proxy.raw() as raw,
            proxy.raw() as other,
        ):
            assert raw.ask("SET", "key", "1") == b"+OK\r\n"
            node.pause()
            raw.send(pack("SET", "key", "2") + pack("MSET", "a", "1", "b", "2") + pack("MGET", "a", "b"))
            until(lambda: node_of(other, "a")["in_flight"] == 3)
            node.kill()
            for _ in range(2):
                assert raw.frame().startswith(b"-UNKNOWN outcome: shard 'a' at 127.0.0.1")
            assert raw.frame().startswith(b"-SHARDDOWN shard 'a' at 127.0.0.1")
