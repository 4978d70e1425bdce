"""Where sessions are kept: one Redis, many behind the proxy, ShardedRedis; and where they are refused."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_py
import redis.asyncio as redis_async
from servers import ProxyProcess, RedisNode, shards_of, toml

from shardproxy import ShardedRedis
from shardproxy.core.sessions.fitness import faults_of_node, faults_of_pool
from shardproxy.sessions import AsyncSessionStore, SessionStore, UnfitPool

SECRETS = ["a secret of at least sixteen bytes"]


@pytest.fixture(params=["proxy", "sharded"])
def client(request: pytest.FixtureRequest, nodes3: list[RedisNode]) -> Iterator[Any]:
    for node in nodes3:
        with node.raw() as raw:
            raw.ask("FLUSHALL"), raw.ask("SCRIPT", "FLUSH")
    if request.param == "sharded":
        with ShardedRedis(
            {name: f"redis://{address}" for name, address in shards_of(nodes3).items()}
        ) as client:
            yield client
    else:
        proxy = request.getfixturevalue("proxy")
        with redis_py.Redis(port=proxy.port) as client:
            yield client


def test_everything_over_many_shards(client: Any, nodes3: list[RedisNode]) -> None:
    store = SessionStore(client, SECRETS)
    sessions = {}
    for number in range(12):
        session = store.load(None)
        session["n"] = number
        session.save()
        session.login(f"user{number}")
        sessions[number] = session
    for number, session in sessions.items():
        request = store.load(session.cookie)
        assert request.user_id == f"user{number}" and request["n"] == number
        request.incr("n")
        request.renew()
        assert store.load(session.cookie)["n"] == number + 1
        assert len(store.list_sessions(f"user{number}")) == 1
        if number % 3 == 0:
            store.load(request.cookie).destroy()
        elif number % 3 == 1:
            assert store.revoke_all(f"user{number}") == 1
        assert store.load(request.cookie).is_new == (number % 3 < 2)
    sizes = [RedisCount(node).keys() for node in nodes3]
    assert sum(1 for size in sizes if size) > 1, "all on one shard"


class RedisCount:
    def __init__(self, node: RedisNode) -> None:
        self.node = node

    def keys(self) -> int:
        with self.node.raw() as raw:
            return int(raw.value("DBSIZE"))


async def test_awaited_over_the_proxy(proxy: ProxyProcess) -> None:
    async with redis_async.Redis(port=proxy.port) as client:
        store = AsyncSessionStore(client, SECRETS)
        session = await store.load(None)
        await session.login("awaited")
        assert (await store.load(session.cookie)).user_id == "awaited"
        assert await store.revoke(session.handle)
        assert (await store.load(session.cookie)).is_new


class Counting:
    """A client that counts what is asked."""

    def __init__(self, client: Any) -> None:
        self.client, self.asked = client, 0

    def execute_command(self, *args: Any, **options: Any) -> Any:
        self.asked += 1
        return self.client.execute_command(*args, **options)


def test_round_trips_and_payload(redis: RedisNode) -> None:
    """load 1, load and save 2; what is stored beside the application's data is small."""
    with redis_py.Redis(port=redis.port) as real:
        real.flushall()
        client = Counting(real)
        store = SessionStore(client, SECRETS)
        session = store.load(None)
        session.update({"user": "42", "cart": ["book", "pen"]})
        session.login("42")  # of a session that was not stored: no other round trip
        for _ in range(2):  # the first time, the node may not know the scripts
            client.asked = 0
            store.load(session.cookie)
        assert client.asked == 1
        for _ in range(2):
            client.asked = 0
            request = store.load(session.cookie)
            request["cart"].append("cup")
            request.save()
        assert client.asked == 2
        client.asked = 0
        store.load(session.cookie).save()
        assert client.asked == 1
        fields = real.hgetall(real.keys("s:*")[0])
        beside = sum(len(name) + len(value) for name, value in fields.items() if name[:1] == b"\0")
        assert beside < 100


@pytest.mark.parametrize("decode", [False, True])
def test_connections_of_redis_py_are_used_as_its_client_does(redis: RedisNode, decode: bool) -> None:
    """By the shorter way; by the client's own again when a connection breaks, or when that is watched."""
    with redis_py.Redis(port=redis.port, decode_responses=decode) as client:
        client.flushall(), client.script_flush()
        store = SessionStore(client, SECRETS)
        assert store._executor._plain  # type: ignore[union-attr]
        session = store.load(None)
        session["n"] = 1
        session.save()
        with redis_py.Redis(port=redis.port) as other:
            for each in {int(each["id"]) for each in other.client_list()} - {other.client_id()}:
                other.client_kill_filter(_id=str(each))
        request = store.load(session.cookie)
        request.incr("n")
        request.save()
        assert store.load(session.cookie)["n"] == 2
        assert not client.connection_pool._in_use_connections, "all are given back"
        seen: list[Any] = []
        usual = redis_py.Redis.execute_command

        def watched(self: Any, *args: Any, **options: Any) -> Any:
            seen.append(args[0])
            return usual(self, *args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(redis_py.Redis, "execute_command", watched)
            store.load(session.cookie)
        assert seen == ["EVALSHA"]


async def test_connections_of_its_asyncio_twin(redis: RedisNode) -> None:
    async with redis_async.Redis(port=redis.port, decode_responses=True) as client:
        await client.flushall()
        await client.script_flush()
        store = AsyncSessionStore(client, SECRETS)
        assert store._executor._plain  # type: ignore[union-attr]
        session = await store.load(None)
        session["n"] = 1
        await session.save()
        with redis_py.Redis(port=redis.port) as other:
            for each in {int(each["id"]) for each in other.client_list()} - {other.client_id()}:
                other.client_kill_filter(_id=str(each))
        request = await store.load(session.cookie)
        request.incr("n")
        await request.save()
        assert (await store.load(session.cookie))["n"] == 2
        pool = client.connection_pool
        assert len(pool._in_use_connections) == 0, "all are given back"


def test_redis_before_7(redis: RedisNode) -> None:
    """A script's flags are new in Redis 7; older ones get the scripts without."""

    class Old(Counting):
        def execute_command(self, *args: Any, **options: Any) -> Any:
            if args[0] == "EVAL" and args[1].startswith("#!"):
                raise redis_py.ResponseError(
                    "Error compiling script (new function): user_script:1: unexpected symbol near '#'"
                )
            return super().execute_command(*args, **options)

    with redis_py.Redis(port=redis.port) as real:
        real.flushall()
        real.script_flush()
        store = SessionStore(Old(real), SECRETS)
        session = store.load(None)
        session.login("42")
        session["x"] = 1
        session.save()
        real.config_set("maxmemory", 1)
        try:
            store.load(session.cookie).destroy()
        finally:
            real.config_set("maxmemory", 0)
        assert store.load(session.cookie).is_new


DURABLE = {"name": "main", "kind": "durable", "on_shard_down": "error", "hash_tag": "{}", "shards": []}


@pytest.mark.parametrize(
    ("pool", "word"),
    [
        ({"kind": "cache"}, "durable"),
        ({"on_shard_down": "rehash"}, "rehash"),
        ({"on_shard_down": "miss"}, "miss"),
        ({"hash_tag": ""}, "hash_tag"),
        ({"shards": [{"name": "m", "protocol": "memcached"}]}, "memcached"),
    ],
)
def test_faults_of_pools(pool: dict[str, Any], word: str) -> None:
    assert not list(faults_of_pool(DURABLE))
    [fault] = faults_of_pool(DURABLE | pool)
    assert word in fault and "main" in fault


def test_faults_of_nodes() -> None:
    assert not list(faults_of_node({"maxmemory_policy": "noeviction", "role": "master"}))
    assert "replica" in next(faults_of_node({"role": "slave"}))


def test_unfit_places_are_refused(
    redis: RedisNode, nodes3: list[RedisNode], caplog: pytest.LogCaptureFixture
) -> None:
    with redis_py.Redis(port=redis.port) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            store = SessionStore(client, SECRETS)
            for _ in range(2):
                with pytest.raises(UnfitPool, match="allkeys-lru"):
                    store.load("x").save()
                    store.list_sessions("42")
            assert SessionStore(client, SECRETS, check="warn").list_sessions("42") == []
            assert "allkeys-lru" in caplog.text
        finally:
            client.config_set("maxmemory-policy", "noeviction")
        store.check()
    shards = shards_of(nodes3)
    pool = 'kind = "cache"\non_shard_down = "rehash"\non_return = "invalidate"'
    with (
        ProxyProcess(toml(shards, pool=pool)) as unfit,
        redis_py.Redis(port=unfit.port) as client,
        pytest.raises(UnfitPool, match="rehash"),
    ):
        SessionStore(client, SECRETS).check()
    with (
        ShardedRedis(
            {name: f"redis://{address}" for name, address in shards.items()}, pool={"kind": "cache"}
        ) as sharded,
        pytest.raises(UnfitPool, match="durable"),
    ):
        SessionStore(sharded, SECRETS).check()
