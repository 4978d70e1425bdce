"""Reading sessions: from a cookie to a record, along the pointers that old ids have become."""

import re
from collections.abc import Sequence
from typing import Any

from shardproxy.core.sessions.data import SessionData
from shardproxy.core.sessions.errors import SessionUnavailable
from shardproxy.core.sessions.keyring import Identity
from shardproxy.core.sessions.records import DEVICE, OWN, SCHEMA, USER, Meta, Undecodable
from shardproxy.core.sessions.rules import AGAIN, BROUGHT, HOPS, LED, NEVER, Plan, Record, Rules

_META, _EPOCH, _USER, _DEVICE, *_ = map(str.encode, OWN)
_POINTER = re.compile(rb"[A-Za-z0-9_-]{24} [A-Za-z0-9_-]{8}").fullmatch


class Ended(Exception):
    """The id that a request brings was ended a moment ago."""


def load(rules: Rules, session: SessionData, cookie: str) -> Plan:
    """Fills an empty session with what its cookie stands for: 1 call, 2 with an id that was just renewed.

    A cookie that is not ours costs none; one whose session is gone leaves the session empty, and its id is
    never taken over; one whose session was ended a moment ago leaves it `late`.
    """
    who = rules.keyring.identify(cookie)
    if who is None:
        rules.suspicious(cookie, "a cookie that no secret has made")
        return
    session._presented = who
    try:
        found, record = yield from read(rules, who)
    except Ended:
        session.late = True
        rules.counters["misses"] += 1
    else:
        _fill(rules, session, who, found, record)


def reload(rules: Rules, session: SessionData) -> Plan:
    """Reads it again; what was changed and not saved is lost. Whether it is still there."""
    who = session._identity
    session._forget()
    if who is not None:
        found, record = yield from read(rules, who, again=True)
        if not _fill(rules, session, who, found, record):
            session._empty()
    return session._identity is not None


def alive(rules: Rules, session: SessionData, touch: bool = False) -> Plan:
    """Whether it still is valid; what this request has of it stays. touch: its idle time begins again.

    To be asked more often than `bound`, so that no renewal is missed.
    """
    if session._identity is None:
        return False
    found, record = yield from read(
        rules, session._identity, again=True, touch=rules.touch if touch else NEVER
    )
    if record is not None:
        # `_version` stays: what others have changed is not seen
        session._identity, session._nonce = found, record.meta.nonce
        session._now, session._ttl, session._renew_at = record.now, record.ttl, record.meta.renew_at
    return record is not None


def _fill(rules: Rules, session: SessionData, who: Identity, found: Identity, record: Record | None) -> bool:
    """Puts what was read of `who` into the session; whether that is anything."""
    rules.counters["loads"] += 1
    if record is None:
        rules.counters["misses"] += 1
        return False
    if found is not who:
        session._cookie_changed, session._followed = True, found
    adopt(session, found, record)
    session._user_id = record.user_id
    if record.user_id is not None:
        session.device = record.device  # else this request's stays, for a login
    session._values, session._stored = record.values, record.plain
    return True


def adopt(session: SessionData, who: Identity, record: Record) -> None:
    meta = session._meta = record.meta
    session._identity, session._nonce = who, meta.nonce
    session._version, session._renew_at = meta.version, meta.renew_at
    session._now, session._ttl = record.now, record.ttl


def read(rules: Rules, who: Identity, again: bool = False, touch: float | None = None) -> Plan:
    """Where the session is now, and its record; None: it is gone, or not ours to read.

    Ended, unless it is read again.
    """
    at = who
    for _ in range(HOPS):
        reply = yield rules.looking(at, AGAIN if again else BROUGHT if at is who else LED, touch)
        status = reply[0]
        if status == b"OK":
            try:
                return at, _parse(rules, at, reply)
            except Undecodable as error:
                rules.suspicious(rules.keyring.cookie(who), f"a record that cannot be read: {error}")
                return at, None
        if status != b"MOVED":
            if status == b"ENDED" and not again:
                raise Ended
            if status == b"REVOKED":
                rules.counters["revoked_ids"] += 1
            elif status == b"DAMAGED":
                rules.suspicious(rules.keyring.cookie(who), "a damaged record")
            return at, None
        if not _POINTER(reply[1]):
            rules.suspicious(rules.keyring.cookie(who), "a damaged pointer")
            return at, None
        at = follow(rules, at, reply[1])
    return at, None


def follow(rules: Rules, at: Identity, pointer: bytes) -> Identity:
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
    _, now, ttl, flat = reply
    fields, key = dict(zip(flat[::2], flat[1::2], strict=True)), rules.keys(who)[0]
    codec, user_id, device = rules.codec, None, {}
    try:
        meta = Meta.parse(fields.pop(_META))
        whose, described = fields.pop(_USER, None), fields.pop(_DEVICE, None)
        if fields.pop(_EPOCH, None) is not None:
            user_id = codec.open(key, USER, whose or b"")[0]
        if described is not None:
            device = codec.open(key, DEVICE, described)[0]
    except (KeyError, ValueError) as error:
        raise Undecodable(type(error).__name__) from None
    if meta.schema > SCHEMA:
        raise SessionUnavailable("a session was written by a newer release")
    if user_id is not None and not (isinstance(user_id, str) and rules.keyring.owns(who.tag, user_id)):
        raise Undecodable("the record of another user, or of a secret that is no longer here")
    values, plain = codec.open_all(key, fields)
    return Record(meta, user_id, device if isinstance(device, dict) else {}, values, plain, now, ttl)
