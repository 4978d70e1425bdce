"""Random programs: commands drawn from the grammar, how they are written, and how their bytes arrive.

Rules: a program says of each of its commands how many replies it has, so that its reader never guesses; where
its keys may live is the World's business. Knows the grammar and RESP, but no socket and no test.

Hypothesis chooses a seed, from which an ordinary random generator writes the program, and which of its units
stay: so commands are spread evenly, and a failure shrinks to the few commands that it takes.
"""

import fnmatch
import itertools
from random import Random
from typing import NamedTuple

import grammar
from grammar import LINES, VALUES, Node
from hypothesis import strategies as st
from servers import pack

from shardproxy.core.across import EMULATED

FAMILIES = {
    "string": "s", "bitmap": "b", "hash": "h", "list": "l", "set": "t", "zset": "z", "stream": "x",
    "geo": "g", "hyperloglog": "p",
}  # fmt: skip
LETTERS = sorted(FAMILIES.values())


# Not spoilt: what counts its keys by an argument (with none there is no shard); what takes a random member;
# a scan, whose cursor must be 0; XREADGROUP, whose group may be called "streams"; XADD with "*", which has a
# key of its own; what blocks, for it might for ever
UNSPOILT = (
    *(b"EVAL", b"FCALL", b"SPOP", b"HSCAN", b"SSCAN", b"ZSCAN", b"XREADGROUP"),
    *(b"BLPOP", b"BRPOP", b"BLM", b"BZ", b"SCAN", b"PUBSUB", b"SCRIPT", b"FUNCTION", b"SWAPDB", b"SELECT"),
)
# Not spoilt by swapping arguments: a value might become a time of a few milliseconds
TIMED = (b"SET", b"SETEX", b"PSETEX", b"GETEX", b"EXPIRE", b"PEXPIRE", b"RESTORE")


class World(NamedTuple):
    """Where a program runs, and so what its keys may be."""

    name: str
    nodes: int
    tag: str = ""  # before every key: a hash tag
    one_key: bool = False  # a command, or a transaction, has one key; but for those that fan out
    patterns: bool = False  # SORT may read keys that it does not name
    emulates: bool = False  # and commands that the proxy emulates over several shards may have any


WORLDS = [
    World("one node", 1, patterns=True),
    World("three nodes, one hash tag", 3, tag="{t}"),
    World("three nodes, no tags", 3, one_key=True),
    World("three nodes, emulated", 3, one_key=True, emulates=True),
]


class Step(NamedTuple):
    """What is sent in one piece: a command (args, its name first), or what servers must survive."""

    data: bytes
    args: tuple[bytes, ...] = ()
    replies: int = 1
    fanout: bool = False
    spoilt: bool = False  # its keys may be others than those that the World gave it
    other: bool = False  # a second client sends it, when the first has all its replies, or is blocked
    pushes: int = 0  # of the second client's: how many messages the first one gets of it
    blocks: bool = False  # the first client may wait after it, for what the second one sends next
    whole: bool = False  # a cursor to follow to its end

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
        self.in_multi = False  # there nothing is emulated

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
        node = self.dice.choice(grammar.lines(block))
        return self.emit(node, [], fanout or self.is_emulated(grammar.first_word(node)))

    def is_emulated(self, name: str) -> bool:
        return self.world.emulates and not self.in_multi and name.lower() in EMULATED

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
        may = spoil and not args[0].startswith(UNSPOILT) and b"*" not in args and b"BLOCK" not in args
        spoilt = may and self.once_in(10)
        if spoilt:
            args = self.spoil(args)
        data = self.inline(args) if sum(map(len, args)) < 1000 and self.once_in(10) else pack(*args)
        anywhere = fanout or self.is_emulated(args[0].decode("latin-1"))
        return Step(data, tuple(args), 1, anywhere, spoilt)

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

    def feature(self) -> Step:
        """One line of FEATURE_LINES: of what may stand anywhere, wherever its keys are."""
        # without hash tags, what is watched would bind the transactions that follow to its shard
        names = [name for name in grammar.FEATURE_LINES if name != "watch" or not self.world.one_key]
        name = self.dice.choice(names)
        args = self.line(grammar.FEATURE_LINES[name])
        return self.step(args, fanout=name in grammar.LOOSE_FEATURES)

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
        self.in_multi = True
        steps = [self.step([b"MULTI"])]
        for _ in range(self.dice.randint(0, 6)):
            one = self.step(self.line(grammar.QUEUED)) if self.once_in(12) else self.command()
            if self.once_in(8):
                one = self.queued_feature()
            timed = one.is_a("XADD") and b"*" in one.args  # with one key for all, that would hold times
            if self.world.one_key and (one.fanout or one.spoilt or timed):
                one = self.step([b"PING"])
            steps.append(one)
        self.in_multi = False
        end = self.dice.choice([b"EXEC"] * 12 + [b"DISCARD", b"RESET"])
        return [[*steps, self.step([end])]]

    def queued_feature(self) -> Step:
        """Blocking commands inside of a transaction do not wait; scripts and messages run with it."""
        if self.once_in(2):
            return self.step(self.line(grammar.LOCAL_IN_MULTI))
        names = ["blocking", "scripts", "pubsub"]
        if self.world.nodes > 1:  # the others have no key of the transaction's shard
            names = ["blocking"]
        return self.step(self.line(grammar.FEATURE_LINES[self.dice.choice(names)]))

    def featured(self) -> list[Unit]:
        self.only = None
        return [[self.feature()]]

    def by_other(self, args: list[bytes], pushes: int = 0) -> Step:
        return Step(pack(*args), tuple(args), other=True, pushes=pushes)

    def watched(self) -> list[Unit]:
        """WATCH, what the second client does meanwhile, a transaction; now and then UNWATCH before it."""
        unit = self.to_database_0()
        self.only = None
        keys = [self.key("k", False) for _ in range(self.dice.randint(1, 3))]
        unit.append(self.step([b"WATCH", *keys]))
        if self.once_in(3):
            unit.append(self.command_of_one_shard())
        if not self.once_in(3):
            name = self.dice.choice([b"SET", b"DEL", b"GET", b"EXPIRE", b"HSET"])
            rest = {b"SET": [b"v"], b"EXPIRE": [b"100000"], b"HSET": [b"f", b"v"]}.get(name, [])
            unit.append(self.by_other([name, self.dice.choice(keys) if self.once_in(2) else b"{t}no", *rest]))
        if self.once_in(6):
            unit.append(self.step([b"UNWATCH"]))
        unit.append(self.step([b"MULTI"]))
        self.in_multi = True
        unit += [self.command_of_one_shard() for _ in range(self.dice.randint(0, 3))]
        self.in_multi = False
        unit.append(self.step([self.dice.choice([b"EXEC"] * 6 + [b"DISCARD"])]))
        return [unit]

    def to_database_0(self) -> Unit:
        """The second client is in database 0 always."""
        return [self.step([b"SELECT", b"0"])]

    def command_of_one_shard(self) -> Step:
        one = self.command()
        unfit = one.fanout or one.spoilt or (one.is_a("XADD") and b"*" in one.args)
        return self.step([b"PING"]) if self.world.one_key and unfit else one

    def waited(self) -> list[Unit]:
        """A blocking command, what the client sends after it, and what the second client has for it."""
        self.only = None
        dice, unit = self.dice, self.to_database_0()
        one, two, zset, stream = (self.key(letter, False).decode() for letter in "llzx")
        if self.world.one_key:
            zset = stream = two = one
        feed, ask = dice.choice(
            [
                (f"RPUSH {one} a b", f"BLPOP {one} {two} 1"),
                (f"LPUSH {two} a", f"BRPOP {one} {two} 1"),
                (f"RPUSH {one} a", f"BLMOVE {one} {two} LEFT RIGHT 1"),
                (f"RPUSH {one} a", f"BRPOPLPUSH {one} {two} 1"),
                (f"RPUSH {two} a b c", f"BLMPOP 1 2 {one} {two} LEFT COUNT 1"),
                (f"ZADD {zset} 1 m", f"BZPOPMIN {zset} 1"),
                (f"ZADD {zset} 1 m 2 n", f"BZMPOP 1 1 {zset} MAX"),
                (f"XADD {stream} 500-1 f v", f"XREAD BLOCK 1000 STREAMS {stream} $"),
            ]
        )
        if not self.once_in(3):  # so that it waits
            unit.append(self.step(f"DEL {one} {two} {zset}".encode().split(), fanout=True))
        unit.append(self.step(ask.encode().split())._replace(blocks=True))
        for _ in range(dice.randint(0, 3)):  # in one write with it: answered after it
            self.only = None
            unit.append(self.command()._replace(blocks=True))
        unit.append(self.by_other(feed.encode().split()))
        return [unit]

    def subscribed(self) -> list[Unit]:
        """SUBSCRIBE, messages from the second client, what a subscriber may and may not say, UNSUBSCRIBE."""
        dice, unit = self.dice, []
        names = dice.sample(VALUES["channel"], dice.randint(1, 3))
        patterns = dice.sample([b"n*", b"ch?t", b"*"], dice.randint(0, 2))
        unit.append(self.subscribe(b"SUBSCRIBE", names))
        if patterns:
            unit.append(self.subscribe(b"PSUBSCRIBE", patterns))
        for _ in range(dice.randint(1, 4)):
            channel = dice.choice(VALUES["channel"])
            got = (channel in names) + sum(
                fnmatch.fnmatchcase(channel.decode("latin-1"), pattern.decode()) for pattern in patterns
            )
            unit.append(self.by_other([b"PUBLISH", channel, dice.choice(VALUES["value"])], got))
            if self.once_in(3):
                unit.append(self.step(dice.choice([[b"PING"], [b"PING", b"x"], [b"GET", b"{t}no"]])))
        unit.append(self.subscribe(b"UNSUBSCRIBE", names))
        if patterns:
            unit.append(self.subscribe(b"PUNSUBSCRIBE", patterns))
        return [unit]

    def subscribe(self, name: bytes, channels: list[bytes]) -> Step:
        return self.step([name, *channels])._replace(replies=len(channels))

    def scanned(self) -> list[Unit]:
        """SCAN to the end: every key once."""
        options = self.dice.choice(
            [
                *([], [b"COUNT", b"1"], [b"COUNT", b"3", b"MATCH", b"*1"], [b"COUNT", b"100000"]),
                *([b"TYPE", b"hash"], [b"TYPE", b"nothing"], [b"MATCH", b"[ab]*", b"TYPE", b"string"]),
            ]
        )
        args = (b"SCAN", b"0", *options)
        return [[Step(b"", args, whole=True)]]

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
        kinds += [self.featured] * 4 + [self.watched, self.subscribed, self.scanned]
        kinds += [self.waited] * self.once_in(2)
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
            whole = not unit[0].is_a("MULTI")  # of a transaction, what stands between may go
            steps += unit if whole else [unit[0], *(step for step in unit[1:-1] if next(stays)), unit[-1]]
    closes = dice.randrange(8) == 0
    if closes:
        steps.append(Step(dice.choice(FAREWELLS), (b"QUIT",)))
    often = dice.choice([0, 0, 3, 10]) if data[8] else 0
    waits = frozenset(number for number in range(len(steps)) if often and dice.randrange(often) == 0)
    sizes = [dice.randint(1, dice.choice([3, 60, 500])) for _ in range(12)]
    return Program(steps, waits, sizes if data[9] > 80 else [], closes)
