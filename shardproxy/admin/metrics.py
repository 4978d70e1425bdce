"""A View as Prometheus metrics. The counters come from the engine's table, names and help with them.

Only names of shards, addresses of nodes and of states are labels: never keys, clients or reasons, which would
grow without bound.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from shardproxy import __version__
from shardproxy.admin.view import CLASSES, COUNTED, NOW, NodeView, View
from shardproxy.core.topology import State
from shardproxy.dataplane.counters import BUCKET_COUNT, TABLE, bucket, bucket_start

__all__ = ["CONTENT_TYPE_LATEST", "families", "render"]

PREFIX = "shardproxy_"
STATES: tuple[State, ...] = ("unknown", "up", "suspect", "out")
NODE = ("pool", "shard", "node")
PIECE = 8  # label sets of a histogram, between two turns of the loop
# Upper limits of the histogram that is shown, each where a bucket of the engine ends: 64 us to 16.8 s
LIMITS_US = [1 << power for power in range(6, 25)]
ENDS = [bucket(limit) for limit in LIMITS_US]
# Where in its bucket a latency is taken to be, for sums: nobody is further from it than a tenth
MIDDLES_S = [(bucket_start(n) + bucket_start(n + 1)) / 2e6 for n in range(BUCKET_COUNT)]


def counter(name: str, help: str, labels: Sequence[str] = ()) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, help, labels=labels)


def gauge(name: str, help: str, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, help, labels=labels)


def one(family: CounterMetricFamily | GaugeMetricFamily, value: float) -> Metric:
    family.add_metric((), value)
    return family


def families(view: View) -> Iterator[Metric]:
    """All of them, one at a time; a large one in pieces that follow each other."""
    yield from _proxy(view)
    for name, kind, help in TABLE:
        make = counter if kind == "counter" else gauge
        yield one(make(name, help), view.counters[name])
    yield from _histogram(
        "request_duration_seconds",
        "how long requests took, by command class",
        ("command_class",),
        (((kind,), buckets) for kind, buckets in view.latency.items()),
    )
    yield from _processes(view)
    yield from _nodes(view)


def _proxy(view: View) -> Iterator[Metric]:
    info = gauge("info", "1; the version is a label", ("version",))
    info.add_metric((__version__,), 1)
    yield info
    yield one(gauge("start_time_seconds", "when it started, in seconds since 1970"), view.started)
    yield one(gauge("ready", "1: /readyz answers 200"), not view.faults)
    yield one(gauge("degraded", "1: a shard is down"), any(node.down for node in view.nodes))
    yield one(gauge("workers", "live workers"), view.workers)
    yield one(
        gauge("topology_generation", "of the snapshot of pools, shards and nodes"), view.topology.generation
    )
    even = gauge(
        "shard_imbalance",
        "requests of the busiest shard in the last minute, as a multiple of its share by weight",
        ("pool",),
    )
    for pool, value in view.imbalance.items():
        even.add_metric((pool,), value)
    yield even


def _processes(view: View) -> Iterator[Metric]:
    label = ("process",)
    cpu = counter("process_cpu_seconds", "CPU time of a process", label)
    memory = gauge("process_resident_memory_bytes", "memory of a process", label)
    lag = gauge(
        "process_loop_lag_seconds", "the longest a process's loop was late in the last seconds", label
    )
    for name, process in view.processes.items():
        cpu.add_metric((name,), process.cpu_user + process.cpu_system)
        memory.add_metric((name,), process.rss)
        lag.add_metric((name,), process.loop_lag)
    yield from (cpu, memory, lag)


def _nodes(view: View) -> Iterator[Metric]:
    def of(node: NodeView) -> tuple[str, str, str]:
        return node.pool.name, node.shard.name, node.shard.node.address

    def numbers(
        make: Callable[..., CounterMetricFamily | GaugeMetricFamily],
        helps: Mapping[str, str],
        pick: Callable[[NodeView], Mapping[str, float]],
    ) -> Iterator[Metric]:
        names = dict.fromkeys([*helps, *(name for node in view.nodes for name in pick(node))])
        for name in names:
            family = make(f"node_{name}", helps.get(name, f"{name} of a node"), NODE)
            for node in view.nodes:
                family.add_metric(of(node), pick(node).get(name, 0))
            yield family

    state = gauge("node_state", "1 for the state that a node is in", (*NODE, "state"))
    moved = counter("node_transitions", "times that a node came into a state", (*NODE, "state"))
    mistaken = counter(
        "node_false_positives", "times that a node was put out and its next probe succeeded", NODE
    )
    invalidated = counter("node_invalidated", "keys deleted of a node because what they held was old", NODE)
    for node in view.nodes:
        mistaken.add_metric(of(node), view.mistaken.get(of(node)[2], 0))
        invalidated.add_metric(of(node), view.invalidated.get(of(node)[2], 0))
        for each in STATES:
            state.add_metric((*of(node), each), each == node.shard.node.state)
            moved.add_metric((*of(node), each), view.transition_counts.get((of(node)[2], each), 0))
    yield from (state, moved, mistaken, invalidated)
    for name in CLASSES:
        family = counter(f"node_{name}", f"{COUNTED[name]}, by command class", (*NODE, "command_class"))
        for node in view.nodes:
            for kind, counts in node.classes.items():
                family.add_metric((*of(node), kind), counts[name])
        yield family
    helps = {name: help for name, help in COUNTED.items() if name not in CLASSES}
    yield from numbers(counter, helps, lambda node: {name: node.counted.get(name, 0) for name in helps})
    yield from numbers(gauge, NOW, lambda node: node.now)
    yield from _histogram(
        "node_request_duration_seconds",
        "how long requests took, by node and command class",
        (*NODE, "command_class"),
        (((*of(node), kind), buckets) for node in view.nodes for kind, buckets in node.latency.items()),
    )


def _histogram(
    name: str, help: str, labels: Sequence[str], each: Iterable[tuple[Sequence[str], Sequence[int]]]
) -> Iterator[Metric]:
    """In pieces of a few label sets: that of a hundred nodes has thousands of samples."""
    each = iter(each)
    while piece := list(itertools.islice(each, PIECE)):
        family = HistogramMetricFamily(PREFIX + name, help, labels=labels)
        for values, buckets in piece:
            shown, total, start = [], 0, 0
            for limit, end in zip(LIMITS_US, ENDS, strict=True):
                total += sum(buckets[start:end])
                start = end
                shown.append((repr(limit / 1e6), float(total)))
            shown.append(("+Inf", float(sum(buckets))))
            seconds = sum(count * middle for count, middle in zip(buckets, MIDDLES_S, strict=True) if count)
            family.add_metric(values, shown, seconds)
        yield family


class _Only(Collector):
    def __init__(self, family: Metric) -> None:
        self.family = family

    def collect(self) -> list[Metric]:
        return [self.family]


async def render(view: View) -> bytes:
    """The text of /metrics. Piece by piece, with turns of the loop between them: the clients go first."""
    parts, last = [], ""
    for family in families(view):
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Only(family))
        text = generate_latest(registry)
        # a family has one head, HELP and TYPE, however many pieces it comes in
        parts.append(text.split(b"\n", 2)[2] if family.name == last else text)
        last = family.name
        await asyncio.sleep(0)
    return b"".join(parts)
