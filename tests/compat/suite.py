"""redis-py's suite: fetched from PyPI into build/compat, with an environment of its own, run file by file.

The version is the one that is installed here. Nothing of it is committed. A run is a pytest of its own with
recorder.py loaded; a test that cannot be stopped is named, and the rest of its file run without it.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
BUILD = HERE.parent.parent / "build" / "compat"
VERSION = importlib.metadata.version("redis")
SOURCE = BUILD / f"redis-{VERSION}"
PYTHON = BUILD / "venv" / "bin" / "python"
OURS = BUILD / "ours"  # this project's package, and what it needs beyond redis-py, for runs of its client
NEEDS = [
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "packaging",
    "xxhash",
    "numpy",
    "pybreaker",
    "redis-entraid",
]

NEEDED_BY_US = ["hiredis", "msgspec", "click"]

ONE_TEST = 10  # seconds
STUCK = 60  # seconds without any progress, until the process is killed

# Left out: cluster, sentinel, TLS, modules, other services, and what talks to no server at all
FILES = [
    f"tests/{folder}test_{name}.py"
    for name in (
        *("commands", "pipeline", "pubsub", "lock", "scripting", "connection", "connection_pool", "connect"),
        *("client", "encoding", "monitor", "hash", "retry", "credentials", "keyspace_notifications"),
    )
    for folder in ("", "test_asyncio/")
] + [
    f"tests/test_{name}.py"
    for name in (
        *("function", "cache", "multiprocessing", "max_connections_error", "legacy_responses_arg", "himport"),
    )
]
# What tells nothing about a server: it fails now and then wherever it runs, or measures the machine
LEFT_OUT = ["tests/test_himport.py"]
FILES = [file for file in FILES if file not in LEFT_OUT]
# Where the fixtures' clients are what is tested
CLIENT_FILES = [
    file
    for file in FILES
    if re.search("test_(commands|pipeline|pubsub|lock|scripting|encoding|monitor|func|keyspace|hash)", file)
]


@dataclass
class Outcome:
    """Of one test: passed, failed, skipped or hung; what it said when it failed."""

    outcome: str
    text: str = ""
    seconds: float = 0.0
    asked: bool = False  # a client of ours was made in it, where the suite is run with one


class Way(NamedTuple):
    """How the suite is run. ours: our package and hiredis beside it; plugins: of this folder."""

    ours: bool = False
    plugins: tuple[str, ...] = ("recorder",)
    environment: Mapping[str, str] = {}


PLAIN = Way()


def fetch() -> None:
    """The suite and its environment, unless they are there."""
    BUILD.mkdir(parents=True, exist_ok=True)
    if not SOURCE.exists():
        wanted = [f"redis=={VERSION}", "--no-deps", "--no-binary", ":all:", "-d", str(BUILD)]
        subprocess.run([sys.executable, "-m", "pip", "-q", "download", *wanted], check=True)
        with tarfile.open(BUILD / f"redis-{VERSION}.tar.gz") as archive:
            archive.extractall(BUILD, filter="data")
    if not PYTHON.exists():
        venv.create(BUILD / "venv", with_pip=True)
        subprocess.run([PYTHON, "-m", "pip", "-q", "install", *NEEDS], check=True)


def fetch_ours() -> None:
    """What a run of the client needs in the suite's environment; apart, for redis-py sees hiredis, too."""
    if not OURS.exists():
        command = [PYTHON, "-m", "pip", "-q", "install", "--target", OURS, *NEEDED_BY_US]
        subprocess.run(command, check=True)
    if not (OURS / "shardproxy").exists():
        (OURS / "shardproxy").symlink_to(HERE.parent.parent / "shardproxy")


def run(
    port: int, nodes: Sequence[int], proto: int, what: Sequence[str], way: Way = PLAIN
) -> dict[str, Outcome]:
    """Runs files or single tests against `port`; nodes: the ports of the Redis behind it, or itself."""
    found: dict[str, Outcome] = {}
    for file in dict.fromkeys(each.partition("::")[0] for each in what):
        chosen = [each for each in what if each.partition("::")[0] == file]
        found |= _one_file(port, nodes, proto, chosen, way)
    return found


def _one_file(
    port: int, nodes: Sequence[int], proto: int, what: Sequence[str], way: Way
) -> dict[str, Outcome]:
    results = BUILD / f"results-{os.getpid()}.jsonl"
    results.unlink(missing_ok=True)
    found: dict[str, Outcome] = {}
    while True:
        command = [
            *(
                str(PYTHON),
                "-m",
                "pytest",
                "-q",
                *(part for plugin in way.plugins for part in ("-p", plugin)),
                "-p",
                "no:cacheprovider",
                "-p",
                "no:warnings",
            ),
            *(
                "--tb=native",
                "--redis-url",
                f"redis://127.0.0.1:{port}/0",
                "--redis-mod-url",
                "redis://127.0.0.1:1",
            ),
            *("--protocol", str(proto), f"--timeout={ONE_TEST}", "--timeout-method=signal"),
            *(f"--deselect={test}" for test in found),
            *what,
        ]
        environment = os.environ | {
            **way.environment,
            "PYTHONPATH": os.pathsep.join(map(str, [HERE, *([OURS] if way.ours else [])])),
            "COMPAT_RESULTS": str(results),
            "COMPAT_NODES": ",".join(map(str, nodes)),
        }
        with (BUILD / "pytest.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=SOURCE, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
            whole = _wait(process, results)
        before = len(found)
        found, running = read(results)
        if whole and running is None:  # a time limit may end the process as well
            return found
        if running is not None:
            found[running] = Outcome("hung", "the whole process had to be killed")
            with results.open("a") as file:
                record = {"test": running, "when": "call", "outcome": "hung", "text": found[running].text}
                file.write(json.dumps(record) + "\n")
        if len(found) == before:
            raise RuntimeError(f"pytest got nowhere with {what}: see {BUILD / 'pytest.log'}")


def _wait(process: "subprocess.Popen[bytes]", results: Path) -> bool:
    """True when the session came to its end; False when it crashed, or was killed as nothing happened."""
    size = -1
    while True:
        try:
            return process.wait(STUCK) in (0, 1, 5)
        except subprocess.TimeoutExpired:
            now = results.stat().st_size if results.exists() else 0
            if now == size:
                process.kill()
                process.wait()
                return False
            size = now


def read(results: Path) -> tuple[dict[str, Outcome], str | None]:
    """What a file of results says; and the test that had begun and did not end."""
    found: dict[str, Outcome] = {}
    running = None
    for line in results.read_text().splitlines() if results.exists() else ():
        record = json.loads(line)
        if "begun" in record:
            running = record["begun"]
            continue
        if "asked" in record:
            found.setdefault(record["asked"], Outcome("passed")).asked = True
            continue
        test = found.setdefault(record["test"], Outcome("passed"))
        test.seconds += record.get("seconds", 0.0)
        if record["outcome"] != "passed" and test.outcome == "passed":
            hung = record["outcome"] == "hung" or record["text"].startswith("Failed: Timeout")
            test.outcome, test.text = ("hung" if hung else record["outcome"]), record["text"]
        if record["when"] == "teardown" or record["outcome"] == "hung":
            running = None
    return found, running
