"""A memcached node that answers as a Redis: a connection that takes RESP and runs the core's programs.

What is sent is cut into commands again; each is a program (core/memcached). The first requests of a batch are
written together, as long as no key comes twice: what comes later has to see what was done before. What
memcached cannot do is refused in the proxy's words; so is every transaction, as a whole.
"""

import contextlib
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

from shardproxy.client.connection import BUFFER, CLOSED, NOBODYS, Connection
from shardproxy.client.naming import encrypted
from shardproxy.client.wire import NOTHING, Coding
from shardproxy.core.commands import CommandTable
from shardproxy.core.memcached import Ask, Failure, Frames, Node, Reply, Value, encode, parse, start

NO_TRANSACTIONS = "ERR transactions are not possible on a memcached shard ('{}')"


class _Link:
    """What `Connection` expects of redis-py's."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def disconnect(self) -> None:
        self._sock.close()


class _Run:
    """One command on its way. reply: its result, when it is there."""

    __slots__ = ("ask", "program", "reply")

    def __init__(self, program: Any) -> None:
        self.program = program
        self.ask: Ask | None = None
        self.reply: Value = None
        self.go_on(None)

    def go_on(self, replies: list[Reply] | None) -> None:
        try:
            self.ask = next(self.program) if replies is None else self.program.send(replies)
        except StopIteration as done:
            self.ask, self.reply = None, done.value


class MemcachedConnection(Connection):
    """See `connect`."""

    __slots__ = ("_frames", "_node", "_proto", "_ready", "_replies", "_runs", "_table", "_waiting")

    def __init__(
        self,
        link: _Link,
        coding: Coding,
        timeout: float | None,
        table: CommandTable,
        shard: str,
        address: str,
    ) -> None:
        super().__init__(link, coding, timeout)
        self.send = self._send
        self._frames, self._replies = Frames(), deque[Reply]()
        self._table, self._proto = table, 3
        self._waiting: deque[list[bytes]] = deque()  # commands that are not begun
        self._runs: list[_Run] = []  # those whose first requests were written together
        self._ready: deque[_Run] = deque()
        self._node = Node(time.time, shard=shard, address=address)
        self._look()

    def _look(self) -> None:
        """Its clock, and how large an item may be."""
        self.sock.sendall(b"stats\r\nstats settings\r\n")
        now, stats = time.time(), self._reply().flags
        settings = self._reply().flags
        with _sense():
            limit = int(settings.get("item_size_max", b"1048576"))
            offset = int(stats["time"]) - int(now) if "time" in stats else 0
        self._node = self._node._replace(offset=float(offset), limit=limit)

    def _reply(self) -> Reply:
        while not self._replies:
            data = self.sock.recv(BUFFER)
            if not data:
                raise ConnectionResetError(CLOSED)
            with _sense():
                self._replies.extend(map(parse, self._frames.feed(data)))
        return self._replies.popleft()

    def _send(self, data: bytes) -> None:
        reader = hiredis.Reader(notEnoughData=NOTHING)
        reader.feed(data)
        commands = []
        while (items := reader.gets()) is not NOTHING:
            commands.append(items)
        if any(items[0].lower() == b"multi" for items in commands):
            refused = Failure(NO_TRANSACTIONS.format(self._node.shard))
            self._ready.extend(_refused(refused) for _ in commands)
            return
        self._waiting.extend(commands)
        self._begin()

    def _begin(self) -> None:
        """Writes the first requests of the next commands, up to one with a key that was there."""
        seen: set[bytes] = set()
        requests = []
        while self._waiting:
            items = self._waiting[0]
            row = self._table.row(*items[:2])
            name = row.name if row is not None else items[0].decode(errors="replace")
            keys: set[bytes] = set()
            with contextlib.suppress(ValueError):
                keys = {items[at] for at in self._table.keys_of(items)}
            if self._runs and (keys & seen or not keys):
                break
            seen |= keys
            run = _Run(start(name, self._waiting.popleft(), self._node))
            self._runs.append(run)
            if run.ask is not None:
                requests.append(run.ask.data)
            if not keys:
                break
        if requests:
            self.sock.sendall(b"".join(requests))

    def _next(self) -> Any:
        """The next command's reply as RESP."""
        while not self._ready:
            if not self._runs:
                if not self._waiting:
                    raise ConnectionError("no command is waiting for a reply")
                self._begin()
            pending = [run for run in self._runs if run.ask is not None]
            while pending:
                for run in pending:
                    assert run.ask is not None
                    replies = [self._reply() for _ in range(run.ask.replies)]
                    with _sense():
                        run.go_on(replies)
                pending = [run for run in pending if run.ask is not None]
                for run in pending:
                    assert run.ask is not None
                    if pause := getattr(run.ask, "pause", 0):
                        time.sleep(pause)
                if pending:
                    self.sock.sendall(b"".join(run.ask.data for run in pending if run.ask is not None))
            if self._replies or self._frames.held:  # the next call would take it for its own
                raise InvalidResponse(NOBODYS)
            self._ready.extend(self._runs)
            self._runs = []
        return encode(self._ready.popleft().reply, self._proto)

    def read(self, decode: bool = True) -> Any:
        self.feed(self._next())
        return self.gets() if decode else self.gets(False)

    def read_many(self, count: int, into: list[Any]) -> None:
        for _ in range(count):
            into.append(self.read())


@contextlib.contextmanager
def _sense() -> Iterator[None]:
    """What a node that is no memcached sends makes whoever reads it stumble."""
    try:
        yield
    except (ValueError, LookupError, TypeError) as error:
        raise InvalidResponse(f"it does not speak memcached's protocol ({type(error).__name__})") from error


def _refused(failure: Failure) -> _Run:
    run = _Run(iter(()))
    run.reply = failure
    return run


def connect(
    shard: str, address: str, reach: dict[str, Any], coding: Coding, table: CommandTable
) -> MemcachedConnection:
    """Raises redis-py's ConnectionError or TimeoutError, as a connection of its own would."""
    timeout = reach.get("socket_connect_timeout")
    sock: socket.socket | None = None
    try:
        if (path := reach.get("unix_socket_path")) is not None:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout)
            sock.connect(path)
        else:
            sock = socket.create_connection((reach["host"], reach["port"]), timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if reach.get("ssl"):
                sock = encrypted(sock, reach)
        return MemcachedConnection(_Link(sock), coding, reach.get("socket_timeout"), table, shard, address)
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, (TimeoutError, BlockingIOError)):
            raise RedisTimeoutError("Timeout connecting to server") from None
        if isinstance(error, OSError):
            raise RedisConnectionError(f"Error connecting to {address}: {error}")  # noqa: B904  # as redis-py: the reason is its context
        raise
