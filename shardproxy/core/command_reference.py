"""The command table in words, for people: what becomes of each command here, and why.

Derived from rows alone, so that neither page nor command line can say what the engine does not do.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from shardproxy.core.command_rows import KindName, Row

# A row's kind, or for "forward" what else it may be → (a word or two, what it means)
MEANINGS: dict[KindName | Literal["one key", "across"], tuple[str, str]] = {
    "one key": (
        "works",
        "one key, so one shard: the request goes there untouched, and so does the reply back",
    ),
    "across": (
        "one shard, or emulated",
        "works when all its keys are on one shard; on several in steps, not atomic, where the pool's "
        '`cross_shard` is `"emulate"`: see [across-shards.md](across-shards.md)',
    ),
    "forward": (
        "one shard",
        "works when all its keys are on one shard; otherwise `CROSSSLOT`, as in a cluster",
    ),
    "fanout": ("split", "its keys may be on any shards: split by shard, the replies merged into one"),
    "local": ("here", "answered by the proxy itself, as Redis would; it asks the nodes if it must"),
    "multi": ("one shard", "what stands between `MULTI` and `EXEC` runs as one on one shard"),
    "refused": ("refused", "an error that says why; nothing is sent to any node"),
}


def status(row: Row) -> str:
    """What becomes of a command, in a word or two."""
    if row.across:
        return MEANINGS["across"][0]
    return MEANINGS["one key" if row.kind == "forward" and row.one_key else row.kind][0]


def callable_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """What a client can send: containers give way to their subcommands, unless they stand alone, too."""
    for row in rows:
        yield from (each for each in row.flat() if not each.subcommands or each.arity == -1)


def note(row: Row) -> str:
    """Why it is refused, or what else is to be said of it."""
    if row.kind == "refused":
        return row.why
    notes = []
    if row.why:
        notes.append(f"a form of it is refused: {row.why}")
    if row.learned:
        notes.append("learned from the nodes")
    return "; ".join(notes)


def lines(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """(name as it is typed, status, note), a command each."""
    return [(typed(row), status(row), note(row)) for row in callable_rows(rows)]


def typed(row: Row) -> str:
    return row.name.upper().replace("|", " ")


def reference(rows: Sequence[Row]) -> str:
    """The whole table as Markdown, a section a group, in the order of names."""
    shown = sorted(callable_rows(rows), key=lambda row: (row.group, row.name))
    served = sum(row.kind != "refused" for row in shown)
    parts = [f"{served} of {len(shown)} commands and subcommands are served.\n"]
    for group, members in itertools.groupby(shown, key=lambda row: row.group):
        parts.append(f"\n### {group}\n\n| command | here | in `MULTI` | |\n|---|---|---|---|\n")
        for row in members:
            cells = (f"`{typed(row)}`", status(row), "yes" if row.in_multi else "", note(row))
            parts.append(f"| {' | '.join(cells)} |\n")
    return "".join(parts)
