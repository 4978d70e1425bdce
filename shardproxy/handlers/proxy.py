"""PROXY: this proxy in its own words. Every reply but HELP's is JSON in one bulk string; never credentials.

What it shows of the ring comes from the topology, what it shows of commands from the command table, what it
counts from the engine's counters, merged over all workers.
"""

import bisect
import functools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from shardproxy import __version__
from shardproxy.core import errors, reply
from shardproxy.core.ring import Ring
from shardproxy.core.topology import Pool
from shardproxy.dataplane.counters import bucket_start
from shardproxy.handlers.base import NodeInfo, Server, handles, part

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


def _json(value: object) -> bytes:
    return reply.bulk(msgspec.json.format(msgspec.json.encode(value), indent=2))


def percentiles(histogram: Sequence[int]) -> dict[str, int]:
    """How many there were, and what that part of them was faster than, in microseconds (0: none)."""
    found, count = {}, sum(histogram)
    for name, share in PERCENTILES.items():
        left = share * count
        found[name] = 0
        for number, size in enumerate(histogram):
            left -= size
            if size and left <= 0:
                found[name] = bucket_start(number + 1)
                break
    return {"count": count} | found


def add(histograms: Sequence[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*histograms, strict=True)]


@handles("proxy|info")
async def info(server: Server, call: "Call") -> bytes:
    if len(call.args) > 2:
        return reply.error(errors.SYNTAX)
    return _json(
        {
            "version": __version__,
            "run_id": server.run_id,
            "process_id": server.pid,
            "uptime_seconds": int(time.time() - server.started),
            "workers": len(await server.everywhere("process")),
            "generation": server.topology.generation,
            "pools": {
                pool.name: {
                    "kind": pool.kind,
                    "distribution": pool.distribution,
                    "shards": len(pool.shards),
                    "fingerprint": pool.ring.fingerprint,
                }
                for pool in server.topology.pools
            },
            "counters": dict(server.counters()),
            "latency_us": {name: percentiles(buckets) for name, buckets in server.latency().items()},
        }
    )


def merged(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One node, as each worker's engine sees it → the sum of it."""
    upstreams = [upstream for record in records for upstream in record["upstreams"]]
    return {
        "upstreams": sum(upstream["state"] == "up" for upstream in upstreams),
        "in_flight": sum(upstream["in_flight"] for upstream in upstreams),
        "queue_bytes": sum(upstream["queue_bytes"] for upstream in upstreams),
        **{
            name: sum(record[name] for record in records)
            for name in ("private", "requests", "errors", "lost")
        },
        "latency_us": {
            name: percentiles(add([record["latency"][name] for record in records]))
            for name in (records[0]["latency"] if records else ())
        },
    }


@part("nodes")
def nodes_seen(server: Server) -> list[dict[str, Any]]:
    """As this worker's engine sees them."""
    return server.reactor.nodes()


@handles("proxy|nodes")
async def nodes(server: Server, call: "Call") -> bytes:
    """The nodes, in the order of the shards."""
    seen: dict[str, list[dict[str, Any]]] = {}
    for worker in await server.everywhere("nodes"):
        for record in worker:
            seen.setdefault(record["address"], []).append(record)
    return _json(
        [
            {
                "pool": pool.name,
                "shard": shard.name,
                "weight": shard.weight,
                "draining": shard.draining,
                **msgspec.to_builtins(shard.node),
                **msgspec.to_builtins(server.node_info.get(shard.node.address, NodeInfo())),
                **merged(seen.get(shard.node.address, [])),
                "transitions": server.transitions_of(shard.node.address),
            }
            for pool in server.topology.pools
            for shard in pool.shards
        ]
    )


@functools.lru_cache(maxsize=8)
def _points(ring: Ring) -> list[int]:
    return [point for point, _ in ring.points()]


def place(pool: Pool, key: bytes) -> dict[str, Any]:
    """Where a key lives, and where it would go if that shard were out."""
    home, other = pool.home(key), pool.stand_in(key)
    points, hashed = _points(pool.ring), pool.ring.hash_of(key)
    at = bisect.bisect_left(points, hashed)
    return {
        "key": key.decode(errors="backslashreplace"),
        "pool": pool.name,
        "shard": home.name,
        "protocol": home.protocol,
        "address": home.node.address,
        "state": home.node.state,
        "reason": home.node.reason,
        "hash": f"{hashed:x}",
        "point": f"{points[at % len(points)]:x}" if points else None,
        "stand_in": other and {"shard": other.name, "address": other.node.address, "state": other.node.state},
    }


@handles("proxy|locate")
def locate(server: Server, call: "Call") -> bytes:
    """PROXY LOCATE key [key ...]: an object; of several keys an array of them"""
    places = [place(server.topology.pools[0], key) for key in call.args[2:]]
    return _json(places if len(places) > 1 else places[0])


@handles("proxy|commands")
def commands(server: Server, call: "Call") -> bytes:
    """PROXY COMMANDS [name ...]"""
    names = {name.decode(errors="replace").lower() for name in call.args[2:]}
    rows = [flat for row in server.commands.rows() for flat in row.flat()]
    shown = ("name", "kind", "merge", "why", "in_multi", "learned", "arity", "flags")
    return _json(
        [{key: getattr(row, key) for key in shown} for row in rows if not names or row.name in names]
    )


HELP = """\
PROXY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
INFO
    Version, generation, ring fingerprints, counters and latencies.
NODES
    Every node: its shard, address, state and the reason for it, latest transitions, connections, latencies.
LOCATE <key> [<key> ...]
    The shard and node that a key lives on, its hash, its point on the ring, and its stand-in.
COMMANDS [<command-name> ...]
    What is done with each command, and why one is refused.
TOPOLOGY [WATCH [<generation> [<milliseconds>]]]
    The whole snapshot: pools, shards, nodes. WATCH: when it is another than that one, or the time is over.
NODE <shard> <command> [<arg> ...]
    Run a command on the node of one shard.
RELOAD
    Load the configuration's file again; a bad one is refused with all its mistakes.
DRAIN <shard> [FORCE]
    Take a shard off the ring; FORCE: on a durable pool too, where its keys are then not found.
UNDRAIN <shard>
    Put a drained shard back.
HELP
    Prints this help."""


@handles("proxy|help")
def help_(server: Server, call: "Call") -> bytes:
    return reply.simples(HELP.split("\n"))
