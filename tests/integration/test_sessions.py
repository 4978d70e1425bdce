"""The session store on a real Redis, and the same tests on the one in memory."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_py
import redis.asyncio as redis_async
from servers import RedisNode

from shardproxy.sessions import (
    AsyncMemorySessionStore,
    AsyncSessionStore,
    MemorySessionStore,
    SessionGone,
    SessionStore,
    Timeouts,
)

SECRETS = ["a secret of at least sixteen bytes"]


@pytest.fixture(params=["redis", "memory"])
def make(request: pytest.FixtureRequest, redis: RedisNode) -> Iterator[Any]:
    """make(**options) → a store; all of a test share one place."""
    if request.param == "memory":
        first = MemorySessionStore(SECRETS)
        yield lambda secrets=SECRETS, **options: MemorySessionStore(secrets, memory=first.memory, **options)
        return
    with redis_py.Redis(port=redis.port) as client:
        client.flushall()
        yield lambda secrets=SECRETS, **options: SessionStore(client, secrets, **options)


def again(store: SessionStore, session: Any) -> Any:
    """The session as the next request has it."""
    return store.load(session.cookie)


def test_create_load_save_destroy(make: Any) -> None:
    store = make()
    session = store.load(None)
    assert session.is_new and not session and session.cookie is None
    session.save()
    assert session.is_new and not session.cookie_changed, "nothing is stored before data is"
    session["cart"] = ["book"]
    session["count"] = 1
    session.save()
    assert session.cookie_changed and session.handle
    other = again(store, session)
    assert dict(other) == {"cart": ["book"], "count": 1} and not other.cookie_changed and not other.modified
    other["cart"].append("pen")
    assert other.modified
    third = again(store, session)
    third["count"] = 5
    del third["cart"]
    third["new"] = {"a": None}
    other.save()
    third.save()
    assert dict(again(store, session)) == {"count": 5, "new": {"a": None}}
    late = again(store, session)
    again(store, session).destroy()
    late["count"] = 9
    with pytest.raises(SessionGone):
        late.save()
    gone = again(store, session)
    assert gone.is_new and not gone and not gone.cookie_changed


def test_login_leaves_nothing_of_the_old_id(make: Any) -> None:
    store = make()
    session = store.load(None)
    session["cart"] = [1]
    session.save()
    old = session.cookie
    session.login("42")
    assert session.cookie != old and session.user_id == "42"
    assert store.load(old).is_new
    now = again(store, session)
    assert now.user_id == "42" and now["cart"] == [1] and now.authenticated_at == now.created_at
    assert [each.handle for each in store.list_sessions("42")] == [now.handle]
    second = store.load(None)
    second.login("42")
    assert store.revoke_all("42", except_=now) == 1
    assert again(store, second).is_new and again(store, now).user_id == "42"
    assert store.revoke(now.handle)
    assert again(store, now).is_new and store.list_sessions("42") == []


def test_parallel_renewals_agree(make: Any) -> None:
    store = make()
    session = store.load(None)
    session.login("42")
    first, second = again(store, session), again(store, session)
    first["a"], second["b"] = 1, 2
    first.renew()
    second.renew()
    assert first.cookie == second.cookie != session.cookie
    by_old = store.load(session.cookie)
    assert dict(by_old) == {"a": 1, "b": 2} and by_old.cookie == first.cookie and by_old.cookie_changed
    assert by_old.handle == session.handle
    again(store, session).destroy()
    assert again(store, first).is_new and again(store, session).is_new


def test_incr_and_append_add_up(make: Any) -> None:
    store = make()
    session = store.load(None)
    session.incr("n")
    session.append("log", "a")
    session.save()
    one, two = again(store, session), again(store, session)
    one.incr("n", 2), two.incr("n", 3)
    one.append("log", "b"), two.append("log", "c")
    one.save(), two.save()
    assert dict(two) == {"n": 6, "log": ["a", "b", "c"]}
    assert dict(again(store, session)) == dict(two)


def test_timeouts_of_one_session(make: Any) -> None:
    store = make()
    session = store.load(None)
    session.login("42")
    session.set_timeouts(Timeouts(idle=60, absolute=90, renewal=30))
    session.save()
    assert again(store, session).expires_in == pytest.approx(60, abs=5)
    session.set_timeouts(Timeouts(idle=7200, absolute=7200))
    session.save()
    request = again(store, session)
    assert request.expires_in == pytest.approx(7200, abs=5) and not request.renewal_due
    request.renew()
    assert again(store, request).expires_in == pytest.approx(7200, abs=5)
    assert again(store, request).user_id == "42"


def test_ending_the_others_by_an_id_that_was_just_renewed(make: Any) -> None:
    store = make()
    session = store.load(None)
    session.login("42")
    other = store.load(None)
    other.login("42")
    request, parallel = again(store, session), again(store, session)
    parallel.renew()
    assert store.revoke_all("42", except_=request) == 1
    assert again(store, other).is_new and again(store, parallel).user_id == "42"
    request.destroy()
    assert again(store, parallel).is_new


def test_a_step_up_is_another_session_of_the_same_user(make: Any) -> None:
    store = make()
    session = store.load(None)
    session["a"] = 1
    session.login("42")
    request, late = again(store, session), again(store, session)
    late["b"] = 2
    late.save()
    request["c"] = 3
    request.login("42")
    assert dict(again(store, request)) == {"a": 1, "b": 2, "c": 3}
    assert again(store, session).is_new and len(store.list_sessions("42")) == 1
    request.login("7")
    assert again(store, request).user_id == "7" and not again(store, request)
    assert store.list_sessions("42") == []


def test_app_servers_clocks_do_not_matter(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    session = store.load(None)
    session.login("42")
    if isinstance(store, MemorySessionStore):
        return  # one process, one clock
    for skew in (-(10**9), 10**9):
        now = time.time()
        monkeypatch.setattr(time, "time", lambda now=now, skew=skew: now + skew)
        request = again(store, session)
        assert request.user_id == "42" and request.expires_in == pytest.approx(1800, abs=5)
        request["x"] = skew
        request.save()
        monkeypatch.undo()
    assert again(store, session)["x"] == 10**9


@pytest.mark.parametrize("where", ["redis", "memory"])
async def test_the_same_awaited(where: str, redis: RedisNode) -> None:
    client = redis_async.Redis(port=redis.port)
    store = AsyncSessionStore(client, SECRETS) if where == "redis" else AsyncMemorySessionStore(SECRETS)
    session = await store.load(None)
    session["cart"] = ["book"]
    await session.save()
    one, two = await asyncio.gather(store.load(session.cookie), store.load(session.cookie))
    one["a"], two["b"] = 1, 2
    await asyncio.gather(one.save(), two.save())
    assert dict(await store.load(session.cookie)) == {"cart": ["book"], "a": 1, "b": 2}
    await one.login("async")
    assert (await store.load(session.cookie)).is_new
    now = await store.load(one.cookie)
    assert now.user_id == "async" and len(await store.list_sessions("async")) == 1
    await now.destroy()
    assert await store.list_sessions("async") == [] and not await one.alive()
    await client.aclose()
