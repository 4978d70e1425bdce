"""Clients that check every reply: it must answer what this very client asked, in the order in which it
asked.

Every value is `key|writer|number|padding`, so that a reply names the key, who wrote it and which write it
was. Only its writer writes a key or increments a counter; everybody reads everything. A `Witness` sends
pipelines of random commands, split at random bytes, switches protocol in mid-pipeline and leaves when it
likes. Rules it lives by:

- an error may be SHARDDOWN, TIMEOUT, UNKNOWN or OVERLOADED, nothing else; SHARDDOWN and OVERLOADED mean:
  not executed;
- after TIMEOUT, UNKNOWN or a lost connection a write may have been executed, or be executed later: `maybe`;
- a key holds its last acknowledged write or one of the `maybe` ones; a counter's next value is above its
  last one and no more above than there are `maybe` increments; the nodes must therefore keep what they have
  acknowledged.

Every mistake is added to the `Court`, with what was asked; nothing is raised in mid-run.
"""

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hiredis
from servers import pack

NOT_EXECUTED = ("SHARDDOWN", "OVERLOADED")
UNCLEAR = ("TIMEOUT", "UNKNOWN")
LOST = object()  # instead of a reply: the connection ended first
Check = Callable[[Any], None]


@dataclass
class Fate:
    """What a key or counter of ours may hold. number: of the last write; the others: which it may be."""

    number: int = 0
    acked: int = 0  # the last write that was acknowledged; 0: none
    maybe: set[int] = field(default_factory=set)


@dataclass
class Court:
    """What all witnesses have seen."""

    writers: int
    keys: int = 3  # of each writer
    mistakes: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    values: dict[str, Fate] = field(default_factory=dict)
    counts: dict[str, Fate] = field(default_factory=dict)  # number: highest seen; acked: how many were

    def wrong(self, what: str) -> None:
        if len(self.mistakes) < 50:
            self.mistakes.append(what)

    def key(self, writer: int, number: int) -> str:
        return f"key:{writer}:{number}"

    def check_value(self, key: str, value: object, own: bool) -> None:
        """Of a GET; None is an empty key."""
        fate = self.values.get(key, Fate())
        if value is None:
            if own and fate.acked:
                self.wrong(f"{key} is empty after {fate.acked} was acknowledged")
            return
        if not isinstance(value, bytes):
            self.wrong(f"{key} holds {value!r:.80}")
            return
        parts = value.split(b"|", 3)
        writer = key.split(":")[1]
        if len(parts) != 4 or parts[0] != key.encode() or parts[1] != writer.encode():
            self.wrong(f"asked for {key}, got {value!r:.80}")
            return
        number = int(parts[2])
        if parts[3] != padding(number):
            self.wrong(f"{key} {number} is damaged: {len(parts[3])} bytes for {len(padding(number))}")
        if number > fate.number or number == 0:
            self.wrong(f"{key} holds {number}, and {fate.number} writes were sent")
        elif own and number != fate.acked and number not in fate.maybe:
            self.wrong(f"{key} holds {number}; acknowledged {fate.acked}, unclear {sorted(fate.maybe)[-5:]}")

    def check_node_value(self, key: str, value: object) -> None:
        """The same after the run, read from a node."""
        self.check_value(key, value, own=True)

    def check_node_count(self, key: str, value: object) -> None:
        fate = self.counts[key]
        count = int(value or 0)  # type: ignore[call-overload]
        if not fate.acked <= count <= fate.acked + len(fate.maybe):
            self.wrong(
                f"{key} is {count} after {fate.acked} acknowledged and {len(fate.maybe)} unclear increments"
            )


def padding(number: int) -> bytes:
    """Mostly small; every 23rd larger than what is passed on in one piece, and different each time."""
    if number % 23 == 0:
        return b"%x" % number * 40_000
    return b"%x" % number * (number % 17)


class Connection(asyncio.Protocol):
    """Hands each reply to the check that is next; what is left over at the end gets LOST."""

    def __init__(self, court: Court, checks: list[Check]) -> None:
        self.court = court
        self.checks = checks
        self.next = 0
        self.reader = hiredis.Reader()
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self.waiting: tuple[int, asyncio.Future[None]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        try:
            while (reply := self.reader.gets()) is not False:
                if self.next == len(self.checks):
                    self.court.wrong(f"a reply that nothing had asked for: {reply!r:.80}")
                    return
                check = self.checks[self.next]
                self.next += 1
                check(reply)
        except hiredis.ProtocolError as error:
            self.court.wrong(f"not RESP: {error} in {data!r:.80}")
            self.leave()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        for check in self.checks[self.next :]:
            check(LOST)
        self.next = len(self.checks)
        self._wake()

    def _wake(self) -> None:
        if self.waiting and (self.next >= self.waiting[0] or self.closed):
            future = self.waiting[1]
            self.waiting = None
            if not future.done():
                future.set_result(None)

    async def answered(self, count: int) -> None:
        """Returns when so many replies have come, or the connection is lost."""
        if self.next < count and not self.closed:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting = count, future
            await future

    def leave(self, hard: bool = False) -> None:
        """Goes, whatever is still to come. hard: with a reset."""
        if self.transport is None:
            return
        if hard and (raw := self.transport.get_extra_info("socket")):
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort() if hard else self.transport.close()


class Witness:
    """One client after another of the same writer."""

    def __init__(self, court: Court, writer: int, port: int, *, patience: float = 60.0) -> None:
        self.court, self.writer, self.port, self.patience = court, writer, port, patience
        self.random = random.Random(writer)
        self.proto = 2  # of the replies to come
        self.asked = 0
        for number in range(court.keys):
            court.values[court.key(writer, number)] = Fate()
        self.counter = f"count:{writer}"
        court.counts[self.counter] = Fate()

    # --- a life ---

    async def live(self, until: Callable[[], bool], *, stay: bool = False) -> None:
        """Connects, sends pipelines, leaves, comes back. stay: leaves only when the proxy closes."""
        loop = asyncio.get_running_loop()
        while not until():
            checks: list[Check] = []
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(self.court, checks),  # noqa: B023  # called at once
                    "127.0.0.1",
                    self.port,
                )
            except OSError as error:
                self.court.wrong(f"cannot connect: {error}")
                return
            self.proto = 2
            self.court.seen["connections"] += 1
            while not until() and not connection.closed:
                await self.pipeline(connection, checks)
                if not stay and self.random.random() < 0.2:
                    break
                await asyncio.sleep(self.random.random() * 0.2)
            if not connection.closed and not stay and self.random.random() < 0.8:
                self.request(connection, checks, self.random.randint(1, 20))
                connection.leave(hard=self.random.random() < 0.5)  # in the middle of it
                await connection.answered(len(checks))
            connection.leave()
            await connection.answered(len(checks) + 1)  # until it is closed

    async def pipeline(self, connection: Connection, checks: list[Check]) -> None:
        self.request(connection, checks, self.random.choice((1, 1, 2, 5, 10, 30)))
        try:
            async with asyncio.timeout(self.patience):
                await connection.answered(len(checks))
        except TimeoutError:
            self.court.wrong(f"writer {self.writer}: {len(checks) - connection.next} replies never came")
            connection.leave(hard=True)

    def request(self, connection: Connection, checks: list[Check], count: int) -> None:
        """So many commands, in a few pieces."""
        data = b""
        for _ in range(count):
            command, check = self.random.choices(self.COMMANDS, self.WEIGHTS)[0](self)
            data += command
            checks += check
        assert connection.transport is not None
        cuts = sorted(
            self.random.randrange(len(data) + 1) for _ in range(self.random.choice((0, 0, 0, 1, 3)))
        )
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            connection.transport.write(data[start:end])
        self.court.seen["commands"] += count

    # --- commands: bytes and the checks of its replies ---

    def expect(self, what: str, then: Check) -> list[Check]:
        """then: gets the reply when it is no error; errors and losses are counted, and the rest judged."""

        def check(reply: Any) -> None:
            if reply is LOST:
                self.court.seen["lost"] += 1
                return
            if isinstance(reply, hiredis.ReplyError):
                code = str(reply).split(" ", 1)[0]
                self.court.seen[code] += 1
                if code not in NOT_EXECUTED + UNCLEAR:
                    self.court.wrong(f"{what}: {reply}")
                return
            self.court.seen["replies"] += 1
            then(reply)

        return [check]

    def write(self, what: str, fate: Fate, then: Callable[[Any], bool]) -> list[Check]:
        """The same of a write, whose outcome is kept. then: says whether the reply is an acknowledgement."""
        fate.number += 1
        number = fate.number
        plain = self.expect(what, lambda reply: None)[0]

        def check(reply: Any) -> None:
            plain(reply)
            unclear = reply is LOST or (
                isinstance(reply, hiredis.ReplyError) and str(reply).split(" ", 1)[0] not in NOT_EXECUTED
            )
            if unclear:
                fate.maybe.add(number)
            elif not isinstance(reply, hiredis.ReplyError) and then(reply):
                fate.acked = number

        return [check]

    def some_key(self) -> tuple[str, bool]:
        """A key, and whether it is our own and nobody else writes it meanwhile."""
        if self.random.random() < 0.5:
            return self.court.key(self.writer, self.random.randrange(self.court.keys)), True
        writer = self.random.randrange(self.court.writers)
        return self.court.key(writer, self.random.randrange(self.court.keys)), writer == self.writer

    def value(self, key: str, number: int) -> bytes:
        return b"%b|%d|%d|%b" % (key.encode(), self.writer, number, padding(number))

    def is_ok(self, what: str) -> Callable[[Any], bool]:
        def check(reply: Any) -> bool:
            if reply != b"OK":
                self.court.wrong(f"{what}: {reply!r:.80}")
            return True

        return check

    def set(self) -> tuple[bytes, list[Check]]:
        key = self.court.key(self.writer, self.random.randrange(self.court.keys))
        fate = self.court.values[key]
        checks = self.write(f"SET {key}", fate, self.is_ok(f"SET {key}"))
        return pack("SET", key, self.value(key, fate.number)), checks

    def mset(self) -> tuple[bytes, list[Check]]:
        """All our keys at once; after an error, any shard may have written its part."""
        args: list[bytes | str] = []
        outcomes: list[tuple[Fate, int]] = []
        for number in range(self.court.keys):
            key = self.court.key(self.writer, number)
            fate = self.court.values[key]
            fate.number += 1
            outcomes.append((fate, fate.number))
            args += [key, self.value(key, fate.number)]
        plain = self.expect("MSET", lambda reply: None)[0]

        def check(reply: Any) -> None:
            plain(reply)
            if not isinstance(reply, hiredis.ReplyError) and reply is not LOST:
                self.is_ok("MSET")(reply)
            for fate, number in outcomes:
                if reply == b"OK":
                    fate.acked = number
                else:
                    fate.maybe.add(number)

        return pack("MSET", *args), [check]

    def get(self) -> tuple[bytes, list[Check]]:
        key, own = self.some_key()
        return pack("GET", key), self.expect(
            f"GET {key}", lambda reply: self.court.check_value(key, reply, own)
        )

    def mget(self) -> tuple[bytes, list[Check]]:
        asked = [self.some_key() for _ in range(self.random.randint(1, 6))]

        def check(reply: Any) -> None:
            if not isinstance(reply, list) or len(reply) != len(asked):
                self.court.wrong(f"MGET of {len(asked)}: {reply!r:.80}")
                return
            for (key, own), value in zip(asked, reply, strict=True):
                self.court.check_value(key, value, own)

        return pack("MGET", *(key for key, _ in asked)), self.expect("MGET", check)

    def count(self, reply: Any) -> bool:
        """A value of our counter, that this increment has made."""
        fate = self.court.counts[self.counter]
        if not isinstance(reply, int) or not fate.acked < reply <= fate.acked + 1 + len(fate.maybe):
            self.court.wrong(
                f"INCR {self.counter}: {reply!r:.80} after {fate.acked} and {len(fate.maybe)} unclear ones"
            )
        return True

    def incr(self) -> tuple[bytes, list[Check]]:
        fate = self.court.counts[self.counter]
        return pack("INCR", self.counter), [self.counted(self.write("INCR", Fate(), self.count)[0], fate)]

    def counted(self, check: Check, fate: Fate) -> Check:
        """acked is the number of acknowledged increments, maybe has one entry for each unclear one."""

        def both(reply: Any) -> None:
            check(reply)
            if reply is LOST or (isinstance(reply, hiredis.ReplyError) and str(reply).startswith(UNCLEAR)):
                fate.maybe.add(len(fate.maybe))
            elif not isinstance(reply, hiredis.ReplyError):
                fate.acked += 1

        return both

    def echo(self) -> tuple[bytes, list[Check]]:
        self.asked += 1
        token = b"%d-%d" % (self.writer, self.asked)

        def check(reply: Any) -> None:
            if reply != token:
                self.court.wrong(f"ECHO {token!r}: {reply!r:.80}")

        return pack("ECHO", token), self.expect("ECHO", check)

    def multi(self) -> tuple[bytes, list[Check]]:
        """MULTI, INCR, INCR, EXEC; replies OK, QUEUED, QUEUED, [n, n + 1]"""
        fate = self.court.counts[self.counter]

        def check(reply: Any) -> None:
            if reply is LOST or (isinstance(reply, hiredis.ReplyError) and str(reply).startswith(UNCLEAR)):
                fate.maybe |= {len(fate.maybe), len(fate.maybe) + 1}
            elif isinstance(reply, list) and len(reply) == 2 and isinstance(reply[0], int):
                self.count(reply[0])
                if reply[1] != reply[0] + 1:
                    self.court.wrong(f"EXEC: {reply!r:.80}")
                fate.acked += 2
            elif not isinstance(reply, hiredis.ReplyError):
                self.court.wrong(f"EXEC: {reply!r:.80}")

        def exactly(word: bytes) -> list[Check]:
            return self.expect(
                "MULTI", lambda reply: None if reply == word else self.court.wrong(f"MULTI: {reply}")
            )

        data = pack("MULTI") + pack("INCR", self.counter) * 2 + pack("EXEC")
        both = self.expect("EXEC", lambda reply: None)[0]

        def last(reply: Any) -> None:
            both(reply)
            check(reply)

        return data, [*exactly(b"OK"), *exactly(b"QUEUED") * 2, last]

    def hello(self) -> tuple[bytes, list[Check]]:
        proto = self.proto = self.random.choice((2, 3))

        def check(reply: Any) -> None:
            fields = reply
            if isinstance(reply, list):
                fields = dict(zip(reply[::2], reply[1::2], strict=True))
            if (
                not isinstance(fields, dict)
                or fields.get(b"proto") != proto
                or isinstance(reply, dict) != (proto == 3)
            ):
                self.court.wrong(f"HELLO {proto}: {reply!r:.80}")

        return pack("HELLO", proto), self.expect("HELLO", check)

    def hgetall(self) -> tuple[bytes, list[Check]]:
        """A map in RESP3, an array in RESP2: what came over the wrong upstream shows."""
        proto = self.proto

        def check(reply: Any) -> None:
            if not isinstance(reply, dict if proto == 3 else list):
                self.court.wrong(f"HGETALL in RESP{proto}: {reply!r:.80}")

        return pack("HGETALL", f"hash:{self.random.randrange(8)}"), self.expect("HGETALL", check)

    COMMANDS = (set, get, mget, incr, echo, hello, hgetall, mset, multi)
    WEIGHTS = (20, 30, 10, 12, 8, 2, 4, 2, 3)
