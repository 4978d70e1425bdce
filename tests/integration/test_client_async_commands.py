"""AsyncShardedRedis on real nodes: commands, several shards, pipelines, transactions, scripts, messages."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.exceptions import (
    ClusterCrossSlotError,
    DataError,
    LockError,
    NoScriptError,
    ResponseError,
    WatchError,
)

from shardproxy import AsyncShardedRedis
from shardproxy.client.aio_asking import LARGE
from tests.servers import RedisNode, redis_nodes, shards_of, urls_of

SCRIPT = "return {KEYS[1], ARGV[1], redis.call('incr', KEYS[1])}"


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as found:
        yield found


@pytest.fixture
async def client(nodes: list[RedisNode]) -> AsyncIterator[AsyncShardedRedis]:
    patient = {"timeout": "20s", "connect_timeout": "20s"}  # the machine may be busy
    async with AsyncShardedRedis(urls_of(nodes), pool=patient, decode_responses=True) as found:
        await found.flushall()
        yield found


@pytest.fixture
def keys(client: AsyncShardedRedis) -> list[str]:
    """One of each shard: keys[0] is a's."""
    found: dict[str, str] = {}
    for number in range(100):
        found.setdefault(client.locate(f"key:{number}").shard, f"key:{number}")
    return [found[name] for name in "abc"]


async def until(what: Any) -> Any:
    async with asyncio.timeout(20):
        while not (found := await what()):
            await asyncio.sleep(0.01)
    return found


async def connections(client: AsyncShardedRedis, name: str) -> int:
    """How many this client has to a shard, as the node counts them; its own is not among them."""
    async with client.on_shard(name).client() as alone:
        return int((await alone.info("clients"))["connected_clients"]) - 1


async def test_every_key_is_on_its_shard(client: AsyncShardedRedis, nodes: list[RedisNode]) -> None:
    assert await asyncio.gather(*(client.set(f"key:{n}", n) for n in range(60))) == [True] * 60
    for name, node in zip("abc", nodes, strict=True):
        with redis.Redis(port=node.port, decode_responses=True) as alone:
            here = {f"key:{n}" for n in range(60) if client.locate(f"key:{n}").shard == name}
            assert set(alone.keys()) == here and here
    assert await asyncio.gather(*(client.get(f"key:{n}") for n in range(60))) == list(map(str, range(60)))


async def test_what_redis_py_makes_of_replies(client: AsyncShardedRedis, keys: list[str]) -> None:
    a, b, c = keys
    assert await client.hset(a, mapping={"f": 1, "g": 2}) == 2
    assert await client.hgetall(a) == {"f": "1", "g": "2"}
    assert await client.zadd(b, {"m": 1.5}) == 1
    assert await client.zrange(b, 0, -1, withscores=True) == [("m", 1.5)]
    assert await client.sadd(c, "x") == 1 and await client.smembers(c) == {"x"}
    assert await client.get("missing") is None and await client.exists(a, b, c, "missing") == 3
    assert await client.type(a) == "hash" and await client.object("encoding", a) == "listpack"
    assert await client.execute_command("get", "missing") is None
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await client.get(a)
    with pytest.raises(DataError):
        await client.set(a, None)  # type: ignore[arg-type]
    dump = await client.dump(c)
    assert isinstance(dump, bytes)
    assert await client.restore("copy", 0, dump) and await client.smembers("copy") == {"x"}
    client.set_response_callback("GET", lambda reply, **_: f"<{reply}>")
    assert await client.get("missing") == "<None>"


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": 2},
        {"protocol": 3},
        {"protocol": 3, "legacy_responses": False},
        {"decode_responses": True},
    ],
)
async def test_as_redis_py_with_the_same_settings(nodes: list[RedisNode], settings: dict[str, Any]) -> None:
    async with (
        AsyncShardedRedis(urls_of(nodes), **settings) as client,
        redis.asyncio.Redis(port=nodes[0].port, **settings) as plain,
    ):
        for each in (client, plain):
            await each.delete("h", "z", "s", "x", "g")
            await each.hset("h", mapping={"a": 1})
            await each.zadd("z", {"m": 1.5, "n": 2})
            await each.xadd("x", {"f": "v"}, id="1-1")
        calls: list[Any] = [
            lambda it: it.hgetall("h"),
            lambda it: it.zrange("z", 0, -1, withscores=True),
            lambda it: it.zscore("z", "m"),
            lambda it: it.xrange("x"),
            lambda it: it.xread({"x": "0"}),
            lambda it: it.config_get("maxmemory*"),
            lambda it: it.ping(),
            lambda it: it.geoadd("g", (1, 2, "p"), ch=True),
            lambda it: it.geopos("g", "p"),
            lambda it: it.pipeline(transaction=False).hgetall("h").zscore("z", "m").execute(),
            lambda it: it.pipeline().hgetall("{h}").zscore("{h}z", "m").execute(),
        ]
        for call in calls:
            found, wanted = call(client), call(plain)
            assert await found == await wanted


async def test_split_over_the_shards(client: AsyncShardedRedis) -> None:
    wanted = {f"key:{number}": str(number) for number in range(100)}
    assert await client.mset(wanted) is True
    assert await client.mget(list(wanted)) == list(wanted.values())
    assert await client.mget("key:1", "missing", "key:1") == ["1", None, "1"]
    assert await client.exists(*wanted) == await client.touch(*wanted) == 100
    assert await client.dbsize() == 100 and sorted(await client.keys()) == sorted(wanted)
    assert await client.unlink(*list(wanted)[:50]) == 50 and await client.delete(*wanted) == 50
    with pytest.raises(ClusterCrossSlotError):
        await client.sunion(list(wanted))


async def test_one_after_the_other(client: AsyncShardedRedis) -> None:
    wanted = {f"key:{number}" for number in range(300)}
    await client.mset(dict.fromkeys(wanted, "x"))
    assert {key async for key in client.scan_iter(count=7)} == wanted
    some = {key for key in wanted if key.startswith("key:1")}
    assert {key async for key in client.scan_iter(match="key:1*")} == some
    assert await client.randomkey() in wanted
    await client.flushdb()
    assert await client.randomkey() is None and [key async for key in client.scan_iter()] == []
    with pytest.raises(ResponseError, match="invalid cursor"):
        await client.execute_command("SCAN", "x")


async def test_on_all_and_on_one(client: AsyncShardedRedis) -> None:
    found = await client.on_all("CONFIG GET", "maxmemory")
    assert found == {name: {"maxmemory": "0"} for name in "abc"}
    async with client.on_shard("b").client() as alone:
        assert (await alone.info())["redis_version"].startswith("7.")
    with pytest.raises(ResponseError, match=r"(?i)unknown"):
        await client.config_set("nonsense", 5)
    with pytest.raises(KeyError):
        client.on_shard("d")
    with pytest.raises(ResponseError, match="on_shard"):
        await client.info()


async def test_pipeline_over_the_shards(client: AsyncShardedRedis) -> None:
    async with client.pipeline(transaction=False) as pipe:
        for number in range(50):
            pipe.set(f"key:{number}", number).incr(f"key:{number}")
        pipe.mget([f"key:{n}" for n in range(50)]).dbsize().get("missing").delete("key:1", "key:2")
        results = await pipe.execute()
    assert results[:100] == [each for number in range(50) for each in (True, number + 1)]
    assert results[100:] == [[str(number + 1) for number in range(50)], 50, None, 2]
    assert len(pipe) == 0 and await pipe.execute() == []


async def test_errors_of_a_pipeline(client: AsyncShardedRedis, keys: list[str]) -> None:
    pipe = client.pipeline(transaction=False).set(keys[0], "text").lpush(keys[0], 1).set(keys[1], 2)
    with pytest.raises(
        ResponseError, match=r"Command # 2 \(LPUSH .* 1\) of pipeline caused error: WRONGTYPE"
    ):
        await pipe.execute()
    pipe.set(keys[0], "text").lpush(keys[0], 1).set(keys[1], 2).sunion(keys).execute_command("NOSUCH")
    results = await pipe.execute(raise_on_error=False)
    assert results[0] is results[2] is True
    assert [type(each) for each in results[1::2]] == [ResponseError, ClusterCrossSlotError]
    assert "unknown command" in str(results[4])
    assert await client.get(keys[1]) == "2"


async def test_transactions_on_one_shard(client: AsyncShardedRedis, keys: list[str]) -> None:
    key = keys[1]
    assert await client.pipeline().set(f"{{{key}}}x", 1).incr(f"{{{key}}}x").execute() == [True, 2]
    with pytest.raises(ClusterCrossSlotError, match="Command # 2"):
        await client.pipeline().set(keys[0], 1).set(keys[1], 1).execute()
    assert await client.get(keys[0]) is None
    with pytest.raises(ResponseError, match=r"Command # 2 .* WRONGTYPE"):
        await client.pipeline().set(key, "text").lpush(key, 1).execute()
    assert await client.get(key) == "text"
    with pytest.raises(ResponseError, match=r"Command # 1 .*wrong number of arguments"):
        await client.pipeline().execute_command("GET").execute()


async def test_watch(client: AsyncShardedRedis, keys: list[str]) -> None:
    key, other = keys[0], keys[2]
    await client.set(other, "elsewhere")
    async with client.pipeline() as pipe:
        await pipe.watch(key)
        assert await pipe.get(key) is None and await pipe.get(other) == "elsewhere"
        pipe.multi()
        pipe.set(key, 1)
        await client.set(key, "somebody's")
        with pytest.raises(WatchError):
            await pipe.execute()
    async with client.pipeline() as pipe:
        await pipe.watch(key)
        with pytest.raises(ClusterCrossSlotError):
            await pipe.watch(other)
        assert await pipe.unwatch() is True
        await pipe.get(key)
        assert await pipe.execute() == ["somebody's"]

    async def increment(pipe: Any) -> None:
        value = await pipe.get(f"{{{key}}}n")
        pipe.multi()
        pipe.set(f"{{{key}}}n", int(value or 0) + 1)

    await asyncio.gather(*(client.transaction(increment, f"{{{key}}}n") for _ in range(20)))
    assert await client.get(f"{{{key}}}n") == "20"


async def test_scripts_outlive_what_their_nodes_forget(client: AsyncShardedRedis, keys: list[str]) -> None:
    script = client.register_script(SCRIPT)
    for turn in range(1, 3):
        assert [(await script(keys=[key], args=["x"]))[2] for key in keys] == [3 * turn - 2] * 3
        await client.on_all("SCRIPT FLUSH")
        pipe = client.pipeline(transaction=False)
        for key in keys:
            await script(keys=[key], args=["x"], client=pipe)
        assert [each[2] for each in await pipe.execute()] == [3 * turn - 1] * 3
        await client.on_all("SCRIPT FLUSH")
        for key in keys:
            pipe = client.pipeline()
            await script(keys=[key], args=["x"], client=pipe)
            assert (await pipe.execute())[0][2] == 3 * turn
        await client.on_all("SCRIPT FLUSH")
    sha = await client.script_load("return 7")
    assert await client.script_exists(sha) == [True] and await client.evalsha(sha, 0) == 7
    with pytest.raises(NoScriptError):
        await client.evalsha("0" * 40, 0)
    with pytest.raises(ClusterCrossSlotError):
        await script(keys=keys, args=["x"])


async def test_locks(client: AsyncShardedRedis, nodes: list[RedisNode]) -> None:
    async with client.lock("lock", timeout=10) as lock:
        assert await lock.owned() and not await client.lock("lock", blocking=False).acquire()
        await lock.extend(10)
        await client.on_all("SCRIPT FLUSH")
    assert await client.get("lock") is None
    async with AsyncShardedRedis(urls_of(nodes), pool={"kind": "cache"}) as cache:
        with pytest.raises(LockError, match="second owner"):
            cache.lock("lock")
        async with cache.lock("lock", timeout=10, allow_cache_pool=True):
            assert await cache.exists("lock")


async def test_calls_at_the_same_time_share_a_connection(client: AsyncShardedRedis, keys: list[str]) -> None:
    key = keys[0]
    await client.set(key, "x")
    before = await connections(client, "a")
    assert await asyncio.gather(*(client.get(key) for _ in range(100))) == ["x"] * 100
    assert await connections(client, "a") == before
    # what waits and what is large has connections of its own, and holds up nobody
    waiting = [asyncio.ensure_future(client.blpop(f"{{{key}}}list", timeout=0)) for _ in range(3)]
    large = "x" * (LARGE + 1)
    assert await client.set(f"{{{key}}}large", large) is True
    assert await client.get(key) == "x"

    async def blocked() -> bool:
        return await connections(client, "a") >= before + 3

    await until(blocked)
    for number in range(3):
        assert await client.rpush(f"{{{key}}}list", number)
    assert sorted(value for _, value in await asyncio.gather(*waiting)) == ["0", "1", "2"]
    assert await client.get(f"{{{key}}}large") == large


async def test_without_pipelining_each_call_has_a_connection(nodes: list[RedisNode]) -> None:
    async with AsyncShardedRedis({"a": urls_of(nodes)["a"]}, pipelining=False) as client:
        await client.set("x", "y")
        assert await asyncio.gather(*(client.get("x") for _ in range(5))) == [b"y"] * 5
        assert await connections(client, "a") >= 5
        assert await client.pipeline(transaction=False).get("x").execute() == [b"y"]


async def test_blocking_commands_wait_longer_than_the_timeout(
    client: AsyncShardedRedis, nodes: list[RedisNode]
) -> None:
    async with AsyncShardedRedis(urls_of(nodes), pool={"timeout": "2s"}) as quick:
        assert await quick.blpop("list", timeout=2.2) is None  # type: ignore[arg-type]
        waiting = asyncio.ensure_future(quick.blpop("list", timeout=0))
        await asyncio.sleep(2.2)
        await client.rpush("list", "x")
        assert await waiting == (b"list", b"x")
        assert await quick.xread({"stream": "$"}, block=300) in ([], {})
        assert await quick.get("list") is None


async def test_messages(client: AsyncShardedRedis) -> None:
    channels = [f"channel:{number}" for number in range(20)]
    async with client.pubsub() as messages:
        await messages.subscribe(*channels)
        await messages.psubscribe("news.*")
        begun = [await messages.get_message(timeout=10) for _ in range(21)]
        assert [each and each["data"] for each in begun] == list(range(1, 22))
        assert {each["type"] for each in begun if each} == {"subscribe", "psubscribe"}
        assert sorted(await client.pubsub_channels("channel:*")) == sorted(channels)
        assert [await client.publish(channel, f"to {channel}") for channel in channels] == [1] * 20

        async def patterns() -> bool:  # of all shards; one has confirmed
            return bool(await client.publish("news.today", "rain"))

        await until(patterns)
        found: dict[str, str] = {}
        while len(found) < 21:
            message = await messages.get_message(timeout=10)
            assert message
            found[message["channel"]] = message["data"]
        assert found == {**{channel: f"to {channel}" for channel in channels}, "news.today": "rain"}
        seen: list[Any] = []

        async def handle(message: Any) -> None:
            seen.append(message["data"])

        await messages.unsubscribe()
        await messages.subscribe(own=handle)
        ended = 0
        while ended < 21:
            message = await messages.get_message(timeout=10)
            ended += message is not None and message["type"] in ("unsubscribe", "subscribe")
        await client.publish("own", "for the handler")
        while not seen:
            assert await messages.get_message(timeout=10) is None
        assert seen == ["for the handler"]
        await messages.unsubscribe()
        await messages.punsubscribe("news.*")
        assert {each["type"] async for each in messages.listen()} == {"unsubscribe", "punsubscribe"}
        assert not messages.subscribed


async def test_a_reader_that_gives_up_loses_no_message(client: AsyncShardedRedis) -> None:
    async with client.pubsub(ignore_subscribe_messages=True) as messages:
        await messages.subscribe("c")

        async def begun() -> bool:
            return (await client.pubsub_numsub("c"))[0][1] == 1

        await until(begun)
        found: list[str] = []
        sent = asyncio.ensure_future(asyncio.gather(*(client.publish("c", n) for n in range(200))))
        while len(found) < 200:
            reading = asyncio.ensure_future(messages.get_message(timeout=10))
            for _ in range(len(found) % 3):
                await asyncio.sleep(0)
            reading.cancel()
            try:
                message = await reading
            except asyncio.CancelledError:
                message = await messages.get_message(timeout=10)
            if message is not None:
                found.append(message["data"])
        await sent
        assert found == list(map(str, range(200)))


async def test_nothing_is_opened_until_it_is_used() -> None:
    client = AsyncShardedRedis({"a": "redis://nowhere.invalid:1", "b": "redis://192.0.2.1"})
    assert client.locate("x").state == "unknown" and client.topology.pools[0].name == "main"
    assert len(asyncio.all_tasks()) == 1
    assert "nowhere.invalid" in repr(client)
    await client.aclose()


async def test_credentials_and_databases() -> None:
    with redis_nodes(2, "--requirepass", "sesame") as nodes:
        shards = {name: f"redis://:sesame@{address}/3" for name, address in shards_of(nodes).items()}
        for protocol in (2, 3):
            async with AsyncShardedRedis(shards, protocol=protocol, client_name="me") as client:
                await client.set("x", 1)
                assert await client.get("x") == b"1" and "sesame" not in repr(client)
                number = int(client.locate("x").address.rpartition(":")[2])
                with redis.Redis(port=number, db=3, password="sesame") as alone:
                    assert alone.get("x") == b"1"
                    assert "me" in {each["name"] for each in alone.client_list()}  # type: ignore[union-attr]
        async with AsyncShardedRedis(urls_of(nodes)) as stranger:
            with pytest.raises(redis.AuthenticationError):
                await stranger.get("x")
        wrong = {name: url.replace("sesame", "wrong") for name, url in shards.items()}
        async with AsyncShardedRedis(wrong) as stranger:
            with pytest.raises(redis.AuthenticationError):
                await stranger.get("x")


async def test_topology_changes(client: AsyncShardedRedis, nodes: list[RedisNode]) -> None:
    async with AsyncShardedRedis(dict(list(urls_of(nodes).items())[:2]), decode_responses=True) as two:
        await asyncio.gather(*(client.set(f"key:{number}", number) for number in range(50)))
        await two.get("key:1")
        before = {f"key:{n}": two.locate(f"key:{n}").shard for n in range(50)}
        two.apply(client.topology)
        after = {f"key:{n}": two.locate(f"key:{n}").shard for n in range(50)}
        assert set(before.values()) == {"a", "b"} and set(after.values()) == {"a", "b", "c"}
        assert await two.mget(list(after)) == list(map(str, range(50)))
