"""The same program through the proxy and on a plain Redis: the same replies, byte by byte.

Programs are random (programs.py) and made of every command that is served (grammar.py); they are pipelined at
random depths and their bytes split at random. Replies are compared as they came, after what is listed in
normalise.py; afterwards the keys on the nodes are compared, too. Four worlds: one node; three nodes, every
key under one hash tag; three nodes without tags, where a command has one key or fans out; the same with what
is emulated over several shards. A second client writes, pushes and publishes. Each begins once in RESP2 and
once in RESP3, and programs switch.

    pytest tests/property/test_differential.py                            CI: the same 1,200 programs always
    SHARDPROXY_EXAMPLES=5000 pytest tests/property/test_differential.py   long: 40,000, others each time

What is left out, and why: grammar.NOT_COMPARED and grammar.REFUSED_FORMS.
"""

import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from random import Random

import grammar
import pytest
from grammar import LINES
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from normalise import NORMALISERS, normalised
from programs import WORLDS, Program, Step, World, Writer, programs
from servers import ProxyProcess, Raw, RedisNode, frame_end, pack, redis_nodes, shards_of, toml

from shardproxy.core.commands import builtin

LONG = os.environ.get("SHARDPROXY_EXAMPLES")
EXAMPLES = int(LONG or 150)
BRISK = ("--hz", "500")  # so often Redis looks at timeouts of blocked clients; by itself 10 times a second
POOL = 'timeout = "30s"\ncross_shard = "{}"'
EMULATE = {False: "refuse", True: "emulate"}
PATIENCE = 10.0  # seconds until a reply that does not come is a difference
SPLITS = 12  # pauses in one piece of a program, that it may arrive in as many reads

many = settings(
    max_examples=EXAMPLES,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    print_blob=bool(LONG),
)

DATABASES = range(3)


class Stage:
    """A plain Redis, and a proxy with its nodes, each as empty as the other."""

    def __init__(self, world: World, stack: ExitStack, plain: RedisNode) -> None:
        self.world, self.plain = world, plain
        self.nodes = stack.enter_context(redis_nodes(world.nodes, *BRISK))
        self.proxy = stack.enter_context(
            ProxyProcess(toml(shards_of(self.nodes), pool=POOL.format(EMULATE[world.emulates])))
        )
        self.oracle = stack.enter_context(plain.raw())
        self.admins = [stack.enter_context(node.raw()) for node in self.nodes]

        self.door = stack.enter_context(self.proxy.raw())

    def clean(self) -> None:
        for raw in (self.oracle, *self.admins):
            raw.ask("FLUSHALL")
            raw.ask("SCRIPT", "FLUSH")
            raw.ask("FUNCTION", "FLUSH")
        assert self.door.ask("SCRIPT", "FLUSH") == b"+OK\r\n"  # for it remembers what the nodes know

    def blocked_on_redis(self) -> int:
        return blocked_clients(self.oracle)

    def blocked_behind_proxy(self) -> int:
        return sum(map(blocked_clients, self.admins))

    def fits(self, step: Step) -> bool:
        """False for a spoilt command whose keys a proxy must answer CROSSSLOT for, as Redis Cluster does."""
        if not step.spoilt or self.world.nodes == 1 or not step.args:
            return True
        keys = self.oracle.value("COMMAND", "GETKEYS", *step.args)
        if not isinstance(keys, list):
            return True
        if self.world.one_key:
            return step.fanout or len(set(keys)) == 1
        return all(key.startswith(self.world.tag) for key in keys)


def blocked_clients(raw: Raw) -> int:
    return int(raw.value("INFO", "clients").partition("blocked_clients:")[2].split()[0])


@pytest.fixture(scope="module")
def stages() -> Iterator[dict[str, Stage]]:
    with ExitStack() as stack:
        plain = stack.enter_context(RedisNode(*BRISK))
        yield {world.name: Stage(world, stack, plain) for world in WORLDS}


# --- running ---


def split(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    at = 0
    for number in range(SPLITS):
        if sizes and at < len(data):
            size = sizes[number % len(sizes)]
            yield data[at : at + size]
            at += size
    if at < len(data):
        yield data[at:]


def exchange(raw: Raw, data: bytes) -> None:
    """Sends, and takes meanwhile what comes: a server may stop to read while its replies wait."""
    view = memoryview(data)
    while view:
        readable, writable, _ = select.select([raw.socket], [raw.socket], [], 10)
        if readable:
            got = raw.socket.recv(1 << 18)
            raw.buffer += got
            if not got:
                return
        if writable:
            view = view[raw.socket.send(view[: 1 << 16]) :]


class Conversation:
    """A program's clients on one server: the first, the second, and what each was answered, in order.

    blocked: how many clients of the server wait for data.
    """

    def __init__(self, stack: ExitStack, port: int, blocked: Callable[[], int]) -> None:
        self.clients = [stack.enter_context(Raw(port, PATIENCE)) for _ in range(2)]
        self.found: tuple[list[bytes], list[bytes]] = ([], [])
        self.blocked = blocked

    def run(self, program: Program) -> None:
        """Every reply, and b"" for a server that closed; a text in place of what did not come."""
        client = 0
        try:
            data, replies = b"", 0
            for number, step in enumerate(program.steps):
                following = program.steps[number + 1 : number + 2]
                client = int(step.other)
                if step.other:
                    self.clients[1].send(step.data)
                    self.take(1, step.replies)
                    client = 0
                    self.take(0, replies)
                    # patterns are matched in the order of a hash table
                    self.found[0].extend(sorted(read(self.clients[0], step.pushes)))
                    replies = 0
                    continue
                if step.whole:
                    self.found[0].append(whole_scan(self.clients[0], step.args))
                    continue
                data, replies = data + step.data, replies + step.replies
                next_is_special = bool(following) and (following[0].other or following[0].whole)
                # only what is to be fed may be found blocked: what may block for a moment is over before it
                waits = number in program.waits or (bool(following) and following[0].blocks)
                if (waits and not step.blocks) or next_is_special or not following:
                    self.write(data, program.sizes)
                    data = b""
                    if step.blocks and next_is_special:
                        self.wait_until_blocked(replies)
                    else:
                        self.take(0, replies)
                        replies = 0
            self.end(program)
        except (TimeoutError, ConnectionError, EOFError) as error:
            said = bytes(self.clients[client].buffer[:200])
            self.found[client].append(f"{type(error).__name__}, and before it {said!r}".encode())

    def write(self, data: bytes, sizes: Sequence[int]) -> None:
        for number, chunk in enumerate(split(data, sizes)):
            if number:
                time.sleep(0.0002)  # so that it does not arrive with the one before it
            exchange(self.clients[0], chunk)

    def take(self, client: int, count: int) -> None:
        self.found[client].extend(read(self.clients[client], count))

    def wait_until_blocked(self, replies: int) -> None:
        """Until it waits for data, or has been answered."""
        raw, limit = self.clients[0], time.monotonic() + PATIENCE
        while not self.blocked() and time.monotonic() < limit:
            if select.select([raw.socket], [], [], 0.001)[0]:
                got = raw.socket.recv(1 << 18)
                raw.buffer += got
                if not got or complete(raw, replies):
                    return

    def end(self, program: Program) -> None:
        if program.closes:
            self.found[0].append(self.clients[0].rest())
        elif more := bytes(self.clients[0].buffer):
            self.found[0].append(b"too much: " + more)


def complete(raw: Raw, count: int) -> bool:
    at = 0
    for _ in range(count):
        at = frame_end(raw.buffer, at) if at < len(raw.buffer) else -1
        if at < 0:
            return False
    return True


def whole_scan(raw: Raw, args: Sequence[bytes]) -> bytes:
    """A scan's cursor followed to its end: every key that came, in one order."""
    cursor, keys = "0", set()
    for _ in range(1000):
        reply = raw.value(args[0], cursor, *args[2:])
        if not isinstance(reply, list):
            return f"{cursor}: {reply!r}".encode()
        cursor, page = reply
        keys |= set(page)
        if cursor == "0":
            return repr(sorted(keys)).encode()
    return b"a scan without end"


def converse(port: int, program: Program, blocked: Callable[[], int]) -> tuple[list[bytes], list[bytes]]:
    with ExitStack() as stack:
        conversation = Conversation(stack, port, blocked)
        conversation.run(program)
        return conversation.found


def read(raw: Raw, count: int) -> list[bytes]:
    """As Raw.frames, without moving the buffer for every frame."""
    found: list[bytes] = []
    at = 0
    while len(found) < count:
        end = frame_end(raw.buffer, at) if at < len(raw.buffer) else -1
        if end >= 0:
            found.append(bytes(raw.buffer[at:end]))
            at = end
            continue
        del raw.buffer[:at]
        at = 0
        if not (data := raw.socket.recv(1 << 18)):
            raise EOFError(found)
        raw.buffer += data
    del raw.buffer[:at]
    return found


def state(raws: Sequence[Raw]) -> dict[tuple[int, str], list[object]]:
    """Every key with a digest of its value; not those that hold times."""
    found: dict[tuple[int, str], list[object]] = {}
    for raw in raws:
        for database in DATABASES:
            raw.ask("SELECT", database)
            keys = [key for key in raw.value("KEYS", "*") if not key.endswith("y")]
            for key in keys:
                found.setdefault((database, key), []).extend(
                    raw.value("DEBUG", "DIGEST-VALUE", key.encode(errors="surrogateescape"))
                )
        raw.ask("SELECT", 0)
    return found


def commands_of(steps: Sequence[Step], client: int) -> list[tuple[bytes, ...]]:
    """Whose reply each frame is that a client gets; a message's is that of the command which sent it."""
    found: list[tuple[bytes, ...]] = []
    for step in steps:
        if client == int(step.other):
            found += [step.args] * step.replies
        elif step.other:
            found += [(b"MESSAGE", *step.args)] * step.pushes
    return found


def check(stage: Stage, program: Program) -> None:
    stage.clean()
    steps = [step if stage.fits(step) else step.as_ping() for step in program.steps]
    program = program._replace(steps=steps)
    one = converse(stage.plain.port, program, stage.blocked_on_redis)
    other = converse(stage.proxy.port, program, stage.blocked_behind_proxy)
    for client in (1, 0):
        commands = commands_of(steps, client)
        closes = program.closes and not client
        assert len(one[client]) == len(commands) + closes, f"not what the program says: {one[client][-1:]!r}"
        same_replies(commands, one[client], other[client])
    assert state([stage.oracle]) == state(stage.admins)


def same_replies(commands: list[tuple[bytes, ...]], theirs: list[bytes], ours: list[bytes]) -> None:
    for number, args in enumerate(commands):
        if number >= len(ours):
            break
        if theirs[number] == ours[number]:
            continue
        one, other = (normalised(commands[: number + 1], each[: number + 1])[-1] for each in (theirs, ours))
        assert one == other, f"reply {number}, to {args}:\nredis {theirs[number]!r}\nproxy {ours[number]!r}"
    assert theirs[len(commands) :] == ours[len(commands) :]


@pytest.mark.parametrize("proto", [2, 3], ids=["RESP2", "RESP3"])
@pytest.mark.parametrize("world", WORLDS, ids=[world.name for world in WORLDS])
def test_the_same_replies(world: World, proto: int, stages: dict[str, Stage]) -> None:
    stage = stages[world.name]

    @many
    @given(program=programs(world, proto))
    def same(program: Program) -> None:
        check(stage, program)

    same()


# --- that nothing is missing ---


def test_every_command_that_is_served_is_compared_or_says_why_not() -> None:
    blocks = [*LINES.values(), grammar.FANOUT, grammar.PATTERNS, grammar.LOCAL, grammar.QUEUED, grammar.UNITS]
    blocks += grammar.FEATURE_LINES.values()
    written = {name for block in blocks for name in grammar.names(block)}
    served = {
        each.name
        for row in builtin().rows()
        for each in row.flat()
        if each.kind != "refused" and not each.subcommands
    }
    assert served - written == set(grammar.NOT_COMPARED)


def test_every_normaliser_is_of_a_command_that_is_compared() -> None:
    written = {
        name
        for block in (*LINES.values(), grammar.FANOUT, grammar.LOCAL, *grammar.FEATURE_LINES.values())
        for name in grammar.names(block)
    }
    assert set(NORMALISERS) <= written


def test_keys_are_found_as_redis_finds_them(stages: dict[str, Stage]) -> None:
    """COMMAND GETKEYS and GETKEYSANDFLAGS of every line that Redis does not refuse."""
    stage = stages[WORLDS[0].name]
    blocks = [*LINES.values(), grammar.FANOUT, grammar.PATTERNS]
    lines = [line for block in blocks for line in grammar.lines(block)]

    @settings(many, max_examples=max(1, EXAMPLES // 20))
    @given(seed=st.binary(min_size=8, max_size=8))
    def same(seed: bytes) -> None:
        writer = Writer(Random(seed), stage.world)
        with stage.proxy.raw() as raw:
            for line in lines:
                args = writer.emit(line, [])
                if stage.oracle.ask(*args).startswith(b"-ERR"):
                    continue
                for sub in (b"GETKEYS", b"GETKEYSANDFLAGS"):
                    step = Step(pack(b"COMMAND", sub, *args), (b"COMMAND", sub, *args))
                    if stage.fits(step):
                        assert raw.ask(*step.args) == stage.oracle.ask(*step.args), step

    same()
