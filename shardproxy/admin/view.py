"""One look at a whole proxy: what health, metrics and the page all show.

Owns how workers' parts are merged, and what "ready" means. Nothing here acts, and nothing is asked of the
workers more often than every MOMENT, however many look.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from shardproxy.core.topology import Pool, Shard, State, Topology
from shardproxy.handlers.base import ProcessRecord
from shardproxy.handlers.proxy import add
from shardproxy.proxy.transitions import Transition
from shardproxy.proxy.watched import Watched, WorkerRecord

MOMENT = 0.5  # seconds for which a look is good
STEP, STEPS = 10.0, 7  # imbalance is over the last minute

# What an engine counts of a node since its start; every other number that it tells is how things are now
COUNTED = {
    "requests": "requests that a node was sent",
    "errors": "error replies of a node",
    "lost": "connections to a node that were lost",
    "timeouts": "requests of a node that passed their deadline",
    "retries": "requests that were sent to a node again",
}
BY_CLASS = ("latency", "classes")  # the same: records of it, a command class
NOW = {
    "upstreams": "connections to a node that are up",
    "in_flight": "requests that a node has not answered yet",
    "queue_bytes": "bytes that wait to be written to a node",
}
CLASSES = ("requests", "errors")  # of these it tells by command class, too
NOT_SHOWN = {"protocol", "database", "failures"}  # of an upstream: sums of them say nothing


class NodeView(NamedTuple):
    """A shard and its node, over all workers."""

    pool: Pool
    shard: Shard
    counted: Mapping[str, int]
    now: Mapping[str, float]
    latency: Mapping[str, Sequence[int]]  # histograms by command class
    classes: Mapping[str, Mapping[str, int]]  # what is counted by command class: CLASSES
    silent: float = 0.0  # seconds since it last answered

    @property
    def down(self) -> bool:
        """Also a node that only `fail_open_ratio` keeps in use."""
        node = self.shard.node
        return node.state in ("suspect", "out") or (node.state == "unknown" and bool(node.reason))

    @property
    def reached(self) -> bool:
        """It answers; or it is connected, and failing open for a moment, or for who answers requests."""
        health = self.pool.health
        recently = self.silent <= health.interval + health.timeout
        state = self.shard.node.state
        return state == "up" or (state == "unknown" and recently and self.now.get("upstreams", 0) > 0)


class View(NamedTuple):
    """A moment of a proxy."""

    at: float  # seconds since 1970
    started: float
    addresses: Sequence[str]
    topology: Topology
    nodes: Sequence[NodeView]
    faults: Sequence[str]  # the proxy's own; empty: ready
    counters: Mapping[str, int]
    latency: Mapping[str, Sequence[int]]
    processes: Mapping[str, ProcessRecord]  # by slot, or "supervisor"
    workers: int  # that live: who answers
    transitions: Sequence[Transition]  # the newest first
    transition_counts: Mapping[tuple[str, State], int]  # by node and new state
    mistaken: Mapping[str, int]  # by node, as the next
    invalidated: Mapping[str, int]
    imbalance: Mapping[str, float]  # by pool

    @property
    def status(self) -> str:
        if self.faults:
            return "unready"
        return "degraded" if any(node.down for node in self.nodes) else "ready"


def faults_of(watched: Watched, workers: int, nodes: Iterable[NodeView]) -> list[str]:
    """Why nobody should be sent to this proxy. A shard that is down is not among them: it is down for all."""
    faults = []
    if watched.draining:
        faults.append("draining")
    elif not watched.listening:
        faults.append("not listening")
    if not workers:
        faults.append("no live worker")
    if not any(node.reached for node in nodes):
        faults.append("no node reachable")
    return faults


class Totals:
    """What workers have counted of nodes, past workers too, so that no sum ever goes down."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}  # by (slot, pid), by address
        self._past: dict[str, dict[str, Any]] = {}

    def update(self, live: Mapping[int, int], parts: Mapping[int, WorkerRecord]) -> dict[str, dict[str, Any]]:
        """live: slot → pid, also of those who did not answer: what they said last counts. → by address"""
        for slot, part in parts.items():
            records = {node["address"]: counted_of(node) for node in part.nodes}
            self._last[slot, part.process.pid] = records
        known = {*live.items(), *((slot, part.process.pid) for slot, part in parts.items())}
        for gone in self._last.keys() - known:
            self._past = sums([self._past, self._last.pop(gone)])
        return sums([self._past, *self._last.values()])

    def forget_but(self, addresses: Iterable[str]) -> None:
        self._past = {address: self._past[address] for address in self._past.keys() & set(addresses)}


def counted_of(node: Mapping[str, Any]) -> dict[str, Any]:
    return {name: node[name] for name in (*COUNTED, *BY_CLASS) if name in node}


def sums(parts: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """By address, the sums of what several say of it."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        for address, record in part.items():
            so_far = found.get(address)
            if so_far is None:
                found[address] = dict(record)
                continue
            for name, value in record.items():
                so_far[name] = total(so_far[name], value) if name in so_far else value
    return found


def total(one: Any, other: Any) -> Any:
    """The sum of two numbers, histograms, or records of these."""
    if isinstance(one, Mapping):
        return {name: total(one[name], value) for name, value in other.items()}
    return add([one, other]) if isinstance(one, Sequence) else one + other


def now_of(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """How one node is doing, over all workers: every number of the engine's that is not counted."""
    found: dict[str, float] = dict.fromkeys(NOW, 0)

    def take(record: Mapping[str, Any], but: Iterable[str]) -> None:
        for name, value in record.items():
            if name not in but and isinstance(value, (int, float)) and not isinstance(value, bool):
                found[name] = found.get(name, 0) + value

    for record in records:
        take(record, COUNTED)
        for upstream in record["upstreams"]:
            found["upstreams"] += upstream["state"] == "up"
            take(upstream, NOT_SHOWN)
    return found


def imbalance(nodes: Sequence[NodeView], before: Mapping[str, int]) -> float:
    """How many times its share by weight the busiest shard got of the requests since `before`; 1: even."""
    weights = sum(node.shard.weight for node in nodes)
    requests = [
        max(0, node.counted.get("requests", 0) - before.get(node.shard.node.address, 0)) for node in nodes
    ]
    total = sum(requests)
    if not total:
        return 1.0
    return max(
        count * weights / (total * node.shard.weight) for node, count in zip(nodes, requests, strict=True)
    )


class Watch:
    """`look` gives a View of now, or of a moment ago."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._totals = Totals()
        self._requests: deque[tuple[float, dict[str, int]]] = deque(maxlen=STEPS)
        self._view: View | None = None
        self._seen = 0.0
        self._looking = asyncio.Lock()

    async def look(self) -> View:
        async with self._looking:
            if self._view is None or self.stale:
                self._view = await self._look()
                self._seen = time.monotonic()
            return self._view

    @property
    def stale(self) -> bool:
        return time.monotonic() - self._seen >= MOMENT

    async def _look(self) -> View:
        watched = self._watched
        parts = await watched.all_workers()
        topology = watched.topology
        nodes = self._nodes(topology, parts)
        processes = {str(slot): part.process for slot, part in sorted(parts.items())}
        if own := watched.supervisor():
            processes["supervisor"] = own
        return View(
            at=time.time(),
            started=watched.started,
            addresses=watched.addresses,
            topology=topology,
            nodes=nodes,
            faults=faults_of(watched, len(parts), nodes),
            counters=watched.counters(),
            latency=watched.latency(),
            processes=processes,
            workers=len(parts),
            transitions=list(reversed(watched.transitions.latest)),
            transition_counts=dict(watched.transitions.counts),
            mistaken=watched.mistaken,
            invalidated=watched.invalidated,
            imbalance=self._imbalance(nodes),
        )

    def _nodes(self, topology: Topology, parts: Mapping[int, WorkerRecord]) -> list[NodeView]:
        counted = self._totals.update(self._watched.workers, parts)
        self._totals.forget_but(topology.nodes)
        seen: dict[str, list[dict[str, Any]]] = {}
        for part in parts.values():
            for record in part.nodes:
                seen.setdefault(record["address"], []).append(record)
        found = []
        for pool in topology.pools:
            for shard in pool.shards:
                address = shard.node.address
                numbers = counted.get(address, {})
                counts = {name: numbers[name] for name in COUNTED if name in numbers}
                by_class = {name: numbers.get(name, {}) for name in BY_CLASS}
                silent = self._watched.silent.get(address, 0.0)
                now = now_of(seen.get(address, ()))
                found.append(NodeView(pool, shard, counts, now, **by_class, silent=silent))
        return found

    def _imbalance(self, nodes: Sequence[NodeView]) -> dict[str, float]:
        now = time.monotonic()
        if not self._requests or now - self._requests[-1][0] >= STEP:
            requests = {node.shard.node.address: node.counted.get("requests", 0) for node in nodes}
            self._requests.append((now, requests))
        before = self._requests[0][1] if len(self._requests) > 1 else {}
        pools: dict[str, list[NodeView]] = {}
        for node in nodes:
            pools.setdefault(node.pool.name, []).append(node)
        return {name: imbalance(members, before) for name, members in pools.items()}


def ready_json(view: View) -> bytes:
    """What /readyz says."""
    return msgspec.json.encode(
        {
            "status": view.status,
            "faults": view.faults,
            "down": [
                {
                    "pool": node.pool.name,
                    "shard": node.shard.name,
                    "node": node.shard.node.address,
                    "state": node.shard.node.state,
                    "reason": node.shard.node.reason,
                }
                for node in view.nodes
                if node.down
            ],
            "shards": len(view.nodes),
            "workers": view.workers,
            "generation": view.topology.generation,
        }
    )
