"""The command table in words: every row has some, and docs/compatibility.md shows them."""

import typing
from pathlib import Path

import msgspec
import pytest

from shardproxy.core import command_reference
from shardproxy.core.command_reference import MEANINGS, callable_rows, lines, note, status
from shardproxy.core.command_rows import KindName
from shardproxy.core.commands import builtin

ROWS = builtin().rows()
BY_NAME = {row.name: row for row in callable_rows(ROWS)}


def test_every_kind_of_decision_has_words() -> None:
    assert set(MEANINGS) == {"one key", "across", *typing.get_args(KindName)}


def test_every_command_that_can_be_sent_is_shown_once() -> None:
    every = {row.name for top in ROWS for row in top.flat() if not row.subcommands}
    assert set(BY_NAME) == every | {"command"}  # the only container that is a command of its own
    assert len(lines(ROWS)) == len(BY_NAME)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *(("get", "works"), ("hset", "works"), ("xadd", "works"), ("object|encoding", "works")),
        *(("blpop", "one shard"), ("msetnx", "one shard"), ("exec", "one shard"), ("watch", "one shard")),
        *(("sunion", "one shard, or emulated"), ("rename", "one shard, or emulated")),
        *(("mget", "split"), ("del", "split"), ("mset", "split")),
        *(("ping", "here"), ("client|setname", "here"), ("command", "here")),
    ],
)
def test_status(name: str, said: str) -> None:
    assert status(BY_NAME[name]) == said


def test_what_is_refused_says_why() -> None:
    refused = [row for row in BY_NAME.values() if row.kind == "refused"]
    assert refused
    assert all(note(row) == row.why != "" for row in refused)


def test_what_was_learned_says_so() -> None:
    row = msgspec.structs.replace(BY_NAME["get"], learned=True)
    assert note(row) == "learned from the nodes"


def test_the_documentation_shows_the_table() -> None:
    page = Path(__file__, "../../../docs/compatibility.md").resolve().read_text()
    start, end = "<!-- shardproxy commands --reference -->\n", "<!-- end -->"
    shown = page.partition(start)[2].partition(end)[0]
    wanted = command_reference.reference(ROWS)
    assert shown.strip() == wanted.strip(), "paste what `shardproxy commands --reference` prints"
    assert all(f"| {word} | " in page and meaning in page for word, meaning in MEANINGS.values())
