"""A connection factory for django-redis: its caches on a `ShardedRedis`.

    DJANGO_REDIS_CONNECTION_FACTORY = "shardproxy.client.django.ConnectionFactory"
    CACHES = {"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "/etc/shardproxy.toml"}}

LOCATION: the path of a configuration, or what `ShardedRedis.from_url` takes. OPTIONS may have SHARDED: what
those take beside it. A location has one client in a process, which its threads share.
Imports nothing of Django.
"""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError

from shardproxy.client.errors import PartialError
from shardproxy.client.sync import ShardedRedis

if TYPE_CHECKING:
    from shardproxy.client.pipeline import ShardedPipeline

_clients: dict[str, "CacheRedis"] = {}
_lock = threading.Lock()


class PartlyDownError(PartialError, ConnectionError):
    """A ConnectionError as well: what django-redis ignores, where IGNORE_EXCEPTIONS says so."""


class CacheRedis(ShardedRedis):
    """Pipelines go over any shards, unless asked otherwise: django-redis means them to save round trips."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)
        except PartialError as error:
            raise PartlyDownError(error.results, error.errors) from error

    def pipeline(self, transaction: bool = False, shard_hint: object = None) -> "ShardedPipeline":
        return super().pipeline(transaction)


class ConnectionFactory:
    """What django-redis asks of its factories. options: the cache's OPTIONS."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def connect(self, url: str) -> CacheRedis:
        """The client of that location; the same one each time."""
        settings = self.options.get("SHARDED", {})
        name = f"{url} {sorted(settings.items(), key=str)!r}"
        with _lock:
            found = _clients.get(name)
            if found is None:
                made = CacheRedis.from_url if "://" in url else CacheRedis.from_config
                found = _clients[name] = made(url, **settings)
            return found

    def disconnect(self, connection: CacheRedis) -> None:
        connection.close()
