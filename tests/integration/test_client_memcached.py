"""ShardedRedis on memcached shards: the commands, and the answers, of the proxy."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from redis.exceptions import RedisError, ResponseError
from servers import MemcachedNode, RedisNode, until

import shardproxy
from shardproxy import PartialError, ShardedRedis


@pytest.fixture(scope="module")
def shards() -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        found = [stack.enter_context(MemcachedNode()).url for _ in range(3)]
        yield dict(zip("abc", found, strict=True))


def config(shards: dict[str, str]) -> bytes:
    lines = ['listen = ["127.0.0.1:0"]', "[pool.main]", 'kind = "cache"', "[pool.main.shards]"]
    return "\n".join([*lines, *(f'{name} = "{url}"' for name, url in shards.items())]).encode()


COMMANDS: list[tuple[Any, ...]] = [
    ("SET", "k", "v"),
    ("GET", "k"),
    ("APPEND", "k", "w"),
    ("STRLEN", "k"),
    ("GETRANGE", "k", 0, 0),
    ("TYPE", "k"),
    ("SET", "k", "v", "NX"),
    ("SET", "k", "v", "XX", "EX", 100),
    ("TTL", "k"),
    ("PERSIST", "k"),
    ("TTL", "k"),
    ("EXPIRE", "k", 50),
    ("GETDEL", "k"),
    ("GET", "k"),
    ("INCR", "n"),
    ("INCRBY", "n", 5),
    ("DECR", "n"),
    ("INCRBYFLOAT", "n", "0.5"),
    ("INCR", "n"),
    ("SETEX", "t", 10, "x"),
    ("GETSET", "t", "y"),
    ("EXISTS", "t", "n", "no"),
    ("MSET", "a", 1, "b", 2, "c", 3, "d", 4),
    ("MGET", "a", "b", "c", "d", "e"),
    ("DEL", "a", "b", "e"),
    ("TOUCH", "c"),
    ("SETRANGE", "c", 3, "z"),
    ("GET", "c"),
    ("SET", b"\0 \xff", b"\r\n"),
    ("GET", b"\0 \xff"),
    ("LPUSH", "l", 1),
    ("HSET", "h", "f", 1),
    ("SET", "x" * 300, 1),
    ("EVAL", "return 1", 1, "k"),
    ("SETNX", "s", 1),
    ("SETNX", "s", 2),
    ("GET",),
    ("SET", "k", "v", "NONSENSE"),
    ("INCRBY", "s", "nonsense"),
]


async def test_the_same_answers_as_the_proxy(shards: dict[str, str]) -> None:
    async with shardproxy.Proxy(shardproxy.load(config(shards))) as proxy:
        serving = asyncio.ensure_future(proxy.serve_forever())
        port = int(proxy.addresses[0].rpartition(":")[2])

        def said(client: Any) -> list[Any]:
            client.flushall()
            found: list[Any] = []
            for args in COMMANDS:
                try:
                    found.append(client.execute_command(*args))
                except RedisError as error:
                    found.append((type(error), str(error)))
            return found

        def compare() -> None:
            with redis.Redis(port=port) as through, ShardedRedis.from_config(config(shards)) as direct:
                for args, theirs, ours in zip(COMMANDS, said(through), said(direct), strict=True):
                    assert theirs == ours, args
                direct.mset({f"key:{number}": number for number in range(300)})
                assert through.mget([f"key:{number}" for number in range(300)]) == [
                    b"%d" % number for number in range(300)
                ]

        await asyncio.to_thread(compare)
        serving.cancel()


def test_pipelines(shards: dict[str, str]) -> None:
    with ShardedRedis(shards, decode_responses=True) as client:
        client.flushall()
        pipe = client.pipeline(transaction=False)
        for number in range(100):
            key = f"key:{number}"
            pipe.set(key, number).incr(key).append(key, "!").get(key).lpush(key, 1)
        results = pipe.execute(raise_on_error=False)
        for number in range(100):
            mine = results[5 * number : 5 * number + 5]
            assert mine[:4] == [True, number + 1, len(str(number + 1)) + 1, f"{number + 1}!"]
            assert "not possible on a memcached shard" in str(mine[4])
        with pytest.raises(ResponseError, match="transactions are not possible"):
            client.pipeline().set("{t}a", 1).set("{t}b", 2).execute()
        assert client.get("{t}a") is None
        assert client.ping() is True and client.dbsize() >= 100
        with pytest.raises(TypeError):
            client.on_shard("a")
        with pytest.raises(ResponseError, match="not possible"):
            client.pubsub().subscribe("channel")


def test_beside_redis_and_when_one_dies(shards: dict[str, str]) -> None:
    with RedisNode() as node, MemcachedNode() as mortal:
        mixed = {**shards, "m": mortal.url, "r": f"redis://{node.address}"}
        with ShardedRedis(mixed, pool={"health": {"wait": "100ms"}}) as client:
            wanted = {f"key:{number}": b"%d" % number for number in range(100)}
            client.mset(wanted)
            assert client.mget(list(wanted)) == list(wanted.values())
            assert client.script_load("return 1") and client.config_get("maxmemory") == {"maxmemory": "0"}
            mortal.kill()
            with pytest.raises(PartialError) as caught:
                client.mget(list(wanted))
            assert {client.locate(key).shard for key in caught.value.errors} == {"m"}
            assert len(caught.value.results) + len(caught.value.errors) == 100
            mortal.start()
            until(lambda: client.mset(wanted) if client.locate("x").shard and ready(client, wanted) else None)


def ready(client: ShardedRedis, wanted: dict[str, bytes]) -> bool:
    try:
        client.mget(list(wanted))
    except PartialError:
        return False
    return True
