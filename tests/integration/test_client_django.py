"""django-redis's own cache on this library's connection factory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError
from servers import RedisNode, free_port, shards_of, toml
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


def test_a_shard_that_is_down(nodes3: list[RedisNode], tmp_path: Path, cache: Any) -> None:
    from django_redis.cache import RedisCache

    shards = {**shards_of(nodes3[:1]), "gone": f"127.0.0.1:{free_port()}"}
    for partial, found in {"error": {}, "nil": {"a": 1}}.items():
        config = tmp_path / f"{partial}.toml"
        config.write_text(toml(shards, pool=f'partial = "{partial}"'))
        patient = RedisCache(str(config), {"OPTIONS": {"IGNORE_EXCEPTIONS": True}})
        client = patient.client.get_client()
        keys = {client.locate(patient.client.make_key(f"k{n}")).shard: f"k{n}" for n in range(50)}
        assert patient.set(keys["a"], 1) and patient.get(keys["gone"], "missing") == "missing"
        assert patient.get_many(list(keys.values())) == {keys[shard]: value for shard, value in found.items()}
        strict = RedisCache(str(config), {"OPTIONS": {}})
        with pytest.raises(ConnectionError, match="is down"):
            # DEL counts what is there where `partial` is nil
            strict.delete_many(list(keys.values())) if partial == "error" else strict.get(keys["gone"])
        client.close()


def test_one_client_a_location(cache: Any, tmp_path: Path) -> None:
    from shardproxy.client.django import ConnectionFactory

    factory = ConnectionFactory({})
    one = factory.connect(str(tmp_path / "shardproxy.toml"))
    assert factory.connect(str(tmp_path / "shardproxy.toml")) is one
    factory.disconnect(one)
    assert one.ping()  # it connects again
    one.close()
