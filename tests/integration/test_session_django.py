"""What only Django has: its auth, which says who is logged in, expiry in its words, system checks."""

from typing import Any

import httpx
import pytest
import webapps
from webapps import SECRETS
from webdrive import browser

from shardproxy.sessions import AsyncMemorySessionStore, MemorySessionStore


def django_browser(store: MemorySessionStore, **options: Any) -> httpx.Client:
    return browser(webapps.django_app(store, **options))


def test_djangos_user_is_the_shared_one() -> None:
    store = MemorySessionStore(SECRETS)
    with django_browser(store) as client:
        client.get("/login?_user=1")
        assert client.get("/show?_name").json() == {"user": "1", "data": {}, "name": "ann"}
        elsewhere = store.load(client.cookies["__Host-id"])
        assert elsewhere.user_id == "1" and elsewhere["_auth_user_id"] == "1"
        elsewhere.login("2")  # in another framework
        client.cookies.set("__Host-id", str(elsewhere.cookie), domain="shop.example")
        assert client.get("/show?_name").json()["name"] == "bob"


def test_who_is_logged_in_elsewhere_is_so_in_django_and_its_password_counts() -> None:
    webapps.set_up_django()
    from django.contrib.auth import get_user_model

    store = MemorySessionStore(SECRETS)
    session = store.new()
    session.login("2")
    with django_browser(store) as client:
        client.cookies.set("__Host-id", str(session.cookie), domain="shop.example")
        assert client.get("/show?_name").json() == {"user": "2", "data": {}, "name": "bob"}
        bob = get_user_model().objects.get(pk=2)
        bob.set_password("another")
        bob.save()
        gone = client.get("/show?_name")
        assert gone.json()["name"] == "" and gone.headers["clear-site-data"]
        assert store.load(session.cookie).user_id is None, "nowhere else either"


@pytest.mark.parametrize("user_id", ["77", "no number", "\x00", "9" * 40])
def test_a_user_whom_django_does_not_know_is_nobody_there(user_id: str) -> None:
    store = MemorySessionStore(SECRETS)
    session = store.new()
    session.login(user_id)
    with django_browser(store) as client:
        client.cookies.set("__Host-id", str(session.cookie), domain="shop.example")
        assert client.get("/show?_name").json() == {"user": user_id, "data": {}, "name": ""}
        client.get("/set?a=1")
        assert client.get("/show").json() == {"user": user_id, "data": {"a": "1"}}, "and still is somebody"


def test_keys_of_djangos_auth_in_an_anonymous_session_are_no_login() -> None:
    store = MemorySessionStore(SECRETS)
    webapps.set_up_django()
    from django.contrib.auth import get_user_model

    ann = get_user_model().objects.get(pk=1)
    session = store.new()
    session.update(
        {
            "_auth_user_id": "1",
            "_auth_user_backend": "django.contrib.auth.backends.ModelBackend",
            "_auth_user_hash": ann.get_session_auth_hash(),
        }
    )
    session.save()
    with django_browser(store) as client:
        client.cookies.set("__Host-id", str(session.cookie), domain="shop.example")
        assert client.get("/show?_name").json() == {"user": None, "data": {}, "name": ""}


def django_engine(store: MemorySessionStore) -> Any:
    webapps.set_up_django()
    from django.conf import settings

    from shardproxy.sessions.django import SessionStore

    settings.SHARDPROXY_SESSIONS = {"STORE": store}
    return SessionStore


def test_django_without_its_auth() -> None:
    store = MemorySessionStore(SECRETS)
    engine = django_engine(store)
    session = engine()
    session["a"] = 1
    session.login("x")
    again = engine(session.session_key)
    assert (again.user_id, again["a"]) == ("x", 1)
    again["a"] = 2
    again.save()
    assert engine(session.session_key).user_id == "x"


def test_set_expiry() -> None:
    now = [1_000_000.0]
    store = MemorySessionStore(SECRETS)
    store.memory.clock = lambda: now[0]
    engine = django_engine(store)
    from datetime import timedelta

    # seconds without a request, within the absolute timeout; or until then, whatever happens
    for value, lives, idle in ((60, 60, True), (timedelta(seconds=90), 90, False), (10**6, 10**6, False)):
        session = engine()
        session["a"] = 1
        session.set_expiry(value)
        session.save()
        assert session.bound.expires_in == pytest.approx(lives, abs=1)
        now[0] += lives * 0.7
        again = engine(session.session_key)
        assert again["a"] == 1
        again["b"] = 2
        again.save()
        now[0] += lives * 0.7
        assert ("a" in engine(session.session_key)) is idle
        now[0] += lives * 1.1
        assert "a" not in engine(session.session_key)


def test_cycle_key_is_a_renewal_and_flush_the_end() -> None:
    store = MemorySessionStore(SECRETS)
    engine = django_engine(store)
    session = engine()
    session["a"] = 1
    session.save()
    old = session.session_key
    session.cycle_key()
    assert session.session_key != old and not engine().exists(old)
    assert store.load(old)["a"] == 1, "a parallel request may still come with it"
    session.flush()
    assert session.session_key is None and not store.load(old) and session.bound.is_new


def test_taking_the_auth_keys_away_by_hand_is_a_logout() -> None:
    store = MemorySessionStore(SECRETS)
    with django_browser(store) as client:
        client.get("/login?_user=1")
        client.get("/set?a=1")
        old = client.cookies["__Host-id"]
        engine = django_engine(store)(old)
        for name in ("_auth_user_id", "_auth_user_backend", "_auth_user_hash"):
            del engine[name]
        engine.save()
        assert store.load(old).is_new
        left = store.load(engine.session_key)
        assert (left.user_id, dict(left)) == (None, {"a": "1"})


@pytest.mark.parametrize(
    ("changed", "ids"),
    [
        ({}, set()),
        ({"SESSION_ENGINE": "django.contrib.sessions.backends.db"}, {"E001"}),
        ({"MIDDLEWARE": ["django.contrib.sessions.middleware.SessionMiddleware"]}, {"E002"}),
        ({"MIDDLEWARE": []}, {"E003"}),
        ({"SHARDPROXY_SESSIONS": {}}, {"E004"}),
        ({"SHARDPROXY_SESSIONS": {"STORE": "no.such.store"}}, {"E004"}),
        ({"SHARDPROXY_SESSIONS": {"STORE": object()}}, {"E004"}),
        ({"SHARDPROXY_SESSIONS": {"STORE": MemorySessionStore(), "STROE": 1}}, {"E004"}),
        ({"SHARDPROXY_SESSIONS": {"STORE": MemorySessionStore(), "COOKIE": {"domain": "x"}}}, {"E004"}),
        ({"SHARDPROXY_SESSIONS": {"STORE": MemorySessionStore(), "TRUSTED_PROXIES": ["x"]}}, {"E004"}),
        ({"SHARDPROXY_SESSIONS": {"STORE": MemorySessionStore(SECRETS),
                                  "ASYNC_STORE": AsyncMemorySessionStore()}}, {"E005"}),
        ({"SESSION_COOKIE_NAME": "sid", "SESSION_COOKIE_AGE": 60}, {"W001"}),
    ],
)  # fmt: skip
def test_system_checks(changed: dict[str, Any], ids: set[str]) -> None:
    webapps.set_up_django()
    from django.test.utils import override_settings

    from shardproxy.sessions.django_settings import check_settings

    with override_settings(**{"SHARDPROXY_SESSIONS": {"STORE": MemorySessionStore()}, **changed}):
        assert {each.id.partition(".")[2] for each in check_settings()} == ids
