"""Sessions for Flask: `flask.session`, as Flask has it, and `login`, `destroy`, `user_id` with it.

    Sessions(app, SessionStore(redis.Redis(), secrets=[…]))

    @app.post("/login")
    def login():
        session.login(user.id)               # another id; the old one is dead at once

What was changed, inside values too, is saved after the after_request functions, unless the response is a 5xx.
Files of `app.static_folder` have no session, and cost no round trip.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flask import Flask, Request, Response, request
from flask.sessions import SessionInterface, SessionMixin

from shardproxy.core.sessions.cookies import CookieRules
from shardproxy.core.sessions.errors import SessionUnavailable
from shardproxy.sessions import wsgi
from shardproxy.sessions.store import Session, SessionStore
from shardproxy.sessions.web import REFUSED, REFUSED_HEADERS, FromBefore, Visit, Web

REFUSED_KEY = "shardproxy.sessions.refused"


class FlaskSession(Session, SessionMixin):
    """A `Session`. `modified` and `permanent` may be set, as elsewhere, and do nothing.

    Changes are found, and what outlives the browser is decided by `login(user_id, remember=True)`.
    """

    visit: Visit

    @property
    def new(self) -> bool:  # type: ignore[override]  # a plain attribute in Flask
        return self.is_new

    @property
    def modified(self) -> bool:
        return super().modified

    @modified.setter
    def modified(self, value: bool) -> None:
        pass

    @property
    def permanent(self) -> bool:
        return self.cookie_max_age is not None

    @permanent.setter
    def permanent(self, value: bool) -> None:
        pass


class Sessions(SessionInterface):
    """Flask's session interface. What it takes is said at `shardproxy.sessions.asgi.SessionMiddleware`.

    app: or None, and `init_app(app)` later; UnfitPool. Flask's own SESSION_COOKIE_… settings are not read.
    """

    def __init__(
        self,
        app: Flask | None,
        store: SessionStore,
        *,
        cookie: CookieRules | Mapping[str, Any] | None = None,
        trusted_proxies: Sequence[str] = (),
        previous: FromBefore | None = None,
    ) -> None:
        self.store = store
        self.web = Web(store, cookie, trusted_proxies, previous)
        self._static: dict[Flask, str] = {}  # where an app's own files are
        self._refusing: set[Flask] = set()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        self.store.check_at_start()
        app.session_interface = self
        self._static[app] = f"{app.static_url_path}/" if app.has_static_folder else ""
        app.register_error_handler(SessionUnavailable, lambda error: _refusal())

    def open_session(self, app: Flask, request: Request) -> FlaskSession:
        visit = wsgi.arrived(self.web, request.environ)
        session = FlaskSession(self.store, visit.device)
        session.visit = visit
        static = self._static.get(app)
        if static and request.path.startswith(static):
            # What a before_request function writes must not become a new session in place of the visitor's
            session.visit = visit._replace(carrier=None)
            return session
        try:
            wsgi.fill(self.store, self.web, visit, session)
        except SessionUnavailable:  # raised here it would be a 500
            session.unavailable = request.environ[REFUSED_KEY] = True
            self._refuse_from_now_on(app)
        session.accessed = False
        return session

    def _refuse_from_now_on(self, app: Flask) -> None:
        """First of all: nothing of the app runs without the session that it counts on.

        No request pays for that before the first one is refused. The list is a new one: another thread may
        be on its way through the old.
        """
        if app not in self._refusing:
            self._refusing.add(app)
            app.before_request_funcs[None] = [_refuses, *app.before_request_funcs.get(None, ())]

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        assert isinstance(session, FlaskSession)
        if self.web.saves(session.visit, session, response.status_code):
            try:
                wsgi.save(session)
            except SessionUnavailable:
                _refuse(response)
                return
        headers = response.headers
        vary = cache_control = ""
        for name, value in headers:
            if (lowered := name.lower()) == "vary":
                vary = f"{vary}, {value}" if vary else value
            elif lowered == "cache-control":
                cache_control = value
        cookie, beside = self.web.leaving(session.visit, session, vary, cache_control)
        put = headers.set if vary or cache_control else headers.add  # which looks for none to replace
        for name, value in beside.items():
            put(name, value)
        if cookie:
            headers.add("Set-Cookie", cookie)


def _refusal() -> Response:
    response = Response()
    _refuse(response)
    return response


def _refuse(response: Response) -> None:
    """503, in place of whatever the app says."""
    response.headers.clear()
    response.status_code = 503
    response.set_data(REFUSED)
    response.headers.update(REFUSED_HEADERS)


def _refuses() -> Response | None:
    # not from the session: who looks at it says that the response depends on it
    return _refusal() if request.environ.get(REFUSED_KEY) else None
