"""Sessions for WSGI apps: `environ["shardproxy.session"]`. Flask and Django have adapters of their own.

    app = SessionMiddleware(app, store=SessionStore(redis.Redis(), secrets=[…]))

What was changed is saved when the app calls start_response, unless that is a 5xx.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from shardproxy.core.sessions.cookies import CookieRules
from shardproxy.core.sessions.errors import SessionGone, SessionUnavailable
from shardproxy.sessions.store import Session, SessionStore
from shardproxy.sessions.web import REFUSED, REFUSED_HEADERS, FromBefore, Visit, Web, taken_over

Environ: TypeAlias = dict[str, Any]
Headers: TypeAlias = list[tuple[str, str]]
StartResponse: TypeAlias = Callable[..., Any]
App: TypeAlias = Callable[[Environ, StartResponse], Iterable[bytes]]

KEY = "shardproxy.session"


class SessionMiddleware:
    """WSGI middleware. What it takes is said at `shardproxy.sessions.asgi.SessionMiddleware`. UnfitPool."""

    def __init__(
        self,
        app: App,
        store: SessionStore,
        *,
        cookie: CookieRules | Mapping[str, Any] | None = None,
        trusted_proxies: Sequence[str] = (),
        previous: FromBefore | None = None,
    ) -> None:
        self.app = app
        self.web = Web(store, cookie, trusted_proxies, previous)
        self.store = store
        store.check_at_start()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        visit = arrived(self.web, environ)
        try:
            session = self.store.new(visit.device)
            fill(self.store, self.web, visit, session)
        except SessionUnavailable:
            return refuse(start_response)
        environ[KEY] = session
        return Exchange(self, visit, session, start_response).run(environ)


class Exchange:
    """One request: what start_response does with its session."""

    def __init__(
        self, middleware: SessionMiddleware, visit: Visit, session: Session, start_response: StartResponse
    ) -> None:
        self.middleware, self.visit, self.session = middleware, visit, session
        self._start_response = start_response
        self.started = self.refused = False

    def run(self, environ: Environ) -> Iterable[bytes]:
        try:
            body = self.middleware.app(environ, self.start_response)
        except SessionUnavailable:
            if self.started:
                raise
            return refuse(self._start_response)
        if self.refused:
            _close(body)
            return [REFUSED]
        # A generator starts its response when it is first asked for something
        return body if self.started else self._lazily(body)

    def _lazily(self, body: Iterable[bytes]) -> Iterator[bytes]:
        try:
            for part in body:
                if self.refused:
                    break
                yield part
        except SessionUnavailable:
            if self.started:
                raise
            refuse(self._start_response)
            self.refused = True
        finally:
            _close(body)
        if self.refused:
            yield REFUSED

    def start_response(self, status: str, headers: Headers, exc_info: Any = None) -> Any:
        if self.started:  # an error page in place of a response that has not been sent yet
            return self._start_response(status, headers, exc_info)
        self.started = True
        web = self.middleware.web
        if web.saves(self.visit, self.session, int(status[:3])):
            try:
                save(self.session)
            except SessionUnavailable:
                self.refused = True
                refuse(self._start_response)
                return lambda data: None
        cookie, beside = web.leaving(
            self.visit, self.session, _joined(headers, "vary"), _joined(headers, "cache-control")
        )
        replaced = {name.lower() for name in beside}
        headers = [pair for pair in headers if pair[0].lower() not in replaced] + list(beside.items())
        if cookie:
            headers.append(("Set-Cookie", cookie))
        return self._start_response(status, headers, *((exc_info,) if exc_info else ()))


def arrived(web: Web, environ: Mapping[str, Any]) -> Visit:
    """A request as its environ has it."""
    get = environ.get
    return web.arrived(
        get("wsgi.url_scheme", "http"), get("HTTP_HOST") or get("SERVER_NAME", ""),
        get("REMOTE_ADDR", ""), get("HTTP_COOKIE", ""),
        get("HTTP_X_FORWARDED_PROTO", ""), get("HTTP_X_FORWARDED_FOR", ""), get("HTTP_USER_AGENT", ""),
    )  # fmt: skip


def fill(store: SessionStore, web: Web, visit: Visit, session: Session) -> None:
    """Loads what the visit's cookie stands for, or what the previous system has of it. SessionUnavailable."""
    if visit.cookie:
        store.fill(session, visit.cookie)
    if web.previous is not None and web.wants_previous(visit):
        user_id = taken_over(session, web.previous(visit.others))
        if user_id:
            session.login(user_id)


def save(session: Session) -> None:
    """At the end of a request. What ended meanwhile stays so: logouts hold."""
    try:  # noqa: SIM105  # with every request, so without a context manager
        session.save()
    except SessionGone:
        pass


def refuse(start_response: StartResponse) -> list[bytes]:
    start_response("503 Service Unavailable", list(REFUSED_HEADERS))
    return [REFUSED]


def _close(body: Iterable[bytes]) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()


def _joined(headers: Headers, wanted: str) -> str:
    return ", ".join(value for name, value in headers if name.lower() == wanted)
