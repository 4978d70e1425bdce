"""handlers/asking without a node: what comes of replies that say nothing."""

from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeServer

from shardproxy.handlers.asking import ask_in_steps


class SaysAlways:
    """A reactor with one memcached node, which answers each step with this."""

    def __init__(self, *frames: bytes) -> None:
        self.frames = list(frames)

    def memcached(self, node: int) -> tuple[int, float]:
        return 1 << 20, 0.0

    def shard_of(self, node: int) -> str:
        return "cache"

    def placements(self) -> int:
        return 1

    def ask(self, node: int, request: bytes, done: Callable[[bytes], None], **how: Any) -> None:
        done(self.frames.pop(0) if len(self.frames) > 1 else self.frames[0])


async def asked(*command: str, says: tuple[bytes, ...]) -> bytes:
    server: Any = FakeServer(reactor=SaysAlways(*says))
    return await ask_in_steps(server, 0, command[0].lower(), [each.encode() for each in command])


@pytest.mark.parametrize(
    "command", ["GET k", "INCR k", "TTL k", "DEL k", "SET k v", "DBSIZE", "FLUSHALL", "TYPE k"]
)
async def test_a_value_without_its_size_is_an_error(command: str) -> None:
    answer = await asked(*command.split(), says=(b"VA\r\n",))
    assert answer.startswith(b"-ERR memcached shard 'cache' at ") and answer.endswith(b" answers 'VA'\r\n")


async def test_not_where_the_command_has_run_already() -> None:
    assert await asked("FLUSHALL", says=(b"OK\r\n", b"VA\r\n")) == b"+OK\r\n"
