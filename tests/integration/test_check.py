"""`shardproxy check` against real servers, right and wrong ones."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from impostors import SomethingElse
from servers import MemcachedNode, RedisNode, free_port, program, until

from shardproxy.cli import main

Start = Callable[..., RedisNode]


@pytest.fixture
def redis() -> Iterator[Start]:
    """redis("--requirepass", "sesame") runs one until the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *options: stack.enter_context(RedisNode(*options))


@contextlib.contextmanager
def memcached() -> Iterator[int]:
    """Its port."""
    port = free_port()
    command = [program("memcached", "memcached"), "-u", "nobody", "-l", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        assert process.poll() is None, f"memcached ended with {process.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as client:
            client.sendall(b"version\r\n")
            return client.recv(100).startswith(b"VERSION")
        return False

    try:
        until(answers, "memcached")
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def check(tmp_path: Path) -> Callable[[str], Result]:
    def check(shards: str) -> Result:
        file = tmp_path / "shardproxy.toml"
        file.write_text(f'[pool.main]\ntimeout = "300ms"\n[pool.main.shards]\n{shards}')
        file.chmod(0o600)
        return CliRunner().invoke(main, ["check", "-c", str(file)])

    return check


def test_all_is_well(redis: Start, check: Callable[[str], Result], tmp_path: Path) -> None:
    plain, locked = redis().port, redis("--requirepass", "sesame").port
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


def test_every_fault_is_named(redis: Start, check: Callable[[str], Result]) -> None:
    locked = redis("--requirepass", "sesame").port
    plain = redis().port
    replica = redis("--replicaof", "127.0.0.1", str(plain)).port
    cluster = redis("--cluster-enabled", "yes").port
    dead = free_port()
    with (
        memcached() as other,
        socket.create_server(("127.0.0.1", 0)) as silent,
        socket.create_server(("127.0.0.1", 0)) as web,
    ):
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
            memcached = "redis://127.0.0.1:{other}"
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


def test_memcacheds_that_can_serve_and_that_cannot(redis: Start, check: Callable[[str], Result]) -> None:
    with MemcachedNode() as fine, SomethingElse(b"VERSION 1.5.6\r\n") as old:
        shards = {"fine": fine.port, "old": old.port, "redis": redis().port, "dead": free_port()}
        result = check("\n".join(f'{name} = "memcached://127.0.0.1:{port}"' for name, port in shards.items()))
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "shardproxy: 3 faults",
        f"old ({old.address}): it is memcached 1.5.6: a shard's must be 1.6 or newer, "
        "which speaks the meta protocol",
        f"redis (127.0.0.1:{shards['redis']}): it does not answer as a memcached does: is the address right?",
        f"dead (127.0.0.1:{shards['dead']}): no connection: Connection refused",
    ]
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [(row[0], row[2], row[3], row[-1]) for row in rows[:2]] == [
        ("fine", rows[0][2], "memcached", "ok"), ("old", "1.5.6", "memcached", "fault")
    ]  # fmt: skip
    assert rows[0][2].startswith("1.6")


def answer_http(server: socket.socket) -> None:
    """A web server, as one that is there by mistake."""
    client, _ = server.accept()
    with client:
        client.recv(1000)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def test_a_node_that_loses_its_server_is_found(redis: Start, check: Callable[[str], Result]) -> None:
    node = redis()
    assert check(f'a = "redis://{node.address}"').exit_code == 0
    node.pause()
    try:
        assert "no answer in" in check(f'a = "redis://{node.address}"').stderr
    finally:
        node.resume()


def test_as_a_program(redis: Start, tmp_path: Path) -> None:
    (tmp_path / "shardproxy.toml").write_text(f'[pool.main.shards]\na = "redis://{redis().address}"')
    command = [sys.executable, "-m", "shardproxy", "check"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[-1] == "ok"
