"""The clients where sockets have no timeouts of their own and select has no poll: as on macOS and Windows."""

import select
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from servers import RedisNode, redis_nodes, until, urls_of

from shardproxy import AsyncShardedRedis, ShardedRedis
from shardproxy.client import aio_connection, connection, pubsub
from shardproxy.client.errors import ShardTimeoutError


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(2) as found:
        yield found


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "KERNEL_TIMEOUT", False)
    monkeypatch.setattr(aio_connection, "RDHUP", None)
    for module in (connection, pubsub):  # redis-py looks for poll when it is imported
        monkeypatch.setattr(module, "select", SimpleNamespace(select=select.select))


def test_calls(nodes: list[RedisNode]) -> None:
    with ShardedRedis(urls_of(nodes), decode_responses=True) as client:
        assert client.mset({f"key:{n}": n for n in range(20)}) and client.mget("key:1", "key:2") == ["1", "2"]
        pipe = client.pipeline(transaction=False)
        for number in range(20):
            pipe.get(f"key:{number}")
        assert pipe.execute() == list(map(str, range(20)))
        assert client.blpop(["nothing"], timeout=0.05) is None
        for name in "ab":  # connections that nobody uses are gone: nothing is written into the void
            client.on_shard(name).client_kill_filter(_type="normal", skipme=True)
        assert client.incr("count") == 1 and client.set("key:1", 2)


def test_a_timeout(nodes: list[RedisNode]) -> None:
    pool = {"timeout": "200ms", "retries": 0, "health": {"consecutive": 100}}
    with ShardedRedis({"a": nodes[0].url}, pool=pool) as client:
        assert client.set("key", 1)
        nodes[0].pause()
        try:
            with pytest.raises(ShardTimeoutError):
                client.get("key")
        finally:
            nodes[0].resume()
        assert until(lambda: client.get("key")) == b"1"


def test_messages(nodes: list[RedisNode]) -> None:
    with ShardedRedis(urls_of(nodes)) as client, client.pubsub(ignore_subscribe_messages=True) as messages:
        messages.psubscribe("new*")
        until(lambda: messages.get_message(timeout=0.01) is None and client.pubsub_numpat() == 1)
        assert client.publish("news", "rain") == 1
        assert until(lambda: messages.get_message(timeout=0.1))["data"] == b"rain"


async def test_asyncio(nodes: list[RedisNode]) -> None:
    async with AsyncShardedRedis(urls_of(nodes)) as client:
        assert await client.set("key", 1) and await client.get("key") == b"1"
        assert await client.blpop(["nothing"], timeout=0.05) is None
