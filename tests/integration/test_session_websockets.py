"""Sessions of websockets: read when one is accepted, saved when told, ended while one is open."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from webapps import SECRETS
from webdrive import WebSocket

from shardproxy.sessions import AsyncMemorySessionStore, AsyncSession, SessionUnavailable
from shardproxy.sessions.asgi import SessionMiddleware


async def signed_in(store: AsyncMemorySessionStore, user_id: str = "ann") -> AsyncSession:
    session = store.new()
    await session.login(user_id)
    return session


def cookie(session: Any, name: str = "__Host-id") -> str:
    return f"{name}={session.cookie}"


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
