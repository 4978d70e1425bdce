"""A memcached that answers more than it was asked: its connection is not used again."""

import socket

import pytest
from redis.exceptions import InvalidResponse

from shardproxy.client.memcached import MemcachedConnection, _Link
from shardproxy.client.wire import Coding, pack
from shardproxy.core.commands import builtin


def test_a_reply_nobody_asked_for() -> None:
    ours, node = socket.socketpair()
    with ours, node:
        node.sendall(b"STAT time 1\r\nEND\r\nSTAT item_size_max 1024\r\nEND\r\n")
        connection = MemcachedConnection(_Link(ours), Coding(), 5.0, builtin(), "a", "a:1")
        connection.send(pack(("GET", "k")))
        node.sendall(b"EN\r\nVA 5 f0\r\nother\r\n")
        with pytest.raises(InvalidResponse):
            connection.read()


@pytest.mark.parametrize(
    "answer", [b"VA x f0\r\nother\r\n", b"VA\r\n", b"VA 5 f0\r\nother\r\nHD", b"VA -7 f0\r\nother\r\n"]
)
def test_nonsense(answer: bytes) -> None:
    ours, node = socket.socketpair()
    with ours, node:
        node.sendall(b"STAT time 1\r\nEND\r\nSTAT item_size_max 1024\r\nEND\r\n")
        connection = MemcachedConnection(_Link(ours), Coding(), 5.0, builtin(), "a", "a:1")
        connection.send(pack(("GET", "k")))
        node.sendall(answer)
        with pytest.raises(InvalidResponse):
            connection.read()


@pytest.mark.parametrize("greeting", [b"STAT time x\r\nEND\r\nSTAT item_size_max 1\r\nEND\r\n", b"VA y\r\n"])
def test_a_greeting_that_is_nonsense(greeting: bytes) -> None:
    ours, node = socket.socketpair()
    with ours, node:
        node.sendall(greeting)
        with pytest.raises(InvalidResponse):
            MemcachedConnection(_Link(ours), Coding(), 5.0, builtin(), "a", "a:1")
