"""Memcached nodes: `python -m tests.bench.memcached`. CPU of shardproxy and of twemproxy for the same work.

One load program (closedloop.c) speaks memcached's text to twemproxy's memcached pool and RESP to shardproxy,
over the same three memcached. Rounds alternate, and what counts is the ratio within a round. The nodes' own
counters must show after every sample that each request reached a node and found its key.
"""

from __future__ import annotations

import argparse
import getpass
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests.bench import report
from tests.bench import run as bench
from tests.bench.peers import NAMES, Nodes, Peer, Shardproxy, Twemproxy
from tests.bench.processes import BenchError, Process, busy_percent, free_port, need, output_of

KEYS = 10_000
SIZE = 64
CLIENTS = 50
BEGIN, END = "<!-- bench memcached: begin -->", "<!-- bench memcached: end -->"


@dataclass(frozen=True)
class Work:
    title: str
    verb: str
    depth: int
    requests: int
    goal: float  # our CPU as a part of twemproxy's, at most
    each: int = 1


WORK = [
    *(
        Work(f"{verb.upper()}, depth {depth}", verb, depth, requests, 1.0)
        for depth, requests in ((1, 40_000), (16, 200_000), (64, 300_000))
        for verb in ("get", "set")
    ),
    Work("MGET of 100 keys", "get", 1, 6_000, 0.6, each=100),
]


class MemcachedNodes(Nodes):
    """Three memcached of one thread each."""

    def __init__(self, home: Path) -> None:
        program = need("memcached", "apt install memcached")
        self.processes = []
        try:
            for name in NAMES:
                port = free_port()
                options = f"-l 127.0.0.1 -p {port} -U 0 -m 256 -t 1 -u {getpass.getuser()}"
                self.processes.append(Process([program, *options.split()], port, home / f"node-{name}.log"))
        except BaseException:
            self.stop()
            raise
        self.ports = [process.port for process in self.processes]

    def counters(self) -> dict[str, int]:
        total = dict.fromkeys(("cmd_get", "cmd_set", "get_hits", "get_misses"), 0)
        for port in self.ports:
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                connection.sendall(b"stats\r\n")
                said = b""
                while not said.endswith(b"END\r\n"):
                    said += connection.recv(1 << 16)
            for field, value in re.findall(r"STAT (\w+) (\d+)\r", said.decode()):
                if field in total:
                    total[field] += int(value)
        return total


class MemcachedTwemproxy(Twemproxy):
    language: ClassVar[str] = "memcached"

    def argv(self) -> list[str]:
        return replaced(super().argv(), self.home / "nutcracker.yml", "redis: true", "redis: false")


class MemcachedShardproxy(Shardproxy):
    """With a deadline that a busy machine does not pass; twemproxy has none."""

    language: ClassVar[str] = "resp"

    def argv(self) -> list[str]:
        file = self.home / "shardproxy.toml"
        made = replaced(super().argv(), file, '"redis://', '"memcached://')
        return replaced(
            made, file, "[pool.main]\n", '[pool.main]\ntimeout = "20s"\nconnect_timeout = "20s"\n'
        )


def replaced(argv: list[str], file: Path, old: str, new: str) -> list[str]:
    file.write_text(file.read_text().replace(old, new))
    return argv


PEERS: tuple[type[MemcachedTwemproxy | MemcachedShardproxy], ...] = (MemcachedTwemproxy, MemcachedShardproxy)


def compiled(home: Path) -> str:
    program = str(home / "closedloop")
    source = Path(__file__).with_name("closedloop.c")
    gcc = need("gcc", "apt install gcc")
    done = subprocess.run([gcc, "-O2", "-o", program, source], capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"closedloop.c does not compile:\n{done.stderr}")
    return program


def load(
    program: str, peer: Peer, language: str, verb: str, depth: int, requests: int, each: int
) -> dict[str, float]:
    words = (language, peer.port, CLIENTS, depth, requests, verb, f"{peer.name}:", KEYS, SIZE, each)
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise BenchError(f"{verb} through {peer.name}, depth {depth}: {done.stderr[-500:]}")
    made: dict[str, float] = json.loads(done.stdout)
    return made


def sample(
    program: str, peer: MemcachedTwemproxy | MemcachedShardproxy, nodes: Nodes, work: Work, factor: float
) -> dict[str, float]:
    """cpu: microseconds of the proxy a request, or a key. Raises BenchError: the nodes saw something else."""
    requests = max(int(work.requests * factor), CLIENTS * work.depth)
    before, cpu = nodes.counters(), peer.cpu_seconds()
    made = load(program, peer, peer.language, work.verb, work.depth, requests, work.each)
    cpu = peer.cpu_seconds() - cpu
    grown = {name: after - before[name] for name, after in nodes.counters().items()}
    wanted = int(made["requests"]) * work.each
    counted = grown["get_hits"] if work.verb == "get" else grown["cmd_set"]
    if grown["get_misses"] or counted < wanted:
        raise BenchError(f"{work.title} through {peer.name}: {wanted} keys, but the nodes saw {grown}")
    return made | {"cpu": cpu / wanted * 1e6}


def measured(
    rounds: int, factor: float, only: re.Pattern[str]
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Title → peer → samples."""
    with tempfile.TemporaryDirectory(prefix="shardproxy-bench-") as place, ExitStack() as stack:
        home = Path(place)
        program, nodes = compiled(home), MemcachedNodes(home)
        stack.callback(nodes.stop)
        peers = [peer(home, nodes) for peer in PEERS]
        for peer in peers:
            peer.start()
            stack.callback(peer.stop)
            load(program, peer, peer.language, "seed", 1, KEYS, 1)
        results: dict[str, dict[str, list[dict[str, float]]]] = {}
        for work in (each for each in WORK if only.search(each.title)):
            results[work.title] = {peer.name: [] for peer in peers}
            for number in range(rounds):
                for peer in peers[:: -1 if number % 2 else 1]:
                    results[work.title][peer.name].append(sample(program, peer, nodes, work, factor))
        return results


def table(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    rows = []
    for work in (each for each in WORK if each.title in results):
        taken = results[work.title]
        for metric, unit in (
            ("cpu", "CPU, µs a key" if work.each > 1 else "CPU, µs a request"),
            ("rps", "1000/s"),
        ):
            values = {
                name: [each[metric] / (1000 if metric == "rps" else 1) for each in samples]
                for name, samples in taken.items()
            }
            ratio = [mine / its for mine, its in zip(values["shardproxy"], values["twemproxy"], strict=True)]
            judgement = [f"≤ {work.goal:.2f}", "yes" if statistics.median(ratio) <= work.goal else "**no**"]
            cells = [unit, *map(report.spread, values.values()), report.spread(ratio)]
            rows.append([work.title, *cells, *judgement] if metric == "cpu" else ["", *cells, "", ""])
    return report.markdown(
        ["measure", "", *(peer.name for peer in PEERS), "÷ twemproxy", "goal", "met"], rows
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.memcached", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--factor", type=float, default=1.0, help="multiply the number of requests")
    parser.add_argument("--only", default="", metavar="REGEX", help="only measures whose title matches")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help=f"replace what is between {BEGIN} and {END}"
    )
    options = parser.parse_args(arguments)
    memcached = output_of(need("memcached", "apt install memcached"), "-V")
    facts = [
        f"3 nodes of {memcached}, one thread each; {CLIENTS} clients, {SIZE} B",
        f"{busy_percent():.0f} % of the machine busy before the start",
        *(f"{peer.name} {peer.version()}" for peer in PEERS),
    ]
    try:
        made = table(measured(options.rounds, options.factor, re.compile(options.only)))
    except BenchError as error:
        sys.exit(f"bench: {error}")
    command = " ".join(
        ["python -m tests.bench.memcached", *(sys.argv[1:] if arguments is None else arguments)]
    )
    head = f"`{command}`, {time.strftime('%Y-%m-%d')}, rounds: {options.rounds}"
    text = "\n".join([head, "", *(f"- {fact}" for fact in facts), "", made])
    print(text)
    if options.markdown:
        bench.splice(options.markdown, text, BEGIN, END)


if __name__ == "__main__":
    main()
