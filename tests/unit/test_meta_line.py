"""proxy/memcached's MetaLine: what it makes of a node's answers, without a node."""

import asyncio

import pytest

from shardproxy.proxy import memcached
from shardproxy.proxy.memcached import MetaLine
from shardproxy.proxy.probe import NodeRefuses

BUSY = b"BUSY currently processing crawler request\r\n"


def listing(monkeypatch: pytest.MonkeyPatch, frames: list[bytes]) -> tuple[list[object], list[int]]:
    """What SCAN 0 makes of a node that says these, and with which of LISTINGS it asks each time."""
    hows, rest = list[int](), iter(frames)

    async def opened(self: MetaLine) -> None:
        pass

    def request(self: MetaLine, how: int = 0) -> None:
        hows.append(how)

    async def frame(self: MetaLine) -> bytes:
        return next(rest)

    monkeypatch.setattr(memcached, "PAUSE", 0)
    monkeypatch.setattr(MetaLine, "_open", opened)
    monkeypatch.setattr(MetaLine, "_request_dump", request)
    monkeypatch.setattr(MetaLine, "_frame", frame)
    line = MetaLine.__new__(MetaLine)
    line._address, line._way, line._timeout, line._dump = "a:1", None, 1.0, None  # type: ignore[assignment]  # not opened
    monkeypatch.setattr(MetaLine, "__init__", lambda self, *_: setattr(self, "_dump", None))
    monkeypatch.setattr(MetaLine, "close", lambda self: None)
    return asyncio.run(line._scan(b"0")), hows


def test_a_busy_crawler_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found, hows = listing(monkeypatch, [BUSY, BUSY, b"key=a%20b exp=-1\r\n", b"END\r\n"])
    assert found == [b"0", [b"a b"]]
    assert hows == [0, 0, 0]


def test_an_old_node_lists_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [BUSY, b"BADCLASS invalid class id\r\n", BUSY, b"key=a exp=-1\r\n", b"END\r\n"]
    found, hows = listing(monkeypatch, frames)
    assert found == [b"0", [b"a"]]
    assert hows == [0, 0, 1, 1]


def test_one_that_lists_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NodeRefuses, match="BADCLASS"):
        listing(monkeypatch, [b"BADCLASS invalid class id\r\n"] * 2)


def test_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NodeRefuses, match="BUSY"):
        listing(monkeypatch, [BUSY] * (memcached.PATIENCE + 1))
