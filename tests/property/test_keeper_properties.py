"""The Keeper: whatever nodes, workers and requests do, in any order, on a clock that never waits.

Set KEEPER_EXAMPLES for more of them.
"""

import asyncio
import os
from itertools import pairwise
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keeping import A, B, C, FakeFleet, Nodes, fake_returns, refusal, run

from shardproxy.core.topology import RETURNING, Node, Topology
from shardproxy.proxy import keeper as keepers
from shardproxy.proxy.keeper import Keeper
from shardproxy.proxy.probe import NodeRefuses

ALL = (A, B, C)
WELL = 0.001
LONG = 120.0  # seconds in which everything settles
HOW: dict[str, Any] = {
    "refuses": refusal(),
    "well": WELL,
    "hangs": 1000.0,
    "slow": 0.45,
    "loads": NodeRefuses("it answers PING with 'LOADING'"),
    "no descriptors": NodeRefuses("Too many open files", ours=True),
}
Step: TypeAlias = tuple[float, str, Any]  # seconds before it, what, and of whom or how

nodes_ = st.tuples(st.sampled_from(ALL), st.sampled_from([*HOW]))
requests = st.tuples(st.sampled_from(ALL), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
delays = st.sampled_from([0.01, 0.6, 8.0, 20.0, 0.0])
steps_ = st.lists(
    st.tuples(delays, st.just("node"), nodes_)
    | st.tuples(delays, st.just("requests"), requests)
    | st.tuples(delays, st.just("workers"), st.sampled_from(["at once", "no", "late"])),
    min_size=6,
    max_size=30,
)


def answered(fleet: FakeFleet) -> None:
    slow, fleet.slow = fleet.slow or [], None
    for each in slow:
        if not each.done():
            each.set_result(fleet.acknowledge)


async def play(fleet: FakeFleet, nodes: Nodes, keeper: Keeper, steps: list[Step]) -> set[str]:
    """Then all are well. The nodes of which nobody has ever had anything to complain."""
    fine = set(ALL)
    for delay, what, how in steps:
        await asyncio.sleep(delay)
        if what == "node":
            nodes.found[how[0]] = HOW[how[1]]
            fine -= {how[0]} if how[1] not in ("well", "no descriptors") else set()
        elif what == "requests":
            address, ok, failed, slow = how
            gone = failed > 0 and nodes.found.get(address) is HOW["refuses"]
            fine -= {address} if failed or slow else set()
            keeper.observe([(address, ok, failed, min(slow, ok), failed, gone, "too late")])
        else:
            answered(fleet)
            fleet.acknowledge = how != "no"
            fleet.slow = [] if how == "late" else None
    fleet.acknowledge = True
    answered(fleet)
    nodes.found = {}
    await asyncio.sleep(LONG)
    return fine


def history(fleet: FakeFleet, start: Topology, address: str) -> list[Node]:
    return [each.nodes[address] for each in (start, *fleet.seen)]


@settings(max_examples=int(os.environ.get("KEEPER_EXAMPLES", "40")))
@given(st.sampled_from(["rehash", "error"]), st.booleans(), steps_)
def test_no_order_of_events_breaks_the_rules(policy: str, alone: bool, steps: list[Step]) -> None:
    fleet, nodes, fine = FakeFleet(policy), Nodes(), set[str]()
    fleet.alone = alone
    start = fleet.topology

    async def scene(keeper: Keeper) -> None:
        fine.update(await play(fleet, nodes, keeper, steps))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keepers.probe, "check", nodes.check)
        fake_returns(patch)
        logged = run(scene, fleet)
    assert not [fields for event, fields in logged if event == "keeper_failed"]
    assert all(
        new.generation > old.generation for old, new in pairwise([start, *fleet.seen]) if new is not old
    )
    for address in ALL:
        was = history(fleet, start, address)
        last = was[-1]
        assert (last.state, last.reason, last.swept) == ("up", "", True), "all is well, and so it ends"
        away = False  # it has been shown as out, and not returned yet
        for old, new in pairwise(was):
            away = away or old.state == "out"
            if new.state == "up" and old.state != "up" and away:
                assert (old.state, old.reason) == ("suspect", RETURNING), "behind a fence"
                away = False
            if new.state in ("suspect", "out"):
                assert new.reason
            if new.state == "out" and old.state != "out" and not away:
                assert address not in fine
                if policy == "rehash" and not alone:
                    assert old.state == "suspect", "its keys are held until every worker says so"
            if policy == "rehash" and away:
                assert new.state != "unknown", "what has moved stays moved"
