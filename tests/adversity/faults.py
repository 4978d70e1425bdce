"""Nodes that misbehave, and what servers with faults are made of; a network with faults is in toxics.

`FakeNode(behave)` is a Redis as far as greetings and probes go, and answers everything else as `behave`
says; `Babbler(speech)` never heard of Redis.
All of them run on one event loop in a thread of its own, so that tests stay plain and synchronous. Times are
seconds.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import hiredis
from servers import free_port

HEARTBEATS = b"shardproxy:heartbeats"

T = TypeVar("T")
CHUNK = 1 << 16


class _Background:
    """One event loop in a daemon thread, started when it is first needed."""

    loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def run(cls, work: Coroutine[Any, Any, T]) -> T:
        """Runs it there and returns what it returns."""
        if cls.loop is None:
            cls.loop = asyncio.new_event_loop()
            threading.Thread(target=cls.loop.run_forever, name="faults", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, cls.loop).result(30)


class Server:
    """Listens on a free port of 127.0.0.1 from `with` to its end; `port` stays over `refuse` and `accept`."""

    def __init__(self, port: int = 0) -> None:
        self.port = port or free_port()
        self.accepted = 0  # connections, ever
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
                await self.serve(reader, writer)
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    def accept(self) -> Self:
        """Listens (again)."""

        async def go() -> None:
            self._server = await asyncio.start_server(
                self._on_connection, "127.0.0.1", self.port, reuse_address=True, backlog=1024
            )

        _Background.run(go())
        return self

    def refuse(self) -> None:
        """Connections are refused, and the open ones reset."""

        async def go() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None
            self._reset_all()

        _Background.run(go())

    def cut(self) -> None:
        """Every open connection is reset; new ones are taken."""

        async def go() -> None:
            self._reset_all()

        _Background.run(go())

    def call(self, what: Callable[[], object]) -> None:
        """Calls it where the server runs."""

        async def go() -> None:
            what()

        _Background.run(go())

    def _reset_all(self) -> None:
        for writer in list(self._writers):
            reset(writer)
        for task in list(self._tasks):
            task.cancel()

    def __enter__(self) -> Self:
        return self.accept()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()


def reset(writer: asyncio.StreamWriter) -> None:
    """Closes with RST."""
    with contextlib.suppress(OSError):
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Talk:
    """One connection to a fake node."""

    def __init__(self, node: "FakeNode", writer: asyncio.StreamWriter) -> None:
        self.node, self.writer = node, writer
        self.proto = 2
        self.count = 0  # commands that `behave` got

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    def close(self) -> None:
        self.writer.close()


Behave = Callable[[Talk, list[bytes]], Awaitable[None]]


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


async def obey(talk: Talk, args: list[bytes]) -> None:
    """GET, SET, MGET, DEL and UNLINK as they should be; for what else a behaviour does not do itself."""
    data, name = talk.node.data, args[0].upper()
    nil = b"_\r\n" if talk.proto == 3 else b"$-1\r\n"
    if name == b"SET":
        data[args[1]] = args[2]
        talk.write(b"+OK\r\n")
    elif name == b"MGET":
        found = [bulk(data[key]) if key in data else nil for key in args[1:]]
        talk.write(b"*%d\r\n" % len(found) + b"".join(found))
    elif name in (b"DEL", b"UNLINK"):
        talk.write(b":%d\r\n" % sum(data.pop(key, None) is not None for key in args[1:]))
    elif len(args) > 1:
        talk.write(bulk(data[args[1]]) if args[1] in data else nil)
    else:
        talk.write(b"-ERR unknown command\r\n")


class FakeNode(Server):
    """Greets and is probed as a Redis 7; `behave` answers what clients ask. Both may be changed at any time.

    greet: name of the command → reply, for those that a proxy asks on its own behalf.
    """

    def __init__(self, behave: Behave = obey, greet: dict[bytes, bytes] | None = None) -> None:
        super().__init__()
        self.behave = behave
        self.data: dict[bytes, bytes] = {}
        self.seen: list[list[bytes]] = []  # what clients asked, and never what a proxy asks for itself
        self.greet = {
            b"PING": b"+PONG\r\n",
            b"AUTH": b"+OK\r\n",
            b"CLIENT": b":7\r\n",
            b"SELECT": b"+OK\r\n",
            b"HELLO": b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n",
            b"INFO": bulk(b"redis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\n"),
            b"COMMAND": b"*0\r\n",
            b"TIME": b"*2\r\n$10\r\n1700000000\r\n$1\r\n0\r\n",
        } | (greet or {})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk, parser = Talk(self, writer), hiredis.Reader()
        while data := await reader.read(CHUNK):
            parser.feed(data)
            while (args := parser.gets()) is not False:
                name = args[0].upper()
                if name == b"HELLO":
                    talk.proto = 3
                if name in self.greet:
                    talk.write(self.greet[name])
                    continue
                if args[1:2] == [HEARTBEATS]:
                    talk.write(b"*0\r\n" if name == b"ZRANGE" else b":1\r\n")
                    continue
                self.seen.append(args)
                talk.count += 1
                await self.behave(talk, args)
            await writer.drain()


class Babbler(Server):
    """Not a Redis. speech: what it says first; answer: what it says to whatever comes; None: closes then."""

    def __init__(self, speech: bytes = b"", answer: bytes | None = b"") -> None:
        super().__init__()
        self.speech, self.answer = speech, answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.speech)
        while await reader.read(CHUNK):
            if self.answer is None:
                return
            writer.write(self.answer)
            await writer.drain()


class Echo(Server):
    """Sends back whatever it gets, as the service on port 7."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
