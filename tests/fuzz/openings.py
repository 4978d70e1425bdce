"""Clients before their first command: PROXY headers, TLS handshakes and records, as they should be or spoilt.

A client comes in and gets its PONG, or the proxy closes the connection, and says why in its log. One that did
nothing wrong must come in. Where the proxy waits for more bytes it closes at our end of file.
"""

import asyncio
import contextlib
import ssl
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

from certs import Authority
from mutations import encode, spoil

PING, PONG = encode(b"PING"), b"+PONG\r\n"
PATIENCE = 60.0  # seconds
LITTLE = 0.3  # seconds until the proxy waits for more
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


def header(rnd: Random) -> bytes:
    """A PROXY header without a mistake."""
    ports = rnd.randrange(65536), rnd.randrange(65536)
    addresses = [".".join(str(rnd.randrange(256)) for _ in range(4)) for _ in range(2)]
    how = rnd.randrange(6)
    if how == 0:
        return b"PROXY UNKNOWN" + rnd.choice([b"", b" ", b" " + b"x" * rnd.randrange(90)]) + b"\r\n"
    if how == 1:
        return "PROXY TCP4 {} {} {} {}\r\n".format(*addresses, *ports).encode()
    if how == 2:
        return "PROXY TCP6 {} ::1 {} {}\r\n".format(
            rnd.choice(["::", "2001:db8::7", "::ffff:1.2.3.4"]), *ports
        ).encode()
    more = rnd.randbytes(rnd.choice([0, 0, 7, 300, 4000]))  # what else it likes to tell
    if how == 3:  # the load balancer itself, or addresses of a kind that means nothing here
        kind = rnd.choice([b"\x20\x00", b"\x21\x31", b"\x21\x00", b"\x20\x11"])
        return SIGNATURE + kind + struct.pack("!H", len(more)) + more
    room = 4 if how == 4 else 16
    body = rnd.randbytes(2 * room) + struct.pack("!HH", *ports) + more[:3000]
    return SIGNATURE + (b"\x21\x11" if room == 4 else b"\x21\x21") + struct.pack("!H", len(body)) + body


# The doors → what may be wrong with who comes there
MISTAKES = {
    "proxied": ("", "header", "random", "stops"),
    "encrypted": ("", "handshake", "records", "random"),
    "both": ("", "header", "handshake", "records", "random", "stops"),
}
STARTS = (b"", b"\x16", b"\x16\x03\x01", b"PROXY ", SIGNATURE, SIGNATURE + b"\x21\x11\x00")


def beginning(rnd: Random, door: str, wrong: str) -> bytes:
    """What comes before a handshake, or where there is none."""
    if wrong == "random":
        return rnd.choice(STARTS) + rnd.randbytes(rnd.choice([0, 1, 5, 50, 5000]))
    data = b"" if door == "encrypted" else header(rnd)
    if wrong == "header":
        data = spoil(rnd, data, rnd.choice([1, 1, 3]))
    elif wrong == "stops":
        return data[: rnd.randrange(len(data) + 1)]
    return data + PING if door == "proxied" else data


class Openings:
    """Who comes to the doors of one proxy. ports: of each; send: in pieces."""

    def __init__(
        self,
        context: ssl.SSLContext,
        ports: dict[str, int],
        send: Callable[[Writer, Random, bytes], Awaitable[None]],
    ) -> None:
        self.context, self.ports, self.send = context, ports, send
        self.unanswered = 0  # connections that the proxy closed without a word
        self.came_in = 0

    async def client(self, rnd: Random) -> None:
        door = rnd.choice(list(MISTAKES))
        wrong = rnd.choice(MISTAKES[door])
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[door])
        answer, problem = b"", None
        try:
            await self.send(writer, rnd, beginning(rnd, door, wrong))
            if door == "proxied" or wrong in ("random", "stops"):
                answer = await self.hear(reader, wrong)
            else:
                answer = await self.talk(reader, writer, rnd, wrong)
        except (EOFError, ConnectionError, ssl.SSLError, TimeoutError) as error:
            problem = error
        if not wrong and answer != PONG:
            raise AssertionError(f"who did nothing wrong at {door!r} got {answer!r}, {problem!r}")
        self.came_in += answer == PONG
        self.unanswered += isinstance(problem, EOFError | ConnectionError)
        try:
            if rnd.random() < 0.3:
                writer.transport.abort()
            else:
                writer.write_eof()
                while await asyncio.wait_for(reader.read(1 << 16), PATIENCE):
                    pass
        except TimeoutError:
            raise AssertionError(f"our end of file at {door!r} is not answered by another") from None
        except OSError:
            pass
        writer.close()

    async def hear(self, reader: Reader, wrong: str) -> bytes:
        """Raises EOFError when the proxy closes, TimeoutError when it waits for more."""
        data = await asyncio.wait_for(reader.read(1 << 16), LITTLE if wrong else PATIENCE)
        if not data:
            raise EOFError
        return data

    async def talk(self, reader: Reader, writer: Writer, rnd: Random, wrong: str) -> bytes:
        """A handshake, a PING, its answer; one flight of it is spoilt, or what is the last."""
        into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = self.context.wrap_bio(into, out, server_hostname="localhost")
        spoilt = rnd.randrange(2) if wrong == "handshake" else -1
        for flight in range(10):
            ready = False
            with contextlib.suppress(ssl.SSLWantReadError):
                session.do_handshake()
                ready = True
                session.write(PING)
            data = out.read()
            if flight == spoilt or (ready and wrong == "records"):
                how = rnd.randrange(4)
                more = rnd.randbytes(rnd.choice([1, 5, 100, 20000]))
                data = (
                    (more, data + more, data + data)[how]
                    if how < 3
                    else spoil(rnd, data, rnd.choice([1, 1, 4]))
                )
            await self.send(writer, rnd, data)
            if ready:
                break
            into.write(await self.hear(reader, wrong))
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                return session.read(1 << 16)
            into.write(await self.hear(reader, wrong))


def configured(folder: Path) -> tuple[list[str], str, ssl.SSLContext]:
    """What to listen on beside, more of the configuration, and what clients believe."""
    authority = Authority(folder)
    cert, key = authority.issue("proxy")
    listen = ["proxy://127.0.0.1:0", "tls://127.0.0.1:0", "proxy+tls://127.0.0.1:0"]
    return listen, f'[tls]\ncert = "{cert}"\nkey = "{key}"\n', authority.context()
