"""What a store does, without doing it: each operation is a generator of `Call`s.

Whoever runs one sends each call to Redis and the reply back in, and gets the generator's return value; a
reply that never came is thrown in as SessionUnavailable. So the stores that block, those that await, the one
in memory and the proxy share every rule. Pure: randomness is `Rules.chance`, time is the node's.
"""

from shardproxy.core.sessions.data import COUNTED, Change, SessionData
from shardproxy.core.sessions.errors import SessionUnavailable, TooManySessions
from shardproxy.core.sessions.keyring import Identity
from shardproxy.core.sessions.reading import alive, follow, load, read, reload
from shardproxy.core.sessions.records import DEVICE, HANDLE, Meta, Undecodable
from shardproxy.core.sessions.rules import TRIES, Call, Event, Plan, Rules, SessionInfo
from shardproxy.core.sessions.writing import create, create_for, purge, rebase, renew, save

__all__ = [
    "Call",
    "Event",
    "Plan",
    "Rules",
    "SessionInfo",
    "alive",
    "create",
    "destroy",
    "find",
    "list_sessions",
    "load",
    "login",
    "reload",
    "renew",
    "revoke",
    "revoke_all",
    "save",
    "sessions_of_tag",
]

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
        yield from create_for(
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
        yield Call("destroy", rules.keys(fresh), ["", 0])
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
        reply = yield Call("destroy", rules.keys(old), [expected, rules.grace])
        if reply[0] == b"MOVED":
            old = follow(rules, old, reply[1])
        elif reply[0] == b"CONFLICT":
            old, record = yield from read(rules, old, again=True)
            if record is None:
                return
            version = record.meta.version
            ours = {change.name for change in changes if change.what not in COUNTED}
            stored = dict(session._stored)
            rebase(rules, session, record, changes)
            session._stored = stored
            session._changed |= (record.values.keys() | stored.keys()) - ours
            session._changed |= {change.name for change in changes if change.what in COUNTED}
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
        reply = yield Call("destroy", rules.keys(at), ["", rules.grace])
        at = follow(rules, at, reply[1]) if reply[0] == b"MOVED" else None
    if at is not None:
        raise SessionUnavailable("the session had another id each time it was to be ended")
    if session._identity is not None:
        rules.event("destroyed", session.handle, session.user_id)
    session._empty()
    session.accessed = True
    session._cookie_changed = session._presented is not None


# --- a user's sessions ---


def _any(rules: Rules, tag: str) -> tuple[str, str]:
    """Keys of a call that needs no record: one that does not exist."""
    return rules.record_key(tag, ""), rules.user_key(tag)


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
    yield from purge(rules, tag, reply[1])
    return bool(reply[1])


def revoke_all(rules: Rules, user_id: str, except_: SessionData | None = None) -> Plan:
    """Ends all sessions of a user, but that one; how many."""
    count = 0
    kept = except_._identity if except_ is not None else None
    for tag in rules.keyring.tags_of(user_id):
        for _ in range(TRIES):
            at = kept if kept is not None and kept.tag == tag else None
            keys = rules.keys(at) if at is not None else _any(rules, tag)
            reply = yield Call("revoke_all", keys, [int(at is not None)])
            if at is None or reply[0] != b"MOVED":
                break
            kept = follow(rules, at, reply[1])
        else:
            raise SessionUnavailable("the session had another id each time the others were to be ended")
        count += len(reply[1])
        yield from purge(rules, tag, reply[1], user_id)
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
        for member, key, when, (about, described) in zip(part, keys, expiry[start:], shown, strict=False):
            try:
                meta = Meta.parse(about)
                device = rules.codec.open(key, DEVICE, described)[0] if described else {}
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
