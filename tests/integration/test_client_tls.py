"""TLS to nodes from both clients: Redis and memcached, by a name that is not the address."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from certs import Authority
from test_memcached_engine import TlsMemcached
from test_tls_nodes import TlsNode, config

from shardproxy import AsyncShardedRedis, ShardedRedis

NAME = "cache.internal"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("client-tls")
    made = Authority(folder / "ca")
    for each in (*folder.parents[:2], folder, made.folder):  # memcached reads them as nobody
        each.chmod(0o755)
    return made


@pytest.fixture(scope="module")
def shards(authority: Authority) -> Iterator[list[str]]:
    cert, key = authority.issue("named", names=(f"DNS:{NAME}",))
    key.chmod(0o644)
    with (
        TlsNode(authority, (cert, key), "--tls-auth-clients", "no") as node,
        TlsMemcached("-Z", "-o", f"ssl_chain_cert={cert},ssl_key={key}") as other,
    ):
        yield [f"rediss://{node.address}", other.url.replace("memcached:", "memcacheds:")]


def text(authority: Authority, shards: list[str], name: str) -> bytes:
    patient = 'timeout = "20s"\nconnect_timeout = "20s"'  # the machine may be busy
    return config(shards, f'ca = "{authority.ca}"', f'server_name = "{name}"', pool=patient).encode()


async def test_by_its_own_name(authority: Authority, shards: list[str]) -> None:
    with ShardedRedis.from_config(text(authority, shards, NAME)) as client:
        keys = [f"key {number}" for number in range(20)]
        assert {client.locate(key).shard for key in keys} == {"a", "b"}
        client.mset(dict.fromkeys(keys, "value"))
        assert client.mget(keys) == [b"value"] * 20
        assert client.on_shard("a").exists(*keys) > 0
        channel = next(key for key in keys if client.locate(key).shard == "a")
        with client.pubsub() as messages:
            messages.subscribe(channel)
            assert messages.get_message(timeout=10)["type"] == "subscribe"
        async with AsyncShardedRedis.from_config(text(authority, shards, NAME)) as other:
            assert await other.mget(keys) == [b"value"] * 20
            assert await other.on_shard("a").exists(*keys) > 0


async def test_by_a_name_that_is_not_its_own(authority: Authority, shards: list[str]) -> None:
    for number in (0, 1):
        wrong = text(authority, shards[number : number + 1], "another.internal")
        with ShardedRedis.from_config(wrong) as client, pytest.raises(redis.ConnectionError):
            client.get("key")
        async with AsyncShardedRedis.from_config(wrong) as other:
            with pytest.raises(redis.ConnectionError):
                await other.get("key")


def test_settings_of_memcached_over_tls(authority: Authority, shards: list[str], tmp_path: Path) -> None:
    (tmp_path / "shardproxy.toml").write_bytes(text(authority, shards[1:], NAME))
    with ShardedRedis.from_config(tmp_path / "shardproxy.toml") as client:
        assert client.set("over", "tls") is True and client.get("over") == b"tls"
