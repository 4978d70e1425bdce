"""One sample: a load against one proxy, what came of it, and proof that it was what it says.

The proxy's CPU is read before and after, so connecting is in it (under 1 % of every load). The nodes'
own counters say whether every request reached a node and found its key.
"""

from __future__ import annotations

import csv
import json
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench import keys
from tests.bench.peers import Nodes, Peer
from tests.bench.processes import BenchError, need, output_of

GENERATOR_SECONDS = 120.0

Sample = dict[str, float]
"""cpu (proxy microseconds a request, or a key), rps (a second), p50 and p99 (microseconds)."""


@dataclass(frozen=True)
class Load:
    """`keys_each` keys a command of `verb` (SET takes one), `depth` in flight on each of `clients`.

    With a `rate` (a second) the load is open: due at that rate whether the proxy keeps up or not.
    """

    verb: str
    clients: int = 50
    depth: int = 1
    size: int = 64
    requests: int = 60_000
    keys_each: int = 1
    rate: int = 0

    def scaled(self, factor: float) -> Load:
        least = self.clients * self.depth * 2
        return replace(self, requests=max(int(self.requests * factor), least))

    def command(self, prefix: str) -> list[str]:
        names = [f"{prefix}__rand_int__"] * self.keys_each
        return [self.verb, *names, *(["x" * self.size] if self.verb == "SET" else [])]


class Generators:
    """The two load generators: redis-benchmark, and openloop.c compiled into `home`."""

    def __init__(self, home: Path) -> None:
        self.benchmark = need("redis-benchmark", "apt install redis-tools")
        self.openloop = str(home / "openloop")
        source = Path(__file__).with_name("openloop.c")
        gcc = need("gcc", "apt install gcc")
        done = subprocess.run(
            [gcc, "-O2", "-o", self.openloop, source, "-lm"], capture_output=True, text=True
        )
        if done.returncode:
            raise BenchError(f"openloop.c does not compile:\n{done.stderr}")

    def sample(self, load: Load, peer: Peer, nodes: Nodes, key_count: int) -> Sample:
        """Run `load` once; raises BenchError on a miss, an error reply, or requests that vanish."""
        before, cpu = nodes.counters(), peer.cpu_seconds()
        prefix = keys.prefix(peer.name, load.size)
        run = self._paced if load.rate else self._closed
        requests, sample = run(load, peer.port, prefix, key_count)
        cpu = peer.cpu_seconds() - cpu
        after = nodes.counters()
        grown = {name: after[name] - before[name] for name in after}
        wanted = requests * load.keys_each
        if grown["misses"] or (load.verb != "SET" and grown["hits"] < wanted) or grown["commands"] < requests:
            raise BenchError(
                f"{load.verb} through {peer.name}: {requests} requests, but the nodes saw {grown}"
            )
        sample["cpu"] = cpu / wanted * 1e6
        return sample

    def _closed(self, load: Load, port: int, prefix: str, key_count: int) -> tuple[int, Sample]:
        options = f"-p {port} -c {load.clients} -P {load.depth} -n {load.requests} -r {key_count} --csv"
        argv = [self.benchmark, *options.split(), "--precision", "3", *load.command(prefix)]
        rows = list(csv.DictReader(_run(argv).splitlines()))
        if len(rows) != 1:
            raise BenchError(f"redis-benchmark said nothing that can be read: {rows}")
        row = rows[0]
        return load.requests, {
            "rps": float(row["rps"]),
            "p50": float(row["p50_latency_ms"]) * 1000,
            "p99": float(row["p99_latency_ms"]) * 1000,
        }

    def _paced(self, load: Load, port: int, prefix: str, key_count: int) -> tuple[int, Sample]:
        seconds = load.requests / load.rate
        argv = [
            self.openloop,
            port,
            load.clients,
            load.rate,
            seconds,
            seconds / 4,
            prefix,
            key_count,
            load.size,
        ]
        said = json.loads(_run([str(part) for part in argv]))
        return said["sent"], {"rps": said["counted"] / seconds, "p50": said["p50_us"], "p99": said["p99_us"]}


def _run(argv: list[str]) -> str:
    with tempfile.TemporaryFile("w+") as errors:
        try:
            done = subprocess.run(
                argv, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=GENERATOR_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"{' '.join(argv)[:200]} took over {GENERATOR_SECONDS:.0f} s") from None
        errors.seek(0)
        if done.returncode:
            raise BenchError(f"{' '.join(argv)[:200]} failed: {done.stdout[-500:]}{errors.read()[-500:]}")
    return done.stdout


def versions() -> str:
    return output_of(need("redis-benchmark", "apt install redis-tools"), "--version").split()[-1]
