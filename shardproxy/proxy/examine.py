"""What a node is, asked once, for `shardproxy check`: does it answer, is it Redis, can it serve as a shard?

Owns: the questions and the table of faults. The probes of a running proxy are not here.
"""

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping

import hiredis
import msgspec

from shardproxy.config import Config, PoolConfig, ShardConfig
from shardproxy.core import errors
from shardproxy.proxy import memcached
from shardproxy.proxy.certificates import Way, Ways
from shardproxy.proxy.probe import Line, NodeRefuses, fields_of


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


NOT_MEMCACHED = "it does not answer as a memcached does: is the address right?"


async def examine(config: Config, ways: Ways) -> list[Examined]:
    """Every node of every pool, all at once, in the order of the configuration."""
    found = await asyncio.gather(
        *(
            _examine_node(name, shard, pool, ways.of(pool_name, name))
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


async def _examine_node(name: str, shard: ShardConfig, pool: PoolConfig, way: Way) -> Examined:
    found = Examined(name, shard.address)
    if way.memcached:
        await _examine_memcached(found, pool, way)
        return found
    try:
        async with Line(shard.address, way, pool.connect_timeout, text=True) as line:
            pong = await _ask(line, "PING", pool)
            if pong != "PONG":
                found.faults.append(NOT_REDIS)
            info = await _ask(line, "INFO", pool)
            _learn(found, fields_of(info) if isinstance(info, str) else {})
            found.seconds = min([await _round_trip(line, pool) for _ in range(3)])
    except NodeRefuses as refusal:
        found.faults.append(_fault(refusal, pool))
    return found


async def _examine_memcached(found: Examined, pool: PoolConfig, way: Way) -> None:
    try:
        async with memcached.MetaLine(found.address, way, pool.connect_timeout) as line:
            found.version, found.role = await memcached.version_of(line), "memcached"
            if fault := memcached.too_old(found.version):
                found.faults.append(fault)
                return
            times = [time.monotonic()]
            for _ in range(3):
                await line.say(b"mn\r\n")
                times.append(time.monotonic())
            found.seconds = min(after - before for before, after in itertools.pairwise(times))
    except NodeRefuses as refusal:
        found.faults.append(_fault(refusal, pool))


async def _ask(line: Line, command: str, pool: PoolConfig) -> object:
    (answer,) = await line.ask((command,), timeout=pool.timeout)
    if isinstance(answer, hiredis.ReplyError):
        raise NodeRefuses(f"it answers {str(answer)!r}", answer=str(answer))
    return answer


async def _round_trip(line: Line, pool: PoolConfig) -> float:
    start = time.monotonic()
    await _ask(line, "PING", pool)
    return time.monotonic() - start


def _learn(found: Examined, info: Mapping[str, str]) -> None:
    found.version = info.get("redis_version", "")
    found.role = info.get("role", "")
    found.run_id = info.get("run_id", "")
    found.faults += _misfits(info)


def _misfits(info: Mapping[str, str]) -> Iterator[str]:
    """What a node says of itself that does not suit a shard."""
    if "redis_version" not in info:
        yield NOT_REDIS
    if info.get("redis_mode") == "cluster":
        yield "it runs in Cluster mode, where it would send clients elsewhere: a shard is a node of its own"
    if info.get("redis_mode") == "sentinel":
        yield "it is a Sentinel, which holds no keys"
    if info.get("role") == "slave":
        yield f"it is a replica of {info.get('master_host')}:{info.get('master_port')}: writes would fail"
    if info.get("loading", "0") != "0":
        yield "it is still loading its data"


def _fault(refusal: NodeRefuses, pool: PoolConfig) -> str:
    """In one line, with what to do; never the password that was tried."""
    for start, meaning in REFUSALS:
        if refusal.answer.startswith(start) or f" {start}" in refusal.answer[:80]:
            return meaning
    text = str(refusal)
    if text.startswith("no answer in"):
        return f"no answer in {pool.connect_timeout:g} s to connect and {pool.timeout:g} s to reply"
    if text.startswith(errors.not_redis(b"")[:18]):
        return NOT_REDIS
    if text.startswith(errors.not_memcached(b"")[:18]):
        return NOT_MEMCACHED
    if text.startswith("it "):
        return text
    return f"no connection: {text}"
