"""Clients made with from_url: shards and states are the proxies'; what becomes of it when those are gone."""

import asyncio
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import ConnectionError

from shardproxy import AsyncShardedRedis, ShardedRedis
from tests.servers import ProxyProcess, RedisNode, free_port, redis_nodes, shards_of, toml, until

CACHE = """kind = "cache"
on_shard_down = "rehash"
on_return = "invalidate"
health.interval = "200ms"
timeout = "3s"
"""
USERS = """users.default = "on nopass ~* &* +@all"
users.web = { password = "sesame", acl = "on +proxy|topology" }
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as found:
        yield found


def text_of(shards: dict[str, str], top: str = "") -> str:
    return toml(shards, top=top, pool=CACHE)


@pytest.fixture
def proxy(nodes: list[RedisNode]) -> Iterator[ProxyProcess]:
    made = ProxyProcess(text_of(shards_of(nodes[:2]), USERS))
    made.config_path.chmod(0o600)
    with made:
        yield made


def url_of(*ports: int, login: str = "") -> str:
    return f"shardproxy://{login}" + ",".join(f"127.0.0.1:{port}" for port in ports)


def states(client: Any) -> dict[str, str]:
    return {shard.name: shard.node.state for shard in client.topology.pools[0].shards}


def add_shard(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    beside = proxy.config_path.with_suffix(".new")
    beside.write_text(text_of(shards_of(nodes), USERS))
    beside.chmod(0o600)
    os.replace(beside, proxy.config_path)
    with proxy.raw() as raw:
        raw.value("PROXY", "RELOAD")


async def eventually(what: Any) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.01)


async def test_asyncio(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    url = url_of(free_port(), proxy.port, login="web:sesame@")
    async with AsyncShardedRedis.from_url(url, decode_responses=True) as client:
        assert await client.mset({f"key:{n}": n for n in range(50)}) is True
        assert set(states(client)) == {"a", "b"}
        nodes[1].kill()
        await eventually(lambda: states(client)["b"] == "out")
        assert await client.mset({f"key:{n}": n + 1 for n in range(50)}) is True
        assert await client.mget([f"key:{n}" for n in range(50)]) == [str(n + 1) for n in range(50)]
        nodes[1].start()
        await eventually(lambda: states(client)["b"] == "up")
        add_shard(proxy, nodes)
        await eventually(lambda: "c" in states(client))
        with proxy.raw() as raw:
            for number in range(50):
                assert await client.set(f"key:{number}", number)
                assert raw.value("GET", f"key:{number}") == str(number)
        proxy.stop()
        assert await asyncio.gather(*(client.get(f"key:{n}") for n in range(50))) == list(map(str, range(50)))
        await client.aclose()
        assert await client.get("key:1") == "1", "the last good snapshot is kept"
    assert len(asyncio.all_tasks()) == 1


def test_threads(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    url = url_of(free_port(), proxy.port, login="web:sesame@")
    with ShardedRedis.from_url(url, decode_responses=True) as client:
        assert client.mset({f"key:{n}": n for n in range(50)}) is True
        assert client.asker.follower is not None
        client.asker.follower.following.poll = 0.05
        key = next(f"key:{n}" for n in range(50) if client.locate(f"key:{n}").shard == "b")
        nodes[1].kill()
        assert client.set(key, "elsewhere") is True, "the proxies know where"
        until(lambda: client.ping() and states(client)["b"] == "out", "it to be out")
        assert client.get(key) == "elsewhere"
        nodes[1].start()
        until(lambda: client.ping() and states(client)["b"] == "up", "it to be back")
        add_shard(proxy, nodes)
        until(lambda: client.ping() and "c" in states(client), "the new shard")
        with proxy.raw() as raw:
            for number in range(50):
                assert client.set(f"key:{number}", number)
                assert raw.value("GET", f"key:{number}") == str(number)
        proxy.stop()
        assert client.mget([f"key:{n}" for n in range(50)]) == list(map(str, range(50)))
        assert client.pipeline(transaction=False).get("key:1").get("key:2").execute() == ["1", "2"]


async def test_no_proxy_answers() -> None:
    url = url_of(free_port(), free_port(), login="web:s3cret@")
    client = ShardedRedis.from_url(url)
    for _ in range(2):
        with pytest.raises(ConnectionError, match="no proxy tells the topology") as found:
            client.get("x")
        assert "s3cret" not in str(found.value) + repr(client)
    async with AsyncShardedRedis.from_url(url) as other:
        for _ in range(2):
            with pytest.raises(ConnectionError, match="no proxy tells the topology"):
                await other.get("x")
            with pytest.raises(ConnectionError, match="no proxy tells the topology"):
                await other.pipeline(transaction=False).get("x").execute()
    with pytest.raises(TypeError, match="nonsense"):
        ShardedRedis.from_url(url, nonsense=1)


async def test_who_may_not_ask_is_told_so(proxy: ProxyProcess) -> None:
    client = ShardedRedis.from_url(url_of(proxy.port, login="web:wrong@"))
    with pytest.raises(ConnectionError, match="invalid username-password"):
        client.get("x")
    async with AsyncShardedRedis.from_url(url_of(proxy.port, login="web:wrong@")) as other:
        with pytest.raises(ConnectionError, match="invalid username-password"):
            await other.get("x")


async def test_another_proxy_with_another_ring_is_warned_of(
    nodes: list[RedisNode], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "shardproxy.client")
    with (
        ProxyProcess(text_of(shards_of(nodes[:2]))) as first,
        ProxyProcess(text_of(shards_of(nodes))) as second,
    ):
        async with AsyncShardedRedis.from_url(url_of(first.port, second.port)) as client:
            await client.get("x")
            before = set(states(client))
            (first if len(before) == 2 else second).stop()
            await eventually(lambda: set(states(client)) != before)
            assert await client.get("x") is None
    assert any("configured differently" in record.message for record in caplog.records)
