"""What a client is made from: a configuration file, or shards with their URLs, and redis-py's own settings.

    Settings.from_config("shardproxy.toml", decode_responses=True)
    Settings.from_shards({"a": "redis://10.0.0.1:6379", "b": {"primary": "...", "weight": 2}}, kind="cache")

Everything is checked as the proxy checks its file (ConfigError). Placement and limits are in the pool's
record, which may be shown; how each node is reached, with its password, is apart and in no repr.
"""

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import redis
from redis.connection import SSLConnection, UnixDomainSocketConnection, parse_url

from shardproxy.client.wire import Coding
from shardproxy.config import Config, Credentials, PoolConfig, load
from shardproxy.config.tables import Reader
from shardproxy.core.topology import Pool, Topology

# Settings of redis-py's that make no sense for many nodes, or that this client does in its own way
NOT_FOR_US = {
    "host": "shards", "port": "shards", "unix_socket_path": "shards", "connection_pool": "shards",
    "single_connection_client": "pipeline(), or on_shard(name).client()",
    "cache": "no client-side cache yet", "cache_config": "no client-side cache yet",
    "max_connections": "a connection for each thread that calls at once is made, and kept",
    "health_check_interval": "a connection is looked at before it is used again",
    "pool": "the proxies that are followed say what it is like", "probe": "the proxies that are followed do",
    "pipelining": "it is AsyncShardedRedis's",
}  # fmt: skip

SHARDS = """names and URLs: {"a": "redis://HOST:PORT", "b": {"primary": "redis://...", "weight": 2}}"""


class Settings(NamedTuple):
    """Immutable. `reach`: how each node is reached: by shard's name, keyword arguments of redis.Redis."""

    topology: Topology
    pool_name: str
    logins: Mapping[str, dict[str, Any]]  # by shard's name: username, password, db, TLS
    common: Mapping[str, Any]  # what the caller gave of redis-py's settings

    def __repr__(self) -> str:
        return f"Settings({self.pool_name!r}, {', '.join(shard.name for shard in self.pool.shards)})"

    @property
    def pool(self) -> Pool:
        return self.topology.pool(self.pool_name)

    @property
    def coding(self) -> Coding:
        return Coding(
            self.common.get("encoding", "utf-8"),
            self.common.get("encoding_errors", "strict"),
            self.common.get("decode_responses", False),
        )

    def reach(self, shard: str, address: str) -> dict[str, Any]:
        """Keyword arguments for redis-py's Redis, which connect to that node as one of that shard."""
        pool = self.pool
        return {
            "socket_timeout": pool.attempt_timeout,
            "socket_connect_timeout": pool.connect_timeout,
            **where(address),
            **self.logins.get(shard, {}),
            **self.common,
        }

    @classmethod
    def from_config(
        cls, source: str | os.PathLike[str] | bytes | Config, pool: str | None = None, **common: Any
    ) -> Self:
        """pool: its name, where the file has several. Raises ConfigError, KeyError for an unknown pool."""
        if pool is not None and not isinstance(pool, str):
            raise TypeError("pool is the name of one here: its options are in the file")
        config = source if isinstance(source, Config) else load(source)
        name = pool or next(iter(config.pool))
        found = config.pool[name]
        credentials = Credentials.read(config)
        logins: dict[str, dict[str, Any]] = {}
        for shard_name, shard in found.shards.items():
            login: dict[str, Any] = _tls(found) if shard.tls else {}
            if (known := credentials.of(name, shard_name)) is not None:
                login |= {"username": known[0] or None, "password": known[1]}
            logins[shard_name] = login
        check(common)
        return cls(Topology.from_config(config), name, logins, common)

    @classmethod
    def from_shards(
        cls, shards: Mapping[str, str | Mapping[str, Any]], common: Mapping[str, Any], **pool: Any
    ) -> Self:
        """shards: a URL as redis-py takes it, or a table as in the file; pool: options as in the file."""
        if not isinstance(shards, Mapping):
            raise TypeError(f"shards are {SHARDS}; of a file: from_config, of proxies: from_url")
        check(common)
        tables: dict[str, Any] = {}
        more: dict[str, dict[str, Any]] = {}
        for name, given in shards.items():
            if not isinstance(given, (str, Mapping)):
                raise TypeError(f"shards are {SHARDS}; {name!r} is of type {type(given).__name__}")
            table = {"primary": given} if isinstance(given, str) else dict(given)
            if isinstance(url := table.get("primary"), str) and "://" in url:
                table["primary"], more[name] = _taken_apart(url)
            tables[name] = table
        reader = Reader("shards", Config)
        data = {"pool": {"main": {**pool, "shards": tables}}}
        config: Config = reader.record(Config, data)
        if reader.mistakes:
            from shardproxy.config import ConfigError

            raise ConfigError(reader.mistakes)
        found = cls.from_config(config, "main", **common)
        return found._replace(logins={name: found.logins[name] | more.get(name, {}) for name in found.logins})


def where(address: str) -> dict[str, Any]:
    """A node's address, "HOST:PORT", "[IPV6]:PORT" or "/PATH", as redis-py takes it."""
    if address.startswith("/"):
        return {"unix_socket_path": address}
    host, _, port = address.rpartition(":")
    return {"host": host.strip("[]"), "port": int(port)}


def _taken_apart(url: str) -> tuple[str, dict[str, Any]]:
    """A URL of redis-py's → the node's own, and what else it says: login, database, settings of its query."""
    if not url.startswith(("redis://", "rediss://", "unix://")):
        return url, {}
    found = dict(parse_url(url))  # type: ignore[no-untyped-call]  # redis-py's
    kind = found.pop("connection_class", None)
    if kind is UnixDomainSocketConnection:
        return f"unix://{found.pop('path', '')}", found
    host, port = found.pop("host", "localhost"), found.pop("port", 6379)
    if kind is SSLConnection:
        found["ssl"] = True
    host = f"[{host}]" if ":" in host else host
    return f"{'rediss' if kind is SSLConnection else 'redis'}://{host}:{port}", found


def _tls(pool: PoolConfig) -> dict[str, Any]:
    """`[pool.NAME.tls]` as redis-py's settings."""
    tls = pool.tls
    found: dict[str, Any] = {
        "ssl": True,
        "ssl_ca_certs": tls.ca,
        "ssl_certfile": tls.cert,
        "ssl_keyfile": tls.key,
        "ssl_cert_reqs": "none" if tls.verify == "none" else "required",
        "ssl_check_hostname": tls.verify == "full",
        "ssl_ciphers": tls.ciphers,
    }
    if tls.server_name:
        found["ssl_server_name"] = tls.server_name  # no setting of redis-py's: see client/naming
    if tls.minimum == "1.3":
        import ssl

        found["ssl_min_version"] = ssl.TLSVersion.TLSv1_3
    if tls.key_password_env or tls.key_password_file:
        found["ssl_password"] = (
            os.environ.get(tls.key_password_env, "")
            if tls.key_password_env
            else Path(str(tls.key_password_file)).read_text().removesuffix("\n")
        )
    return found


def check(common: Mapping[str, Any]) -> None:
    """Raises TypeError for what is no setting of redis-py's, or makes no sense for many nodes."""
    if not common:
        return  # to read redis-py's signature takes a while
    for name in common.keys() & NOT_FOR_US.keys():
        raise TypeError(f"{name} is not a setting of a sharded client: {NOT_FOR_US[name]}")
    unknown = common.keys() - inspect.signature(redis.Redis).parameters.keys()
    for name in unknown & set(PoolConfig.__struct_fields__):
        raise TypeError(f"{name} is an option of the pool: pool={{{name!r}: ...}}, or in the file")
    if unknown:
        raise TypeError(f"no settings of redis-py's: {', '.join(sorted(unknown))}")
