"""SCAN's cursor over several shards: the node's own cursor and whose it is, in one integer below 2^63.

    lap 1 bit │ ring 7 bits │ shard 15 bits │ the node's cursor 40 bits

A shard's number comes from its name, so that every worker, and the next process, reads a cursor as this one
does. Shards are scanned in the order of their numbers. `ring` says which shards there were when the scan
began: when there are others at its end, those that are new since have a second lap. Who does not know any
more which there were lets all have one: SCAN may show a key twice, but misses none that was there all the
time. Pure.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from shardproxy.core.hashing import xxh64

NODE_BITS, SHARD_BITS, RING_BITS = 40, 15, 7
NODE_MOST = (1 << NODE_BITS) - 1  # a table of so many places would take 8 TB
SHARDS = 1 << SHARD_BITS


class Position(NamedTuple):
    """Where a scan is; shard: the number of the one that comes next, or the next after it."""

    lap: int = 0
    ring: int = 0
    shard: int = 0
    node: int = 0

    def pack(self) -> int:
        head = (self.lap << RING_BITS | self.ring) << SHARD_BITS | self.shard
        return head << NODE_BITS | self.node

    @classmethod
    def unpack(cls, cursor: int) -> "Position":
        head = cursor >> NODE_BITS
        return cls(
            head >> SHARD_BITS + RING_BITS & 1,
            head >> SHARD_BITS & (1 << RING_BITS) - 1,
            head & SHARDS - 1,
            cursor & NODE_MOST,
        )


def ring_of(names: Collection[str]) -> int:
    """Tells sets of shards apart, most of the time."""
    return xxh64("\n".join(sorted(names)).encode()) & (1 << RING_BITS) - 1


def numbers(names: Iterable[str]) -> dict[int, str]:
    """The shards by number, in the order of a scan. Two with the same one: the later name takes the next."""
    found: dict[int, str] = {}
    for name in sorted(names):
        number = xxh64(name.encode()) % SHARDS
        while number in found:
            number = (number + 1) % SHARDS
        found[number] = name
    return dict(sorted(found.items()))


def place(
    at: Position, names: Collection[str], rings: Mapping[int, Collection[str]]
) -> tuple[Position, str] | None:
    """Which shard is asked now, and the position with its number; None: the scan is over.

    names: the shards of today's ring; rings: of earlier ones, as far as known, by ring_of.
    """
    ordered = numbers(names)
    for lap in range(at.lap, 2):
        if lap == 1 and at.lap == 0:
            if ring_of(names) == at.ring:
                return None
            at = Position(1, at.ring)
        first = rings.get(at.ring)  # whose lap is the first; None: everybody's is
        for number, name in ordered.items():
            if number >= at.shard and (first is None or (name in first) != lap):
                return at._replace(shard=number, node=at.node if number == at.shard else 0), name
    return None


def after(at: Position, node: int) -> Position:
    """When a shard has answered with this cursor."""
    return at._replace(node=node) if node else at._replace(shard=at.shard + 1, node=0)
