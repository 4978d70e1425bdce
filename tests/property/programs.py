"""Random programs: commands drawn from the grammar, how they are written, and how their bytes arrive.

Rules: a program says of each of its commands how many replies it has, so that its reader never guesses; where
its keys may live is the World's business. Knows the grammar and RESP, but no socket and no test.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import strategies as st

import grammar
from grammar import LINES, VALUES, Node
from servers import pack

Draw = Callable[..., Any]

FAMILIES = {
    "string": "s", "bitmap": "b", "hash": "h", "list": "l", "set": "t", "zset": "z", "stream": "x", "geo": "g",
    "hyperloglog": "p",
}  # fmt: skip


class World(NamedTuple):
    """Where a program runs, and so what its keys may be."""

    name: str
    nodes: int
    tag: str = ""  # before every key: a hash tag
    one_key: bool = False  # a command, or a transaction, has one key; but for those that fan out
    patterns: bool = False  # SORT may read keys that it does not name


WORLDS = [
    World("one node", 1, patterns=True),
    World("three nodes, one hash tag", 3, tag="{t}"),
    World("three nodes, no tags", 3, one_key=True),
]


class Step(NamedTuple):
    """What is sent in one piece: a command (args, its name first), or something else that servers must survive."""

    data: bytes
    args: tuple[bytes, ...] = ()
    replies: int = 1
    fanout: bool = False
    spoilt: bool = False  # its keys may be others than those that the World gave it

    def is_a(self, name: str) -> bool:
        return bool(self.args) and self.args[0].upper() == name.encode()

    def __repr__(self) -> str:
        return repr(self.data if len(self.data) < 400 else self.data[:200] + b"...") + (
            "" if self.replies == 1 else f" ({self.replies} replies)"
        )


class Program(NamedTuple):
    steps: list[Step]
    waits: frozenset[int]  # steps after which the client waits for every reply
    sizes: list[int]  # how its bytes are split, in turn; empty: not at all
    closes: bool  # the last step makes the server close the connection


class Keys:
    """Gives a command its keys."""

    def __init__(self, draw: Draw, world: World, families: list[str]) -> None:
        self.draw, self.world = draw, world
        self.letters = [FAMILIES.get(family, "s") for family in families]
        self.only: bytes | None = None

    def key(self, letter: str, fanout: bool = False) -> bytes:
        single = self.world.one_key and not fanout
        if single and self.only is not None:
            return self.only
        number = self.draw(_KEY)
        if letter == "y":  # its entries have times for ids
            return f"{self.world.tag}y".encode()
        if letter == "k" or number >= 10:
            letter = self.draw(st.sampled_from(self.letters if letter == "k" else sorted(FAMILIES.values())))
        key = f"{self.world.tag}{letter}{number % 2}".encode()
        if single:
            self.only = key
        return key


_KEY = st.integers(0, 11)
_COIN = st.booleans()
_TEN = st.integers(0, 9)
_MANY = st.sampled_from([1, 1, 2, 3])


def emit(node: Node, keys: Keys, out: list[bytes], fanout: bool = False) -> list[bytes]:
    """A line's arguments, drawn."""
    kind, what = node
    if kind == "word":
        if what[0] == "@" and len(what) == 2:
            out.append(keys.key(what[1], fanout))
        else:
            values = VALUES.get(what)
            out.append(keys.draw(values) if values is not None else what.encode())
    elif kind == "seq":
        for each in what:
            emit(each, keys, out, fanout)
    elif kind == "any":
        emit(keys.draw(st.sampled_from(what)), keys, out, fanout)
    elif kind == "maybe":
        if keys.draw(_COIN):
            emit(what, keys, out, fanout)
    else:
        for _ in range(keys.draw(_MANY)):
            emit(what, keys, out, fanout)
    return out


def _drop(draw: Draw, args: list[bytes]) -> None:
    del args[draw(st.integers(0, len(args) - 1))]


def _cut(draw: Draw, args: list[bytes]) -> None:
    del args[draw(st.integers(1, len(args))) :]


def _append(draw: Draw, args: list[bytes]) -> None:
    args.append(draw(VALUES["value"]))


def _replace(draw: Draw, args: list[bytes]) -> None:
    if len(args) > 2:
        args[draw(st.integers(2, len(args) - 1))] = draw(VALUES["integer"])


def _swap(draw: Draw, args: list[bytes]) -> None:
    at = draw(st.integers(0, len(args) - 1))
    args[at], args[-1] = args[-1], args[at]


def _case(draw: Draw, args: list[bytes]) -> None:
    args[0] = args[0].lower()


def _misspell(draw: Draw, args: list[bytes]) -> None:
    args[0] += draw(st.sampled_from([b"x", b"\x00", b" ", b"\xff"]))


_SPOIL = st.sampled_from([_case, _cut, _drop, _append, _replace, _swap, _misspell])
_WORD = st.sampled_from([b" ", b"  ", b"\t"])


def inline(args: list[bytes], blank: bytes = b" ", end: bytes = b"\r\n") -> bytes:
    """A command as one types it, quoted where it must be."""
    words = []
    for arg in args:
        plain = arg.isalnum()
        words.append(arg if plain else b'"' + b"".join(b"\\x%02x" % byte for byte in arg) + b'"')
    return blank.join(words) + end


def step(draw: Draw, args: list[bytes], fanout: bool = False, spoil: bool = True) -> Step:
    """A command: now and then spoilt, now and then inline."""
    spoilt = spoil and draw(_TEN) == 9
    if spoilt:
        draw(_SPOIL)(draw, args)
        if not args:
            args = [b"PING"]
    if draw(_TEN) == 9 and sum(map(len, args)) < 1000:
        return Step(inline(args, draw(_WORD), draw(st.sampled_from([b"\r\n", b"\n"]))), tuple(args), 1, fanout, spoilt)
    return Step(pack(*args), tuple(args), 1, fanout, spoilt)


def _unspoilt(name: bytes) -> bool:
    """Their keys are counted by an argument: spoilt, they may have none, and then no shard."""
    return name.startswith((b"EVAL", b"FCALL"))


def command(draw: Draw, keys: Keys, families: list[str]) -> Step:
    """One of a family's commands, of those for any key, or of those that fan out."""
    if not keys.world.one_key:
        keys.only = None
    which = draw(st.integers(0, len(families) + 1))
    fanout = which == 1
    block = LINES[families[which - 2]] if which > 1 else grammar.FANOUT if fanout else LINES["generic"]
    if which == 0 and keys.world.patterns and draw(_TEN) == 9:
        block = grammar.PATTERNS
    args = emit(draw(st.sampled_from(grammar.lines(block))), keys, [], fanout)
    return step(draw, args, fanout, spoil=not _unspoilt(args[0]))


def free(draw: Draw, keys: Keys, families: list[str]) -> list[Step]:
    keys.only = None
    return [command(draw, keys, families)]


def local(draw: Draw, keys: Keys, families: list[str]) -> list[Step]:
    args = emit(draw(st.sampled_from(grammar.lines(grammar.LOCAL))), keys, [])
    return [step(draw, args, spoil=False)]


def transaction(draw: Draw, keys: Keys, families: list[str]) -> list[Step]:
    """MULTI, commands, EXEC; now and then something that breaks it."""
    keys.only = None
    steps = [step(draw, [b"MULTI"], spoil=False)]
    for _ in range(draw(st.integers(0, 5))):
        if draw(_TEN) == 9:
            args = emit(draw(st.sampled_from(grammar.lines(grammar.QUEUED))), keys, [])
            steps.append(step(draw, args, spoil=False))
        else:
            # all of it runs on one shard: nothing fans out
            one = command(draw, keys, families)
            if keys.world.one_key and (one.fanout or one.spoilt or keys.only not in one.args):
                one = step(draw, [b"PING"], spoil=False)
            steps.append(one)
    end = draw(st.sampled_from([b"EXEC"] * 8 + [b"DISCARD", b"RESET"]))
    steps.append(Step(pack(end), (end,)))
    return steps


def silence(draw: Draw, keys: Keys, families: list[str]) -> list[Step]:
    """CLIENT REPLY OFF ... ON, or SKIP: commands without replies."""
    off = draw(_COIN)
    steps = []
    for _ in range(draw(st.integers(0, 3)) if off else 1):
        steps += [each._replace(replies=0) for each in free(draw, keys, families)]
    mode = b"OFF" if off else b"SKIP"
    quiet = Step(pack(b"CLIENT", b"REPLY", mode), (b"CLIENT", b"REPLY", mode), 0)
    loud = Step(pack(b"CLIENT", b"REPLY", b"ON"), (b"CLIENT", b"REPLY", b"ON"))
    return [quiet, *steps, loud] if off else [quiet, *steps]


def burst(draw: Draw, keys: Keys, families: list[str]) -> list[Step]:
    """The same again and again: deeper than a client may have requests in flight."""
    keys.only = None
    many = draw(st.sampled_from([20, 300, 1500]))
    args = emit(draw(st.sampled_from(grammar.lines(grammar.BURSTS))), keys, [], True)
    return [Step(pack(*args) * many, tuple(args), many, True)]


def nothing(draw: Draw, keys: Keys, families: list[str]) -> list[Step]:
    """What is no command, and has no reply."""
    return [Step(draw(st.sampled_from([b"\r\n", b"\n", b"  \r\n", b"*0\r\n", b"*-1\r\n"])), (), 0)]


# More of what comes more often
_KINDS = st.sampled_from([free] * 14 + [transaction, transaction, local, local, silence, burst, nothing])

# The last that a client sends: the server says what it has to say, and closes
FAREWELLS = [
    pack(b"QUIT"),
    b"quit\r\n",
    b"*x\r\n",
    b"*1\r\nPING\r\n",
    b"*1\r\n$-1\r\n",
    b"*1\r\n$x\r\n",
    b"*1\r\n$536870913\r\n",
    b"*9999999999\r\n",
    b"*1\r\n:1\r\n",
    b'SET "a\r\n',
    b"GET 'a\r\n",
    b'GET "a"b\r\n',
    b"x" * 65_537,  # a byte more than an inline command may have: all of it is read, so nothing is reset
]


@st.composite
def programs(draw: Draw, world: World, proto: int) -> Program:
    """A client's life in `world`, beginning in RESP2 or RESP3."""
    families = draw(st.lists(st.sampled_from(sorted(FAMILIES)), min_size=1, max_size=3, unique=True))
    keys = Keys(draw, world, families)
    steps: list[Step] = []
    if proto == 3:
        steps.append(Step(pack(b"HELLO", 3), (b"HELLO", b"3")))
    for family in families:
        if draw(_COIN):
            keys.only = None
            steps.append(step(draw, emit(grammar.parse(grammar.SEEDS[family]), keys, []), spoil=False))
    for _ in range(draw(st.integers(1, 25))):
        steps += draw(_KINDS)(draw, keys, families)
    closes = draw(_TEN) == 9
    if closes:
        data = draw(st.sampled_from(FAREWELLS))
        steps.append(Step(data, (b"QUIT",)))
    if draw(_COIN):
        waits = frozenset[int]()
    else:
        waits = frozenset(draw(st.sets(st.integers(0, len(steps) - 1), max_size=len(steps))))
    sizes = draw(st.one_of(st.just([]), st.lists(st.integers(1, 60), min_size=1, max_size=12), st.just([20_000])))
    return Program(steps, waits, sizes, closes)
