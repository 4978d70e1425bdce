"""Runs core/memcached's programs on a real memcached: what a client library does, in thirty lines."""

import socket
import time
from types import TracebackType
from typing import Self

from shardproxy.core import errors
from shardproxy.core.commands import builtin
from shardproxy.core.memcached import Failure, Frames, Node, Value, encode, parse, start

TABLE = builtin()


class Stepper:
    """A connection to one memcached on which commands of Redis run; `steps` counts round trips."""

    def __init__(self, port: int, node: Node | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.frames = Frames()
        self.node = node or Node(time.time, shard="a", address=f"127.0.0.1:{port}")
        self.steps = 0

    def value(self, *args: str | bytes | int) -> Value:
        packed = [each if isinstance(each, bytes) else str(each).encode() for each in args]
        row = TABLE.row(*packed[:2]) or TABLE.row(packed[0])
        assert row is not None, args
        if row.arity != len(packed) and not (row.arity < 0 and len(packed) >= -row.arity):
            return Failure(errors.wrong_arity(row.name))
        program = start(row.name, packed, self.node)
        try:
            step = next(program)
            while True:
                self.steps += 1
                time.sleep(step.pause)
                self.socket.sendall(step.data)
                found: list[bytes] = []
                while len(found) < step.replies:
                    data = self.socket.recv(1 << 16)
                    if not data:
                        raise EOFError
                    found += self.frames.feed(data)
                assert len(found) == step.replies
                step = program.send([parse(each) for each in found])
        except StopIteration as done:
            reply: Value = done.value
            return reply

    def ask(self, *args: str | bytes | int, proto: int = 2) -> bytes:
        return encode(self.value(*args), proto)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
