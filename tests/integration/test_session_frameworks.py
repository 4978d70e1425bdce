"""What only one framework has: websockets, background tasks, Django's auth and checks, Flask's flashes."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import redis as redis_py
import webapps
from webapps import SECRETS, during
from webdrive import WebSocket, browser

from shardproxy.sessions import (
    AsyncMemorySessionStore,
    AsyncSession,
    AsyncSessionStore,
    MemorySessionStore,
    SessionStore,
    SessionUnavailable,
    UnfitPool,
)
from shardproxy.sessions.asgi import SessionMiddleware, SessionNotLoaded, load_session


async def signed_in(store: AsyncMemorySessionStore, user_id: str = "ann") -> AsyncSession:
    session = store.new()
    await session.login(user_id)
    return session


def cookie(session: Any, name: str = "__Host-id") -> str:
    return f"{name}={session.cookie}"


# --- websockets ---

Serve = Callable[[Any, Any, Any], Awaitable[None]]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Tells what the session has; "save" saves first."""
    session = scope["session"]
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        session["last"] = message["text"]
        if message["text"] == "save":
            await session.save()
        await send({"type": "websocket.send", "text": f"{session.user_id} {session['last']}"})
    scope["ended"] = message.get("code")


async def test_a_websocket_saves_only_when_told() -> None:
    store = AsyncMemorySessionStore(SECRETS)
    session = await signed_in(store)
    async with WebSocket(SessionMiddleware(echo, store), cookie=cookie(session)) as ws:
        assert (await ws.receive())["type"] == "websocket.accept"
        await ws.send("hello")
        assert (await ws.receive())["text"] == "ann hello"
        assert dict(await store.load(session.cookie)) == {}
        await ws.send("save")
        await ws.receive()
        assert dict(await store.load(session.cookie)) == {"last": "save"}
        await ws.send("bye")
        await ws.receive()
    assert dict(await store.load(session.cookie)) == {"last": "save"}
    assert ws.scope["ended"] == 1001


@pytest.mark.parametrize("how", ["revoke", "revoke_all", "destroy"])
async def test_a_websocket_ends_with_its_session(how: str) -> None:
    store = AsyncMemorySessionStore(SECRETS)
    session, other = await signed_in(store), await signed_in(store, "bob")
    app = SessionMiddleware(echo, store, recheck=0.01)
    async with (
        WebSocket(app, cookie=cookie(session)) as ws,
        WebSocket(app, cookie=cookie(other)) as bystander,
        WebSocket(app) as stranger,
    ):
        for each in (ws, bystander, stranger):
            assert (await each.receive())["type"] == "websocket.accept"
        if how == "revoke":
            assert await store.revoke(session.handle)
        elif how == "revoke_all":
            assert await store.revoke_all("ann") == 1
        else:
            await session.destroy()
        closed = await ws.receive()
        assert (closed["type"], closed["code"]) == ("websocket.close", 4401)
        await asyncio.wait_for(ws.task, 10)
        assert ws.scope["ended"] == 4401
        await bystander.send("still here")
        assert (await bystander.receive())["text"] == "bob still here"
        await stranger.send("me too")
        assert (await stranger.receive())["text"] == "None me too"


async def test_a_websocket_that_only_sends_ends_too() -> None:
    async def feed(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "news"})
                await asyncio.sleep(0.01)
        except OSError:
            scope["ended"] = True

    store = AsyncMemorySessionStore(SECRETS)
    session = await signed_in(store)
    async with WebSocket(SessionMiddleware(feed, store, recheck=0.01), cookie=cookie(session)) as ws:
        await ws.receive()
        await store.revoke_all("ann")
        while (await ws.receive())["type"] != "websocket.close":
            pass
        await asyncio.wait_for(ws.task, 10)
    assert ws.scope["ended"]
    assert ws.from_app.empty(), "nothing is sent after the close"


async def test_a_websocket_whose_store_is_away_lives_on() -> None:
    store = AsyncMemorySessionStore(SECRETS)
    session = await signed_in(store)
    run, looks = store._executor.run, []

    async def broken(call: Any) -> Any:
        looks.append(call)
        raise SessionUnavailable("broken by the test")

    async with WebSocket(SessionMiddleware(echo, store, recheck=0.01), cookie=cookie(session)) as ws:
        await ws.receive()
        store._executor.run = broken  # type: ignore[method-assign]
        while len(looks) < 3:
            await asyncio.sleep(0.01)
        await ws.send("hello")
        assert (await ws.receive())["text"] == "ann hello"
        async with WebSocket(SessionMiddleware(echo, store), cookie=cookie(session)) as late:
            refused = await late.receive()
            assert (refused["type"], refused["code"]) == ("websocket.close", 1013)
        store._executor.run = run  # type: ignore[method-assign]
        await store.revoke_all("ann")
        assert (await ws.receive())["code"] == 4401


async def test_a_websocket_may_log_in_before_it_is_accepted_and_not_after() -> None:
    async def serve(scope: Any, receive: Any, send: Any) -> None:
        session = scope["session"]
        await receive()
        await session.login("ann")
        await send({"type": "websocket.accept"})
        with pytest.raises(RuntimeError, match="response has begun"):
            await session.login("bob")
        with pytest.raises(RuntimeError, match="response has begun"):
            await session.renew()
        session["a"] = 1
        await session.save()
        await send({"type": "websocket.send", "text": session.user_id})

    store = AsyncMemorySessionStore(SECRETS)
    async with WebSocket(SessionMiddleware(serve, store)) as ws:
        accepted = dict((await ws.receive())["headers"])
        value = accepted[b"set-cookie"].decode().split(";")[0].partition("=")[2]
        assert (await ws.receive())["text"] == "ann"
    loaded = await store.load(value)
    assert (loaded.user_id, dict(loaded)) == ("ann", {"a": 1})


# --- ASGI ---


class Told:
    """A client of asyncio that only answers INFO."""

    def __init__(self, info: str) -> None:
        self.info = info

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        assert args[0] == "INFO", args
        return self.info.encode()


@pytest.mark.parametrize("policy", ["allkeys-lru", "noeviction"])
async def test_a_server_does_not_start_over_a_cache(policy: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})

    client = Told(f"redis_version:7.0.15\r\nmaxmemory_policy:{policy}\r\n")
    middleware = SessionMiddleware(app, AsyncSessionStore(client, SECRETS))
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    if policy == "noeviction":
        await middleware({"type": "lifespan"}, receive, send)
        assert [each["type"] for each in sent] == ["lifespan.startup.complete"]
    else:
        with pytest.raises(UnfitPool, match="allkeys-lru"):
            await middleware({"type": "lifespan"}, receive, send)
        (failed,) = sent
        assert failed["type"] == "lifespan.startup.failed" and "allkeys-lru" in failed["message"]


class Blocked:
    """A client that says INFO, or that nobody is there."""

    def __init__(self, policy: str) -> None:
        self.policy = policy

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if not self.policy:
            raise redis_py.ConnectionError("nobody is there")
        assert args[0] == "INFO", args
        return f"redis_version:7.0.15\r\nmaxmemory_policy:{self.policy}\r\n".encode()


@pytest.mark.parametrize("framework", ["flask", "wsgi", "django"])
def test_an_app_does_not_start_over_a_cache(framework: str) -> None:
    """And does over a node that cannot be reached: it may be fit, and answers 503 until it is there."""
    start = getattr(webapps, f"{framework}_app")
    for policy in ("allkeys-lru", "allkeys-lfu", "allkeys-random"):
        with pytest.raises(UnfitPool, match=policy):
            start(SessionStore(Blocked(policy), SECRETS))
    start(SessionStore(Blocked("allkeys-lru"), SECRETS, check=False))
    start(SessionStore(Blocked("allkeys-lru"), SECRETS, check="warn"))
    start(SessionStore(Blocked("noeviction"), SECRETS))
    client = Blocked("")
    store = SessionStore(client, SECRETS)
    app = start(store)
    with browser(app) as visitor:
        visitor.cookies.set("__Host-id", some_cookie(), domain="shop.example")
        assert visitor.get("/show").status_code == 503
        client.policy = "allkeys-lru"  # it is there now, and what it is comes to light
        assert visitor.get("/show").status_code == 500
    assert not store._checked


@pytest.mark.parametrize("framework", ["flask", "fastapi"])
async def test_a_store_that_says_nothing_keeps_no_server_from_starting(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardproxy.sessions.store.AT_START", 0.05)
    over = threading.Event()

    class Hung:
        def execute_command(self, *args: Any, **options: Any) -> Any:
            return over.wait() if framework == "flask" else asyncio.sleep(3600)

    try:
        if framework == "flask":
            webapps.flask_app(SessionStore(Hung(), SECRETS))
        else:
            await AsyncSessionStore(Hung(), SECRETS).check_at_start()
    finally:
        over.set()


def some_cookie() -> str:
    session = MemorySessionStore(SECRETS).new()
    session["a"] = 1
    session.save()
    return str(session.cookie)


def test_djangos_check_of_the_place() -> None:
    webapps.set_up_django()
    from django.core.checks import run_checks
    from django.test.utils import override_settings

    store = SessionStore(Blocked("allkeys-lru"), SECRETS)
    with override_settings(SHARDPROXY_SESSIONS={"STORE": store}):
        assert "shardproxy.E006" not in {each.id for each in run_checks()}, "what needs no store asks none"
        found = run_checks(databases=["default"])
        (fault,) = (each for each in found if each.id == "shardproxy.E006")
        assert fault.msg.startswith("maxmemory-policy is allkeys-lru")


def asgi_client(store: Any, endpoint: Any, **options: Any) -> httpx.Client:
    from starlette.applications import Starlette
    from starlette.routing import Route

    app = Starlette(routes=[Route("/{path:path}", endpoint)])
    app.add_middleware(SessionMiddleware, store=store, **options)
    return browser(asgi=[app])


@pytest.mark.parametrize("autoload", [False, lambda scope: scope["path"] != "/api"])
def test_loaded_explicitly(autoload: Any) -> None:
    from starlette.responses import JSONResponse

    store = AsyncMemorySessionStore(SECRETS)
    problems: list[str] = []

    async def endpoint(request: Any) -> Any:
        if request.url.path == "/api":
            for use in (
                lambda: request.session["a"], lambda: request.session.get("a"),
                lambda: request.session.user_id, lambda: "a" in request.session,
            ):  # fmt: skip
                with pytest.raises(SessionNotLoaded):
                    use()
            problems.append("each told")
            if "load" not in request.query_params:
                return JSONResponse({})
            session = await load_session(request)
            assert session is request.session and session is await load_session(request)
        else:
            session = await load_session(request)
        session["a"] = session.get("a", 0) + 1
        return JSONResponse(dict(session))

    with asgi_client(store, endpoint, autoload=autoload) as client:
        plain = client.get("/api")
        assert plain.status_code == 200 and "vary" not in plain.headers and problems == ["each told"]
        assert client.get("/page").json() == {"a": 1}
        assert client.get("/api?load").json() == {"a": 2}
        assert client.get("/page").json() == {"a": 3}


def test_a_background_task_saves_into_the_session_and_makes_no_id() -> None:
    from starlette.background import BackgroundTask
    from starlette.responses import JSONResponse

    store = AsyncMemorySessionStore(SECRETS)
    told: list[str] = []

    async def later(session: AsyncSession) -> None:
        session["later"] = True
        try:
            await session.save()
            told.append("saved")
        except RuntimeError as error:
            told.append(str(error))

    async def endpoint(request: Any) -> Any:
        if request.url.path == "/first":
            request.session["a"] = 1
        return JSONResponse(dict(request.session), background=BackgroundTask(later, request.session))

    with asgi_client(store, endpoint) as client:
        client.get("/new")
        assert "response has begun" in told.pop(), "nobody could ever find it again"
        client.get("/first")
        assert client.get("/").json() == {"a": 1, "later": True} and told == ["saved", "saved"]


def test_what_an_app_does_wrong_is_its_own_500() -> None:
    from starlette.responses import JSONResponse

    store = AsyncMemorySessionStore(SECRETS, max_size=100)

    async def endpoint(request: Any) -> Any:
        request.session["a"] = object() if request.url.path == "/object" else "x" * 1000
        return JSONResponse({})

    with asgi_client(store, endpoint) as client:
        for path in ("/object", "/large"):
            response = client.get(path)
            assert response.status_code == 500 and "set-cookie" not in response.headers


def test_a_step_up_renews_the_proof() -> None:
    from starlette.responses import JSONResponse

    now = [1_000_000.0]
    store = AsyncMemorySessionStore(SECRETS)
    store.memory.clock = lambda: now[0]

    async def endpoint(request: Any) -> Any:
        session = request.session
        if request.url.path == "/login":
            await session.login("ann")
        if request.url.path == "/transfer" and (
            session.authenticated_at is None or session.now - session.authenticated_at > 300
        ):
            return JSONResponse({}, 401)
        return JSONResponse({})

    with asgi_client(store, endpoint) as client:
        assert client.get("/transfer").status_code == 401
        client.get("/login")
        assert client.get("/transfer").status_code == 200
        now[0] += 301
        assert client.get("/transfer").status_code == 401
        old = dict(client.cookies)
        client.get("/login")
        assert client.get("/transfer").status_code == 200 and dict(client.cookies) != old


def test_parallel_requests_of_one_browser() -> None:
    """Ten at once, each its own field, and a counter: nothing is lost."""
    from starlette.responses import JSONResponse

    store = AsyncMemorySessionStore(SECRETS)
    together = 10

    async def endpoint(request: Any) -> Any:
        name = request.url.path[1:]
        if name:
            arrived.append(name)
            while len(arrived) < together:  # all have read before any saves
                await asyncio.sleep(0)
            request.session[name] = 1
            request.session.incr("count")
            request.session.append("log", name)
        else:
            request.session["count"] = request.session.get("count", 0)
        return JSONResponse(dict(request.session))

    from starlette.applications import Starlette
    from starlette.routing import Route

    app = Starlette(routes=[Route("/{path:path}", endpoint)])
    app.add_middleware(SessionMiddleware, store=store)
    arrived: list[str] = []
    names = [f"f{number}" for number in range(together)]

    async def run() -> dict[str, Any]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="https://shop.example") as client:
            await client.get("/")
            await asyncio.gather(*(client.get(f"/{name}") for name in names))
            return dict((await client.get("/")).json())

    found = asyncio.run(run())
    assert {name: found[name] for name in names} == dict.fromkeys(names, 1)
    assert found["count"] == together and sorted(found["log"]) == sorted(names)


# --- Flask ---


def test_flask_flashes_static_files_and_the_test_client() -> None:
    from flask import flash, get_flashed_messages, session

    store = MemorySessionStore(SECRETS)
    app = webapps.flask_app(store)
    app.testing = True

    @app.get("/flash/<text>")
    def set_flash(text: str) -> Any:
        flash(text, "info")
        session.modified = True  # as elsewhere; found anyway
        session.permanent = True
        return {"new": session.new}

    @app.get("/flashes/all")
    def flashes() -> Any:
        return {"found": list(get_flashed_messages(with_categories=True))}

    loads: list[str] = []
    run = store._executor.run
    store._executor.run = lambda call: (loads.append(call.script), run(call))[1]  # type: ignore[method-assign]
    with browser(app) as client:
        assert client.get("/flash/one").json() == {"new": True}
        client.get("/flash/two")
        assert client.get("/flashes/all").json() == {"found": [["info", "one"], ["info", "two"]]}
        assert client.get("/flashes/all").json() == {"found": []}
        loads.clear()
        static = client.get("/compat/__init__.py")
        assert static.status_code == 200 and not loads and "vary" not in static.headers
    test_client = app.test_client()
    with test_client.session_transaction() as opened:
        opened["planted"] = "by a test"
    assert test_client.get("/show").json == {"user": None, "data": {"planted": "by a test"}}


# --- Django ---


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


def test_importing_the_store_imports_no_framework() -> None:
    import subprocess
    import sys

    code = (
        "import sys, shardproxy.sessions, shardproxy.sessions.asgi, shardproxy.sessions.wsgi;"
        "print(sorted({'flask', 'django', 'starlette', 'fastapi'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_in_between_runs_once() -> None:
    """The tool of the tests of parallel requests: it can fail."""
    told: list[float] = []
    during.append(lambda: told.append(time.monotonic()))
    webapps.act({}, "untouched", {})
    assert not told
    webapps.act({}, "show", {})
    webapps.act({}, "show", {})
    assert len(told) == 1
