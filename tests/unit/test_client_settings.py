"""What the clients are made from: a mistake says what is right."""

from typing import Any

import pytest
from redis.exceptions import ConnectionError

from shardproxy import AsyncShardedRedis, ConfigError, ShardedRedis

URLS = {"a": "redis://h:1", "b": "redis://h:2"}


@pytest.mark.parametrize("client", [ShardedRedis, AsyncShardedRedis])
@pytest.mark.parametrize(
    ("shards", "options", "said"),
    [
        ("redis://h", {}, "shards are names and URLs"),
        (["redis://h"], {}, "shards are names and URLs"),
        ({"a": 1}, {}, "'a' is of type int"),
        (URLS, {"kind": "cache"}, "an option of the pool: pool={'kind': ...}"),
        (URLS, {"on_shard_down": "miss"}, "an option of the pool"),
        (URLS, {"max_connections": 5}, "a connection for each thread"),
        (URLS, {"nonsense": 5}, "no settings of redis-py's: nonsense"),
    ],
)
def test_what_is_no_setting(client: Any, shards: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError) as found:
        client(shards, **options)
    assert said in str(found.value)


@pytest.mark.parametrize("client", [ShardedRedis, AsyncShardedRedis])
def test_what_the_proxies_decide(client: Any) -> None:
    for option in ("pool", "probe"):
        with pytest.raises(TypeError, match=f"{option} is not a setting .*proxies that are followed"):
            client.from_url("shardproxy://h", **{option: {}})
    with pytest.raises(TypeError, match="pool is the name of one"):
        client.from_config(b'[pool.main.shards]\na = "redis://h"', pool={"kind": "cache"})


def test_every_mistake_of_the_shards_at_once() -> None:
    with pytest.raises(ConfigError) as found:
        ShardedRedis({"a": "localhost", "b": {"primary": "redis://h", "weight": 0}}, pool={"kind": "cach"})
    assert [each.where.rpartition(": ")[2] for each in found.value.mistakes] == [
        "pool.main.kind",
        "pool.main.shards.a.primary",
        "pool.main.shards.b.weight",
    ]


def test_a_key_has_no_place_before_a_proxy_has_told_where() -> None:
    with pytest.raises(ConnectionError, match="no proxy tells the topology"):
        AsyncShardedRedis.from_url("shardproxy://127.0.0.1:1").locate("key")
    with pytest.raises(ConnectionError, match="no proxy tells the topology"):
        ShardedRedis.from_url("shardproxy://127.0.0.1:1").locate("key")
