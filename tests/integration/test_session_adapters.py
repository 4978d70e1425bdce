"""Every adapter, over a Redis and in memory: what its users count on, item by item.

The same app in each framework (tests/webapps.py), asked by a browser over no network (tests/webdrive.py).
What other requests do in the meantime runs inside a request, between its reading and its saving.
"""

import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import redis as redis_py
import redis.asyncio
import webapps
from servers import RedisNode, free_port
from webapps import SECRETS, afterwards, during
from webdrive import browser

from shardproxy.core.sessions.model import Model
from shardproxy.sessions import (
    AsyncMemorySessionStore,
    AsyncSessionStore,
    MemorySessionStore,
    SessionStore,
    SessionUnavailable,
    Timeouts,
)

FRAMEWORKS = ["fastapi", "flask", "django", "django_asgi", "wsgi"]


class Fresh:
    """A client of asyncio whose connections outlive no command: each browser has a loop of its own."""

    def __init__(self, port: int, **options: Any) -> None:
        self.port, self.options = port, options

    async def execute_command(self, *args: Any) -> Any:
        async with redis.asyncio.Redis(port=self.port, **self.options) as client:
            return await client.execute_command(*args)


class Place:
    """Where sessions are: two stores over it that block and await; `calls`: the scripts they have run."""

    def __init__(self, node: RedisNode | None, **options: Any) -> None:
        self.calls: list[str] = []
        self.broken = False
        self.client = redis_py.Redis(port=node.port) if node else None
        if node is not None:
            self.store: SessionStore = SessionStore(self.client, SECRETS, **options)
            self.async_store: AsyncSessionStore = AsyncSessionStore(Fresh(node.port), SECRETS, **options)
        else:
            self.store = MemorySessionStore(SECRETS, **options)
            self.async_store = AsyncMemorySessionStore(SECRETS, **options)
            self.model: Model = self.store.memory.model
            self.async_store.memory.model = self.model
        run, arun = self.store._executor.run, self.async_store._executor.run

        def counted(call: Any) -> Any:
            self._count(call)
            return run(call)

        async def acounted(call: Any) -> Any:
            self._count(call)
            return await arun(call)

        self.store._executor.run = counted  # type: ignore[method-assign]
        self.async_store._executor.run = acounted  # type: ignore[method-assign]

    def _count(self, call: Any) -> None:
        if self.broken:
            raise SessionUnavailable("broken by the test")
        self.calls.append(call.script)

    def keys(self) -> int:
        if self.client is not None:
            return int(self.client.dbsize())
        return len(self.model.records) + len(self.model.indexes)

    def forget(self) -> None:
        """Everything expires."""
        if self.client is not None:
            self.client.flushall()
        else:
            self.model.records.clear()
            self.model.indexes.clear()

    def app(self, framework: str, **options: Any) -> dict[str, Any]:
        """As `browser` takes it."""
        if framework == "fastapi":
            return {"asgi": [webapps.fastapi_app(self.async_store, **options)]}
        if framework == "django_asgi":
            return {"asgi": [webapps.django_asgi_app(self.store, self.async_store, **options)]}
        return {"apps": [getattr(webapps, f"{framework}_app")(self.store, **options)]}

    def browser(self, framework: str, base_url: str = "https://shop.example", **options: Any) -> httpx.Client:
        made = self.app(framework, **options)
        return browser(*made.get("apps", ()), asgi=made.get("asgi", ()), base_url=base_url)


@pytest.fixture(params=["memory", "redis"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    node = None
    if request.param == "redis":
        node = request.getfixturevalue("redis")
        with redis_py.Redis(port=node.port) as client:
            client.flushall()
    made = Place(node)
    yield made
    during.clear(), afterwards.clear()
    if made.client is not None:
        made.client.close()


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def again(client: httpx.Client, framework: str, place: Place) -> httpx.Client:
    """Another window of the same browser: its cookies, as they are now."""
    other = place.browser(framework)
    other.cookies = httpx.Cookies(client.cookies)
    return other


def state(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


# --- cookies and headers ---


def test_nothing_is_stored_and_no_cookie_sent_before_there_is_data(place: Place, framework: str) -> None:
    with place.browser(framework) as client:
        for action in ("untouched", "show", "delete?a", "renew"):
            assert "set-cookie" not in client.get(f"/{action}").headers
        assert place.keys() == 0
        response = client.get("/set?a=1")
        assert "__Host-id=" in response.headers["set-cookie"] and place.keys() == 1
        assert state(client.get("/show")) == {"user": None, "data": {"a": "1"}}


def test_the_cookie_and_the_headers_beside_it(place: Place, framework: str) -> None:
    with place.browser(framework) as client:
        sent = client.get("/set?a=1").headers
        attributes = {part.strip().lower() for part in sent["set-cookie"].split(";")[1:]}
        assert attributes == {"path=/", "secure", "httponly", "samesite=lax"}
        assert (sent["cache-control"], sent["vary"]) == ("no-store", "Cookie")
        read = client.get("/show").headers
        assert (read["cache-control"], read["vary"]) == ("private", "Cookie") and "set-cookie" not in read
        own = client.get("/show?_cache=max-age%3D60").headers
        assert (own["cache-control"], own["vary"]) == ("max-age=60", "Cookie")
        untouched = client.get("/untouched").headers
        assert "vary" not in untouched and "cache-control" not in untouched
        login = client.get("/login?_user=1&_cache=public").headers
        assert login["cache-control"] == "no-store", "never a session id in a cache"
        logout = client.get("/logout").headers
        assert logout["clear-site-data"] == '"cache", "cookies", "storage"'
        assert "max-age=0" in logout["set-cookie"].lower() and not client.cookies


def test_over_http(place: Place, framework: str, caplog: pytest.LogCaptureFixture) -> None:
    """To a test host a cookie without Secure and one warning; from outside none, and one error."""
    app = place.app(framework)
    made = {"asgi": app.get("asgi", ()), "base_url": "http://localhost:8000"}
    with (
        caplog.at_level(logging.INFO, "shardproxy.sessions"),
        browser(*app.get("apps", ()), **made) as client,
    ):
        for value in "12":
            sent = client.get(f"/set?a={value}").headers.get("set-cookie", "")
        client.get("/login?_user=1")
        assert state(client.get("/show")) == {"user": "1", "data": {"a": "2"}} and not sent
        (warning,) = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert "__Host-id" in warning.message
        value = client.cookies["id"]
        keys = place.keys()
        for url in ("http://shop.example", "http://10.0.0.9", "http://[fd00::1]"):
            response = client.get(f"{url}/set?a=9", headers={"cookie": f"id={value}; __Host-id={value}"})
            assert response.status_code == 200 and "set-cookie" not in response.headers
            assert response.json() == {"user": None, "data": {"a": "9"}}
        assert place.keys() == keys
        (error,) = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert "trusted_proxies" in error.message
        secure = client.get("https://localhost/show", headers={"cookie": f"id={value}"})
        assert state(secure) == {"user": None, "data": {}}, "a cookie of http counts over https"


def test_behind_a_trusted_proxy(place: Place, framework: str) -> None:
    headers = {"x-forwarded-proto": "https"}
    with place.browser(framework, "http://shop.example") as client:
        assert "set-cookie" not in client.get("/set?a=1", headers=headers).headers, "anybody can say so"
    with place.browser(framework, "http://shop.example", trusted_proxies=["127.0.0.0/8", "::1"]) as client:
        sent = client.get("/set?a=1", headers=headers).headers["set-cookie"]
        assert sent.startswith(("__Host-id=", " __Host-id=")) and "secure" in sent.lower()


def test_subdomains_share_a_cookie(place: Place, framework: str) -> None:
    with place.browser(framework, "https://app.shop.example", cookie={"domain": "shop.example"}) as client:
        sent = client.get("/set?a=1").headers["set-cookie"].lower()
        assert "__secure-id=" in sent and "domain=shop.example" in sent
        assert state(client.get("https://other.shop.example/show")) == {"user": None, "data": {"a": "1"}}
        assert state(client.get("https://else.example/show")) == {"user": None, "data": {}}


# --- what is saved ---


def test_changes_are_found_inside_values_too(place: Place, framework: str) -> None:
    with place.browser(framework) as client:
        for item in ("tea", "cup"):
            client.get(f"/push?item={item}")
        assert state(client.get("/show"))["data"] == {"list": ["tea", "cup"]}
        client.get("/delete?list")
        assert state(client.get("/show"))["data"] == {}


@pytest.mark.parametrize("how", ["_status=500", "_status=503", "_raise"])
def test_a_5xx_skips_the_implicit_save_only(place: Place, framework: str, how: str) -> None:
    with place.browser(framework) as client:
        client.get("/set?a=1")
        assert client.get(f"/set?a=2&{how}").status_code >= 500
        assert state(client.get("/show"))["data"] == {"a": "1"}
        assert client.get(f"/save?b=3&{how}").status_code >= 500
        assert state(client.get("/show"))["data"] == {"a": "1", "b": "3"}
        planted = again(client, framework, place)
        assert client.get(f"/logout?{how}").status_code >= 500
        assert state(planted.get("/show")) == {"user": None, "data": {}}
        client.cookies.clear()
        if how != "_raise":  # the page of an exception is the server's, outside of some adapters
            client.get(f"/login?_user=1&{how}")
            assert state(client.get("/show"))["user"] == "1"


@pytest.mark.parametrize("status", [400, 404, 302])
def test_what_is_no_5xx_saves(place: Place, framework: str, status: int) -> None:
    with place.browser(framework) as client:
        client.get(f"/set?a=1&_status={status}")
        assert state(client.get("/show"))["data"] == {"a": "1"}


# --- requests at the same time ---


def meanwhile(
    client: httpx.Client, framework: str, place: Place, path: str, *others: str
) -> tuple[httpx.Response, list[httpx.Response]]:
    """Asks for `path`; while it runs, having read the session, others come with the same cookie and end."""
    # the one in between runs in a framework without a loop of its own
    window = again(client, "flask" if framework != "flask" else "wsgi", place)
    seen: list[httpx.Response] = []
    during.append(lambda: seen.extend(window.get(other) for other in others))
    response = client.get(path)
    assert len(seen) == len(others) and not during
    return response, seen


@pytest.mark.parametrize(
    ("path", "other", "left"),
    [
        ("/set?a=mine", "/set?b=theirs", {"a": "mine", "b": "theirs", "c": "0"}),
        ("/set?a=mine", "/set?a=theirs", {"a": "mine", "c": "0"}),
        ("/set?a=mine", "/delete?c", {"a": "mine"}),
        ("/delete?c", "/set?a=theirs", {"a": "theirs"}),
        ("/delete?c", "/set?c=theirs", {}),
        ("/set?c=mine", "/delete?c", {"c": "mine"}),
        ("/show", "/set?c=theirs", {"c": "theirs"}),
    ],
)
def test_parallel_requests_lose_nothing(
    place: Place, framework: str, path: str, other: str, left: dict[str, str]
) -> None:
    with place.browser(framework) as client:
        client.get("/set?c=0")
        meanwhile(client, framework, place, path, other)
        assert state(client.get("/show"))["data"] == left


def test_who_has_logged_out_is_not_brought_back(place: Place, framework: str) -> None:
    with place.browser(framework) as client:
        client.get("/login?_user=1")
        response, _ = meanwhile(client, framework, place, "/set?a=1", "/logout")
        assert "set-cookie" not in response.headers
        assert response.status_code == (400 if "django" in framework else 200)  # Django's SessionInterrupted
        assert state(client.get("/show")) == {"user": None, "data": {}}
        assert place.keys() <= 2, "that it has ended, for seconds, and the user's index, for its TTL"


def test_parallel_renewals_and_their_cookies(place: Place, framework: str) -> None:
    with place.browser(framework) as client:
        client.get("/login?_user=1")
        old = again(client, framework, place)
        response, (theirs,) = meanwhile(client, framework, place, "/renew", "/renew")
        cookies = {each.headers["set-cookie"].strip().split(";")[0] for each in (response, theirs)}
        assert len(cookies) == 1, "both have the same new id"
        for window in (client, old):
            assert state(window.get("/show"))["user"] == "1"
        assert old.cookies == client.cookies, "the old id was answered with the new one"


def test_fixation(place: Place, framework: str) -> None:
    """An id planted before the login, asked while it goes on and after it, never sees the user."""
    with place.browser(framework) as client:
        client.get("/set?a=1")
        planted = again(client, framework, place)
        _, (during_login,) = meanwhile(client, framework, place, "/login?_user=1", "/show")
        assert during_login.json()["user"] is None
        assert state(planted.get("/show")) == {"user": None, "data": {}}
        assert state(client.get("/show")) == {"user": "1", "data": {"a": "1"}}


def test_a_request_that_ends_after_the_login_does_not_replace_its_cookie(
    place: Place, framework: str
) -> None:
    """It has the id of before, which was alive when it came and is dead when it saves."""
    with place.browser(framework) as client:
        client.get("/set?a=1")
        response, _ = meanwhile(client, framework, place, "/set?b=2", "/login?_user=1")
        assert "set-cookie" not in response.headers
        assert response.status_code == (400 if "django" in framework else 200)  # as after a logout


@pytest.mark.parametrize("end", ["/login?_user=1", "/logout"])
def test_a_request_that_comes_after_the_login_does_not_replace_its_cookie(
    place: Place, framework: str, end: str
) -> None:
    """It was sent with the id of before while the login's answer was on its way."""
    with place.browser(framework) as client:
        client.get("/set?a=1")
        late = again(client, framework, place)
        client.get(end)
        for path in ("/show", "/set?b=2"):
            response = late.get(path)
            assert "set-cookie" not in response.headers
            assert response.status_code == (400 if "django" in framework and path != "/show" else 200)
        assert state(late.get("/show")) == {"user": None, "data": {}}
        if "login" in end:
            assert state(client.get("/show")) == {"user": "1", "data": {"a": "1"}}
            # a login whose answer was lost is tried again
            assert "set-cookie" in late.get("/login?_user=1").headers
            assert state(late.get("/show"))["user"] == "1"


def test_who_comes_back_with_the_cookie_of_a_session_that_has_expired_begins_anew(
    place: Place, framework: str
) -> None:
    with place.browser(framework) as client:
        client.get("/set?a=1")
        client.get("/logout" if framework == "flask" else "/login?_user=1")
        place.forget()
        assert "set-cookie" in client.get("/set?b=2").headers
        assert state(client.get("/show")) == {"user": None, "data": {"b": "2"}}


@pytest.mark.parametrize("path", ["/show", "/set?b=2", "/renew"])
def test_an_old_id_that_led_to_one_that_a_login_has_ended(place: Place, framework: str, path: str) -> None:
    """It reads by a pointer, so it would answer with the next id; a login has ended that meanwhile."""
    with place.browser(framework) as client:
        client.get("/set?a=1")
        old = again(client, framework, place)
        client.get("/renew")
        login: list[httpx.Response] = []
        window = again(client, "flask" if framework != "flask" else "wsgi", place)
        during.append(lambda: login.append(window.get("/login?_user=1")))
        response = old.get(path)
        assert "set-cookie" in login[0].headers
        assert "set-cookie" not in response.headers


@pytest.mark.parametrize("end", ["/login?_user=1", "/logout"])
def test_a_renewal_early_in_a_request_and_a_login_before_its_end(
    place: Place, framework: str, end: str
) -> None:
    """Its new id is dead when the response begins: the login's cookie is the one to stay."""
    with place.browser(framework) as client:
        client.get("/set?a=1")
        ended: list[httpx.Response] = []
        window = again(client, "flask" if framework != "flask" else "wsgi", place)
        afterwards.append(lambda: ended.append(window.get(end)))
        response = client.get("/renew")
        assert "set-cookie" in ended[0].headers and not afterwards
        assert "set-cookie" not in response.headers
        if "login" in end:
            assert state(window.get("/show"))["user"] == "1"


def test_another_user_gets_nothing_of_the_first(place: Place, framework: str) -> None:
    with place.browser(framework) as client:
        client.get("/set?secret=1")
        client.get("/login?_user=1")
        first = again(client, framework, place)
        client.get("/login?_user=2")
        assert state(client.get("/show")) == {"user": "2", "data": {}}
        assert state(first.get("/show")) == {"user": None, "data": {}}


# --- hostile cookies ---


def hostile(genuine: str) -> list[str]:
    """Cookie headers. Of one cookie, every kind of damage; of many, ambiguity."""
    chance = random.Random(11)
    flipped = []
    for place in (0, 1, 2, 5, 22, 23, 40, 65, 70, 79):
        other = chance.choice([each for each in "ABCxyz019-_" if each != genuine[place]])
        flipped.append(genuine[:place] + other + genuine[place + 1 :])
    values = [
        *flipped, "", "x", "null", "undefined", "0" * 80, "A" * 80, "-" * 80, genuine[:-1], genuine + "A",
        genuine * 2, genuine[::-1], genuine.swapcase(), f'"{genuine}"', genuine + "=", "%00" + genuine,
        genuine + "\xff", "\xe9" * 80, "../" * 26, "{}", "[]", "' OR 1=1 --", "a" * 5000, "\x01\x02",
        "}{" * 40, "eyJhIjoxfQ.Zm9v.YmFy", "!" + genuine,
    ]  # fmt: skip
    return [
        *(f"__Host-id={value}" for value in values), "__Host-id", "=", ";;;", "__Host-id=; __Host-id=",
        f"id={genuine}", f"__Secure-id={genuine}", f"__host-id={genuine}", f"x__Host-id={genuine}",
        "; ".join(f"__Host-id={value[:256]}" for value in values), "a=" + "b" * 10000,
    ]  # fmt: skip


def test_hostile_cookies_are_nobody_and_no_error(place: Place, framework: str) -> None:
    with place.browser(framework) as client:
        client.get("/login?_user=1")
        genuine = client.cookies["__Host-id"]
        client.cookies.clear()
        stranger: dict[str, Any] = {"user": None, "data": {}}
        for header in hostile(genuine):
            raw = header.encode("latin-1")
            response = client.get("/show", headers=[(b"cookie", raw)])
            assert response.status_code == 200 and response.json() == stranger, header
            assert "set-cookie" not in response.headers
        both = f"__Host-id={genuine}; junk; __Host-id=A"
        assert client.get("/show", headers={"cookie": both}).json()["user"] == "1", (
            "junk beside it is no harm"
        )
        other = place.store.new()
        other["whose"] = "an attacker's"
        other.save()
        planted = f"__Host-id={other.cookie}; __Host-id={genuine}"
        assert state(client.get("/show", headers={"cookie": planted})) == stranger, (
            "which of two is not to be known"
        )
        assert place.store.load(genuine).user_id == "1"


def test_forgeries_cost_no_round_trip(place: Place, framework: str) -> None:
    with place.browser(framework) as client:
        client.get("/show", headers={"cookie": "__Host-id=" + "A" * 80})
        client.get("/show")
        assert place.calls == []


# --- cost ---


def test_round_trips(place: Place, framework: str) -> None:
    with place.browser(framework) as client:
        client.get("/set?a=1")
        place.calls.clear()
        client.get("/show")
        assert place.calls == ["load"]
        place.calls.clear()
        client.get("/set?a=2")
        assert place.calls == ["load", "save"]
        place.calls.clear()
        client.get("/set?a=2")
        assert place.calls == ["load"], "set to what it was"


# --- when the store cannot be reached ---


def test_unreachable(place: Place, framework: str) -> None:
    with place.browser(framework) as client:
        client.get("/login?_user=1")
        place.broken = True
        for path in ("/show", "/set?a=1", "/logout"):
            response = client.get(path)
            assert response.status_code == 503 and "set-cookie" not in response.headers
            assert response.headers["cache-control"] == "no-store"
        place.broken = False
        assert state(client.get("/show"))["user"] == "1", "nobody was logged out"
        for path in ("/set?a=1", "/logout", "/login?_user=2", "/save?a=1"):
            during.append(lambda: setattr(place, "broken", True))
            response = client.get(path)
            assert response.status_code == 503 and "set-cookie" not in response.headers, path
            place.broken = False
            assert state(client.get("/show")) == {"user": "1", "data": {}}


def test_unreachable_and_anonymous(framework: str) -> None:
    place = Place(None, fail="anonymous")
    with place.browser(framework) as client:
        client.get("/login?_user=1")
        place.broken = True
        response = client.get("/show")
        assert state(response) == {"user": None, "data": {}} and "set-cookie" not in response.headers
        for path in ("/set?a=1", "/login?_user=1", "/logout", "/push?item=1"):
            response = client.get(path)
            assert response.status_code == 503 and "set-cookie" not in response.headers, path
        place.broken = False
        assert state(client.get("/show")) == {"user": "1", "data": {}}


def test_a_port_where_nobody_is(framework: str) -> None:
    port = free_port()
    place = Place(None)
    place.store = SessionStore(redis_py.Redis(port=port, retry=None), SECRETS)
    place.async_store = AsyncSessionStore(Fresh(port, retry=None), SECRETS)
    cookie = place.store.rules.keyring
    genuine = MemorySessionStore(SECRETS).new()
    genuine["a"] = 1
    genuine.save()
    assert cookie.identify(str(genuine.cookie))
    with place.browser(framework) as client:
        assert client.get("/show", headers={"cookie": f"__Host-id={genuine.cookie}"}).status_code == 503


# --- users, devices, operators ---


def test_revoking_and_the_list_of_devices(place: Place, framework: str) -> None:
    clients = [place.browser(framework, trusted_proxies=["127.0.0.0/8"]) for _ in range(3)]
    for number, client in enumerate(clients):
        headers = {"user-agent": f"browser {number}", "x-forwarded-for": f"1.2.3.4, 9.9.9.{number}"}
        client.get("/login?_user=1", headers=headers)
    listed = place.store.list_sessions("1")
    agents = {each.device["user_agent"]: each.handle for each in listed}
    assert set(agents) == {"browser 0", "browser 1", "browser 2"}
    assert {each.device["ip"] for each in listed} == {f"9.9.9.{number}" for number in range(3)}
    assert place.store.revoke(agents["browser 1"])
    assert [client.get("/show").json()["user"] for client in clients] == ["1", None, "1"]
    assert place.store.revoke_all("1") == 2
    assert [client.get("/show").json()["user"] for client in clients] == [None] * 3


def test_the_device_is_that_of_the_login(place: Place, framework: str) -> None:
    with place.browser(framework) as client:
        for path, agent in (("/set?a=1", "first"), ("/login?_user=1", "second"), ("/set?a=2", "third")):
            client.get(path, headers={"user-agent": agent})
        (listed,) = place.store.list_sessions("1")
        assert listed.device == {"ip": "127.0.0.1", "user_agent": "second"}


def test_remember_me(place: Place, framework: str) -> None:
    with place.browser(framework) as client:
        sent = client.get("/login?_user=1&_remember").headers["set-cookie"].lower()
        age = int(sent.partition("max-age=")[2].partition(";")[0])
        assert 29 * 86400 < age <= 30 * 86400
        assert place.store.list_sessions("1")[0].kind == "remember_me"


def test_the_previous_systems_sessions(place: Place, framework: str) -> None:
    before = {"s1": {"cart": ["tea"]}, "s2": {"cart": [], "_user_id": "2"}}

    def previous(cookies: Any) -> Any:
        from shardproxy.sessions.web import Previous

        found = before.pop(cookies.get("session", ""), None)
        return found and Previous({k: v for k, v in found.items() if k != "_user_id"}, found.get("_user_id"))

    with place.browser(framework, previous=previous) as client:
        client.cookies.set("session", "s1")
        assert state(client.get("/show")) == {"user": None, "data": {"cart": ["tea"]}}
        assert state(client.get("/show")) == {"user": None, "data": {"cart": ["tea"]}}, "it is ours now"
        other = place.browser(framework, previous=previous)
        other.cookies.set("session", "s2")
        assert state(other.get("/show"))["data"] == {"cart": []}
        assert state(other.get("/show"))["user"] == "2"
        other.get("/logout")
        assert state(other.get("/show")) == {"user": None, "data": {}}


def test_a_new_id_is_made_when_due(framework: str) -> None:
    now = [1_000_000.0]
    place = Place(None, classes={"signed_in": Timeouts(renewal=60)})
    for store in (place.store, place.async_store):
        store.memory.clock = lambda: now[0]
    with place.browser(framework) as client:
        first = client.get("/login?_user=1").headers["set-cookie"]
        assert "set-cookie" not in client.get("/show").headers
        now[0] += 61
        assert "set-cookie" not in client.get("/untouched?_status=500").headers
        renewed = client.get("/show").headers["set-cookie"]
        assert renewed != first and state(client.get("/show"))["user"] == "1"


# --- one login for all ---


def everywhere(place: Place) -> httpx.Client:
    """A browser before all frameworks, round robin."""
    apps = [place.app(framework) for framework in FRAMEWORKS]
    wsgi = [each["apps"][0] for each in apps if "apps" in each]
    return browser(*wsgi, asgi=[each["asgi"][0] for each in apps if "asgi" in each])


def rounds(ask: Callable[[], httpx.Response]) -> list[Any]:
    return [state(ask()) for _ in FRAMEWORKS]


@pytest.mark.parametrize("first", range(len(FRAMEWORKS)))
def test_one_login_is_valid_in_all_of_them(place: Place, first: int) -> None:
    """It begins in one, is seen and changed in each, and ends in another for all."""
    with everywhere(place) as client:
        for _ in range(first):
            client.get("/show")
        client.get("/set?a=1")
        for _ in range(len(FRAMEWORKS) - 1):  # round to the first again
            client.get("/show")
        client.get("/login?_user=1")
        assert rounds(lambda: client.get("/show")) == [{"user": "1", "data": {"a": "1"}}] * len(FRAMEWORKS)
        for item in "123456789a":
            client.get(f"/push?item={item}")
        assert state(client.get("/show"))["data"]["list"] == list("123456789a")
        window = everywhere(place)
        window.cookies = httpx.Cookies(client.cookies)
        client.get("/logout")
        assert rounds(lambda: window.get("/show")) == [{"user": None, "data": {}}] * len(FRAMEWORKS)
