"""The stores: `SessionStore` blocks, `AsyncSessionStore` awaits; `MemorySessionStore` and
`AsyncMemorySessionStore` keep everything in this process, by the same rules, for an application's tests.

    store = SessionStore(redis.Redis(), secrets=[os.environ["SESSION_SECRET"]])
    session = store.load(cookie)             # the cookie's value, or None
    session["cart"] = ["book"]
    session.login("42")                      # a change of privilege: another id, the old one is dead
    session.save()                           # merges into what others have saved
    if session.cookie_changed: ...           # send session.cookie, or remove it when that is None

What they do is in core/sessions/operations; here are the loops that run it.
"""

import asyncio
import contextlib
import logging
import secrets as chance
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from shardproxy.core.sessions import operations
from shardproxy.core.sessions.data import SessionData
from shardproxy.core.sessions.errors import SessionUnavailable, UnfitPool
from shardproxy.core.sessions.keyring import Keyring
from shardproxy.core.sessions.operations import Event, Plan, Rules, SessionInfo
from shardproxy.core.sessions.records import CLASSES, Codec, Timeouts
from shardproxy.core.sessions.rules import awaited
from shardproxy.sessions.executors import FAULTS, Awaiting, AwaitingMemory, Blocking, Memory
from shardproxy.sessions.fitness import Verdict, examine

log = logging.getLogger("shardproxy.sessions")

WARNINGS = 5  # a minute, of suspicious cookies
AT_START = 5.0  # seconds that a server which starts waits for what a store says of itself


class BoundSession(SessionData):
    """A session and its store: what both kinds have.

    sendable: False once a response has begun: no cookie can be sent, so no new id is made.
    """

    _store: "BaseStore"
    sendable = True

    @property
    def cookie(self) -> str | None:
        """The value of its cookie; None: nothing is stored, so there is none."""
        return self._store.rules.keyring.cookie(self._identity) if self._identity is not None else None

    @property
    def cookie_changed(self) -> bool:
        """Whether the response has to set the cookie, or to remove it if `cookie` is None.

        False after `load` found nothing: another response may just have set a good one.
        """
        return self._cookie_changed

    @property
    def cookie_max_age(self) -> int | None:
        """Seconds, for the persistent cookie of its class; None: as long as the browser runs."""
        return self._store.rules.max_age(self._meta, self._now) if self._meta else None

    def _may_change_id(self, needed: bool = True) -> None:
        if not self.sendable and needed:
            raise RuntimeError("the response has begun: the cookie of a new id cannot be sent any more")

    def cookie_sent(self) -> None:
        """The adapter has sent it: `cookie_changed` is False again."""
        self._cookie_changed = False


class Session(BoundSession):
    """A session of a `SessionStore`: a dict, and what below can be done with it."""

    def __init__(self, store: "SessionStore", device: Mapping[str, Any] | None = None) -> None:
        SessionData.__init__(self, store.rules.codec, device)
        self._store: SessionStore = store

    def save(self, optimistic: bool = False, renew: bool = True) -> None:
        """Stores what was changed, merged into what others have changed; nothing if nothing was.

        optimistic: SessionConflict if others have. renew: with a new id if one is due; False where no cookie
        can be sent (a websocket). SessionGone: it has ended meanwhile. SessionUnavailable. SessionTooLarge.
        """
        self._may_change_id(self.is_new and self.modified)
        self._store._run(operations.save(self._store.rules, self, optimistic, renew and self.sendable))

    def renew(self) -> None:
        """A new id now, for equal privilege; the old one works for a little while. Saves, too."""
        self._may_change_id()
        self._store._run(operations.renew(self._store.rules, self))

    def login(self, user_id: str, remember: bool = False, kind: str | None = None) -> None:
        """It is this user's from now on, under a new id; the old id is dead at once. Saves, too.

        What it has goes along, unless it was another user's. Also for a step-up: `authenticated_at` is now.
        remember: the class "remember_me"; kind: another one. TooManySessions.
        """
        self._may_change_id()
        self._store._run(operations.login(self._store.rules, self, user_id, remember, kind))

    def destroy(self) -> None:
        """Logout: gone, whatever others still save, and the cookie with it. The object is empty again."""
        self._store._run(operations.destroy(self._store.rules, self))

    logout = destroy

    def reload(self) -> bool:
        """Reads it again, without what was not saved; whether it is still there."""
        return bool(self._store._run(operations.reload(self._store.rules, self)))

    def alive(self, touch: bool = False) -> bool:
        """Whether it is still valid: not destroyed, revoked, expired. touch: that counts as a request."""
        return bool(self._store._run(operations.alive(self._store.rules, self, touch)))


class AsyncSession(BoundSession):
    """A session of an `AsyncSessionStore`: as `Session`, and what reaches the store is awaited."""

    def __init__(self, store: "AsyncSessionStore", device: Mapping[str, Any] | None = None) -> None:
        SessionData.__init__(self, store.rules.codec, device)
        self._store: AsyncSessionStore = store

    async def save(self, optimistic: bool = False, renew: bool = True) -> None:
        """See `Session.save`."""
        self._may_change_id(self.is_new and self.modified)
        await self._store._run(operations.save(self._store.rules, self, optimistic, renew and self.sendable))

    async def renew(self) -> None:
        """See `Session.renew`."""
        self._may_change_id()
        await self._store._run(operations.renew(self._store.rules, self))

    async def login(self, user_id: str, remember: bool = False, kind: str | None = None) -> None:
        """See `Session.login`."""
        self._may_change_id()
        await self._store._run(operations.login(self._store.rules, self, user_id, remember, kind))

    async def destroy(self) -> None:
        """See `Session.destroy`."""
        await self._store._run(operations.destroy(self._store.rules, self))

    logout = destroy

    async def reload(self) -> bool:
        """See `Session.reload`."""
        return bool(await self._store._run(operations.reload(self._store.rules, self)))

    async def alive(self, touch: bool = False) -> bool:
        """See `Session.alive`."""
        return bool(await self._store._run(operations.alive(self._store.rules, self, touch)))


class BaseStore:
    """What all stores are made with, and count.

    secrets         the newest first, at least 16 bytes each (better 32 random ones); an older one stays for
                    as long as sessions made with it may live
    classes         timeouts by class, over the defaults of "anonymous", "signed_in" and "remember_me"
    fail            when the store cannot be reached: "error", load raises SessionUnavailable; "anonymous",
                    the session reads as empty, a write raises, the cookie is not touched
    format          of fields: "json", or "msgpack"
    compress_over   bytes from which a field is compressed; None: never
    encrypt         AES-GCM; needs `cryptography`. "migrate": fields that are not encrypted are still read
    max_size        bytes of a session, decoded
    prefix          before all keys
    grace, bound    seconds an old id works after the new one was seen, and after its renewal at most
    touch           the part of idle after which a read extends it
    max_sessions    of one user; when_full: "oldest", what would expire first ends; "reject", TooManySessions
    check           the place is asked whether it is fit for sessions, when an adapter starts, or, if it could
                    not be reached then, before the first use: True, UnfitPool if not; "warn", a warning;
                    False, it is not asked
    on_event        is told of sessions created, renewed, destroyed, revoked, in conflict, suspicious

    counters: how often what happened, since it was made.
    """

    def __init__(
        self,
        secrets: Sequence[str | bytes],
        *,
        classes: Mapping[str, Timeouts] | None = None,
        fail: Literal["error", "anonymous"] = "error",
        format: Literal["json", "msgpack"] = "json",
        compress_over: int | None = 1024,
        encrypt: bool | Literal["migrate"] = False,
        max_size: int = 1 << 18,
        prefix: str = "",
        grace: float = 10.0,
        bound: float = 300.0,
        touch: float = 0.1,
        max_sessions: int | None = None,
        when_full: Literal["oldest", "reject"] = "oldest",
        check: bool | Literal["warn"] = True,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        if fail not in ("error", "anonymous"):
            raise ValueError('fail is "error" or "anonymous"')
        keyring = Keyring(secrets)
        codec = Codec(keyring, chance.token_bytes, format, compress_over, encrypt, max_size)
        self.fail = fail
        self._check, self._checked = check, not check
        self._on_event = on_event
        self._warns_again, self._warned, self._unsaid = 0.0, 0, 0
        self.rules = Rules(
            keyring, codec, chance.token_bytes, {**CLASSES, **(classes or {})}, prefix, grace, bound, touch,
            max_sessions, when_full, self._told,
        )  # fmt: skip

    @property
    def counters(self) -> Mapping[str, int]:
        return self.rules.counters

    def genuine(self, cookie: str | None) -> bool:
        """Whether that is a cookie of ours; asks nobody."""
        return bool(cookie) and self.rules.keyring.identify(str(cookie)) is not None

    def _told(self, event: Event) -> None:
        if event.kind == "suspicious":
            self._warn(event)
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception as error:  # the application's own: no reason to lose a session
                log.error("on_event raised %s", type(error).__name__)

    def _warn(self, event: Event) -> None:
        """Forged cookies cost nothing: a flood of them must not flood the log. `on_event` is told of all."""
        now = time.monotonic()
        if now >= self._warns_again:
            self._warns_again, self._warned = now + 60, 0
        self._warned += 1
        if self._warned > WARNINGS:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more were not logged)" if self._unsaid else ""
        self._unsaid = 0
        log.warning("suspicious session cookie %s: %s%s", event.handle, event.detail, more)

    def _judged(self, verdict: Verdict) -> None:
        """What `examine` has found: said once; UnfitPool as often as it is asked."""
        for warning in verdict.warnings + (verdict.faults if self._check == "warn" else []):
            log.warning("sessions: %s", warning)
        if verdict.faults and self._check != "warn":
            raise UnfitPool("; ".join(verdict.faults))
        self._checked = verdict.known

    def _failed(self, session: SessionData, error: SessionUnavailable) -> None:
        """A read that failed: what `fail` says."""
        self.rules.counters["unavailable"] += 1
        if self.fail == "error":
            raise error
        session.unavailable = True


class SessionStore(BaseStore):
    """Sessions in Redis, over a client that blocks; safe to share between threads if the client is.

    client: `redis.Redis` of one node or of the proxy, or `ShardedRedis`. See `BaseStore` for the rest.
    """

    def __init__(self, client: Any, secrets: Sequence[str | bytes], **options: Any) -> None:
        super().__init__(secrets, **options)
        self._executor: Blocking | Memory = client if isinstance(client, Memory) else Blocking(client)
        self._checked |= self._executor.client is None

    def new(self, device: Mapping[str, Any] | None = None) -> Session:
        """An empty session; nothing is stored before data is."""
        return Session(self, device)

    def load(self, cookie: str | None, device: Mapping[str, Any] | None = None) -> Session:
        """The session of a cookie's value; an empty one when there is none. SessionUnavailable.

        device: what `list_sessions` shows of the device, if the user logs in in this request.
        """
        session = Session(self, device)
        if cookie:
            self.fill(session, cookie)
        return session

    def fill(self, session: Session, cookie: str) -> None:
        """What `load` does, with an empty session of the caller's."""
        try:
            self._run(operations.load(self.rules, session, cookie))
        except SessionUnavailable as error:
            self._failed(session, error)

    def list_sessions(self, user_id: str) -> list[SessionInfo]:
        """The sessions of a user, the latest seen first."""
        return list(self._run(operations.list_sessions(self.rules, user_id)))

    def find(self, handle: str) -> SessionInfo | None:
        """One session of a user by its public handle; None: it is gone. ValueError: no handle."""
        found: SessionInfo | None = self._run(operations.find(self.rules, handle))
        return found

    def revoke(self, handle: str) -> bool:
        """Ends one session of a user at once; whether it was there. ValueError: no handle."""
        return bool(self._run(operations.revoke(self.rules, handle)))

    def revoke_all(self, user_id: str, except_: SessionData | None = None) -> int:
        """Ends all sessions of a user at once, but `except_`; how many were listed."""
        return int(self._run(operations.revoke_all(self.rules, user_id, except_)))

    def check(self) -> None:
        """Asks whether the place is fit for sessions, as the first use does otherwise. UnfitPool."""
        asking = examine(self._executor.client)
        try:
            step = next(asking)
            while True:
                try:
                    reply = step()
                except FAULTS as error:
                    reply = error
                step = asking.send(reply)
        except StopIteration as done:
            self._judged(done.value)

    def check_at_start(self) -> None:
        """`check`, unless it is done or not wanted. A store that cannot be reached in time is not unfit."""
        if self._checked:
            return
        found: list[UnfitPool] = []

        def asks() -> None:
            try:
                self.check()
            except UnfitPool as error:
                found.append(error)

        # A client may try for minutes, which is its own affair: the server starts
        asking = threading.Thread(target=asks, name="sessions: fit?", daemon=True)
        asking.start()
        asking.join(AT_START)
        if found:
            raise found[0]

    def _run(self, plan: Plan) -> Any:
        if not self._checked:
            self.check()
        try:
            call = next(plan)
            while True:
                try:
                    reply = self._executor.run(call)
                except SessionUnavailable as error:
                    call = plan.throw(error)
                else:
                    call = plan.send(reply)
        except StopIteration as done:
            return done.value


class AsyncSessionStore(BaseStore):
    """The same over a client of asyncio: `redis.asyncio.Redis`, `AsyncShardedRedis`."""

    def __init__(self, client: Any, secrets: Sequence[str | bytes], **options: Any) -> None:
        super().__init__(secrets, **options)
        self._executor: Awaiting | AwaitingMemory = (
            client if isinstance(client, AwaitingMemory) else Awaiting(client)
        )
        self._checked |= self._executor.client is None

    def new(self, device: Mapping[str, Any] | None = None) -> AsyncSession:
        """See `SessionStore.new`."""
        return AsyncSession(self, device)

    async def load(self, cookie: str | None, device: Mapping[str, Any] | None = None) -> AsyncSession:
        """See `SessionStore.load`."""
        session = AsyncSession(self, device)
        if cookie:
            try:
                await self._run(operations.load(self.rules, session, cookie))
            except SessionUnavailable as error:
                self._failed(session, error)
        return session

    async def list_sessions(self, user_id: str) -> list[SessionInfo]:
        """See `SessionStore.list_sessions`."""
        return list(await self._run(operations.list_sessions(self.rules, user_id)))

    async def find(self, handle: str) -> SessionInfo | None:
        """See `SessionStore.find`."""
        found: SessionInfo | None = await self._run(operations.find(self.rules, handle))
        return found

    async def revoke(self, handle: str) -> bool:
        """See `SessionStore.revoke`."""
        return bool(await self._run(operations.revoke(self.rules, handle)))

    async def revoke_all(self, user_id: str, except_: SessionData | None = None) -> int:
        """See `SessionStore.revoke_all`."""
        return int(await self._run(operations.revoke_all(self.rules, user_id, except_)))

    async def check(self) -> None:
        """See `SessionStore.check`."""
        asking = examine(self._executor.client)
        try:
            step = next(asking)
            while True:
                try:
                    reply = await step()
                except FAULTS as error:
                    reply = error
                step = asking.send(reply)
        except StopIteration as done:
            self._judged(done.value)

    async def check_at_start(self) -> None:
        """See `SessionStore.check_at_start`."""
        if not self._checked:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.check(), AT_START)

    def _run(self, plan: Plan) -> Awaitable[Any]:
        return awaited(plan, self._executor.run) if self._checked else self._run_checked(plan)

    async def _run_checked(self, plan: Plan) -> Any:
        await self.check()
        return await awaited(plan, self._executor.run)


class MemorySessionStore(SessionStore):
    """A `SessionStore` without Redis, for tests: the same rules. memory: shared with other stores."""

    def __init__(
        self,
        secrets: Sequence[str | bytes] = ("for tests only, and public",),
        *,
        memory: Memory | None = None,
        **options: Any,
    ) -> None:
        self.memory = memory or Memory()
        super().__init__(self.memory, secrets, **options)


class AsyncMemorySessionStore(AsyncSessionStore):
    """The same, awaited."""

    def __init__(
        self,
        secrets: Sequence[str | bytes] = ("for tests only, and public",),
        *,
        memory: AwaitingMemory | None = None,
        **options: Any,
    ) -> None:
        self.memory = memory or AwaitingMemory()
        super().__init__(self.memory, secrets, **options)
