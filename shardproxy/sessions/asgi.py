"""Sessions for ASGI apps: Starlette, FastAPI, Quart, or none of them. `request.session` in the first two.

    app.add_middleware(SessionMiddleware, store=AsyncSessionStore(redis.asyncio.Redis(), secrets=[…]))

Life of a request: the cookie's tag is verified without network; a genuine one is loaded before the app, one
round trip; what was changed is saved when the response starts, unless it is a 5xx. `await session.login(…)`,
`.destroy()`, `.renew()` and `.save()` act at once, and their cookie is sent whatever the status.
"""

import asyncio
import contextlib
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, NoReturn, TypeAlias

from shardproxy.core.sessions.cookies import CookieRules
from shardproxy.core.sessions.errors import SessionGone, SessionUnavailable, UnfitPool
from shardproxy.sessions.store import AsyncSession, AsyncSessionStore
from shardproxy.sessions.web import REFUSED, REFUSED_HEADERS, FromBefore, Visit, Web, taken_over

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

KEY = "shardproxy.sessions"
REVOKED = 4401  # the code of a websocket whose session has ended

log = logging.getLogger("shardproxy.sessions")


class SessionMiddleware:
    """ASGI middleware: `scope["session"]`.

    autoload         False, or a function of the scope: then by `await load_session(request)` only
    cookie           CookieRules, or a dict of its fields
    trusted_proxies  networks whose X-Forwarded-Proto and -For are believed; "unix" for unix sockets
    previous         reads another system's sessions: docs/sessions.md, "Coming from another store"
    recheck          seconds between looks whether the session of an open websocket still is valid
    """

    def __init__(
        self,
        app: App,
        store: AsyncSessionStore,
        *,
        autoload: bool | Callable[[Scope], bool] = True,
        cookie: CookieRules | dict[str, Any] | None = None,
        trusted_proxies: Sequence[str] = (),
        previous: FromBefore | None = None,
        recheck: float = 30.0,
    ) -> None:
        self.app, self.store, self.autoload, self.recheck = app, store, autoload, recheck
        self.web = Web(store, cookie, trusted_proxies, previous)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            exchange = Exchange(self, scope, receive, send)
            await (exchange.http() if scope["type"] == "http" else exchange.websocket())
        elif scope["type"] == "lifespan":
            await self.app(scope, self._checking(receive, send), send)
        else:
            await self.app(scope, receive, send)

    def _checking(self, receive: Receive, send: Send) -> Receive:
        """A server does not start over a place that is not fit for sessions; UnfitPool says why."""

        async def checked() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.store.check_at_start()
                except UnfitPool as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    raise
            return message

        return checked


class Exchange:
    """One request, or one websocket, and its session."""

    def __init__(self, middleware: SessionMiddleware, scope: Scope, receive: Receive, send: Send) -> None:
        self.middleware, self.web = middleware, middleware.web
        self.scope, self.receive, self.send = scope, receive, send
        self.session: AsyncSession | None = None
        self.started = self.refused = False
        self.visit = _arrived(self.web, scope)
        scope["session"], scope[KEY] = NOT_LOADED, self

    async def load(self) -> AsyncSession:
        """Once; SessionUnavailable."""
        if self.session is not None:
            return self.session
        web = self.web
        session = await self.middleware.store.load(self.visit.cookie, self.visit.device)
        self.scope["session"] = self.session = session
        if web.previous is not None and web.wants_previous(self.visit):
            found = web.previous(self.visit.others)
            if inspect.isawaitable(found):
                found = await found
            if user_id := taken_over(session, found):
                await session.login(user_id)
        return session

    def _autoloads(self) -> bool:
        wanted = self.middleware.autoload
        return wanted(self.scope) if callable(wanted) else wanted

    # --- http ---

    async def http(self) -> None:
        try:
            if self._autoloads():
                await self.load()
            await self.middleware.app(self.scope, self.receive, self._send_http)
        except SessionUnavailable:
            if self.started:
                raise
            await self._refuse()

    async def _send_http(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self.started:
            try:
                await self._save(message["status"])
            except SessionUnavailable:
                await self._refuse()
            else:
                self._leave(message)
                self.started = True
        if not self.refused:
            await self.send(message)

    async def _save(self, status: int) -> None:
        session = self.session
        if session is not None and self.web.saves(self.visit, session, status):
            try:  # noqa: SIM105  # with every request, so without a context manager
                await session.save()
            except SessionGone:  # it ended meanwhile, and stays so: logouts hold
                pass

    def _leave(self, message: Message) -> None:
        """Puts Set-Cookie and what belongs beside it into the start of a response."""
        if self.session is None:
            return
        headers: list[tuple[bytes, bytes]] = []
        taken: dict[bytes, str] = {}
        for pair in message.get("headers", ()):
            name = pair[0].lower()
            if name == b"vary" or name == b"cache-control":
                value = pair[1].decode("latin-1")
                taken[name] = f"{taken[name]}, {value}" if name in taken else value
            headers.append(pair)
        cookie, beside = self.web.leaving(
            self.visit, self.session, taken.get(b"vary", ""), taken.get(b"cache-control", "")
        )
        if not cookie and not beside:
            return
        if taken or cookie:
            replaced = {name.lower().encode() for name in beside}
            headers = [pair for pair in headers if pair[0].lower() not in replaced]
        headers += map(_encoded, beside.items())
        if cookie:
            headers.append((b"set-cookie", cookie.encode("latin-1")))
        message["headers"] = headers

    async def _refuse(self) -> None:
        """503, in place of whatever the app says."""
        self.started = self.refused = True
        headers = [(name.lower().encode(), value.encode()) for name, value in REFUSED_HEADERS]
        await self.send({"type": "http.response.start", "status": 503, "headers": headers})
        await self.send({"type": "http.response.body", "body": REFUSED})

    # --- websockets ---

    async def websocket(self) -> None:
        """Nothing is saved by itself: a websocket has no end that anybody waits for."""
        try:
            if self._autoloads():
                await self.load()
        except SessionUnavailable:
            await self.receive()
            await self.send({"type": "websocket.close", "code": 1013, "reason": "sessions cannot be reached"})
            return
        watched = Watched(self)
        try:
            await self.middleware.app(self.scope, watched.receive, watched.send)
        finally:
            watched.stop()


class Watched:
    """A websocket that is closed when its session ends: asked every `recheck` seconds."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.ended = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[bool] | None = None
        self._receiving: asyncio.Future[Message] | None = None

    async def send(self, message: Message) -> None:
        if self.ended.is_set():
            raise ConnectionResetError("the session has ended")  # as a server does once a connection is gone
        if message["type"] == "websocket.accept":
            self.exchange._leave(message)
            self.exchange.started = True
            self._watch = asyncio.ensure_future(self._looks())
        await self.exchange.send(message)

    async def receive(self) -> Message:
        if self._ending is None:
            self._ending = asyncio.ensure_future(self.ended.wait())
        if self._receiving is None:
            self._receiving = asyncio.ensure_future(self.exchange.receive())
        await asyncio.wait((self._receiving, self._ending), return_when=asyncio.FIRST_COMPLETED)
        if self.ended.is_set():
            return {"type": "websocket.disconnect", "code": REVOKED, "reason": "the session has ended"}
        message, self._receiving = self._receiving.result(), None
        return message

    async def _looks(self) -> None:
        while True:
            await asyncio.sleep(self.exchange.middleware.recheck)
            session = self.exchange.session
            if session is None or session.is_new:
                continue
            try:
                if await session.alive():
                    continue
            except SessionUnavailable:
                continue  # nothing is known: the next look tells
            self.ended.set()
            with contextlib.suppress(Exception):  # it may be closed already, in a server's own words
                await self.exchange.send(
                    {"type": "websocket.close", "code": REVOKED, "reason": "the session has ended"}
                )
            return

    def stop(self) -> None:
        for task in (self._watch, self._ending, self._receiving):
            if task is not None:
                task.cancel()


class SessionNotLoaded(RuntimeError):
    """With `autoload=False`: `await load_session(request)` comes first."""


class NotLoaded:
    """In the place of a session that was not loaded."""

    def _raise(self, *args: Any) -> NoReturn:
        raise SessionNotLoaded(
            "the session is not loaded: await shardproxy.sessions.asgi.load_session(request)"
        )

    __getitem__ = __setitem__ = __delitem__ = __iter__ = __len__ = __contains__ = _raise

    def __getattr__(self, name: str) -> Any:
        # Frameworks look for hooks on it before anybody uses it
        if name == "mark_accessed":
            raise AttributeError(name)
        self._raise()


NOT_LOADED = NotLoaded()


async def load_session(connection: Any) -> AsyncSession:
    """Loads the session of a Starlette request or websocket, or of a scope. SessionUnavailable."""
    scope = (
        connection if isinstance(connection, MutableMapping) and "type" in connection else connection.scope
    )
    exchange: Exchange = scope[KEY]
    return await exchange.load()


def _arrived(web: Web, scope: Scope) -> Visit:
    cookies, found = [], {b"host": "", b"x-forwarded-proto": "", b"x-forwarded-for": "", b"user-agent": ""}
    for name, value in scope["headers"]:
        if name == b"cookie":
            cookies.append(value.decode("latin-1"))
        elif name in found:
            text = value.decode("latin-1")
            found[name] = f"{found[name]},{text}" if found[name] else text
    client = scope.get("client")
    return web.arrived(
        scope.get("scheme", "http"), found[b"host"], client[0] if client else "", "; ".join(cookies),
        found[b"x-forwarded-proto"], found[b"x-forwarded-for"], found[b"user-agent"],
    )  # fmt: skip


@functools.lru_cache(64)
def _encoded(pair: tuple[str, str]) -> tuple[bytes, bytes]:
    return pair[0].lower().encode(), pair[1].encode("latin-1")
