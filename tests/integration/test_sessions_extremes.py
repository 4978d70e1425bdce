"""Records that nobody would make: numbers out of range, more fields than Lua can unpack."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_py
from servers import RedisNode

from shardproxy.sessions import Event, MemorySessionStore, SessionGone, SessionStore, SessionTooLarge

SECRETS = ["a secret of at least sixteen bytes"]


@pytest.fixture
def client(redis: RedisNode) -> Iterator[Any]:
    with redis_py.Redis(port=redis.port) as client:
        client.flushall()
        yield client


@pytest.mark.parametrize("digits", ["9" * 17, "9" * 400, "9" * 5000], ids=len)
@pytest.mark.parametrize("place", [1, 2, 3, 4, "v", "r"])
@pytest.mark.parametrize("where", ["redis", "memory"])
def test_a_record_with_numbers_out_of_range_is_a_damaged_one(
    client: Any, where: str, place: int | str, digits: str
) -> None:
    """No 503 for its visitor: an empty session, told as suspicious, and he can begin anew."""
    told: list[Event] = []
    store = (
        SessionStore(client, SECRETS, on_event=told.append)
        if where == "redis"
        else MemorySessionStore(SECRETS, on_event=told.append)
    )
    session = store.new()
    session["a"] = 1
    session.save()
    records = getattr(getattr(store, "memory", None), "model", None)
    key = f"s:{{{session._identity.tag}}}:{session._identity.hash}"  # type: ignore[union-attr]
    fields = records.records[key] if records else client.hgetall(key)
    if isinstance(place, int):
        parts = fields[b"m"].split(b" ")
        parts[place] = digits.encode()
        fields[b"m"] = b" ".join(parts)
    else:
        fields[place.encode()] = digits.encode()
    if not records:
        client.hset(key, mapping=fields)
    found = store.load(session.cookie)
    assert found.is_new and told[-1].kind == "suspicious" and "damaged" in told[-1].detail
    with pytest.raises(SessionGone):
        session.incr("a")
        session.save()
    found["b"] = 2
    found.save()
    assert dict(store.load(found.cookie)) == {"b": 2}


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
