"""Sessions beside Flask-Session and starsessions in user-space instructions: exact on a busy machine, too.

`python -m tests.bench.sessions_instructions` runs the apps of tests/bench/sessions under valgrind
(callgrind), one after the other, and counts what a request executes in this process: interpreter, extensions,
libc; not the kernel. Some minutes.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from servers import RedisNode

from tests.bench.report import markdown

COLLECTED = re.compile(r"Collected : (\d+)")
WARM = 10  # requests before it counts: connections, scripts, caches


def work(number: int, port: int, path: str, requests: int) -> None:
    """In the child. callgrind collects inside functools.reduce, which nothing else here calls."""
    from tests.bench.sessions import PAIRS

    kinds = [kind for kinds in PAIRS for kind in kinds]
    app = kinds[number](port)
    app.ask("/seed")
    for each in range(WARM):
        app.ask(path.replace("#", str(each)))
    gc.collect()
    gc.freeze()
    functools.reduce(lambda _, each: app.ask(path.replace("#", str(each))), range(requests), "")
    os._exit(0)


def counted(number: int, port: int, path: str, requests: int) -> float:
    """Thousands of instructions a request."""
    command = [
        "valgrind", "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=functools_reduce",
        "--callgrind-out-file=/dev/null", sys.executable, "-m", "tests.bench.sessions_instructions",
        "--child", str(number), "--port", str(port), "--path", path, "--requests", str(requests),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"})
    found = COLLECTED.search(done.stderr)
    if found is None:
        raise SystemExit(done.stderr[-2000:])
    return int(found[1]) / requests / 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.sessions_instructions", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--path", default="/set/n/#", help="/read: only read; /set/n/#: read and write")
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        work(options.child, options.port, options.path, options.requests)
    rows = []
    with RedisNode() as server:
        for framework, first, peer in (("Flask", 0, "Flask-Session"), ("ASGI", 3, "starsessions")):
            bare, theirs, ours = (
                counted(first + each, server.port, options.path, options.requests) for each in range(3)
            )
            rows.append([
                framework, peer, f"{theirs - bare:.0f}", f"{ours - bare:.0f}",
                f"{(ours - bare) / (theirs - bare):.2f}",
            ])  # fmt: skip
            print(f"{framework}: without sessions {bare:.0f}", file=sys.stderr, flush=True)
    print(markdown(["", "peer", "the peer's", "shardproxy's", "ratio"], rows))


if __name__ == "__main__":
    main()
