"""Whatever the arguments, the key specs or a node's reply: no crash, and positions that are arguments."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from shardproxy.core import command_learning
from shardproxy.core.command_rows import KeySpec, Row
from shardproxy.core.commands import CommandTable, builtin, learn

TABLE = builtin()
KEYED = [row for row in TABLE.records if row.has_keys]
TOPS = {row.name.encode() for row in TABLE.rows()}

words = st.sampled_from(
    b"a b 0 1 2 3 01 -1 99999999999999999999 streams STORE storedist COUNT block group noack KEYS auth auth2 "
    b"by get limit w_* nosort # left".split()
)
arguments = st.lists(st.one_of(words, st.binary(max_size=6)), max_size=12)
small = st.integers(-5, 40)
positive = st.integers(1, 9)
specs = st.builds(
    KeySpec,
    flags=st.lists(st.sampled_from(["RO", "not_key", "incomplete"]), max_size=2).map(tuple),
    begin=st.sampled_from(["index", "keyword", "unknown"]),
    index=small,
    keyword=st.sampled_from(["streams", "KEYS", "a"]),
    find=st.sampled_from(["range", "keynum", "unknown"]),
    last=small,
    step=positive,
    limit=st.integers(0, 3),
    count=st.integers(0, 5),
    first=st.integers(0, 5),
)


def check_positions(table: CommandTable, args: list[bytes]) -> None:
    """The engine's verdict and the positions belong together, and are arguments after the name."""
    try:
        found = table.keys_of(args)
    except ValueError:
        found = None
    try:
        verdict = table.check(args)
    except ValueError:
        assert found is None
        return
    assert -3 <= verdict <= len(args)
    if found is not None:
        assert all(1 <= position < len(args) for position in found)
        assert verdict in (len(found), -1, -2, -3)
    else:
        assert verdict in (-1, 0)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(KEYED), arguments)
def test_any_arguments(row: Row, tail: list[bytes]) -> None:
    check_positions(TABLE, [*row.name.encode().split(b"|"), *tail])


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(KEYED), arguments)
def test_a_command_that_needs_keys_has_some_or_is_malformed(row: Row, tail: list[bytes]) -> None:
    try:
        verdict = TABLE.check([*row.name.encode().split(b"|"), *tail])
    except ValueError:
        return
    assert verdict != 0 or "no_mandatory_keys" in row.flags


@settings(max_examples=600, deadline=None)
@given(st.lists(specs, max_size=4), st.integers(-4, 4), st.booleans(), arguments)
def test_any_key_specs(some: list[KeySpec], arity: int, learned: bool, tail: list[bytes]) -> None:
    row = Row(name="x", arity=arity, key_specs=tuple(some), kind="forward", learned=learned)
    check_positions(CommandTable([row]), [b"x", *tail])


@settings(max_examples=1000, deadline=None)
@given(
    st.one_of(st.binary(max_size=60), st.sampled_from(sorted(TOPS)).flatmap(lambda n: st.just(n.swapcase())))
)
def test_a_name_is_known_exactly_when_it_is_in_the_table(name: bytes) -> None:
    found = TABLE.row(name)
    assert (found is not None) == (name.lower() in TOPS)
    assert found is None or found.name.encode() == name.lower()


@settings(deadline=None)
@given(st.sets(st.from_regex(r"[a-z0-9_.-]{1,40}", fullmatch=True), max_size=300))
def test_any_set_of_names_is_found(names: set[str]) -> None:
    table = CommandTable([Row(name=name, arity=1) for name in names])
    for name in names:
        found = table.row(name.upper().encode())
        assert found is not None
        assert found.name == name
    assert table.row(b"?") is None


@given(specs)
def test_a_key_spec_survives_being_written_as_json(spec: KeySpec) -> None:
    assert msgspec.json.decode(msgspec.json.encode(spec), type=KeySpec) == spec


# --- what nodes say ---

scalars = st.one_of(
    st.none(),
    st.integers(),
    st.binary(max_size=8),
    st.booleans(),
    st.floats(allow_nan=False),
    st.text(max_size=4),
)
garbage = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=11), st.dictionaries(st.binary(max_size=8), inner, max_size=4)
    ),
    max_leaves=40,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(garbage, max_size=3))
def test_learning_from_garbage(replies: list[object]) -> None:
    lesson = command_learning.study(TABLE.rows(), replies)
    assert [row for row in lesson.rows if not row.learned] == TABLE.rows()
    learn(TABLE, replies)


FIELDS = 10


def a_reply(name: bytes) -> list[object]:
    spec = [
        *(b"flags", [b"RO"]),
        *(b"begin_search", [b"type", b"index", b"spec", [b"index", 1]]),
        *(b"find_keys", [b"type", b"range", b"spec", [b"lastkey", -1, b"keystep", 1, b"limit", 0]]),
    ]
    return [name, -2, [b"readonly"], 1, -1, 1, [b"@read"], [], [spec], []]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, FIELDS - 1), garbage, st.integers(5, FIELDS), arguments)
def test_learning_from_a_nearly_good_reply(field: int, value: object, size: int, tail: list[bytes]) -> None:
    """One field replaced, or the end cut off: the next command is still learnt, keys are arguments."""
    spoilt = a_reply(b"spoilt")
    spoilt[field] = value
    table = learn(TABLE, [[spoilt[:size], a_reply(b"good")]])
    assert table.keys_of([b"good", b"k"]) == [1]
    check_positions(table, [b"spoilt", *tail])
