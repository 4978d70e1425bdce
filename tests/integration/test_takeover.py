"""`serve --takeover`: a new process goes on with the sockets of the one that runs; nobody is refused."""

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import ProxyProcess, Raw, RedisNode, free_port, shards_of, toml, until

from shardproxy.proxy.takeover import door_name


@contextmanager
def successor(
    nodes: Sequence[RedisNode], listen: Sequence[str], top: str = "", pool: str = ""
) -> Iterator[ProxyProcess]:
    with ProxyProcess(toml(shards_of(nodes), listen=listen, top=top, pool=pool), "--takeover") as process:
        yield process


def pid_of(raw: Raw) -> int:
    return int(json.loads(raw.value("PROXY", "INFO"))["process_id"])


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (1, 2), (3, 2), (2, 1)])
def test_tcp_and_unix_listeners_change_hands(
    nodes3: list[RedisNode], tmp_path: Path, before: int, after: int
) -> None:
    port, path = free_port(), tmp_path / "proxy.sock"
    listen = [f"127.0.0.1:{port}", f"unix://{path}"]
    inode = 0
    with ProxyProcess(toml(shards_of(nodes3), listen=listen, top=f"workers = {before}")) as old:
        inode = path.stat().st_ino
        clients = [Raw(port), Raw(str(path))]
        for raw in clients:
            assert pid_of(raw) == old.pid
        with successor(nodes3, listen, top=f"workers = {after}") as new:
            assert new.addresses == old.addresses
            assert until(lambda: new.events("took_over"))[0]["pid"] == old.pid
            until(lambda: old.events("handed_over"), "the old one to hand over")
            # who was connected is still served there, who comes now is served here
            for raw in clients:
                assert raw.ask("SET", "k", "v") == b"+OK\r\n"
            until(lambda: _served_by(new, port), "the old one to accept no more")
            for _ in range(20):
                for where in (port, str(path)):
                    with Raw(where) as raw:
                        assert raw.ask("GET", "k") == b"$1\r\nv\r\n"
                        assert pid_of(raw) == new.pid
            for raw in clients:
                assert pid_of(raw) == old.pid
                raw.close()
            assert old.wait() == 0
            assert old.events("stopped")[0]["clean"] is True
            assert path.stat().st_ino == inode
            with Raw(str(path)) as raw:
                assert raw.ask("PING") == b"+PONG\r\n"
        assert not path.exists()


def _served_by(process: ProxyProcess, port: int) -> bool:
    """Twenty connections in a row are its."""
    for _ in range(20):
        with Raw(port) as raw:
            if pid_of(raw) != process.pid:
                return False
    return True


def test_a_takeover_of_a_takeover(nodes3: list[RedisNode]) -> None:
    listen = [f"127.0.0.1:{free_port()}"]
    with ProxyProcess(toml(shards_of(nodes3), listen=listen)) as first, successor(nodes3, listen) as second:
        assert first.wait() == 0
        with successor(nodes3, listen) as third:
            assert second.wait() == 0
            with third.raw() as raw:
                assert pid_of(raw) == third.pid


def test_an_address_more_and_one_less(nodes3: list[RedisNode], tmp_path: Path) -> None:
    port, more, less = free_port(), free_port(), tmp_path / "less.sock"
    with (
        ProxyProcess(toml(shards_of(nodes3), listen=[f"127.0.0.1:{port}", f"unix://{less}"])) as old,
        successor(nodes3, [f"127.0.0.1:{port}", f"127.0.0.1:{more}"]),
    ):
        assert old.wait() == 0
        for each in (port, more):
            with Raw(each) as raw:
                assert raw.ask("PING") == b"+PONG\r\n"
        with pytest.raises(OSError):
            Raw(str(less))


def test_nobody_to_take_over(nodes3: list[RedisNode]) -> None:
    process = ProxyProcess(
        toml(shards_of(nodes3), listen=[address := f"127.0.0.1:{free_port()}"]), "--takeover"
    )
    try:
        assert process.launch().wait() == 1
        reason = process.events("cannot_start")[0]["reason"]
        assert f"no running shardproxy answers for {address}" in reason
        assert "without --takeover" in reason
    finally:
        process.stop()


def test_any_free_port_cannot_be_taken_over(nodes3: list[RedisNode]) -> None:
    process = ProxyProcess(toml(shards_of(nodes3)), "--takeover")
    try:
        assert process.launch().wait() == 1
        assert "no fixed port" in process.events("cannot_start")[0]["reason"]
    finally:
        process.stop()


def test_a_successor_that_cannot_start_changes_nothing(nodes3: list[RedisNode], tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    listen = [f"127.0.0.1:{free_port()}", f"unix://{path}"]
    with ProxyProcess(toml(shards_of(nodes3), listen=listen)) as old, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        text = toml(shards_of(nodes3), listen=[*listen, f"127.0.0.1:{taken.getsockname()[1]}"])
        process = ProxyProcess(text, "--takeover")
        try:
            assert process.launch().wait() == 1
            assert "another program" in process.events("cannot_start")[0]["reason"]
        finally:
            process.stop()
        until(lambda: old.events("takeover_failed"), "the old one to notice")
        for where in (old.port, str(path)):
            with Raw(where) as raw:
                assert pid_of(raw) == old.pid
        # and the next one may try
        with successor(nodes3, listen) as new:
            assert old.wait() == 0
            with new.raw() as raw:
                assert pid_of(raw) == new.pid


def test_strangers_at_the_door(nodes3: list[RedisNode]) -> None:
    """Whoever talks nonsense is let go; the proxy serves on and its sockets are not given away."""
    listen = [f"127.0.0.1:{free_port()}"]
    name = door_name(listen)
    with ProxyProcess(toml(shards_of(nodes3), listen=listen)) as process, process.raw() as raw:
        for word in (b"nonsense", b"{}", b'{"format": 99, "pid": 1}'):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
                stranger.settimeout(10)
                until(lambda stranger=stranger: stranger.connect_ex(name) == 0, "the door to open")
                stranger.send(word)
                data, descriptors, _, _ = socket.recv_fds(stranger, 1 << 16, 8)
                assert descriptors == []
                assert data == b"" or json.loads(data)["refused"]
            count = len(process.events("takeover_failed"))
            until(lambda count=count: len(process.events("takeover_failed")) >= min(count, 1))
            assert raw.ask("PING") == b"+PONG\r\n"
        assert process.process is not None
        assert process.process.poll() is None


def test_one_takeover_at_a_time(nodes3: list[RedisNode]) -> None:
    """The second is told so, and may try again."""
    listen = [f"127.0.0.1:{free_port()}"]
    text = toml(shards_of(nodes3), listen=listen)
    with ProxyProcess(text) as old, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as first:
        until(lambda: first.connect_ex(door_name(listen)) == 0, "the door to open")
        first.settimeout(10)
        first.send(json.dumps({"format": 1, "pid": 1}).encode())
        assert json.loads(first.recv(1 << 16))["refused"] == ""
        second = ProxyProcess(text, "--takeover")
        try:
            assert second.launch().wait() == 1
            assert "is another takeover under way?" in second.events("cannot_start")[0]["reason"]
        finally:
            second.stop()
        first.close()
        until(lambda: old.events("takeover_failed"), "the old one to notice")
        with successor(nodes3, listen):
            assert old.wait() == 0


def test_a_bad_configuration_takes_nothing_over(nodes3: list[RedisNode]) -> None:
    listen = [f"127.0.0.1:{free_port()}"]
    with ProxyProcess(toml(shards_of(nodes3), listen=listen)) as old:
        bad = ProxyProcess(toml(shards_of(nodes3), listen=listen, pool='on_return = "flush"'), "--takeover")
        try:
            assert bad.launch().wait() == 2
            assert "1 mistake in the configuration" in bad.log_text()
        finally:
            bad.stop()
        with old.raw() as raw:
            assert pid_of(raw) == old.pid
        assert old.events("takeover_failed") == old.events("handed_over") == []


def test_newcomers_are_never_refused(nodes3: list[RedisNode]) -> None:
    """Connecting and asking all the time while processes hand over, with other numbers of workers."""
    port = free_port()
    listen, over = [f"127.0.0.1:{port}"], threading.Event()
    failures: list[str] = []
    served = [0]

    def newcomers() -> None:
        while not over.is_set():
            try:
                with Raw(port) as raw:
                    if raw.ask("PING") != b"+PONG\r\n":
                        failures.append("a wrong answer")
                    served[0] += 1
            except (OSError, EOFError) as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=newcomers, daemon=True) for _ in range(4)]
    with ProxyProcess(toml(shards_of(nodes3), listen=listen, top="workers = 2")) as old:
        for thread in threads:
            thread.start()
        with successor(nodes3, listen, top="workers = 3") as second:
            assert old.wait() == 0
            with successor(nodes3, listen, top="workers = 1"):
                assert second.wait() == 0
                count = served[0]
                until(lambda: served[0] > count + 100, "the last one to serve")
                over.set()
                for thread in threads:
                    thread.join()
    assert failures == []
