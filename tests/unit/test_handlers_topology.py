"""PROXY TOPOLOGY WATCH: whom it answers at once, who waits, and what ends that."""

import asyncio
import json
from typing import Any

import pytest
from fakes import FakeCall, FakeClient, FakeServer

from shardproxy import handlers


async def call(server: FakeServer, *args: str, client: FakeClient | None = None, **more: Any) -> FakeCall:
    """The call, as it is after two turns of the loop."""
    texts = [b"PROXY", b"TOPOLOGY", *(arg.encode() for arg in args)]
    made = FakeCall(texts, client or FakeClient(), server.commands.row(*texts[:2]), **more)
    handlers.dispatch(server, made)  # type: ignore[arg-type]  # fakes
    for _ in range(2):
        await asyncio.sleep(0)
    return made


async def finished(made: FakeCall, server: FakeServer) -> bytes:
    await asyncio.gather(*server.tasks)
    return made.replies[0]


def generation(frame: bytes) -> int:
    return int(json.loads(frame.partition(b"\r\n")[2])["generation"])


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("WAIT",), "ERR syntax error"),
        (("WATCH", "0", "1", "2"), "ERR syntax error"),
        (("WATCH", "x"), "ERR value is not an integer or out of range"),
        (("WATCH", "-1"), "ERR value is not an integer or out of range"),
        (("WATCH", "0", "1.5"), "ERR value is not an integer or out of range"),
    ],
)
async def test_wrong_arguments(args: tuple[str, ...], error: str) -> None:
    assert (await call(FakeServer(), *args)).replies == [b"-" + error.encode() + b"\r\n"]


async def test_who_has_another_generation_is_answered_at_once_and_nobody_waits_in_a_transaction() -> None:
    server = FakeServer()
    shown = (await call(server)).replies[0]
    assert generation(shown) == 0
    assert server.run_id.encode() in shown
    assert generation((await call(server, "watch", "7")).replies[0]) == 0
    assert generation((await call(server, "WATCH", "0", "0")).replies[0]) == 0
    assert generation((await call(server, "WATCH", in_exec=True)).replies[0]) == 0
    assert not server.waits


async def test_who_has_this_one_waits_for_the_next() -> None:
    server = FakeServer()
    clients = [FakeClient(id=1), FakeClient(id=2)]
    waiting = [
        await call(server, "WATCH", "0", client=clients[0]),
        await call(server, "WATCH", client=clients[1]),
    ]
    assert not any(each.done for each in waiting)
    assert all(client.waiting for client in clients)
    server.topology = server.topology.with_node_state("127.0.0.1:7002", "out", "gone")
    server.watchers.wake()
    assert [generation(await finished(each, server)) for each in waiting] == [1, 1]
    assert not any(client.waiting for client in clients)
    assert not server.waits


async def test_a_change_before_the_wait_has_begun_is_not_missed() -> None:
    """The handler's task begins a turn of the loop later than the command came."""
    server, texts = FakeServer(), [b"PROXY", b"TOPOLOGY", b"WATCH", b"0"]
    made = FakeCall(texts, FakeClient(), server.commands.row(*texts[:2]))
    handlers.dispatch(server, made)  # type: ignore[arg-type]  # fakes
    server.topology = server.topology.with_node_state("127.0.0.1:7002", "out", "gone")
    server.watchers.wake()
    for _ in range(3):
        await asyncio.sleep(0)
    assert made.done
    assert generation(made.replies[0]) == 1
    assert not server.waits


async def test_the_end_of_its_time_answers_with_what_there_is() -> None:
    server = FakeServer()
    assert generation(await finished(await call(server, "WATCH", "0", "1"), server)) == 0


async def test_unblock_leaving_and_draining_end_it() -> None:
    server, client = FakeServer(), FakeClient(id=5)
    made = await call(server, "WATCH", client=client)
    server.waits[5].set_result(True)
    assert (await finished(made, server)).startswith(b"-UNBLOCKED")
    made = await call(server, "WATCH", client=client)
    client.gone(5)
    await finished(made, server)
    made = await call(server, "WATCH", client=client)
    server.watchers.close()
    assert generation(await finished(made, server)) == 0
    assert generation(await finished(await call(server, "WATCH", client=client), server)) == 0
