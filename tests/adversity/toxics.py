"""A network that misbehaves: a fault-injecting TCP proxy, in toxiproxy's words.

`FaultProxy(port)` stands before a real server; its `toxics` hold for every connection, those that are open
too, and change with `add` and `remove`, or with an assignment: `network.toxics = [Latency(0.2)]`. A toxic is
of one direction: of what the server sends, or, `Latency(0.2).upstream()`, of what is sent to it. Times are
seconds.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Self

from faults import CHUNK, Server, reset

Send = Callable[[bytes], Awaitable[None]]


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
        self.call(lambda: [reset(writer) for writer in list(self._fronts)])

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
