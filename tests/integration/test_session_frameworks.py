"""What only one framework has, or an app: start-up, loading by hand, background tasks, Flask's flashes.

Websockets are in test_session_websockets.py, Django in test_session_django.py.
"""

import asyncio
import threading
import time
from typing import Any

import httpx
import pytest
import redis as redis_py
import webapps
from webapps import SECRETS, during
from webdrive import browser

from shardproxy.sessions import (
    AsyncMemorySessionStore,
    AsyncSession,
    AsyncSessionStore,
    MemorySessionStore,
    SessionStore,
    UnfitPool,
)
from shardproxy.sessions.asgi import SessionMiddleware, SessionNotLoaded, load_session

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
