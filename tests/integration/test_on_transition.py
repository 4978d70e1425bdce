"""`on_transition`: what a program and a URL are told, how they fail, and that no secret goes along."""

import contextlib
import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from servers import ProxyProcess, redis_nodes, shards_of, toml, until

from shardproxy.config import (
    Config,
    KeyConfig,
    NodeTlsConfig,
    PoolConfig,
    SessionsConfig,
    ShardConfig,
    TlsConfig,
    UserConfig,
)
from shardproxy.proxy import transitions
from shardproxy.proxy.transitions import HookFailed, Transitions, hook_of, password_variables

# --- programs


def script(folder: Path, text: str) -> str:
    path = folder / "hook"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def config_with(hook: str, **pool: Any) -> Config:
    shards = {"a": ShardConfig(primary="redis://127.0.0.1:7001", password_env="SHARD_SECRET")}
    return Config(on_transition=hook, pool={"main": PoolConfig(shards=shards, **pool)})


async def test_a_program_gets_json_and_no_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POOL_SECRET", "SHARD_SECRET", "HARMLESS"):
        monkeypatch.setenv(name, "x")
    out = tmp_path / "out"
    config = config_with(script(tmp_path, f"cat > {out}; env > {out}.env"), password_env="POOL_SECRET")
    hook = hook_of(config, password_variables(config))
    assert hook is not None
    await hook(b'{"to":"out"}')
    assert out.read_bytes() == b'{"to":"out"}'
    assert "HARMLESS" in (tmp_path / "out.env").read_text()
    assert "SECRET" not in (tmp_path / "out.env").read_text()


async def test_nor_passwords_that_a_reload_has_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor those that the configuration before it named."""
    for name in ("POOL_SECRET", "SHARD_SECRET", "NEW_SECRET"):
        monkeypatch.setenv(name, "x")
    config = config_with(script(tmp_path, f"env > {tmp_path}/env"), password_env="POOL_SECRET")
    hidden = password_variables(config)
    hook = hook_of(config, hidden)
    Transitions(lambda *_, **__: None, hook, hidden=hidden).hide(config_with("", password_env="NEW_SECRET"))
    assert hook is not None
    await hook(b"{}")
    assert "SECRET" not in (tmp_path / "env").read_text()


@pytest.mark.parametrize(
    ("text", "why"), [("exit 3", "exit status 3"), ("exit 0", None), ("kill -9 $$", "-9")]
)
async def test_how_a_program_ends(tmp_path: Path, text: str, why: str | None) -> None:
    running = transitions.run(script(tmp_path, text), b"x" * (1 << 20), dict(os.environ))
    if why is None:
        await running
        return
    with pytest.raises(HookFailed, match=why):
        await running


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HookFailed, match="No such file"):
        await transitions.run(str(tmp_path / "none"), b"", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(HookFailed, match="Permission denied"):
        await transitions.run(str(tmp_path / "file"), b"", {})


async def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    path = script(tmp_path, f"sleep 1000 & echo $! > {pids}; wait")
    with pytest.raises(HookFailed, match="killed after"):
        await transitions.run(path, b"", dict(os.environ), limit=0.5)
    child = int(pids.read_text())
    stat = Path(f"/proc/{child}/stat")
    assert not stat.exists() or stat.read_text().split()[2] in "ZX"


# --- URLs


class Receiver(http.server.BaseHTTPRequestHandler):
    got: ClassVar[list[tuple[str, str | None, bytes]]] = []
    status = 204

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((self.path, self.headers["Content-Type"], body))
        self.send_response(self.status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[tuple[str, type[Receiver]]]:
    kind = type("Fresh", (Receiver,), {"got": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/token", kind
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_url_gets_a_post_of_json(receiver: tuple[str, type[Receiver]]) -> None:
    url, kind = receiver
    hook = hook_of(config_with(url), ())
    assert hook is not None
    await hook(b'{"to":"out"}')
    assert kind.got == [("/token", "application/json", b'{"to":"out"}')]


@pytest.mark.parametrize("status", [302, 307, 404, 500])
async def test_anything_but_success_fails_and_is_not_followed(
    receiver: tuple[str, type[Receiver]], status: int
) -> None:
    url, kind = receiver
    kind.status = status
    hook = hook_of(config_with(url), ())
    assert hook is not None
    with pytest.raises(HookFailed, match=f"HTTP status {status}"):
        await hook(b"{}")
    assert len(kind.got) == 1


async def test_a_url_that_dribbles_is_given_up_and_ties_up_few_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of its bytes comes in time."""
    monkeypatch.setattr(transitions, "THREADS", 3)
    ended = threading.Event()

    def dribble(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not ended.wait(0.02):
                connection.sendall(b"x")

    def take(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=dribble, args=(listener.accept()[0],)).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        taking = threading.Thread(target=take, args=(listener,))
        taking.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/token"
        try:
            for _ in range(3):
                with pytest.raises(HookFailed, match=r"no answer in 0\.1 s"):
                    await transitions.post_in_time(url, b"{}", 0.1)
            with pytest.raises(HookFailed, match="too many before it"):
                await transitions.post_in_time(url, b"{}", 0.1)
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            taking.join()
    until(lambda: not any(thread.name == transitions.HOOK_THREAD for thread in threading.enumerate()))


def test_every_variable_that_holds_a_secret_is_hidden() -> None:
    shard = ShardConfig(primary="redis://127.0.0.1:7001", password_env="SHARD")
    config = Config(
        tls=TlsConfig(
            key_password_env="TLS", sni={"host": KeyConfig(cert="c", key="k", key_password_env="SNI")}
        ),
        users={"app_env": UserConfig(acl="on +@all", password_env="USER")},
        sessions=SessionsConfig(secrets_env="SESSIONS"),
        pool={
            "main": PoolConfig(
                password_env="POOL", tls=NodeTlsConfig(key_password_env="NODE"), shards={"a_env": shard}
            )
        },
    )
    secret = {"TLS", "SNI", "USER", "SESSIONS", "POOL", "NODE", "SHARD"}
    assert password_variables(config) == secret


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/token", "http://[::1/token", "http://a b/token"])
def test_a_url_that_fails_is_not_quoted(url: str) -> None:
    with pytest.raises(HookFailed) as failed:
        transitions.post(url, b"{}")
    assert "token" not in str(failed.value)
    assert failed.value.__cause__ is None and failed.value.__suppress_context__


# --- through the proxy


@pytest.mark.parametrize("workers", [1, 2])
def test_the_proxy_tells_a_program_of_every_change_once(tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"
    hook = script(tmp_path, f"cat >> {out}; echo >> {out}")

    def told(node: str) -> list[tuple[str, str]]:
        events = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return [(event["from"], event["to"]) for event in events if event["node"] == node]

    with redis_nodes(2) as nodes:
        config = toml(shards_of(nodes), top=f"on_transition = '{hook}'\nworkers = {workers}")
        with ProxyProcess(config) as proxy, proxy.raw() as client:
            for each in nodes:
                until(lambda each=each: told(each.address) == [("unknown", "up")])
            nodes[1].kill()
            until(lambda: client.ask("MGET", *"abcdefgh") and len(told(nodes[1].address)) > 1)
            assert told(nodes[1].address)[1][0] == "up"
            assert told(nodes[0].address) == [("unknown", "up")]


def test_a_hook_that_cannot_run_is_logged_and_the_proxy_serves() -> None:
    with redis_nodes(1) as nodes:
        config = toml(shards_of(nodes), top="on_transition = '/no/such/program'")
        with ProxyProcess(config) as proxy, proxy.raw() as client:
            until(lambda: proxy.events("on_transition_failed"))
            assert client.ask("PING") == b"+PONG\r\n"
            assert client.ask("SET", "k", "v") == b"+OK\r\n"
