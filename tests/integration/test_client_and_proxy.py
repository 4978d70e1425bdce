"""A key is on the same shard through the proxy and through the library, whatever the pool says.

SHARDPROXY_KEYS=100000 tries so many random keys of every setting (docs/development.md); CI fewer.
"""

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError
from servers import RedisNode, redis_nodes, shards_of

import shardproxy
from shardproxy import ShardedRedis
from shardproxy.core.hashing import KEY_HASHES

LONG = int(os.environ.get("SHARDPROXY_KEYS", 0))
KEYS = LONG or 1000
WEIGHTS = (1, 2, 5)
SETTINGS = [
    {},
    {"virtual_nodes": 7},
    {"hash_tag": ""},
    {"hash_tag": "$$"},
    *(
        {"distribution": distribution, "hash": hash, "hash_tag": tag}
        for distribution in ("ketama", "modula")
        for hash in (sorted({*KEY_HASHES} - {"xxh64"}) if LONG else ("md5", "fnv1a_64", "crc32"))
        for tag in (("", "{}") if LONG or hash == "md5" else ("",))
    ),
]


def random_keys(count: int) -> list[bytes]:
    """Of all bytes, some with tags; not empty."""
    chance = random.Random(count)
    found: set[bytes] = set()
    while len(found) < count:
        key = chance.randbytes(chance.randrange(1, 24))
        found.add(chance.choice([key, key, b"{%b}%b" % (key[:3], key), b"$%b$%b" % (key[:3], key)]))
    return list(found)


def table(nodes: list[RedisNode], pool: dict[str, Any]) -> str:
    lines = [
        'listen = ["127.0.0.1:0"]',
        "[pool.main]",
        *(f"{key} = {value!r}" for key, value in pool.items()),
    ]
    lines.append("[pool.main.shards]")
    for weight, (name, address) in zip(WEIGHTS, shards_of(nodes).items(), strict=False):
        lines.append(f'{name} = {{ primary = "redis://{address}", weight = {weight} }}')
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def both(config: str) -> AsyncIterator[tuple[shardproxy.Proxy, redis.Redis, ShardedRedis]]:
    """The proxy in this process, a client of it, and the library with the same configuration."""
    async with shardproxy.Proxy(shardproxy.load(config.encode())) as proxy:
        port = int(proxy.addresses[0].rpartition(":")[2])
        serving = asyncio.ensure_future(proxy.serve_forever())
        with redis.Redis(port=port) as through, ShardedRedis.from_config(config.encode()) as direct:
            yield proxy, through, direct
        serving.cancel()


@pytest.fixture(scope="module")
def nodes() -> Any:
    with redis_nodes(3) as found:
        yield found


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
async def test_the_same_shard_under_every_setting(nodes: list[RedisNode], settings: dict[str, Any]) -> None:
    keys = random_keys(KEYS)
    async with both(table(nodes, settings | {"timeout": "20s"})) as (proxy, through, direct):

        def compare() -> None:
            assert direct.flushall()
            for at in range(0, len(keys), 5000):
                some = keys[at : at + 5000]
                direct.mset(dict(zip(some, map(str, itertools.count(at)), strict=False)))
                assert through.mget(some) == [b"%d" % number for number in range(at, at + len(some))]
            assert through.dbsize() == direct.dbsize() == len(keys)

        await asyncio.to_thread(compare)
        assert direct.topology.pools[0].ring.fingerprint == proxy.topology.pools[0].ring.fingerprint


async def test_the_same_stand_ins_under_every_combination_of_shards_down() -> None:
    """Each with the state that the proxy has found, which the library is told."""
    keys = random_keys(KEYS)
    pool = {"kind": "cache", "on_shard_down": "rehash", "timeout": "20s"}
    health = {
        "interval": "100ms",
        "fail_open_ratio": 1.0,
        "successes": 1,
        "wait": "100ms",
        "wait_most": "100ms",
    }
    more = "".join(f"health.{key} = {value!r}\n" for key, value in health.items())
    with redis_nodes(5 if LONG else 3) as mortal:
        config = table(mortal, pool).replace("[pool.main.shards]", more + "[pool.main.shards]")
        async with both(config) as (proxy, through, direct):
            alive = set(range(len(mortal)))
            for count in range(len(mortal)):
                for down in map(set, itertools.combinations(range(len(mortal)), count)):
                    for number in down & alive:
                        mortal[number].kill()
                    for number in set(range(len(mortal))) - down - alive:
                        await asyncio.to_thread(mortal[number].start)
                    alive = set(range(len(mortal))) - down

                    def settled(wanted: set[int] = down) -> bool:
                        states = [shard.node.state for shard in proxy.topology.pools[0].shards]
                        return states == ["out" if at in wanted else "up" for at in range(len(mortal))]

                    async with asyncio.timeout(120):
                        while not settled():
                            await asyncio.sleep(0.02)
                    direct.asker.apply(proxy.topology, followed=True)

                    def compare(wanted: set[int] = down) -> None:
                        through.flushall()
                        for at in range(0, len(keys), 5000):
                            direct.mset(dict.fromkeys(keys[at : at + 5000], "x"))
                            assert set(through.mget(keys[at : at + 5000])) == {b"x"}
                        used = {direct.locate(key).shard for key in keys}
                        assert used == {"abcde"[at] for at in set(range(len(mortal))) - wanted}

                    await asyncio.to_thread(compare)


REFUSED: list[tuple[Any, ...]] = [
    ("SUNION", "a", "b", "c"),
    ("RENAME", "a", "b"),
    ("GET",),
    ("MSET", "a"),
    ("GET", "a", "b"),
    ("OBJECT", "NOSUCH", "a"),
    ("SORT", "a", "BY", "w_*"),
    ("EVAL", "return 1", 2, "a", "b"),
    ("XREAD", "STREAMS", "a", "b", "c", 0, 0, 0),
    ("MSETNX", "a", 1, "b", 2),
    ("MIGRATE", "h", 1, "k", 0, 1),
    ("GETEX", "a", "NONSENSE"),
    ("EVALSHA", "0" * 40, 0),
    ("BLPOP", "a", "b", "c", 1),
]


async def test_refused_in_the_same_words_and_classes(nodes: list[RedisNode]) -> None:
    async with both(table(nodes, {})) as (_, through, direct):

        def compare() -> None:
            for args in REFUSED:
                said = []
                for client in (through, direct):
                    with pytest.raises(ResponseError) as caught:
                        client.execute_command(*args)
                    said.append((type(caught.value), str(caught.value)))
                assert said[0] == said[1], args

        await asyncio.to_thread(compare)


async def test_messages_meet(nodes: list[RedisNode]) -> None:
    """Published through the one, received through the other."""
    async with both(table(nodes, {})) as (_, through, direct):

        def compare() -> None:
            channels = [f"channel:{number}" for number in range(12)]
            for publisher, subscriber in ((through, direct), (direct, through)):
                messages = subscriber.pubsub()
                messages.subscribe(*channels)
                heard: dict[Any, Any] = {}
                confirmed = 0
                while confirmed < len(channels):
                    message = messages.get_message(timeout=10)
                    confirmed += message["type"] == "subscribe"
                for channel in channels:
                    assert publisher.publish(channel, channel) == 1
                while len(heard) < len(channels):
                    message = messages.get_message(timeout=10)
                    heard[message["channel"]] = message["data"]
                assert heard == {channel.encode(): channel.encode() for channel in channels}
                messages.close()

        await asyncio.to_thread(compare)


async def test_following_a_proxy() -> None:
    """Its shards and its verdicts: when it drains or loses a shard, the client goes where the proxy does."""
    pool = {"kind": "cache", "on_shard_down": "rehash", "on_return": "invalidate", "timeout": "5s"}
    more = 'health.interval = "100ms"\nhealth.successes = 1\n'
    with redis_nodes(3) as mortal:
        config = table(mortal, pool).replace("[pool.main.shards]", more + "[pool.main.shards]")
        async with both(config) as (proxy, through, _):
            port = proxy.addresses[0].rpartition(":")[2]
            with ShardedRedis.from_url(f"shardproxy://127.0.0.1:{port}") as following:
                keys = [f"key:{number}" for number in range(200)]

                def agree(shards: set[str]) -> None:
                    following.asker.look(doubt=True)
                    following.mset(dict.fromkeys(keys, "x"))
                    assert through.mget(keys) == [b"x"] * len(keys)
                    pipe = following.pipeline(transaction=False)
                    for key in keys:
                        pipe.get(key)
                    assert pipe.execute() == [b"x"] * len(keys)
                    assert {following.locate(key).shard for key in keys} == shards

                await asyncio.to_thread(agree, {"a", "b", "c"})
                mortal[1].kill()
                async with asyncio.timeout(60):
                    while proxy.topology.pools[0].shard("b").node.state != "out":
                        await asyncio.sleep(0.02)
                    while following.topology.pools[0].shard("b").node.state != "out":
                        await asyncio.to_thread(following.asker.look, True)
                        await asyncio.sleep(0.05)
                await asyncio.to_thread(agree, {"a", "c"})
            nobody = ShardedRedis.from_url("shardproxy://127.0.0.1:1")
            with pytest.raises(redis.ConnectionError, match="no proxy"):
                nobody.get("x")
            with pytest.raises(ValueError, match="a URL of proxies"):
                ShardedRedis.from_url("redis://127.0.0.1:1")
