"""Seeding through a proxy, and reading every key back: a benchmark of misses would measure nothing.

A peer's keys are `<peer><size>:<12 digits>`, the digits being what redis-benchmark puts in the place of
`__rand_int__`: each proxy has its own ring, so each has its own keys on the shared nodes.
"""

from __future__ import annotations

import socket

from tests.bench.processes import BenchError

CHUNK = 200  # commands in flight while seeding


def prefix(peer: str, size: int) -> str:
    return f"{peer[:3]}{size}:"


def encode(*args: str | bytes) -> bytes:
    parts = [arg.encode() if isinstance(arg, str) else arg for arg in args]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def ask(port: int, *args: str) -> bytes:
    """One command on a connection of its own; the payload of its (simple or bulk) reply."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock, sock.makefile("rb") as reader:
        sock.sendall(encode(*args))
        line = reader.readline().rstrip()
        if not line.startswith(b"$"):
            return line
        return reader.read(int(line[1:]) + 2)[:-2]


def seed(port: int, start: str, count: int, size: int) -> None:
    """Write `count` values of `size` bytes; raises BenchError on any reply but OK."""
    value = b"x" * size
    names = _names(start, count)
    _exchange(port, [encode("SET", name, value) for name in names], b"+OK\r\n", f"SET {start}*")


def verify(port: int, start: str, count: int, size: int) -> None:
    """Read all of them back; raises BenchError unless each has `size` bytes."""
    want = b"$%d\r\n%s\r\n" % (size, b"x" * size)
    _exchange(port, [encode("GET", name) for name in _names(start, count)], want, f"GET {start}*")


def _names(start: str, count: int) -> list[str]:
    return [f"{start}{number:012d}" for number in range(count)]


def _exchange(port: int, requests: list[bytes], want: bytes, what: str) -> None:
    with socket.create_connection(("127.0.0.1", port), 10) as sock, sock.makefile("rb") as reader:
        for first in range(0, len(requests), CHUNK):
            part = requests[first : first + CHUNK]
            sock.sendall(b"".join(part))
            for _ in part:
                try:
                    got = reader.read(len(want))
                except TimeoutError:
                    got = b"(nothing within 10 s)"
                if got != want:
                    raise BenchError(f"{what} through port {port}: expected {want[:40]!r}, got {got[:80]!r}")
