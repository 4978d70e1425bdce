"""What tests ask a proxy about itself, by PROXY INFO, NODES and LOCATE; and a client of the library."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.exceptions import RedisError
from servers import ProxyProcess, Raw, toml

from shardproxy import AsyncShardedRedis, ShardedRedis


def counters(raw: Raw) -> dict[str, int]:
    found: dict[str, int] = json.loads(raw.value("PROXY", "INFO"))["counters"]
    return found


def shard_of(raw: Raw, key: str) -> str:
    return str(json.loads(raw.value("PROXY", "LOCATE", key))["shard"])


def key_on(raw: Raw, shard: str) -> str:
    """A key that lives there."""
    return next(key for number in range(1000) if shard_of(raw, key := f"key{number}") == shard)


def keys_of(client: AsyncShardedRedis | ShardedRedis, shard: str, count: int = 20) -> list[str]:
    """The first keys that live there."""
    found = (f"key:{number}" for number in range(10_000))
    return [key for key in found if client.locate(key).home == shard][:count]


def caught(client: ShardedRedis, key: str) -> Any:
    """What is read there, or the error."""
    try:
        return client.get(key)
    except RedisError as error:
        return error


def nodes_of(raw: Raw) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(raw.value("PROXY", "NODES"))
    return found


def node_of(raw: Raw, shard: str) -> dict[str, Any]:
    return next(node for node in nodes_of(raw) if node["shard"] == shard)


def in_flight(raw: Raw) -> int:
    """Requests that the nodes have not answered yet."""
    return sum(node["in_flight"] for node in nodes_of(raw))


@contextmanager
def one_shard(address: str, pool: str = "") -> Iterator[tuple[ProxyProcess, Raw]]:
    """A proxy before a single node, and a client of it."""
    with ProxyProcess(toml({"a": address}, pool=pool)) as proxy, proxy.raw() as raw:
        yield proxy, raw
