"""`shardproxy check` against real servers, right and wrong ones."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shardproxy.cli import main
from shardproxy.proxy.embedded import free_port

Start = Callable[..., int]


def program(name: str, package: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is missing: apt-get install {package}"
    return found


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start("redis-server", "redis-server", "--port") runs it on a free port, which comes last; the port."""
    running: list[subprocess.Popen[bytes]] = []

    def start(name: str, package: str, *arguments: str) -> int:
        port = free_port()
        command = [program(name, package), *arguments, str(port)]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        running.append(process)
        while not accepts(port):
            assert process.poll() is None, f"{command} ended with {process.returncode}"
        return port

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def redis(start: Start) -> Start:
    def redis(*arguments: str) -> int:
        return start(
            "redis-server", "redis-server", "--bind", "127.0.0.1", "--save", "", *arguments, "--port"
        )

    return redis


@pytest.fixture
def check(tmp_path: Path) -> Callable[[str], Result]:
    def check(shards: str) -> Result:
        file = tmp_path / "shardproxy.toml"
        file.write_text(f'[pool.main]\ntimeout = "300ms"\n[pool.main.shards]\n{shards}')
        file.chmod(0o600)
        return CliRunner().invoke(main, ["check", "-c", str(file)])

    return check


def test_all_is_well(redis: Start, check: Callable[[str], Result], tmp_path: Path) -> None:
    plain, locked = redis(), redis("--requirepass", "sesame")
    (tmp_path / "secret").write_text("sesame\n")
    result = check(
        f'a = "redis://127.0.0.1:{plain}"\n'
        f'b = {{ primary = "redis://127.0.0.1:{locked}", password_file = "{tmp_path}/secret" }}'
    )
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [(row[0], row[1], row[3], row[-1]) for row in rows] == [
        ("a", f"127.0.0.1:{plain}", "master", "ok"),
        ("b", f"127.0.0.1:{locked}", "master", "ok"),
    ]
    assert result.stderr == ""


def test_every_fault_is_named(redis: Start, start: Start, check: Callable[[str], Result]) -> None:
    locked = redis("--requirepass", "sesame")
    plain = redis()
    replica = redis("--replicaof", "127.0.0.1", str(plain))
    cluster = redis("--cluster-enabled", "yes")
    memcached = start("memcached", "memcached", "-u", "nobody", "-l", "127.0.0.1", "-p")
    dead = free_port()
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as web:
        thread = threading.Thread(target=answer_http, args=(web,), daemon=True)
        thread.start()
        result = check(
            f"""
            locked = "redis://127.0.0.1:{locked}"
            wrong = {{ primary = "redis://localhost:{locked}", password = "hunter2" }}
            needless = {{ primary = "redis://127.0.0.1:{plain}", password = "hunter2" }}
            fine = "redis://localhost:{plain}"
            again = "redis://127.1:{plain}"
            replica = "redis://127.0.0.1:{replica}"
            cluster = "redis://127.0.0.1:{cluster}"
            memcached = "redis://127.0.0.1:{memcached}"
            web = "redis://127.0.0.1:{web.getsockname()[1]}"
            silent = "redis://127.0.0.1:{silent.getsockname()[1]}"
            dead = "redis://127.0.0.1:{dead}"
            """
        )
    assert result.exit_code == 1
    summary, *lines = result.stderr.splitlines()
    faults = {line.partition(" (")[0]: line.partition("): ")[2] for line in lines}
    expected = {
        "locked": "it needs a password",
        "wrong": "it refuses the username and password",
        "needless": "it has no password, but the configuration gives one",
        "again": "the same server as fine",
        "replica": f"it is a replica of 127.0.0.1:{plain}",
        "cluster": "it runs in Cluster mode",
        "memcached": "it does not answer as a Redis server does",
        "web": "it does not answer as a Redis server does",
        "silent": "no answer in",
        "dead": "no connection: Connection refused",
    }
    assert summary == f"shardproxy: {len(expected)} faults"
    assert faults.keys() == expected.keys()
    for shard, words in expected.items():
        assert faults[shard].startswith(words), shard
    assert "hunter2" not in result.output + result.stderr
    states = {line.split()[0]: line.split()[-1] for line in result.stdout.splitlines()[1:]}
    assert states == {"fine": "ok"} | dict.fromkeys(expected, "fault")


def answer_http(server: socket.socket) -> None:
    """A web server, as one that is there by mistake."""
    client, _ = server.accept()
    with client:
        client.recv(1000)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def test_a_node_that_loses_its_server_is_found(redis: Start, check: Callable[[str], Result]) -> None:
    port = redis()
    assert check(f'a = "redis://127.0.0.1:{port}"').exit_code == 0
    done = subprocess.run(
        [program("redis-cli", "redis-tools"), "-p", str(port), "info", "server"],
        capture_output=True,
        text=True,
    )
    pid = int(done.stdout.partition("process_id:")[2].split()[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        assert "no answer in" in check(f'a = "redis://127.0.0.1:{port}"').stderr
    finally:
        os.kill(pid, signal.SIGCONT)


def test_as_a_program(redis: Start, tmp_path: Path) -> None:
    (tmp_path / "shardproxy.toml").write_text(f'[pool.main.shards]\na = "redis://127.0.0.1:{redis()}"')
    command = [sys.executable, "-m", "shardproxy", "check"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[-1] == "ok"
