"""ShardedRedis when nodes die or hang: a call gets its own reply or an error, in time; the client goes on.

Threads, forks, interruptions and other topologies are in test_client_sync_at_once.py.
"""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from asking import caught, keys_of
from servers import RedisNode, redis_nodes, until, urls_of

from shardproxy import PartialError, ShardedRedis
from shardproxy.client.errors import (
    ShardDownError,
    ShardTimeoutError,
    UnknownOutcomeError,
    UnknownOutcomeTimeoutError,
)
from shardproxy.client.health import Transition

SOON = {"wait": "100ms", "wait_most": "100ms", "interval": "200ms"}


@pytest.fixture
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as found:
        yield found


def made(nodes: list[RedisNode], on_transition: Any = None, **pool: Any) -> ShardedRedis:
    return ShardedRedis(
        urls_of(nodes), pool={"timeout": "500ms", "health": SOON} | pool, on_transition=on_transition
    )


def test_times_of_each_class(nodes: list[RedisNode]) -> None:
    """timeouts.read, .write and .script: for one try, also in pipelines and transactions."""
    times = {"read": "150ms", "write": "10s", "script": "10s"}
    with made(nodes[:1], timeout="1s", timeouts=times, retries=0) as client:
        client.mset({"a": 1, "b": 2})
        nodes[0].pause()
        with pytest.raises(ShardTimeoutError, match="within 150 ms"):
            client.get("a")
        nodes[0].resume()
        until(lambda: caught(client, "a") == b"1")
        slow = threading.Timer(1.5, nodes[0].resume)
        for call in (
            lambda: client.set("a", 2),
            lambda: client.pipeline().set("a", 2).execute(),
            lambda: client.pipeline(transaction=False).eval("return 1", 1, "a").execute(),
        ):
            nodes[0].pause()
            slow = threading.Timer(1.5, nodes[0].resume)
            slow.start()
            assert call() in (True, [True], [1])
            slow.join()
    with made(nodes[:1], timeout="10s", timeouts=times, retries=0) as client:
        client = ShardedRedis(urls_of(nodes[:1]), pool={"timeouts": times}, socket_timeout=10)
        assert client.asker.layout.router.command("GET").limit is None  # who says it says it for all


def test_slow_calls_are_evidence(nodes: list[RedisNode]) -> None:
    seen: list[Transition] = []
    policy = SOON | {"slow_call": "1ms", "minimum": 5}
    with made(nodes, seen.append, timeout="5s", health=policy) as client:
        for _ in range(3):
            client.blpop("waiting", 0.01)  # it was asked to: nothing to be held against its node
        assert seen == []
        until(lambda: client.eval("for i = 1, 1e6 do end", 1, "k") or seen)
        assert seen[0].new == "suspect" and "took over" in seen[0].reason
        assert client.get("k") is None  # after a trial: it is well
        assert [each.new for each in seen] == ["suspect", "up"]


def test_late_replies_are_nobodys(nodes: list[RedisNode]) -> None:
    with made(nodes, timeout="150ms", retries=0) as client:
        first, second = keys_of(client, "b", 2)
        client.mset({first: "one", second: "two"})
        node = nodes[1]
        node.pause()
        with pytest.raises(ShardTimeoutError, match=r"shard 'b' at .* did not answer within 150 ms"):
            client.get(first)
        with pytest.raises(redis.TimeoutError, match="has not run"):  # no connection, so nothing was sent
            client.set(first, "not written")
        node.resume()
        assert client.get(first) == b"one"
        node.pause()
        with pytest.raises(UnknownOutcomeTimeoutError, match="may still run"):
            client.incr("{" + second + "}n")
        node.resume()
        assert client.get(second) == b"two" and client.get(first) == b"one"
        assert until(lambda: client.get("{" + second + "}n")) == b"1"  # it has run, once


def test_a_pipeline_whose_node_dies(nodes: list[RedisNode]) -> None:
    with made(nodes) as client:
        mine, others = keys_of(client, "b"), keys_of(client, "a")
        client.mset({key: f"={key}" for key in mine + others})
        nodes[1].pause()
        timer = threading.Timer(0.1, nodes[1].kill)
        timer.start()
        pipe = client.pipeline(transaction=False)
        for key, other in zip(mine, others, strict=True):
            pipe.append(key, "!").get(other).get(key)
        results = pipe.execute(raise_on_error=False)
        timer.join()
        assert results[1::3] == [f"={key}".encode() for key in others]
        assert all(isinstance(each, UnknownOutcomeError) for each in results[0::3] + results[2::3])
        with pytest.raises(PartialError) as caught:
            client.mget(mine + others)
        assert caught.value.results == {key: f"={key}".encode() for key in others}
        assert caught.value.errors.keys() == set(mine)
        assert "shard 'b'" in str(caught.value)


def test_reads_of_a_pipeline_are_sent_again(nodes: list[RedisNode]) -> None:
    """Connections that the node has closed meanwhile: reads notice nothing, writes look before."""
    with made(nodes) as client:
        keys = keys_of(client, "a")
        client.mset(dict.fromkeys(keys, "x"))
        for _ in range(3):
            for node in nodes:
                with redis.Redis(port=node.port) as alone:
                    alone.client_kill_filter(_type="normal", skipme=True)
            assert client.pipeline(transaction=False).get(keys[0]).get(keys[1]).execute() == [b"x", b"x"]
            for node in nodes:
                with redis.Redis(port=node.port) as alone:
                    alone.client_kill_filter(_type="normal", skipme=True)
            assert client.get(keys[0]) == b"x"
            for node in nodes:
                with redis.Redis(port=node.port) as alone:
                    alone.client_kill_filter(_type="normal", skipme=True)
            assert client.set(keys[0], "x") is True and client.mset(dict.fromkeys(keys, "x")) is True
        assert {shard.node.state for shard in client.topology.pools[0].shards} == {"unknown"}


def test_a_durable_pool_says_which_shard_is_down(nodes: list[RedisNode]) -> None:
    seen: list[Transition] = []
    with made(nodes, seen.append) as client:
        mine, others = keys_of(client, "c"), keys_of(client, "a")
        client.mset(dict.fromkeys(mine + others, "x"))
        nodes[2].kill()
        for _ in range(5):
            with pytest.raises(redis.ConnectionError, match=r"SHARDDOWN shard 'c' at .* is down: .*refused"):
                client.set(mine[0], "y")
            assert client.get(others[0]) == b"x"
        assert client.locate(mine[0]).shard == "c" and client.locate(mine[0]).state == "out"
        assert [(each.shards, each.new) for each in seen] == [(("c",), "out")]
        nodes[2].start()
        until(lambda: caught(client, mine[0]) is None)  # its content is lost: it keeps nothing on disk
        assert client.locate(mine[0]).state == "up" and [each.new for each in seen] == ["out", "up"]


def test_a_cache_pool_goes_on_with_stand_ins(nodes: list[RedisNode]) -> None:
    with made(nodes, kind="cache", on_shard_down="rehash") as client:
        mine = keys_of(client, "b")
        client.mset(dict.fromkeys(mine, "x"))
        nodes[1].kill()
        assert client.mset(dict.fromkeys(mine, "y")) is True
        assert client.mget(mine) == [b"y"] * len(mine)
        assert client.pipeline(transaction=False).get(mine[0]).set(mine[1], "z").execute() == [b"y", True]
        assert {client.locate(key).shard for key in mine} <= {"a", "c"}
        assert {client.locate(key).home for key in mine} == {"b"}
        assert client.dbsize() == len(mine)
        nodes[1].start()
        until(lambda: client.get(mine[0]) is None)  # it is back, empty
        assert client.locate(mine[0]).shard == "b"


def test_a_cache_pool_that_misses(nodes: list[RedisNode]) -> None:
    with made(nodes, kind="cache", on_shard_down="miss") as client:
        mine, others = keys_of(client, "b"), keys_of(client, "a")
        client.mset(dict.fromkeys(mine + others, "x"))
        nodes[1].kill()
        with pytest.raises(ShardDownError):
            client.set(mine[0], "y")
        assert client.get(mine[0]) is None and client.hgetall(mine[0]) == {} and client.exists(mine[0]) == 0
        assert client.mget(mine[0], others[0], mine[1]) == [None, b"x", None]
        assert client.pipeline(transaction=False).get(mine[0]).get(others[0]).execute() == [None, b"x"]


def test_a_node_that_hangs_is_found_out(nodes: list[RedisNode]) -> None:
    with made(nodes, timeout="100ms", kind="cache", on_shard_down="rehash", retries=0) as client:
        mine = keys_of(client, "b")
        client.mset(dict.fromkeys(mine, "x"))
        nodes[1].pause()
        until(lambda: caught(client, mine[0]) is None)
        assert client.locate(mine[0]).state == "out" and client.locate(mine[0]).shard != "b"
        nodes[1].resume()
        until(lambda: caught(client, mine[0]) == b"x")


def test_partial_nil(nodes: list[RedisNode]) -> None:
    with made(nodes, partial="nil") as client:
        mine, others = keys_of(client, "b", 3), keys_of(client, "a", 3)
        client.mset(dict.fromkeys(mine + others, "x"))
        nodes[1].kill()
        assert client.mget([mine[0], others[0], mine[1]]) == [None, b"x", None]
        assert client.exists(*mine, *others) == 3
        with pytest.raises(PartialError):
            client.mset(dict.fromkeys(mine + others, "y"))


def test_it_starts_with_nodes_down(nodes: list[RedisNode]) -> None:
    nodes[0].kill()
    with made(nodes) as client:
        assert client.set(keys_of(client, "b")[0], 1) is True
        with pytest.raises(ShardDownError):
            client.set(keys_of(client, "a")[0], 1)
        assert client.ping() is True
    for node in nodes[1:]:
        node.kill()
    with made(nodes) as client:
        for _ in range(3):
            with pytest.raises(redis.ConnectionError):
                client.ping()
            with pytest.raises(redis.ConnectionError):
                client.set("x", 1)
        nodes[0].start()
        until(lambda: caught(client, keys_of(client, "a")[0]) is None)
