"""django-redis's own cache on this library's connection factory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import RedisNode, shards_of, toml
from webapps import set_up_django


@pytest.fixture
def cache(nodes3: list[RedisNode], tmp_path: Path) -> Iterator[Any]:
    from django.conf import settings

    config = tmp_path / "shardproxy.toml"
    config.write_text(toml(shards_of(nodes3)))
    set_up_django()  # once a process, whichever tests are in it
    settings.DJANGO_REDIS_CONNECTION_FACTORY = "shardproxy.client.django.ConnectionFactory"
    from django_redis.cache import RedisCache

    found = RedisCache(str(config), {"OPTIONS": {"SHARDED": {"socket_timeout": 5}}})
    found.clear()
    yield found
    found.client.get_client().close()


def test_a_cache(cache: Any, nodes3: list[RedisNode]) -> None:
    wanted = {f"key:{number}": {"n": number} for number in range(40)}
    cache.set_many(wanted, timeout=60)
    assert cache.get_many(list(wanted)) == wanted
    for node in nodes3:
        with node.raw() as raw:
            assert raw.value("DBSIZE") > 0
    assert cache.get("key:1") == {"n": 1} and cache.get("missing", 7) == 7
    assert cache.add("key:1", "x") is False and cache.add("new", "x") is True
    cache.set("count", 1)
    assert cache.incr("count", 4) == 5 and cache.decr("count") == 4
    assert 0 < cache.ttl("key:1") <= 60 and cache.touch("key:1", 600) and cache.ttl("key:1") > 60
    assert len(cache.keys("key:*")) == 40 and len(list(cache.iter_keys("key:*"))) == 40
    assert cache.delete_many(["key:1", "key:2"]) == 2 and cache.delete("key:3")
    assert cache.delete_pattern("key:*") == 37
    with cache.lock("lock", timeout=5):
        assert cache.has_key("new")
    assert cache.get_or_set("made", lambda: 3) == 3


def test_one_client_a_location(cache: Any, tmp_path: Path) -> None:
    from shardproxy.client.django import ConnectionFactory

    factory = ConnectionFactory({})
    one = factory.connect(str(tmp_path / "shardproxy.toml"))
    assert factory.connect(str(tmp_path / "shardproxy.toml")) is one
    factory.disconnect(one)
    assert one.ping()  # it connects again
    one.close()
