"""CPU milliseconds (user and system) of starting shardproxy's command line and of importing it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from tests.bench.processes import ROOT, BenchError

COMMANDS = {
    "python -c pass (for comparison)": ["-c", "pass"],
    "import shardproxy": ["-c", "import shardproxy"],
    "shardproxy --help": ["-m", "shardproxy", "--help"],
}
GOALS = {"import shardproxy": 60.0, "shardproxy --help": 150.0}


def cpu_ms(arguments: list[str]) -> float:
    """The whole process, the interpreter's own start included."""
    child = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise BenchError(f"python {' '.join(arguments)} exits with {child.returncode}")
    return (usage.ru_utime + usage.ru_stime) * 1000


def measure(rounds: int = 7) -> dict[str, float]:
    """Title -> median over `rounds`, after one unmeasured run that writes the byte code."""
    for arguments in COMMANDS.values():
        cpu_ms(arguments)
    return {
        title: statistics.median(cpu_ms(arguments) for _ in range(rounds))
        for title, arguments in COMMANDS.items()
    }
