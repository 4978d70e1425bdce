"""What a session may come to, what a flood of forged cookies may cost, what a static file may change."""

import logging
import math
from typing import Any, Literal

import pytest
from flask import Flask, session

from shardproxy.core.sessions.errors import NotStorable, SessionTooLarge
from shardproxy.core.sessions.keyring import Keyring
from shardproxy.core.sessions.records import Codec, Undecodable
from shardproxy.core.sessions.rules import Event
from shardproxy.sessions import MemorySessionStore
from shardproxy.sessions.flask import Sessions

SECRETS = ["a secret of more than sixteen bytes"]
LARGE = 150_000  # bytes: once it fits, twice not


def test_only_what_is_stored_in_the_end_counts() -> None:
    store = MemorySessionStore(SECRETS)
    mine = store.new()
    mine["a"] = "x" * LARGE
    mine.save()
    mine["a"] = "y" * LARGE
    mine.save()
    mine.login("anna")
    assert store.load(mine.cookie)["a"] == "y" * LARGE
    mine["b"] = "x" * LARGE
    with pytest.raises(SessionTooLarge):
        mine.save()


def test_one_that_parallel_saves_made_too_large_is_no_dead_end() -> None:
    store = MemorySessionStore(SECRETS)
    mine = store.new()
    mine["seen"] = True
    mine.save()
    one, other = store.load(mine.cookie), store.load(mine.cookie)
    one["a"], other["b"] = "x" * 2 * 100_000, "x" * 2 * 100_000
    one.save()
    other.save()
    both = store.load(mine.cookie)
    both.renew()
    both.login("anna")
    both["c"] = 1
    with pytest.raises(SessionTooLarge):
        both.save()
    del both["b"]
    both.save()
    assert set(store.load(both.cookie)) == {"seen", "a", "c"}


def test_forged_cookies_do_not_flood_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("shardproxy.sessions.store.time.monotonic", lambda: now)
    told: list[Event] = []
    store = MemorySessionStore(SECRETS, on_event=told.append)
    with caplog.at_level(logging.WARNING, "shardproxy.sessions"):
        for _ in range(100):
            store.load("x" * 80)
        assert (len(told), len(caplog.records)) == (100, 5)
        now += 61
        store.load("x" * 80)
    assert "95 more were not logged" in caplog.records[5].getMessage()


def test_a_static_file_makes_no_session() -> None:
    app = Flask(__name__, static_folder=".", static_url_path="/static")
    Sessions(app, MemorySessionStore(SECRETS))

    @app.before_request
    def counts() -> None:
        session["seen"] = True

    client = app.test_client()
    assert "Set-Cookie" not in client.get("/static/test_sessions_limits.py").headers
    assert "Set-Cookie" in client.get("/").headers


@pytest.mark.parametrize("packed", [b"\x81\xc0\x01", b"\xd4\x05a"], ids=["a key that is nil", "an extension"])
def test_msgpack_that_json_cannot_say_is_a_damaged_field(packed: bytes) -> None:
    with pytest.raises(Undecodable):
        Codec(Keyring(SECRETS), bytes).open("key", ".field", b"\x01" + packed)


@pytest.mark.parametrize("format", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (math.nan, "NaN or infinite"),
        ({"deep": [None, 1.5, -math.inf]}, "NaN or infinite"),
        ("half of \ud83d", "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        (object(), "unsupported"),
    ],
    ids=["nan", "infinity", "text", "key", "object"],
)
def test_what_would_not_come_back_is_refused_by_name(
    format: Literal["json", "msgpack"], value: Any, why: str
) -> None:
    store = MemorySessionStore(SECRETS, format=format)
    mine = store.new()
    mine["good"] = [None, 1.5, "\U0001f642", 2**63]
    mine.save()
    mine["price"] = value
    with pytest.raises(NotStorable, match=f"'price'.*{why}"):
        mine.save()
    with pytest.raises(NotStorable, match=f"'price'.*{why}"):
        mine.login("anna")
    del mine["price"]
    with pytest.raises(NotStorable, match=f"'list'.*{why}"):
        mine.append("list", value)
    mine.login("anna")
    assert dict(store.load(mine.cookie)) == {"good": [None, 1.5, "\U0001f642", 2**63]}


def test_names_that_are_no_text_are_refused() -> None:
    store = MemorySessionStore(SECRETS)
    mine = store.new()
    mine["\ud83d"] = 1
    with pytest.raises(NotStorable, match="surrogate"):
        mine.save()
    del mine["\ud83d"]
    with pytest.raises(NotStorable, match="'user_id'"):
        mine.login("\ud83d")
    assert mine.is_new and not store.memory.model.records
