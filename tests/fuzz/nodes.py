"""Nodes that are not what they should be: each connection has a vice of its own."""

import asyncio
import contextlib
from collections.abc import Callable
from random import Random

from mutations import LINES, frame, meta, spoil

from shardproxy.core.resp import ProtocolError, RequestParser

HELLO = b"%3\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n$5\r\nproto\r\n:3\r\n"
BIG = b"$200000\r\n" + b"z" * 200000 + b"\r\n"
PROMISES = (b"*1099511627776\r\n", b"$1099511627776\r\n", b"%4611686018427387904\r\n")
PUSHES = b">2\r\n+message\r\n+x\r\n" * 3


def fitting(rnd: Random, args: list[bytes]) -> bytes:
    """What a Redis might answer."""
    name = args[0].upper()
    if name in (b"MGET", b"EXISTS", b"DEL", b"UNLINK", b"TOUCH"):
        one = b":1\r\n" if name != b"MGET" else frame(rnd)
        return b"*%d\r\n" % (len(args) - 1) + one * (len(args) - 1) if name == b"MGET" else one
    if name == b"MSET":
        return b"+OK\r\n"
    if rnd.random() < 0.03:
        return BIG
    while (reply := frame(rnd))[:1] == b">":  # a push is no reply
        pass
    return reply


# What a node makes of one reply; None: it hangs up after it.
VICES: dict[str, Callable[[Random, bytes], tuple[bytes, bool]]] = {
    "none": lambda rnd, reply: (reply, False),
    "spoilt": lambda rnd, reply: (spoil(rnd, reply), False),
    "random": lambda rnd, reply: (rnd.randbytes(rnd.randrange(60)), False),
    "truncated": lambda rnd, reply: (reply[: rnd.randrange(len(reply) + 1)], True),
    "extra": lambda rnd, reply: (reply * rnd.choice([1, 1, 2, 5]), False),
    "silent": lambda rnd, reply: (reply if rnd.random() < 0.5 else b"", False),
    "pushing": lambda rnd, reply: (PUSHES * rnd.randrange(3) + reply, False),
    "big": lambda rnd, reply: (BIG[: rnd.choice([100, 70000, 200000, len(BIG)])], rnd.random() < 0.5),
    "attribute": lambda rnd, reply: (b"|1\r\n+a\r\n:1\r\n" + reply, False),
    "deep": lambda rnd, reply: (b"*1\r\n" * rnd.choice([5, 20000]) + b":1\r\n", False),
    "promising": lambda rnd, reply: (rnd.choice(PROMISES), False),
    "endless": lambda rnd, reply: (b"+" + b"e" * 300000, rnd.random() < 0.5),
}  # fmt: skip
QUIET = 20.0  # s without a request, and it hangs up: for some commands a silent node is given ten minutes
GREETINGS = (
    b"",
    b"-ERR no\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"*",
    b"\x00" * 100,
    b"+PONG\r\n" * 5,
    b"$100000\r\nx",
)


class HostileNode:
    """Listens on 127.0.0.1; `vice` of VICES, or None: each connection draws one."""

    def __init__(self, rnd: Random) -> None:
        self.rnd = rnd
        self.vice: str | None = None
        self.port = 0
        self.replies = 0

    async def start(self) -> None:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        self.server.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rnd, parser, greeted = Random(self.rnd.random()), RequestParser(), False
        vice = VICES[self.vice or rnd.choice(list(VICES))]
        slowly = rnd.random() < 0.2
        with contextlib.suppress(OSError, ProtocolError, asyncio.CancelledError):
            if self.vice is None and rnd.random() < 0.1:
                writer.write(rnd.choice(GREETINGS))
            while data := await asyncio.wait_for(reader.read(1 << 16), QUIET):
                for args in parser.feed(data):
                    leave = False
                    if greeted:
                        out, leave = vice(rnd, fitting(rnd, args))
                    else:
                        out = (
                            HELLO
                            if args[0] == b"HELLO"
                            else b"+PONG\r\n"
                            if args[0] == b"PING"
                            else b":7\r\n"
                            if args[0] == b"CLIENT"
                            else b"+OK\r\n"
                        )
                        greeted = args[0] == b"PING"
                    self.replies += 1
                    await self.send(writer, rnd, out, slowly)
                    if leave:
                        if rnd.random() < 0.5:
                            writer.transport.abort()
                        return
        writer.close()

    async def send(self, writer: asyncio.StreamWriter, rnd: Random, data: bytes, slowly: bool) -> None:
        if slowly and len(data) < 300:
            for at in range(len(data)):
                writer.write(data[at : at + 1])
                await asyncio.sleep(0)
        else:
            writer.write(data)
        if writer.transport.get_write_buffer_size() > 1 << 20:
            await writer.drain()


STATS = b"STAT pid 1\r\nSTAT time 1700000000\r\nSTAT item_size_max 1048576\r\nSTAT version 1.6.18\r\nEND\r\n"
SAYS = {b"version": b"VERSION 1.6.18\r\n", b"mn": b"MN\r\n", b"stats": STATS, b"flush_all": b"OK\r\n"}


# Of the greeting, and of replies that look nearly right
LIES = (
    b"STAT pid 1\r\nSTAT time 99999999999999999999\r\nSTAT item_size_max -5\r\nEND\r\n",
    b"STAT time 9223372036854775807\r\nSTAT item_size_max 18446744073709551615\r\nEND\r\n",
    b"STAT time\r\nSTAT item_size_max x\r\nEND\r\n",
    b"END\r\n",
)
ABSURD = (
    *(
        b"VA -1\r\n",
        b"VA 99999999999999999999\r\nx\r\n",
        b"VA 18446744073709551615\r\n",
        b"VA 1073741824\r\nz",
    ),
    *(b"VA\r\n", b"VA \r\n\r\n", b"VA x\r\n", b"VA 3\r\nabcdef\r\n", b"VA 3\r\na", b"VA 1 f0 k\r\nx\r\n"),
    *(
        b"VA 00001\r\nx\r\n",
        b"VA 5\nhello\n",
        b"HD s\r\n",
        b"HD s-1\r\n",
        b"HD s5 c1\r\n",
        b"HD s12345678901234567890123\r\n",
    ),
    *(
        b"HD tx cy\r\n",
        b"VA 1 t99999999999999999999 c s1x\r\n7\r\n",
        b"HD\n",
        b"HDx\r\n",
        b"EN\r\n" * 50,
        b"\r\n",
    ),
    *(b"key=%00 exp=x\r\n", b"STAT time x\r\nEND\r\n", b"RESET\r\n", b"$5\r\nhello\r\n", b"ERROR\r\n"),
)


class HostileMemcached(HostileNode):
    """The same of the other kind."""

    def reply(self, rnd: Random, line: bytes) -> bytes:
        """What a memcached might answer."""
        words = line.split()
        if (said := SAYS.get(words[0])) is not None:
            return said
        if words[0] == b"mg" and any(word.startswith(b"v") for word in words[2:]) and rnd.random() < 0.6:
            body = rnd.choice([b"1", b"value", b"\r\n", b"z" * 70000 if rnd.random() < 0.05 else b""])
            flags = b"".join(b" %b7" % word[:1] for word in words[2:] if word[:1] in (b"c", b"f", b"t", b"s"))
            return b"VA %d%b\r\n%b\r\n" % (len(body), flags, body)
        if rnd.random() < 0.05:
            return rnd.choice([rnd.choice(LINES) + b"\r\n", meta(rnd)])
        if words[0] == b"mg":
            return (
                b"HD s5\r\n" if b"s" in words and rnd.random() < 0.5 else rnd.choice([b"EN\r\n", b"HD\r\n"])
            )
        return rnd.choice([b"HD\r\n", b"NF\r\n" if words[0] == b"md" else b"NS\r\n"])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rnd = Random(self.rnd.random())
        name = self.vice or rnd.choice(list(VICES))
        vice = VICES[name]
        slowly = rnd.random() < 0.2
        greetings = 4
        with contextlib.suppress(OSError, asyncio.CancelledError, ValueError, asyncio.IncompleteReadError):
            if self.vice is None and rnd.random() < 0.1:
                writer.write(rnd.choice(GREETINGS))
            while line := await reader.readline():
                if not line.split():
                    break
                if line.startswith(b"ms "):
                    await reader.readexactly(int(line.split()[2]) + 2)
                out, leave = (self.reply(rnd, line), False)
                if greetings:
                    greetings -= 1
                    if name == "promising" and line.startswith(b"stats"):
                        out = rnd.choice(LIES)
                elif name in ("promising", "attribute", "pushing") and rnd.random() < 0.8:
                    out, leave = rnd.choice(ABSURD), rnd.random() < 0.1
                else:
                    out, leave = vice(rnd, out)
                self.replies += 1
                await self.send(writer, rnd, out, slowly)
                if leave:
                    if rnd.random() < 0.5:
                        writer.transport.abort()
                    return
        writer.close()
