"""Two kinds of clients: what redis-py writes through the proxy, pymemcache reads on the node; and back.

With what `shardproxy import` makes of a nutcracker.yml, twemproxy and the proxy are two doors to one cache.
"""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pylibmc
import pymemcache
import pytest
import redis as redis_py
from servers import MemcachedNode, ProxyProcess, toml, until
from test_nutcracker_placement import Server, nutcracker

from shardproxy.config.imports.drafts import drafts, written

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


def test_what_one_deletes_or_lets_expire_is_gone_for_the_other(
    through: redis_py.Redis, direct: pymemcache.Client
) -> None:
    through.mset({"a": 1, "b": 2})
    assert direct.get_many(["a", "b"]) == {"a": b"1", "b": b"2"}
    assert direct.delete("a", noreply=False) and through.get("a") is None
    assert through.delete("b") == 1 and direct.get("b") is None
    direct.set("c", b"x", expire=100, noreply=False)
    assert 95 <= through.ttl("c") <= 101
    through.set("d", "x", ex=1)
    until(lambda: direct.get("d") is None)
    assert through.get("d") is None


def test_counters_of_both(through: redis_py.Redis, direct: pymemcache.Client) -> None:
    through.set("count", 10)
    assert direct.incr("count", 5) == 15
    assert through.incrby("count", 7) == 22
    assert direct.decr("count", 2) == 20
    assert int(direct.get("count")) == 20 == int(through.get("count") or 0)


def test_flags_are_those_of_whoever_wrote_the_item(
    nodes: list[MemcachedNode], through: redis_py.Redis, direct: pymemcache.Client
) -> None:
    def flags(key: str) -> int:
        (line, _) = nodes[0].say(f"get {key}\r\n".encode(), b"END\r\n").split(b"\r\n", 1)
        return int(line.split()[2])

    direct.set("mine", b"12", flags=5, noreply=False)
    assert through.get("mine") == b"12" and flags("mine") == 5
    assert through.append("mine", "3") == 3 and flags("mine") == 5
    assert through.incr("mine") == 124 and flags("mine") == 5
    assert through.expire("mine", 100) and flags("mine") == 5
    through.set("mine", "new")
    assert flags("mine") == 0


def test_libmemcached_reads_its_own_kinds_after_a_change_of_ttl(
    nodes: list[MemcachedNode], through: redis_py.Redis
) -> None:
    client = pylibmc.Client([nodes[0].address])
    client.set("pickled", {"a": [1, 2]})  # flags say so
    client.set("number", 41)
    assert through.expire("pickled", 100) and through.incr("number") == 42
    assert client.get("pickled") == {"a": [1, 2]}
    assert client.get("number") == 42
    client.disconnect_all()


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
