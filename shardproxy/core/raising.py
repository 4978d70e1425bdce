"""RESP2 replies → RESP3: what a RESP3 node would have said, for RESP3 clients of nodes that know RESP2 only.

A command has a shape, or several that its options choose from; a shape says what the reply is in RESP3.
Everywhere nulls are RESP3's. What a shape does not fit (an error, a null) is left as it is, and so is the
rest of a command that is not in the table: a script's reply has the types that RESP2 has. Pure; a test
compares each with what a real server says to a RESP3 client.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from shardproxy.core.resp import RequestParser

Args: TypeAlias = Sequence[bytes]
# What begins at frame[at], raised, and where it ends
Shape: TypeAlias = Callable[[bytes, int], tuple[bytes, int]]

# --- shapes ---


def plain(frame: bytes, at: int) -> tuple[bytes, int]:
    """Its nulls alone."""
    end = frame.index(b"\r\n", at) + 2
    if frame[at : at + 2] in (b"$-", b"*-"):
        return b"_\r\n", end
    kind = frame[at : at + 1]
    if kind == b"$":
        end += int(frame[at + 1 : end]) + 2
    elif kind == b"*":
        return _items(frame, end, int(frame[at + 1 : end]), (plain,), frame[at:end])
    return frame[at:end], end


def _items(
    frame: bytes, at: int, count: int, shapes: Sequence[Shape], head: bytes, between: bytes = b""
) -> tuple[bytes, int]:
    """`count` items, their shapes in turn; `between` stands before each round."""
    parts = [head]
    for number in range(count):
        if between and number % len(shapes) == 0:
            parts.append(between)
        item, at = shapes[number % len(shapes)](frame, at)
        parts.append(item)
    return b"".join(parts), at


def _count(frame: bytes, at: int) -> tuple[int, int]:
    """Items of an array, and where they begin; below 0: it is none."""
    end = frame.index(b"\r\n", at) + 2
    return (int(frame[at + 1 : end]) if frame[at : at + 1] == b"*" else -1), end


def array(*shapes: Shape) -> Shape:
    """Of these, in turn."""

    def raise_(frame: bytes, at: int) -> tuple[bytes, int]:
        count, start = _count(frame, at)
        if count < 0:
            return plain(frame, at)
        return _items(frame, start, count, shapes, frame[at:start])

    return raise_


def set_(frame: bytes, at: int) -> tuple[bytes, int]:
    count, start = _count(frame, at)
    return _items(frame, start, count, (plain,), b"~%d\r\n" % count) if count >= 0 else plain(frame, at)


def pairs(first: Shape, second: Shape) -> Shape:
    """A flat array: one of pairs."""

    def raise_(frame: bytes, at: int) -> tuple[bytes, int]:
        count, start = _count(frame, at)
        if count < 0 or count % 2:
            return plain(frame, at)
        return _items(frame, start, count, (first, second), b"*%d\r\n" % (count // 2), b"*2\r\n")

    return raise_


def mapping(fields: Mapping[bytes, Shape] | None = None, rest: Shape = plain) -> Shape:
    """A flat array: a map; fields: the shapes of some of its values."""

    def raise_(frame: bytes, at: int) -> tuple[bytes, int]:
        count, at_item = _count(frame, at)
        if count < 0 or count % 2:
            return plain(frame, at)
        parts = [b"%%%d\r\n" % (count // 2)]
        for _ in range(count // 2):
            key, at_item = plain(frame, at_item)
            name = key.partition(b"\r\n")[2][:-2]
            value, at_item = (fields or {}).get(name, rest)(frame, at_item)
            parts += (key, value)
        return b"".join(parts), at_item

    return raise_


def unpaired(frame: bytes, at: int) -> tuple[bytes, int]:
    """An array of pairs: a map."""
    count, start = _count(frame, at)
    if count < 0:
        return plain(frame, at)
    parts, end = [b"%%%d\r\n" % count], start
    for _ in range(count):
        of_pair, end = _count(frame, end)
        if of_pair != 2:
            return plain(frame, at)
        both, end = _items(frame, end, 2, (plain,), b"")
        parts.append(both)
    return b"".join(parts), end


def double(frame: bytes, at: int) -> tuple[bytes, int]:
    text, end = plain(frame, at)
    return (b"," + text.partition(b"\r\n")[2] if text[:1] == b"$" else text), end


def verbatim(frame: bytes, at: int) -> tuple[bytes, int]:
    text, end = plain(frame, at)
    if text[:1] != b"$":
        return text, end
    size, _, content = text[1:].partition(b"\r\n")
    return b"=%d\r\ntxt:%b" % (int(size) + 4, content), end


# --- the table ---


def _with(word: bytes, start: int, yes: Shape, no: Shape = plain) -> Callable[[Args], Shape]:
    """Chosen by an option, looked for from argument `start` on."""
    return lambda args: yes if word in {arg.upper() for arg in args[start:]} else no


def _scored(args: Args) -> Shape:
    """ZUNION and its like: options come after as many keys as they say."""
    start = 2 + int(args[1]) if len(args) > 1 and args[1].isdigit() else len(args)
    return _with(b"WITHSCORES", start, SCORED)(args)


def _popped(args: Args) -> Shape:
    return SCORED if len(args) > 2 else array(plain, double)


SCORED = pairs(plain, double)
_PLACE = array(double)
_SAMPLED = pairs(plain, plain)
_STREAM_GROUP = mapping({b"consumers": array(mapping())})
_MEMORY = mapping(
    {name.encode(): double for name in (
        "dataset.percentage", "peak.percentage", "allocator-fragmentation.ratio", "allocator-rss.ratio",
        "rss-overhead.ratio", "fragmentation",
    )},
    rest=lambda frame, at: mapping()(frame, at),
)  # fmt: skip

SHAPES: Mapping[str, Shape] = {
    "hgetall": mapping(),
    "smembers": set_,
    "sdiff": set_,
    "sinter": set_,
    "sunion": set_,
    "spop": set_,
    "zincrby": double,
    "zscore": double,
    "zmscore": array(double),
    "bzpopmax": array(plain, plain, double),
    "bzpopmin": array(plain, plain, double),
    "zmpop": array(plain, array(array(plain, double))),
    "bzmpop": array(plain, array(array(plain, double))),
    "geopos": array(_PLACE),
    "xread": unpaired,
    "xreadgroup": unpaired,
    "xinfo|stream": mapping({b"groups": array(_STREAM_GROUP)}),
    "xinfo|groups": array(mapping()),
    "xinfo|consumers": array(mapping()),
    "config|get": mapping(),
    "memory|stats": _MEMORY,
    "latency|histogram": mapping(rest=mapping({b"histogram_usec": mapping()})),
    "function|list": array(mapping({b"functions": array(mapping({b"flags": set_}))})),
    "function|stats": mapping({b"engines": mapping(rest=mapping()), b"running_script": mapping()}),
    "module|list": array(mapping()),
    "info": verbatim,
    "lolwut": verbatim,
    "memory|doctor": verbatim,
    "memory|malloc-stats": verbatim,
    "latency|doctor": verbatim,
    "latency|graph": verbatim,
    "client|list": verbatim,
    "client|info": verbatim,
}
# Where options, which are arguments, choose
CHOICES: Mapping[str, Callable[[Args], Shape]] = {
    "zadd": _with(b"INCR", 2, double),
    "zpopmax": _popped,
    "zpopmin": _popped,
    "zrange": _with(b"WITHSCORES", 4, SCORED),
    "zrevrange": _with(b"WITHSCORES", 4, SCORED),
    "zrangebyscore": _with(b"WITHSCORES", 4, SCORED),
    "zrevrangebyscore": _with(b"WITHSCORES", 4, SCORED),
    "zrandmember": _with(b"WITHSCORES", 3, SCORED),
    "zdiff": _scored,
    "zinter": _scored,
    "zunion": _scored,
    "hrandfield": _with(b"WITHVALUES", 3, _SAMPLED),
    "lcs": _with(b"IDX", 3, mapping()),
}
# name → (where its options begin, how many things WITHDIST and WITHHASH may put before the place)
PLACES = {
    "georadius": 6,
    "georadius_ro": 6,
    "georadiusbymember": 5,
    "georadiusbymember_ro": 5,
    "geosearch": 2,
}


def _near(args: Args, start: int) -> Shape:
    words = {arg.upper() for arg in args[start:]}
    if b"WITHCOORD" not in words:
        return plain
    before = 1 + (b"WITHDIST" in words) + (b"WITHHASH" in words)
    return array(array(*(plain,) * before, _PLACE))


def shape_of(args: Args) -> Shape:
    """Of the reply to this command."""
    name = args[0].lower().decode(errors="replace")
    if len(args) > 1 and (sub := f"{name}|{args[1].lower().decode(errors='replace')}") in SHAPES:
        return SHAPES[sub]
    if name in CHOICES:
        return CHOICES[name](args)
    if name in PLACES:
        return _near(args, PLACES[name])
    return SHAPES.get(name, plain)


def raised(request: bytes, left: int, frame: bytes) -> bytes:
    """A node's reply as RESP3 has it.

    request: as it was sent, one command or several; left: replies to it that are still to come, this one
    too. Of EXEC the replies in it.
    """
    commands = RequestParser().feed(request)
    at = len(commands) - left
    if not 0 <= at < len(commands):
        return plain(frame, 0)[0]
    if commands[at][0].upper() == b"EXEC":
        shapes = [shape_of(args) for args in commands[1:at]] or [plain]
        return array(*shapes)(frame, 0)[0]
    return shape_of(commands[at])(frame, 0)[0]
