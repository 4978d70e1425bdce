"""Two kinds of clients: what redis-py writes through the proxy, pymemcache reads there; and back.

With what `shardproxy import` makes of a nutcracker.yml, twemproxy and the proxy are two doors to one cache.
"""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pymemcache
import pytest
import redis as redis_py
from servers import MemcachedNode, ProxyProcess, toml
from test_nutcracker_placement import Server, nutcracker

from shardproxy.config_import import drafts, written

COUNT = 300
VALUES = [b"", b"hello", bytes(range(256)), b"x" * 70_000, b"\r\nEND\r\n", b"VA 2 f1\r\n", "größe".encode()]


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[MemcachedNode]]:
    with MemcachedNode() as one, MemcachedNode() as two, MemcachedNode() as three:
        yield [one, two, three]


@pytest.fixture(scope="module")
def through(nodes: list[MemcachedNode]) -> Iterator[redis_py.Redis]:
    with ProxyProcess(toml({"only": nodes[0].url})) as proxy:
        yield redis_py.Redis(port=proxy.port)


@pytest.fixture(scope="module")
def direct(nodes: list[MemcachedNode]) -> Iterator[pymemcache.Client]:
    client = pymemcache.Client(("127.0.0.1", nodes[0].port))
    yield client
    client.close()


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value[:12]))
def test_values_both_ways(through: redis_py.Redis, direct: pymemcache.Client, value: bytes) -> None:
    assert through.set("from-redis", value)
    assert direct.get("from-redis") == value
    assert direct.set("from-memcached", value, noreply=False)
    assert through.get("from-memcached") == value
    assert through.mget("from-memcached", "nothing", "from-redis") == [value, None, value]


async def test_an_imported_pool_is_a_second_door_to_the_same_cache(
    tmp_path: Path, nodes: list[MemcachedNode]
) -> None:
    weights, aliases = (1, 3, 2), ("one", None, "three")
    servers = [
        Server(alias, "127.0.0.1", node.port, weight)
        for alias, node, weight in zip(aliases, nodes, weights, strict=True)
    ]
    options = {"redis": "false", "hash": "murmur", "hash_tag": "{}", "distribution": "ketama"}
    async with nutcracker(tmp_path, servers, **options) as listen:
        text = (tmp_path / "nutcracker.yml").read_text()
        (draft,) = drafts("nutcracker.yml", text.encode())
        made = written(draft).replace(f'listen = ["unix://{listen}"]', "")
        await asyncio.to_thread(both_doors, listen, made)


def both_doors(listen: Path, made: str) -> None:
    keys = [f"key:{number}{{{number % 7}}}" if number % 2 else f"key:{number}" for number in range(COUNT)]
    old = pymemcache.Client(str(listen))
    old.sock = socket.socket(socket.AF_UNIX)
    old.sock.connect(str(listen))
    old.set_many({key: f"old {key}" for key in keys[: COUNT // 2]}, noreply=False)
    with ProxyProcess(made) as proxy, redis_py.Redis(port=proxy.port) as new:
        new.mset({key: f"new {key}" for key in keys[COUNT // 2 :]})
        values = [f"{'old' if at < COUNT // 2 else 'new'} {key}".encode() for at, key in enumerate(keys)]
        assert new.mget(keys) == values
        assert old.get_many(keys) == dict(zip(keys, values, strict=True))
    old.close()
