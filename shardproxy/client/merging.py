"""What the replies of several shards come to: one value, or PartialError. Pure, for both clients.

Replies are as the reader gives them; a shard's failure is there as the exception, in its reply's place.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from shardproxy.client import errors
from shardproxy.client.errors import PartialError, ShardError
from shardproxy.client.everywhere import Everywhere
from shardproxy.client.routing import Split
from shardproxy.core.scan_cursor import NODE_MOST, Position, after, place, ring_of


def of_parts(split: Split, replies: Sequence[Any], partial: str) -> Any:
    """A command that was split: merged, or as the pool's `partial` says. Raises PartialError."""
    failed = [reply for reply in replies if isinstance(reply, Exception)]
    if not failed:
        return split.merged(replies)
    if partial == "nil" and split.merge != "ok" and all(isinstance(each, ShardError) for each in failed):
        return split.merged([
            ([None] * split.homes.count(number) if split.merge == "array" else 0)
            if isinstance(reply, Exception) else reply
            for number, reply in zip(split.shards, replies, strict=True)
        ])  # fmt: skip
    raise split.partial(replies)


def of_all(what: Everywhere, found: Mapping[str, Any], partial: str) -> Any:
    """A command to all shards, by their names: merged, or an error that all gave. Raises PartialError."""
    failed = {name: reply for name, reply in found.items() if isinstance(reply, Exception)}
    if not failed:
        return what.merge(list(found.values()))
    if len(failed) == len(found) and len({str(error) for error in failed.values()}) == 1:
        return next(iter(failed.values()))  # all refuse it in the same words
    kept = {name: reply for name, reply in found.items() if name not in failed}
    if partial == "nil" and not what.writes and kept:
        return what.merge(list(kept.values()))
    raise PartialError(kept, failed)


class ScanStep(NamedTuple):
    """One call of SCAN: which shard is asked, from which of its cursors on."""

    shard: str
    cursor: int
    at: Position


class Scans:
    """SCAN's cursor over all shards, as the proxy's: it says which is next. Remembers past sets of shards."""

    def __init__(self) -> None:
        self._rings: dict[int, frozenset[str]] = {}

    def step(self, cursor: bytes, names: Collection[str]) -> ScanStep | None:
        """None: it is over. Raises ResponseError."""
        ring = ring_of(names)
        self._rings[ring] = frozenset(names)
        try:
            given = int(cursor)
        except ValueError:
            raise errors.refusal("ERR invalid cursor") from None
        found = place(Position.unpack(given) if given else Position(ring=ring), names, self._rings)
        return ScanStep(found[1], found[0].node, found[0]) if found else None

    def reply(self, step: ScanStep, reply: Any, names: Collection[str]) -> Any:
        """What SCAN answers when that shard has answered this, an error, or None: as if it had no keys."""
        if isinstance(reply, Exception):
            return reply
        node, keys = (int(reply[0]), reply[1]) if reply is not None else (0, [])
        if node > NODE_MOST:
            raise errors.refusal(
                f"ERR shard '{step.shard}' gave a cursor that is too large: scan it with on_shard"
            )
        following = place(after(step.at, node), names, self._rings)
        return [str(following[0].pack() if following else 0).encode(), keys]
