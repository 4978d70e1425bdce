"""TLS to nodes whose certificates have another name than their address: `tls.server_name`.

redis-py has no setting for it. SERVER_NAME is among those of `Settings.reach`: who makes a client of
redis-py's of them does so here.
"""

from collections.abc import Mapping
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.connection import SSLConnection

SERVER_NAME = "ssl_server_name"


class NamedConnection(SSLConnection):
    def __init__(self, *, server_name: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.server_name = server_name

    def _wrap_socket_with_ssl(self, sock: Any) -> Any:
        host, self.host = self.host, self.server_name
        try:
            return super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]  # redis-py's
        finally:
            self.host = host


class AsyncNamedConnection(AsyncSSLConnection):
    def __init__(self, *, server_name: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.server_name = server_name

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), "server_hostname": self.server_name}


def redis_of(reach: Mapping[str, Any], **more: Any) -> redis.Redis:
    """redis-py's client of a node, which has not connected."""
    return _named(redis.Redis, NamedConnection, reach, more)  # type: ignore[no-any-return]


def async_redis_of(reach: Mapping[str, Any]) -> redis.asyncio.Redis:
    """The same for asyncio."""
    return _named(redis.asyncio.Redis, AsyncNamedConnection, reach, {})  # type: ignore[no-any-return]


def _named(kind: Any, connection: type, reach: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
    settings = {**reach, **more}
    name = settings.pop(SERVER_NAME, None)
    made = kind(**settings)
    if name and settings.get("ssl"):
        made.connection_pool.connection_class = connection
        made.connection_pool.connection_kwargs["server_name"] = name
    return made


def encrypted(sock: Any, reach: Mapping[str, Any]) -> Any:
    """A connected socket with TLS, by a connection of redis-py's that never connects."""
    settings = {name: value for name, value in reach.items() if name.startswith("ssl_")}
    name = settings.pop(SERVER_NAME, None) or reach["host"]
    made: Any = NamedConnection(server_name=name, host=reach["host"], port=reach["port"], **settings)
    return made._wrap_socket_with_ssl(sock)
