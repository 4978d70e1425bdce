"""What is done on memcacheds when one of them returns, real ones; test_returns has it of Redis nodes."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from servers import MemcachedNode
from test_returns import Fleet, homed

from shardproxy.core.memcached_wire import encode_key
from shardproxy.proxy.certificates import Way
from shardproxy.proxy.memcached import MetaLine
from shardproxy.proxy.owing import Known
from shardproxy.proxy.probe import NodeRefuses
from shardproxy.proxy.returns import HEARTBEATS


@pytest.fixture(scope="module")
def three() -> Iterator[list[MemcachedNode]]:
    with ExitStack() as stack:
        yield [stack.enter_context(MemcachedNode()) for _ in range(3)]


@pytest.fixture
def nodes(three: list[MemcachedNode]) -> list[MemcachedNode]:
    for node in three:
        node.say(b"flush_all\r\n", b"\n")
    return three


def put(nodes: list[MemcachedNode], *keys: bytes) -> None:
    for node in nodes:
        for key in keys:
            name, base64 = encode_key(key) or (b"", False)
            assert node.say(b"ms %b 3%b\r\nold\r\n" % (name, b" b" if base64 else b""), b"\n") == b"HD\r\n"


def has(node: MemcachedNode, *keys: bytes) -> set[bytes]:
    """Which of these it has."""

    def found(key: bytes) -> bool:
        name, base64 = encode_key(key) or (b"", False)
        return node.say(b"mg %b%b\r\n" % (name, b" b" if base64 else b""), b"\n") == b"HD\r\n"

    return {key for key in keys if found(key)}


def beats(node: MemcachedNode) -> bytes:
    return node.say(b"mg %b v\r\nmn\r\n" % HEARTBEATS, b"MN\r\n")


async def test_what_was_written_elsewhere_goes_from_the_node_and_from_stand_ins(
    nodes: list[MemcachedNode],
) -> None:
    fleet = Fleet(nodes)
    mine, others = homed(fleet, "a", 4), homed(fleet, "b", 1)
    put(nodes[:1], *mine)
    put(nodes[1:2], *mine[:3], *others)
    fleet.put(nodes[0], "out")
    fleet.wrote(nodes[0], mine[0], mine[1])
    await fleet.back(nodes[0], mine[2])
    assert has(nodes[0], *mine) == {mine[3]}
    assert has(nodes[1], *mine, *others) == {*others}
    assert fleet.events("node_returns")[0]["deleted"] == 3


@pytest.mark.parametrize("why", ["flush", "overflow", "remembered"])
async def test_keys_of_any_bytes_go_as_well(nodes: list[MemcachedNode], why: str) -> None:
    """Whether they are known, or found in what the node lists; and those of others stay."""
    fleet = Fleet(nodes, "flush" if why == "flush" else "invalidate")
    pool = fleet.topology.pools[0]
    strange = [
        *(b"k \x00%d" % n for n in range(40)),
        *(b"%%%d" % n for n in range(40)),
        *(bytes([n]) for n in range(90)),
    ]
    mine = [key for key in strange if pool.home(key).name == "a"]
    others = [key for key in strange if pool.home(key).name == "b"]
    assert len(mine) > 20 and len(others) > 20
    put(nodes[:1], *mine)
    put(nodes[1:2], *mine, *others)
    fleet.put(nodes[0], "out")
    fleet.wrote(nodes[0], *mine, overflow=why == "overflow")
    await fleet.back(nodes[0])
    assert not has(nodes[0], *mine)
    assert has(nodes[1], *mine, *others) == {*others}
    assert fleet.events("node_returns")[0]["flushed"] is (why != "remembered")


async def test_more_than_is_remembered_is_as_flush(nodes: list[MemcachedNode]) -> None:
    fleet = Fleet(nodes, remember=1000)
    mine = homed(fleet, "a", 50)
    put(nodes[:1], *mine)
    fleet.put(nodes[0], "out")
    with pytest.raises(NodeRefuses, match="than are remembered"):
        await fleet.back(nodes[0], *mine[:49])  # behind the fence already
    fleet.put(nodes[0], "out")
    await fleet.back(nodes[0])
    assert not has(nodes[0], *mine)


async def test_what_another_proxy_uses_is_not_flushed(
    nodes: list[MemcachedNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats are one small value there, which proxies change by compare-and-swap."""
    monkeypatch.setattr("shardproxy.proxy.returns.USED", 8)  # they are whole seconds
    fleet = Fleet(nodes, "flush")
    mine = homed(fleet, "a", 5)
    put(nodes[:1], *mine)
    fleet.put(nodes[0], "out")
    used = True

    async def other() -> None:
        while used:
            async with MetaLine(nodes[0].address, Way(memcached=True), 2.0) as line:
                ((now, _),) = await line.ask(("TIME",))
                await line.ask(("ZADD", HEARTBEATS, int(now), b"e" * 40))
            await asyncio.sleep(0.05)

    task = asyncio.create_task(other())
    while b"eee" not in beats(nodes[0]):
        await asyncio.sleep(0.01)
    await fleet.back(nodes[0])
    used = False
    await task
    assert has(nodes[0], *mine) == {*mine}
    assert fleet.events("flush_refused")[0]["reason"] == "other proxies have been using it meanwhile"
    assert len(json.loads(beats(nodes[0]).split(b"\r\n")[1])) == 2  # we use it now as well
    # the other has lost it as well: its last word is from before
    fleet.put(nodes[0], "out")
    await fleet.back(nodes[0])
    assert not has(nodes[0], *mine)


@pytest.mark.parametrize("what", [b"something else", b"[1]", b'{"e": null}', b'{"e": 1e999}', b"5"])
@pytest.mark.parametrize("on_return", ["flush", "invalidate"])
async def test_a_key_that_is_not_our_heartbeats_prevents_a_flush_and_no_return(
    nodes: list[MemcachedNode], on_return: str, what: bytes
) -> None:
    fleet = Fleet(nodes, on_return)
    mine = homed(fleet, "a", 2)
    put(nodes[:1], *mine)
    assert nodes[0].say(b"ms %b %d\r\n%b\r\n" % (HEARTBEATS, len(what), what), b"\n") == b"HD\r\n"
    fleet.put(nodes[0], "out")
    fleet.wrote(nodes[0], mine[0])
    await fleet.back(nodes[0])
    assert what in beats(nodes[0])
    assert bool(fleet.events("flush_refused")) is (on_return == "flush")
    assert has(nodes[0], *mine) == {mine[1]}  # what was written elsewhere is known with both
    assert len(fleet.events("node_returns")) == 1


async def test_keep_removes_nothing_and_leaves_no_heartbeat(nodes: list[MemcachedNode]) -> None:
    fleet = Fleet(nodes, "keep")
    mine = homed(fleet, "a", 3)
    put(nodes, *mine)
    fleet.put(nodes[0], "out")
    fleet.wrote(nodes[0], *mine, overflow=True)
    await fleet.back(nodes[0])
    assert all(has(node, *mine) == {*mine} and beats(node) == b"EN\r\nMN\r\n" for node in nodes)


async def test_a_stand_in_that_is_out_pays_when_it_returns(nodes: list[MemcachedNode]) -> None:
    fleet = Fleet(nodes)
    mine, own = homed(fleet, "a", 6), homed(fleet, "b", 1)
    put(nodes[1:2], *mine, *own)
    fleet.put(nodes[0], "out")
    fleet.put(nodes[1], "out")
    fleet.wrote(nodes[0], *mine[:3])
    await fleet.back(nodes[0])
    assert len(has(nodes[1], *mine, *own)) == 7
    await fleet.back(nodes[1])
    assert has(nodes[1], *mine, *own) == {*mine[3:], *own}
    # and when nobody knows which they were: everything is looked through
    fleet.put(nodes[0], "out")
    fleet.put(nodes[1], "out")
    fleet.wrote(nodes[0], overflow=True)
    await fleet.back(nodes[0])
    await fleet.back(nodes[1])
    assert has(nodes[1], *mine, *own) == {*own}


async def test_it_has_no_code_to_make_up_for(nodes: list[MemcachedNode]) -> None:
    """A takeover from a process that has ended too early supposes so of every node that is out."""
    fleet = Fleet(nodes)
    fleet.put(nodes[0], "out")
    fleet.returns.inherit(Known("owed", nodes[0].address, missed=["functions", "scripts"]))
    await fleet.back(nodes[0])
    assert len(fleet.events("node_returns")) == 1
