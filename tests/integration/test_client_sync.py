"""ShardedRedis on real nodes: commands, several shards, pipelines, transactions, scripts, messages."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis.exceptions import (
    ClusterCrossSlotError,
    DataError,
    LockError,
    NoScriptError,
    ResponseError,
    WatchError,
)
from servers import RedisNode, redis_nodes, shards_of, until, urls_of

from shardproxy import ShardedRedis
from shardproxy.config import ConfigError

SCRIPT = "return {KEYS[1], ARGV[1], redis.call('incr', KEYS[1])}"


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as found:
        yield found


@pytest.fixture
def client(nodes: list[RedisNode]) -> Iterator[ShardedRedis]:
    patient = {"timeout": "20s", "connect_timeout": "20s"}  # the machine may be busy
    with ShardedRedis(urls_of(nodes), pool=patient, decode_responses=True) as found:
        found.flushall()
        yield found


@pytest.fixture
def keys(client: ShardedRedis) -> list[str]:
    """One of each shard: keys[0] is a's."""
    found = {}
    for number in range(100):
        found.setdefault(client.locate(f"key:{number}").shard, f"key:{number}")
    return [found[name] for name in "abc"]


def test_every_key_is_on_its_shard(client: ShardedRedis, nodes: list[RedisNode]) -> None:
    for number in range(60):
        assert client.set(f"key:{number}", number) is True
    for name, node in zip("abc", nodes, strict=True):
        with redis.Redis(port=node.port, decode_responses=True) as alone:
            here = {f"key:{n}" for n in range(60) if client.locate(f"key:{n}").shard == name}
            assert set(alone.keys()) == here and here
    assert [client.get(f"key:{number}") for number in range(60)] == list(map(str, range(60)))


def test_what_redis_py_makes_of_replies(client: ShardedRedis, keys: list[str]) -> None:
    a, b, c = keys
    assert client.hset(a, mapping={"f": 1, "g": 2}) == 2 and client.hgetall(a) == {"f": "1", "g": "2"}
    assert client.zadd(b, {"m": 1.5}) == 1 and client.zrange(b, 0, -1, withscores=True) == [("m", 1.5)]
    assert client.sadd(c, "x") == 1 and client.smembers(c) == {"x"}
    assert client.get("missing") is None and client.exists(a, b, c, "missing") == 3
    assert client.type(a) == "hash" and client.object("encoding", a) == "listpack"
    assert client.execute_command("get", "missing") is None
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        client.get(a)
    with pytest.raises(DataError):
        client.set(a, None)  # type: ignore[arg-type]
    assert client.dump(c) == redis.Redis(port=int(client.locate(c).address.rpartition(":")[2])).dump(c)
    assert client.set(a, "v", get=True, ex=10) is None if client.delete(a) else False
    assert 0 < client.ttl(a) <= 10


@pytest.mark.parametrize(
    "settings", [{"protocol": 2}, {"protocol": 3}, {"protocol": 3, "legacy_responses": False}]
)
def test_as_redis_py_with_the_same_settings(nodes: list[RedisNode], settings: dict[str, Any]) -> None:
    with (
        ShardedRedis(urls_of(nodes), **settings) as client,
        redis.Redis(port=nodes[0].port, **settings) as plain,
    ):
        for each in (client, plain):
            each.delete("h", "z", "s", "x")
            each.hset("h", mapping={"a": 1})
            each.zadd("z", {"m": 1.5, "n": 2})
            each.xadd("x", {"f": "v"}, id="1-1")
        for call in (
            lambda it: it.hgetall("h"),
            lambda it: it.zrange("z", 0, -1, withscores=True),
            lambda it: it.zscore("z", "m"),
            lambda it: it.xrange("x"),
            lambda it: it.xread({"x": "0"}),
            lambda it: it.config_get("maxmemory*"),
            lambda it: it.time()[0] > 0,
            lambda it: it.ping(),
            lambda it: it.geoadd("g", (1, 2, "p")) and it.geopos("g", "p"),
            lambda it: it.pipeline(transaction=False).hgetall("h").zscore("z", "m").execute(),
            lambda it: it.pipeline().hgetall("{h}").zscore("{h}z", "m").execute(),
        ):
            assert call(client) == call(plain)


def test_split_over_the_shards(client: ShardedRedis, nodes: list[RedisNode]) -> None:
    wanted = {f"key:{number}": str(number) for number in range(100)}
    assert client.mset(wanted) is True
    assert client.mget(list(wanted)) == list(wanted.values())
    assert client.mget("key:1", "missing", "key:1") == ["1", None, "1"] and client.mget([]) == []
    assert client.exists(*wanted) == client.touch(*wanted) == 100
    assert client.dbsize() == 100 and sorted(client.keys()) == sorted(wanted)
    assert client.unlink(*list(wanted)[:50]) == 50 and client.delete(*wanted) == 50
    with pytest.raises(ClusterCrossSlotError):
        client.sunion(list(wanted))


def test_one_after_the_other(client: ShardedRedis) -> None:
    wanted = {f"key:{number}" for number in range(300)}
    client.mset(dict.fromkeys(wanted, "x"))
    assert set(client.scan_iter(count=7)) == wanted
    assert set(client.scan_iter(match="key:1*")) == {key for key in wanted if key.startswith("key:1")}
    assert client.randomkey() in wanted
    client.flushdb()
    assert client.randomkey() is None and list(client.scan_iter()) == []


def test_on_all_and_on_one(client: ShardedRedis) -> None:
    assert client.on_all("CONFIG GET", "maxmemory") == {name: {"maxmemory": "0"} for name in "abc"}
    assert client.on_shard("b").info()["redis_version"].startswith("7.")
    assert client.config_set("maxmemory-samples", 6) is True
    assert client.on_shard("c").config_get("maxmemory-samples") == {"maxmemory-samples": "6"}
    assert client.config_get("maxmemory-samples") == {"maxmemory-samples": "6"}
    client.on_shard("c").config_set("maxmemory-samples", 5)
    assert client.config_get("maxmemory-samples") == {"maxmemory-samples": "6"}  # a's
    client.config_set("maxmemory-samples", 5)
    with pytest.raises(ResponseError, match=r"(?i)unknown"):
        client.config_set("nonsense", 5)
    with pytest.raises(KeyError):
        client.on_shard("d")
    with pytest.raises(ResponseError, match="on_shard"):
        client.info()


def test_pipeline_over_the_shards(client: ShardedRedis) -> None:
    with client.pipeline(transaction=False) as pipe:
        for number in range(50):
            pipe.set(f"key:{number}", number).incr(f"key:{number}")
        pipe.mget([f"key:{number}" for number in range(50)]).dbsize().get("missing").delete("key:1", "key:2")
        results = pipe.execute()
    assert results[:100] == [each for number in range(50) for each in (True, number + 1)]
    assert results[100:] == [[str(number + 1) for number in range(50)], 50, None, 2]
    assert len(pipe) == 0 and pipe.execute() == []


def test_a_part_that_cannot_be_sent_is_not_half_sent(client: ShardedRedis, keys: list[str]) -> None:
    odd: Any = {keys[0]: "a", keys[1]: object(), keys[2]: "c"}
    pipe = client.pipeline(transaction=False).set(keys[0], "before").mset(odd).get(keys[0])
    done, failed, value = pipe.execute(raise_on_error=False)
    assert (done, value) == (True, "before") and isinstance(failed, DataError)
    assert not client.exists(keys[2])


def test_errors_of_a_pipeline(client: ShardedRedis, keys: list[str]) -> None:
    pipe = (
        client.pipeline(transaction=False).set(keys[0], "text").lpush(keys[0], 1).set(keys[1], 2).sunion(keys)
    )
    with pytest.raises(
        ResponseError, match=r"Command # 2 \(LPUSH .* 1\) of pipeline caused error: WRONGTYPE"
    ):
        pipe.execute()
    pipe.set(keys[0], "text").lpush(keys[0], 1).set(keys[1], 2).sunion(keys).execute_command("NOSUCH")
    results = pipe.execute(raise_on_error=False)
    assert results[0] is results[2] is True
    assert [type(each) for each in results[1::2]] == [ResponseError, ClusterCrossSlotError]
    assert "unknown command" in str(results[4])
    assert client.get(keys[1]) == "2"


def test_transactions_on_one_shard(client: ShardedRedis, keys: list[str]) -> None:
    key = keys[1]
    assert client.pipeline().set(f"{{{key}}}x", 1).incr(f"{{{key}}}x").execute() == [True, 2]
    with pytest.raises(ClusterCrossSlotError, match="Command # 2"):
        client.pipeline().set(keys[0], 1).set(keys[1], 1).execute()
    assert client.get(keys[0]) is None
    with pytest.raises(ResponseError, match=r"Command # 2 .* WRONGTYPE"):
        client.pipeline().set(key, "text").lpush(key, 1).execute()
    assert client.get(key) == "text"
    assert client.pipeline().get(key).mget([]).get(key).execute(raise_on_error=False)[1] == []
    with pytest.raises(ResponseError, match=r"Command # 1 .*wrong number of arguments"):
        client.pipeline().execute_command("GET").execute()


def test_watch(client: ShardedRedis, keys: list[str]) -> None:
    key, other = keys[0], keys[2]
    client.set(other, "elsewhere")
    with client.pipeline() as pipe:
        pipe.watch(key)
        assert pipe.get(key) is None and pipe.get(other) == "elsewhere"
        pipe.multi()
        pipe.set(key, 1)
        client.set(key, "somebody's")
        with pytest.raises(WatchError):
            pipe.execute()
    with client.pipeline() as pipe:
        pipe.watch(key)
        with pytest.raises(ClusterCrossSlotError):
            pipe.watch(other)
        assert pipe.unwatch() is True
        pipe.get(key)
        assert pipe.execute() == ["somebody's"]

    def increment(pipe: Any) -> None:
        value = pipe.get(f"{{{key}}}n")
        pipe.multi()
        pipe.set(f"{{{key}}}n", int(value or 0) + 1)

    threads = [
        threading.Thread(target=lambda: [client.transaction(increment, f"{{{key}}}n") for _ in range(20)])
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.get(f"{{{key}}}n") == "60"


def test_scripts_outlive_what_their_nodes_forget(client: ShardedRedis, keys: list[str]) -> None:
    script = client.register_script(SCRIPT)
    for turn in range(1, 3):
        assert [script(keys=[key], args=["x"])[2] for key in keys] == [3 * turn - 2] * 3
        client.on_all("SCRIPT FLUSH")
        pipe = client.pipeline(transaction=False)
        for key in keys:
            script(keys=[key], args=["x"], client=pipe)
        assert [each[2] for each in pipe.execute()] == [3 * turn - 1] * 3
        client.on_all("SCRIPT FLUSH")
        for key in keys:
            pipe = client.pipeline()
            script(keys=[key], args=["x"], client=pipe)
            assert pipe.execute()[0][2] == 3 * turn
        client.on_all("SCRIPT FLUSH")
    sha = client.script_load("return 7")
    assert client.script_exists(sha) == [True] and client.evalsha(sha, 0) == 7
    script(keys=[keys[0]], args=["x"])
    client.script_flush()
    for forgotten in ("0" * 40, sha, script.sha):
        assert client.script_exists(forgotten) == [False]
        with pytest.raises(NoScriptError):
            client.evalsha(forgotten, 1, keys[0], "x")
    script(keys=[keys[0]], args=["x"])
    assert client.script_exists(script.sha) == [True]
    with pytest.raises(ClusterCrossSlotError):
        script(keys=keys, args=["x"])


def test_locks(client: ShardedRedis, nodes: list[RedisNode]) -> None:
    with client.lock("lock", timeout=10) as lock:
        assert lock.owned() and not client.lock("lock", blocking=False).acquire()
        lock.extend(10)
        client.on_all("SCRIPT FLUSH")
    assert client.get("lock") is None
    cache = ShardedRedis(urls_of(nodes), pool={"kind": "cache"})
    with pytest.raises(LockError, match="second owner"):
        cache.lock("lock")
    with cache.lock("lock", timeout=10, allow_cache_pool=True):
        assert cache.exists("lock")
    cache.close()


def test_blocking_commands_wait_longer_than_the_timeout(client: ShardedRedis, nodes: list[RedisNode]) -> None:
    with ShardedRedis(urls_of(nodes), pool={"timeout": "200ms"}) as quick:
        assert quick.blpop("list", timeout=0.5) is None  # type: ignore[arg-type]
        threading.Timer(0.4, lambda: client.rpush("list", "x")).start()
        assert quick.blpop("list", timeout=0) == (b"list", b"x")
        assert quick.xread({"stream": "$"}, block=300) in ([], {})
        assert quick.get("list") is None


def test_messages(client: ShardedRedis) -> None:
    channels = [f"channel:{number}" for number in range(20)]
    with client.pubsub(ignore_subscribe_messages=True) as messages:
        messages.subscribe(*channels)
        messages.psubscribe("news.*")
        until(lambda: client.pubsub_numpat() == 1 or messages.get_message())
        until(
            lambda: all(count == 1 for _, count in client.pubsub_numsub(*channels)) or messages.get_message()
        )
        assert sorted(client.pubsub_channels("channel:*")) == sorted(channels)
        assert [client.publish(channel, f"to {channel}") for channel in channels] == [1] * 20
        assert client.publish("news.today", "rain") == 1
        found = [until(lambda: messages.get_message(timeout=1)) for _ in range(21)]
        assert {each["channel"]: each["data"] for each in found} == {
            **{channel: f"to {channel}" for channel in channels}, "news.today": "rain",
        }  # fmt: skip
        assert messages.get_message() is None
        messages.unsubscribe()
        messages.punsubscribe("news.*")
        until(lambda: not messages.subscribed or messages.get_message())
        assert list(messages.listen()) == []


def test_a_pattern_is_confirmed_once_although_it_is_on_every_shard(client: ShardedRedis) -> None:
    with client.pubsub() as messages:
        for _ in range(2):
            messages.psubscribe("news.*")
            messages.subscribe("channel")
            found = [until(lambda: messages.get_message(timeout=1)) for _ in range(2)]
            assert {each["type"]: each["channel"] for each in found} == {
                "psubscribe": "news.*", "subscribe": "channel",
            }  # fmt: skip
            assert client.publish("news.x", "1") == 1
            assert until(lambda: messages.get_message(timeout=1))["data"] == "1"
            messages.punsubscribe()
            messages.unsubscribe("channel")
            found = [until(lambda: messages.get_message(timeout=1)) for _ in range(2)]
            assert {each["type"] for each in found} == {"punsubscribe", "unsubscribe"}
            assert messages.get_message() is None and not messages.subscribed


def test_left_and_joined_again_before_anything_is_read(client: ShardedRedis) -> None:
    for join, leave in (("subscribe", "unsubscribe"), ("psubscribe", "punsubscribe")):
        with client.pubsub() as messages:
            for verb in (join, leave, join):
                getattr(messages, verb)("name")
            found = [until(lambda: messages.get_message(timeout=1))["type"] for _ in range(3)]
            assert sorted(found) == sorted([join, leave, join])
            assert messages.get_message() is None and messages.subscribed


def test_a_handlers_thread(client: ShardedRedis) -> None:
    seen: list[Any] = []
    messages = client.pubsub()
    messages.subscribe(**{f"c{number}": seen.append for number in range(5)})
    thread = messages.run_in_thread(sleep_time=0.01)
    until(lambda: all(count for _, count in client.pubsub_numsub(*(f"c{n}" for n in range(5)))))
    for number in range(5):
        client.publish(f"c{number}", number)
    until(lambda: len(seen) == 5)
    thread.stop()
    thread.join()
    assert {each["data"] for each in seen} == set("01234")


def test_nothing_is_opened_until_it_is_used() -> None:
    before = threading.active_count()
    client = ShardedRedis({"a": "redis://nowhere.invalid:1", "b": "redis://192.0.2.1"})
    assert client.locate("x").state == "unknown" and client.topology.pools[0].name == "main"
    assert threading.active_count() == before
    assert "nowhere.invalid" in repr(client)
    client.close()


def test_what_is_no_setting() -> None:
    with pytest.raises(ConfigError, match="on_shard_down"):
        ShardedRedis({"a": "redis://h"}, pool={"on_shard_down": "rehash"})
    with pytest.raises(ConfigError, match="primary"):
        ShardedRedis({"a": "http://h"})
    with pytest.raises(TypeError, match="connection_pool"):
        ShardedRedis({"a": "redis://h"}, connection_pool=1)
    with pytest.raises(TypeError, match="nonsense"):
        ShardedRedis({"a": "redis://h"}, nonsense=1)


def test_credentials_and_databases() -> None:
    with redis_nodes(2, "--requirepass", "sesame") as nodes:
        shards = {name: f"redis://:sesame@{address}/3" for name, address in shards_of(nodes).items()}
        with ShardedRedis(shards) as client:
            client.set("x", 1)
            assert client.get("x") == b"1" and "sesame" not in repr(client) + repr(client.asker.settings)
            assert client.topology.as_json().count(b"sesame") == 0
            number = int(client.locate("x").address.rpartition(":")[2])
            with redis.Redis(port=number, db=3, password="sesame") as alone:
                assert alone.get("x") == b"1"
        with ShardedRedis(urls_of(nodes)) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.get("x")


def test_modules_commands_are_learned(client: ShardedRedis) -> None:
    """Of a command that is not built in the nodes are asked; theirs do not know this one either."""
    for _ in range(2):
        with pytest.raises(ResponseError, match="unknown command"):
            client.json().get("x")


def test_topology_changes(client: ShardedRedis, nodes: list[RedisNode]) -> None:
    two = ShardedRedis(dict(list(urls_of(nodes).items())[:2]), decode_responses=True)
    for number in range(50):
        client.set(f"key:{number}", number)
    two.get("key:1")
    before = {f"key:{n}": two.locate(f"key:{n}").shard for n in range(50)}
    two.apply(client.topology)
    after = {f"key:{n}": two.locate(f"key:{n}").shard for n in range(50)}
    assert set(before.values()) == {"a", "b"} and set(after.values()) == {"a", "b", "c"}
    assert two.mget(list(after)) == list(map(str, range(50)))
    two.close()
