"""Every command and subcommand, through the proxy and to a plain Redis: what the command table says is true.

It follows the table: a row that says "refused" must be refused in the words of its reason and touch no node;
any other must answer what a plain Redis answers, and do with keys on several shards what its row says.
"""

import re
from collections.abc import Iterable, Iterator

import msgspec
import pytest
from every_command import CALLS, DIFFERENT, LOOSE, OURS, SEEDS
from servers import ProxyProcess, Raw, RedisNode, pack, redis_nodes, shards_of, toml

from shardproxy.core.command_reference import callable_rows
from shardproxy.core.command_rows import Row
from shardproxy.core.commands import builtin

TABLE = builtin()
SAVING = ("bgrewriteaof", "bgsave", "save")
ROWS = {row.name: row for row in callable_rows(TABLE.rows())}


def words(line: str, key: str = "{every}%s") -> list[bytes]:
    """A line as arguments; escapes as in Python."""
    found = []
    for word in line.split():
        word = re.sub(r"\\x(..)|\\n", lambda m: chr(int(m[1], 16)) if m[1] else "\n", word)
        found.append(((key % word[1:]) if word[0] == "@" else word).encode("latin-1"))
    return found


def row_of(args: list[bytes]) -> Row:
    row = TABLE.row(*args[:2])
    assert row is not None, args
    return row


LINES = {row_of(words(line)).name: line for line in CALLS.splitlines() if line}


class Sides:
    """A plain Redis; a proxy in front of three nodes; another one, which emulates, in front of the same."""

    def __init__(
        self, plain: RedisNode, nodes: list[RedisNode], proxy: ProxyProcess, emulating: ProxyProcess
    ) -> None:
        self.plain, self.nodes, self.proxy = plain, nodes, proxy
        self.oracle, self.admins, self.door = plain.raw(), [node.raw() for node in nodes], proxy.raw()
        self.emulating = emulating

    def seed(self, key: str = "{every}%s") -> None:
        for raw in (self.oracle, *self.admins):
            raw.ask("FLUSHALL")
        for raw in (self.oracle, self.door):
            lines = [words(line, key) for line in SEEDS.splitlines() if line]
            raw.send(b"".join(pack(*args) for args in lines))
            assert not [frame for frame in raw.frames(len(lines)) if frame[:1] == b"-"]

    def keys(self) -> int:
        return sum(raw.value("DBSIZE") for raw in self.admins)

    def shards(self, keys: Iterable[bytes]) -> set[str]:
        return {msgspec.json.decode(self.door.value("PROXY", "LOCATE", key))["shard"] for key in keys}


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    with (
        RedisNode() as plain,
        redis_nodes(3) as nodes,
        ProxyProcess(toml(shards_of(nodes))) as proxy,
        ProxyProcess(toml(shards_of(nodes), pool='cross_shard = "emulate"')) as emulating,
    ):
        yield Sides(plain, nodes, proxy, emulating)


def ask(port: int, proto: int, args: list[bytes]) -> bytes:
    with Raw(port) as raw:
        raw.value("HELLO", str(proto))
        return raw.ask(*args)


def test_there_is_a_call_of_every_command() -> None:
    assert set(LINES) == set(ROWS)


@pytest.mark.parametrize("proto", [2, 3], ids=["RESP2", "RESP3"])
@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_row_is_true(name: str, proto: int, sides: Sides) -> None:
    row, args = ROWS[name], words(LINES[name])
    sides.seed()
    before = sides.keys()
    ours = ask(sides.proxy.port, proto, args)
    refusal = re.match(rb"-(ERR|NOPERM) '[^']+' is not supported", ours)
    if row.kind == "refused":
        assert row.why.encode() in ours
        assert refusal or ours == ask(sides.plain.port, proto, args)  # Redis's own words, or ours
        assert sides.keys() == before
        return
    assert not refusal, ours
    if name in OURS or name.startswith(("proxy", "session.")):
        refused = name in ("proxy|drain", "proxy|undrain", "proxy|reload") or name.startswith("session.")
        assert ours[:1] != b"-" or refused, ours
        return
    theirs = ask(sides.plain.port, proto, args)
    if name in DIFFERENT:
        assert ours != theirs, "it is no longer different: delete its line"
    else:
        alike(name, ours, theirs)


def alike(name: str, ours: bytes, theirs: bytes) -> None:
    if name in SAVING and b"in progress" in ours + theirs:
        return  # the one before is not done yet, here or there
    if name in LOOSE:
        ours, theirs = ours[:1], theirs[:1]
    assert ours == theirs


def keys_of(name: str) -> list[int]:
    return TABLE.keys_of(words(LINES[name])) if ROWS[name].has_keys else []


@pytest.mark.parametrize(
    "name", sorted(name for name, row in ROWS.items() if row.kind != "refused" and len(keys_of(name)) > 1)
)
def test_keys_on_several_shards(name: str, sides: Sides) -> None:
    """Refused as by a cluster; split, or emulated where that is asked for: answered as by one Redis."""
    args, keys = words(LINES[name], "%s"), keys_of(name)
    last, number = args[keys[-1]], 0
    while len(sides.shards(args[at] for at in keys)) == 1:
        number += 1  # the last key is called something else, until it lives elsewhere
        args[keys[-1]] = last + b"%d" % number
    sides.seed("%s")
    ours = ask(sides.proxy.port, 2, args)
    if ROWS[name].kind == "fanout":
        alike(name, ours, ask(sides.plain.port, 2, args))
        return
    assert ours.startswith(b"-CROSSSLOT "), ours
    emulated = ask(sides.emulating.port, 2, args)
    if ROWS[name].across:
        alike(name, emulated, ask(sides.plain.port, 2, args))
    else:
        assert emulated == ours


def test_keys_are_those_that_redis_finds(sides: Sides) -> None:
    """COMMAND GETKEYSANDFLAGS of every call."""
    asked = [[b"COMMAND", b"GETKEYSANDFLAGS", *words(line)] for line in LINES.values() if " " in line]
    asked = [args for args in asked if not args[2].upper().startswith((b"PROXY", b"SESSION."))]
    asked = [args for args in asked if (row := row_of(args[2:])).name not in OURS and row.since != "7.2.0"]
    for args in asked:
        assert sides.door.ask(*args) == sides.oracle.ask(*args), args
    assert len(asked) > 200
