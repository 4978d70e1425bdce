"""Messages between the supervisor and a worker: requests and replies over a socketpair.

A message is 4 bytes of length, big-endian, and as many of MessagePack. A request carries an id and a deadline
on the monotonic clock, which all processes of a machine share, so that nobody works on what nobody awaits.
Requests are answered in tasks of their own, in whatever order they are done. When the other end is gone,
everything that waits for it fails with ChannelClosed and `closed` is set.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Self, TypeAlias

import msgspec

MAX_MESSAGE = 256 << 20
Kind: TypeAlias = Literal["request", "note", "reply", "failure"]
# (name, body) → the body of the reply
Answer: TypeAlias = Callable[[str, Any], Awaitable[Any]]


class Message(msgspec.Struct, array_like=True):
    kind: Kind
    id: int = 0
    name: str = ""  # of a request or a note, which awaits no reply
    body: Any = None
    deadline: float = 0.0  # of a request: monotonic seconds


class ChannelClosed(Exception):
    """The other end is gone."""


class PeerFailed(Exception):
    """The other end could not answer; the text is the type of its exception."""


class Channel:
    """One end; `answer` serves the requests and notes of the other."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_id = 0
        self._writer: asyncio.StreamWriter | None = None
        self.closed = asyncio.Event()

    async def open(self, sock: socket.socket) -> Self:
        """Takes the socket over."""
        sock.setblocking(False)
        reader, self._writer = await asyncio.open_connection(sock=sock)
        self._keep(self._read(reader))
        return self

    async def ask(self, name: str, body: Any = None, timeout: float = 1.0) -> Any:
        """The reply's body. Raises TimeoutError, ChannelClosed, PeerFailed."""
        self._last_id += 1
        number = self._last_id
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                self._send(Message("request", number, name, body, time.monotonic() + timeout))
                return await future
        finally:
            del self._waiting[number]

    def tell(self, name: str, body: Any = None) -> None:
        """A note: nothing comes back, also when nobody is there any more."""
        if not self.closed.is_set():
            self._send(Message("note", name=name, body=body))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        for task in self._tasks:
            task.cancel()
        self._end()

    def _send(self, message: Message) -> None:
        if self._writer is None or self.closed.is_set():
            raise ChannelClosed
        data = msgspec.msgpack.encode(message)
        self._writer.write(len(data).to_bytes(4, "big") + data)

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        decoder = msgspec.msgpack.Decoder(Message)
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(4), "big")
                if size > MAX_MESSAGE:
                    return
                self._take(decoder.decode(await reader.readexactly(size)))
        except (asyncio.IncompleteReadError, OSError, msgspec.MsgspecError):
            return  # the other end is our own program: what it sends cannot be mended here
        finally:
            if self._writer is not None:
                self._writer.close()  # so that the other end knows
            self._end()

    def _take(self, message: Message) -> None:
        if message.kind in ("request", "note"):
            self._keep(self._serve(message))
            return
        future = self._waiting.get(message.id)
        if future is None or future.done():
            return  # too late
        if message.kind == "reply":
            future.set_result(message.body)
        else:
            future.set_exception(PeerFailed(message.body))

    async def _serve(self, request: Message) -> None:
        if request.kind == "note":
            await self._answer(request.name, request.body)
            return
        try:
            async with asyncio.timeout(request.deadline - time.monotonic()):
                reply = Message("reply", request.id, body=await self._answer(request.name, request.body))
        except TimeoutError:
            return
        except Exception as error:
            reply = Message("failure", request.id, body=type(error).__name__)
        if not self.closed.is_set():
            self._send(reply)

    def _end(self) -> None:
        self.closed.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ChannelClosed())
