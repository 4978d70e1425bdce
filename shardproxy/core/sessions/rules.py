"""What all operations on sessions need: `Rules`, and the records that go in and out of them. Pure."""

from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from shardproxy.core.sessions.errors import SessionUnavailable
from shardproxy.core.sessions.keyring import Identity, Keyring
from shardproxy.core.sessions.records import Chance, Codec, Meta, Timeouts

HOPS = 4  # pointers followed from one old id
TRIES = 8  # of what must see the record unchanged
FIELDS = 1000  # keys of one session
BROUGHT, LED, AGAIN = 0, 1, 2  # how `load` has the id: of a request, by an old one, seen already
NEVER = 2.0  # a part of idle that never has passed


class Call(NamedTuple):
    """A script to run: its name, the keys it declares, its arguments."""

    script: str
    keys: Sequence[str]
    args: Sequence[str | bytes | int]


Plan: TypeAlias = Generator[Call, list[Any], Any]


async def awaited(plan: Plan, run: Callable[[Call], Awaitable[list[Any]]]) -> Any:
    """An operation's result, each of its calls run by what is awaited; SessionUnavailable is thrown in."""
    try:
        call = next(plan)
        while True:
            try:
                reply = await run(call)
            except SessionUnavailable as error:
                call = plan.throw(error)
            else:
                call = plan.send(reply)
    except StopIteration as done:
        return done.value


class Event(NamedTuple):
    """Something happened to a session.

    kind: created, renewed, destroyed, revoked, conflict or suspicious. handle: the session's, or of a
    suspicious cookie a salted hash. detail: in words, without secrets.
    """

    kind: str
    handle: str = ""
    user_id: str | None = None
    detail: str = ""


class SessionInfo(msgspec.Struct, frozen=True):
    """A session of a list. Times in seconds since 1970, by the node's clock.

    last_seen_at: to a tenth of its idle time. expires_at: if no request comes before.
    """

    handle: str
    kind: str
    created_at: float
    last_seen_at: float
    expires_at: float
    device: dict[str, Any]


class Record(NamedTuple):
    """A record, decoded. plain: the encodings of values."""

    meta: Meta
    user_id: str | None
    device: dict[str, Any]
    values: dict[str, Any]
    plain: dict[str, bytes]
    now: int
    ttl: int


class Rules:
    """All that operations need to know, fixed when a store is made.

    grace: seconds an old id still works after the new one was first seen, bounded by `bound` seconds after
    the renewal. touch: the part of idle after which a read extends it.
    """

    def __init__(
        self,
        keyring: Keyring,
        codec: Codec,
        chance: Chance,
        classes: Mapping[str, Timeouts],
        prefix: str = "",
        grace: float = 10.0,
        bound: float = 300.0,
        touch: float = 0.1,
        max_sessions: int | None = None,
        when_full: Literal["oldest", "reject"] = "oldest",
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        if set("{}") & set(prefix):
            raise ValueError("prefix: the braces of a key belong to its tag")
        if when_full not in ("oldest", "reject"):
            raise ValueError('when_full is "oldest" or "reject"')
        if any(len(name) < 2 or not name.isidentifier() for name in classes):
            raise ValueError(
                "a class of sessions has a name like a Python variable's, of two letters or more"
            )
        self.keyring, self.codec, self.chance = keyring, codec, chance
        self.classes, self.prefix, self.touch = dict(classes), prefix, touch
        self.grace, self.bound = round(grace * 1000), max(1, round(bound * 1000))
        self.max_sessions, self.when_full, self.on_event = max_sessions or 0, when_full, on_event
        self.counters: Counter[str] = Counter()
        self.saving = f"{touch}  "  # what `save` begins with when there is nothing to be said
        self._looking = {how: f"{how} {touch} {self.grace}" for how in (BROUGHT, LED, AGAIN)}

    def record_key(self, tag: str, hash: str) -> str:
        return f"{self.prefix}s:{{{tag}}}:{hash}"

    def user_key(self, tag: str) -> str:
        return f"{self.prefix}u:{{{tag}}}"

    def keys(self, who: Identity) -> tuple[str, str]:
        """The record's, and its user's. Asked for many times a request, made once."""
        found = who.keys
        if found is None:
            found = who.keys = self.record_key(who.tag, who.hash), self.user_key(who.tag)
        return found

    def looking(self, who: Identity, how: int, touch: float | None = None) -> "Call":
        """The call that reads a record. touch: another part of idle."""
        head = self._looking[how] if touch is None else f"{how} {touch} {self.grace}"
        return Call("load", self.keys(who), (head,))

    def event(self, kind: str, handle: str = "", user_id: str | None = None, detail: str = "") -> None:
        self.counters[kind] += 1
        self.on_event(Event(kind, handle, user_id, detail))

    def max_age(self, meta: Meta, now: int) -> int | None:
        """Seconds, for the persistent cookie of its class; None: as long as the browser runs. now: ms."""
        if not self.classes.get(meta.kind, Timeouts()).persistent:
            return None
        return max(0, (meta.created + meta.absolute - now) // 1000)

    def suspicious(self, cookie: str, detail: str) -> None:
        self.event("suspicious", self.keyring.newest.log_name(cookie), detail=detail)
