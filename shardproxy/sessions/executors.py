"""Running a `Call` where the sessions are: a client of Redis that blocks, one that awaits, or a dictionary.

A client is any that has redis-py's `execute_command(name, *args)`: `redis.Redis`, `ShardedRedis`, and their
asyncio twins. Whatever goes wrong with it is a SessionUnavailable with the cause.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import redis

from shardproxy.core.sessions.errors import SessionUnavailable
from shardproxy.core.sessions.model import Model
from shardproxy.core.sessions.operations import Call
from shardproxy.core.sessions.scripts import SCRIPTS

FAULTS = (redis.RedisError, OSError, EOFError, TimeoutError)


class Attempts:
    """What is sent for one call, until it is answered: EVALSHA; EVAL, when the script is new to the node.

    plain: remembered by the store, as its nodes are too old for a script's flags.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.plain = False

    def first(self, call: Call) -> list[Any]:
        script = SCRIPTS[call.script]
        sha = script.plain_sha if self.plain else script.sha
        return ["EVALSHA", sha, len(call.keys), *call.keys, *call.args]

    def next(self, call: Call, sent: list[Any], error: Exception) -> list[Any]:
        """What to send after that failed. SessionUnavailable."""
        said = str(error)
        script = SCRIPTS[call.script]
        if isinstance(error, redis.ResponseError):
            if sent[0] == "EVALSHA" and (
                isinstance(error, redis.exceptions.NoScriptError) or "NOSCRIPT" in said
            ):
                return ["EVAL", script.plain if self.plain else script.text, *sent[2:]]
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

    def run(self, call: Call) -> list[Any]:
        command = self.attempts.first(call)
        while True:
            try:
                return cast(list[Any], self.client.execute_command(*command, **self.attempts.options))
            except FAULTS as error:
                command = self.attempts.next(call, command, error)


class Awaiting:
    """Over a client of asyncio."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.attempts = Attempts(options_of(client))

    async def run(self, call: Call) -> list[Any]:
        command = self.attempts.first(call)
        while True:
            try:
                return cast(list[Any], await self.client.execute_command(*command, **self.attempts.options))
            except FAULTS as error:
                command = self.attempts.next(call, command, error)


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
