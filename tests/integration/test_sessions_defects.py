"""What went wrong in other session stores, as scenarios: the numbers are issues of the projects named.

docs/sessions.md has the table of who fails what; here is that this store does not.
"""

import threading
from typing import Any

import pytest
import redis as redis_py
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import RedisNode

from shardproxy.core.sessions.records import META, Meta
from shardproxy.sessions import SessionGone, SessionStore, SessionUnavailable, Timeouts

SECRETS = ["a secret of at least sixteen bytes"]


@pytest.fixture
def store(client: Any) -> SessionStore:
    return SessionStore(client, SECRETS)


def signed_in(store: SessionStore, user: str = "42", **fields: Any) -> Any:
    session = store.load(None)
    session.update(fields)
    session.login(user)
    return session


def forget_everything(client: Any, pattern: str) -> None:
    for key in client.keys(pattern):
        client.delete(key)


def test_a_late_save_does_not_bring_a_session_back(store: SessionStore, client: Any) -> None:
    """starsessions #58, express-session #632, connect-redis #328, vertx-web #2771."""
    session = signed_in(store, cart=[1])
    late = store.load(session.cookie)
    late["cart"].append(2)
    store.load(session.cookie).destroy()
    with pytest.raises(SessionGone):
        late.save()
    with pytest.raises(SessionGone):
        late.renew()
    assert store.load(session.cookie).is_new
    (mark,) = client.keys("s:*")  # that it has ended, for the requests that are on their way
    assert client.hgetall(mark) == {b"\0p": b""} and 0 < client.ttl(mark) <= 10


def test_no_ghosts_without_a_ttl(store: SessionStore, client: Any) -> None:
    """spring-session #2021, #2809, #3347: a write after expiry left a hash without creation time and TTL."""
    session = signed_in(store)
    late = store.load(session.cookie)
    forget_everything(client, "s:*")  # as if expired
    late["x"] = 1
    with pytest.raises(SessionGone):
        late.save()
    assert not client.keys("s:*") and all(client.pttl(key) > 0 for key in client.keys("*"))


def test_parallel_requests_lose_nothing(store: SessionStore) -> None:
    """flask-session #71, #193, connect-redis #75, spring-session #1471: the last writer won, of the whole."""
    session = signed_in(store, keep=1, gone=1)
    requests = [store.load(session.cookie) for _ in range(10)]
    for number, request in enumerate(requests):
        request[f"field{number}"] = number
        request.append("log", number)
        request.incr("n")
    del requests[0]["gone"]
    threads = [threading.Thread(target=request.save) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = dict(store.load(session.cookie))
    assert sorted(found.pop("log")) == list(range(10))
    assert found == {"keep": 1, "n": 10, **{f"field{number}": number for number in range(10)}}


def test_a_change_inside_a_value_is_noticed(store: SessionStore) -> None:
    """flask-session #73, spring-session #311, #3285."""
    session = signed_in(store, mine={"prefs": {"tags": []}})
    request = store.load(session.cookie)
    request["mine"]["prefs"]["tags"].append("x")
    request.save()
    assert store.load(session.cookie)["mine"] == {"prefs": {"tags": ["x"]}}


def test_an_id_that_was_never_given_out_is_not_taken_over(store: SessionStore, client: Any) -> None:
    """starsessions: an unknown id was adopted (fixation)."""
    elsewhere = SessionStore(redis_py.Redis(port=1), SECRETS, check=False)  # knows the secret, not the Redis
    planted = elsewhere.rules.keyring
    from shardproxy.core.sessions.keyring import Identity, text

    cookie = planted.cookie(Identity(planted.newest, text(bytes(15)), bytes(32)))
    session = store.load(cookie)
    session["x"] = 1
    session.save()
    assert session.cookie != cookie and store.load(cookie).is_new


def test_a_planted_id_never_sees_the_user(store: SessionStore) -> None:
    """Fixation: polled through the login, without a pause."""
    victim = store.load(None)
    victim["lang"] = "en"
    victim.save()
    planted, seen, stop = victim.cookie, [], threading.Event()

    def poll() -> None:
        while not stop.is_set():
            session = store.load(planted)
            seen.append((session.user_id, dict(session)))

    threads = [threading.Thread(target=poll) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        request = store.load(victim.cookie)
        request["secret"] = "only for the user"
        request.login("42")
        victim = request
    stop.set()
    for thread in threads:
        thread.join()
    assert {user for user, _ in seen} == {None}
    assert all("secret" not in fields for _, fields in seen)
    assert store.load(planted).is_new, "dead when login returns"


def test_parallel_requests_at_a_renewal_stay_logged_in(store: SessionStore) -> None:
    """express-session #923: of two at a rotation one was logged out; spring-session #1684, #1646: RENAME."""
    session = signed_in(store)
    requests = [store.load(session.cookie) for _ in range(8)]
    threads = [threading.Thread(target=request.renew) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({request.cookie for request in requests}) == 1
    assert requests[0].cookie != session.cookie
    late = store.load(session.cookie)  # its browser has not seen the new id
    assert late.user_id == "42" and late.cookie == requests[0].cookie and late.cookie_changed


def test_the_old_id_ends_a_grace_after_the_new_one_was_seen(client: Any) -> None:
    store = SessionStore(client, SECRETS, grace=0)
    session = signed_in(store)
    old = session.cookie
    request = store.load(old)
    request.renew()
    assert store.load(old).user_id == "42" and store.load(old).user_id == "42", "nobody has the new one yet"
    assert store.load(request.cookie).user_id == "42"
    client.execute_command("DEBUG", "SLEEP", "0.002")
    assert store.load(old).is_new and store.load(request.cookie).user_id == "42"


def test_absolute_and_idle_timeouts_both_hold(client: Any) -> None:
    """spring-session #922 (won't fix), #1454, #3379: no absolute timeout."""
    store = SessionStore(
        client, SECRETS, classes={"signed_in": Timeouts(idle=1000, absolute=1500, renewal=500)}
    )
    session = signed_in(store)
    record = client.keys("s:*")[0]
    assert 900_000 < client.pttl(record) <= 1_000_000
    meta = Meta.parse(client.hget(record, META))
    client.hset(record, META, meta._replace(created=meta.created - 900_000).pack())
    client.pexpire(record, 100_000)
    assert store.load(session.cookie).expires_in == pytest.approx(600, abs=60), "what is left of the absolute"
    client.hset(record, META, meta._replace(created=meta.created - 1_500_001).pack())
    assert store.load(session.cookie).is_new and not client.exists(record)


def test_a_reader_writes_once_in_a_tenth_of_idle(store: SessionStore, client: Any) -> None:
    """express-session #891, spring-session #1182: every read was a write."""
    session = signed_in(store)
    before = writes(client)
    for _ in range(20):
        store.load(session.cookie).save()
    assert writes(client) == before
    client.pexpire(client.keys("s:*")[0], 1_600_000)
    for _ in range(20):
        store.load(session.cookie).save()
    assert client.pttl(client.keys("s:*")[0]) > 1_700_000


def writes(client: Any) -> int:
    stats = client.info("commandstats")
    return sum(
        row["calls"]
        for name, row in stats.items()
        if name.removeprefix("cmdstat_") in ("hset", "pexpireat", "zadd", "hincrby", "set", "del")
    )


def test_the_index_does_not_leak(client: Any) -> None:
    """spring-session #1118, #2230, #1791, #1843: entries of sessions long gone stayed for ever."""
    store = SessionStore(client, SECRETS)
    for _ in range(5):
        signed_in(store)
    index = client.keys("u:*")[0]
    assert client.zcard(index) == 6 and 0 < client.pttl(index) <= 1_801_000
    members = client.zrange(index, 1, 3)  # as if they had expired
    client.zadd(index, dict.fromkeys(members, 1))
    signed_in(store)
    assert client.zcard(index) == 4 and len(store.list_sessions("42")) == 3
    for session in store.list_sessions("42"):
        assert store.revoke(session.handle)
    assert client.zcard(index) == 1 and store.list_sessions("42") == []


def test_without_its_index_no_session_lives(store: SessionStore, client: Any) -> None:
    """A node that lost part of what it had must not leave sessions that nobody can revoke."""
    session = signed_in(store)
    forget_everything(client, "u:*")
    assert store.load(session.cookie).is_new


def test_an_entry_or_an_epoch_that_is_gone_ends_the_session(store: SessionStore, client: Any) -> None:
    """What `u` says counts, whatever records say."""
    session, other = signed_in(store), signed_in(store)
    index = client.keys("u:*")[0]
    [member] = [each for each in client.zrange(index, 1, -1) if each.startswith(session.handle[20:].encode())]
    client.zrem(index, member)
    assert store.load(session.cookie).is_new and store.load(other.cookie).user_id == "42"
    client.zincrby(index, -1, "e")  # the epoch, plus one
    assert store.load(other.cookie).is_new


@pytest.mark.parametrize("options", [{}, {"encrypt": True}, {"format": "msgpack"}])
def test_counting_in_parallel_adds_up(client: Any, options: dict[str, Any]) -> None:
    """What a script cannot read is counted with a version check, and again."""
    store = SessionStore(client, SECRETS, **options)
    session = signed_in(store, n=1)
    one, two, three = (store.load(session.cookie) for _ in range(3))
    for request in (one, two, three):
        request.incr("n", 10)
        request.append("log", "x")
        request["mine"] = request.handle
    one.save(), two.renew(), three.save()
    assert dict(store.load(three.cookie)) == {"n": 31, "log": ["x"] * 3, "mine": one.handle}
    assert three["n"] == 31 and three["log"] == ["x"] * 3


def test_who_was_overtaken_by_a_renewal_can_renew_again(store: SessionStore) -> None:
    session = signed_in(store)
    one, two = store.load(session.cookie), store.load(session.cookie)
    one.renew()
    two["x"] = 1
    two.save()
    two.renew()
    assert len({session.cookie, one.cookie, two.cookie}) == 3
    for cookie in (session.cookie, one.cookie, two.cookie):
        assert dict(store.load(cookie)) == {"x": 1} and store.load(cookie).cookie == two.cookie


class Twice:
    """A client that hears no first answer, and sends again: redis-py does so when a connection breaks."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def execute_command(self, *args: Any, **options: Any) -> Any:
        self.client.execute_command(*args, **options)
        return self.client.execute_command(*args, **options)


@pytest.mark.parametrize("options", [{}, {"encrypt": True}, {"format": "msgpack"}])
def test_what_a_client_sends_twice_is_done_once(client: Any, options: dict[str, Any]) -> None:
    other = SessionStore(client, SECRETS, **options)
    warm = other.load(None)  # the node knows the scripts, as a NOSCRIPT is no answer to lose
    warm.update(n=1, log=[1])
    warm.login("7")
    warm.incr("n")
    warm.save(optimistic=True)
    warm.renew()
    warm.destroy()
    store = SessionStore(Twice(client), SECRETS, **options)
    session = store.load(None)
    session["n"], session["log"] = 1, []
    session.save()
    session.login("42")
    session.incr("n")
    session.append("log", "x")
    session.save()
    assert dict(store.load(session.cookie)) == {"n": 2, "log": ["x"]} == dict(session)
    session["seen"] = True
    session.save(optimistic=True)
    request = store.load(session.cookie)
    request.incr("n")
    request.renew()
    found = store.load(request.cookie)
    assert dict(found) == {"n": 3, "log": ["x"], "seen": True} and found.cookie == request.cookie
    assert store.load(session.cookie).cookie == request.cookie and len(store.list_sessions("42")) == 1
    found.destroy()
    assert store.load(request.cookie).is_new and not client.zrange(client.keys("u:*")[0], 1, -1)


def test_an_outage_is_no_logout(client: Any, redis: RedisNode) -> None:
    """Django's cache sessions: any exception on load was an empty session, and the next save a logout."""
    with RedisNode() as node:
        patient = redis_py.Redis(port=node.port)
        hasty = redis_py.Redis(port=node.port, socket_timeout=0.2, retry=Retry(NoBackoff(), 0))
        store = SessionStore(patient, SECRETS)
        strict, lenient = (
            SessionStore(hasty, SECRETS, fail=fail, check=False) for fail in ("error", "anonymous")
        )
        session = signed_in(store, cart=[1])
        node.pause()
        with pytest.raises(SessionUnavailable):
            strict.load(session.cookie)
        blind = lenient.load(session.cookie)
        assert blind.unavailable and not blind and not blind.cookie_changed and blind.user_id is None
        blind.save()
        for write in (lambda: blind.update(x=1), lambda: blind.login("42"), blind.destroy, blind.renew):
            with pytest.raises(SessionUnavailable):
                write()
        node.resume()
        assert store.load(session.cookie)["cart"] == [1]


def test_logout_works_on_a_full_node(store: SessionStore, client: Any) -> None:
    session, other, third = signed_in(store), signed_in(store), signed_in(store, "7")
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(SessionUnavailable):
            signed_in(store)
        request = store.load(session.cookie)
        request["x"] = 1
        with pytest.raises(SessionUnavailable):
            request.save()
        request.destroy()
        assert store.load(session.cookie).is_new
        assert store.revoke(other.handle) and store.load(other.cookie).is_new
        store.revoke_all("7")
        assert store.load(third.cookie).is_new
    finally:
        client.config_set("maxmemory", 0)


def test_a_session_that_was_revoked_stays_so_on_a_node_with_old_data(
    store: SessionStore, client: Any
) -> None:
    """A node that comes back with an old record: the epoch has gone on."""
    session = signed_in(store)
    record = client.keys("s:*")[0]
    old, ttl = client.dump(record), client.pttl(record)
    store.revoke_all("42")
    client.restore(record, ttl, old)
    assert store.load(session.cookie).is_new
    fresh = signed_in(store)
    client.restore(record, ttl, old)
    assert store.load(session.cookie).is_new and store.load(fresh.cookie).user_id == "42"


def test_two_records_cannot_be_swapped(client: Any) -> None:
    """starsessions: encrypted without binding, who can write Redis swaps two users' sessions."""
    for options in ({"encrypt": True}, {}):
        client.flushall()
        store = SessionStore(client, SECRETS, **options)
        mine, other = signed_in(store, "7", a="mine"), signed_in(store, "42", a="theirs")
        keys = [store.rules.keys(each._identity)[0] for each in (mine, other)]
        fields = client.hgetall(keys[1])
        if not options:
            client.hset(keys[0], mapping=fields)
            assert store.load(mine.cookie).user_id != "42"
            continue
        client.hset(keys[0], "a", fields[b"a"])
        assert store.load(mine.cookie).is_new and store.counters["suspicious"] == 1


def test_records_are_no_pickles_and_ids_are_not_in_redis(store: SessionStore, client: Any) -> None:
    """All five: who could list keys owned every session; flask-session, Django, Spring: code in records."""
    session = signed_in(store, a={"b": [1, None, "x"]})
    record = client.keys("s:*")[0]
    assert client.hget(record, "a") == b'{"b":[1,null,"x"]}'
    id = session._identity.id
    for key in client.keys("*"):
        everything = key + client.dump(key)
        assert id not in everything and session.cookie[20:40].encode() not in everything
    with pytest.raises(TypeError):
        session["x"] = object()
        session.save()
