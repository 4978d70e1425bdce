"""The command line and the alternating rounds.

Measure by measure, round by round, each peer takes one sample; the order turns by one each round, so that
no peer always follows the same one. All peers run all the time: an idle proxy costs nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.bench import keys, memory, report, startup
from tests.bench.load import Generators
from tests.bench.measures import MEASURES, Measure
from tests.bench.peers import ALL, Nodes, Peer, chosen
from tests.bench.processes import BenchError, raise_open_files

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


@dataclass(frozen=True)
class Scale:
    rounds: int
    factor: float  # of each load's requests
    keys: int
    crowd: int  # clients of the memory measures


FULL = Scale(rounds=15, factor=1.0, keys=10_000, crowd=10_000)
QUICK = Scale(rounds=1, factor=0.02, keys=2_000, crowd=200)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Compare shardproxy with its peers over the same nodes."
    )
    parser.add_argument("--peers", default=",".join(ALL), help="which proxies (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help=f"samples a peer and measure (default: {FULL.rounds})")
    parser.add_argument("--factor", type=float, help="multiply every load's number of requests (default: 1)")
    parser.add_argument("--only", default="", metavar="REGEX", help="only measures whose title matches")
    parser.add_argument("--parts", default="load,memory,startup", help="which tables (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one round, a fiftieth of the load")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help=f"replace what is between {BEGIN} and {END} in FILE"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the tables; exit 1 with a reason when something is missing or not as it says."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise_open_files()
    options = parse(arguments)
    base = QUICK if options.quick else FULL
    scale = Scale(options.rounds or base.rounds, options.factor or base.factor, base.keys, base.crowd)
    try:
        peers = chosen(options.peers)
        text, raw = run(peers, scale, options.parts.split(","), re.compile(options.only))
    except BenchError as error:
        sys.exit(f"bench: {error}")
    command = " ".join(["python -m tests.bench", *(sys.argv[1:] if arguments is None else arguments)])
    text = f"`{command}`, {time.strftime('%Y-%m-%d')}, rounds: {scale.rounds}\n\n{text}"
    print(text)
    if options.json:
        options.json.write_text(json.dumps(raw, indent=1))
    if options.markdown:
        splice(options.markdown, text)


def run(
    peers: Sequence[type[Peer]], scale: Scale, parts: Sequence[str], only: re.Pattern[str]
) -> tuple[str, dict[str, object]]:
    """The tables, and every sample behind them."""
    text, raw = [report.machine(peers)], dict[str, object]()
    names = [peer.name for peer in peers]
    with tempfile.TemporaryDirectory(prefix="shardproxy-bench-") as place, ExitStack() as stack:
        home = Path(place)
        nodes = Nodes(home)
        stack.callback(nodes.stop)
        if "load" in parts:
            measures = [measure for measure in MEASURES if only.search(measure.title)]
            results = loads([peer(home, nodes) for peer in peers], nodes, measures, scale, Generators(home))
            text.append(report.load_table(results, measures, names))
            raw["load"] = results
        if "memory" in parts:
            crowds = [peer(home, nodes) for peer in peers if peer.places_keys]
            idle, flood = (
                {peer.name: _told(peer, kind, scale.crowd) for peer in crowds} for kind in ("idle", "flood")
            )
            text.append(
                report.memory_table(idle, flood, scale.crowd, _budget() if report.OURS in idle else 0)
            )
            raw["memory"] = {
                "idle": {name: vars(it) for name, it in idle.items()},
                "flood": {name: vars(it) for name, it in flood.items()},
            }
    if "startup" in parts and report.OURS in names:
        figures = startup.measure(max(scale.rounds, 3))
        text.append(report.startup_table(figures))
        raw["startup"] = figures
    return "\n\n".join(text), raw


def loads(
    peers: Sequence[Peer], nodes: Nodes, measures: Sequence[Measure], scale: Scale, generators: Generators
) -> dict[str, report.Samples]:
    """Title of the measure -> peer -> samples. Every key is read back before the loads and after them."""
    results: dict[str, report.Samples] = {}
    sizes = {measure.load.size for measure in measures}
    with ExitStack() as stack:
        for peer in peers:
            peer.start()
            stack.callback(peer.stop)
            for size in sizes:
                seed(peer, nodes, size, scale.keys)
        for measure in measures:
            load = measure.load.scaled(scale.factor)
            samples: report.Samples = {peer.name: [] for peer in peers}
            for number in range(scale.rounds):
                turn = number % len(peers)
                for peer in (*peers[turn:], *peers[:turn]):
                    say(f"{measure.title}: round {number + 1} of {scale.rounds}, {peer.name}")
                    samples[peer.name].append(generators.sample(load, peer, nodes, scale.keys))
            results[measure.title] = samples
        for peer in peers:
            for size in sizes:
                keys.verify(peer.port, keys.prefix(peer.name, size), scale.keys, size)
    say("")
    return results


def seed(peer: Peer, nodes: Nodes, size: int, count: int) -> None:
    """Write this peer's keys; each must be on one node, and on every node where the peer places none."""
    before, start = nodes.sizes(), keys.prefix(peer.name, size)
    for port in peer.seed_ports():
        keys.seed(port, start, count, size)
    keys.verify(peer.port, start, count, size)
    grown = [after - was for after, was in zip(nodes.sizes(), before, strict=True)]
    wrong = sum(grown) != count or 0 in grown if peer.places_keys else grown != [count] * len(grown)
    if wrong:
        raise BenchError(f"{peer.name} has put {count} keys on the nodes as {grown}")


def _told(peer: Peer, kind: str, crowd: int) -> memory.Footprint:
    say(f"memory: {kind}, {crowd} clients, {peer.name}")
    return memory.measure(peer, kind, crowd)


def _budget() -> int:
    from shardproxy.config import Limits  # only when shardproxy is among the peers

    return Limits().memory


def splice(file: Path, text: str) -> None:
    """Replace what is between the two marks; raises BenchError when they are not there."""
    page = file.read_text()
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"{file} has no {BEGIN} … {END}")
    file.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def say(what: str) -> None:
    """Progress on a terminal, in place."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)
