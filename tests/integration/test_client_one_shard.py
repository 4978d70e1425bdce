"""A ring of one shard is one Redis: what concerns its node is asked of it; over several it is refused."""

from collections.abc import Iterator

import pytest
import redis
from servers import RedisNode, redis_nodes, urls_of

from shardproxy import AsyncShardedRedis, ShardedRedis


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(2) as found:
        yield found


async def test_commands_of_a_node(nodes: list[RedisNode]) -> None:
    one = urls_of(nodes[:1])
    with ShardedRedis(one, decode_responses=True) as client, redis.Redis(port=nodes[0].port) as plain:
        assert client.info()["redis_version"] == plain.info()["redis_version"]
        assert client.client_setname("it") is True and client.client_getname() == "it"
        assert client.client_id() in {int(each["id"]) for each in client.client_list()}
        assert client.slowlog_get() == [] and client.role()[0] == "master"
        assert client.memory_stats()["peak.allocated"] > 0
        pipe = client.pipeline()
        assert pipe.set("a", 1).client_getname().execute() == [True, "it"]
        with client.monitor() as monitor:
            client.get("seen")
            assert "seen" in next(each["command"] for each in monitor.listen() if "GET" in each["command"])
        for refused in ("SELECT", "AUTH", "SUBSCRIBE", "CLIENT REPLY"):
            with pytest.raises(redis.ResponseError, match="connections are shared"):
                client.execute_command(refused, "1")
    async with AsyncShardedRedis(one) as other:
        assert (await other.info())["redis_version"] == client.info()["redis_version"]
        async with other.monitor() as watching:
            await other.get("seen")
            while "seen" not in (await watching.next_command())["command"]:
                pass


async def test_of_several_they_are_refused(nodes: list[RedisNode]) -> None:
    with ShardedRedis(urls_of(nodes)) as client:
        for call in (client.info, client.client_id, client.monitor, client.slowlog_get):
            with pytest.raises(redis.ResponseError, match="on_shard"):
                call()
        client.acl_setuser("everywhere", enabled=True)  # what is to be the same on all is done on all
        assert all("everywhere" in users for users in client.on_all("ACL USERS").values()) or all(
            b"everywhere" in users for users in client.on_all("ACL USERS").values()
        )
        assert client.acl_deluser("everywhere") == 1 and client.acl_help()
    async with AsyncShardedRedis(urls_of(nodes)) as other:
        with pytest.raises(redis.ResponseError, match="on_shard"):
            other.monitor()


async def test_scripts_that_are_registered_are_not_loaded_yet(nodes: list[RedisNode]) -> None:
    with ShardedRedis(urls_of(nodes)) as client:
        script = client.register_script("return KEYS[1]")
        assert client.script_exists(script.sha) == [False]
        assert script(keys=["k"]) == b"k"
        assert client.script_exists(script.sha) == [True]
        assert client.script_flush() is True and client.script_exists(script.sha) == [False]
        with pytest.raises(redis.exceptions.NoScriptError):
            client.evalsha(script.sha, 1, "k")
        assert script(keys=["k"]) == b"k"
    async with AsyncShardedRedis(urls_of(nodes)) as other:
        again = other.register_script("return ARGV[1]")
        assert await again(keys=["k"], args=["v"]) == b"v"
        assert await other.script_exists(again.sha) == [True]
        assert await other.script_flush() is True and await other.script_exists(again.sha) == [False]
        with pytest.raises(redis.exceptions.NoScriptError):
            await other.evalsha(again.sha, 1, "k")
        assert await other.mget([]) == []
