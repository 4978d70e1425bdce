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
