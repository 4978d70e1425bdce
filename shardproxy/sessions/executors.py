"""Running a `Call` where the sessions are: a client of Redis that blocks, one that awaits, or a dictionary.

A client is any that has redis-py's `execute_command(name, *args)`: `redis.Redis`, `ShardedRedis`, and their
asyncio twins. Whatever goes wrong with it is a SessionUnavailable with the cause.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import hiredis
import redis
import redis.asyncio

from shardproxy.core.sessions.errors import SessionUnavailable
from shardproxy.core.sessions.model import Model
from shardproxy.core.sessions.operations import Call
from shardproxy.core.sessions.scripts import SCRIPTS

FAULTS = (redis.RedisError, OSError, EOFError, TimeoutError)
LOST = (redis.ConnectionError, redis.TimeoutError)
# Who traces or measures commands replaces these: then every command goes through theirs
_EXECUTE, _AEXECUTE = redis.Redis.execute_command, redis.asyncio.Redis.execute_command


class Attempts:
    """What is sent for one call, until it is answered: EVALSHA; EVAL, when the script is new to the node.

    plain: remembered by the store, as its nodes are too old for a script's flags.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.decoded = bool(options)  # what `read_response` is told first: not to decode
        self.plain = False

    def first(self, call: Call) -> tuple[Any, ...]:
        name, keys, args = call
        script = SCRIPTS[name]
        return ("EVALSHA", script.plain_sha if self.plain else script.sha, len(keys), *keys, *args)

    def next(self, call: Call, sent: tuple[Any, ...], error: Exception) -> tuple[Any, ...]:
        """What to send after that failed. SessionUnavailable."""
        said = str(error)
        script = SCRIPTS[call.script]
        if isinstance(error, redis.ResponseError):
            if sent[0] == "EVALSHA" and (
                isinstance(error, redis.exceptions.NoScriptError) or "NOSCRIPT" in said
            ):
                return ("EVAL", script.plain if self.plain else script.text, *sent[2:])
            if not self.plain and "near '#'" in said:  # a node before Redis 7
                self.plain = True
                return self.first(call)
        raise unavailable(error) from error


def unavailable(error: Exception) -> SessionUnavailable:
    return SessionUnavailable(f"the session store cannot be used: {type(error).__name__}")


def options_of(client: Any) -> dict[str, Any]:
    """Fields may be binary: a client that decodes replies is asked not to, each time."""
    pool = getattr(client, "connection_pool", None)
    decodes = getattr(pool, "connection_kwargs", {}).get("decode_responses", False)
    return {"NEVER_DECODE": True} if decodes else {}


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
        and "_available_connections" in vars(pool)
        and tuple(map(int, redis.__version__.split(".")[:2])) >= (5, 3)
    )


class Blocking:
    """Over a client that blocks."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.attempts = Attempts(options_of(client))
        pools = (redis.ConnectionPool, redis.BlockingConnectionPool)
        self._plain = is_plain(client, redis.Redis, _EXECUTE, pools)

    def run(self, call: Call) -> list[Any]:
        command = self.attempts.first(call)
        while True:
            try:
                return self._send(command)
            except FAULTS as error:
                command = self.attempts.next(call, command, error)

    def _send(self, command: tuple[Any, ...]) -> list[Any]:
        if self._plain and redis.Redis.execute_command is _EXECUTE:
            pool = self.client.connection_pool
            connection = pool.get_connection()
            try:
                connection.send_packed_command((hiredis.pack_command(command),))
                return cast(list[Any], connection.read_response(self.attempts.decoded))
            except LOST:
                if not connection.retry.get_retries():
                    raise
            finally:
                pool.release(connection)
        return cast(list[Any], self.client.execute_command(*command, **self.attempts.options))


class Awaiting:
    """Over a client of asyncio."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.attempts = Attempts(options_of(client))
        pools = (redis.asyncio.ConnectionPool, redis.asyncio.BlockingConnectionPool)
        self._plain = is_plain(client, redis.asyncio.Redis, _AEXECUTE, pools)

    async def run(self, call: Call) -> list[Any]:
        command = self.attempts.first(call)
        while True:
            try:
                return await self._send(command)
            except FAULTS as error:
                command = self.attempts.next(call, command, error)

    async def _send(self, command: tuple[Any, ...]) -> list[Any]:
        if self._plain and redis.asyncio.Redis.execute_command is _AEXECUTE:
            pool = self.client.connection_pool
            connection = await pool.get_connection()
            try:
                packed, writer = hiredis.pack_command(command), getattr(connection, "_writer", None)
                if writer is None or connection.health_check_interval:
                    await connection.send_packed_command((packed,))
                else:  # a task less, which it makes to wait with a timeout: the reply is waited for with one
                    writer.write(packed)
                return cast(list[Any], await connection.read_response(self.attempts.decoded))
            except LOST:
                if not connection.retry.get_retries():
                    raise
            finally:
                await pool.release(connection)
        return cast(list[Any], await self.client.execute_command(*command, **self.attempts.options))


class Memory:
    """In a dictionary of this process. clock: seconds since 1970; tests of an application may move it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.client = None
        self.model = Model()
        self._lock = threading.Lock()
        self._calls = 0

    def run(self, call: Call) -> list[Any]:
        with self._lock:
            now = int(self.clock() * 1000)
            self._calls += 1
            if self._calls % 1000 == 0:
                self.model.sweep(now)
            return self.model.run(call.script, call.keys, call.args, now)


class AwaitingMemory(Memory):
    """The same, awaited."""

    async def run(self, call: Call) -> list[Any]:  # type: ignore[override]  # as `Awaiting` is to `Blocking`
        return super().run(call)
