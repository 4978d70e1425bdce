"""What is measured and what must come out: the table of measures and goals, as data.

`requests` are chosen so that a sample takes half a second to a second and a half on a 2-core machine. Many
short samples: most of the noise is which core happens to run what, and that changes from one to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.load import Load

UNITS = {
    "cpu": "CPU, µs a request",
    "cpu_key": "CPU, µs a key",
    "rps": "throughput, 1000/s",
    "p50": "p50, µs",
    "p99": "p99, µs",
}
"""Metric -> what the table calls it. `cpu_key` shows `cpu` where a request has many keys."""

HIGHER_IS_BETTER = {"rps"}


@dataclass(frozen=True)
class Goal:
    """shardproxy's `metric` as a multiple of each peer's: at most (for rps at least) `limits[peer]`."""

    metric: str
    limits: dict[str, float]


@dataclass(frozen=True)
class Measure:
    title: str
    load: Load
    goals: tuple[Goal, ...]


def _goals(cpu: dict[str, float], *latencies: str) -> tuple[Goal, ...]:
    """CPU, throughput no lower than twemproxy's, and latencies (p50) at most 1.1 of twemproxy's."""
    return (
        Goal("cpu", cpu),
        Goal("rps", {"twemproxy": 1.0}),
        *(Goal(name, {"twemproxy": 1.1}) for name in latencies),
    )


def _pair(title: str, goals: tuple[Goal, ...], **load: int) -> list[Measure]:
    return [Measure(f"{verb}, {title}", Load(verb, **load), goals) for verb in ("GET", "SET")]


MEASURES: list[Measure] = [
    *_pair("depth 1, 50 clients, 64 B", _goals({"twemproxy": 0.90, "envoy": 0.75}), requests=40_000),
    *_pair("depth 16", _goals({"twemproxy": 0.60}), depth=16, requests=200_000),
    *_pair("depth 64", _goals({"twemproxy": 0.20}), depth=64, requests=400_000),
    *_pair("depth 1, 500 clients", _goals({"twemproxy": 1.0}), clients=500, requests=40_000),
    *_pair("depth 1, 4 KiB", _goals({"twemproxy": 1.0}), size=4096, requests=30_000),
    Measure("GET, 1 client", Load("GET", clients=1, requests=6_000), _goals({"twemproxy": 1.1}, "p50")),
    Measure("GET, 4 clients", Load("GET", clients=4, requests=15_000), _goals({"twemproxy": 1.1}, "p50")),
    Measure(
        "GET, 50 clients, 15,000/s offered",
        Load("GET", requests=15_000, rate=15_000),
        (Goal("p99", {"twemproxy": 1.0}), Goal("p50", {}), Goal("cpu", {})),
    ),
    Measure(
        "MGET, 100 keys over 3 nodes",
        Load("MGET", keys_each=100, requests=6_000),
        (Goal("cpu_key", {"twemproxy": 0.5}), Goal("rps", {"twemproxy": 1.0})),
    ),
]
