"""What is done on nodes when one of them returns, on real ones; the workers are only told of."""

import asyncio
import errno
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from servers import Node, Raw, RedisNode, pack, redis_nodes, urls_of

from shardproxy.config import Config, HealthConfig, PoolConfig, ShardConfig
from shardproxy.core.health import Policy
from shardproxy.core.topology import State, Topology
from shardproxy.proxy import probe
from shardproxy.proxy.certificates import Way
from shardproxy.proxy.owing import Taken
from shardproxy.proxy.probe import NodeRefuses
from shardproxy.proxy.returns import HEARTBEATS, Returns

RUN_ID = "f" * 40


class Fleet:
    """Shards a, b, c of one pool."""

    def __init__(self, nodes: Sequence[Node], on_return: str = "invalidate", remember: int = 1 << 20) -> None:
        config = Config(
            pool={
                "main": PoolConfig(
                    kind="cache",
                    on_shard_down="rehash",
                    on_return=on_return,  # type: ignore[arg-type]
                    remember=remember,
                    health=HealthConfig(interval=0.2),
                    shards={name: ShardConfig(primary=url) for name, url in urls_of(nodes).items()},
                )
            }
        )
        self.topology = Topology.from_config(config)
        self.taken: dict[str, list[Taken]] = {}
        self.used = {0}
        self.logged: list[tuple[str, dict[str, Any]]] = []
        self.returns = Returns(
            self,  # type: ignore[arg-type]  # it needs no more of a fleet
            lambda _: Way(memcached=nodes[0].scheme == "memcached"),
            RUN_ID,
            lambda event, **fields: self.logged.append((event, fields)),
        )

    async def databases(self) -> set[int]:
        return self.used

    async def take(self, address: str) -> list[Taken]:
        return self.taken.pop(address, [])

    def put(self, node: Node, state: State) -> None:
        self.topology = self.topology.with_node_state(node.address, state)

    def wrote(self, node: Node, *keys: bytes, overflow: bool = False) -> None:
        self.taken.setdefault(node.address, []).append(Taken([], keys, overflow))

    async def back(self, node: Node, *late: bytes) -> None:
        """All of it; `late`: keys that are written until the fence is closed."""

        async def fence() -> bool:
            self.put(node, "suspect")
            if late:
                self.wrote(node, *late)
            return True

        sweep = await self.returns.bring_back(node.address, fence)
        self.put(node, "up")
        if sweep:
            await self.returns.sweep(node.address)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.logged if event == name]


@pytest.fixture(scope="module")
def three() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as nodes:
        yield nodes


@pytest.fixture
def nodes(three: list[RedisNode]) -> list[RedisNode]:
    for node in three:
        ask(node, "FLUSHALL")
        ask(node, "CONFIG", "RESETSTAT")
    return three


def ask(node: RedisNode, *args: str | bytes | int) -> Any:
    with node.raw() as raw:
        return raw.value(*args)


def keys_of(node: RedisNode) -> set[str]:
    return {key for key in ask(node, "KEYS", "*") if not key.startswith("shardproxy:")}


def homed(fleet: Fleet, shard: str, count: int) -> list[bytes]:
    pool = fleet.topology.pools[0]
    names = (b"key:%d" % number for number in range(100_000))
    return [
        key for key, _ in zip((k for k in names if pool.home(k).name == shard), range(count), strict=False)
    ]


def everywhere(nodes: list[RedisNode], *keys: bytes) -> None:
    for node in nodes:
        for key in keys:
            ask(node, "SET", key, "old")


async def test_what_was_written_elsewhere_goes_from_the_node_and_from_stand_ins(
    nodes: list[RedisNode],
) -> None:
    fleet = Fleet(nodes)
    mine = homed(fleet, "a", 4)
    others = homed(fleet, "b", 1)
    everywhere(nodes[:1], *mine)
    everywhere(nodes[1:2], *mine[:3], *others)
    fleet.put(nodes[0], "out")
    fleet.wrote(nodes[0], mine[0], mine[1])
    await fleet.back(nodes[0], mine[2])
    assert keys_of(nodes[0]) == {mine[3].decode()}
    assert keys_of(nodes[1]) == {others[0].decode()}
    assert fleet.events("node_returns")[0]["deleted"] == 3


@pytest.mark.parametrize("why", ["flush", "overflow"])
async def test_flush_and_the_sweep_after_it(nodes: list[RedisNode], why: str) -> None:
    fleet = Fleet(nodes, "flush" if why == "flush" else "invalidate")
    mine, others = homed(fleet, "a", 50), homed(fleet, "b", 5)
    everywhere(nodes[:1], *mine)
    everywhere(nodes[1:2], *mine, *others)
    fleet.put(nodes[0], "out")
    fleet.wrote(nodes[0], overflow=why == "overflow")
    await fleet.back(nodes[0])
    assert keys_of(nodes[0]) == set()
    assert keys_of(nodes[1]) == {key.decode() for key in others}
    assert fleet.events("node_returns")[0]["flushed"]


@pytest.mark.parametrize("how", ["remembered", "overflow", "moved"])
async def test_every_database_that_clients_use(nodes: list[RedisNode], how: str) -> None:
    """And no other one: that is somebody else's."""
    fleet = Fleet(nodes)
    fleet.used = {0, 5, 99}  # it has no 99
    (mine,) = homed(fleet, "a", 1)
    for node in nodes:
        with node.raw() as raw:
            for database in (0, 5, 7):
                raw.ask("SELECT", database)
                raw.ask("SET", mine, "old")
    fleet.put(nodes[0], "out")
    if how == "moved":
        fleet.returns.owe_all(nodes[1].address)
        fleet.put(nodes[0], "up")
        await fleet.returns.tidy(nodes[1].address)
        changed = nodes[1:2]
    else:
        fleet.wrote(nodes[0], mine, overflow=how == "overflow")
        await fleet.back(nodes[0])
        changed = nodes
    for node in nodes:
        with node.raw() as raw:
            left = [number for number in (0, 5, 7) if raw.ask("SELECT", number) and raw.value("EXISTS", mine)]
        assert left == ([7] if node in changed else [0, 5, 7])
    for node in nodes:
        ask(node, "FLUSHALL")


async def test_more_than_is_remembered_is_as_flush(nodes: list[RedisNode]) -> None:
    fleet = Fleet(nodes, remember=1000)
    mine = homed(fleet, "a", 50)
    everywhere(nodes[:1], *mine)
    fleet.put(nodes[0], "out")
    with pytest.raises(NodeRefuses, match="than are remembered"):
        await fleet.back(nodes[0], *mine[:49])  # behind the fence already
    fleet.put(nodes[0], "out")
    await fleet.back(nodes[0])
    assert keys_of(nodes[0]) == set()


async def test_what_another_proxy_uses_is_not_flushed(nodes: list[RedisNode]) -> None:
    fleet = Fleet(nodes, "flush")
    everywhere(nodes[:1], *homed(fleet, "a", 5))
    fleet.put(nodes[0], "out")
    used = True

    async def other() -> None:
        with nodes[0].raw() as raw:
            while used:
                raw.value("ZADD", HEARTBEATS, raw.value("TIME")[0], "e" * 40)
                await asyncio.sleep(0.05)

    with pytest.MonkeyPatch.context() as patch:  # heartbeats are whole seconds
        patch.setattr("shardproxy.proxy.returns.USED", 8)
        task = asyncio.create_task(other())
        await asyncio.sleep(0.1)
        await fleet.back(nodes[0])
        used = False
        await task
        assert len(keys_of(nodes[0])) == 5
        assert fleet.events("flush_refused")[0]["reason"] == "other proxies have been using it meanwhile"
        # the other has lost it as well: its last word is from before
        fleet.put(nodes[0], "out")
        await fleet.back(nodes[0])
        assert keys_of(nodes[0]) == set()


async def test_a_key_that_is_not_our_heartbeats_prevents_a_flush(nodes: list[RedisNode]) -> None:
    fleet = Fleet(nodes, "flush")
    ask(nodes[0], "SET", HEARTBEATS, "something else")
    fleet.put(nodes[0], "out")
    await fleet.back(nodes[0])
    assert ask(nodes[0], "GET", HEARTBEATS) == "something else"
    assert fleet.events("flush_refused")


async def test_a_stand_in_that_is_out_pays_when_it_returns(nodes: list[RedisNode]) -> None:
    fleet = Fleet(nodes)
    mine, own = homed(fleet, "a", 6), homed(fleet, "b", 1)
    everywhere(nodes[1:2], *mine, *own)
    fleet.put(nodes[0], "out")
    fleet.put(nodes[1], "out")
    fleet.wrote(nodes[0], *mine[:3])
    await fleet.back(nodes[0])
    assert len(keys_of(nodes[1])) == 7
    await fleet.back(nodes[1])
    assert keys_of(nodes[1]) == {key.decode() for key in (*mine[3:], *own)}
    # and when nobody knows which they were: everything is looked through
    fleet.put(nodes[0], "out")
    fleet.put(nodes[1], "out")
    fleet.wrote(nodes[0], overflow=True)
    await fleet.back(nodes[0])
    await fleet.back(nodes[1])
    assert keys_of(nodes[1]) == {own[0].decode()}


async def test_a_stand_in_that_returns_first_has_no_old_guests(nodes: list[RedisNode]) -> None:
    """a is out, its keys on b; b goes, they are written on c; b returns: its copies are old, c's will be."""
    fleet = Fleet(nodes)
    fleet.put(nodes[0], "out")
    pool = fleet.topology.pools[0]
    guests = [key for key in homed(fleet, "a", 60) if (it := pool.stand_in(key)) and it.name == "b"][:5]
    assert len(guests) == 5
    everywhere(nodes[1:], *guests)
    fleet.put(nodes[1], "out")
    fleet.wrote(nodes[0], *guests)
    await fleet.back(nodes[1])
    assert keys_of(nodes[1]) == keys_of(nodes[2]) == set()
    everywhere(nodes[:2], *guests)  # written on b again, and not reported again
    await fleet.back(nodes[0])
    assert keys_of(nodes[0]) == keys_of(nodes[1]) == set()


async def test_old_connections_are_killed_and_those_of_others_are_not(nodes: list[RedisNode]) -> None:
    """A node that has restarted counts from 1 again: an id is another's then, but not with our address."""
    fleet = Fleet(nodes)
    with nodes[0].raw() as ghost, nodes[0].raw() as old, nodes[0].raw() as other:
        names = [words_of(raw) for raw in (ghost, old, other)]
        fleet.put(nodes[0], "out")
        elsewhere = names[2].rpartition(":")[0] + ":1"
        nameless = names[1].partition(" ADDR")[0]  # of a Redis before 6.2
        fleet.taken[nodes[0].address] = [Taken([names[0], nameless, elsewhere], [], False)]
        await fleet.back(nodes[0])
        assert other.value("PING") == "PONG"
        assert ghost.rest() == old.rest() == b""


async def test_those_of_a_worker_that_died_are_killed_at_once_or_when_the_node_returns(
    nodes: list[RedisNode],
) -> None:
    fleet = Fleet(nodes)
    with nodes[0].raw() as first, nodes[0].raw() as second, nodes[0].raw() as other:
        fleet.put(nodes[0], "up")
        await fleet.returns.bury(nodes[0].address, [words_of(first)])
        assert first.rest() == b"" and second.value("PING") == "PONG"
        fleet.put(nodes[0], "out")
        await fleet.returns.bury(nodes[0].address, [words_of(second)])
        assert second.value("PING") == "PONG"
        await fleet.back(nodes[0])
        assert second.rest() == b"" and other.value("PING") == "PONG"
        assert not fleet.events("not_buried")


def words_of(raw: Raw) -> str:
    """A connection, in the words of CLIENT KILL."""
    fields = dict(field.split("=", 1) for field in raw.value("CLIENT", "INFO").split())
    return f"ID {fields['id']} ADDR {fields['addr']}"


@pytest.mark.parametrize("on_return", ["invalidate", "flush"])
async def test_a_policy_that_changes_during_a_return(nodes: list[RedisNode], on_return: str) -> None:
    """What may be removed is what the pool says now: nothing any more, and the next try is by the new one."""
    fleet = Fleet(nodes, on_return)
    mine = homed(fleet, "a", 4)
    everywhere(nodes[:1], *mine)
    fleet.put(nodes[0], "out")

    async def fence() -> bool:
        fleet.put(nodes[0], "suspect")
        pool = msgspec.structs.replace(fleet.topology.pools[0], on_return="keep")
        fleet.topology = msgspec.structs.replace(fleet.topology, pools=(pool,))
        fleet.wrote(nodes[0], *mine)
        return True

    with pytest.raises(NodeRefuses, match="policy of its pool has just changed"):
        await fleet.returns.bring_back(nodes[0].address, fence)
    assert len(keys_of(nodes[0])) == 4
    await fleet.back(nodes[0])
    assert len(keys_of(nodes[0])) == 4


async def test_keep_removes_nothing(nodes: list[RedisNode]) -> None:
    fleet = Fleet(nodes, "keep")
    mine = homed(fleet, "a", 3)
    everywhere(nodes, *mine)
    fleet.put(nodes[0], "out")
    fleet.wrote(nodes[0], *mine, overflow=True)
    await fleet.back(nodes[0])
    assert all(len(ask(node, "KEYS", "*")) == 3 for node in nodes)


async def test_a_node_that_fails_meanwhile_stays_out_and_nothing_is_forgotten(nodes: list[RedisNode]) -> None:
    fleet = Fleet(nodes)
    mine = homed(fleet, "a", 3)
    everywhere(nodes[:1], *mine)
    fleet.put(nodes[0], "out")
    fleet.wrote(nodes[0], *mine)
    ask(nodes[0], "CONFIG", "SET", "min-replicas-to-write", 1)
    try:
        with pytest.raises(NodeRefuses, match="UNLINK with NOREPLICAS"):
            await fleet.back(nodes[0])
    finally:
        ask(nodes[0], "CONFIG", "SET", "min-replicas-to-write", 0)
    assert len(keys_of(nodes[0])) == 3
    await fleet.back(nodes[0])
    assert keys_of(nodes[0]) == set()


async def test_the_sweep_tries_until_a_stand_in_answers(nodes: list[RedisNode]) -> None:
    fleet = Fleet(nodes)
    mine = homed(fleet, "a", 3)
    everywhere(nodes[1:2], *mine)
    fleet.put(nodes[0], "out")
    fleet.wrote(nodes[0], *mine)
    ask(nodes[1], "CONFIG", "SET", "min-replicas-to-write", 1)
    task = asyncio.create_task(fleet.back(nodes[0]))
    while not fleet.events("not_swept"):
        await asyncio.sleep(0.01)
    ask(nodes[1], "CONFIG", "SET", "min-replicas-to-write", 0)
    await task
    assert keys_of(nodes[1]) == set()


@pytest.mark.parametrize("on_return", ["invalidate", "flush"])
@pytest.mark.parametrize("state", ["suspect", "out"])
async def test_an_outage_during_a_sweep_spares_no_stand_in(
    nodes: list[RedisNode], state: State, on_return: str
) -> None:
    """What it keeps is old, though it would be the stand-in again (found by hours of chaos)."""
    fleet = Fleet(nodes, on_return)
    mine, own = homed(fleet, "a", 20), homed(fleet, "b", 1)
    everywhere(nodes[1:2], *mine, *own)
    fleet.put(nodes[0], "out")
    fleet.wrote(nodes[0], *mine)

    async def fence() -> bool:
        return True

    assert await fleet.returns.bring_back(nodes[0].address, fence)
    fleet.topology = fleet.topology.with_node_state(nodes[0].address, state, swept=False)
    await fleet.returns.sweep(nodes[0].address)
    assert keys_of(nodes[1]) == {own[0].decode()}


# --- probes ---


@pytest.mark.parametrize("depth", ["ping", "write", "deep"])
async def test_a_probe_of_a_node_that_is_well_leaves_nothing(nodes: list[RedisNode], depth: str) -> None:
    await probe.check(nodes[0].address, Way(), 2.0, Policy(probe=depth), RUN_ID)
    assert ask(nodes[0], "KEYS", "*") == []


@pytest.mark.parametrize("depth", ["ping", "write", "deep"])
async def test_a_probe_of_a_node_that_is_not(nodes: list[RedisNode], depth: str) -> None:
    node, policy = nodes[0], Policy(probe=depth, max_memory_percent=0.01)

    async def found() -> str:
        try:
            await probe.check(node.address, Way(), 1.0, policy, RUN_ID)
        except NodeRefuses as refusal:
            return str(refusal)
        return ""

    ask(node, "CONFIG", "SET", "min-replicas-to-write", 1)
    assert ("NOREPLICAS" in await found()) == (depth != "ping")
    ask(node, "CONFIG", "SET", "min-replicas-to-write", 0)
    ask(node, "CONFIG", "SET", "maxmemory", 30 << 20)
    try:
        assert ("memory is full" in await found()) == (depth == "deep")
    finally:
        ask(node, "CONFIG", "SET", "maxmemory", 0)
    assert await found() == ""


@pytest.mark.parametrize("policy", ["allkeys-lru", "noeviction"])
async def test_a_cache_that_is_full_is_well(policy: str) -> None:
    """It throws out what is old, and stays at its limit; who throws nothing out is full."""
    with RedisNode("--maxmemory", "4mb", "--maxmemory-policy", policy) as node, node.raw() as raw:
        for number in range(60):
            raw.ask("SET", f"key:{number}", "x" * 100_000)
        raw.ask("SET", "key", "x" * 1000)
        try:
            await probe.check(node.address, Way(), 5.0, Policy(probe="deep"), RUN_ID)
            found = ""
        except NodeRefuses as refusal:
            found = str(refusal)
        assert ("OOM" in found) == (policy == "noeviction")
        assert policy == "noeviction" or found == ""
        if policy == "allkeys-lru":
            with pytest.raises(NodeRefuses, match="its memory is full"):
                limit = Policy(probe="deep", max_memory_percent=0.9)
                await probe.check(node.address, Way(), 5.0, limit, RUN_ID)


@pytest.mark.parametrize("thrown_out", [1, probe.KEYS])
async def test_a_probe_key_may_be_thrown_out_now_and_then(
    nodes: list[RedisNode], monkeypatch: pytest.MonkeyPatch, thrown_out: int
) -> None:
    """As a node that is full does with any key."""
    asked = 0
    ask_node = probe.Line.ask

    async def ask_it(self: probe.Line, *requests: Any, **how: Any) -> list[Any]:
        nonlocal asked
        found = await ask_node(self, *requests, **how)
        if requests[0][0] == "SET":
            asked += 1
            if asked <= thrown_out:
                assert await ask_node(self, ("DEL", requests[0][1])) == [1]
                return [found[0], None]
        return found

    monkeypatch.setattr(probe.Line, "ask", ask_it)
    checked = probe.check(nodes[0].address, Way(), 5.0, Policy(probe="write"), RUN_ID)
    if thrown_out < probe.KEYS:
        await checked
        assert asked == thrown_out + 1
    else:
        with pytest.raises(NodeRefuses, match="gone at once"):
            await checked
    assert ask(nodes[0], "KEYS", "*") == []


async def test_what_we_lack_ourselves_is_not_held_against_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none_left(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "open_connection", none_left)
    with pytest.raises(NodeRefuses, match="Too many open files") as found:
        await probe.check("127.0.0.1:1", Way(), 1.0, Policy(), RUN_ID)
    assert found.value.ours and not found.value.refused


async def test_a_probe_key_that_is_taken_is_left_alone(
    nodes: list[RedisNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe.secrets, "token_hex", lambda _: "0")
    key = f"shardproxy:probe:{RUN_ID}:0"
    ask(nodes[0], "SET", key, "somebody's")
    with pytest.raises(NodeRefuses, match="taken"):
        await probe.check(nodes[0].address, Way(), 1.0, Policy(probe="write"), RUN_ID)
    assert ask(nodes[0], "GET", key) == "somebody's"


async def test_who_is_refused_and_who_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(NodeRefuses, match=r"no answer in 0\.2 s") as found:
            await probe.check(f"127.0.0.1:{port}", Way(), 0.2, Policy(), RUN_ID)
        assert not found.value.refused
    with pytest.raises(NodeRefuses, match="Connection refused") as found:
        await probe.check(f"127.0.0.1:{port}", Way(), 0.2, Policy(), RUN_ID)
    assert found.value.refused
    with pytest.raises(NodeRefuses) as found:
        await probe.check("/nowhere/at/all.sock", Way(), 0.2, Policy(), RUN_ID)
    assert found.value.refused


async def test_an_old_write_in_a_socket_buffer_is_not_run_after_the_return(nodes: list[RedisNode]) -> None:
    """A stopped node has it, and would run it when it wakes: killed before, or run and then deleted."""
    node, fleet = nodes[0], Fleet(nodes)
    (key,) = homed(fleet, "a", 1)
    with node.raw() as ghost:
        name = words_of(ghost)
        node.pause()
        ghost.send(pack("SET", key, "old"))
        fleet.put(node, "out")
        fleet.taken[node.address] = [Taken([name], [key], False)]
        node.resume()
        await fleet.back(node)
        assert ask(node, "GET", key) is None
