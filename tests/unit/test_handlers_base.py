"""The registry and the guard: whatever a handler does, its slot is filled once; the log tells no secrets."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import TABLE_OF_COMMANDS, FakeCall, FakeClient, FakeServer, ask, call_of

import shardproxy.proxy.sessions  # noqa: F401  # a family that a higher layer adds
from shardproxy import handlers
from shardproxy.handlers import base

INTERNAL = b"-ERR internal error: see the log of shardproxy\r\n"


@pytest.fixture
def registry() -> Iterator[dict[str, Any]]:
    """The registry, put back afterwards."""
    saved = dict(base._HANDLERS)
    yield base._HANDLERS
    base._HANDLERS.clear()
    base._HANDLERS.update(saved)


def put(registry: dict[str, Any], handler: Any) -> None:
    registry["ping"] = handler


def test_every_local_command_has_a_handler_and_nothing_else_has() -> None:
    rows = [flat for row in TABLE_OF_COMMANDS.rows() for flat in row.flat()]
    # a container alone is refused for its arity; "command" alone is a command
    alone = [row for row in rows if not row.subcommands or row.name == "command"]
    local = {row.name for row in alone if row.kind == "local" or row.across or row.channel}
    # EXEC is the engine's, but for a transaction with commands of handlers in it
    assert local | {"exec"} == handlers.handled()


def test_a_name_is_registered_once(registry: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ping"):
        base.handles("ping")(lambda server, call: b"")


async def test_an_exception_answers_an_internal_error_and_is_logged_without_arguments(
    registry: dict[str, Any],
) -> None:
    put(registry, lambda server, call: int(call.args[1]))
    server = FakeServer()
    assert await ask(server, FakeClient(), "PING", "hunter2") == INTERNAL
    ((event, fields),) = server.logged
    assert event == "handler_failed"
    assert fields["command"] == "ping"
    assert isinstance(fields["exc_info"], ValueError)


async def test_an_exception_after_the_reply_leaves_the_reply_alone(registry: dict[str, Any]) -> None:
    def handler(server: Any, call: FakeCall) -> None:
        call.reply(b"+OK\r\n")
        raise RuntimeError

    put(registry, handler)
    server = FakeServer()
    assert await ask(server, FakeClient(), "PING") == b"+OK\r\n"
    assert len(server.logged) == 1


async def test_an_async_handler_fills_its_slot_later(registry: dict[str, Any]) -> None:
    go = asyncio.Event()

    async def handler(server: Any, call: FakeCall) -> bytes:
        await go.wait()
        return b"+late\r\n"

    put(registry, handler)
    server, call = FakeServer(), call_of(FakeClient(), "PING")
    handlers.dispatch(server, call)  # type: ignore[arg-type]  # fakes
    await asyncio.sleep(0)
    assert call.replies == []
    assert len(server.tasks) == 1
    go.set()
    await asyncio.gather(*server.tasks)
    await asyncio.sleep(0)
    assert call.replies == [b"+late\r\n"]
    assert not server.tasks


async def test_an_async_handler_that_fails_or_is_cancelled_fills_its_slot(registry: dict[str, Any]) -> None:
    async def handler(server: Any, call: FakeCall) -> bytes:
        await asyncio.sleep(0)
        raise RuntimeError

    put(registry, handler)
    server = FakeServer()
    assert await ask(server, FakeClient(), "PING") == INTERNAL

    async def endless(server: Any, call: FakeCall) -> bytes:
        await asyncio.Event().wait()
        return b""

    put(registry, endless)
    call = call_of(FakeClient(), "PING")
    handlers.dispatch(server, call)  # type: ignore[arg-type]  # fakes
    await asyncio.sleep(0)
    (task,) = server.tasks
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert call.replies == [INTERNAL]


async def test_a_row_without_a_handler_is_said_to_be_unsupported() -> None:
    client = FakeClient()
    assert await ask(FakeServer(), client, "CLIENT", "FOO") == (
        b"-ERR unknown subcommand 'FOO'. Try CLIENT HELP.\r\n"
    )
    assert (await ask(FakeServer(), client, "RESTORE-ASKING", "k", "0", "v")).startswith(
        b"-ERR 'RESTORE-ASKING' is not supported yet: "
    )
    disabled = b"-ERR This instance has cluster support disabled\r\n"
    assert await ask(FakeServer(), client, "CLUSTER", "INFO") == disabled
