"""What a node is, asked once, for `shardproxy check`: does it answer, is it Redis, can it serve as a shard?

Owns: the questions and the table of faults. The probes of a running proxy are not here.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shardproxy.config import Config, Credentials, PoolConfig, ShardConfig


class Examined(msgspec.Struct):
    """A node as it was found; `version` is empty when it did not say."""

    shard: str
    address: str
    version: str = ""
    role: str = ""
    run_id: str = ""
    seconds: float = 0.0  # of a PING, the best of three
    faults: list[str] = msgspec.field(default_factory=list)


# (how the error text of the node begins, what that means here)
REFUSALS = (
    ("NOAUTH", "it needs a password: give password_env or password_file"),
    ("Authentication required", "it needs a password: give password_env or password_file"),
    ("WRONGPASS", "it refuses the username and password"),
    ("invalid username-password pair", "it refuses the username and password"),
    ("invalid password", "it refuses the password"),
    ("AUTH <password> called without any password", "it has no password, but the configuration gives one"),
    ("AUTH called without any password", "it has no password, but the configuration gives one"),
    ("DENIED", "its protected mode turns us away: set a password there, or protected-mode no"),
    ("NOPERM", "its ACL forbids us PING or INFO"),
    ("LOADING", "it is still loading its data"),
)
NOT_REDIS = "it does not answer as a Redis server does: is the address right?"


async def examine(config: Config, credentials: Credentials) -> list[Examined]:
    """Every node of every pool, all at once, in the order of the configuration."""
    found = await asyncio.gather(
        *(
            _examine_node(name, shard, pool, credentials.of(pool_name, name))
            for pool_name, pool in config.pool.items()
            for name, shard in pool.shards.items()
        )
    )
    seen: dict[str, Examined] = {}
    for each in found:
        first = seen.setdefault(each.run_id, each) if each.run_id else each
        if first is not each:
            each.faults.append(f"the same server as {first.shard} ({first.address})")
    return found


async def _examine_node(
    name: str, shard: ShardConfig, pool: PoolConfig, login: tuple[str, str] | None
) -> Examined:
    found = Examined(name, shard.address)
    host, _, port = shard.address.rpartition(":")
    where = {"host": host.strip("[]"), "port": int(port)} if host else {"unix_socket_path": shard.address}
    username, password = login or ("", "")
    client = redis.asyncio.Redis(
        **where,
        username=username or None,
        password=password or None,
        protocol=2,
        decode_responses=True,
        socket_timeout=pool.timeout,
        socket_connect_timeout=pool.connect_timeout,
        retry=Retry(NoBackoff(), 0),
        single_connection_client=True,
    )
    try:
        async with client:
            if await client.ping() is not True:
                found.faults.append(NOT_REDIS)
            _learn(found, await client.info())
            found.seconds = min([await _round_trip(client) for _ in range(3)])
    except Exception as error:  # whatever a stranger at that address makes redis-py raise
        found.faults.append(_fault(error, pool))
    return found


async def _round_trip(client: redis.asyncio.Redis) -> float:
    start = time.monotonic()
    await client.ping()
    return time.monotonic() - start


def _learn(found: Examined, info: dict[str, Any]) -> None:
    found.version = str(info.get("redis_version", ""))
    found.role = str(info.get("role", ""))
    found.run_id = str(info.get("run_id", ""))
    found.faults += _misfits(info)


def _misfits(info: dict[str, Any]) -> Iterator[str]:
    """What a node says of itself that does not suit a shard."""
    if "redis_version" not in info:
        yield NOT_REDIS
    if info.get("redis_mode") == "cluster":
        yield "it runs in Cluster mode, where it would send clients elsewhere: a shard is a node of its own"
    if info.get("redis_mode") == "sentinel":
        yield "it is a Sentinel, which holds no keys"
    if info.get("role") == "slave":
        yield f"it is a replica of {info.get('master_host')}:{info.get('master_port')}: writes would fail"
    if info.get("loading"):
        yield "it is still loading its data"


def _fault(error: Exception, pool: PoolConfig) -> str:
    """In one line, with what to do; never the password that was tried."""
    text = str(error)
    for start, meaning in REFUSALS:
        if text.startswith(start) or f" {start}" in text[:80]:
            return meaning
    if isinstance(error, (exceptions.TimeoutError, TimeoutError)):
        return f"no answer in {pool.connect_timeout:g} s to connect and {pool.timeout:g} s to reply"
    if isinstance(error, exceptions.InvalidResponse):
        return NOT_REDIS
    if isinstance(error, (exceptions.ConnectionError, OSError)):
        cause = error.__cause__ or error.__context__
        number = getattr(cause, "errno", None) or 0  # name lookups have negative numbers of their own
        reason = os.strerror(number) if number > 0 else getattr(cause, "strerror", None)
        return f"no connection: {reason or text}"
    if isinstance(error, exceptions.ResponseError):
        return f"it answers {text!r}"
    return NOT_REDIS
