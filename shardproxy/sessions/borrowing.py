"""A connection out of the pool of redis-py's own clients, for one command, and back.

`get_connection` and `release` count, tell listeners and ask locks for what a client as it is usually made has
none of, and a timeout is half of what awaiting a reply costs: together a quarter of the CPU of a session read
and written. Here is what is left of them then. Whatever is not as usual (another pool, another release of
redis-py, no connection that is free and fit) goes through them.
"""

import asyncio
import os
from typing import Any

import redis
import redis.asyncio

VERSION = tuple(map(int, redis.__version__.split(".")[:2]))
CHECKED = VERSION >= (8,)  # before, `get_connection` has seen to that


def is_plain(client: Any, kind: type[Any], execute: Any, pools: tuple[type, ...]) -> bool:
    """redis-py's own client as it is usually made: a connection of its pool can be used as it does itself.

    That is a third of the CPU of a command less. Not with its cache, its metrics, or before redis-py 5.3.
    """
    pool = getattr(client, "connection_pool", None)
    return (
        type(client) is kind
        and type(pool) in pools
        and client.connection is None
        and getattr(pool, "cache", None) is None
        and execute.__module__ == f"{kind.__module__}"
        and VERSION >= (5, 3)
    )


def is_simple(client: Any) -> bool:
    """Whether nobody waits for a connection of its pool, or is told of one that comes back."""
    pool = client.connection_pool
    return (
        type(pool) in (redis.ConnectionPool, redis.asyncio.ConnectionPool)
        and (8,) <= VERSION < (9,)
        and isinstance(getattr(pool, "_available_connections", None), list)
        and hasattr(pool, "_in_use_connections")
        and hasattr(pool, "_lock")
        and pool.connection_kwargs.get("credential_provider") is None
    )


def take(pool: Any, simple: bool) -> Any:
    """A connection that has no reply left in it: whose reply comes, is ours. RedisError.

    redis-py 8's `get_connection` gives one that has, in case it is a notification of a node's maintenance.
    """
    connection = None
    if simple and pool.pid == os.getpid():  # else this is a child process, and they are its parent's
        with pool._lock:
            if pool._available_connections:
                connection = pool._available_connections.pop()
                pool._in_use_connections.add(connection)
    if connection is None:
        connection = pool.get_connection()
    if connection.is_connected and CHECKED:
        try:
            unfit = connection.can_read()
        except redis.RedisError:  # closed
            unfit = True
        except BaseException:
            pool.release(connection)
            raise
        if unfit:
            connection.disconnect()  # sending connects it
    return connection


async def atake(pool: Any, simple: bool) -> Any:
    """`take`, of asyncio."""
    if simple and pool._available_connections and not pool._lock.locked():
        connection = pool._available_connections.pop()
        pool._in_use_connections.add(connection)
    else:
        connection = await pool.get_connection()
    if connection.is_connected and CHECKED:
        try:
            unfit = await connection.can_read()
        except redis.RedisError:
            unfit = True
        except BaseException:
            await pool.release(connection)
            raise
        if unfit:
            await connection.disconnect()
    return connection


def give(pool: Any, connection: Any) -> bool:
    """Puts it back, if it may stay."""
    with pool._lock:
        return _give(pool, connection)


def agive(pool: Any, connection: Any) -> bool:
    """`give`, of asyncio."""
    return not pool._lock.locked() and _give(pool, connection)


def _give(pool: Any, connection: Any) -> bool:
    if connection.should_reconnect() or connection not in pool._in_use_connections:
        return False
    pool._in_use_connections.remove(connection)
    pool._available_connections.append(connection)
    return True


class Deadlines:
    """Ends connections whose reply does not come in time: with one timer, not with one for each reply."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: dict[Any, float] = {}

    def begin(self, connection: Any) -> None:
        """It has its `socket_timeout` from now on, if it has one."""
        if connection.socket_timeout is None:
            return
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # as in tests, where each has one; whoever waits in the last is gone
            self._loop, self._timer = loop, None
            self._waiting.clear()
        self._waiting[connection] = when = loop.time() + connection.socket_timeout
        if self._timer is None:
            self._timer = loop.call_at(when, self._look)

    def end(self, connection: Any) -> None:
        self._waiting.pop(connection, None)

    def _look(self) -> None:
        loop = self._loop
        assert loop is not None
        now = loop.time()
        for connection in [each for each, when in self._waiting.items() if when <= now]:
            del self._waiting[connection]
            if connection._writer is not None:
                connection._writer.transport.abort()
        self._timer = loop.call_at(min(self._waiting.values()), self._look) if self._waiting else None
