"""One socket to one node, and a shard's pool of them, for the sync client.

redis-py makes the connection (address, TLS, login, HELLO, database, CLIENT SETINFO: all as its settings say);
from then on the socket is ours: commands are written as they were packed, replies go through hiredis.

Rules: who has taken a connection has it alone, until it is given back; one that may still bring a reply is
closed, never given back. What comes behind a reply, or while nobody uses the connection, and is no push, ends
it: nobody can say any more whose reply is whose. A pool belongs to a process: after a fork the child begins
with an empty one, and closes nothing of its parent's.
"""

import contextlib
import functools
import os
import select
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse
from redis.retry import Retry

from shardproxy.client.naming import redis_of
from shardproxy.client.wire import NOTHING, Coding, Push

BUFFER = 1 << 16
CLOSED = "the node closed the connection"
NOBODYS = "the node sent a reply that nobody has asked for"
# Where a blocking socket can have a timeout of its own, so that no poll has to come before each recv
KERNEL_TIMEOUT = sys.platform != "win32"


class Connection:
    """Connected and greeted. Its methods raise OSError, and what redis-py raises for nonsense."""

    __slots__ = (
        "_link",
        "_plain",
        "_timeout",
        "_view",
        "feed",
        "gets",
        "more",
        "readable",
        "scripts",
        "send",
        "sock",
        "used",
    )

    def __init__(self, link: Any, coding: Coding, timeout: float | None) -> None:
        """link: a connection of redis-py's, connected. timeout: seconds for each read and write."""
        self._link = link
        self.sock: socket.socket = link._sock
        reader = coding.reader()
        self.gets, self.feed, self.more = reader.gets, reader.feed, reader.has_data
        self.send: Callable[[bytes], None] = self.sock.sendall
        self._view: Any = bytearray(BUFFER)
        self._plain = KERNEL_TIMEOUT and type(self.sock) is socket.socket
        self.scripts: set[bytes] = set()  # what was loaded here: a new connection may be to another process
        self.used = False  # it has been given back before
        self._timeout: float | None = -1
        # Asked before it is used: nothing is owed to us, so what there is to read is the end, or not for us
        self.readable: Callable[[int], Any] = _readable(self.sock)
        self.wait_for(timeout)

    def wait_for(self, timeout: float | None) -> None:
        """How long reads and writes may take from now on; None: for ever."""
        if timeout == self._timeout:
            return
        self._timeout = timeout
        if not self._plain:
            self.sock.settimeout(timeout)
            return
        self.sock.settimeout(None)
        whole, part = divmod(max(timeout, 1e-3) if timeout is not None else 0.0, 1)
        value = struct.pack("@ll", int(whole), int(part * 1e6))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def read(self, decode: bool = True) -> Any:
        """The next reply; an error is returned as redis-py's exception. Pushes are nobody's here."""
        while True:
            reply = self.gets() if decode else self.gets(False)
            while reply is NOTHING:
                size = self.sock.recv_into(self._view)
                if not size:
                    raise ConnectionResetError(CLOSED)
                self.feed(self._view, 0, size)
                reply = self.gets() if decode else self.gets(False)
            if type(reply) is not Push:
                if self.more():
                    self._check()
                return reply

    def read_many(self, count: int, into: list[Any]) -> None:
        """So many replies, each appended when it is there: what raises leaves those before it."""
        gets, feed, view, receive = self.gets, self.feed, self._view, self.sock.recv_into
        while count:
            reply = gets()
            while reply is NOTHING:
                size = receive(view)
                if not size:
                    raise ConnectionResetError(CLOSED)
                feed(view, 0, size)
                reply = gets()
            if type(reply) is not Push:
                into.append(reply)
                count -= 1
        if self.more():
            try:
                self._check()
            except InvalidResponse:
                into.clear()
                raise

    def _check(self) -> None:
        """Of what has come behind the last reply that was owed: pushes, or nonsense."""
        while (more := self.gets()) is not NOTHING:
            if type(more) is not Push:
                break
        if self.more() or more is not NOTHING:
            raise InvalidResponse(NOBODYS)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._link.disconnect()


class Shard:
    """One shard's node: its connections that nobody uses now, and how to make more. Threads share it."""

    def __init__(
        self,
        name: str,
        address: str,
        reach: dict[str, Any],
        coding: Coding,
        memcached: Callable[..., Connection] | None = None,
    ) -> None:
        """memcached: what connects to a node that is one (client/memcached)."""
        self.name, self.address, self.memcached = name, address, memcached
        self.idle: deque[Connection] = deque()  # pop and append are atomic
        self.pid = os.getpid()
        self.answered = 0  # requests, about: threads count together without a lock
        self.judged = 0  # of these, those that were before the last failure
        self.connecting: Callable[[], None] | None = None  # told before it connects
        self.timeout: float | None = reach.get("socket_timeout")
        self._reach, self._coding = reach, coding
        self._pool: redis.ConnectionPool | None = None

    def __repr__(self) -> str:
        return f"<Shard {self.name!r} at {self.address}>"

    @property
    def pool(self) -> redis.ConnectionPool:
        """redis-py's own pool to this node, for what needs a connection of redis-py's: pub/sub, on_shard."""
        if self._pool is None:
            self._pool = redis_of(self._reach, **_QUIET).connection_pool
        return self._pool

    def idle_one(self) -> Connection | None:
        """An idle connection at once, or None."""
        if self.pid != os.getpid():
            self.forked()
        try:
            connection = self.idle.pop()
        except IndexError:
            return None
        if not connection.readable(0):
            return connection
        connection.close()
        return None

    def take(self) -> Connection:
        """An idle connection, or a new one. Raises what redis-py raises when there is none to be made."""
        if self.pid != os.getpid():
            self.forked()
        while True:
            try:
                connection = self.idle.pop()
            except IndexError:
                return self.connect()
            if not connection.readable(0):
                return connection
            connection.close()

    def give(self, connection: Connection) -> None:
        """Back, when everything that it owed has been read."""
        connection.used = True
        self.idle.append(connection)

    def connect(self) -> Connection:
        if self.connecting is not None:
            self.connecting()
        if self.memcached is not None:
            return self.memcached(self.name, self.address, self._reach, self._coding)
        settings = dict(self.pool.connection_kwargs)
        settings["retry"] = Retry(NoBackoff(), 0)  # whether again, we say
        link: Any = self.pool.connection_class(**settings)
        link.connect()
        return Connection(link, self._coding, self.timeout)

    def drop_idle(self) -> None:
        """Those that nobody uses are as dead as the one that was just lost."""
        while True:
            try:
                self.idle.pop().close()
            except IndexError:
                return

    def forked(self) -> None:
        self.idle = deque()
        self.pid = os.getpid()

    def close(self) -> None:
        self.drop_idle()
        if self._pool is not None:
            self._pool.disconnect()


def _readable(sock: socket.socket) -> Callable[[int], Any]:
    """What tells whether there is something to read, or the end; of TLS also what it holds already."""
    look: Callable[[int], Any]
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        look = poll.poll
    else:
        look = functools.partial(_selected, sock)
    pending = getattr(sock, "pending", None)
    if pending is None:
        return look
    return lambda _: pending() or look(0)


def _selected(sock: socket.socket, timeout: float) -> bool:
    return bool(select.select([sock], [], [], timeout)[0])


def _quiet() -> dict[str, Any]:
    """Settings that keep a connection of redis-py's from what it would do beside our commands."""
    try:
        from redis.maint_notifications import MaintNotificationsConfig
    except ImportError:  # redis-py before 7
        return {}
    return {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}


_QUIET = _quiet()
