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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import keys, memory, report, startup
from tests.bench.load import Generators
from tests.bench.measures import MEASURES, Measure
from tests.bench.peers import ALL, Nodes, Peer, chosen
from tests.bench.processes import BenchError, raise_open_files

PARTS = ("load", "memory", "startup")
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
    parser.add_argument(
        "--peers",
        default=",".join(name for name in ALL if name != "before"),
        help="which proxies (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, help=f"samples a peer and measure (default: {FULL.rounds})")
    parser.add_argument("--factor", type=float, help="multiply every load's number of requests (default: 1)")
    parser.add_argument("--only", default="", metavar="REGEX", help="only measures whose title matches")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="which tables (default: all)"
    )
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
        tables, raw, faults = run(peers, scale, options.parts, re.compile(options.only))
    except BenchError as error:
        sys.exit(f"bench: {error}")
    command = " ".join(["python -m tests.bench", *(sys.argv[1:] if arguments is None else arguments)])
    text = f"`{command}`, {time.strftime('%Y-%m-%d')}, rounds: {scale.rounds}\n\n" + "\n\n".join(tables)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(raw, indent=1))
    if options.markdown:
        splice(options.markdown, text)
    if faults:
        sys.exit("\n".join(f"bench: {fault}" for fault in faults))


def run(
    peers: Sequence[type[Peer]], scale: Scale, parts: Sequence[str], only: re.Pattern[str]
) -> tuple[list[str], dict[str, object], list[str]]:
    """The tables, every sample behind them, and what went wrong; a part that fails leaves the others."""
    text, raw, faults = [report.machine(peers)], dict[str, object](), list[str]()
    with tempfile.TemporaryDirectory(prefix="shardproxy-bench-") as place, ExitStack() as stack:
        home = Path(place)
        nodes = Nodes(home)
        stack.callback(nodes.stop)
        makers: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
            "load": lambda into: load_part(
                [peer(home, nodes) for peer in peers], nodes, home, scale, only, into
            ),
            "memory": lambda into: memory_part([peer(home, nodes) for peer in peers], scale.crowd, into),
            "startup": lambda into: startup_part(report.OURS in [peer.name for peer in peers], into),
        }
        for part in parts:
            raw[part] = into = dict[str, Any]()
            try:
                text += makers[part](into)
            except BenchError as error:
                faults.append(f"{part}: {error}")
    return text, raw, faults


def load_part(
    peers: Sequence[Peer], nodes: Nodes, home: Path, scale: Scale, only: re.Pattern[str], into: dict[str, Any]
) -> Iterator[str]:
    measures = [measure for measure in MEASURES if only.search(measure.title)]
    try:
        loads(peers, nodes, measures, scale, Generators(home), into)
    finally:  # with the measures that were through, if one fails
        say("")
        yield report.load_table(into, measures, [peer.name for peer in peers])


def memory_part(peers: Sequence[Peer], crowd: int, into: dict[str, Any]) -> Iterator[str]:
    figures: dict[str, dict[str, memory.Footprint]] = {"idle": {}, "flood": {}}
    for kind, taken in figures.items():
        for peer in peers:
            if peer.places_keys:
                say(f"memory: {kind}, {crowd} clients, {peer.name}")
                taken[peer.name] = memory.measure(peer, kind, crowd)
        into[kind] = {name: vars(it) for name, it in taken.items()}
    say("")
    budget = _budget() if report.OURS in figures["idle"] else 0
    yield report.memory_table(figures["idle"], figures["flood"], crowd, budget)


def startup_part(wanted: bool, into: dict[str, Any]) -> Iterator[str]:
    if wanted:
        into.update(startup.measure())
        yield report.startup_table(into)


def loads(
    peers: Sequence[Peer],
    nodes: Nodes,
    measures: Sequence[Measure],
    scale: Scale,
    generators: Generators,
    into: dict[str, report.Samples],
) -> None:
    """Title of the measure -> peer -> samples. Every key is read back before the loads and after them."""
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
            into[measure.title] = samples
        for peer in peers:
            for size in sizes:
                keys.verify(peer.port, keys.prefix(peer.name, size), scale.keys, size)


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


def _budget() -> int:
    from shardproxy.config import Limits  # only when shardproxy is among the peers

    return Limits().memory


def splice(file: Path, text: str, start: str = BEGIN, stop: str = END) -> None:
    """Replace what is between the two marks; raises BenchError when they are not there."""
    page = file.read_text()
    head, begin, rest = page.partition(start)
    _, end, tail = rest.partition(stop)
    if not begin or not end:
        raise BenchError(f"{file} has no {start} … {stop}")
    file.write_text(f"{head}{start}\n{text}\n{stop}{tail}")


def say(what: str) -> None:
    """Progress on a terminal, in place."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)
