"""A child process seen from outside: its CPU, its memory, its end.

CPU is the process's own clock (clock_getcpuclockid(3) spelled out): nanoseconds of user and system
time over all threads, ended ones included. /proc/PID/stat counts in ticks of 10 ms, which is too coarse.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 15.0


class BenchError(Exception):
    """The benchmark cannot go on, or would measure something else than it says."""


def need(program: str, package: str) -> str:
    """The path of a program; raises BenchError naming what to install."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if not found:
        raise BenchError(f"{program} is not installed: {package}")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def raise_open_files(wanted: int = 65536) -> int:
    """Raise RLIMIT_NOFILE (children inherit it); returns what was got."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # only root raises the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, soft), max(wanted, hard)))
        return max(wanted, soft)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Process:
    """A running child that listens on `port`; its output goes to `log`.

    Raises BenchError with the end of the log when it does not answer TCP in 15 seconds.
    """

    def __init__(self, argv: list[str], port: int, log: Path) -> None:
        self.argv, self.port, self.log = argv, port, log
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT
            )
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while self._child.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        tail = self.log.read_text(errors="replace")[-2000:]
        raise BenchError(f"{' '.join(self.argv)} does not listen on port {self.port}:\n{tail}")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after five seconds."""
        if self._child.poll() is None:
            self._child.terminate()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def pids(self) -> Iterator[int]:
        """The process and all its descendants (workers)."""
        todo = [self._child.pid]
        while todo:
            pid = todo.pop()
            yield pid
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    todo += map(int, children.read_text().split())

    def cpu_seconds(self) -> float:
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids())

    def rss(self) -> int:
        """Resident bytes now (smaps_rollup: exact, where VmRSS may lag)."""
        return sum(_kilobytes(pid, "smaps_rollup", "Rss") for pid in self.pids()) * 1024

    def peak(self) -> int:
        """Highest resident bytes since `reset_peak`."""
        return sum(_kilobytes(pid, "status", "VmHWM") for pid in self.pids()) * 1024

    def reset_peak(self) -> None:
        for pid in self.pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def _kilobytes(pid: int, file: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.M)
    return int(found[1]) if found else 0


def busy_percent(seconds: float = 1.0) -> float:
    """How much of all cores is in use now, by anything."""

    def ticks() -> tuple[int, int]:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return sum(fields), fields[3] + fields[4]

    total, idle = ticks()
    time.sleep(seconds)
    total, idle = ticks()[0] - total, ticks()[1] - idle
    return 100 * (1 - idle / total) if total else 0.0


def output_of(*argv: str) -> str:
    """What a program prints, both streams, stripped; "" when it cannot be run."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, cwd=ROOT, env=os.environ)
    except OSError:
        return ""
    return (done.stdout + done.stderr).strip()
