"""MONITOR: what clients of all workers send, as Redis shows it.

Rules: administrators' commands are not shown, and no password. A worker sends lines to the others only while
one of them has told it, within the last seconds, that somebody looks; a crowd of lines that does not get away
is cut. Who reads too slowly is closed by the engine as any client is.
"""

import asyncio
import os
import time
from typing import TYPE_CHECKING

from shardproxy.core import errors, reply
from shardproxy.handlers.base import Server, handles, part

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call
    from shardproxy.dataplane.client_handle import ClientHandle

TOLD_EVERY, TOLD_LASTS = 2.0, 7.0  # seconds
BACKLOG = 1 << 20  # bytes of lines for other workers in one turn of the loop
REDACTED = b"(redacted)"

_ESCAPES = {b: f"\\x{b:02x}".encode() for b in range(256) if not 32 <= b < 127}
_ESCAPES |= {ord(c): b"\\" + e for c, e in zip("\n\r\t\a\b", (b"n", b"r", b"t", b"a", b"b"), strict=True)}
_ESCAPES |= {ord(c): b"\\" + c.encode() for c in '\\"'}


def quoted(text: bytes) -> bytes:
    """As Redis shows bytes: in quotes, what does not print as an escape."""
    return b'"' + b"".join(_ESCAPES.get(b) or bytes((b,)) for b in text) + b'"'


def redacted(name: str, args: list[bytes]) -> list[bytes]:
    """Without passwords, and without sessions."""
    if name.startswith("session."):
        return args[:1] + [REDACTED] * (len(args) - 1)
    if name == "auth":
        return args[:1] + [REDACTED] * (len(args) - 1)
    if name == "hello":
        secret = {i + k for i, arg in enumerate(args) if i > 1 and arg.lower() == b"auth" for k in (1, 2)}
        return [REDACTED if i in secret else arg for i, arg in enumerate(args)]
    return args


def line(now: float, db: int, addr: str, name: str, args: list[bytes]) -> bytes:
    where = f"unix:{addr.removesuffix(':0')}" if addr.startswith("/") else addr
    shown = b" ".join(quoted(arg) for arg in redacted(name, args))
    return f"+{now:.6f} [{db} {where}] ".encode() + shown + b"\r\n"


class Monitors:
    """A worker's: its clients that look, and the other workers that have some."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.clients: dict[int, ClientHandle] = {}
        self.told: dict[int, float] = {}  # a worker's process -> when it last said that somebody looks
        self._lines: list[bytes] = []
        self._size = 0

    def add(self, client: "ClientHandle") -> None:
        client.monitors = True
        first = not self.clients
        self.clients[client.id] = client
        self._set()
        if first:
            task = asyncio.get_running_loop().create_task(self._keep_telling())
            self.server.tasks.add(task)
            task.add_done_callback(self.server.tasks.discard)

    def _set(self) -> None:
        self.server.reactor.monitor(self._see if self.clients or self.told else None)

    def _clean(self) -> None:
        """Those that have left, or have been RESET."""
        self.clients = {number: each for number, each in self.clients.items() if each.monitors}
        now = time.monotonic()
        self.told = {pid: when for pid, when in self.told.items() if when + TOLD_LASTS > now}
        self._set()

    async def _keep_telling(self) -> None:
        while self.clients:
            await self.server.everywhere("monitor", os.getpid())
            await asyncio.sleep(TOLD_EVERY)
            self._clean()

    def tell(self, pid: int) -> None:
        if pid != os.getpid():
            self.told[pid] = time.monotonic()
            self._set()
            asyncio.get_running_loop().call_later(TOLD_LASTS + 0.1, self._clean)

    def _see(self, db: int, addr: str, name: str, args: list[bytes]) -> None:
        shown = line(time.time(), db, addr, name, args)
        self.show([shown])
        if self.told and self._size < BACKLOG:
            if not self._lines:
                asyncio.get_running_loop().call_soon(self._send)
            self._lines.append(shown)
            self._size += len(shown)

    def _send(self) -> None:
        lines, self._lines, self._size = self._lines, [], 0
        self.server.tell_others("monitor lines", lines)

    def show(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        for client in self.clients.values():
            if client.monitors:
                client.push(data)


@handles("monitor")
async def monitor(server: Server, call: "Call") -> bytes:
    if call.in_exec:
        return reply.error(errors.MONITOR_DENIED)
    await server.everywhere("monitor", os.getpid())  # from its +OK on it sees all
    server.monitors.add(call.client)
    return reply.OK


@part("monitor")
def told(server: Server, pid: int) -> None:
    server.monitors.tell(pid)


@part("monitor lines")
def lines(server: Server, *shown: bytes) -> None:
    server.monitors.show(list(shown))
