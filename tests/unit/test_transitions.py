"""proxy/transitions: what changed, in which order it is told, and that a hook never holds anything up."""

import asyncio
import itertools
import json
from collections.abc import Iterator

import msgspec
from fakes import CONFIG

from shardproxy.core.topology import State, Topology
from shardproxy.proxy.transitions import KEPT, KEPT_OF_ONE, QUEUED, HookFailed, Transitions, changes

A, B = "127.0.0.1:7001", "127.0.0.1:7002"
START = Topology.from_config(CONFIG)


class Log:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def __call__(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    def names(self) -> list[str]:
        return [event for event, _ in self.events]


def flips(count: int, address: str = A) -> list[Topology]:
    """So many snapshots, each with a change of this node."""
    found = [START]
    states: list[State] = ["up", "out"]
    for number in range(count):
        found.append(found[-1].with_node_state(address, states[number % 2], f"reason {number}"))
    return found


def feed(taken: Transitions, snapshots: list[Topology]) -> None:
    for old, new in itertools.pairwise(snapshots):
        taken.changed(old, new)


def test_changes_between_two_snapshots() -> None:
    new = START.with_node_state(A, "up").with_node_state(B, "out", "refused")
    found = changes(START, new, 5.0)
    assert [(each.shard, each.node, each.old, each.new, each.reason) for each in found] == [
        ("a", A, "unknown", "up", ""),
        ("b", B, "unknown", "out", "refused"),
    ]
    assert {each.generation for each in found} == {new.generation}
    assert not changes(new, new, 5.0)
    assert not changes(new, new.with_node_state(B, "out", "another reason"), 5.0), "its state is the same"


def test_the_latest_are_kept_and_all_are_counted() -> None:
    taken = Transitions(Log())
    feed(taken, flips(KEPT + 51))
    assert len(taken.latest) == KEPT
    assert taken.counts[A, "up"] + taken.counts[A, "out"] == KEPT + 51
    assert [each.reason for each in taken.of(A)[:2]] == [f"reason {KEPT + 50}", f"reason {KEPT + 49}"]
    assert taken.of(B) == []


def test_one_that_flaps_does_not_drive_out_what_happened_to_others() -> None:
    taken = Transitions(Log())
    before = START.with_node_state(B, "up", "")
    taken.changed(START, before)
    flapping = [before]
    for number in range(5000):
        state: State = "suspect" if number % 2 else "up"
        flapping.append(flapping[-1].with_node_state(A, state, f"reason {number}"))
    feed(taken, flapping)
    assert [each.new for each in taken.of(B)] == ["up"]
    assert len(taken.of(A)) == KEPT_OF_ONE and taken.of(A)[0].reason == "reason 4999"
    younger = Transitions(Log(), latest=taken.kept())
    assert (younger.of(A), younger.of(B)) == (taken.of(A), taken.of(B))
    assert younger.latest[-1] == taken.latest[-1]


def test_nodes_that_have_left_are_forgotten() -> None:
    """Or a stream of reloads with new addresses would grow without bound."""
    taken = Transitions(Log())
    up = START.with_node_state(A, "up").with_node_state(B, "up")
    pool = up.pools[0]
    less = msgspec.structs.replace(pool, shards=pool.shards[1:])
    feed(taken, [START, up, msgspec.structs.replace(up, pools=(less,))])
    assert set(taken.counts) == {(B, "up")}
    assert taken.of(A) == [] and [each.node for each in taken.kept()] == [B]


def test_as_json_it_says_from_and_to() -> None:
    taken = Transitions(Log())
    feed(taken, flips(1))
    told = json.loads(msgspec.json.encode(taken.latest[0]))
    assert set(told) == {"time", "pool", "shard", "node", "from", "to", "reason", "generation"}
    assert (told["from"], told["to"], told["shard"]) == ("unknown", "up", "a")


async def all_told(taken: Transitions) -> None:
    if taken._telling:
        await taken._telling


async def test_a_hook_is_told_one_by_one_in_order() -> None:
    told: list[str] = []
    at_once = 0

    async def tell(data: bytes) -> None:
        nonlocal at_once
        at_once += 1
        assert at_once == 1
        await asyncio.sleep(0)
        told.append(json.loads(data)["reason"])
        at_once -= 1

    taken = Transitions(Log(), tell)
    feed(taken, flips(9))
    await all_told(taken)
    assert told == [f"reason {number}" for number in range(9)]
    feed(taken, flips(1))
    await all_told(taken)
    assert len(told) == 10


async def test_of_too_many_the_oldest_are_left_out_and_the_log_says_so() -> None:
    told: list[str] = []
    log = Log()

    async def tell(data: bytes) -> None:
        told.append(json.loads(data)["reason"])

    taken = Transitions(log, tell)
    feed(taken, flips(QUEUED + 30))
    await all_told(taken)
    assert told == [f"reason {number}" for number in range(30, QUEUED + 30)]
    assert log.events == [("on_transition_behind", {"left_out": 30})]


async def test_a_hook_that_fails_is_logged_and_the_next_is_told() -> None:
    log = Log()
    failures: Iterator[Exception] = iter([HookFailed("exit status 1"), ValueError("a secret")])

    async def tell(data: bytes) -> None:
        if error := next(failures, None):
            raise error

    taken = Transitions(log, tell)
    feed(taken, flips(3))
    await all_told(taken)
    assert log.names() == ["on_transition_failed"] * 2
    assert log.events[0][1] == {"node": A, "why": "exit status 1"}


async def test_closing_waits_for_nobody() -> None:
    async def tell(data: bytes) -> None:
        await asyncio.Event().wait()

    taken = Transitions(Log(), tell)
    feed(taken, flips(5))
    await asyncio.sleep(0)
    await taken.close()
    assert taken._telling is not None and taken._telling.done()
