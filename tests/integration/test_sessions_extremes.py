"""Records that nobody would make: damaged ones, more fields than Lua can unpack."""

import contextlib
from typing import Any

import pytest

from shardproxy.core.sessions.records import META, POINTER
from shardproxy.sessions import (
    MemorySessionStore,
    SessionGone,
    SessionStore,
    SessionTooLarge,
    SessionUnavailable,
)

SECRETS = ["a secret of at least sixteen bytes"]


def damages(meta: bytes) -> dict[str, bytes]:
    """What a record may say of itself, and no store has written."""
    return {
        "nothing": b"",
        "cut off": meta[:-1],
        "half": meta[: len(meta) // 2],
        "zeros": bytes(len(meta)),
        "the largest numbers": b"\xff" * len(meta),
        "the largest numbers, of our schema": meta[:1] + b"\xff" * (len(meta) - 1),
        "text": meta[:1] + b"9" * 5000,
        "as releases before had it": b"1 1795751736142 28800000 1800000 900000 a",
    }


@pytest.mark.parametrize("damage", [b"zz zz", b"\xff\xff", b" ", b"A" * 33, b"A" * 24 + b" " + b"\xff" * 8])
def test_an_old_id_that_leads_nowhere_is_no_503(client: Any, damage: bytes) -> None:
    """An empty session for its visitor, who can begin anew."""
    store = SessionStore(client, SECRETS)
    session = store.new()
    session["a"] = 1
    session.save()
    old = store.load(session.cookie)
    session.renew()
    (pointer,) = (key for key in client.keys("s:*") if client.hexists(key, POINTER))
    client.hset(pointer, POINTER, damage)
    found = store.load(old.cookie)
    assert found.is_new and not found and store.counters["suspicious"] == 1
    found["b"] = 2
    found.save()
    assert store.load(found.cookie)["b"] == 2 and store.load(session.cookie)["a"] == 1


@pytest.mark.parametrize("damage", damages(b""))
@pytest.mark.parametrize("where", ["redis", "memory"])
def test_a_record_that_says_nonsense_of_itself_is_no_503(client: Any, where: str, damage: str) -> None:
    """An empty session for its visitor, who can begin anew; or one that still can be used and ended."""
    redis = where == "redis"
    store = SessionStore(client, SECRETS) if redis else MemorySessionStore(SECRETS)
    session = store.new()
    session["a"] = 1
    session.save()
    (key,) = (
        client.keys("s:*") if redis else store.memory.model.records  # type: ignore[attr-defined]  # in memory
    )
    meta = client.hget(key, META) if redis else store.memory.model.records[key][b"\0"]  # type: ignore[attr-defined]
    bad = damages(meta)[damage]
    if redis:
        client.hset(key, META, bad)
    else:
        store.memory.model.records[key][b"\0"] = bad  # type: ignore[attr-defined]
    found = store.load(session.cookie)
    assert not found or dict(found) == {"a": 1}
    assert found.user_id is None
    with contextlib.suppress(SessionGone):
        session.incr("a")
        session.save()
    found["b"] = 2
    found.renew()
    assert store.load(found.cookie)["b"] == 2
    store.load(session.cookie).destroy()
    assert store.load(session.cookie).is_new


@pytest.mark.parametrize("options", [{}, {"encrypt": True}], ids=["plain", "encrypted"])
def test_any_number_of_fields_is_renewed_and_logged_in(client: Any, options: dict[str, Any]) -> None:
    """Requests in parallel can make more than one may; Lua's unpack takes some 4000."""
    store = SessionStore(client, SECRETS, **options)
    first = store.new()
    first["n"] = 0
    first.save()
    parallel = [store.load(first.cookie) for _ in range(6)]
    for number, session in enumerate(parallel):
        session.update({f"{number}.{each}": each for each in range(900)})
    for session in parallel:
        session.save()
    all_of_it = store.load(first.cookie)
    assert len(all_of_it) == 5401
    all_of_it.renew()
    assert len(store.load(all_of_it.cookie)) == 5401
    all_of_it.login("anna")
    assert len(store.load(all_of_it.cookie)) == 5401
    all_of_it["one more"] = 1
    with pytest.raises(SessionTooLarge):
        all_of_it.save()


def test_releases_side_by_side(client: Any) -> None:
    """What a newer release has put beside it stays; a record that it has written otherwise is left alone."""
    store = SessionStore(client, SECRETS)
    session = store.new()
    session["a"] = 1
    session.save()
    (key,) = client.keys("s:*")
    client.hset(key, "\0z", "of a newer release")
    session = store.load(session.cookie)
    assert dict(session) == {"a": 1}
    session["b"] = 2
    session.renew()
    (fresh,) = (each for each in client.keys("s:*") if each != key)
    assert client.hget(fresh, "\0z") == b"of a newer release"
    meta = client.hget(fresh, META)
    client.hset(fresh, META, bytes([meta[0] + 1]) + meta[1:])
    before = client.hgetall(fresh)
    with pytest.raises(SessionUnavailable, match="newer release"):
        store.load(session.cookie)
    after = client.hgetall(fresh)
    for fields in (before, after):
        del fields[b"\0g"]  # since when its id is known to have arrived
    assert after == before
