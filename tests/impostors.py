"""Servers that are not what they stand for: no Redis at all, or something between a Redis and its clients.

Nodes that misbehave in more ways, and networks that do, are adversity/faults'.
"""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class SomethingElse:
    """A server that is not Redis: answers whatever comes with these bytes and closes."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                client.recv(1 << 16)
                client.sendall(self.answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # close alone does not wake a thread in accept
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)


class Relay:
    """A server in front of another that replaces bytes on the way, both as long as what they replace.

    `up`: in what clients send; `down`: in what the server answers. Works on single reads.
    """

    def __init__(self, port: int, up: tuple[bytes, bytes], down: tuple[bytes, bytes]) -> None:
        self.target, self.up, self.down = port, up, down
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.sockets: list[socket.socket] = [self.listener]
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self.sockets += [client, server]
                for pair in ((client, server, self.up), (server, client, self.down)):
                    self.threads.append(threading.Thread(target=self._pump, args=pair, daemon=True))
                    self.threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket, change: tuple[bytes, bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                sink.sendall(data.replace(*change))
            sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self.threads:
            thread.join(5)
