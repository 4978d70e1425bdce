"""Sessions for Django: an engine, and the middleware that goes with it.

    INSTALLED_APPS = [..., "shardproxy.sessions.django.SessionsConfig"]      # system checks
    MIDDLEWARE = [..., "shardproxy.sessions.django.SessionMiddleware", ...]  # in place of Django's
    SESSION_ENGINE = "shardproxy.sessions.django"
    SHARDPROXY_SESSIONS = {"STORE": SessionStore(redis.Redis(), secrets=[…])}

`_auth_user_id`, where django.contrib.auth keeps who is logged in, and `session.user_id` are the same: whoever
logs in here is logged in wherever the store is, and the reverse. cycle_key is a renewal, a login a change of
privilege, flush the end. With "ASYNC_STORE" the a… methods await it; without, they run in a thread.
"""

from typing import Any, cast

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.apps import AppConfig, apps
from django.conf import settings
from django.contrib.sessions.backends.base import CreateError, SessionBase, UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.contrib.sessions.middleware import SessionMiddleware as DjangoSessionMiddleware
from django.core import checks
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from shardproxy.core.sessions import operations
from shardproxy.core.sessions.errors import SessionGone, SessionUnavailable
from shardproxy.core.sessions.operations import Plan
from shardproxy.core.sessions.records import Timeouts
from shardproxy.core.sessions.rules import BROUGHT, NEVER
from shardproxy.sessions import wsgi
from shardproxy.sessions.django_settings import Configured, check_place, check_settings
from shardproxy.sessions.store import Session
from shardproxy.sessions.web import REFUSED, REFUSED_HEADERS, Visit

USER, BACKEND, HASH = "_auth_user_id", "_auth_user_backend", "_auth_user_hash"  # django.contrib.auth's
EXPIRY = "_session_expiry"  # SessionBase.set_expiry's


class SessionStore(SessionBase):
    """The engine: a `Session` of ours, in Django's words. session_key is the cookie's value."""

    visit: Visit | None = None
    _had_user = False  # django.contrib.auth's key was there when it was loaded, or saved

    def __init__(self, session_key: str | None = None) -> None:
        super().__init__(session_key)
        self.configured = Configured.now()

    # --- running operations ---

    def _run(self, plan: Plan) -> Any:
        return self.configured.store._run(plan)

    async def _arun(self, plan: Plan) -> Any:
        if self.configured.async_store is None:
            return await sync_to_async(self._run)(plan)
        return await self.configured.async_store._run(plan)

    @property
    def bound(self) -> Session:
        """Ours, loaded if it was not: `incr`, `append`, `authenticated_at`, `handle` and the like."""
        return cast(Session, self._get_session())

    async def abound(self) -> Session:
        """The same, awaited. What reaches the store is this engine's a… methods, not this one's own."""
        return cast(Session, await self._aget_session())

    @property
    def user_id(self) -> str | None:
        """Whose it is, in every framework."""
        return self.bound.user_id

    def _new(self) -> Session:
        return self.configured.store.new(self.visit.device if self.visit else None)

    # --- reading ---

    def load(self) -> Session:
        session = self._new()
        if self.session_key:
            self.configured.store.fill(session, self.session_key)
        return self._loaded(session, _auth_of(session))

    async def aload(self) -> Session:
        session = self._new()
        if self.session_key:
            try:
                await self._arun(operations.load(self.configured.store.rules, session, self.session_key))
            except SessionUnavailable as error:
                self.configured.store._failed(session, error)
        return self._loaded(session, await sync_to_async(_auth_of)(session) if _foreign(session) else {})

    def _loaded(self, session: Session, auth: dict[str, Any]) -> Session:
        if not session.unavailable:
            self._session_key = session.cookie
            if session.get(USER) not in (None, session._user_id):
                for name in (USER, BACKEND, HASH):  # who it is is said by `user_id` alone
                    session.pop(name, None)
            session.update(auth)
            self._had_user = USER in session
        return session

    def _get_session(self, no_load: bool = False) -> Any:
        self.accessed = True
        if not hasattr(self, "_session_cache"):
            # no_load is asked for sessions that are created with nothing in them
            self._session_cache = self._new() if self.session_key is None or no_load else self.load()
        return self._session_cache

    _session = property(_get_session)

    async def _aget_session(self, no_load: bool = False) -> Any:
        self.accessed = True
        if not hasattr(self, "_session_cache"):
            self._session_cache = self._new() if self.session_key is None or no_load else await self.aload()
        return self._session_cache

    def exists(self, session_key: str | None) -> bool:
        return bool(session_key and self._run(_exists(self.configured.store.rules, session_key)))

    async def aexists(self, session_key: str | None) -> bool:
        return bool(session_key and await self._arun(_exists(self.configured.store.rules, session_key)))

    # --- writing ---

    def create(self) -> None:
        self._session_key = None
        self.save(must_create=True)
        self.modified = True

    async def acreate(self) -> None:
        self._session_key = None
        await self.asave(must_create=True)
        self.modified = True

    def save(self, must_create: bool = False) -> None:
        self._get_session(no_load=must_create)
        self._saved(self._run(self._saving(must_create)))

    async def asave(self, must_create: bool = False) -> None:
        await self._aget_session(no_load=must_create)
        self._saved(await self._arun(self._saving(must_create)))

    def _saving(self, must_create: bool) -> Plan:
        """What a save is, as a plan; CreateError and UpdateError as Django has them."""
        session, rules = self._session_cache, self.configured.store.rules
        if must_create and not session.is_new:
            raise CreateError
        age = self._times(session)
        wanted = session.get(USER)
        try:
            if wanted is not None and str(wanted) != session._user_id:
                session.update({USER: str(wanted)})
                yield from operations.login(rules, session, str(wanted), remember=_remembers(session, rules))
            elif wanted is None and self._had_user and session._user_id is not None:
                # the auth keys were taken away by hand: a change of privilege like any other
                data = dict(session)
                yield from operations.destroy(rules, session)
                session.update(data)
                yield from operations.save(rules, session)
            elif session.is_new:
                yield from operations.create(rules, session)
            else:
                yield from operations.save(rules, session, renew=session.sendable)
            if age is not None and age <= 0:  # "it will expire", said of the past
                yield from operations.destroy(rules, session)
        except SessionGone:
            raise UpdateError from None

    def _saved(self, nothing: Any) -> None:
        self._session_key = self._session_cache.cookie
        self._had_user = USER in self._session_cache

    def _times(self, session: Session) -> float | None:
        """Timeouts of its own, if `set_expiry` has asked for some; its age."""
        expiry = session.get(EXPIRY)
        if not expiry:
            return None
        age = float(self.get_expiry_age(expiry=expiry))
        usual = self.configured.store.rules.classes[session.kind or "signed_in"]
        if age > 0 and not (session._stored.get(EXPIRY) == session._codec.plain(expiry) and session.kind):
            if isinstance(expiry, int):  # so long without a request
                session.set_timeouts(Timeouts(age, max(usual.absolute, age), usual.renewal))
            else:  # until then
                since = max(0.0, (session.now or 0) - (session.created_at or 0))
                session.set_timeouts(Timeouts(age, since + age, usual.renewal))
        return age

    # --- the end, and a new id ---

    def login(self, user_id: str, remember: bool = False) -> None:
        """For apps without django.contrib.auth: as `Session.login`."""
        self._saved(self._run(self._logging_in(self._get_session(), user_id, remember)))

    async def alogin(self, user_id: str, remember: bool = False) -> None:
        self._saved(await self._arun(self._logging_in(await self._aget_session(), user_id, remember)))

    def _logging_in(self, session: Session, user_id: str, remember: bool) -> Plan:
        for name in (USER, BACKEND, HASH):
            session.pop(name, None)
        yield from operations.login(self.configured.store.rules, session, user_id, remember)

    def delete(self, session_key: str | None = None) -> None:
        if key := session_key or self.session_key:
            self._run(_ending(self.configured.store.rules, self._new(), key))

    async def adelete(self, session_key: str | None = None) -> None:
        if key := session_key or self.session_key:
            await self._arun(_ending(self.configured.store.rules, self._new(), key))

    def clear(self) -> None:
        self._get_session().clear()
        self.modified = True

    def flush(self) -> None:
        self._run(operations.destroy(self.configured.store.rules, self._get_session()))
        self._session_key, self.modified = None, True

    async def aflush(self) -> None:
        await self._arun(operations.destroy(self.configured.store.rules, await self._aget_session()))
        self._session_key, self.modified = None, True

    def cycle_key(self) -> None:
        self._saved(self._run(self._cycling(self._get_session())))

    async def acycle_key(self) -> None:
        self._saved(await self._arun(self._cycling(await self._aget_session())))

    def _cycling(self, session: Session) -> Plan:
        self.modified = True
        try:
            yield from operations.renew(self.configured.store.rules, session)
        except SessionGone:
            raise UpdateError from None

    def is_empty(self) -> bool:
        return not self.session_key and not getattr(self, "_session_cache", None)

    @classmethod
    def clear_expired(cls) -> None:
        """Redis does."""

    @classmethod
    async def aclear_expired(cls) -> None:
        """Redis does."""


def _exists(rules: operations.Rules, cookie: str) -> Plan:
    """Whether that id has a session; one that leads to another has none of its own."""
    who = rules.keyring.identify(cookie)
    if who is None:
        return False
    reply = yield rules.looking(who, BROUGHT, NEVER)
    return reply[0] == b"OK"


def _ending(rules: operations.Rules, session: Session, cookie: str) -> Plan:
    if rules.keyring.identify(cookie) is not None:
        yield from operations.load(rules, session, cookie)
        yield from operations.destroy(rules, session)


def _remembers(session: Session, rules: operations.Rules) -> bool:
    """set_expiry for longer than a session of this kind lasts by itself: "remember me"."""
    expiry = session.get(EXPIRY)
    return isinstance(expiry, int) and expiry > rules.classes["signed_in"].absolute


def _foreign(session: Session) -> bool:
    """Somebody who has logged in elsewhere, and is seen here for the first time."""
    return session._user_id is not None and HASH not in session and apps.is_installed("django.contrib.auth")


def _auth_of(session: Session) -> dict[str, Any]:
    """What django.contrib.auth.login would have written, for a user who has logged in elsewhere."""
    if not _foreign(session):
        return {}
    from django.contrib.auth import get_user_model, load_backend

    path = settings.AUTHENTICATION_BACKENDS[0]
    try:
        user = load_backend(path).get_user(get_user_model()._meta.pk.to_python(session._user_id))
    except Exception:  # no user of Django's: a validation error of whatever the key is
        return {}
    if user is None:
        return {}
    made = getattr(user, "get_session_auth_hash", None)
    return {USER: session._user_id, BACKEND: path, HASH: made() if made else ""}


class SessionMiddleware(DjangoSessionMiddleware):
    """`request.session`; its cookie by the rules of core/sessions/cookies, not by SESSION_COOKIE_….

    Loaded when it is first used. What was changed is saved unless the response is a 5xx; one that ended
    meanwhile raises SessionInterrupted, a 400.
    """

    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        Configured.now().store.check_at_start()  # a server starts: UnfitPool

    def process_request(self, request: HttpRequest) -> None:
        web = Configured.now().web
        environ = dict(request.META)
        environ["wsgi.url_scheme"] = request.scheme  # SECURE_PROXY_SSL_HEADER counts, too
        visit = wsgi.arrived(web, environ)
        engine = self.SessionStore(visit.cookie)
        engine.visit = visit
        request.session = engine

    def _engine(self, request: HttpRequest) -> SessionStore | None:
        engine = getattr(request, "session", None)
        return engine if isinstance(engine, SessionStore) and engine.visit is not None else None

    def _takes_over(self, engine: SessionStore) -> Any:
        web = engine.configured.web
        if web.previous is None or engine.visit is None or not web.wants_previous(engine.visit):
            return None
        return web.previous(engine.visit.others)

    def __call__(self, request: HttpRequest) -> Any:
        if iscoroutinefunction(self):
            return self.__acall__(request)
        self.process_request(request)
        engine: SessionStore = request.session
        if found := self._takes_over(engine):
            engine.update({**found.data, **({USER: found.user_id} if found.user_id else {})})
        return self.process_response(request, self.get_response(request))

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        self.process_request(request)
        engine: SessionStore = request.session
        if found := await sync_to_async(self._takes_over)(engine) if engine.configured.web.previous else None:
            await engine.aupdate({**found.data, **({USER: found.user_id} if found.user_id else {})})
        response = await self.get_response(request)
        used = self._engine(request)
        try:
            if used and self._saves(used, response):
                await used.asave()
        except UpdateError:
            raise _interrupted() from None
        except SessionUnavailable:
            return refusal()
        return self._leave(used, response)

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        engine = self._engine(request)
        try:
            if engine and self._saves(engine, response):
                engine.save()
        except UpdateError:
            raise _interrupted() from None
        except SessionUnavailable:
            return refusal()
        return self._leave(engine, response)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        return refusal() if isinstance(exception, SessionUnavailable) else None

    def _saves(self, engine: SessionStore, response: HttpResponseBase) -> bool:
        session = getattr(engine, "_session_cache", None)
        if session is None or engine.visit is None:
            return False
        saves = engine.configured.web.saves(engine.visit, session, response.status_code)
        return saves and bool(session.modified or session.renewal_due or session.id_followed)

    def _leave(self, engine: SessionStore | None, response: HttpResponseBase) -> HttpResponseBase:
        session = getattr(engine, "_session_cache", None)
        if engine is None or session is None or engine.visit is None:
            return response
        headers = response.headers
        cookie, beside = engine.configured.web.leaving(
            engine.visit, session, headers.get("Vary", ""), headers.get("Cache-Control", "")
        )
        for name, value in beside.items():
            headers[name] = value
        if cookie:
            response.cookies.load(cookie)
        return response


def refusal() -> HttpResponse:
    return HttpResponse(REFUSED, status=503, headers=dict(REFUSED_HEADERS))


def _interrupted() -> SessionInterrupted:
    return SessionInterrupted(
        "The session ended during the request: the user may have logged out in another."
    )


class SessionsConfig(AppConfig):
    """For INSTALLED_APPS: system checks."""

    name = "shardproxy.sessions.django"
    label = "shardproxy_sessions"
    verbose_name = "shardproxy sessions"

    def ready(self) -> None:
        checks.register(check_settings)
        checks.register(check_place, checks.Tags.database)
