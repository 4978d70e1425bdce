"""The Keeper, with nodes and workers that are only told of and a clock that never waits."""

import asyncio
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from keeping import A, B, C, FakeFleet, Nodes, NoLogins, VirtualLoop, fake_returns, late, refusal, run

from shardproxy.core.health import URGENT_GAP
from shardproxy.core.topology import Timeouts
from shardproxy.proxy import keeper as keepers
from shardproxy.proxy.heartbeats import USED
from shardproxy.proxy.keeper import RETURNING, Keeper
from shardproxy.proxy.owing import Known
from shardproxy.proxy.probe import NodeRefuses
from shardproxy.proxy.returns import Returns


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    made = Nodes()
    monkeypatch.setattr(keepers.probe, "check", made.check)
    return made


@pytest.fixture
def returns(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return fake_returns(monkeypatch)


def test_probes_all_and_finds_them_up(nodes: Nodes) -> None:
    fleet = FakeFleet()

    async def scene(_: Keeper) -> None:
        await asyncio.sleep(60.0)

    logged = run(scene, fleet)
    assert {fleet.state(each) for each in (A, B, C)} == {"up"}
    assert [event for event, _ in logged] == ["node_answers"] * 3
    for address in (A, B, C):
        assert 11 <= sum(each == address for _, each, _ in nodes.probed) <= 16


def test_refused_is_out_at_once_and_comes_back_behind_a_fence(nodes: Nodes, returns: list[str]) -> None:
    fleet = FakeFleet()

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(1.0)
        nodes.found[A] = refusal()
        keeper.observe([(A, 0, 1, 0, 1, True, "Connection refused")])
        assert fleet.state(A) == "out"
        assert fleet.topology.nodes[A].reason == "Connection refused"
        await asyncio.sleep(30.0)
        assert fleet.state(A) == "out" and returns == []
        del nodes.found[A]
        fleet.seen.clear()
        await asyncio.sleep(10.0)

    run(scene, fleet)
    assert returns == [f"begin {A}", f"fenced {A}", f"swept {A}"]
    shown = [(each.nodes[A].state, each.nodes[A].reason, each.nodes[A].swept) for each in fleet.seen]
    assert shown == [("suspect", RETURNING, True), ("up", "", False), ("up", "", True)]
    assert fleet.seen[0].pools[0].mode(fleet.seen[0].pools[0].shards[0]) == "hold"


def test_who_uses_a_node_says_so_often_enough(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every USED probe intervals at least once, else another proxy takes the node for nobody's."""
    fleet, beats = FakeFleet(), list[float]()

    async def beat(_: Any, address: str) -> None:
        if address == A:
            beats.append(asyncio.get_running_loop().time())

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(600.0)

    monkeypatch.setattr(Returns, "beat", beat)
    run(scene, fleet)
    interval = fleet.topology.pools[0].health.interval
    gaps = [after - before for before, after in pairwise(beats)]
    assert max(gaps) < USED * interval / 2  # one may be lost
    assert min(gaps) >= interval / 2
    assert sum(gaps) > 590.0


# --- what a process that is taken over knows ---


@pytest.mark.parametrize("complete", [True, False])
def test_nothing_returns_before_the_process_before_has_told(
    nodes: Nodes, returns: list[str], monkeypatch: pytest.MonkeyPatch, complete: bool
) -> None:
    fleet, lacks = FakeFleet(), list[str]()
    fleet.topology = fleet.topology.with_away({A: ("it was out", True), "127.0.0.1:1": ("gone", True)})
    monkeypatch.setattr(Returns, "lack", lambda _, address: lacks.append(address))

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(10.0)
        assert (fleet.state(A), fleet.topology.nodes[A].reason, returns) == ("out", "it was out", [])
        if complete:
            keeper.inherit(Known("owed", A, [b"key"]))
            keeper.inherit(Known("owed", "127.0.0.1:1", [b"key"]))  # none of ours
        keeper.all_told(complete)
        await asyncio.sleep(10.0)
        assert fleet.state(A) == "up"
        keeper.all_told(False)  # it has told all, and ends
        # what its last clients wrote: a node that is back returns once more
        keeper.inherit(Known("owed", A, []))
        assert fleet.state(A) == "up"
        keeper.inherit(Known("owed", A, [b"late"]))
        assert fleet.state(A) == "out"
        await asyncio.sleep(10.0)
        assert fleet.state(A) == "up"

    run(scene, fleet, inherits=True)
    assert returns == [f"begin {A}", f"fenced {A}", f"swept {A}"] * 2
    assert lacks == ([] if complete else [A])


def test_what_is_taken_over_brings_nothing_back(nodes: Nodes, returns: list[str]) -> None:
    fleet = FakeFleet()

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(1.0)
        keeper.observe([(A, 0, 0, 0, 0, True, "Connection refused")])
        await keeper.bequeath()
        await asyncio.sleep(10.0)
        assert fleet.state(A) == "out"

    run(scene, fleet)
    assert returns == []


def test_a_worker_that_does_not_acknowledge_keeps_it_out(nodes: Nodes, returns: list[str]) -> None:
    fleet = FakeFleet()

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(1.0)
        keeper.observe([(A, 0, 0, 0, 0, True, "Connection refused")])
        fleet.acknowledge = False
        await asyncio.sleep(3.0)
        assert fleet.state(A) == "out"
        assert fleet.topology.nodes[A].reason == "a worker does not acknowledge"
        assert returns and set(returns) == {f"begin {A}"}
        fleet.acknowledge = True
        await asyncio.sleep(3.0)
        assert fleet.state(A) == "up"

    logged = run(scene, fleet)
    assert "node_not_returned" in [event for event, _ in logged]


def test_a_change_of_places_waits_for_the_sweep_of_stand_ins(nodes: Nodes, returns: list[str]) -> None:
    """What one keeps of a node that is back would be read there, if the key came to it."""
    fleet = FakeFleet()

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(1.0)
        assert await keeper.tidied(0.0)
        nodes.found[A] = refusal()
        keeper.observe([(A, 0, 1, 0, 1, True, "Connection refused")])
        await asyncio.sleep(1.0)
        assert await keeper.tidied(0.0)  # its stand-ins have what is newest
        del nodes.found[A]
        while fleet.state(A) != "up":
            await asyncio.sleep(0.01)
        assert not await keeper.tidied(1.0)
        assert await keeper.tidied(2.0)
        assert returns[-1] == f"swept {A}"

    run(scene, fleet)


def test_keys_move_when_every_worker_leaves_the_node_alone(nodes: Nodes, returns: list[str]) -> None:
    """Each time it goes; until then they are held, by all."""
    fleet = FakeFleet()
    fleet.alone = False

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(1.0)
        for _ in range(2):
            nodes.found[A] = refusal()
            fleet.slow = []
            keeper.observe([(A, 0, 1, 0, 1, True, "Connection refused")])
            await asyncio.sleep(5.0)
            assert (fleet.state(A), fleet.topology.nodes[A].reason) == ("suspect", "Connection refused")
            slow, fleet.slow = fleet.slow, None
            for each in slow:
                each.set_result(True)
            await asyncio.sleep(0.01)
            assert fleet.state(A) == "out"
            del nodes.found[A]
            await asyncio.sleep(30.0)
            assert fleet.state(A) == "up"

    run(scene, fleet)
    assert returns == [f"begin {A}", f"fenced {A}", f"swept {A}"] * 2


def test_a_node_that_is_well_before_its_keys_have_moved_is_just_up(nodes: Nodes, returns: list[str]) -> None:
    fleet = FakeFleet()
    fleet.alone = False

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(1.0)
        fleet.slow = []
        keeper.observe([(A, 0, 1, 0, 1, True, "Connection refused")])
        await asyncio.sleep(5.0)
        assert fleet.state(A) == "up"
        # acknowledgements of then are none for the next time
        slow, fleet.slow = fleet.slow, []
        nodes.found[A] = refusal()
        keeper.observe([(A, 0, 1, 0, 1, True, "Connection refused")])
        for each in slow:
            each.set_result(True)
        await asyncio.sleep(5.0)
        assert fleet.state(A) == "suspect"

    run(scene, fleet)
    assert returns == []


def test_while_all_look_down_nobody_is_held_nor_moved(nodes: Nodes) -> None:
    """Fail open in the middle of it: what workers have said of the node then counts no more."""
    fleet = FakeFleet()
    fleet.alone = False

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(1.0)
        fleet.slow = []
        nodes.found = {A: refusal(), B: refusal()}
        keeper.observe([(A, 0, 1, 0, 1, True, "Connection refused")])
        keeper.observe([(B, 0, 1, 0, 1, True, "Connection refused")])
        assert (fleet.state(A), fleet.state(B)) == ("unknown", "unknown")
        for each in fleet.slow:
            each.set_result(True)
        fleet.slow = []
        await asyncio.sleep(1.0)
        del nodes.found[B]
        await asyncio.sleep(10.0)
        assert (fleet.state(A), fleet.state(B)) == ("suspect", "up")

    run(scene, fleet)


@pytest.mark.parametrize(
    "times", [{"attempt_timeout": 0.1}, {"timeouts": Timeouts(read=0.1, write=5.0, script=0.5)}]
)
def test_an_urgent_probe_is_over_before_the_most_impatient_have_to_give_up(
    nodes: Nodes, times: dict[str, Any]
) -> None:
    """A try, and a class of commands, may have less time than the pool's requests have in all."""
    fleet = FakeFleet()
    [pool] = fleet.topology.pools
    fleet.topology = msgspec.structs.replace(fleet.topology, pools=(msgspec.structs.replace(pool, **times),))

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(1.0)
        nodes.found[A] = 3600.0
        keeper.observe(late(A))
        failed = asyncio.get_running_loop().time()
        while fleet.state(A) != "out":
            await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - failed < 0.1 + URGENT_GAP

    run(scene, fleet)


def test_a_failure_has_a_patient_probe_replaced_by_an_urgent_one(nodes: Nodes) -> None:
    """Hung: the probe that is under way would take two seconds to say so."""
    fleet = FakeFleet()

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(1.0)
        nodes.found[A] = 3600.0
        loop = asyncio.get_running_loop()
        while nodes.probed[-1][1] != A or nodes.probed[-1][0] < 1001.0:
            await asyncio.sleep(0.01)
        keeper.observe(late(A))
        failed = loop.time()
        assert fleet.state(A) == "up"
        await asyncio.sleep(0.39)
        assert fleet.state(A) == "up"
        while fleet.state(A) != "out":
            await asyncio.sleep(0.01)
        assert loop.time() - failed < 0.45
        assert fleet.topology.nodes[A].reason == "too late; a probe: no answer"

    run(scene, fleet)


def test_suspect_until_the_probe_is_good(nodes: Nodes) -> None:
    fleet = FakeFleet()

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(1.0)
        for _ in range(10):
            nodes.found[A] = 0.1
            keeper.observe(late(A, 200))
            assert fleet.state(A) == "suspect"
            await asyncio.sleep(0.25)
            assert fleet.state(A) == "up"

    run(scene, fleet)
    assert "out" not in {each.nodes[A].state for each in fleet.seen}


@pytest.mark.parametrize("pool", ["rehash", "error"])
def test_fail_open_uses_those_whose_keys_did_not_move(nodes: Nodes, returns: list[str], pool: str) -> None:
    fleet = FakeFleet(pool)

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(1.0)
        nodes.found = {A: refusal(), B: refusal()}
        keeper.observe([(A, 0, 1, 0, 1, True, "Connection refused")])
        assert fleet.state(A) == "out"
        keeper.observe([(B, 0, 1, 0, 1, True, "Connection refused")])
        assert fleet.state(A) == ("out" if pool == "rehash" else "unknown")
        assert fleet.state(B) == "unknown"
        assert fleet.topology.nodes[B].reason == "fail open: Connection refused"
        await asyncio.sleep(20.0)
        del nodes.found[A]
        await asyncio.sleep(20.0)
        assert fleet.state(A) == "up"
        assert fleet.state(B) == "out"  # one of three: believed now
        del nodes.found[B]
        await asyncio.sleep(20.0)
        assert fleet.state(B) == "up"

    logged = run(scene, fleet)
    assert [fields["nodes"] for event, fields in logged if event == "fail_open"] == [
        [B] if pool == "rehash" else [A, B]
    ]


def test_a_lag_of_our_own_is_no_evidence(nodes: Nodes) -> None:
    fleet = FakeFleet()

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(1.0)
        nodes.found[A] = 0.6
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        keeper.observe(late(A))
        await asyncio.sleep(0.3)
        loop.now += 0.3  # nobody ran meanwhile
        await asyncio.sleep(0.2)
        assert fleet.state(A) == "up"
        await asyncio.sleep(2.0)
        assert fleet.state(A) == "out"

    run(scene, fleet)


def test_what_we_lack_ourselves_is_no_evidence_and_is_tried_again_soon(nodes: Nodes) -> None:
    fleet = FakeFleet()

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(1.0)
        nodes.found[A] = NodeRefuses("Too many open files", ours=True)
        await asyncio.sleep(60.0)
        assert fleet.state(A) == "up"
        keeper.observe(late(A, 5))
        await asyncio.sleep(10.0)
        assert fleet.state(A) == "suspect", "nobody has been able to find out"
        asked = [when for when, address, _ in nodes.probed if address == A]
        assert all(0.1 < gap < 5.1 for gap in (b - a for a, b in pairwise(asked[2:])))
        del nodes.found[A]
        await asyncio.sleep(1.0)
        assert fleet.state(A) == "up"

    run(scene, fleet)


def test_shards_come_and_go(nodes: Nodes) -> None:
    fleet = FakeFleet()

    async def scene(keeper: Keeper) -> None:
        await asyncio.sleep(1.0)
        fleet.topology = FakeFleet(shards=2).topology
        keeper.follow(NoLogins())
        nodes.probed.clear()
        await asyncio.sleep(10.0)
        assert {address for _, address, _ in nodes.probed} == {A, B}
        keeper.observe(late(C))

    run(scene, fleet)


def test_a_bug_in_a_probe_is_logged_and_the_node_is_watched_on(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = FakeFleet()

    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    async def scene(keeper: Keeper) -> None:
        monkeypatch.setattr(keepers.probe, "check", broken)
        await asyncio.sleep(0.3)
        monkeypatch.setattr(keepers.probe, "check", nodes.check)
        await asyncio.sleep(2.0)
        assert fleet.state(A) == "up"

    assert "keeper_failed" in [event for event, _ in run(scene, fleet)]
