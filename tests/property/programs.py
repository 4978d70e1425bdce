"""Random programs: commands drawn from the grammar, how they are written, and how their bytes arrive.

Rules: a program says of each of its commands how many replies it has, so that its reader never guesses; where
its keys may live is the World's business. Knows the grammar and RESP, but no socket and no test.

Hypothesis chooses a seed, from which an ordinary random generator writes the program, and which of its units
stay: so commands are spread evenly, and a failure shrinks to the few commands that it takes.
"""

import itertools
from random import Random
from typing import NamedTuple

import grammar
from grammar import LINES, VALUES, Node
from hypothesis import strategies as st
from servers import pack

FAMILIES = {
    "string": "s", "bitmap": "b", "hash": "h", "list": "l", "set": "t", "zset": "z", "stream": "x",
    "geo": "g", "hyperloglog": "p",
}  # fmt: skip
LETTERS = sorted(FAMILIES.values())


# Not spoilt: what counts its keys by an argument (with none there is no shard), and what takes a random
# member; and XADD with "*", which has a key of its own
UNSPOILT = (b"EVAL", b"FCALL", b"SPOP")
# Not spoilt by swapping arguments: a value might become a time of a few milliseconds
TIMED = (b"SET", b"SETEX", b"PSETEX", b"GETEX", b"EXPIRE", b"PEXPIRE", b"RESTORE")


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
    """What is sent in one piece: a command (args, its name first), or what servers must survive."""

    data: bytes
    args: tuple[bytes, ...] = ()
    replies: int = 1
    fanout: bool = False
    spoilt: bool = False  # its keys may be others than those that the World gave it

    def is_a(self, name: str) -> bool:
        return bool(self.args) and self.args[0].upper() == name.encode()

    def as_ping(self) -> "Step":
        """In its place, where it cannot be compared."""
        return Step(pack("PING") * max(self.replies, 1), (b"PING",), self.replies)

    def __repr__(self) -> str:
        data = self.data if len(self.data) < 400 else self.data[:200] + b"..."
        return repr(data) + ("" if self.replies == 1 else f" ({self.replies} replies)")


Unit = list[Step]  # steps that stay or go together; but what is between MULTI and EXEC may go alone


class Program(NamedTuple):
    steps: list[Step]
    waits: frozenset[int]  # steps after which the client waits for every reply
    sizes: list[int]  # how its bytes are split, in turn; empty: not at all
    closes: bool  # the last step makes the server close the connection


class Writer:
    """Writes a program's commands. dice: all that is random about them."""

    def __init__(self, dice: Random, world: World) -> None:
        self.dice, self.world = dice, world
        self.families = dice.sample(sorted(FAMILIES), dice.randint(1, 3))
        self.only: bytes | None = None  # where a command has one key: which

    def once_in(self, times: int) -> bool:
        return self.dice.randrange(times) == 0

    # --- commands ---

    def key(self, letter: str, fanout: bool) -> bytes:
        single = self.world.one_key and not fanout
        if single and self.only is not None:
            return self.only
        if letter == "k":
            letter = FAMILIES[self.dice.choice(self.families)]
        elif letter != "y" and self.once_in(12):
            letter = self.dice.choice(LETTERS)
        # the entries of y have times for ids: it is the only one
        key = f"{self.world.tag}{letter}{'' if letter == 'y' else self.dice.randint(0, 1)}".encode()
        if single:
            self.only = key
        return key

    def emit(self, node: Node, out: list[bytes], fanout: bool = False) -> list[bytes]:
        """A line's arguments."""
        kind, what = node
        if kind == "word" and what[0] == "@" and len(what) == 2:
            out.append(self.key(what[1], fanout))
        elif kind == "word":
            out.append(self.dice.choice(VALUES[what]) if what in VALUES else what.encode())
        elif kind == "seq":
            for each in what:
                self.emit(each, out, fanout)
        elif kind == "any":
            self.emit(self.dice.choice(what), out, fanout)
        elif kind == "many" or self.once_in(2):
            for _ in range(self.dice.choice([1, 1, 2, 3]) if kind == "many" else 1):
                self.emit(what, out, fanout)
        return out

    def line(self, block: str, fanout: bool = False) -> list[bytes]:
        return self.emit(self.dice.choice(grammar.lines(block)), [], fanout)

    def spoil(self, args: list[bytes]) -> list[bytes]:
        """Wrong in one way: what is left out, put in, misplaced or misspelt."""
        dice, at = self.dice, self.dice.randrange(len(args))
        other = args[:]
        way = dice.randrange(7)
        if way == 0:
            del other[at]
        elif way == 1:
            del other[at + 1 :]
        elif way == 2:
            other.append(dice.choice(VALUES["value"]))
        elif way == 3 and at > 1:
            other[at] = dice.choice([b"-7", b"0", b"9223372036854775807", b"x"])
        elif way == 4 and args[0] not in TIMED:
            other[at], other[-1] = other[-1], other[at]
        elif way == 5:
            other[0] += dice.choice([b"x", b" ", b"\xff"])
        else:
            other[0] = other[0].lower()
        return other or [b"PING"]

    def step(self, args: list[bytes], fanout: bool = False, spoil: bool = False) -> Step:
        """As RESP, or now and then inline; now and then spoilt, if it may be."""
        spoilt = spoil and self.once_in(10) and not args[0].startswith(UNSPOILT) and b"*" not in args
        if spoilt:
            args = self.spoil(args)
        data = self.inline(args) if sum(map(len, args)) < 1000 and self.once_in(10) else pack(*args)
        return Step(data, tuple(args), 1, fanout, spoilt)

    def inline(self, args: list[bytes]) -> bytes:
        """As one types it, quoted where it must be."""
        words = [
            arg if arg.isalnum() else b'"' + b"".join(b"\\x%02x" % byte for byte in arg) + b'"'
            for arg in args
        ]
        return self.dice.choice([b" ", b"  ", b"\t"]).join(words) + self.dice.choice([b"\r\n", b"\n"])

    def command(self) -> Step:
        """One of a family's commands, of those for any key, or of those that fan out."""
        which = self.dice.randrange(len(self.families) * 2 + 2)
        if which == 0:
            return self.step(self.line(grammar.FANOUT, True), True, spoil=True)
        block = LINES["generic"] if which == 1 else LINES[self.families[(which - 2) // 2]]
        if self.world.patterns and self.once_in(40):
            block = grammar.PATTERNS
        return self.step(self.line(block), spoil=True)

    # --- units ---

    def free(self) -> list[Unit]:
        self.only = None
        return [[self.command()]]

    def local(self) -> list[Unit]:
        self.only = None
        return [[self.step(self.line(grammar.LOCAL))]]

    def transaction(self) -> list[Unit]:
        """MULTI, commands, EXEC; now and then something that breaks it. It runs on one shard."""
        self.only = None
        steps = [self.step([b"MULTI"])]
        for _ in range(self.dice.randint(0, 6)):
            one = self.step(self.line(grammar.QUEUED)) if self.once_in(12) else self.command()
            timed = one.is_a("XADD") and b"*" in one.args  # with one key for all, that would hold times
            if self.world.one_key and (one.fanout or one.spoilt or timed):
                one = self.step([b"PING"])
            steps.append(one)
        end = self.dice.choice([b"EXEC"] * 12 + [b"DISCARD", b"RESET"])
        return [[*steps, self.step([end])]]

    def silence(self) -> list[Unit]:
        """CLIENT REPLY OFF ... ON, or SKIP: commands without replies."""
        if self.once_in(5):
            skip, on = ((b"CLIENT", b"REPLY", mode) for mode in (b"SKIP", b"ON"))
            return [[Step(pack(*skip) + pack(*on), on)]]
        off = self.once_in(2)
        quiet, loud = ([b"CLIENT", b"REPLY", mode] for mode in (b"OFF" if off else b"SKIP", b"ON"))
        steps = [self.step(quiet)]
        for _ in range(self.dice.randint(0, 3) if off else 1):
            self.only = None
            steps.append(self.command())
        steps = [step._replace(replies=0) for step in steps]
        return [[*steps, self.step(loud)] if off else steps]

    def burst(self) -> list[Unit]:
        """The same again and again: deeper than a client may have requests in flight."""
        self.only = None
        times = self.dice.choice([20, 20, 300, 1500])
        args = self.line(grammar.BURSTS, fanout=True)
        return [[Step(pack(*args) * times, tuple(args), times, True)]]

    def nothing(self) -> list[Unit]:
        """What is no command, and has no reply."""
        return [[Step(self.dice.choice([b"\r\n", b"\n", b"  \r\n", b"*0\r\n", b"*-1\r\n"]), (), 0)]]

    def units(self, proto: int) -> list[Unit]:
        found: list[Unit] = [[self.step([b"HELLO", b"3"])]] if proto == 3 else []
        for family in self.families:
            for _ in range(2):
                self.only = None
                found.append([self.step(self.emit(grammar.parse(grammar.SEEDS[family]), []))])
        kinds = [self.free] * 20 + [self.transaction] * 2 + [self.local] * 3
        kinds += [self.silence, self.nothing] + [self.burst] * self.once_in(3)
        for _ in range(self.dice.choice([3, 10, 30])):
            found += self.dice.choice(kinds)()
        return found


# The last that a client sends: the server says what it has to say, and closes
FAREWELLS = [
    pack(b"QUIT"),
    b"quit\r\n",
    b"*x\r\n",
    b"*1\r\nPING\r\n",
    b"*1\r\n$-1\r\n",
    b"*1\r\n$x\r\n",
    b"*1\r\n$536870913\r\n",
    b"*02\r\n",
    b"*9999999999\r\n",
    b"*2\r\n$03\r\nGET\r\n",
    b"*1\r\n:1\r\n",
    b'SET "a\r\n',
    b"GET 'a\r\n",
    b'GET "a"b\r\n',
    b"x" * 65_537,  # a byte more than an inline command may have: all of it is read, so nothing is reset
]


BYTES = 200


@st.composite
def programs(draw: st.DrawFn, world: World, proto: int) -> Program:
    """A client's life in `world`, beginning in RESP2 or RESP3."""
    # One draw, for hypothesis likes to repeat what it has drawn; 0 leaves something out, so shrinking does
    data = draw(st.binary(min_size=BYTES, max_size=BYTES))
    dice = Random(data[:8])
    stays = itertools.chain(data[10:], itertools.repeat(1))
    steps: list[Step] = []
    for unit in Writer(dice, world).units(proto):
        if next(stays):
            whole = not unit[0].is_a("MULTI")
            steps += unit if whole else [unit[0], *(step for step in unit[1:-1] if next(stays)), unit[-1]]
    closes = dice.randrange(8) == 0
    if closes:
        steps.append(Step(dice.choice(FAREWELLS), (b"QUIT",)))
    often = dice.choice([0, 0, 3, 10]) if data[8] else 0
    waits = frozenset(number for number in range(len(steps)) if often and dice.randrange(often) == 0)
    sizes = [dice.randint(1, dice.choice([3, 60, 500])) for _ in range(12)]
    return Program(steps, waits, sizes if data[9] > 80 else [], closes)
