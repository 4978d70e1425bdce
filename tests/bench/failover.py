"""What clients see when one of three nodes dies, hangs, stumbles, returns: `python -m tests.bench.failover`

The same trials for Envoy (outlier detection, and a Redis health check every second), twemproxy
(auto_eject_hosts) and shardproxy (rehash, invalidate), one after the other, each on fresh nodes; 500 ms
deadline everywhere. Nothing is asked of a proxy but its replies: that a key has moved is seen on the nodes.
Counts are what matters; times are the machine's mood. tests/adversity asserts the counts of shardproxy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hiredis

from tests.bench import report
from tests.bench.keys import ask
from tests.bench.peers import NAMES, Envoy, Nodes, Peer, Shardproxy, Twemproxy
from tests.bench.processes import BenchError, Process, raise_open_files

COUNT = 300  # keys
PATIENCE = 30.0


class EnvoyEjecting(Envoy):
    def bootstrap(self) -> dict[str, object]:
        made: Any = super().bootstrap()
        [cluster], [listener] = made["static_resources"]["clusters"], made["static_resources"]["listeners"]
        listener["filter_chains"][0]["filters"][0]["typed_config"]["settings"]["op_timeout"] = "0.5s"
        redis = "type.googleapis.com/envoy.extensions.health_checkers.redis.v3.Redis"
        cluster |= {
            "connect_timeout": "0.5s",
            "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
            "outlier_detection": {
                "consecutive_5xx": 2,
                "base_ejection_time": "5s",
                "max_ejection_percent": 100,
            },
            "health_checks": [
                {
                    "timeout": "0.5s",
                    "interval": "1s",
                    "unhealthy_threshold": 2,
                    "healthy_threshold": 2,
                    "custom_health_check": {
                        "name": "envoy.health_checkers.redis",
                        "typed_config": {"@type": redis},
                    },
                }
            ],
        }
        return {"static_resources": made["static_resources"]}


class TwemproxyEjecting(Twemproxy):
    def argv(self) -> list[str]:
        made = super().argv()
        config = Path(made[made.index("-c") + 1])
        eject = "  auto_eject_hosts: true\n  server_failure_limit: 2\n  server_retry_timeout: 2000\n"
        config.write_text(config.read_text().replace("  servers:\n", f"  timeout: 500\n{eject}  servers:\n"))
        return made


class ShardproxyRehashing(Shardproxy):
    def argv(self) -> list[str]:
        made = super().argv()
        config = Path(made[-1])
        policy = 'kind = "cache"\non_shard_down = "rehash"\non_return = "invalidate"\ntimeout = "500ms"'
        pool = f"[pool.main]\n{policy}\n"
        config.write_text(config.read_text().replace("[pool.main]\n", pool))
        return made


PEERS: Sequence[type[Peer]] = (EnvoyEjecting, TwemproxyEjecting, ShardproxyRehashing)


class Client:
    """Asks one thing at a time; comes back when it is thrown out. None: an error, or no reply."""

    def __init__(self, port: int) -> None:
        self.connect = lambda: socket.create_connection(("127.0.0.1", port), timeout=5)
        self.socket = self.connect()
        self.error = ""

    def ask(self, *args: str) -> Any:
        """The reply; an Exception for an error."""
        parser = hiredis.Reader(encoding="utf-8")
        try:
            self.socket.sendall(pack(*args))
            while (reply := parser.gets()) is False:
                if not (data := self.socket.recv(1 << 16)):
                    raise ConnectionError("closed")
                parser.feed(data)
        except OSError as error:
            self.socket.close()
            self.socket = self.connect()
            return error
        return reply

    def insist(self, *args: str) -> Any:
        """Again and again, until it is no error."""
        return until(lambda: [reply] if not isinstance(reply := self.ask(*args), Exception) else [])[0]


def pack(*args: str) -> bytes:
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%b\r\n" % (len(a), a.encode()) for a in args)


def until(what: Callable[[], Any]) -> Any:
    limit = time.monotonic() + PATIENCE
    while not (found := what()):
        if time.monotonic() > limit:
            raise BenchError("waited in vain")
        time.sleep(0.01)
    return found


class Stage:
    """Three fresh nodes and a peer before them; the node that suffers is the first."""

    def __init__(self, kind: type[Peer], home: Path, stack: contextlib.ExitStack) -> None:
        place = Path(tempfile.mkdtemp(dir=home))
        self.nodes = Nodes(place)
        stack.callback(self.nodes.stop)
        stack.callback(self.signal, signal.SIGCONT)  # called before stop
        self.peer = kind(place, self.nodes)
        self.peer.start()
        stack.callback(self.peer.stop)
        self.client = Client(self.peer.port)
        time.sleep(2.5)  # all have probed their nodes
        for number in range(COUNT):
            self.client.insist("SET", f"key:{number}", "1")
        self.mine: list[str] = sorted(Client(self.nodes.ports[0]).ask("KEYS", "key:*"))
        self.keys = [f"key:{number}" for number in range(COUNT)]
        self.others = sorted(set(self.keys) - set(self.mine))
        if not self.mine or not self.others:
            raise BenchError(f"{kind.name} has put no key on the first node, or all")

    @property
    def first(self) -> Process:
        return self.nodes.processes[0]

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(next(self.first.pids()), number)

    def misses(self, ports: Sequence[int]) -> int:
        """Reads of keys that these nodes do not have: reads that have moved."""
        told = "".join(ask(port, "INFO", "stats").decode() for port in ports)
        return sum(int(found) for found in re.findall(r"keyspace_misses:(\d+)", told))

    def reads(self) -> int:
        """Reads that the first node has answered."""
        told = ask(self.nodes.ports[0], "INFO", "stats").decode()
        return sum(int(found) for found in re.findall(r"keyspace_(?:hits|misses):(\d+)", told))


def outage(stage: Stage, number: int) -> str:
    """One client that only reads: errors, and when the last one came."""
    errors, last = 0, 0.0
    stage.signal(number)
    since = time.monotonic()
    turn = 0
    while time.monotonic() < since + 8:
        turn += 1
        if isinstance(stage.client.ask("GET", stage.keys[turn % COUNT]), Exception):
            errors, last = errors + 1, time.monotonic() - since
    return f"{errors}, {last:.1f} s" if errors else "0"


def killed(stage: Stage) -> str:
    return outage(stage, signal.SIGKILL)


def hung(stage: Stage) -> str:
    return outage(stage, signal.SIGSTOP)


def crowd(stage: Stage) -> str:
    """150 clients that pipeline any keys, 50 that pipeline others than the hung node's: the p99 of these."""
    before, meanwhile = asyncio.run(pipelines(stage))
    return f"{before:.1f} ms → {meanwhile:.1f} ms, {meanwhile / before:.1f} times"


async def pipelines(stage: Stage) -> tuple[float, float]:
    taken: list[tuple[float, float]] = []  # when it was asked, how long it took
    over = False

    async def one(number: int) -> None:
        mine = number < 50
        chance = random.Random(number)
        await asyncio.sleep(chance.random() * 0.1)
        while not over:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", stage.peer.port)
                parser = hiredis.Reader()
                while not over:
                    keys = chance.choices(stage.others if mine else stage.keys, k=8)
                    since = time.monotonic()
                    writer.write(b"".join(pack("GET", key) for key in keys))
                    left = len(keys)
                    while left:
                        if not (data := await reader.read(1 << 16)):
                            raise ConnectionError
                        parser.feed(data)
                        while parser.gets() is not False:
                            left -= 1
                    if mine:
                        taken.append((since, time.monotonic() - since))
                    await asyncio.sleep(chance.random() * 0.2)

    tasks = [asyncio.create_task(one(number)) for number in range(200)]
    await asyncio.sleep(1)
    begin = time.monotonic()
    await asyncio.sleep(4)
    stage.signal(signal.SIGSTOP)
    middle = time.monotonic()
    await asyncio.sleep(4)
    over = True
    end = time.monotonic()
    stage.signal(signal.SIGCONT)
    await asyncio.wait(tasks, timeout=5)
    for task in tasks:
        task.cancel()

    def p99(since: float, to: float) -> float:
        return 1000 * statistics.quantiles([took for at, took in taken if since <= at < to], n=100)[98]

    return p99(begin, middle), p99(middle, end)


def stumbles(stage: Stage) -> str:
    """Ten stops of 600 ms under eight clients: after how many reads went elsewhere, and how many did."""
    over = threading.Event()

    def reads(client: Client) -> None:
        turn = 0
        while not over.is_set():
            turn += 1
            client.ask("GET", stage.mine[turn % len(stage.mine)])

    threads = [threading.Thread(target=reads, args=(Client(stage.peer.port),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    put_out, before = 0, stage.misses(stage.nodes.ports[1:])
    moved = before
    for _ in range(10):
        time.sleep(1.5)
        stage.signal(signal.SIGSTOP)
        time.sleep(0.6)
        stage.signal(signal.SIGCONT)
        time.sleep(0.5)
        now_moved = stage.misses(stage.nodes.ports[1:])
        put_out, moved = put_out + (now_moved > moved), now_moved
    over.set()
    for thread in threads:
        thread.join()
    return f"{put_out}, {moved - before} reads"


def stale(stage: Stage) -> str:
    """Two outages of a node that hangs, with writes before, meanwhile and between."""
    keys = stage.mine
    stage.signal(signal.SIGSTOP)
    for key in keys:
        stage.client.insist("SET", key, "2")
    stage.signal(signal.SIGCONT)
    seen = stage.reads()

    def returned() -> bool:
        stage.client.ask("GET", keys[0])
        return stage.reads() > seen

    until(returned)
    time.sleep(3)
    first = sum(stage.client.insist("GET", key) == "1" for key in keys)
    for key in keys:
        stage.client.insist("SET", key, "3")
    stage.signal(signal.SIGSTOP)
    second = sum(stage.client.insist("GET", key) in ("1", "2") for key in keys)
    return f"{first} and {second} of {len(keys)}"


TRIALS: Sequence[tuple[str, Callable[[Stage], str], str]] = (
    ("killed: errors, last one after", killed, "0"),
    ("hung (SIGSTOP): errors, last one after", hung, "≤ 2, 1 s"),
    ("hung, 200 pipelining clients: p99 of the other shards' keys before → meanwhile", crowd, "≤ 2 times"),
    ("stopped for 600 ms ten times, 8 clients: times it was put out, reads that moved", stumbles, "0, 0"),
    ("stale values when it returns, and in a second outage", stale, "0 and 0"),
)


def measure(only: re.Pattern[str]) -> Iterator[list[str]]:
    """A row a trial."""
    with tempfile.TemporaryDirectory(prefix="shardproxy-failover-") as home:
        for title, trial, goal in TRIALS:
            if not only.search(title):
                continue
            row = [title]
            for kind in PEERS:
                print(f"{title}: {kind.name}", file=sys.stderr, flush=True)
                with contextlib.ExitStack() as stack:
                    try:
                        row.append(trial(Stage(kind, Path(home), stack)))
                    except BenchError as error:
                        row.append(str(error))
                print(f"  {row[-1]}", file=sys.stderr, flush=True)
            yield [*row, goal]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.failover", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="only trials whose title matches")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args()
    raise_open_files()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    header = [f"one of {len(NAMES)} nodes", *(kind.name for kind in PEERS), "goal"]
    table = report.markdown(header, list(measure(re.compile(options.only))))
    day = time.strftime("%Y-%m-%d")
    text = f"# Failover, measured\n\n`python -m tests.bench.failover`, {day}: {INTRODUCTION}"
    text += f"\n\n{report.machine(PEERS)}\n\n{table}\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


INTRODUCTION = """one client that only reads unless said otherwise, 500 ms
deadline. Envoy: outlier detection (2 consecutive), a Redis health check every second (2 to be out, 2 to be
back). twemproxy: auto_eject_hosts, failure limit 2, retry after 2 s. shardproxy: `rehash`, `invalidate`,
probes as by default. What moved is seen on the nodes."""


if __name__ == "__main__":
    main()
