"""Writing sessions: creating, saving into what others have saved, renewal."""

from collections.abc import Sequence
from typing import Any

from shardproxy.core.sessions.data import COUNTED, Change, SessionData
from shardproxy.core.sessions.errors import (
    NotANumber,
    SessionConflict,
    SessionGone,
    SessionTooLarge,
    SessionUnavailable,
    TooManySessions,
)
from shardproxy.core.sessions.keyring import TAG, Identity, text
from shardproxy.core.sessions.reading import adopt, alive, follow, read
from shardproxy.core.sessions.records import (
    DEVICE,
    HANDLE,
    LETTER_OF_KIND,
    SCHEMA,
    TOKEN,
    USER,
    Codec,
    Meta,
    field_of,
    name_of,
)
from shardproxy.core.sessions.rules import FIELDS, TRIES, Call, Plan, Record, Rules


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
            yield from create_for(rules, session, "anonymous", None)
        return
    due = renew and session.renewal_due and not session._timeouts
    if due or changes or session._timeouts:
        yield from _write(rules, session, changes, optimistic, due)
    elif session.id_followed and not (yield from alive(rules, session)):
        session._cookie_changed = False  # a login has come since: its cookie is the one to stay


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
    counted = bool(session._ops)
    here = counted and not codec.plain_json
    # A client that heard no answer may send it again: then it must not be done twice
    token = text(rules.chance(6)) if counted or optimistic else ""
    for _ in range(TRIES):
        who = session._identity
        assert who is not None
        target = next_of(rules, who, session._nonce) if fresh else who
        sent = [_whole(codec, session, each) for each in changes] if here else changes
        rebound = fresh and bool(codec.encrypt)
        expected = session._version if optimistic or here or rebound else ""
        steps = _steps(rules, session, target, sent, rebound, token)
        if fresh:
            nonce = text(rules.chance(6))
            args = [expected, nonce, rules.bound, int(bool(changes)), *steps]
            reply = yield Call("renew", (*rules.keys(who), rules.keys(target)[0]), args)
        else:
            times = " ".join(map(str, session._timeouts.ms)) if session._timeouts else ""
            head = f"{rules.touch} {expected} {times}" if expected or times else rules.saving
            reply = yield Call("save", rules.keys(who), [head, *steps])
        status = reply[0]
        if status == b"OK":
            _written(rules, session, target, sent, reply, nonce if fresh else "")
            return
        if status == b"MOVED":  # a parallel request was faster: that one's id is ours, with our changes
            session._identity, session._cookie_changed = follow(rules, who, reply[1]), True
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
            raise _gone(rules, session)
    raise SessionUnavailable(f"the session was changed by others {TRIES} times while it was being saved")


def _gone(rules: Rules, session: SessionData) -> SessionGone:
    """To be raised: nothing is stored, and whatever cookie another request has set stays."""
    session._cookie_changed = False
    rules.counters["saves_of_the_dead"] += 1
    rules.event("conflict", session.handle, session.user_id, "a save after the end of the session")
    return SessionGone("the session has ended")


def _whole(codec: Codec, session: SessionData, change: Change) -> Change:
    """An incr or append as the value it comes to."""
    if change.what not in COUNTED:
        return change
    return Change("s", change.name, codec.plain(session._values[change.name], change.name))


def _refresh(rules: Rules, session: SessionData, changes: list[Change], optimistic: bool = False) -> Plan:
    """Reads the record again, under what this request has changed."""
    assert session._identity is not None
    found, record = yield from read(rules, session._identity, again=True)
    if record is None:
        raise _gone(rules, session)
    if optimistic and record.meta.version != session._version:
        rules.event("conflict", session.handle, session.user_id)
        raise SessionConflict("another request has changed the session")
    adopt(session, found, record)
    rebase(rules, session, record, changes)


def rebase(rules: Rules, session: SessionData, record: Record, changes: list[Change]) -> None:
    """What the record has now, with this request's changes on it."""
    ours = {change.name for change in changes if change.what not in COUNTED}
    steps = {change.name for change in changes} - ours
    for name in (record.values.keys() | session._stored.keys() | steps) - ours:
        if name in record.values:
            value, data = record.values[name], record.plain[name]
            if session._stored.get(name) == data and name not in steps:
                continue  # who holds the value may still change it
            session._values[name], session._stored[name] = value, data
        else:
            session._values.pop(name, None)
            session._stored.pop(name, None)
        session._handed.discard(name)
        session._appended.pop(name, None)
    for what, name, data in changes:
        if what == "i":
            value = session._values.get(name, 0)
            if type(value) is not int:
                raise NotANumber(f"{name!r} is no integer")
            session._values[name] = value + int(data)
        elif what == "a":
            items = session._values.get(name, [])
            if not isinstance(items, list):
                raise NotANumber(f"{name!r} is no list")
            session._values[name] = [*items, rules.codec.parse(data)]


def _steps(
    rules: Rules,
    session: SessionData,
    target: Identity,
    changes: Sequence[Change],
    rebound: bool = False,
    token: str = "",
) -> list[str | bytes | int]:
    """Arguments for `apply`: a letter for each step, then field and value of each.

    rebound: every field, for another key. token: of a save that must not be done twice.
    """
    key, codec, stored = rules.keys(target)[0], rules.codec, session._stored
    steps: list[str | bytes | int] = [""]
    kinds, grows = "", 0
    for what, name, data in changes:
        kinds += what
        grows += len(name) + len(data)
        if what not in COUNTED and name in stored:
            grows -= len(name) + len(stored[name])
        field = field_of(name)
        steps += field, codec.seal(key, field, data) if what == "s" else data
    if rebound:
        whole = {field_of(name): data for name, data in stored.items()}
        if session._user_id is not None:
            whole[USER] = codec.plain(session._user_id)
            if session.device:
                whole[DEVICE] = codec.plain(session.device, "device")
        for field in whole.keys() - {field_of(change.name) for change in changes}:
            kinds += "s"
            steps += field, codec.seal(key, field, whole[field])
    before = sum(map(len, stored)) + sum(map(len, stored.values())) if grows > 0 else 0
    many = len(session._values) > max(FIELDS, len(stored))
    # Parallel saves may have made it larger together: it still can be renewed, made smaller, logged in
    if many or before + grows > codec.max_size:
        raise SessionTooLarge(f"a session of more than {codec.max_size} bytes, or {FIELDS} keys")
    rules.counters["bytes_saved"] += sum([len(each) for each in steps if type(each) is bytes])
    if token:
        kinds += "t"
        steps += TOKEN, token
    steps[0] = kinds
    return steps


def _written(
    rules: Rules, session: SessionData, who: Identity, changes: list[Change], reply: Sequence[Any], nonce: str
) -> None:
    _, now, ttl, version, renew_at, results = reply
    found = {}
    if results:
        key = rules.keys(who)[0]
        for field, data in zip(results[::2], results[1::2], strict=True):
            name = field.decode("utf-8", "surrogatepass")
            found[name_of(name)] = rules.codec.open(key, name, data)
    if session._timeouts and session._meta:
        absolute, idle, renewal = session._timeouts.ms
        session._meta = session._meta._replace(absolute=absolute, idle=idle, renewal=renewal)
    if version == session._version + (1 if changes or not nonce else 0):
        session._version = version  # else others' changes have not been seen: optimistic saves must fail
    session._now, session._ttl, session._renew_at = now, ttl, renew_at
    session._saved(changes, found)
    rules.counters["saves"] += 1
    if nonce:
        session._identity, session._nonce, session._cookie_changed = who, nonce, True
        session._followed = who
        rules.event("renewed", session.handle, session._user_id)


def next_of(rules: Rules, who: Identity, nonce: str) -> Identity:
    return Identity(rules.keyring.newest, who.tag, who.secret.next_id(who.id, nonce))


def create(rules: Rules, session: SessionData, kind: str = "anonymous") -> Plan:
    """Stores a new session at once, also with nothing in it: for those who asked for just that."""
    yield from create_for(rules, session, kind, None)


def create_for(
    rules: Rules, session: SessionData, kind: str, user_id: str | None, replaced: str = "", room: int = 0
) -> Plan:
    """A record with all that the session has, under an id nobody has ever seen. SessionGone: it is late."""
    if session.late and user_id is None:
        raise _gone(rules, session)
    codec, newest = rules.codec, rules.keyring.newest
    tag = newest.tag_of(user_id) if user_id is not None else text(rules.chance(TAG))
    who = Identity(newest, tag, rules.chance(32))
    key = rules.keys(who)[0]
    changes = [Change("s", name, codec.plain(value, name)) for name, value in session._values.items()]
    timeouts = session._timeouts or rules.classes[kind]
    absolute, idle, renewal = timeouts.ms
    handle, nonce = text(rules.chance(6)), text(rules.chance(6))
    steps = _steps(rules, session, who, changes)
    if session.device and user_id is not None:  # who is anonymous is on no list
        described = codec.seal(key, DEVICE, codec.plain(session.device, "device"))
        steps = [f"{steps[0]!s}s", *steps[1:], DEVICE, described]
    whose = codec.seal(key, USER, codec.plain(user_id, "user_id")) if user_id is not None else ""
    reply = yield Call(
        "create", rules.keys(who),
        [handle + nonce, SCHEMA, absolute, idle, renewal, LETTER_OF_KIND.get(kind, kind),
         whose, room, rules.when_full, replaced, *steps],
    )  # fmt: skip
    if reply[0] == b"FULL":
        raise TooManySessions(f"{rules.max_sessions} sessions are open")
    if reply[0] != b"OK":
        raise SessionUnavailable("a random id is taken: there is no randomness here")
    now, ttl = reply[1:3]
    meta = Meta(SCHEMA, now, absolute, idle, renewal, 1, now + renewal, handle, nonce, kind)
    adopt(session, who, Record(meta, user_id, {}, {}, {}, now, ttl))
    session.user_id, session._cookie_changed, session.late = user_id, True, False
    session._stored = {}
    session._saved(changes, {})
    rules.event("created", session.handle, user_id)
    if reply[4]:
        yield from purge(rules, tag, reply[4], user_id)


def purge(rules: Rules, tag: str, members: Sequence[bytes], user_id: str | None = None) -> Plan:
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
