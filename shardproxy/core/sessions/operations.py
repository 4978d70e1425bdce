"""What a store does, without doing it: each operation is a generator of `Call`s.

Whoever runs one sends each call to Redis and the reply back in, and gets the generator's return value; a
reply that never came is thrown in as SessionUnavailable. So the stores that block, those that await, the one
in memory and the proxy share every rule. Pure: randomness is `Rules.chance`, time is the node's.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from shardproxy.core.sessions.data import Change, SessionData
from shardproxy.core.sessions.errors import (
    NotANumber,
    SessionConflict,
    SessionGone,
    SessionTooLarge,
    SessionUnavailable,
    TooManySessions,
)
from shardproxy.core.sessions.keyring import TAG, Identity, Keyring, text
from shardproxy.core.sessions.records import (
    HANDLE,
    LETTER_OF_KIND,
    SCHEMA,
    Chance,
    Codec,
    Meta,
    Timeouts,
    Undecodable,
)

HOPS = 4  # pointers followed from one old id
TRIES = 8  # of what must see the record unchanged
FIELDS = 1000  # keys of one session
AGAIN = 2  # how `load` is asked for what this request has seen already
NEVER = 2.0  # a part of idle that never has passed


class Call(NamedTuple):
    """A script to run: its name, the keys it declares, its arguments."""

    script: str
    keys: Sequence[str]
    args: Sequence[str | bytes | int]


Plan: TypeAlias = Generator[Call, list[Any], Any]


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
    """A record, decoded. fields: name → (value, plain encoding)."""

    meta: Meta
    handle: str
    nonce: str
    version: int
    renew_at: int
    user_id: str | None
    device: dict[str, Any]
    fields: dict[str, tuple[Any, bytes]]
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

    def record_key(self, tag: str, hash: str) -> str:
        return f"{self.prefix}s:{{{tag}}}:{hash}"

    def user_key(self, tag: str) -> str:
        return f"{self.prefix}u:{{{tag}}}"

    def keys(self, who: Identity) -> list[str]:
        return [self.record_key(who.tag, who.hash), self.user_key(who.tag)]

    def event(self, kind: str, handle: str = "", user_id: str | None = None, detail: str = "") -> None:
        self.counters[kind] += 1
        self.on_event(Event(kind, handle, user_id, detail))

    def suspicious(self, cookie: str, detail: str) -> None:
        self.event("suspicious", self.keyring.newest.log_name(cookie), detail=detail)


# --- reading ---


def load(rules: Rules, session: SessionData, cookie: str) -> Plan:
    """Fills an empty session with what its cookie stands for: 1 call, 2 with an id that was just renewed.

    A cookie that is not ours costs none; one whose session is gone leaves the session empty, and its id is
    never taken over.
    """
    who = rules.keyring.identify(cookie)
    if who is None:
        rules.suspicious(cookie, "a cookie that no secret has made")
        return
    session._presented = who
    yield from _read_into(rules, session, who)


def reload(rules: Rules, session: SessionData) -> Plan:
    """Reads it again; what was changed and not saved is lost. Whether it is still there."""
    who = session._identity
    session._forget()
    if who is not None and not (yield from _read_into(rules, session, who, again=True)):
        session._empty()
    return session._identity is not None


def alive(rules: Rules, session: SessionData, touch: bool = False) -> Plan:
    """Whether it still is valid; what this request has of it stays. touch: its idle time begins again.

    To be asked more often than `bound`, so that no renewal is missed.
    """
    if session._identity is None:
        return False
    found, record = yield from _read(
        rules, session._identity, again=True, touch=rules.touch if touch else NEVER
    )
    if record is not None:
        session._identity, session._nonce = found, record.nonce
        session._now, session._ttl, session._renew_at = record.now, record.ttl, record.renew_at
    return record is not None


def _read_into(rules: Rules, session: SessionData, who: Identity, again: bool = False) -> Plan:
    found, record = yield from _read(rules, who, again)
    rules.counters["loads"] += 1
    if record is None:
        rules.counters["misses"] += 1
        return False
    session._cookie_changed |= found != who
    _adopt(session, found, record)
    session.user_id = record.user_id
    if record.user_id is not None:
        session.device = record.device  # else this request's stays, for a login
    session._values = {name: value for name, (value, _) in record.fields.items()}
    session._stored = {name: plain for name, (_, plain) in record.fields.items()}
    return True


def _adopt(session: SessionData, who: Identity, record: Record) -> None:
    session._identity, session._meta = who, record.meta
    session.handle, session._nonce = who.tag + record.handle, record.nonce
    session._version, session._renew_at = record.version, record.renew_at
    session._now, session._ttl = record.now, record.ttl


def _read(rules: Rules, who: Identity, again: bool = False, touch: float | None = None) -> Plan:
    """Where the session is now, and its record; None: it is gone, or not ours to read."""
    at, least = who, str(rules.touch if touch is None else touch)
    for _ in range(HOPS):
        how = AGAIN if again else int(at is not who)
        reply = yield Call("load", rules.keys(at), (at.hash, least, how, rules.grace))
        if reply[0] == b"MOVED":
            at = _follow(rules, at, reply[1])
            continue
        if reply[0] != b"OK":
            if reply[0] == b"REVOKED":
                rules.counters["revoked_ids"] += 1
            elif reply[0] == b"DAMAGED":
                rules.suspicious(rules.keyring.cookie(who), "a damaged record")
            return at, None
        try:
            return at, _parse(rules, at, reply)
        except Undecodable as error:
            rules.suspicious(rules.keyring.cookie(who), f"a record that cannot be read: {error}")
            return at, None
    return at, None


def _follow(rules: Rules, at: Identity, pointer: bytes) -> Identity:
    """Where an old id leads to: "hash-of-the-next nonce" → the next one."""
    hash, _, nonce = pointer.decode("utf-8", "replace").partition(" ")
    id = at.secret.next_id(at.id, nonce)
    for secret in rules.keyring.secrets:
        if secret.hash_of(id) == hash:
            return Identity(secret, at.tag, id)
    # Made with a secret that is not known here: nothing can be said of the session
    raise SessionUnavailable("a session was renewed with a secret that this store does not have")


def _parse(rules: Rules, who: Identity, reply: Sequence[Any]) -> Record:
    """A record that `load` has answered. Undecodable."""
    flat, key = reply[3], rules.record_key(who.tag, who.hash)
    fields, own = {}, {}
    opened = rules.codec.open
    try:
        for name, data in zip(flat[::2], flat[1::2], strict=True):
            if name[:1] == b".":
                fields[name[1:].decode("utf-8", "surrogatepass")] = opened(
                    key, name.decode("utf-8", "surrogatepass"), data
                )
            else:
                own[name] = data
        meta, handle = Meta.parse(own[b"m"]), own[b"h"].decode("ascii")
        numbers = int(own[b"v"]), int(own[b"r"]), int(reply[1]), int(reply[2])
        user_id = opened(key, "u", own[b"u"])[0] if b"e" in own else None
        device = opened(key, "d", own[b"d"])[0] if b"d" in own else {}
    except (KeyError, ValueError) as error:
        raise Undecodable(type(error).__name__) from None
    if meta.schema > SCHEMA:
        raise SessionUnavailable("a session was written by a newer release")
    if user_id is not None and not (isinstance(user_id, str) and rules.keyring.owns(who.tag, user_id)):
        raise Undecodable("the record of another user, or of a secret that is no longer here")
    version, renew_at, now, ttl = numbers
    return Record(
        meta, handle[:HANDLE], handle[HANDLE:], version, renew_at, user_id,
        device if isinstance(device, dict) else {}, fields, now, ttl,
    )  # fmt: skip


# --- writing ---


def save(rules: Rules, session: SessionData, optimistic: bool = False, renew: bool = True) -> Plan:
    """Stores what was changed, into whatever else has changed: 1 call.

    A session with nothing in it is not created. renew: with a new id, if one is due and a cookie can be
    sent. optimistic: only if nobody else has saved since it was read. SessionGone: it was destroyed,
    revoked or has expired; nothing is stored. SessionConflict, SessionTooLarge, NotANumber.
    """
    if session.unavailable:
        if session.modified:
            raise SessionUnavailable("the session could not be read: it cannot be written")
        return
    changes = session._changes()
    if session._identity is None:
        if changes:
            yield from _create(rules, session, "anonymous", None)
        return
    due = renew and session.renewal_due and not session._timeouts
    if due or changes or session._timeouts:
        yield from _write(rules, session, changes, optimistic, due)


def renew(rules: Rules, session: SessionData) -> Plan:
    """A new id now, for equal privilege; saves, too. The old one works for a little while."""
    if session.unavailable:
        raise SessionUnavailable("the session could not be read: it cannot be renewed")
    if session._identity is None:
        yield from save(rules, session)
    else:
        if session._timeouts:
            yield from save(rules, session, renew=False)
        yield from _write(rules, session, session._changes(), False, True)


def _write(rules: Rules, session: SessionData, changes: list[Change], optimistic: bool, fresh: bool) -> Plan:
    codec = rules.codec
    # Steps that a script cannot do, as it cannot read the field: done here, if nobody has changed the record
    here = not codec.plain_json and any(change.what in ("incr", "append") for change in changes)
    for _ in range(TRIES):
        who = session._identity
        assert who is not None
        target = _next(rules, who, session._nonce) if fresh else who
        keys = rules.keys(who) + ([rules.record_key(target.tag, target.hash)] if fresh else [])
        sent = [_whole(codec, session, each) for each in changes] if here else changes
        rebound = fresh and bool(codec.encrypt)
        expected = session._version if optimistic or here or rebound else ""
        steps = _steps(rules, session, target, sent, rebound)
        if fresh:
            nonce = text(rules.chance(6))
            args = [who.hash, expected, target.hash, nonce, rules.bound, int(bool(changes)), *steps]
            reply = yield Call("renew", keys, args)
        else:
            times = " ".join(map(str, session._timeouts.ms)) if session._timeouts else ""
            reply = yield Call("save", keys, [who.hash, expected, str(rules.touch), times, *steps])
        status = reply[0]
        if status == b"OK":
            _written(rules, session, target, sent, reply, nonce if fresh else "")
            return
        if status == b"MOVED":  # a parallel request was faster: that one's id is ours, with our changes
            session._identity, session._cookie_changed = _follow(rules, who, reply[1]), True
            yield from _refresh(rules, session, changes, optimistic)
            fresh = False
            if not changes and not session._timeouts:
                return
        elif status == b"KIND":
            raise NotANumber("incr of what is no integer (or too large), append to what is no list")
        elif status == b"OPAQUE" or (status == b"CONFLICT" and not optimistic):
            here = here or status == b"OPAQUE"
            yield from _refresh(rules, session, changes)
        elif status == b"CONFLICT":
            rules.event("conflict", session.handle, session.user_id)
            raise SessionConflict("another request has changed the session")
        else:
            rules.counters["saves_of_the_dead"] += 1
            raise SessionGone("the session has ended")
    raise SessionUnavailable(f"the session was changed by others {TRIES} times while it was being saved")


def _whole(codec: Codec, session: SessionData, change: Change) -> Change:
    """An incr or append as the value it comes to."""
    if change.what in ("set", "del"):
        return change
    return Change("set", change.name, codec.plain(session._values[change.name]))


def _refresh(rules: Rules, session: SessionData, changes: list[Change], optimistic: bool = False) -> Plan:
    """Reads the record again, under what this request has changed."""
    assert session._identity is not None
    found, record = yield from _read(rules, session._identity, again=True)
    if record is None:
        raise SessionGone("the session has ended")
    if optimistic and record.version != session._version:
        rules.event("conflict", session.handle, session.user_id)
        raise SessionConflict("another request has changed the session")
    _adopt(session, found, record)
    rebase(rules, session, record, changes)


def rebase(rules: Rules, session: SessionData, record: Record, changes: list[Change]) -> None:
    """What the record has now, with this request's changes on it."""
    ours = {change.name for change in changes if change.what in ("set", "del")}
    steps = {change.name for change in changes} - ours
    for name in (record.fields.keys() | session._stored.keys() | steps) - ours:
        if name in record.fields:
            value, data = record.fields[name]
            if session._stored.get(name) == data and name not in steps:
                continue  # who holds the value may still change it
            session._values[name], session._stored[name] = value, data
        else:
            session._values.pop(name, None)
            session._stored.pop(name, None)
        session._handed.pop(name, None)
    for what, name, data in changes:
        if what == "incr":
            value = session._values.get(name, 0)
            if type(value) is not int:
                raise NotANumber(f"{name!r} is no integer")
            session._values[name] = value + int(data)
        elif what == "append":
            items = session._values.get(name, [])
            if not isinstance(items, list):
                raise NotANumber(f"{name!r} is no list")
            session._values[name] = [*items, rules.codec.parse(data)]


def _steps(
    rules: Rules, session: SessionData, target: Identity, changes: Iterable[Change], rebound: bool = False
) -> list[str | bytes | int]:
    """Arguments for `apply`: how many steps, then three of each. rebound: every field, for another key."""
    key, codec = rules.record_key(target.tag, target.hash), rules.codec
    steps: list[str | bytes | int] = []
    done = set()
    for what, name, data in changes:
        done.add(name)
        steps += [what, "." + name, codec.seal(key, "." + name, data) if what == "set" else data]
    if rebound:
        for name, data in session._stored.items():
            if name not in done:
                steps += ["set", "." + name, codec.seal(key, "." + name, data)]
        if session.user_id is not None:
            steps += ["set", "u", codec.seal(key, "u", codec.plain(session.user_id))]
        if session.device and session.user_id is not None:
            steps += ["set", "d", codec.seal(key, "d", codec.plain(session.device))]
    size = sum(map(len, session._stored.values())) + sum(len(change.data) for change in changes)
    if size > codec.max_size or len(session._values) > FIELDS:
        raise SessionTooLarge(f"a session of {size} bytes, {len(session._values)} fields: over the limit")
    rules.counters["bytes_saved"] += sum(len(each) for each in steps if isinstance(each, bytes))
    return [len(steps) // 3, *steps]


def _written(
    rules: Rules, session: SessionData, who: Identity, changes: list[Change], reply: Sequence[Any], nonce: str
) -> None:
    now, ttl, version, results, renew_at = reply[1:6]
    key = rules.record_key(who.tag, who.hash)
    found = {}
    for field, data in zip(results[::2], results[1::2], strict=True):
        name = field.decode("utf-8", "surrogatepass")
        found[name[1:]] = rules.codec.open(key, name, data)
    if session._timeouts and session._meta:
        absolute, idle, renewal = session._timeouts.ms
        session._meta = session._meta._replace(absolute=absolute, idle=idle, renewal=renewal)
        session._timeouts = None
    if int(version) == session._version + (1 if changes or not nonce else 0):
        session._version = int(version)  # else others' changes have not been seen: optimistic saves must fail
    session._now, session._ttl, session._renew_at = int(now), int(ttl), int(renew_at)
    session._saved(changes, found)
    rules.counters["saves"] += 1
    if nonce:
        session._identity, session._nonce, session._cookie_changed = who, nonce, True
        rules.event("renewed", session.handle, session.user_id)


def _next(rules: Rules, who: Identity, nonce: str) -> Identity:
    return Identity(rules.keyring.newest, who.tag, who.secret.next_id(who.id, nonce))


def create(rules: Rules, session: SessionData, kind: str = "anonymous") -> Plan:
    """Stores a new session at once, also with nothing in it: for those who asked for just that."""
    yield from _create(rules, session, kind, None)


def _create(
    rules: Rules, session: SessionData, kind: str, user_id: str | None, replaced: str = "", room: int = 0
) -> Plan:
    """A record with all that the session has, under an id nobody has ever seen."""
    codec, newest = rules.codec, rules.keyring.newest
    tag = newest.tag_of(user_id) if user_id is not None else text(rules.chance(TAG))
    who = Identity(newest, tag, rules.chance(32))
    key = rules.record_key(tag, who.hash)
    changes = [Change("set", name, codec.plain(value)) for name, value in session._values.items()]
    timeouts = session._timeouts or rules.classes[kind]
    absolute, idle, renewal = timeouts.ms
    handle, nonce = text(rules.chance(6)), text(rules.chance(6))
    steps = _steps(rules, session, who, changes)
    if session.device and user_id is not None:  # who is anonymous is on no list
        steps += ["set", "d", codec.seal(key, "d", codec.plain(session.device))]
        steps[0] = (len(steps) - 1) // 3
    whose = codec.seal(key, "u", codec.plain(user_id)) if user_id is not None else ""
    reply = yield Call(
        "create", [key, rules.user_key(tag)],
        [who.hash, handle + nonce, SCHEMA, f"{absolute} {idle} {renewal}", absolute, idle, renewal,
         LETTER_OF_KIND.get(kind, kind), whose, room, rules.when_full, replaced, *steps],
    )  # fmt: skip
    if reply[0] == b"FULL":
        raise TooManySessions(f"{rules.max_sessions} sessions are open")
    if reply[0] != b"OK":
        raise SessionUnavailable("a random id is taken: there is no randomness here")
    now, ttl = int(reply[1]), int(reply[2])
    meta = Meta(SCHEMA, now, absolute, idle, renewal, kind)
    _adopt(session, who, Record(meta, handle, nonce, 1, now + renewal, user_id, {}, {}, now, ttl))
    session.user_id, session._cookie_changed = user_id, True
    session._stored = {}
    session._saved(changes, {})
    rules.event("created", session.handle, user_id)
    if reply[4]:
        yield from _gone(rules, tag, reply[4], user_id)


def _gone(rules: Rules, tag: str, members: Sequence[bytes], user_id: str | None = None) -> Plan:
    """Sessions that are out of the index are dead already: their records go too, and it is told."""
    for start in range(0, len(members), 100):
        part = [member.decode("ascii", "replace") for member in members[start : start + 100]]
        for member in part:
            rules.event("revoked", tag + member[:HANDLE], user_id)
        keys = [rules.record_key(tag, member[HANDLE:]) for member in part]
        try:
            yield Call("purge", [*keys, rules.user_key(tag)], [])
        except SessionUnavailable:
            return  # their TTL removes them


# --- a change of privilege, and the end ---


def login(
    rules: Rules, session: SessionData, user_id: str, remember: bool = False, kind: str | None = None
) -> Plan:
    """The session becomes this user's, under a new id; the old id is dead when this returns.

    What the session has goes along, unless it was another user's. remember, or kind: its class. Also for a
    step-up: the same user has proved again who he is. TooManySessions.
    """
    if session.unavailable:
        raise SessionUnavailable("the session could not be read: nobody can log in")
    if not isinstance(user_id, str) or not user_id:
        raise TypeError("user_id is a string, not empty")
    session.accessed = True
    old, version, taken = session._identity, session._version, session.user_id in (None, user_id)
    changes = session._changes() if taken else []
    replaced = session.handle[-HANDLE:] + old.hash if old and session.user_id == user_id else ""
    before = session._user_state() if not taken else None
    if not taken:
        session._forget()
    room = yield from _room(rules, user_id)
    try:
        yield from _create(
            rules, session, kind or ("remember_me" if remember else "signed_in"), user_id, replaced, room
        )
    except BaseException:
        if before is not None:
            session._restore(before)
        raise
    if old is None:
        return
    try:
        yield from _leave(rules, session, old, version if taken else None, changes)
    except SessionUnavailable:
        # The old id may be alive: then the new one must not be, or whoever holds the old would share a login
        fresh = session._identity
        assert fresh is not None
        session._empty()
        session.unavailable = True
        yield Call("destroy", rules.keys(fresh), [fresh.hash, ""])
        raise


def _room(rules: Rules, user_id: str) -> Plan:
    """How many sessions the user may have by the newest secret; those by older ones count, and go first."""
    room = rules.max_sessions
    if not room:
        return 0
    for tag in rules.keyring.tags_of(user_id)[:-1]:
        room -= len((yield Call("index", _any(rules, tag), []))[2]) // 2
    if room < 1 and rules.when_full == "reject":
        raise TooManySessions(f"{rules.max_sessions} sessions are open")
    return max(1, room)


def _leave(
    rules: Rules, session: SessionData, old: Identity, version: int | None, changes: list[Change]
) -> Plan:
    """Ends the session that this one has come from; what others saved there meanwhile comes along."""
    for attempt in range(2 * TRIES):
        expected = "" if version is None or attempt >= TRIES else version
        reply = yield Call("destroy", rules.keys(old), [old.hash, expected])
        if reply[0] == b"MOVED":
            old = _follow(rules, old, reply[1])
        elif reply[0] == b"CONFLICT":
            old, record = yield from _read(rules, old, again=True)
            if record is None:
                return
            version = record.version
            ours = {change.name for change in changes if change.what in ("set", "del")}
            stored = dict(session._stored)
            rebase(rules, session, record, changes)
            session._stored = stored
            session._changed |= (record.fields.keys() | stored.keys()) - ours
            session._changed |= {change.name for change in changes if change.what in ("incr", "append")}
            yield from save(rules, session, renew=False)
        else:
            return
    raise SessionUnavailable("the session had another id each time it was to be ended")


def destroy(rules: Rules, session: SessionData) -> Plan:
    """Logout: the session is gone, by its old ids too, and the cookie with it. The object is empty again."""
    if session.unavailable:
        raise SessionUnavailable("the session could not be read: it cannot be destroyed")
    at = session._identity
    for _ in range(TRIES):
        if at is None:
            break
        reply = yield Call("destroy", rules.keys(at), [at.hash, ""])
        at = _follow(rules, at, reply[1]) if reply[0] == b"MOVED" else None
    if at is not None:
        raise SessionUnavailable("the session had another id each time it was to be ended")
    if session._identity is not None:
        rules.event("destroyed", session.handle, session.user_id)
    session._empty()
    session.accessed = True
    session._cookie_changed = session._presented is not None


# --- a user's sessions ---


def _any(rules: Rules, tag: str) -> list[str]:
    """Keys of a call that needs no record: one that does not exist."""
    return [rules.record_key(tag, ""), rules.user_key(tag)]


def split_handle(handle: str) -> tuple[str, str]:
    """tag, and the rest. ValueError."""
    if (
        len(handle) != 20 + HANDLE
        or not handle.replace("-", "a").replace("_", "a").isalnum()
        or not handle.isascii()
    ):
        raise ValueError("that is no handle of a session")
    return handle[:20], handle[20:]


def revoke(rules: Rules, handle: str) -> Plan:
    """Ends one session of a user, by its public name; whether it was there."""
    tag, rest = split_handle(handle)
    reply = yield Call("revoke", _any(rules, tag), [rest])
    yield from _gone(rules, tag, reply[1])
    return bool(reply[1])


def revoke_all(rules: Rules, user_id: str, except_: SessionData | None = None) -> Plan:
    """Ends all sessions of a user, but that one; how many."""
    count = 0
    kept = except_._identity if except_ is not None else None
    for tag in rules.keyring.tags_of(user_id):
        for _ in range(TRIES):
            at = kept if kept is not None and kept.tag == tag else None
            keys, hash = (rules.keys(at), at.hash) if at is not None else (_any(rules, tag), "")
            reply = yield Call("revoke_all", keys, [hash])
            if at is None or reply[0] != b"MOVED":
                break
            kept = _follow(rules, at, reply[1])
        else:
            raise SessionUnavailable("the session had another id each time the others were to be ended")
        count += len(reply[1])
        yield from _gone(rules, tag, reply[1], user_id)
    return count


def list_sessions(rules: Rules, user_id: str) -> Plan:
    """list[SessionInfo] of a user, the latest seen first."""
    found: list[SessionInfo] = []
    for tag in rules.keyring.tags_of(user_id):
        found += yield from sessions_of_tag(rules, tag)
    return sorted(found, key=lambda each: -each.last_seen_at)


def sessions_of_tag(rules: Rules, tag: str) -> Plan:
    """The same by tag, as operators have it from a handle: its first 20 characters."""
    reply = yield Call("index", _any(rules, tag), [])
    members = [member.decode("ascii", "replace") for member in reply[2][::2]]
    expiry = [int(float(score)) for score in reply[2][1::2]]
    found = []
    for start in range(0, len(members), 100):
        part = members[start : start + 100]
        keys = [rules.record_key(tag, member[HANDLE:]) for member in part]
        shown = (yield Call("show", keys, []))[1]
        for member, key, when, (m, _, d, _, _) in zip(part, keys, expiry[start:], shown, strict=False):
            try:
                meta = Meta.parse(m)
                device = rules.codec.open(key, "d", d)[0] if d else {}
            except (ValueError, Undecodable):
                continue
            seen = max(meta.created, when - meta.idle) / 1000
            device = device if isinstance(device, dict) else {}
            found.append(
                SessionInfo(tag + member[:HANDLE], meta.kind, meta.created / 1000, seen, when / 1000, device)
            )
    return found


def find(rules: Rules, handle: str) -> Plan:
    """SessionInfo of a session of some user, by its public name; None: it is gone. ValueError: no handle."""
    tag, _ = split_handle(handle)
    found = yield from sessions_of_tag(rules, tag)
    return next((each for each in found if each.handle == handle), None)
