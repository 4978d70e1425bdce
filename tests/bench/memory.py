"""Resident memory of a proxy: under 10,000 idle clients, and after 10,000 that pipelined 1 MB each and left.

Each figure comes from a fresh proxy that has been warmed by seeding. Resident memory leaves out what the
kernel holds for sockets; that is the same for every peer. A proxy without a budget can take all the
machine's memory in the flood: past CEILING the clients are killed, and the figure says so.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
from dataclasses import dataclass

from tests.bench import keys
from tests.bench.peers import Peer
from tests.bench.processes import ROOT, BenchError, Process

CEILING = 4 << 30
QUIET_SECONDS = 0.5
LEFT_SECONDS = 10.0  # given to a proxy to return memory, once its clients have left
NEAR = 1.05  # close enough to before to look no further
SETTLE_SECONDS = 60.0
FLOOD_SECONDS = 300.0
WARM_KEYS = 1000


@dataclass(frozen=True)
class Footprint:
    """Bytes; `refused` counts the clients that the proxy closed before they had sent everything."""

    before: int
    idle: int  # with the clients connected, each having sent a command
    peak: int
    after: int  # when they have left and the proxy has come to rest
    refused: int
    stopped: bool  # the proxy passed CEILING and the clients were killed


def measure(peer: Peer, kind: str, count: int) -> Footprint:
    """`kind` is "idle" or "flood"; starts and stops the peer."""
    process, start = peer.start(), keys.prefix(peer.name, 4096)
    argv = [sys.executable, "-m", "tests.bench.crowd", str(peer.port), kind, str(count), start]
    try:
        keys.seed(peer.port, start, WARM_KEYS, 4096)
        keys.verify(peer.port, start, WARM_KEYS, 4096)
        before = _at_rest(process)
        process.reset_peak()
        with subprocess.Popen(argv, stdin=-1, stdout=-1, text=True, bufsize=1, cwd=ROOT) as crowd:
            try:
                _answer(crowd, process, "ready")
                idle = _at_rest(process)
                print(file=crowd.stdin)
                done = _answer(crowd, process, "done")
            finally:
                crowd.kill()
        after, deadline = _at_rest(process), time.monotonic() + LEFT_SECONDS
        while after > before * NEAR and time.monotonic() < deadline:
            after = _at_rest(process)
        return Footprint(before, idle, process.peak(), after, int(done or 0), done is None)
    finally:
        peer.stop()


def _at_rest(process: Process) -> int:
    """Resident bytes once the proxy has used next to no CPU for a while."""
    deadline, cpu = time.monotonic() + SETTLE_SECONDS, process.cpu_seconds()
    while time.monotonic() < deadline:
        time.sleep(QUIET_SECONDS)
        last, cpu = cpu, process.cpu_seconds()
        if cpu - last < QUIET_SECONDS / 50:
            break
    return process.rss()


def _answer(crowd: subprocess.Popen[str], process: Process, word: str) -> str | None:
    """What the crowd says after `word`, None when the proxy passed CEILING first."""
    assert crowd.stdout
    deadline = time.monotonic() + FLOOD_SECONDS
    while not select.select([crowd.stdout], [], [], 0.05)[0]:
        if process.peak() > CEILING:
            return None
        if time.monotonic() > deadline:
            raise BenchError(f"the clients of the memory measure took over {FLOOD_SECONDS:.0f} s")
    line = crowd.stdout.readline()
    if not line.startswith(word):
        raise BenchError(f"the clients of the memory measure said {line!r} instead of {word!r}")
    return line.removeprefix(word).strip()
