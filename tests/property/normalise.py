"""What two servers, both right, may answer differently, as one listed table; the rest is not touched.

NORMALISERS: command → the function that takes a reply frame to one that must be the same. Rules: a normaliser
hides no more than it must, works on bytes, and gives errors and nulls back as they are. Knows no socket.
"""

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from servers import frame_end

Normaliser: TypeAlias = Callable[[bytes], bytes]


def children(frame: bytes) -> list[bytes]:
    """The elements of an aggregate; a map's are its keys and values in turn."""
    end = frame.index(b"\r\n") + 2
    found = []
    while end < len(frame):
        start, end = end, frame_end(frame, end)
        found.append(frame[start:end])
    return found


def header(frame: bytes) -> bytes:
    return frame[: frame.index(b"\r\n") + 2]


def is_aggregate(frame: bytes) -> bool:
    return frame[:1] in b"*~%" and not frame.startswith(b"*-1")


def unordered(frame: bytes) -> bytes:
    """A set or an array of any order."""
    return header(frame) + b"".join(sorted(children(frame))) if is_aggregate(frame) else frame


def unordered_pairs(frame: bytes) -> bytes:
    """Fields and values: a map, or an array of twice the length."""
    if not is_aggregate(frame):
        return frame
    each = children(frame)
    return header(frame) + b"".join(sorted(a + b for a, b in zip(each[::2], each[1::2], strict=True)))


def cursor(inner: Normaliser) -> Normaliser:
    """The reply of a scan: a cursor and a list."""

    def normalise(frame: bytes) -> bytes:
        if not is_aggregate(frame):
            return frame
        position, found = children(frame)
        return header(frame) + position + inner(found)

    return normalise


def shape(frame: bytes) -> bytes:
    """How many there are, but not which: something was chosen at random."""
    return b"$?" if frame[:1] == b"$" and not frame.startswith(b"$-1") else header(frame)


def about(unit: int) -> Normaliser:
    """A time left, to the nearest `unit`."""

    def normalise(frame: bytes) -> bytes:
        if frame[:1] != b":" or (value := int(frame[1:])) <= 0:
            return frame
        return b":%d\r\n" % (round(value / unit) * unit)

    return normalise


def until(far: int) -> Normaliser:
    """A time at which something ends: exact when it was given (`far` or later), hidden when reckoned."""

    def normalise(frame: bytes) -> bytes:
        return b":?\r\n" if frame[:1] == b":" and 0 < int(frame[1:]) < far else frame

    return normalise


def hide(pattern: bytes, instead: bytes) -> Normaliser:
    compiled = re.compile(pattern)
    return lambda frame: compiled.sub(instead, frame)


def dumped(frame: bytes) -> bytes:
    """A set's or a hash's table is in any order, and their checksum with it; a stream holds times."""
    body = frame[len(header(frame)) : -2]
    if body[:1] in (b"\x02", b"\x04"):
        return header(frame) + bytes(sorted(body[:-8]))
    return b"stream" if body[:1] == b"\x13" else frame


def anything(frame: bytes) -> bytes:
    """The kind of reply alone."""
    return frame if frame[:1] == b"-" else frame[:1]


CHOSEN = "chosen at random"
ORDER = "the order of a hash table, which Redis seeds at random"
TIME = "the time, or something reckoned from it"
PENDING = hide(rb"(\*4\r\n\$\d+\r\n\d+-\d+\r\n\$\d+\r\n[^\r]*\r\n):\d+", rb"\1:?")
IDLE = hide(rb"(\$4\r\nidle\r\n):\d+", rb"\1:?")
SECONDS_LEFT, MILLISECONDS_LEFT = about(1_000), about(1_000_000)

# command → (normaliser, what it hides)
NORMALISERS: dict[str, tuple[Normaliser, str]] = {
    "smembers": (unordered, ORDER),
    "sinter": (unordered, ORDER),
    "sunion": (unordered, ORDER),
    "sdiff": (unordered, ORDER),
    "spop": (unordered, ORDER),  # all of them, see the grammar
    "sort": (unordered, ORDER),  # BY nosort on a set; and elements that tie
    "sort_ro": (unordered, ORDER),
    "hgetall": (unordered_pairs, ORDER),
    "hkeys": (unordered, ORDER),
    "hvals": (unordered, ORDER),
    "hscan": (cursor(unordered_pairs), ORDER),
    "sscan": (cursor(unordered), ORDER),
    "zscan": (cursor(unordered_pairs), ORDER),
    "dump": (dumped, ORDER + "; " + TIME),
    "memory|usage": (anything, ORDER + ": what is sampled; and how much more than asked the allocator gave"),
    "acl|cat": (unordered, ORDER),
    "acl|genpass": (shape, CHOSEN),
    "acl|log": (anything, TIME + ", and this connection"),
    "keys": (unordered, ORDER),
    "scan": (cursor(unordered), ORDER),
    "pubsub|channels": (unordered, ORDER),
    "pubsub|shardchannels": (unordered, ORDER),
    "randomkey": (shape, CHOSEN),
    "srandmember": (shape, CHOSEN),
    "hrandfield": (shape, CHOSEN),
    "zrandmember": (shape, CHOSEN),
    "time": (hide(rb"\$\d+\r\n\d+", b"$?\r\n?"), TIME),
    "ttl": (SECONDS_LEFT, TIME),
    "pttl": (MILLISECONDS_LEFT, TIME),
    "expiretime": (until(4_000_000_000), TIME),
    "pexpiretime": (until(4_000_000_000_000), TIME),
    "object|idletime": (anything, TIME),
    "xpending": (PENDING, TIME),
    "xinfo|consumers": (IDLE, TIME),
    "xinfo|stream": (hide(rb":\d{13}\r\n", b":?\r\n"), TIME),
    "hello": (hide(rb"(\$2\r\nid\r\n):\d+", rb"\1:?"), "a number of this connection"),
    "client|id": (hide(rb":\d+", b":?"), "a number of this connection"),
    "command|info": (
        hide(rb"(?:%4|\*8)(\r\n(?:(?!notes)[^\x00])*?)\$5\r\nnotes\r\n\$\d+\r\n[^\r]*\r\n", rb"?\1"),
        "notes on key specs, which are prose",
    ),
}


# Of an entry, by the server; whoever reads the stream later sees it
CHOSEN_ID = re.compile(rb"\$1\d\r\n1\d{12}-\d+\r\n")


def normaliser(args: Sequence[bytes]) -> Normaliser:
    """The one for a command; XADD only with an id that the server chooses."""
    name = args[0].decode("latin-1").lower() if args else ""
    if name == "xadd" and b"*" in args:
        return lambda frame: frame[:1]
    sub = f"{name}|{args[1].decode('latin-1').lower()}" if len(args) > 1 else name
    return (NORMALISERS.get(sub) or NORMALISERS.get(name) or (bytes, ""))[0]


def normalised(commands: Sequence[Sequence[bytes]], frames: Sequence[bytes]) -> list[bytes]:
    """The replies of one client, in order; what EXEC answers is normalised by what was queued."""
    found: list[bytes] = []
    queued: list[Normaliser] = []
    for args, frame in zip(commands, frames, strict=True):
        name = args[0].lower() if args else b""
        if frame == b"+QUEUED\r\n":
            queued.append(normaliser(args))
        elif name == b"exec" and is_aggregate(frame) and len(each := children(frame)) == len(queued):
            frame = header(frame) + b"".join(way(one) for way, one in zip(queued, each, strict=True))
        else:
            frame = normaliser(args)(frame)
        if name in (b"exec", b"discard", b"reset"):
            queued = []
        found.append(CHOSEN_ID.sub(b"$?\r\n?\r\n", frame))
    return found
