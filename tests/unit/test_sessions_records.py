"""What a record says of itself, the names of its fields, and which of a session's values have changed."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardproxy.core.sessions.data import Change, SessionData
from shardproxy.core.sessions.keyring import Keyring
from shardproxy.core.sessions.records import (
    LEAST_META,
    LONGEST,
    Codec,
    Meta,
    Timeouts,
    field_of,
    name_of,
)

SECRETS = ["a secret of more than sixteen bytes"]
TIMES = st.integers(1, LONGEST)


def session_of(**fields: bytes) -> SessionData:
    """As if it was read with these."""
    session = SessionData(Codec(Keyring(SECRETS), bytes))
    session._stored = dict(fields)
    session._values = {name: msgspec.json.decode(data) for name, data in fields.items()}
    return session


@settings(max_examples=50, deadline=None, database=None)
@given(
    st.integers(0, (1 << 47)), TIMES, TIMES, TIMES, st.integers(0, (1 << 32) - 1), TIMES,
    st.sampled_from(["anonymous", "signed_in", "remember_me", "of_their_own"]),
)  # fmt: skip
def test_it_comes_back_as_it_was(
    created: int, absolute: int, idle: int, renewal: int, version: int, due: int, kind: str
) -> None:
    meta = Meta(1, created, absolute, idle, renewal, version, created + due, "handle-8", "nonce_-8", kind)
    data = meta.pack()
    assert Meta.parse(data) == meta
    assert len(data) == LEAST_META or kind == "of_their_own"
    with pytest.raises(ValueError, match="short"):
        Meta.parse(data[: LEAST_META - 1])


def test_a_timeout_without_end_has_one() -> None:
    for forever in (1e12, float("inf")):
        absolute, idle, renewal = Timeouts(idle=forever, absolute=forever, renewal=forever).ms
        assert absolute == idle == renewal == LONGEST


@pytest.mark.parametrize("name", ["a", "", ".", "\0", "\0e", "\0.e", "\0.", "ä"])
def test_a_key_is_never_a_field_of_ours(name: str) -> None:
    field = field_of(name)
    assert name_of(field) == name
    assert field[:1] != "\0" or field[1:2] == "."


def test_fields_of_a_later_release_are_no_keys() -> None:
    codec = Codec(Keyring(SECRETS), bytes)
    values, plain = codec.open_all("key", {b"a": b"1", b"\0.\0z": b"2", b"\0z": b"?", b"\0": b"??"})
    assert values == {"a": 1, "\0z": 2} and plain == {"a": b"1", "\0z": b"2"}


def changed(session: SessionData) -> list[tuple[str, str, Any]]:
    return [(what, name, msgspec.json.decode(data or b"0")) for what, name, data in session._changes()]


def test_only_what_differs_is_a_change() -> None:
    session = session_of(a=b"[1, 2]", b=b'{"x": 1}', c=b"3")
    assert session["a"] == [1, 2] and session["b"] == {"x": 1}
    assert not session.modified, "another language's JSON has spaces"
    session["a"] = [1, 2]
    assert not session.modified, "set to what it was"
    session["b"]["x"] = 2
    del session["c"]
    assert sorted(changed(session)) == [("d", "c", 0), ("s", "b", {"x": 2})]


@pytest.mark.parametrize(
    "spelled",
    [
        b"[1 ]",
        b"1.50",
        b"15e-1",
        b"1E2",
        b'"\\u00e9"',
        b'"a\\/b"',
        b'{"a":\t1}',
        b'"\xc3\xa9"',
        b"[]",
        b"null",
    ],
)
def test_another_programs_spelling_is_no_change(spelled: bytes) -> None:
    """What JSON can say in two ways is compared by what it says; the rest byte by byte."""
    session = session_of(a=spelled)
    session["a"] = msgspec.json.decode(spelled)
    assert not session.modified
    session["a"] = "else"
    assert session.modified


def test_a_list_that_was_appended_to() -> None:
    session = session_of(a=b"[1]")
    session.append("a", 2)
    assert session["a"] == [1, 2] and changed(session) == [("a", "a", 2)]
    session["a"].append(3)
    assert changed(session) == [("s", "a", [1, 2, 3])], "as a whole, as it was changed otherwise, too"
    other = session_of(a=b"[1]")
    other.append("a", 2)
    other["a"] = [1, 2]
    assert changed(other) == [("s", "a", [1, 2])]


def test_what_changes_while_it_is_saved_is_saved_next() -> None:
    session = session_of(a=b"[1]", n=b"1")
    held = session["a"]
    held.append(2)
    changes = session._changes()
    held.append(3)  # before the answer has come
    session._saved(changes, {})
    assert changed(session) == [("s", "a", [1, 2, 3])]
    session._saved(session._changes(), {})
    session["n"] = 2
    session._saved(session._changes(), {})
    session.incr("n")
    assert session._changes() == [Change("i", "n", b"1")], "still a step, so that parallel ones add up"
