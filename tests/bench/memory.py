"""Resident memory of a proxy: under 10,000 idle clients, and after 10,000 that pipelined 1 MB each and left.

Each figure comes from a fresh proxy that has been warmed by seeding. Resident memory leaves out what the
kernel holds for sockets; that is the same for every peer.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass

from tests.bench import keys
from tests.bench.peers import Peer
from tests.bench.processes import ROOT, BenchError

SETTLE_SECONDS = 60.0
FLOOD_SECONDS = 600.0


@dataclass(frozen=True)
class Footprint:
    """Bytes; `refused` counts the clients that the proxy closed before they had sent everything."""

    before: int
    idle: int  # with the clients connected, each having sent a command
    peak: int
    after: int  # when they have left and the proxy has come to rest
    refused: int


def measure(peer: Peer, kind: str, count: int) -> Footprint:
    """`kind` is "idle" or "flood"; starts and stops the peer."""
    process, start = peer.start(), keys.prefix(peer.name, 4096)
    try:
        keys.seed(peer.port, start, 1000, 4096)
        keys.verify(peer.port, start, 1000, 4096)
        before = _rest(peer)
        process.reset_peak()
        argv = [sys.executable, "-m", "tests.bench.crowd", str(peer.port), kind, str(count), start]
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT
        ) as crowd:
            try:
                _expect(crowd, "ready")
                idle = _rest(peer)
                _say(crowd)
                refused = int(_expect(crowd, "done"))
            finally:
                _say(crowd)
                try:
                    crowd.wait(FLOOD_SECONDS if sys.exc_info()[0] is None else 5)
                except subprocess.TimeoutExpired:
                    crowd.kill()
        after = _rest(peer)
        return Footprint(before, idle, process.peak(), after, refused)
    finally:
        peer.stop()


def _rest(peer: Peer) -> int:
    """Resident bytes once the proxy has used no CPU to speak of for a second."""
    deadline, cpu = time.monotonic() + SETTLE_SECONDS, peer.cpu_seconds()
    while time.monotonic() < deadline:
        time.sleep(1)
        last, cpu = cpu, peer.cpu_seconds()
        if cpu - last < 0.02:
            break
    return peer.process.rss() if peer.process else 0


def _say(crowd: subprocess.Popen[str]) -> None:
    if crowd.stdin and crowd.poll() is None:
        crowd.stdin.write("\n")


def _expect(crowd: subprocess.Popen[str], word: str) -> str:
    line = crowd.stdout.readline() if crowd.stdout else ""
    if not line.startswith(word):
        raise BenchError(f"the crowd of clients said {line!r} instead of {word!r}")
    return line.removeprefix(word).strip()
