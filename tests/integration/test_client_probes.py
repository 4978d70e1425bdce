"""Active probes in the client: only if asked for, in a thread or a task that ends; a child has its own."""

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from servers import RedisNode, redis_nodes, until, urls_of

from shardproxy import AsyncShardedRedis, ShardedRedis
from shardproxy.client.health import Nodes, Transition

# Nothing but a probe brings a node back within a test
POOL = {"kind": "cache", "on_shard_down": "rehash", "health": {"interval": "100ms", "wait": "300s"}}


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as found:
        yield found


def probing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "shardproxy-probes"]


def test_a_thread_finds_out_without_a_call(nodes: list[RedisNode]) -> None:
    told: list[Transition] = []
    with ShardedRedis(urls_of(nodes), pool=POOL, probe=True, on_transition=told.append) as client:
        assert not probing() and {each.state for each in client.topology.nodes.values()} == {"unknown"}
        assert client.set("key", 1) and len(probing()) == 1
        until(lambda: {each.state for each in client.topology.nodes.values()} == {"up"})
        nodes[0].kill()
        until(lambda: client.topology.nodes[nodes[0].address].state == "out")
        nodes[0].start()
        until(lambda: client.topology.nodes[nodes[0].address].state == "up")
        assert [each.new for each in told if each.shards == ("a",)] == ["up", "out", "up"]
        assert sum(len(shard.idle) for shard in client.asker.layout.shards) <= 4, "none are gathered"
    assert not probing()


def test_not_asked_for_or_not_used_any_more(nodes: list[RedisNode]) -> None:
    with ShardedRedis(urls_of(nodes), pool=POOL) as client:
        assert client.ping() and not probing()
    client = ShardedRedis(urls_of(nodes), pool=POOL, probe=True)
    for _ in range(2):  # used again after it was closed, it probes again
        assert client.ping() and len(probing()) == 1
        client.close()
        assert not probing()
    assert client.ping() and probing()
    del client
    until(lambda: gc.collect() is not None and not probing(), "a client that nobody holds keeps no thread")


def test_the_last_probe_begins_no_others(nodes: list[RedisNode]) -> None:
    with ShardedRedis(urls_of(nodes), pool=POOL, probe=True) as client:
        prober, begun = client.asker.prober, threading.Event()
        shard = client.asker.layout.shards[0]
        connect = shard.connect

        def late() -> Any:
            begun.set()
            until(lambda: prober._thread is None)
            return connect()

        shard.connect = late
        assert client.asker.layout.shards[1].take() and begun.wait(20)
        client.close()
        assert not probing()


def test_a_node_that_hangs_delays_no_others_probe(nodes: list[RedisNode]) -> None:
    with ShardedRedis(urls_of(nodes), pool=POOL | {"timeout": "300s"}, probe=True) as client:
        assert client.ping()
        until(lambda: {each.state for each in client.topology.nodes.values()} == {"up"})
        nodes[0].pause()
        until(lambda: any(thread.name.endswith(nodes[0].address) for thread in threading.enumerate()))
        for state, change in ("out", nodes[1].kill), ("up", nodes[1].start):
            change()
            until(lambda state=state: client.topology.nodes[nodes[1].address].state == state)  # type: ignore[misc]
        nodes[0].resume()
    until(lambda: not any(thread.name.startswith("shardproxy-probe") for thread in threading.enumerate()))


def test_a_transition_that_raises_ends_no_probes(nodes: list[RedisNode]) -> None:
    def told(change: Transition) -> None:
        raise ValueError(change)

    with ShardedRedis(urls_of(nodes), pool=POOL, probe=True, on_transition=told) as client:
        assert client.ping()
        until(lambda: {each.state for each in client.topology.nodes.values()} == {"up"})
        assert probing()


def test_a_child_begins_with_a_thread_of_its_own(nodes: list[RedisNode]) -> None:
    with ShardedRedis(urls_of(nodes), pool=POOL, probe=True) as client:
        assert client.set("key", 1) and len(probing()) == 1
        pid = os.fork()
        if pid == 0:
            failed = 1
            try:
                assert not probing()
                assert client.get("key") == b"1" and len(probing()) == 1
                client.asker.nodes.failed(nodes[0].address, 0.0, "", refused=True)
                until(lambda: client.topology.nodes[nodes[0].address].state == "up")
                client.close()
                assert not probing()
                failed = 0
            finally:
                os._exit(failed)
        assert os.waitpid(pid, 0)[1] == 0
        assert len(probing()) == 1


async def test_a_task_finds_out_without_a_call(nodes: list[RedisNode]) -> None:
    before = len(asyncio.all_tasks())
    told: list[Transition] = []
    client = AsyncShardedRedis(urls_of(nodes), pool=POOL, probe=True, on_transition=told.append)

    async def until_state(state: str) -> None:
        async with asyncio.timeout(20):
            while client.topology.nodes[nodes[1].address].state != state:
                await asyncio.sleep(0.01)

    assert await client.set("key", 1)
    await until_state("up")
    nodes[1].kill()
    await until_state("out")
    nodes[1].start()
    await until_state("up")
    assert [each.new for each in told if each.shards == ("b",)] == ["up", "out", "up"]
    await client.aclose()
    assert len(asyncio.all_tasks()) == before
    assert await client.get("key") in (b"1", None)
    await until_state("up")
    await client.aclose()
    assert len(asyncio.all_tasks()) == before


def test_when_probes_are_due() -> None:
    client = ShardedRedis({"a": "redis://h:1", "b": "redis://h:2"})
    nodes: Nodes = client.asker.nodes
    woken: list[Any] = []
    nodes.wake = lambda: woken.append(1)
    assert nodes.claim(1e9) is None, "without probes nothing is asked of nodes that do well"
    assert nodes.trial_at == float("inf") and nodes.probe_at < 1e9
    assert {nodes.claim(1e9, probing=True), nodes.claim(1e9, probing=True)} == {"h:1", "h:2"}
    assert nodes.claim(1e9, probing=True) is None and nodes.probe_at == float("inf"), "one at a time"
    nodes.tried("h:1", 1e9, ok=True)
    assert len(woken) == 1 and 1e9 < nodes.probe_at <= 1e9 + 5
    nodes.failed("h:1", 1e9 + 1, "no answer")
    assert len(woken) == 2 and nodes.probe_at <= 1e9 + 1, "a doubt is looked into at once"
    nodes.failed("h:1", 1e9 + 1, "Connection refused", refused=True)
    assert nodes.trial_at < float("inf")
    nodes.probes = True
    assert nodes.trial_at == float("inf"), "calls leave it to the probes"
