"""COMMAND and its subcommands: the command table, as Redis shows its own. Everything comes from the rows."""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from shardproxy.core import errors, reply
from shardproxy.core.command_rows import KeySpec, Row
from shardproxy.core.commands import CommandTable
from shardproxy.handlers.base import Server, handles

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call


def _pairs(value: Iterable[tuple[str, bytes]], proto: int) -> bytes:
    return reply.mapping(((reply.bulk(key), content) for key, content in value), proto)


def _words(value: Iterable[str], proto: int) -> bytes:
    return reply.set_(map(reply.simple, value), proto)


def _spec(spec: KeySpec, proto: int) -> bytes:
    """A key specification; RESP2 and RESP3 differ in the maps only."""
    flat = spec.info()
    fields = dict(zip(flat[::2], flat[1::2], strict=True))

    def search(kind: str, options: list[str | int]) -> bytes:
        items = [
            (str(key), reply.integer(value) if isinstance(value, int) else reply.bulk(value))
            for key, value in zip(options[::2], options[1::2], strict=True)
        ]
        return _pairs([("type", reply.bulk(kind)), ("spec", _pairs(items, proto))], proto)

    return _pairs(
        [
            ("flags", _words(fields["flags"], proto)),
            ("begin_search", search(fields["begin_search"][1], fields["begin_search"][3])),
            ("find_keys", search(fields["find_keys"][1], fields["find_keys"][3])),
        ],
        proto,
    )


def describe(row: Row, proto: int = 2) -> bytes:
    """A command's entry in the reply of COMMAND and COMMAND INFO."""
    return reply.array(
        [
            reply.bulk(row.name),
            reply.integer(row.arity),
            _words(row.flags, proto),
            *map(reply.integer, row.key_range),
            _words(("@" + category for category in row.categories), proto),
            # Redis says its tips as bulk strings, and flags as simple ones
            reply.set_(map(reply.bulk, row.tips), proto),
            reply.set_((_spec(spec, proto) for spec in row.key_specs), proto),
            reply.set_((describe(sub, proto) for sub in row.subcommands), proto),
        ]
    )


def document(row: Row, proto: int = 2) -> bytes:
    """A command's entry in COMMAND DOCS."""
    fields = [(key, reply.bulk(text)) for key, text in row.docs().items() if isinstance(text, str) and text]
    if row.subcommands:
        subs = ((sub.name, document(sub, proto)) for sub in row.subcommands)
        fields.append(("subcommands", _pairs(subs, proto)))
    return _pairs(fields, proto)


def find(server: Server, name: bytes) -> Row | None:
    """By the name as COMMAND shows it, "get" or "config|get"."""
    container, bar, sub = name.partition(b"|")
    if not bar:
        return server.commands.row(container)
    row = server.commands.row(container, sub)
    return row if row is not None and "|" in row.name else None


MOST_ASKED = 1024  # names in one COMMAND INFO or DOCS: more than there are commands
LONGEST_PATTERN = 256


@handles("command")
def all_(server: Server, call: "Call") -> bytes:
    if len(call.args) > 1:
        return reply.error(errors.unknown_subcommand("command", call.args[1]))
    return whole("info", server.commands, call.proto)


_WHOLE: dict[tuple[str, int], tuple[CommandTable, bytes]] = {}


def whole(what: str, table: CommandTable, proto: int) -> bytes:
    """All of COMMAND INFO or DOCS: redis-cli asks at every start, and it takes milliseconds to make."""
    known, frame = _WHOLE.get((what, proto), (None, b""))
    if known is not table:
        rows = table.rows()
        frame = (
            reply.array(describe(row, proto) for row in rows)
            if what == "info"
            else _pairs(((row.name, document(row, proto)) for row in rows), proto)
        )
        _WHOLE[what, proto] = table, frame
    return frame


@handles("command|count")
def count(server: Server, call: "Call") -> bytes:
    return reply.integer(len(server.commands.rows()))


@handles("command|info")
def info(server: Server, call: "Call") -> bytes:
    if len(call.args) == 2:
        return whole("info", server.commands, call.proto)
    if len(call.args) > MOST_ASKED:
        return reply.error(errors.TOO_MANY_NAMES)
    rows = [find(server, name) for name in call.args[2:]]
    return reply.array(describe(row, call.proto) if row else reply.null(call.proto) for row in rows)


@handles("command|docs")
def docs(server: Server, call: "Call") -> bytes:
    if len(call.args) == 2:
        return whole("docs", server.commands, call.proto)
    if len(call.args) > MOST_ASKED:
        return reply.error(errors.TOO_MANY_NAMES)
    rows = [find(server, name) for name in call.args[2:]]
    return _pairs(((row.name, document(row, call.proto)) for row in rows if row), call.proto)


@handles("command|list")
def list_(server: Server, call: "Call") -> bytes:
    """COMMAND LIST [FILTERBY MODULE name | ACLCAT category | PATTERN pattern]"""
    options = call.args[2:]
    names = [flat for row in server.commands.rows() for flat in row.flat()]
    if options:
        if len(options) != 3 or options[0].lower() != b"filterby":
            return reply.error(errors.SYNTAX)
        by, value = options[1].lower(), options[2].decode(errors="replace")
        if by == b"aclcat":
            names = [row for row in names if value.lower() in row.categories]
        elif by == b"pattern" and len(value) <= LONGEST_PATTERN:
            names = [row for row in names if fnmatch.fnmatchcase(row.name, glob(value.lower()))]
        elif by == b"module":
            names = []  # what nodes taught us does not say which module it came from
        else:
            return reply.error(errors.SYNTAX)
    return reply.bulks(row.name for row in names)


def glob(pattern: str) -> str:
    """Redis's pattern as Python's, which writes [^a] as [!a]."""
    return pattern.replace("[^", "[!")


def _keys(server: Server, args: Sequence[bytes]) -> list[tuple[int, tuple[str, ...]]]:
    """What a command's keys are, and how it uses them; ValueError.

    Asked for keys Redis takes PFMERGE KEY, which it runs, for malformed, and MSET KEY VALUE KEY for sound.
    """
    row = server.commands.row(*args[:2])
    if row is not None and row.name in ("mset", "msetnx") and len(args) > 2 and len(args) % 2 == 0:
        args = [*args, b""]
    found = server.commands.keys_and_flags_of(args)
    if row is not None and any(spec.is_hollow(len(args)) for spec in row.key_specs):
        raise ValueError("Invalid arguments specified for command")
    return found


@handles("command|getkeys")
def getkeys(server: Server, call: "Call") -> bytes:
    args = call.args[2:]
    try:
        found = _keys(server, args)
    except ValueError as error:
        return reply.error(errors.get_keys(str(error)))
    return reply.bulks(args[position] for position, _ in found)


@handles("command|getkeysandflags")
def getkeysandflags(server: Server, call: "Call") -> bytes:
    args = call.args[2:]
    try:
        found = _keys(server, args)
    except ValueError as error:
        return reply.error(errors.get_keys(str(error)))
    return reply.array(
        reply.array([reply.bulk(args[position]), _words(flags, call.proto)]) for position, flags in found
    )


HELP = """\
COMMAND <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
(no subcommand)
    Return details about all Redis commands.
COUNT
    Return the total number of commands in this Redis server.
LIST
    Return a list of all commands in this Redis server.
INFO [<command-name> ...]
    Return details about multiple Redis commands.
    If no command names are given, documentation details for all
    commands are returned.
DOCS [<command-name> ...]
    Return documentation details about multiple Redis commands.
    If no command names are given, documentation details for all
    commands are returned.
GETKEYS <full-command>
    Return the keys from a full Redis command.
GETKEYSANDFLAGS <full-command>
    Return the keys and the access flags from a full Redis command.
HELP
    Prints this help."""


@handles("command|help")
def help_(server: Server, call: "Call") -> bytes:
    return reply.simples(HELP.split("\n"))
