"""The records of the command table: what one command is, and what this proxy does with it.

Facts (arity, flags, ACL categories, key specs, tips) are Redis 7.0.15's own and live in commands.json, one
line a command; a test compares every one with a live server. Decisions are ours and live in
command_policy.py. This module joins the two into `Row` records and knows how key specs are written. Pure:
it looks nothing up and finds no keys; commands.pyx and command_keys.pyx do that.

A line of commands.json:
    [name, arity, flags, ACL categories, key specs, tips, group, since, summary]

A key spec (https://redis.io/docs/reference/key-specs/), several separated by "; ":
    1 RW access update       the key is argument 1; flags follow
    1..-1/2 OW update        keys from argument 1 to the last one, every second argument
    STREAMS@1..-1%2 RO       begin after the keyword STREAMS, looked for from argument 1 on; of the
                             arguments that are left only the first half are keys
    2#0+1 RO access          from argument 2: the number of keys stands at +0, the first key at +1
    ? RO                     cannot be said with a spec (SORT's BY and GET)
"""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

KindName: TypeAlias = Literal["forward", "fanout", "local", "multi", "refused"]
MergeName: TypeAlias = Literal["none", "array", "sum", "ok"]
# A reply of COMMAND as a Redis client library gives it: nested lists of strings and integers
Reply: TypeAlias = list[Any]

_SPEC = re.compile(
    r"(?:(?P<unknown>\?)|(?:(?P<keyword>[^\s@?]+)@)?(?P<index>-?\d+))"
    r"(?:\.\.(?P<last>-?\d+))?(?:#(?P<count>\d+)\+(?P<first>\d+))?(?:/(?P<step>\d+))?(?:%(?P<limit>\d+))?$"
)


class KeySpec(msgspec.Struct, frozen=True, gc=False):
    """Where some of a command's keys stand. `find` says which of the other fields count."""

    flags: tuple[str, ...] = ()
    begin: Literal["index", "keyword", "unknown"] = "index"
    index: int = 0  # where to begin; for a keyword: where to look for it first, negative from the end
    keyword: str = ""
    find: Literal["range", "keynum", "unknown"] = "range"
    last: int = 0  # range: relative to the first key, or negative from the end of the arguments
    step: int = 1
    limit: int = 0  # range up to -1: only one part in `limit` of the arguments left are keys
    count: int = 0  # keynum: where the number of keys stands, relative to the beginning
    first: int = 0  # keynum: where the first key stands, relative to the beginning

    @property
    def is_key(self) -> bool:
        """False for what only looks like a key: a channel."""
        return "not_key" not in self.flags

    @property
    def access(self) -> int:
        """What a user needs for its keys: 1: to read, 2: to write; a node of Redis 6 does not say: both."""
        if not {"RO", "RW", "OW", "RM"} & set(self.flags):
            return 3
        return ("access" in self.flags) | 2 * bool({"insert", "delete", "update"} & set(self.flags))

    def is_hollow(self, argc: int) -> bool:
        """Whether its range ends before it begins: the sources of PFMERGE KEY."""
        return (
            self.begin == "index" and self.find == "range" and self.last < 0 and argc + self.last < self.index
        )

    @classmethod
    def parse(cls, text: str) -> "KeySpec":
        """Reads the notation of commands.json; raises ValueError."""
        where, *flags = text.split()
        match = _SPEC.match(where)
        if match is None:
            raise ValueError(f"not a key spec: {text!r}")
        part = match.groupdict()
        if part["unknown"]:
            return cls(flags=tuple(flags), begin="unknown", find="unknown")
        return cls(
            flags=tuple(flags),
            begin="keyword" if part["keyword"] else "index",
            index=int(part["index"]),
            keyword=part["keyword"] or "",
            find="keynum" if part["count"] else "range",
            last=int(part["last"] or 0),
            step=int(part["step"] or 1),
            limit=int(part["limit"] or 0),
            count=int(part["count"] or 0),
            first=int(part["first"] or 0),
        )

    def info(self) -> Reply:
        """As COMMAND shows it in RESP2 (maps flattened)."""
        begin: Reply = []
        if self.begin == "index":
            begin = ["index", self.index]
        elif self.begin == "keyword":
            begin = ["keyword", self.keyword, "startfrom", self.index]
        find: Reply = []
        if self.find == "range":
            find = ["lastkey", self.last, "keystep", self.step, "limit", self.limit]
        elif self.find == "keynum":
            find = ["keynumidx", self.count, "firstkey", self.first, "keystep", self.step]
        return [
            *("flags", list(self.flags)),
            *("begin_search", ["type", self.begin, "spec", begin]),
            *("find_keys", ["type", self.find, "spec", find]),
        ]


class Row(msgspec.Struct, frozen=True, kw_only=True, gc=False):  # hundreds, and no cycles in them
    """One command, or one subcommand ("config|get"). Immutable."""

    name: str  # lower case
    arity: int  # with the name itself; negative: at least
    flags: tuple[str, ...] = ()  # Redis's words: write, readonly, fast, ...
    categories: tuple[str, ...] = ()  # ACL categories without the "@"
    key_specs: tuple[KeySpec, ...] = ()
    tips: tuple[str, ...] = ()
    group: str = "generic"
    since: str = ""
    summary: str = ""
    subcommands: tuple["Row", ...] = ()  # of a container
    kind: KindName = "refused"
    merge: MergeName = "none"
    why: str = (
        ""  # why it is refused, or why a form of it is: XREAD BLOCK, SORT BY pattern, EVAL without keys
    )
    walk: str = ""  # finds keys by walking its options, where key specs are not exact: see command_keys.pyx
    in_multi: bool = False  # may stand between MULTI and EXEC
    keyless: bool = False  # answered here, but inside MULTI it goes to the node with the others
    spread: bool = (
        False  # inside MULTI it goes to the node with the others, and from its handler to all other nodes
    )
    barrier: bool = False  # waits until everything that the client sent before is answered
    across: bool = False  # emulated over several shards, where the pool's cross_shard says so
    calls: Literal["", "text", "sha", "function"] = ""  # its first argument: a script, its SHA1, a function
    holds: bool = False  # a handler's: the client's later commands wait until it is answered
    channel: bool = False  # its first argument is a channel: it goes where a key of that name would
    listening: bool = False  # a RESP2 client that has subscribed may send it
    learned: bool = False  # from the nodes' COMMAND, not built in

    @property
    def has_keys(self) -> bool:
        return any(spec.is_key for spec in self.key_specs)

    @property
    def writes(self) -> bool:
        """It may write: scripts have no flag for it, and only their _RO forms are known not to."""
        return "write" in self.flags or ("scripting" in self.categories and "readonly" not in self.flags)

    @property
    def movable(self) -> bool:
        """Its keys are not (all) between `key_range`'s first and last."""
        return "movablekeys" in self.flags

    @property
    def one_key(self) -> bool:
        """Its only key stands at a fixed position."""
        first, last, _ = self.key_range
        return len([spec for spec in self.key_specs if spec.is_key]) == 1 and first == last > 0

    @property
    def key_range(self) -> tuple[int, int, int]:
        """(first, last, step) as COMMAND shows them; (0, 0, 0) when no key has a fixed position."""
        first = last = step = 0
        for spec in self.key_specs:
            if spec.begin != "index" or spec.find != "range" or spec.limit:
                break
            end = spec.index + spec.last if spec.last >= 0 else spec.last
            if not first:
                first, last, step = spec.index, end, spec.step
            elif spec.step == step == 1 and spec.index == last + 1:
                last = end
            else:
                break
        return first, last, step

    def info(self) -> Reply:
        """This command's entry in the reply of COMMAND and COMMAND INFO, as Redis 7 gives it in RESP2."""
        return [
            *(self.name, self.arity, list(self.flags), *self.key_range),
            ["@" + category for category in self.categories],
            list(self.tips),
            [spec.info() for spec in self.key_specs],
            [sub.info() for sub in self.subcommands],
        ]

    def docs(self) -> dict[str, Any]:
        """This command's entry in COMMAND DOCS, without arguments and history; subcommands by name."""
        entry: dict[str, Any] = {"summary": self.summary, "since": self.since, "group": self.group}
        if self.subcommands:
            entry["subcommands"] = {sub.name: sub.docs() for sub in self.subcommands}
        return entry

    def flat(self) -> Iterator["Row"]:
        """This row, then its subcommands."""
        yield self
        yield from self.subcommands


@functools.cache
def words(text: str) -> tuple[str, ...]:
    """Flags, categories and tips: many rows have the same."""
    return tuple(text.split())


@functools.cache
def specs(text: str) -> tuple[KeySpec, ...]:
    """Key specs as commands.json has them; raises ValueError."""
    return tuple(map(KeySpec.parse, filter(None, text.split("; "))))


def parse_line(line: list[Any], **decision: Any) -> Row:
    """A line of commands.json as a row; without a decision it is refused, for no reason."""
    name, arity, flags, categories, keys, tips, group, since, summary = line
    return Row(
        name=name,
        arity=arity,
        flags=words(flags),
        categories=words(categories),
        key_specs=specs(keys),
        tips=words(tips),
        group=group,
        since=since,
        summary=summary,
        **decision,
    )


def facts() -> list[list[Any]]:
    """Every command and subcommand of Redis 7.0.15: the lines of commands.json."""
    lines: list[list[Any]] = msgspec.json.decode(Path(__file__).with_name("commands.json").read_bytes())
    return lines


def key_flags(row: Row, spec: int, args: Sequence[bytes]) -> tuple[str, ...]:
    """How the command uses keys of its key spec number `spec`: as COMMAND GETKEYSANDFLAGS says."""
    flags = row.key_specs[spec].flags
    if row.name == "set" and b"get" not in {arg.lower() for arg in args[3:]}:
        return ("OW", "update")
    if row.name == "bitfield" and not _bitfield_writes(args):
        return ("RO", "access")
    return tuple(flag for flag in flags if flag not in ("variable_flags", "incomplete"))


def _bitfield_writes(args: Sequence[bytes]) -> bool:
    at = 2
    while at < len(args):
        size = {b"get": 3, b"overflow": 2}.get(args[at].lower(), 0)
        if size == 0:
            return True
        at += size
    return False
