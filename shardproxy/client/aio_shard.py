"""A shard's node as one event loop sees it: the connection that all calls share, and those of one call alone.

How a node is reached is redis-py's to say: its settings make a connection object that is never connected,
from which host, TLS, login and database are taken; the greeting is what redis-py would say, in one write.
Rules: connections are made when they are first needed; one whose call was given up before its reply came is
closed, never kept; what happens to them is evidence for `Nodes`, which decides.
"""

import asyncio
import functools
import socket
import time
from collections.abc import Callable
from typing import Any

import redis.exceptions
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, RedisError

from shardproxy.client.aio_connection import Connection, Lost
from shardproxy.client.health import Nodes
from shardproxy.client.naming import async_redis_of
from shardproxy.client.wire import Coding, pack
from shardproxy.core.commands import CommandTable

MOST = 1024  # connections to one node, of all kinds: calls that wait for data have one each
KEPT = 16  # private connections that nobody uses now
TOO_MANY = "Too many connections"  # in redis-py's words
TooMany: type[RedisError] = getattr(redis.exceptions, "MaxConnectionsError", redis.exceptions.ConnectionError)
REFUSED = (ConnectionRefusedError, ConnectionResetError, FileNotFoundError, socket.gaierror)
PING = b"*1\r\n$4\r\nPING\r\n"


class AsyncShard:
    """reach: keyword arguments of redis-py's Redis. line: what takes a request at once, or None."""

    def __init__(
        self, name: str, address: str, reach: dict[str, Any], coding: Coding, patience: float
    ) -> None:
        self.name, self.address = name, address
        self.line: Connection | None = None
        self.answered = self.judged = 0  # see asking.Asker._failed
        self.timeout: float | None = reach.get("socket_timeout")
        self.nodes: Nodes | None = None  # who is told of failures
        self.slow_call = float("inf")
        self.memcached: CommandTable | None = None  # it is one; the table of its commands
        self.shares = True  # calls share a connection
        self._reach, self._coding = reach, coding
        self._patience = max(patience, 2 * (self.timeout or 0.0))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._redis: Redis | None = None
        self._like: Any = None
        self._shared: Connection | None = None
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._retired = False

    def __repr__(self) -> str:
        return f"<AsyncShard {self.name!r} at {self.address}>"

    @property
    def redis(self) -> Redis:
        """redis-py's own client of this node, for what needs connections of redis-py's: pub/sub, MONITOR."""
        if self._redis is None:
            self._redis = async_redis_of(self._reach)
        return self._redis

    # --- connections ---

    def shared(self) -> Connection:
        """What is asked of it before it is up is written then."""
        found = self._shared
        if found is None or found.lost is not None:
            found = self._shared = self._new(self.timeout)
            task = found.loop.create_task(self._open_shared(found))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        return found

    async def private(self) -> Connection:
        """One that nobody else uses, until `release`. Raises Lost."""
        while self._idle:
            found = self._idle.pop()
            if found.lost is None:
                return found
        if len(self._all) >= MOST:
            raise Lost(TOO_MANY, False, error=TooMany(TOO_MANY))
        found = self._new(None)
        await self._open(found)
        return found

    async def listening(self, listener: Callable[[Any], None]) -> Connection:
        """One for a subscriber: see aio_connection. Raises Lost."""
        made = self._new(None, listener)
        await self._open(made)
        return made

    def release(self, connection: Connection) -> None:
        """It is kept if it owes nothing."""
        if connection.lost is None and not connection.owed and len(self._idle) < KEPT and not self._retired:
            self._idle.append(connection)
        else:
            connection.close("it is not needed any more")

    async def trial(self, pings: int) -> tuple[str, bool]:
        """PINGs on a new connection: why they were not answered, "" if they were; whether it was refused."""
        connection = self._new(self.timeout)
        try:
            refused = await self._greeted(connection)
            for _ in range(0 if connection.lost else pings):
                reply = await connection.ask(PING)
                if isinstance(reply, Lost):
                    return "a trial was not answered in time" if reply.late else reply.reason, False
                if isinstance(reply, RedisError):
                    return str(reply), False
            return connection.lost or "", refused
        finally:
            connection.close("it was a trial")

    def _new(self, timeout: float | None, listener: Callable[[Any], None] | None = None) -> Connection:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self.forget(loop)
        patience = self._patience if timeout is not None else None
        made = Connection(
            loop, self._coding.reader(), self, timeout=timeout, patience=patience, listener=listener
        )
        self._all.add(made)
        return made

    async def _open_shared(self, connection: Connection) -> None:
        try:
            await self._open(connection)
        except Lost:
            return  # whoever has asked has been told
        self.ready(connection)

    async def _open(self, connection: Connection) -> None:
        """Raises Lost; it is evidence."""
        refused = await self._greeted(connection)
        if connection.lost is not None:
            if connection.error is None or not isinstance(connection.error, AuthenticationError):
                self.failed(connection.lost, refused)
            raise Lost(connection.lost, False, error=connection.error, slow=connection.slow)

    async def _greeted(self, connection: Connection) -> bool:
        """Whether it was refused; if `connection.lost`, it has failed."""
        if self._like is None:
            pool: Any = self.redis.connection_pool
            self._like = pool.make_connection()
        limit = self._like.socket_connect_timeout
        try:
            async with asyncio.timeout(limit):
                requests, optional, dial = list[bytes](), set[int](), self._dial
                if self.memcached is None:
                    requests, optional = await self._greeting()
                else:
                    dial = functools.partial(self._dial_memcached, connection, self.memcached)

                def check(replies: list[Any]) -> None:
                    for number, reply in enumerate(replies):
                        if isinstance(reply, Exception) and number not in optional:
                            raise reply

                await connection.open(dial, requests, check)
        except TimeoutError:
            connection.slow = True
            connection.close(f"it could not be connected to within {limit or 0:g} s")
        except REFUSED as error:
            connection.close(_reason(error))
            return True
        except (OSError, Lost, RedisError) as error:
            connection.close(_reason(error))
        except BaseException:
            connection.close("its call was given up")
            raise
        return False

    async def _dial(self, factory: Any) -> None:
        like, loop = self._like, asyncio.get_running_loop()
        if path := getattr(like, "path", ""):
            await loop.create_unix_connection(factory, path)
            return
        tls = getattr(like, "ssl_context", None)
        transport, _ = await loop.create_connection(
            factory,
            like.host,
            int(like.port),
            ssl=tls.get() if tls is not None else None,
            server_hostname=getattr(like, "server_name", None) if tls is not None else None,
        )
        sock = transport.get_extra_info("socket")
        if sock is not None and getattr(like, "socket_keepalive", False):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (like.socket_keepalive_options or {}).items():
                sock.setsockopt(socket.IPPROTO_TCP, option, value)

    async def _dial_memcached(self, connection: Connection, table: CommandTable, factory: Any) -> None:
        """What is above it talks RESP with a translator."""
        from shardproxy.client.aio_memcached import Translator

        made = Translator(connection, table, self.name, self.address)
        await self._dial(lambda: made)
        await made.look()

    async def _greeting(self) -> tuple[list[bytes], set[int]]:
        """What redis-py says first, and which of it may be refused."""
        like, requests, optional = self._like, [], set[int]()
        login: tuple[str, ...] = ()
        if like.credential_provider is not None:
            login = tuple(await like.credential_provider.get_credentials_async())
        elif like.username or like.password:
            login = (like.username or "default", like.password or "")
        if int(like.protocol) == 3:
            named = login if len(login) != 1 else ("default", *login)
            requests.append(("HELLO", 3, *(("AUTH", *named) if login else ())))
        elif login:
            requests.append(("AUTH", *(login[1:] if login[0] == "default" else login)))
        if like.client_name:
            requests.append(("CLIENT", "SETNAME", like.client_name))
        driver = getattr(like, "driver_info", None)
        about = (
            ("LIB-NAME", driver.formatted_name if driver else getattr(like, "lib_name", None)),
            ("LIB-VER", driver.lib_version if driver else getattr(like, "lib_version", None)),
        )
        for what, value in about:
            if value:
                optional.add(len(requests))
                requests.append(("CLIENT", "SETINFO", what, value))
        if like.db:
            requests.append(("SELECT", like.db))
        return [pack(request) for request in requests], optional

    # --- aio_connection.Owner ---

    def heard(self, count: int, slow: int) -> None:
        self.answered += count
        if slow and self.nodes is not None:
            ok, self.judged = self.answered - self.judged, self.answered
            self.nodes.slow(self.address, time.monotonic(), max(min(ok, 20), slow), slow)
        if self._retired:
            self.retire()

    def late(self) -> None:
        self.failed(f"no answer within {self.timeout or 0:g} s")

    def failed(self, reason: str, refused: bool = False) -> None:
        ok, self.judged = self.answered - self.judged, self.answered
        if self.nodes is not None and self._loop is not None:
            self.nodes.failed(self.address, time.monotonic(), reason, refused, min(ok, 20))

    def closed(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection is self.line:
            self.line = None
        if connection in self._idle:
            self._idle.remove(connection)

    def ready(self, connection: Connection) -> None:
        if connection is self._shared and connection.up and self.shares and not self._retired:
            self.line = connection

    # --- its end ---

    def retire(self) -> None:
        """It is no shard's node any more: when what was begun is done, its connections are closed."""
        self._retired = True
        self.line = None
        shared = [self._shared] if self._shared is not None and not self._shared.owed else []
        for each in [*self._idle, *shared]:  # the others have somebody who releases them
            each.close("its shard is not there any more")

    def stop(self) -> list[asyncio.Task[None]]:
        """Closes all of its connections at once; the tasks that have to end yet."""
        opening = list(self._opening)
        for each in list(self._all):
            each.close("the client is closed")
        return opening

    async def aclose(self) -> None:
        """What redis-py has opened here."""
        if self._redis is not None:
            await self._redis.aclose()
            await self._redis.connection_pool.disconnect()

    def forget(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Begins anew, in another loop: what belongs to the old one is left to it."""
        self.line = self._shared = self._redis = self._like = None
        self._idle, self._all, self._opening = [], set(), set()
        self._loop = loop


def _reason(error: BaseException) -> str:
    """Why, in a few words, without addresses."""
    if isinstance(error, OSError) and error.strerror and error.args[:1] != (None,):
        return str(error.strerror)[:200]
    return str(error)[:200] or type(error).__name__
