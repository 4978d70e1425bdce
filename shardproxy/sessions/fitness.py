"""Asking a client where its sessions would be kept: a node, a proxy's pool, a ShardedRedis's shards.

A generator, as operations are: it yields what to call and gets the reply, or what was raised, sent in.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import redis

from shardproxy.core.sessions.fitness import faults_of_node, faults_of_pool, info_fields, warnings_of_node


class Verdict(NamedTuple):
    """known: False when it could not be asked; ask again."""

    faults: list[str]
    warnings: list[str]
    known: bool = True


def examine(client: Any) -> Generator[Callable[[], Any], Any, Verdict]:
    """What speaks against keeping sessions there."""
    faults: list[str] = []
    warnings: list[str] = []
    topology = getattr(client, "topology", None)
    if topology is not None and hasattr(client, "on_all"):  # ShardedRedis and its twin
        name = getattr(getattr(getattr(client, "asker", None), "settings", None), "pool_name", None)
        pools = [pool for pool in _pools(topology) if name in (None, pool["name"])]
        faults += faults_of_pool(pools[0])
        reply = yield lambda: client.on_all("INFO")
        # A durable pool with a shard down is no reason not to start: the others are looked at
        infos = reply if isinstance(reply, Mapping) else getattr(reply, "results", {})
    else:
        reply = yield lambda: client.execute_command("INFO")
        if isinstance(reply, redis.ResponseError):
            return Verdict([], [f"INFO is refused ({_first(reply)}): fitness for sessions is not checked"])
        if isinstance(reply, Exception):
            return Verdict([], [], known=False)
        infos = {"": reply}
    for shard, info in infos.items():
        fields = info_fields(info)
        prefix = f"shard {shard}: " if shard else ""
        faults += [prefix + each for each in faults_of_node(fields)]
        warnings += [prefix + each for each in warnings_of_node(fields)]
        if "shardproxy_version" in fields:
            reply = yield lambda: client.execute_command("PROXY", "TOPOLOGY")
            if isinstance(reply, Exception):
                warnings.append(f"PROXY TOPOLOGY is refused ({_first(reply)}): the pool is not checked")
            else:
                faults += faults_of_pool(msgspec.json.decode(reply)["pools"][0])
    return Verdict(faults, warnings)


def _pools(topology: Any) -> Iterator[dict[str, Any]]:
    yield from msgspec.to_builtins(topology)["pools"]


def _first(error: Exception) -> str:
    """The code of an error, without what it quotes."""
    code = str(error).split(" ", 1)[0]
    return code if code.isupper() else type(error).__name__
