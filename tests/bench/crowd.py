"""Ten thousand clients in a process of their own, driven by memory.py over stdin and stdout.

    python -m tests.bench.crowd PORT idle|flood COUNT PREFIX

idle: COUNT connections that have each sent a GET and got its reply. flood: the same, then each sends 1 MB
of pipelined SETs, reads replies as they come, and leaves the moment its last byte is written. Prints
`ready` when connected, waits for a line, does its work, prints `done REFUSED` and leaves.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys

from tests.bench import keys
from tests.bench.processes import raise_open_files

VALUE = 4096
MEGABYTE = 1 << 20
SEND_BUFFER = 64 << 10  # bounds what the kernel holds for us: 10,000 times this


def connect(port: int, count: int, prefix: str) -> list[socket.socket]:
    """One after the other, each served before the next: no accept queue overflows."""
    request = keys.encode("GET", f"{prefix}{0:012d}")
    clients = []
    for _ in range(count):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        client.settimeout(20)
        client.connect(("127.0.0.1", port))
        client.sendall(request)
        if not client.recv(1 << 16).startswith(b"$"):
            raise SystemExit("the proxy did not answer a GET")
        clients.append(client)
    return clients


def flood(clients: list[socket.socket], prefix: str) -> int:
    """1 MB of SETs each, all at once; returns how many the proxy closed before they were through."""
    commands = [keys.encode("SET", f"{prefix}{number:012d}", b"x" * VALUE) for number in range(256)]
    payload = memoryview(b"".join(commands)[:MEGABYTE])  # the last command stays incomplete
    poll, refused = select.epoll(), 0
    left = {client.fileno(): (client, payload) for client in clients}
    for client in clients:
        client.setblocking(False)
        poll.register(client, select.EPOLLIN | select.EPOLLOUT)
    while left:
        for fd, event in poll.poll(30):
            client, rest = left[fd]
            try:
                if event & select.EPOLLIN:
                    with contextlib.suppress(BlockingIOError):
                        if not client.recv(1 << 16):
                            raise ConnectionResetError
                with contextlib.suppress(BlockingIOError):
                    rest = rest[client.send(rest) :]
            except OSError:
                refused, rest = refused + 1, memoryview(b"")
            left[fd] = (client, rest)
            if not rest:
                del left[fd]
                poll.unregister(fd)
                client.close()
    return refused


def main() -> None:
    port, kind, count, prefix = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    raise_open_files()
    clients = connect(port, count, prefix)
    print("ready", flush=True)
    sys.stdin.readline()
    print("done", flood(clients, prefix) if kind == "flood" else 0, flush=True)


if __name__ == "__main__":
    main()
