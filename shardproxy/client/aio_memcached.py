"""A memcached node that answers as a Redis, for asyncio: it stands between a `Connection` and its transport.

    Connection ── RESP ──▶ Translator.write ──▶ a program a command ──▶ memcached
               ◀── RESP ── in the commands' order ◀── replies, to whose turn it is

The programs are the core's (core/memcached). Several are on their way at once; one that shares a key with one
before it waits for that, unless both only read, and one without keys waits for all. What memcached cannot do
is refused in the proxy's words; so is every transaction, as a whole.
"""

import asyncio
import contextlib
import time
from collections import deque
from typing import Any

import hiredis

from shardproxy.client.aio_connection import CLOSED, Connection
from shardproxy.client.wire import NOTHING
from shardproxy.core.commands import CommandTable
from shardproxy.core.memcached import Ask, Failure, Frames, Node, Reply, Value, encode, parse, start

NO_TRANSACTIONS = "ERR transactions are not possible on a memcached shard ('{}')"
LOOK = b"stats\r\nstats settings\r\n"
AT_ONCE = 512  # programs on their way


class _Run:
    """One command. `reply` is RESP, once it is done."""

    __slots__ = ("ask", "keys", "left", "program", "replies", "reply", "writes")

    def __init__(self, program: Any, keys: set[bytes], writes: bool) -> None:
        self.program, self.keys, self.writes = program, keys, writes
        self.ask: Ask | None = None
        self.left = 0
        self.replies: list[Reply] = []
        self.reply: bytes | None = None


class Translator(asyncio.Protocol, asyncio.Transport):
    """Protocol of the socket, and transport of the connection above."""

    def __init__(self, above: Connection, table: CommandTable, shard: str, address: str) -> None:
        asyncio.Transport.__init__(self)
        self._above, self._table = above, table
        self._node = Node(time.time, shard=shard, address=address)
        self._frames = Frames()
        self._commands = hiredis.Reader(notEnoughData=NOTHING)
        self._waiting: deque[_Run] = deque()
        self._runs: deque[_Run] = deque()  # begun, in the order of their commands
        self._asked: deque[_Run] = deque()  # whose the next replies are
        self._reading: dict[bytes, int] = {}
        self._writing: set[bytes] = set()
        self._out: list[bytes] = []
        self._looking: asyncio.Future[list[Reply]] | None = None
        self._seen: list[Reply] = []
        self._socket: Any = None

    async def look(self) -> None:
        """Its clock, and how large an item may be; to be awaited before anything is written."""
        self._looking = asyncio.get_running_loop().create_future()
        self._socket.write(LOOK)
        stats, settings = await self._looking
        limit = int(settings.flags.get("item_size_max", b"1048576"))
        offset = int(stats.flags["time"]) - int(time.time()) if "time" in stats.flags else 0
        self._node = self._node._replace(offset=float(offset), limit=limit)
        self._looking = None

    # --- the transport of what is above ---

    def write(self, data: Any) -> None:
        self._commands.feed(data)
        found: list[list[bytes]] = []
        while (items := self._commands.gets()) is not NOTHING:
            found.append(items)
        if any(items[0].lower() == b"multi" for items in found):
            refused = encode(Failure(NO_TRANSACTIONS.format(self._node.shard)), 3)
            self._above.loop.call_soon(self._above.data_received, refused * len(found))
            return
        for items in found:
            row = self._table.row(*items[:2])
            name = row.name if row is not None else items[0].decode(errors="replace")
            keys: set[bytes] = set()
            with contextlib.suppress(ValueError):
                keys = {items[at] for at in self._table.keys_of(items)}
            writes = row is None or "readonly" not in row.flags
            self._waiting.append(_Run(start(name, items, self._node), keys, writes))
        self._begin()
        self._flush()

    def abort(self) -> None:
        self._socket.abort()

    def is_closing(self) -> bool:
        return bool(self._socket.is_closing())

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._socket.get_extra_info(name, default)

    # --- programs ---

    def _begin(self) -> None:
        """Those that need not wait for one before them."""
        while self._waiting and len(self._runs) < AT_ONCE:
            run = self._waiting[0]
            if run.keys:
                taken = self._writing | self._reading.keys() if run.writes else self._writing
                if run.keys & taken or (self._runs and not self._runs[-1].keys):
                    return
            elif self._runs:
                return
            self._runs.append(self._waiting.popleft())
            for key in run.keys:
                if run.writes:
                    self._writing.add(key)
                else:
                    self._reading[key] = self._reading.get(key, 0) + 1
            self._go_on(run, None)

    def _go_on(self, run: _Run, replies: list[Reply] | None) -> None:
        try:
            ask: Ask = next(run.program) if replies is None else run.program.send(replies)
        except StopIteration as done:
            self._end(run, done.value)
            return
        if pause := getattr(ask, "pause", 0):
            self._above.loop.call_later(pause, self._ask_late, run, ask)
        else:
            self._ask(run, ask)

    def _ask(self, run: _Run, ask: Ask) -> None:
        run.ask, run.left, run.replies = ask, ask.replies, []
        self._asked.append(run)
        self._out.append(ask.data)

    def _ask_late(self, run: _Run, ask: Ask) -> None:
        if self._above.lost is None:
            self._ask(run, ask)
            self._flush()

    def _end(self, run: _Run, value: Value) -> None:
        run.reply = encode(value, 3)
        for key in run.keys:
            if run.writes:
                self._writing.discard(key)
            elif self._reading[key] > 1:
                self._reading[key] -= 1
            else:
                del self._reading[key]

    def _flush(self) -> None:
        if self._out:
            self._socket.write(b"".join(self._out))
            self._out.clear()
        done = []
        while self._runs and self._runs[0].reply is not None:
            done.append(self._runs.popleft().reply)
        if done:
            # not from within the write that has brought it: above, nothing is owed yet then
            self._above.loop.call_soon(self._above.data_received, b"".join(done))  # type: ignore[arg-type]

    # --- the protocol of the socket ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = transport
        self._above.connection_made(self)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                self._heard(parse(frame))
        except (ValueError, IndexError) as error:
            self._above.close(f"it does not speak memcached's protocol ({type(error).__name__})", fault=True)
            return
        self._begin()
        self._flush()

    def _heard(self, reply: Reply) -> None:
        if self._looking is not None:
            self._seen.append(reply)
            if len(self._seen) == 2 and not self._looking.done():
                self._looking.set_result(self._seen)
            return
        run = self._asked[0]
        run.replies.append(reply)
        run.left -= 1
        if run.left <= 0:
            self._asked.popleft()
            self._go_on(run, run.replies)

    def eof_received(self) -> None:
        self._ended(CLOSED)

    def connection_lost(self, error: Exception | None) -> None:
        self._ended(str(getattr(error, "strerror", None) or error or CLOSED))

    def _ended(self, why: str) -> None:
        if self._looking is not None and not self._looking.done():
            self._looking.set_exception(ConnectionResetError(None, why))
        self._above.close(why, fault=True)

    def pause_writing(self) -> None:
        self._above.pause_writing()

    def resume_writing(self) -> None:
        self._above.resume_writing()
