"""Networks and nodes that misbehave: a fault-injecting TCP proxy in toxiproxy's words, and fake nodes.

`FaultProxy(port)` stands before a real server; its `toxics` hold for every connection, those that are open
too, and change with `add` and `remove`, or with an assignment: `network.toxics = [Latency(0.2)]`. A toxic is
of one direction: of what the server sends, or, `Latency(0.2).upstream()`, of what is sent to it.
`FakeNode(behave)` is a Redis as far as greetings and probes go, and answers everything else as `behave`
says; `Babbler(speech)` never heard of Redis.
All of them run on one event loop in a thread of its own, so that tests stay plain and synchronous. Times are
seconds.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import hiredis
from servers import free_port

HEARTBEATS = b"shardproxy:heartbeats"

T = TypeVar("T")
Send = Callable[[bytes], Awaitable[None]]
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


# --- a network with faults ---


class Toxic:
    """What happens to the bytes of one direction: "down" from the server, "up" to it. Toxiproxy's names."""

    side = "down"

    async def chunk(self, link: "Link", data: bytes, send: Send) -> None:
        await send(data)

    async def end(self, link: "Link") -> None:
        """Before the end of the stream is passed on."""

    def upstream(self) -> Self:
        """The same for the other direction."""
        self.side = "up"
        return self


class Latency(Toxic):
    """Everything comes later."""

    def __init__(self, latency: float, jitter: float = 0.0) -> None:
        self.latency, self.jitter = latency, jitter

    async def chunk(self, link: "Link", data: bytes, send: Send) -> None:
        due = link.arrived + self.latency + random.uniform(-self.jitter, self.jitter)
        await asyncio.sleep(due - asyncio.get_running_loop().time())
        await send(data)


class Bandwidth(Toxic):
    """So many bytes a second."""

    def __init__(self, rate: int) -> None:
        self.rate = rate

    async def chunk(self, link: "Link", data: bytes, send: Send) -> None:
        piece = max(1, self.rate // 20)
        for at in range(0, len(data), piece):
            await asyncio.sleep(0.05)
            await send(data[at : at + piece])


class SlowClose(Toxic):
    """The end of the stream comes later."""

    def __init__(self, delay: float) -> None:
        self.delay = delay

    async def end(self, link: "Link") -> None:
        await asyncio.sleep(self.delay)


class Timeout(Toxic):
    """Nothing arrives any more; after `timeout` the connection is closed (0: when the toxic is taken away).

    Unlike toxiproxy's it never goes on after that: TCP delivers no stream that lacks bytes in its middle.
    """

    def __init__(self, timeout: float = 0.0) -> None:
        self.timeout = timeout

    async def chunk(self, link: "Link", data: bytes, send: Send) -> None:
        if self.timeout:
            await asyncio.sleep(self.timeout)
        while not self.timeout and self in link.network.toxics:
            await asyncio.sleep(0.02)
        link.close()


class ResetPeer(Toxic):
    """The connection is reset `timeout` after the first byte."""

    def __init__(self, timeout: float = 0.0) -> None:
        self.timeout = timeout

    async def chunk(self, link: "Link", data: bytes, send: Send) -> None:
        await asyncio.sleep(self.timeout)
        link.reset()


class Slicer(Toxic):
    """Comes in small pieces, each after a delay."""

    def __init__(self, average_size: int, delay: float = 0.0) -> None:
        self.average_size, self.delay = average_size, delay

    async def chunk(self, link: "Link", data: bytes, send: Send) -> None:
        at = 0
        while at < len(data):
            size = random.randint(1, 2 * self.average_size)
            await asyncio.sleep(self.delay)
            await send(data[at : at + size])
            at += size


class LimitData(Toxic):
    """The connection is closed after so many bytes of one direction."""

    def __init__(self, bytes: int) -> None:
        self.bytes = bytes

    async def chunk(self, link: "Link", data: bytes, send: Send) -> None:
        await send(data[: max(0, self.bytes - link.passed)])
        if link.passed >= self.bytes:
            link.close()


class Held(Toxic):
    """What is sent to the node, from a piece with this word in it on, stays in the network until let go."""

    side = "up"

    def __init__(self, word: bytes = b"") -> None:
        self.word = word
        self.count, self.free, self.gone = 0, False, False

    async def chunk(self, link: "Link", data: bytes, send: Send) -> None:
        if self.word not in data:
            await send(data)
            return
        self.count += 1
        while not self.free:
            await asyncio.sleep(0.01)
        try:
            await send(data)
        finally:
            self.gone = True


class Link:
    """One direction of one connection."""

    def __init__(
        self,
        network: "FaultProxy",
        side: str,
        reader: asyncio.StreamReader,
        ends: Sequence[asyncio.StreamWriter],
    ) -> None:
        self.network, self.side, self.reader, self.ends = network, side, reader, ends
        self.passed = 0  # bytes, since the toxics were last changed
        self.arrived = 0.0  # when what is passed on now came
        self.queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        self.toxics: Sequence[Toxic] = ()

    def reset(self) -> None:
        for writer in self.ends:
            reset(writer)

    def close(self) -> None:
        for writer in self.ends:
            writer.close()

    async def pump(self) -> None:
        """ends[0] gets what the reader brings."""
        reading = asyncio.ensure_future(self._read())
        try:
            while True:
                self.arrived, data = await self.queue.get()
                if not data:
                    break
                await self._through(self._current(), data)
            for toxic in self._current():
                await toxic.end(self)
            if self.ends[0].can_write_eof():
                self.ends[0].write_eof()
        except OSError:
            pass
        finally:
            reading.cancel()

    async def _read(self) -> None:
        """What comes while the toxics hold something back is not delayed twice."""
        data = b"begin"
        while data:
            try:
                data = await self.reader.read(CHUNK)
            except OSError:
                data = b""
            await self.queue.put((asyncio.get_running_loop().time(), data))

    def _current(self) -> Sequence[Toxic]:
        if self.toxics is not self.network.toxics:
            self.toxics, self.passed = self.network.toxics, 0
        return [toxic for toxic in self.toxics if toxic.side == self.side]

    async def _through(self, toxics: Sequence[Toxic], data: bytes) -> None:
        if toxics:
            await toxics[0].chunk(self, data, lambda piece: self._through(toxics[1:], piece))
        elif data:
            self.passed += len(data)
            self.ends[0].write(data)
            await self.ends[0].drain()


class FaultProxy(Server):
    """A network with faults before the server on `target`, a port of 127.0.0.1."""

    def __init__(self, target: int, *toxics: Toxic) -> None:
        super().__init__()
        self.target = target
        self.toxics: Sequence[Toxic] = toxics
        self._fronts: set[asyncio.StreamWriter] = set()

    def add(self, toxic: Toxic) -> Toxic:
        """From now on, after those that there are; for `remove`."""
        self.toxics = [*self.toxics, toxic]
        return toxic

    def forsake(self) -> None:
        """Every open connection is reset, and the server does not learn of it: what is on its way arrives."""

        async def go() -> None:
            for writer in list(self._fronts):
                reset(writer)

        _Background.run(go())

    def remove(self, toxic: Toxic) -> None:
        self.toxics = [each for each in self.toxics if each is not toxic]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers.add(back)
        self._fronts.add(writer)
        try:
            await asyncio.gather(
                Link(self, "up", reader, (back, writer)).pump(),
                Link(self, "down", there, (writer, back)).pump(),
            )
        finally:
            self._writers.discard(back)
            self._fronts.discard(writer)
            back.close()


# --- nodes that misbehave ---


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
