"""Samples -> medians, ratios and goals -> a table in Markdown. Pure, but for `machine`.

A cell is the median over the rounds with the quartiles in brackets: the middle half of them. A ratio is the
median over the rounds of shardproxy's figure divided by the peer's in the same round: the machine's mood
drifts, and only figures taken side by side compare.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from tests.bench import startup
from tests.bench.load import Sample, versions
from tests.bench.measures import HIGHER_IS_BETTER, UNITS, Goal, Measure
from tests.bench.memory import CEILING, Footprint
from tests.bench.peers import Peer
from tests.bench.processes import BenchError, busy_percent, need, output_of

OURS = "shardproxy"
COMPARED = ("twemproxy", "envoy", "before")
IDLE_GOAL_MB = 15.0
FLOOD_GOAL_PERCENT = 20.0

Samples = dict[str, list[Sample]]
"""Peer -> its samples of one measure, a round each."""

Row = list[str]


def markdown(header: Row, rows: Sequence[Row]) -> str:
    """A table with aligned columns: readable as text, too."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def load_table(results: dict[str, Samples], measures: Sequence[Measure], peers: Sequence[str]) -> str:
    compared = [peer for peer in COMPARED if OURS in peers and peer in peers]
    header = ["measure", "", *peers, *(f"÷ {peer}" for peer in compared), "goal", "met"]
    rows = []
    for measure in measures:
        samples = results.get(measure.title)
        if samples:
            goals = measure.goals
            rows += [
                [measure.title if goal is goals[0] else "", *_load_row(goal, samples, peers, compared)]
                for goal in goals
            ]
    return markdown(header, rows)


def _load_row(goal: Goal, samples: Samples, peers: Sequence[str], compared: Sequence[str]) -> Row:
    metric = goal.metric.removesuffix("_key")
    values = {peer: [_shown(metric, sample) for sample in samples[peer]] for peer in peers}
    ratios = {
        peer: [mine / theirs for mine, theirs in zip(values[OURS], values[peer], strict=True)]
        for peer in compared
    }
    return [
        UNITS[goal.metric],
        *(spread(values[peer]) for peer in peers),
        *(spread(ratios[peer]) for peer in compared),
        *_verdict(goal, {peer: statistics.median(ratio) for peer, ratio in ratios.items()}),
    ]


def _shown(metric: str, sample: Sample) -> float:
    return sample[metric] / (1000 if metric == "rps" else 1)


def _verdict(goal: Goal, ratios: dict[str, float]) -> Row:
    """The goal in words, and whether it is met: nothing when shardproxy or the peer did not run."""
    more = goal.metric in HIGHER_IS_BETTER
    words = ", ".join(f"{'≥' if more else '≤'} {limit:.2f} {peer}" for peer, limit in goal.limits.items())
    judged = [
        ratios[peer] >= limit if more else ratios[peer] <= limit
        for peer, limit in goal.limits.items()
        if peer in ratios
    ]
    return [words, ("yes" if all(judged) else "**no**") if judged else ""]


def spread(values: Sequence[float]) -> str:
    """`median (first quartile - third quartile)`; the median alone when there is one value."""
    if len(values) == 1:
        return number(values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{number(middle)} ({number(low)} - {number(high)})"


def number(value: float) -> str:
    """Three significant digits, never an exponent; a count in full."""
    if isinstance(value, int):
        return f"{value:,}"
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f}"


def memory_table(idle: dict[str, Footprint], flood: dict[str, Footprint], count: int, budget: int) -> str:
    """`budget`: shardproxy's own, in bytes; 0 when it did not run."""

    def row(title: str, values: dict[str, float], goal: float = 0, more: str = "") -> Row:
        words = f"≤ {number(goal)}{more}" if goal else ""
        return [title, *map(number, values.values()), words, _met(values.get(OURS), goal)]

    rows = [
        row(
            f"{count:,} idle clients that have each sent a command: MB above none",
            {peer: (it.idle - it.before) / 1e6 for peer, it in idle.items()},
            IDLE_GOAL_MB,
        ),
        row("before the flood: MB", {peer: it.before / 1e6 for peer, it in flood.items()}),
        row(
            f"peak while {count:,} clients pipeline 1 MB each: MB",
            {peer: it.peak / 1e6 for peer, it in flood.items()},
            budget / 1e6,
            ", its limits.memory",
        ),
        row(
            "when they have left: % above before",
            {peer: (it.after / it.before - 1) * 100 for peer, it in flood.items()},
            FLOOD_GOAL_PERCENT,
        ),
        row("clients closed before they were through", {peer: it.refused for peer, it in flood.items()}),
    ]
    table = markdown(["memory", *flood, "goal", "met"], rows)
    stopped = [peer for peer, it in flood.items() if it.stopped]
    if stopped:
        table += (
            f"\n\nThe flood was stopped when it had taken {CEILING / 1e9:.1f} GB of: {', '.join(stopped)}."
        )
    return table


def _met(value: float | None, goal: float) -> str:
    if value is None or not goal:
        return ""
    return "yes" if value <= goal else "**no**"


def startup_table(figures: dict[str, float]) -> str:
    rows = []
    for title, value in figures.items():
        goal = startup.GOALS.get(title, 0)
        rows.append([title, number(value), f"≤ {goal:.0f}" if goal else "", _met(value, goal)])
    return markdown(["start", "CPU, ms", "goal", "met"], rows)


def named(peer: type[Peer]) -> str:
    try:
        return f"{peer.name} {peer.version()}"
    except BenchError as error:
        return f"{peer.name}: {error}"


def machine(peers: Sequence[type[Peer]]) -> str:
    """What the figures were taken on, and with which versions."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    redis = output_of(need("redis-server", "apt install redis-server"), "--version").split()[2]
    facts = [
        f"{os.cpu_count()} cores ({model}), {busy_percent():.0f} % busy before the start",
        f"Linux {platform.release()}, TCP congestion control {congestion}",
        f"3 nodes of redis-server {redis.removeprefix('v=')}, redis-benchmark {versions()}",
        *map(named, peers),
    ]
    return "\n".join(f"- {fact}" for fact in facts)
