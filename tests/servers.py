"""Real servers for tests, and a client that sees bytes: small, synchronous helpers.

Everything binds 127.0.0.1 on a free port or a socket in a temporary directory, and ends with its `with` block
(or `stop`). A missing program is a failed test that names the Debian package, never a skipped one.
"""

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

import hiredis
import pytest

ROOT = Path(__file__).parent.parent
# Each process of pytest-xdist has its own: else two could find the same one free
MEMBER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS = range(10240 + MEMBER, 20000, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
PATIENCE = 20.0  # seconds until a server that does not come up fails the test


def program(name: str, package: str) -> str:
    """The path of a program; fails the test when it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: install Debian's {package} (apt-get install {package})")
    return found


def free_ports(count: int) -> list[int]:
    """So many different ports that nobody listens on now, and no connection comes from by chance.

    Below those that the kernel gives away (from 32768), and so is, with room, a cluster's bus (10000 above):
    a port of the kernel's may be somebody's the next moment, and who tries a dead one again and again may
    connect to himself.
    """
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(PORTS, len(PORTS)):
            if len(found) == count:
                break
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    assert len(found) == count
    return found


def free_port() -> int:
    """A port that nobody listens on now."""
    return free_ports(1)[0]


def until(what: Any, because: str = "", patience: float = PATIENCE) -> Any:
    """Waits until what() is true and returns that; fails the test when it never is."""
    limit = time.monotonic() + patience
    while not (found := what()):
        if time.monotonic() > limit:
            pytest.fail(f"waited {patience:g} s in vain: {because or what}")
        time.sleep(0.01)
    return found


# --- talking ---


def pack(*args: str | bytes | int) -> bytes:
    """A command as RESP."""
    parts = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def frame_end(data: bytes | bytearray, at: int = 0) -> int:
    """Where the RESP frame that begins at `at` ends; -1 when more bytes are needed. Slow and plain."""
    line = data.find(b"\r\n", at)
    if line < 0:
        return -1
    kind, rest = data[at : at + 1], bytes(data[at + 1 : line])
    end = line + 2
    if kind in b"+-:_,#(":
        return end
    size = int(rest)
    if kind in b"$=!":
        if size < 0:
            return end
        return end + size + 2 if len(data) >= end + size + 2 else -1
    if kind not in b"*~>%|":
        raise AssertionError(f"not RESP: {bytes(data[at : at + 40])!r}")
    for _ in range(size * (2 if kind in b"%|" else 1)):
        end = frame_end(data, end)
        if end < 0:
            return -1
    return frame_end(data, end) if kind == b"|" else end  # an attribute belongs to the frame after it


class Raw:
    """A connection that sends and receives bytes as they are.

    where: a port of 127.0.0.1, (host, port), or the path of a unix socket. Reads raise TimeoutError after
    `timeout` seconds, and EOFError when the other side closes first.
    """

    def __init__(self, where: int | tuple[str, int] | str, timeout: float = 10.0) -> None:
        if isinstance(where, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout)
            self.socket.connect(where)
        else:
            host, port = ("127.0.0.1", where) if isinstance(where, int) else where
            self.socket = socket.create_connection((host, port), timeout=timeout)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def frame(self) -> bytes:
        """One whole reply, as it came."""
        while (end := frame_end(self.buffer) if self.buffer else -1) < 0:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError(bytes(self.buffer))
            self.buffer += data
        found = bytes(self.buffer[:end])
        del self.buffer[:end]
        return found

    def frames(self, count: int) -> list[bytes]:
        return [self.frame() for _ in range(count)]

    def ask(self, *args: str | bytes | int) -> bytes:
        """A command and its reply."""
        self.send(pack(*args))
        return self.frame()

    def value(self, *args: str | bytes | int) -> Any:
        """The same, parsed: str, int, list, dict, or a hiredis.ReplyError."""
        reader = hiredis.Reader(encoding="utf-8", errors="surrogateescape")
        reader.feed(self.ask(*args))
        return reader.gets()

    def unasked(self, patience: float) -> list[bytes]:
        """What comes until nothing does for so many seconds."""
        found, timeout = list[bytes](), self.socket.gettimeout()
        self.socket.settimeout(patience)
        try:
            while True:
                found.append(self.frame())
        except TimeoutError:
            return found
        finally:
            self.socket.settimeout(timeout)

    def rest(self) -> bytes:
        """Everything until the other side closes."""
        with contextlib.suppress(ConnectionResetError):
            while data := self.socket.recv(1 << 16):
                self.buffer += data
        found = bytes(self.buffer)
        self.buffer.clear()
        return found

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# --- servers ---


class Node:
    """A server on 127.0.0.1 that can die, hang and come back on its port; `options`: of its command line."""

    name: str  # of its program
    scheme: str

    def __init__(self, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> "subprocess.Popen[bytes]":
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it answers; OSError: not yet."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> Self:
        """Returns when it answers; also after `stop` or `kill`, on the same port."""
        self.process = self.launch()
        until(self._answers, f"{self.name} on port {self.port}")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"{self.name} ended with exit code {self.process.returncode}")
        try:
            return self.ready()
        except OSError:
            return False

    def kill(self) -> None:
        """As if the machine had lost it: no goodbye."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        self.kill()

    def pause(self) -> None:
        """It keeps its connections and says nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class RedisNode(Node):
    """A redis-server; `options`: ("--maxmemory", "1mb")."""

    name, scheme = "redis-server", "redis"

    def __init__(self, *options: str, port: int | None = None) -> None:
        super().__init__(*options, port=port)
        self.folder = tempfile.mkdtemp(prefix="shardproxy-test-redis-")

    def launch(self) -> "subprocess.Popen[bytes]":
        server = program("redis-server", "redis-server")
        return subprocess.Popen(
            [server, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder,
             "--enable-debug-command", "yes", *self.options],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def ready(self) -> bool:
        with Raw(self.port, timeout=1) as raw:
            return raw.ask("PING")[:1] in b"+-"

    def stop(self) -> None:
        """Gone, with its files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def raw(self) -> Raw:
        return Raw(self.port)

    def keys(self, beginning: str) -> set[str]:
        with self.raw() as raw:
            return set(raw.value("KEYS", beginning + "*"))


class MemcachedNode(Node):
    """A memcached, empty at each start; `options`: ("-m", "2")."""

    name, scheme = "memcached", "memcached"

    def launch(self) -> "subprocess.Popen[bytes]":
        server = program("memcached", "memcached")
        user = ("-u", "nobody") if os.getuid() == 0 else ()
        return subprocess.Popen(
            [server, "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-t", "2", *user, *self.options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def ready(self) -> bool:
        return bool(self.say(b"mn\r\n", b"\n"))

    def say(self, request: bytes, end: bytes) -> bytes:
        """A request as it is, and what is answered up to these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as talk:
            talk.sendall(request)
            found = b""
            while not found.endswith(end):
                data = talk.recv(1 << 16)
                if not data:
                    break
                found += data
        return found

    def keys(self, beginning: str) -> set[str]:
        """Those that it has, of text alone."""
        lines = self.say(b"lru_crawler metadump all\r\n", b"END\r\n").decode().splitlines()
        found = {unquote(line[4:].partition(" ")[0]) for line in lines if line.startswith("key=")}
        return {key for key in found if key.startswith(beginning)}

    def stats(self, what: str = "") -> dict[str, str]:
        lines = self.say(f"stats {what}".strip().encode() + b"\r\n", b"END\r\n").decode().splitlines()
        return dict(line.split(" ", 2)[1:] for line in lines if line.startswith("STAT "))

    def pause(self) -> None:
        """Its threads do not stop all at once."""
        super().pause()
        threads = Path(f"/proc/{self.pid}/task")
        until(lambda: all(b") T " in (each / "stat").read_bytes() for each in threads.iterdir()))


def toml(
    shards: dict[str, str], listen: Sequence[str] = ("127.0.0.1:0",), top: str = "", pool: str = ""
) -> str:
    """A configuration; shards: name → address, or URL; `top` and `pool` are lines of those tables."""
    lines = [f"listen = {list(listen)!r}", top, "[pool.main]", pool, "[pool.main.shards]"]
    for name, address in shards.items():
        url = address if "://" in address else f"redis://{address}"
        lines.append(f'{name} = "{url}"')
    return "\n".join(lines) + "\n"


class ProxyProcess:
    """`shardproxy serve` as a process; its log is kept in `log_path`, one JSON event a line."""

    def __init__(self, config: str, *options: str) -> None:
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix="shardproxy-test-proxy-"))
        self.config_path = self.folder / "shardproxy.toml"
        self.config_path.write_text(config)
        self.log_path = self.folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.addresses: list[str] = []

    def launch(self) -> Self:
        """Starts it without waiting."""
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shardproxy", "serve", "-c", str(self.config_path), *self.options],
                stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
            )  # fmt: skip
        return self

    def start(self) -> Self:
        """Returns when it listens."""
        self.launch()
        self.addresses = until(lambda: self._listening(), "shardproxy to listen")
        return self

    def _listening(self) -> Any:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"shardproxy ended with exit code {self.process.returncode}:\n{self.log_text()}")
        return next((event["addresses"] for event in self.events("listening")), None)

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """What it has logged, all or of one name."""
        import msgspec

        found: list[dict[str, Any]] = []
        for line in self.log_text().splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                found.append(msgspec.json.decode(line, type=dict[str, Any]))
        return [event for event in found if name in (None, event.get("event"))]

    def log_text(self) -> str:
        return self.log_path.read_text()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def port(self) -> int:
        return int(next(each for each in self.addresses if "unix" not in each).rpartition(":")[2])

    def raw(self) -> Raw:
        return Raw(self.port)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        """Its exit code."""
        assert self.process is not None
        return self.process.wait(patience)

    def stop(self) -> None:
        """Gone, with its workers and files."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextlib.contextmanager
def redis_nodes(count: int, *options: str) -> Iterator[list[RedisNode]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RedisNode(*options)) for _ in range(count)]


def shards_of(nodes: Sequence[RedisNode]) -> dict[str, str]:
    """Shards a, b, c ... on these nodes."""
    return {chr(ord("a") + number): node.address for number, node in enumerate(nodes)}


def urls_of(nodes: Sequence[Node]) -> dict[str, str]:
    """The same as the client library takes them: shard → URL."""
    return {name: node.url for name, node in zip(string.ascii_lowercase, nodes, strict=False)}


class Stranger(Raw):
    """From an address of its own, which has no failed logins to its name."""

    addresses = itertools.count(2)

    def __init__(self, where: ProxyProcess | RedisNode) -> None:
        number = next(self.addresses)
        source = (f"127.9.{number >> 8}.{number & 255}", 0)
        self.socket = socket.create_connection(("127.0.0.1", where.port), timeout=10, source_address=source)
        self.buffer = bytearray()


def logged_in(where: ProxyProcess | RedisNode, user: str, password: str) -> Raw:
    raw = Stranger(where)
    assert raw.ask("AUTH", user, password) == b"+OK\r\n"
    return raw
