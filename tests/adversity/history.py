"""A history of what clients asked and were told, and the judge of it. Pure: no sockets, clocks or randomness.

Rules it lives by. Each key has a single writer, which waits for one outcome before it asks again and numbers
its writes from 1; every value names its key, writer and number. Readers are anybody. Times are of one clock.
An outcome is

- ok: with what was read, or the counter's value;
- refused (SHARDDOWN, OVERLOADED): it was not executed, and never will be;
- unknown (TIMEOUT, UNKNOWN, a lost connection): it may have been executed, or be executed while it is
  not overtaken: once a later write of the key was acknowledged, what is older must not come back. With
  several workers (`apart`) it is overtaken by writes on its own connection only: see docs/failover.md,
  "What cannot be promised".

`check` returns every mistake in words:

- a reply with somebody else's key or writer, a damaged value, an error that no policy gives;
- a value that nobody had written yet, or whose write was refused;
- a value older than a write that was acknowledged, or than a value that was read, before the read began;
- a counter above what its increments can have made; below what was acknowledged, where nothing may be lost;
- a missing value, where nothing may be lost: `lossy` histories may lose any value at any time; others only
  while `emptied` says that the node of the key came back empty.
"""

import bisect
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

OK, REFUSED, UNKNOWN = "ok", "refused", "unknown"
Kind = Literal["set", "del", "get", "incr", "count"]  # count: the value of a counter, read
OUTCOMES = {"SHARDDOWN": REFUSED, "OVERLOADED": REFUSED, "TIMEOUT": UNKNOWN, "UNKNOWN": UNKNOWN}


@dataclass(frozen=True, slots=True)
class Operation:
    """One request. number: of the write; of what was read; of incr and count the counter's value.

    It is None for a get or count that found nothing, and for an incr whose outcome is not ok.
    """

    client: int
    kind: Kind
    key: str
    start: float
    end: float
    outcome: str
    number: int | None = None
    error: str = ""  # the error's code, "LOST" for a connection that ended, and what else is wrong, in words
    connection: int = 0  # of this client, counted


@dataclass(slots=True)
class History:
    """Everything that happened, in any order.

    lossy: values may get lost (a cache pool). apart: a client's connections may go different ways to a node.
    """

    lossy: bool
    apart: bool = False
    operations: list[Operation] = field(default_factory=list)
    homes: Mapping[str, str] = field(default_factory=dict)  # key → shard
    emptied: list[tuple[str, float, float]] = field(default_factory=list)  # shard, killed, back and empty

    def told(self, key: str) -> list[str]:
        """All that was asked of a key, a line each; the first names its home."""
        seen = sorted((each for each in self.operations if each.key == key), key=lambda each: each.start)
        return [f"{key}, of shard {self.homes.get(key)}:"] + [
            f"{each.start:.3f}-{each.end:.3f} client {each.client}/{each.connection} "
            f"{each.kind} {each.number} {each.outcome} {each.error[:60]}"
            for each in seen
        ]

    def emptied_between(self, key: str, start: float, end: float) -> bool:
        shard = self.homes.get(key)
        return any(name == shard and since <= end and until >= start for name, since, until in self.emptied)


def value_of(key: str, client: int, number: int) -> bytes:
    """What write `number` of this key's writer puts there; of various lengths."""
    return b"%b|%d|%d|%b" % (key.encode(), client, number, _padding(number))


def number_in(key: str, client: int, value: bytes) -> tuple[int | None, str]:
    """The number of the write that a value is of, or what is wrong with it."""
    parts = value.split(b"|", 3)
    if len(parts) != 4 or not parts[2].isdigit():
        return None, f"not one of our values: {value[:60]!r}"
    number = int(parts[2])
    if parts[0] != key.encode() or parts[1] != b"%d" % client:
        return None, f"somebody else's reply: {value[:60]!r}"
    if parts[3] != _padding(number):
        return None, f"damaged: write {number} in {len(value)} bytes"
    return number, ""


def _padding(number: int) -> bytes:
    return b"%x" % number * (number % 11 * (1 if number % 29 else 400))


def check(history: History) -> list[str]:
    """Every mistake, in words; none: what the clients saw is consistent with the pool's policy."""
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in history.operations:
        by_key[operation.key].append(operation)
    return [mistake for key, seen in by_key.items() for mistake in _of_key(history, key, seen)]


def _of_key(history: History, key: str, seen: Sequence[Operation]) -> Iterator[str]:
    for each in seen:
        if each.outcome not in (OK, REFUSED, UNKNOWN):
            yield f"{key}: client {each.client} {each.kind}: {each.outcome} {each.error}"
    if any(each.kind in ("incr", "count") for each in seen):
        yield from _counter(history, key, seen)
    else:
        yield from _register(history, key, seen)


class _Floor:
    """The highest number among facts that were known before a moment."""

    def __init__(self, facts: Iterable[tuple[float, int]]) -> None:
        ordered = sorted(facts)
        self.times = [when for when, _ in ordered]
        self.highest = list(itertools.accumulate((number for _, number in ordered), max))

    def before(self, when: float) -> int:
        """0: none."""
        at = bisect.bisect_left(self.times, when)
        return self.highest[at - 1] if at else 0


def _register(history: History, key: str, seen: Sequence[Operation]) -> Iterator[str]:
    writes = {each.number: each for each in seen if each.kind in ("set", "del") and each.number is not None}
    reads = [each for each in seen if each.kind == "get" and each.outcome == OK]
    acknowledged = _Floor((w.end, number) for number, w in writes.items() if w.outcome == OK)
    shown = _Floor((read.end, read.number) for read in reads if read.number is not None)
    for read in reads:
        told = f"{key}: client {read.client} read {'nothing' if read.number is None else read.number}"
        floor = max(acknowledged.before(read.start), shown.before(read.start))
        if read.number is None:
            if not (history.lossy or _may_be_empty(history, writes, floor, read)):
                yield f"{told}: write {floor} is lost"
            continue
        write = writes.get(read.number)
        if write is None or write.kind == "del" or write.start > read.end:
            yield f"{told}: nobody had written that"
        elif write.outcome == REFUSED:
            yield f"{told}: that write was refused ({write.error})"
        elif read.number < floor and not _late(history, writes, write, read):
            which = "acknowledged" if acknowledged.before(read.start) == floor else "read"
            yield f"{told}: stale, {floor} had been {which}"


def _may_be_empty(history: History, writes: Mapping[int, Operation], floor: int, read: Operation) -> bool:
    """Whether a read may find nothing after write `floor` has been acknowledged or read."""
    if not floor or history.emptied_between(read.key, writes[floor].start, read.end):
        return True
    deletions = (w for w in writes.values() if w.kind == "del" and w.start <= read.end)
    return any(
        w.outcome != REFUSED and ((w.number or 0) >= floor or _late(history, writes, w, read))
        for w in deletions
    )


def _late(history: History, writes: Mapping[int, Operation], write: Operation, read: Operation) -> bool:
    """Whether a write may have been executed after newer ones: who sent it was told nothing, and left."""
    return (
        history.apart
        and write.outcome == UNKNOWN
        and not any(
            w.outcome == OK and w.end < read.start and w.connection == write.connection
            for number, w in writes.items()
            if number > (write.number or 0)
        )
    )


def _counter(history: History, key: str, seen: Sequence[Operation]) -> Iterator[str]:
    """Every increment at most once; where nothing is lost, every acknowledged one."""
    tries = [each for each in seen if each.kind == "incr" and each.outcome != REFUSED]
    started = sorted(each.start for each in tries)
    done = sorted(each.end for each in tries if each.outcome == OK)
    for each in seen:
        if each.outcome != OK:
            continue
        told = f"{key}: client {each.client} {each.kind} answered {each.number}"
        value = each.number or 0
        most = bisect.bisect_right(started, each.end)
        least = bisect.bisect_left(done, each.start) + (each.kind == "incr")
        if value > most:
            yield f"{told}: only {most} increments had been sent"
        if each.kind == "incr" and value < 1:
            yield f"{told}: an increment makes at least 1"
        if value < least and not history.lossy and not history.emptied_between(key, 0.0, each.end):
            yield f"{told}: {least} were acknowledged"
