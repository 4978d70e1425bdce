"""redis-py 8 as shipped, both protocols, sync and asyncio; redis-cli in both modes."""

import subprocess
from collections.abc import Iterator

import pytest
import redis as redis_py
import redis.asyncio as redis_asyncio
from servers import ProxyProcess, program

PROTOCOLS = [
    pytest.param({}, id="defaults"),
    pytest.param({"protocol": 2}, id="resp2"),
    pytest.param({"protocol": 3}, id="resp3"),
]


@pytest.fixture(params=PROTOCOLS)
def client(request: pytest.FixtureRequest, proxy: ProxyProcess) -> Iterator[redis_py.Redis]:
    with redis_py.Redis(port=proxy.port, decode_responses=True, **request.param) as made:
        yield made


def test_everyday_commands(client: redis_py.Redis) -> None:
    assert client.ping() is True
    assert client.set("py:a", "1") is True
    assert client.get("py:a") == "1"
    assert client.incrbyfloat("py:a", 0.5) == 1.5
    assert client.mset({f"py:{n}": n for n in range(20)}) is True
    assert client.mget([f"py:{n}" for n in range(20)]) == [str(n) for n in range(20)]
    assert client.exists(*[f"py:{n}" for n in range(20)]) == 20
    assert client.delete(*[f"py:{n}" for n in range(20)]) == 20
    client.hset("py:h", mapping={"a": "1", "b": "2"})
    assert client.hgetall("py:h") == {"a": "1", "b": "2"}
    client.delete("py:z")
    client.zadd("py:z", {"one": 1, "two": 2})
    assert client.zrange("py:z", 0, -1, withscores=True) in (
        [("one", 1.0), ("two", 2.0)],
        [["one", 1.0], ["two", 2.0]],
    )
    client.delete("py:s")
    assert client.sadd("py:s", "x", "y") == 2
    assert client.smembers("py:s") == {"x", "y"}


def test_pipelines(client: redis_py.Redis) -> None:
    pipe = client.pipeline(transaction=False)
    for number in range(100):
        pipe.set(f"pp:{number}", number)
        pipe.get(f"pp:{number}")
    assert pipe.execute() == [each for number in range(100) for each in (True, str(number))]
    client.delete("pt:{x}:n")
    pipe = client.pipeline()  # MULTI ... EXEC in one write
    pipe.set("pt:{x}:a", 1).incr("pt:{x}:n").get("pt:{x}:a")
    assert pipe.execute() == [True, 1, "1"]


def test_a_transaction_over_shards_is_refused_as_a_cluster_would(client: redis_py.Redis) -> None:
    pipe = client.pipeline()
    for number in range(20):
        pipe.set(f"spread:{number}", number)
    with pytest.raises(redis_py.exceptions.RedisError, match=r"CROSSSLOT|same slot|[Kk]eys"):
        pipe.execute()
    assert client.ping() is True


def test_connection_commands(client: redis_py.Redis) -> None:
    with client.client() as one:
        one.client_setname("from-redis-py")
        assert one.client_getname() == "from-redis-py"
        mine = one.client_id()
        assert one.client_info()["name"] == "from-redis-py"
        assert one.client_info()["lib-name"].startswith("redis-py")
        listed = one.client_list(client_id=[mine])
        assert [each["name"] for each in listed] == ["from-redis-py"]
        assert any(str(mine) == each["id"] for each in one.client_list(_type="normal"))
        assert one.client_no_evict("ON") in (True, "OK")
    assert client.info()["redis_version"] == "7.0.15"
    assert client.info("server")["redis_mode"] == "standalone"
    assert client.info()["maxmemory_policy"] == "noeviction"
    assert client.command_count() > 200
    assert client.command_getkeys("MSET", "a", "1", "b", "2") == ["a", "b"]
    assert "get" in client.command_list(category="fast")
    assert client.command()["get"]["arity"] == 2
    assert len(client.time()) == 2
    assert client.echo("hello") == "hello"


def test_names_and_databases_of_a_connection_url(proxy: ProxyProcess) -> None:
    with redis_py.from_url(f"redis://127.0.0.1:{proxy.port}/0?client_name=urlish") as client:
        assert client.client_getname() in ("urlish", b"urlish")
    with (
        redis_py.from_url(f"redis://127.0.0.1:{proxy.port}/1") as one,
        redis_py.from_url(f"redis://127.0.0.1:{proxy.port}/2") as two,
    ):
        one.set("same", "one")
        two.set("same", "two")
        assert (one.get("same"), two.get("same")) == (b"one", b"two")
    with (
        redis_py.from_url(f"redis://127.0.0.1:{proxy.port}/99") as client,
        pytest.raises(redis_py.exceptions.RedisError, match="DB index is out of range"),
    ):
        client.ping()


def test_errors_are_errors_and_leave_the_connection(client: redis_py.Redis) -> None:
    client.set("py:str", "x")
    with pytest.raises(redis_py.ResponseError, match="WRONGTYPE"):
        client.lpush("py:str", "y")
    with pytest.raises(redis_py.ResponseError, match="unknown command"):
        client.execute_command("NOSUCH", "a")
    with pytest.raises(redis_py.ResponseError, match="not supported yet"):
        client.execute_command("MIGRATE", "127.0.0.1", "1", "k", "0", "1")
    assert client.get("py:str") == "x"


@pytest.mark.parametrize("options", PROTOCOLS)
async def test_asyncio(options: dict[str, int], proxy: ProxyProcess) -> None:
    async with redis_asyncio.Redis(port=proxy.port, decode_responses=True, **options) as client:
        assert await client.ping() is True
        await client.mset({f"aio:{n}": n for n in range(10)})
        assert await client.mget([f"aio:{n}" for n in range(10)]) == [str(n) for n in range(10)]
        async with client.pipeline() as pipe:
            pipe.set("aio:{t}", "1").get("aio:{t}")
            assert await pipe.execute() == [True, "1"]
        assert (await client.client_info())["lib-name"].startswith("redis-py")
        assert (await client.info())["redis_mode"] == "standalone"
        assert "get" in await client.command()


@pytest.mark.parametrize("protocol", ["-2", "-3"])
def test_redis_cli(protocol: str, proxy: ProxyProcess) -> None:
    def cli(*args: str, stdin: str = "") -> str:
        tool = program("redis-cli", "redis-tools")
        done = subprocess.run(
            [tool, protocol, "-p", str(proxy.port), *args],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.stdout.strip()

    assert cli("set", "cli:a", "hello") == "OK"
    assert cli("get", "cli:a") == "hello"
    assert cli("mget", "cli:a", "cli:nope").splitlines()[0] == "hello"
    assert "redis_version:7.0.15" in cli("info", "server")
    assert '"shard"' in cli("proxy", "locate", "cli:a")
    assert cli("-n", "0", "ping") == "PONG"
    # as typed at its prompt: it asks for COMMAND DOCS then, to help with the arguments
    assert cli(stdin="set cli:b 2\nincr cli:b\nhgetall cli:none\n").splitlines()[:2] == ["OK", "3"]
