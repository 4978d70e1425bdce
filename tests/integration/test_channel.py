"""proxy/channel: requests, replies, notes, deadlines, and an end that goes away."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shardproxy.proxy.channel import Channel, ChannelClosed, PeerFailed


async def nobody(name: str, body: Any) -> Any:
    raise AssertionError(name)


@asynccontextmanager
async def pair(answer: Any) -> AsyncIterator[tuple[Channel, Channel]]:
    """(the one that asks, the one that answers)"""
    ours, theirs = socket.socketpair()
    one, two = await Channel(nobody).open(ours), await Channel(answer).open(theirs)
    try:
        yield one, two
    finally:
        one.close()
        two.close()
        await asyncio.sleep(0)


async def test_replies_find_their_requests_in_whatever_order_they_come() -> None:
    gates = [asyncio.Event() for _ in range(5)]

    async def answer(name: str, body: int) -> Any:
        await gates[body].wait()
        return [name, body, b"\0\xff"]

    async with pair(answer) as (one, _):
        asked = [asyncio.ensure_future(one.ask("what", number)) for number in range(5)]
        for gate in reversed(gates):
            await asyncio.sleep(0)
            gate.set()
        assert await asyncio.gather(*asked) == [["what", number, b"\0\xff"] for number in range(5)]


async def test_large_messages_pass() -> None:
    async def answer(name: str, body: bytes) -> bytes:
        return body * 2

    async with pair(answer) as (one, _):
        assert len(await one.ask("double", bytes(3 << 20), timeout=10)) == 6 << 20


async def test_an_answer_that_fails_names_the_exception_only() -> None:
    async def answer(name: str, body: Any) -> Any:
        raise KeyError("hunter2")

    async with pair(answer) as (one, _):
        with pytest.raises(PeerFailed) as caught:
            await one.ask("what")
        assert str(caught.value) == "KeyError"


async def test_a_deadline_ends_the_wait_and_the_work() -> None:
    cancelled = asyncio.Event()

    async def answer(name: str, body: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with pair(answer) as (one, _):
        with pytest.raises(TimeoutError):
            await one.ask("what", timeout=0.02)
        await cancelled.wait()


async def test_a_late_reply_is_nobodys() -> None:
    async def answer(name: str, body: Any) -> Any:
        if name == "slow":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return "late"
        return name

    async with pair(answer) as (one, _):
        with pytest.raises(TimeoutError):
            await one.ask("slow", timeout=0.02)
        assert await one.ask("quick") == "quick"


async def test_notes_are_taken_and_not_answered() -> None:
    taken: list[Any] = []
    done = asyncio.Event()

    async def answer(name: str, body: Any) -> Any:
        taken.append((name, body))
        done.set()

    async with pair(answer) as (one, _):
        one.tell("node", ["a", 1])
        await done.wait()
        assert taken == [("node", ["a", 1])]


async def test_everything_fails_when_the_other_end_is_gone() -> None:
    async def answer(name: str, body: Any) -> Any:
        await asyncio.Event().wait()

    async with pair(answer) as (one, two):
        asked = asyncio.ensure_future(one.ask("what", timeout=30))
        await asyncio.sleep(0.01)
        two.close()
        with pytest.raises(ChannelClosed):
            await asked
        assert one.closed.is_set()
        with pytest.raises(ChannelClosed):
            await one.ask("what")
        one.tell("note")  # says nothing


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0"])
async def test_garbage_closes_it(garbage: bytes) -> None:
    ours, theirs = socket.socketpair()
    one = await Channel(nobody).open(ours)
    theirs.sendall(garbage)
    if garbage == b"\0\0":
        theirs.shutdown(socket.SHUT_WR)
    await asyncio.wait_for(one.closed.wait(), 10)
    theirs.settimeout(10)
    assert await asyncio.to_thread(theirs.recv, 1) == b""  # the other end is told
    one.close()
    theirs.close()
