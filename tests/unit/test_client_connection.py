"""The sync client's connection over a socket pair: what a node sends that nobody has asked for."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import InvalidResponse

from shardproxy.client.connection import Connection, Shard
from shardproxy.client.wire import Coding


class Link:
    """As redis-py's connection, connected."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def disconnect(self) -> None:
        self._sock.close()


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    ours, node = socket.socketpair()
    with ours, node:
        yield Connection(Link(ours), Coding(decode=True), 5.0), node


@pytest.mark.parametrize("behind", [b"+OTHER\r\n", b"+OTH", b">2\r\n+push\r\n+x\r\n+OTHER\r\n", b"$5\r\nab"])
def test_what_comes_with_a_reply_is_nobodys(pair: tuple[Connection, socket.socket], behind: bytes) -> None:
    """Whose is which? The surplus may have come first: neither is believed."""
    connection, node = pair
    node.sendall(b"+ONE\r\n" + behind)
    with pytest.raises(InvalidResponse):
        connection.read()


@pytest.mark.parametrize("behind", [b"+OTHER\r\n", b"+OTH"])
def test_what_comes_with_many_replies_is_nobodys(
    pair: tuple[Connection, socket.socket], behind: bytes
) -> None:
    connection, node = pair
    node.sendall(b"+ONE\r\n+TWO\r\n" + behind)
    replies: list[Any] = []
    with pytest.raises(InvalidResponse):
        connection.read_many(2, replies)
    assert replies == []


def test_pushes_do_no_harm(pair: tuple[Connection, socket.socket]) -> None:
    connection, node = pair
    node.sendall(b">1\r\n+a\r\n+ONE\r\n>1\r\n+b\r\n")
    assert connection.read() == "ONE" and not connection.more()
    node.sendall(b"+TWO\r\n>1\r\n+b\r\n")
    replies: list[Any] = []
    connection.read_many(1, replies)
    assert replies == ["TWO"]


@pytest.mark.parametrize("late", [b"+OTHER\r\n", b"x", None], ids=["a reply", "a byte", "the end"])
def test_what_comes_while_nobody_uses_it_ends_it(
    pair: tuple[Connection, socket.socket], late: bytes | None
) -> None:
    connection, node = pair
    shard = Shard("a", "a:1", {}, Coding())
    node.sendall(b"+ONE\r\n")
    connection.read()
    shard.give(connection)
    assert shard.idle_one() is connection
    shard.give(connection)
    node.sendall(late) if late is not None else node.close()
    assert shard.idle_one() is None and connection.sock.fileno() == -1
