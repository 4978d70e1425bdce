"""AsyncShardedRedis on memcached shards: the answers of the sync client, which are the proxy's."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from redis.exceptions import RedisError, ResponseError
from servers import MemcachedNode, RedisNode

from shardproxy import AsyncShardedRedis, PartialError, ShardedRedis


@pytest.fixture(scope="module")
def shards() -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        found = [stack.enter_context(MemcachedNode()).url for _ in range(3)]
        yield dict(zip("abc", found, strict=True))


COMMANDS: list[tuple[Any, ...]] = [
    ("SET", "k", "v"), ("GET", "k"), ("APPEND", "k", "w"), ("STRLEN", "k"), ("GETRANGE", "k", 0, 0),
    ("SET", "k", "v", "NX"), ("SET", "k", "v", "XX", "EX", 100), ("PERSIST", "k"), ("TTL", "k"),
    ("GETDEL", "k"), ("GET", "k"), ("INCR", "n"), ("INCRBYFLOAT", "n", "0.5"), ("INCR", "n"),
    ("MSET", "a", 1, "b", 2, "c", 3, "d", 4), ("MGET", "a", "b", "c", "d", "e"), ("DEL", "a", "b", "e"),
    ("SET", b"\0 \xff", b"\r\n"), ("GET", b"\0 \xff"), ("LPUSH", "l", 1), ("SET", "x" * 300, 1),
    ("EVAL", "return 1", 1, "k"), ("GET",), ("SET", "k", "v", "NONSENSE"), ("SET", "big", b"x" * 200_000),
    ("STRLEN", "big"), ("SET", "bigger", b"x" * 2_000_000),
]  # fmt: skip


async def test_the_same_answers_as_the_sync_client(shards: dict[str, str]) -> None:
    def said(error: RedisError) -> tuple[type[Exception], str]:
        return type(error), str(error)

    with ShardedRedis(shards) as sync:
        sync.flushall()
        wanted: list[Any] = []
        for args in COMMANDS:
            try:
                wanted.append(sync.execute_command(*args))
            except RedisError as error:
                wanted.append(said(error))
        sync.flushall()
    async with AsyncShardedRedis(shards) as client:
        for args, theirs in zip(COMMANDS, wanted, strict=True):
            try:
                ours: Any = await client.execute_command(*args)
            except RedisError as error:
                ours = said(error)
            assert ours == theirs, args[:2]


async def test_many_at_once_on_few_keys(shards: dict[str, str]) -> None:
    """Commands of several steps on the same key are one after another, and each gets its own reply."""
    async with AsyncShardedRedis(shards, decode_responses=True) as client:
        await client.flushall()
        keys = [f"n:{number}" for number in range(4)]
        grown = await asyncio.gather(*(client.append(key, "x") for _ in range(50) for key in keys))
        assert sorted(grown) == sorted(list(range(1, 51)) * 4)
        await client.mset({f"key:{number}": number for number in range(200)})
        found = await asyncio.gather(*(client.get(f"key:{number}") for number in range(200)))
        assert found == list(map(str, range(200)))
        assert await asyncio.gather(*(client.get("key:7") for _ in range(100))) == ["7"] * 100
        assert await client.dbsize() == 204


async def test_pipelines(shards: dict[str, str]) -> None:
    async with AsyncShardedRedis(shards, decode_responses=True) as client:
        await client.flushall()
        pipe = client.pipeline(transaction=False)
        for number in range(100):
            key = f"key:{number}"
            pipe.set(key, number).incr(key).append(key, "!").get(key).lpush(key, 1)
        results = await pipe.execute(raise_on_error=False)
        for number in range(100):
            mine = results[5 * number : 5 * number + 5]
            assert mine[:4] == [True, number + 1, len(str(number + 1)) + 1, f"{number + 1}!"]
            assert "not possible on a memcached shard" in str(mine[4])
        with pytest.raises(ResponseError, match="transactions are not possible"):
            await client.pipeline().set("{t}a", 1).set("{t}b", 2).execute()
        assert await client.get("{t}a") is None
        assert await client.ping() is True
        with pytest.raises(TypeError):
            client.on_shard("a")
        with pytest.raises(ResponseError, match="not possible"):
            await client.pubsub().subscribe("channel")


async def test_cancelled_in_the_middle(shards: dict[str, str]) -> None:
    async with AsyncShardedRedis(shards) as client:
        await client.mset({f"v:{number}": number for number in range(20)})
        for turns in range(12):
            gone = [asyncio.ensure_future(client.append(f"v:{number}x", "y")) for number in range(20)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for each in gone:
                each.cancel()
            found = await asyncio.gather(*(client.get(f"v:{number}") for number in range(20)))
            assert found == [str(number).encode() for number in range(20)]


async def test_beside_redis_and_when_one_dies(shards: dict[str, str]) -> None:
    with RedisNode() as node, MemcachedNode() as mortal:
        mixed = {**shards, "m": mortal.url, "r": f"redis://{node.address}"}
        async with AsyncShardedRedis(mixed, pool={"health": {"wait": "100ms"}}) as client:
            wanted = {f"key:{number}": b"%d" % number for number in range(100)}
            await client.mset(wanted)
            assert await client.mget(list(wanted)) == list(wanted.values())
            assert await client.script_load("return 1")
            assert await client.config_get("maxmemory") == {"maxmemory": "0"}
            await asyncio.to_thread(mortal.kill)
            with pytest.raises(PartialError) as caught:
                await client.mget(list(wanted))
            assert {client.locate(key).shard for key in caught.value.errors} == {"m"}
            assert len(caught.value.results) + len(caught.value.errors) == 100
            await asyncio.to_thread(mortal.start)
            async with asyncio.timeout(20):
                while True:
                    try:
                        await client.mset(wanted)
                        break
                    except PartialError:
                        await asyncio.sleep(0.05)
            assert await client.mget(list(wanted)) == list(wanted.values())
