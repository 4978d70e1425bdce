"""What the nodes' own COMMAND replies add to the table, so that a new Redis or a module works unchanged.

Rules. A built-in row is never touched, whatever a node says. A new command is forwarded only if every node
has it, all agree where its keys are, key specs (Redis 7) or fixed positions (Redis 6) name all of them, and
no node flags it admin, blocking, pubsub, noscript or no_multi. Every other new command becomes a refused
row that says what was missing. A reply is what a stranger sent: whatever does not look right is left out
and named in `Lesson.faults`; nothing here raises.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from shardproxy.core.command_policy import BLOCKS, UNSAFE_FLAGS
from shardproxy.core.command_rows import KeySpec, Row

MAX_COMMANDS = 4096  # of one node, subcommands counted; Redis 8 with all its modules has about 600
MAX_SPECS = 16

_NAME = re.compile(r"[a-z0-9_.:-]{1,40}")
_WORD = re.compile(r"[a-zA-Z0-9_.:@-]{1,24}")


class Lesson(msgspec.Struct, frozen=True):
    """rows: the whole table, what was learnt included; faults: what was left out of which reply, and why."""

    rows: list[Row]
    faults: list[str]


class _Fault(Exception):
    """This entry cannot be used: why."""


def study(rows: Iterable[Row], replies: Sequence[object]) -> Lesson:
    """The rows extended by COMMAND replies, one a node, as hiredis parses them (RESP2 or RESP3).

    What an earlier lesson added to `rows` is forgotten first.
    """
    known = [_forget(row) for row in rows if not row.learned]
    faults: list[str] = []
    nodes = []
    for number, reply in enumerate(replies):
        if isinstance(reply, list):
            nodes.append(_read_node(number, reply, faults))
        else:
            faults.append(f"node {number}: COMMAND did not answer with an array")
    names = {row.name: row for row in known}
    seen: dict[str, list[Row]] = {}
    for node in nodes:
        for name, row in node.items():
            container = names.get(name.partition("|")[0])
            if name not in names and (container is None or ("|" in name and _accepts(container, name))):
                seen.setdefault(name, []).append(row)
    learnt = {name: _agree(found, len(nodes)) for name, found in seen.items()}
    return Lesson(rows=_assemble(known, learnt), faults=faults)


def _forget(row: Row) -> Row:
    if not any(sub.learned for sub in row.subcommands):
        return row
    return msgspec.structs.replace(row, subcommands=tuple(s for s in row.subcommands if not s.learned))


def _accepts(container: Row, name: str) -> bool:
    return bool(container.subcommands) and all(sub.name != name for sub in container.subcommands)


def _assemble(known: list[Row], learnt: dict[str, Row]) -> list[Row]:
    subs: dict[str, list[Row]] = {}
    for name in sorted(learnt):
        if "|" in name:
            subs.setdefault(name.partition("|")[0], []).append(learnt[name])
    tops = [*known, *(learnt[name] for name in sorted(learnt) if "|" not in name)]
    return [
        msgspec.structs.replace(row, subcommands=(*row.subcommands, *subs[row.name]))
        if row.name in subs
        else row
        for row in tops
    ]


def _agree(found: list[Row], nodes: int) -> Row:
    """One row for what several nodes say of a command."""
    first = found[0]
    flags = {flag for row in found for flag in row.flags}
    if not all("readonly" in row.flags for row in found):
        flags.discard("readonly")
    arities = {row.arity for row in found}
    row = msgspec.structs.replace(
        first,
        # The looser arity: the node itself still counts
        arity=first.arity if len(arities) == 1 else -min(abs(arity) for arity in arities),
        flags=tuple(flag for flag in (*first.flags, *sorted(flags - set(first.flags))) if flag in flags),
    )
    why = _objection(row, found, nodes)
    if why:
        return msgspec.structs.replace(row, kind="refused", why=why)
    return msgspec.structs.replace(row, kind="forward", in_multi=True)


def _objection(row: Row, found: list[Row], nodes: int) -> str:
    """Why a learned command is not forwarded; "" when it is."""
    unsafe = sorted(UNSAFE_FLAGS & set(row.flags))
    if len(found) < nodes:
        return "not every node has it"
    if "blocking" in unsafe:
        return BLOCKS
    if unsafe:
        return f"the nodes flag it {', '.join(unsafe)}"
    if not row.has_keys:
        return "the nodes do not say where its keys are"
    places = {tuple(msgspec.structs.replace(spec, flags=()) for spec in other.key_specs) for other in found}
    if len(places) > 1:
        return "the nodes do not agree where its keys are"
    if any(spec.find == "unknown" or "incomplete" in spec.flags for spec in row.key_specs):
        return "its key specs do not name all of its keys"
    # A module that finds keys itself is flagged movablekeys, yet shows only the range it was registered with
    if row.movable and all(spec.begin == "index" and spec.find == "range" for spec in row.key_specs):
        return "its keys are found by a module's own code"
    return ""


def _read_node(number: int, reply: list[Any], faults: list[str]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for at, entry in enumerate(reply):
        try:
            if len(found) >= MAX_COMMANDS:
                raise _Fault(f"more than {MAX_COMMANDS} commands; the rest is ignored")
            for row in _read_entry(entry, ""):
                found[row.name] = row
        except _Fault as fault:
            faults.append(f"node {number}, command {at}: {fault}")
            if len(found) >= MAX_COMMANDS:
                break
    return found


def _read_entry(entry: object, container: str) -> list[Row]:
    """One entry of COMMAND as its row and its subcommands' rows (flat)."""
    if not isinstance(entry, list) or len(entry) < 6:
        raise _Fault("not an array of six or more")
    name = _text(entry[0]).lower()
    own = name.removeprefix(container + "|")
    if not _NAME.fullmatch(own) or len(container) + len(own) > 46:
        raise _Fault("not a command's name")
    arity = _int(entry[1])
    if arity == 0:
        raise _Fault(f"{name}: arity 0")
    flags = tuple(_words(entry[2]))
    if len(entry) > 8:
        specs = tuple(_read_spec(spec) for spec in _list(entry[8], MAX_SPECS))
    else:
        specs = _fixed(_int(entry[3]), _int(entry[4]), _int(entry[5]), flags)
    row = Row(
        name=f"{container}|{own}" if container else own,
        arity=arity,
        flags=flags,
        categories=tuple(word.removeprefix("@") for word in _words(entry[6])) if len(entry) > 6 else (),
        key_specs=specs,
        tips=tuple(_words(entry[7])) if len(entry) > 7 else (),
        group="module" if "module" in flags or "." in own else "generic",
        learned=True,
    )
    rows = [row]
    if len(entry) > 9 and not container:
        for sub in _list(entry[9], MAX_COMMANDS):
            rows += _read_entry(sub, own)
    return rows


def _fixed(first: int, last: int, step: int, flags: tuple[str, ...]) -> tuple[KeySpec, ...]:
    """Redis 6: first, last and step say it all, unless the keys move."""
    if first == 0 or "movablekeys" in flags:
        return ()
    if first < 0 or step < 1 or 0 <= last < first:
        raise _Fault("impossible key positions")
    return (KeySpec(index=first, last=last - first if last > 0 else last, step=step),)


def _read_spec(raw: object) -> KeySpec:
    spec = _map(raw)
    flags = tuple(_words(spec.get("flags", [])))
    begin, find = _map(spec.get("begin_search")), _map(spec.get("find_keys"))
    begins, finds = _text(begin.get("type")), _text(find.get("type"))
    where, what = _map(begin.get("spec", [])), _map(find.get("spec", []))
    unknown = KeySpec(flags=flags, begin="unknown", find="unknown")
    if begins == "index":
        index, keyword = _int(where.get("index")), ""
        possible = index >= 1
    elif begins == "keyword":
        index, keyword = _int(where.get("startfrom")), _text(where.get("keyword"))
        possible = index != 0 and bool(_WORD.fullmatch(keyword))
    else:
        return unknown
    if finds == "range":
        last, step, limit = _int(what.get("lastkey")), _int(what.get("keystep")), _int(what.get("limit"))
        count = first = 0
        possible = possible and step >= 1 and limit >= 0
    elif finds == "keynum":
        count, first, step = (
            _int(what.get("keynumidx")),
            _int(what.get("firstkey")),
            _int(what.get("keystep")),
        )
        last = limit = 0
        possible = possible and count >= 0 and first >= 0 and step >= 1
    else:
        return unknown
    if not possible:
        raise _Fault("impossible key spec")
    return KeySpec(
        flags=flags,
        begin="keyword" if keyword else "index",
        index=index,
        keyword=keyword,
        find="range" if finds == "range" else "keynum",
        last=last,
        step=step,
        limit=limit,
        count=count,
        first=first,
    )


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    if isinstance(value, str):
        return value
    raise _Fault("a string is missing")


def _int(value: object) -> int:
    if type(value) is not int or abs(value) > 0x7FFF:
        raise _Fault("a number is missing or too large")
    return value


def _list(value: object, limit: int) -> list[Any]:
    if not isinstance(value, list | tuple | set | frozenset) or len(value) > limit:
        raise _Fault("an array is missing or too long")
    return list(value)


def _words(value: object) -> list[str]:
    words = [_text(word) for word in _list(value, 64)]
    if not all(word.isprintable() and len(word) <= 64 for word in words):
        raise _Fault("flags or categories are not words")
    return words


def _map(value: object) -> dict[str, Any]:
    """A map of RESP3, or of RESP2: keys and values in turn."""
    if isinstance(value, Mapping):
        return {_text(key): item for key, item in value.items()}
    items = _list(value, 32)
    if len(items) % 2:
        raise _Fault("a map with a key but no value")
    return {_text(key): item for key, item in zip(items[::2], items[1::2], strict=True)}
