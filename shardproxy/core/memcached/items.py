"""The steps that programs share: an item read, and changed only if nobody has changed it meanwhile.

Rules: a value is written over by compare-and-swap only, or where its old value does not matter. What keeps
its TTL is written with the very second at which it would have expired: `remains` learns that from the
node's own clock (a rewrite with the seconds that are left would add a part of a second each time, and such
a key never expires). A step that lost to somebody else says so, and its program starts over.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from shardproxy.core import errors
from shardproxy.core.memcached import wire
from shardproxy.core.memcached.expiry import NEVER, Node, absolute
from shardproxy.core.memcached.wire import OfNode, Reply

TRIES = 1000  # of a program that loses to others each time
CLOCK_TRIES = 8  # of reading the clock between two of its seconds
KEEP = b""  # as a T: expires when it would have


class Ask(NamedTuple):
    """Bytes for the node, and how many replies come."""

    data: bytes
    replies: int = 1
    writes: bool = False  # it must not run twice
    pause: float = 0.0  # seconds, before it is sent
    spare: bool = False  # the command has run already: if no answer comes, () will do


T = TypeVar("T")
Steps: TypeAlias = Generator[Ask, Sequence[Reply], T]


class Item(NamedTuple):
    value: bytes
    cas: bytes
    flags: bytes  # of memcached's clients: kept
    ttl: int  # seconds; -1: for ever
    size: int = 0  # where only that was asked for


def tries() -> Iterator[int]:
    """Of a program; raises OfNode when it has lost too often."""
    yield from range(TRIES)
    raise OfNode(errors.MEMCACHED_BUSY)


def refuse(reply: Reply, node: Node) -> OfNode:
    """What a reply that no step expects means to the client."""
    said = (reply.value or b"").decode(errors="replace")
    if "too large" in said:
        return OfNode(errors.memcached_too_large(node.limit))
    if "out of memory" in said:
        return OfNode(errors.MEMCACHED_FULL)
    return OfNode(errors.memcached_said(f"{reply.code} {said}".rstrip()))


def whole(reply: Reply, node: Node, name: str, default: int) -> int:
    """A number that a reply tells. Raises OfNode."""
    try:
        return int(reply.flags.get(name, default))
    except ValueError:
        raise refuse(reply, node) from None


def one(node: Node, data: bytes, expected: str, writes: bool = False) -> Steps[Reply]:
    """One request; expected: the codes that may come."""
    (reply,) = yield Ask(data, 1, writes)
    if reply.code not in expected.split():
        raise refuse(reply, node)
    return reply


def many(node: Node, data: Sequence[bytes], expected: str, writes: bool = False) -> Steps[Sequence[Reply]]:
    """Requests at once."""
    replies = yield Ask(b"".join(data), len(data), writes)
    for reply in replies:
        if reply.code not in expected.split():
            raise refuse(reply, node)
    return replies


def read(node: Node, key: bytes, flags: bytes = b" v c f t s") -> Steps[Item | None]:
    """What is there.

    With the CAS value goes the flag h, for which the node keeps its lock until it has written all this.
    Without, when `ma` replaces the item at that moment, it tells the old value with the new one's CAS value
    (seen: one in 100,000), and who writes what he makes of it takes back a change.
    """
    if b" c" in flags:
        flags += b" h"
    reply = yield from one(node, wire.command(b"mg", key, flags), "VA HD EN")
    if not reply.hit:
        return None
    found = reply.flags
    return Item(
        reply.value or b"",
        found.get("c", b"0"),
        found.get("f", b"0"),
        whole(reply, node, "t", -1),
        whole(reply, node, "s", 0),
    )


def fits(node: Node, key: bytes, size: int, flags: bytes = b"0") -> None:
    """Raises OfNode, before the node does: it would drop what is there."""
    if size > wire.room(key, flags, node.limit):
        raise OfNode(errors.memcached_too_large(node.limit))


def put(
    node: Node, key: bytes, value: bytes, mode: bytes = b"S", until: bytes = NEVER, flags: bytes = b"0"
) -> bytes:
    """An `ms`; mode: S, or E: if there is none, R: if there is one."""
    fits(node, key, len(value), flags)
    until = b"" if until == NEVER else b" T" + until
    return wire.store(key, value, b" M" + mode + until + (b"" if flags == b"0" else b" F" + flags))


def add(node: Node, key: bytes, value: bytes, until: bytes = NEVER) -> Steps[bool]:
    """Where there is none; False: there is one now."""
    reply = yield from one(node, put(node, key, value, b"E", until), "HD NS", writes=True)
    return reply.code == "HD"


def replace(
    node: Node, key: bytes, item: Item, value: bytes, until: bytes = KEEP, flags: bytes | None = None
) -> Steps[bool]:
    """In place of this item; flags: its own. False: it is not there any more."""
    if until == KEEP:
        if item.ttl < 0:
            until = NEVER
        else:
            at = yield from remains(node, key, item)
            if at is None:
                return False
            until = absolute(at)
    data = put(node, key, value, b"S", until, item.flags if flags is None else flags)
    head, line, rest = data.partition(b"\r\n")
    reply = yield from one(node, head + b" C" + item.cas + line + rest, "HD EX NF NS", writes=True)
    return reply.code == "HD"


def delete(node: Node, key: bytes, item: Item) -> Steps[bool]:
    """This item; False: it is not there any more."""
    reply = yield from one(node, wire.command(b"md", key, b" C" + item.cas), "HD EX NF", writes=True)
    return reply.code == "HD"


def remains(node: Node, key: bytes, item: Item) -> Steps[int | None]:
    """When this item expires: seconds since 1970 by the node's clock. None: it is not there any more.

    The node tells how many seconds are left and, between two such answers, what second it is: if they are the
    same, no second has begun meanwhile.
    """
    look = wire.command(b"mg", key, b" c t h")
    for _ in range(CLOCK_TRIES):
        before, clock, after = yield Ask(look + b"stats\r\n" + look, 3)
        for reply in (before, after):
            if not reply.hit or reply.flags.get("c") != item.cas or whole(reply, node, "t", -1) == -1:
                return None
        if before.flags["t"] == after.flags["t"]:
            if "time" not in clock.flags:
                raise refuse(clock, node)
            return whole(clock, node, "time", 0) + whole(before, node, "t", 0)
    raise OfNode(errors.MEMCACHED_BUSY)
