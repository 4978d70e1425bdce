"""Running a `Call` where the sessions are: a client of Redis that blocks, one that awaits, or a dictionary.

A client is any that has redis-py's `execute_command(name, *args)`: `redis.Redis`, `ShardedRedis`, and their
asyncio twins. Whatever goes wrong with it is a SessionUnavailable with the cause.
"""

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import hiredis
import redis
import redis.asyncio

from shardproxy.core.sessions.errors import SessionUnavailable
from shardproxy.core.sessions.model import Model
from shardproxy.core.sessions.operations import Call
from shardproxy.core.sessions.scripts import SCRIPTS
from shardproxy.sessions.borrowing import Deadlines, agive, atake, give, is_plain, is_simple, take

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


class Blocking:
    """Over a client that blocks."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.attempts = Attempts(options_of(client))
        pools = (redis.ConnectionPool, redis.BlockingConnectionPool)
        self._plain = is_plain(client, redis.Redis, _EXECUTE, pools)
        self._simple = self._plain and is_simple(client)

    def run(self, call: Call) -> list[Any]:
        command = self.attempts.first(call)
        while True:
            try:
                return self._send(command)
            except FAULTS as error:
                command = self.attempts.next(call, command, error)

    def _send(self, command: tuple[Any, ...]) -> list[Any]:
        reply: list[Any]
        if self._plain and redis.Redis.execute_command is _EXECUTE:
            pool, simple = self.client.connection_pool, self._simple
            connection = take(pool, simple)
            try:
                connection.send_packed_command((hiredis.pack_command(command),))
                reply = connection.read_response(self.attempts.decoded)
                return reply
            except LOST:
                if not connection.retry.get_retries():
                    raise
            finally:
                if not simple or not give(pool, connection):
                    pool.release(connection)
        reply = self.client.execute_command(*command, **self.attempts.options)
        return reply


class Awaiting:
    """Over a client of asyncio."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.attempts = Attempts(options_of(client))
        pools = (redis.asyncio.ConnectionPool, redis.asyncio.BlockingConnectionPool)
        self._plain = is_plain(client, redis.asyncio.Redis, _AEXECUTE, pools)
        self._simple = self._plain and is_simple(client)
        self._deadlines = Deadlines()

    async def run(self, call: Call) -> list[Any]:
        command = self.attempts.first(call)
        while True:
            try:
                return await self._send(command)
            except FAULTS as error:
                command = self.attempts.next(call, command, error)

    async def _send(self, command: tuple[Any, ...]) -> list[Any]:
        reply: list[Any]
        if self._plain and redis.asyncio.Redis.execute_command is _AEXECUTE:
            pool, simple = self.client.connection_pool, self._simple
            connection = await atake(pool, simple)
            try:
                if simple:
                    self._deadlines.begin(connection)
                packed, writer = hiredis.pack_command(command), getattr(connection, "_writer", None)
                if writer is None or connection.health_check_interval:
                    await connection.send_packed_command((packed,))
                else:  # a task less, which it makes to wait with a timeout: the reply is waited for with one
                    writer.write(packed)
                timeout = math.inf if simple else None
                reply = await connection.read_response(self.attempts.decoded, timeout=timeout)
                return reply
            except LOST:
                if not connection.retry.get_retries():
                    raise
            finally:
                self._deadlines.end(connection)
                if not simple or not agive(pool, connection):
                    await pool.release(connection)
        reply = await self.client.execute_command(*command, **self.attempts.options)
        return reply


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
