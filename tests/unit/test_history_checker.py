"""The judge of histories, on histories made by hand: what is a mistake, and what is not."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.adversity.history import OK, REFUSED, UNKNOWN, History, Operation, check, number_in, value_of


def made(*operations: str, lossy: bool = True, emptied: tuple[float, float] | None = None) -> History:
    """Of lines "KIND NUMBER START END [OUTCOME]"; the number of a read that found nothing is "-"."""
    history = History(lossy=lossy, homes={"key": "a", "other": "b"})
    for line in operations:
        kind, number, start, end, *outcome = line.split()
        history.operations.append(
            Operation(
                client=1 if kind in ("set", "del", "incr") else 2,
                kind=kind,  # type: ignore[arg-type]
                key="key",
                start=float(start),
                end=float(end),
                outcome=outcome[0] if outcome else OK,
                number=None if number == "-" else int(number),
                error="SHARDDOWN" if outcome == [REFUSED] else "",
            )
        )
    if emptied:
        history.emptied.append(("a", *emptied))
    return history


FINE = {
    "what was written": made("set 1 0 1", "get 1 2 3"),
    "nothing before the first write": made("get - 0 1", "set 1 2 3", lossy=False),
    "while it is being written, old or new": made("set 1 0 1", "set 2 2 5", "get 1 3 4", "get 2 3 4"),
    "an unknown write, seen or not": made("set 1 0 1", f"set 2 2 3 {UNKNOWN}", "get 1 4 5", "get 2 6 7"),
    "a refused write, not seen": made("set 1 0 1", f"set 2 2 3 {REFUSED}", "get 1 4 5"),
    "a cache has lost it": made("set 1 0 1", "get - 2 3"),
    "a cache has lost it, then the next": made("set 1 0 1", "get - 2 3", "set 2 4 5", "get 2 6 7"),
    "empty since the kill": made("set 1 0 1", "get - 4 5", lossy=False, emptied=(2, 3)),
    "killed while it was acknowledged": made("set 1 0 3", "get - 4 5", lossy=False, emptied=(2, 3)),
    "deleted": made("set 1 0 1", "del 2 2 3", "get - 4 5", lossy=False),
    "deleted, perhaps": made(
        "set 1 0 1", f"del 2 2 3 {UNKNOWN}", "get 1 4 5", "get - 6 7", "set 3 8 9", "get 3 10 11", lossy=False
    ),
    "an unknown write takes effect after an empty read": made(
        f"set 1 0 1 {UNKNOWN}", "get - 2 3", "get 1 4 5"
    ),
    "counted": made("incr 1 0 1", "incr 2 2 3", "count 2 4 5", lossy=False),
    "counted perhaps": made("incr 1 0 1", f"incr - 2 3 {UNKNOWN}", "count 1 4 5", "count 2 6 7", lossy=False),
    "counted again from nothing": made("incr 1 0 1", "incr 2 2 3", "incr 1 4 5", "count - 6 7"),
    "counted at the same time": made("incr 2 0 5", "incr 1 1 4", "count 0 0 1", lossy=False),
    "counter lost with its node": made(
        "incr 1 0 1", "incr 1 4 5", "count 1 6 7", lossy=False, emptied=(2, 3)
    ),
}


@pytest.mark.parametrize("name", FINE)
def test_fine(name: str) -> None:
    assert check(FINE[name]) == []


WRONG = {
    "stale: nothing of it in doubt": (made("set 1 0 1", "set 2 2 3", "get 1 4 5"), "2 had been acknowledged"),
    "stale after it was gone": (
        made("set 1 0 1", "set 2 2 3", "get - 4 5", "get 1 6 7"),
        "read 1: stale, 2 had been acknowledged",
    ),
    "an unknown write comes after a later one": (
        made(f"set 1 0 1 {UNKNOWN}", "set 2 2 3", "get 1 4 5"),
        "read 1: stale, 2 had been acknowledged",
    ),
    "backwards between readers": (
        made("set 1 0 1", f"set 2 2 3 {UNKNOWN}", "get 2 4 5", "get 1 6 7"),
        "read 1: stale, 2 had been read",
    ),
    "deleted and back": (
        made("set 1 0 1", "del 2 2 3", "get 1 4 5"),
        "read 1: stale, 2 had been acknowledged",
    ),
    "refused, yet written": (
        made(f"set 1 0 1 {REFUSED}", "get 1 2 3"),
        "read 1: that write was refused (SHARDDOWN)",
    ),
    "from the future": (made("get 1 0 1", "set 1 2 3"), "read 1: nobody had written that"),
    "from nowhere": (made("set 1 0 1", "get 7 2 3"), "read 7: nobody had written that"),
    "a deletion has no value": (made("del 1 0 1", "get 1 2 3"), "read 1: nobody had written that"),
    "lost": (made("set 1 0 1", "get - 2 3", lossy=False), "read nothing: write 1 is lost"),
    "lost again after the node had come back": (
        made("set 1 0 1", "set 2 4 5", "get - 6 7", lossy=False, emptied=(2, 3)),
        "read nothing: write 2 is lost",
    ),
    "lost, with another's deletion refused": (
        made("set 1 0 1", f"del 2 2 3 {REFUSED}", "get - 4 5", lossy=False),
        "read nothing: write 1 is lost",
    ),
    "seen, then lost": (
        made(f"set 1 0 1 {UNKNOWN}", "get 1 2 3", "get - 4 5", lossy=False),
        "read nothing: write 1 is lost",
    ),
    "doubled": (made("incr 1 0 1", "incr 3 2 3"), "answered 3: only 2 increments had been sent"),
    "doubled, seen by a reader": (made("incr 1 0 1", "count 2 2 3"), "only 1 increments had been sent"),
    "doubled, though one is unclear": (
        made("incr 1 0 1", f"incr - 2 3 {UNKNOWN}", "count 3 4 5"),
        "only 2 increments had been sent",
    ),
    "refused, yet counted": (made(f"incr - 0 1 {REFUSED}", "count 1 2 3"), "only 0 increments"),
    "an increment lost": (made("incr 1 0 1", "incr 1 2 3", lossy=False), "answered 1: 2 were acknowledged"),
    "a counter gone": (made("incr 1 0 1", "count - 2 3", lossy=False), "1 were acknowledged"),
    "an increment of nothing": (made("incr 0 0 1"), "an increment makes at least 1"),
    "somebody else's reply": (made("get - 0 1 wrong"), "wrong"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong(name: str) -> None:
    history, told = WRONG[name]
    [mistake] = check(history)
    assert told in mistake and mistake.startswith("key: client ")


APART = (
    # kind, number, connection, outcome; one after the other: what the last one reads is fine, or a mistake
    ("its client has left", [("set", 1, 1, UNKNOWN), ("set", 2, 2, OK), ("get", 1, 9, OK)], True),
    ("a deletion", [("del", 1, 1, UNKNOWN), ("set", 2, 2, OK), ("get", None, 9, OK)], True),
    ("behind it on its own", [("set", 1, 1, UNKNOWN), ("set", 2, 1, OK), ("get", 1, 9, OK)], False),
    (
        "behind it on its own, later",
        [("set", 1, 1, UNKNOWN), ("set", 2, 2, OK), ("set", 3, 1, OK), ("get", 1, 9, OK)],
        False,
    ),
    ("acknowledged", [("set", 1, 1, OK), ("set", 2, 2, OK), ("get", 1, 9, OK)], False),
)


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize(("name", "asked", "fine"), APART)
def test_several_workers_execute_what_a_client_left_behind_when_they_may(
    name: str, asked: list[tuple[str, int | None, int, str]], fine: bool, apart: bool
) -> None:
    history = History(lossy=False, apart=apart)
    for at, (kind, number, connection, outcome) in enumerate(asked):
        history.operations.append(
            Operation(1, kind, "key", at, at + 0.5, outcome, number, "", connection)  # type: ignore[arg-type]
        )
    assert (check(history) == []) is (fine and apart), name
    assert len(history.told("key")) == 1 + len(asked)


def test_a_node_that_came_back_empty_excuses_only_its_own_keys() -> None:
    history = made("set 1 0 1", "get - 4 5", lossy=False)
    history.emptied.append(("b", 2, 3))
    assert check(history) == ["key: client 2 read nothing: write 1 is lost"]


def test_values_say_whose_they_are() -> None:
    for number in (1, 2, 11, 28, 29, 30):
        assert number_in("key", 3, value_of("key", 3, number)) == (number, "")
    long = value_of("key", 3, 57)
    assert number_in("kez", 3, long) == (None, f"somebody else's reply: {long[:60]!r}")
    assert number_in("key", 4, long)[1].startswith("somebody else's reply")
    assert number_in("key", 3, long[:-1]) == (None, f"damaged: write 57 in {len(long) - 1} bytes")
    assert number_in("key", 3, b"")[1] == "not one of our values: b''"
    assert max(len(value_of("key", 3, number)) for number in range(60)) > 4000
