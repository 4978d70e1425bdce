"""SESSION.*: the session store for programs in any language, by the rules and scripts of core/sessions.

    SESSION.CREATE [USER user] [CLASS class] [DEVICE json] [FOR cookie] [SET field json ...]
    SESSION.LOAD cookie                     the session, or nil
    SESSION.SAVE cookie [VERSION n] [NORENEW]
                 [SET field json | DEL field | INCR field by | APPEND field json ...]
    SESSION.TOUCH cookie                    1: it lives, and this counts as a request; 0
    SESSION.ROTATE cookie [USER user [CLASS class]]
                                            a new id; with USER the login: the old one is dead at once
    SESSION.DESTROY cookie                  1: it is gone; 0: there was none
    SESSION.LIST user    SESSION.REVOKE handle    SESSION.REVOKEALL user [EXCEPT cookie]

A cookie is what the browser sends: the program sets it again when a reply has another one. Values are JSON. A
session is answered as a map (`_shown`). Owns words ↔ operations, and the loop that asks nodes.
"""

import functools
import re
import secrets as chance
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import msgspec

from shardproxy.config import Config, ConfigError, SessionsConfig, read_session_secrets
from shardproxy.config.sessions import timeouts_of
from shardproxy.core import acl, acl_rules, errors, reply
from shardproxy.core.sessions import operations
from shardproxy.core.sessions.data import SessionData
from shardproxy.core.sessions.errors import (
    NotANumber,
    SessionConflict,
    SessionError,
    SessionGone,
    SessionTooLarge,
    SessionUnavailable,
    TooManySessions,
)
from shardproxy.core.sessions.keyring import Keyring
from shardproxy.core.sessions.operations import Call as ScriptCall
from shardproxy.core.sessions.operations import Plan, Rules
from shardproxy.core.sessions.records import CLASSES, Codec
from shardproxy.core.sessions.rules import awaited
from shardproxy.core.sessions.scripts import SCRIPTS
from shardproxy.handlers.asking import ask, is_error, text_of, value_of
from shardproxy.handlers.base import BadReply, Server, handles

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call

NUMBER = re.compile(rb"-?\d{1,18}")
MAX_SIZE = 1 << 18  # bytes of a session, decoded
CODES: tuple[tuple[type[SessionError], str], ...] = (
    (SessionGone, "SESSIONGONE"),
    (SessionConflict, "SESSIONCONFLICT"),
    (SessionUnavailable, "SESSIONUNAVAILABLE"),
    (SessionTooLarge, "SESSIONTOOLARGE"),
    (TooManySessions, "SESSIONFULL"),
    (NotANumber, "ERR"),
)
Pairs: TypeAlias = list[tuple[bytes, bytes]]


class Misused(Exception):
    """str(): the error that the client gets."""


# --- the store ---


class Store(NamedTuple):
    """What [sessions] comes to; made again when the configuration is another."""

    config: SessionsConfig
    rules: Rules


_stores: "WeakKeyDictionary[Server, Store]" = WeakKeyDictionary()


def store_of(server: Server) -> Rules:
    """Raises Misused: they are off, or where they would be kept is not fit for them."""
    config = server.config
    if config.sessions.pool is None:
        raise Misused(errors.SESSIONS_OFF)
    for address, info in server.node_info.items():
        if info.maxmemory_policy.startswith("allkeys"):
            raise Misused(errors.session_unfit(address, info.maxmemory_policy))
    found = _stores.get(server)
    if found is None or found.config is not config.sessions:
        try:
            found = Store(config.sessions, rules_of(config))
        except (ConfigError, ImportError) as error:
            server.log("sessions_unusable", reason=str(error))
            if found is None:
                raise Misused("SESSIONUNAVAILABLE the configuration of sessions cannot be used") from None
            found = Store(config.sessions, found.rules)  # what it was loaded with has changed again
        _stores[server] = found
    return found.rules


def rules_of(config: Config) -> Rules:
    """Raises ConfigError, when the secrets cannot be read."""
    it = config.sessions
    keyring = Keyring(read_session_secrets(config))
    return Rules(
        keyring,
        Codec(keyring, chance.token_bytes, encrypt=it.encrypt, max_size=MAX_SIZE),
        chance.token_bytes,
        {**CLASSES, **timeouts_of(it)},
        it.prefix,
        grace=it.grace,
        max_sessions=it.max_sessions,
        when_full=it.when_full,
    )


async def run(server: Server, plan: Plan) -> Any:
    """An operation's result; each of its scripts runs where the user's keys are."""
    return await awaited(plan, functools.partial(_run_script, server))


async def _run_script(server: Server, call: ScriptCall) -> list[Any]:
    script, rest = SCRIPTS[call.script], [len(call.keys), *call.keys, *call.args]
    node = server.reactor.node_of(call.keys[0].encode())
    frame = await ask(server, node, "EVALSHA", script.sha, *rest)
    if frame.startswith(b"-NOSCRIPT"):
        frame = await ask(server, node, "EVAL", script.text, *rest)
    if frame.startswith(b"-") and b"near '#'" in frame:  # a node before Redis 7, which knows no flags
        frame = await ask(server, node, "EVAL", script.plain, *rest)
    if is_error(frame):
        raise SessionUnavailable(text_of(frame))
    try:
        values: list[Any] = value_of(frame, list)
    except BadReply as error:
        raise SessionUnavailable(str(error)) from None
    return values


def granted(server: Server, call: "Call") -> bool:
    """By name or by @session; a refusal is in ACL LOG."""
    name = (call.client.user or acl.DEFAULT.encode()).decode(errors="surrogateescape")
    if acl_rules.grants_apart(server.users.get(name), call.row.name, server.commands):
        return True
    denied = server.access_log.denied
    denied(time.time(), call.client, name, "command", "toplevel", call.row.name.encode())
    return False


# --- words ---


def _text(word: bytes, what: str) -> str:
    try:
        return word.decode()
    except UnicodeDecodeError:
        raise Misused(f"ERR {what} is not UTF-8") from None


def _json(word: bytes, what: str) -> Any:
    try:
        return msgspec.json.decode(word)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Misused(f"ERR {what} is no JSON") from None


def _number(word: bytes) -> int:
    if not NUMBER.fullmatch(word):
        raise Misused(errors.NOT_AN_INTEGER)
    return int(word)


class Words:
    """The options of a command, one after the other. Misused: Redis's syntax error."""

    def __init__(self, words: Sequence[bytes]) -> None:
        self._left = iter(words)

    def __iter__(self) -> Iterator[bytes]:
        return (word.lower() for word in self._left)

    def next(self) -> bytes:
        found = next(self._left, None)
        if found is None:
            raise Misused(errors.SYNTAX)
        return found


def _change(session: SessionData, option: bytes, words: Words) -> None:
    """SET, DEL, INCR, APPEND; anything else is no option."""
    if option not in (b"set", b"del", b"incr", b"append"):
        raise Misused(errors.SYNTAX)
    name = _text(words.next(), "a field's name")
    if option == b"del":
        session.pop(name, None)
        return
    word = words.next()
    if option == b"set":
        session[name] = _json(word, "the value of a field")
    else:
        try:
            if option == b"incr":
                session.incr(name, _number(word))
            else:
                session.append(name, _json(word, "an item"))
        except TypeError:
            raise Misused("ERR INCR of what is no integer, or APPEND to what is no list") from None


# --- what is answered ---


def _optional(value: int | None, proto: int) -> bytes:
    return reply.null(proto) if value is None else reply.integer(value)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _shown(rules: Rules, session: SessionData, proto: int) -> bytes:
    """A session: cookie, whether it is to be set in the browser and for how long, whose it is, its times."""
    identity, meta = session._identity, session._meta
    assert identity is not None and meta is not None
    pairs: Pairs = [
        (reply.bulk("cookie"), reply.bulk(rules.keyring.cookie(identity))),
        (reply.bulk("changed"), reply.integer(int(session._cookie_changed))),
        (reply.bulk("max_age"), _optional(rules.max_age(meta, session._now), proto)),
        (reply.bulk("handle"), reply.bulk(session.handle)),
        (reply.bulk("user"), reply.bulk(session.user_id, proto)),
        (reply.bulk("class"), reply.bulk(meta.kind)),
        (reply.bulk("version"), reply.integer(session._version)),
        (reply.bulk("created"), reply.integer(meta.created)),
        (reply.bulk("authenticated"), _optional(_ms(session.authenticated_at), proto)),
        (reply.bulk("ttl"), reply.integer(session._ttl)),
        (reply.bulk("renewal_due"), reply.integer(int(session.renewal_due))),
    ]
    fields = [
        (reply.bulk(name), reply.bulk(msgspec.json.encode(value))) for name, value in session._values.items()
    ]
    pairs.append((reply.bulk("data"), reply.mapping(fields, proto)))
    return reply.mapping(pairs, proto)


# --- the commands ---

Command: TypeAlias = "Callable[[Server, Rules, Call], Any]"


def command(name: str) -> Callable[[Command], Command]:
    """Registers it behind the checks that all have in common."""

    def register(function: Command) -> Command:
        @handles(name)
        async def guarded(server: Server, call: "Call") -> bytes:
            if not granted(server, call):
                return reply.error(errors.session_denied(name))
            try:
                return bytes(await function(server, store_of(server), call))
            except Misused as error:
                return reply.error(str(error))
            except SessionError as error:
                code = next((code for kind, code in CODES if isinstance(error, kind)), "ERR")
                return reply.error(f"{code} {error}")

        return function

    return register


async def _loaded(server: Server, rules: Rules, cookie: bytes) -> SessionData:
    session = SessionData(rules.codec)
    await run(server, operations.load(rules, session, cookie.decode(errors="replace")))
    return session


@command("session.create")
async def create(server: Server, rules: Rules, call: "Call") -> bytes:
    session, words, user, kind = SessionData(rules.codec), Words(call.args[1:]), None, None
    before = b""
    for option in words:
        if option == b"user":
            user = _text(words.next(), "a user")
        elif option == b"class":
            kind = _kind(rules, words.next())
        elif option == b"for":
            before = words.next()
        elif option == b"device":
            device = _json(words.next(), "DEVICE")
            if not isinstance(device, dict):
                raise Misused("ERR DEVICE is a JSON object")
            session.device = device
        else:
            _change(session, option, words)
    if before:
        session.late = (await _loaded(server, rules, before)).late
    if user:
        await run(server, operations.login(rules, session, user, kind=kind))
    elif user is not None:
        raise Misused("ERR a user is not empty")
    else:
        await run(server, operations.create(rules, session, kind or "anonymous"))
    return _shown(rules, session, call.proto)


def _kind(rules: Rules, word: bytes) -> str:
    kind = _text(word, "a class")
    if kind not in rules.classes:
        raise Misused(f"ERR a class is one of {', '.join(rules.classes)}")
    return kind


@command("session.load")
async def load(server: Server, rules: Rules, call: "Call") -> bytes:
    session = await _loaded(server, rules, call.args[1])
    return reply.null(call.proto) if session.is_new else _shown(rules, session, call.proto)


@command("session.save")
async def save(server: Server, rules: Rules, call: "Call") -> bytes:
    session = await _loaded(server, rules, call.args[1])
    if session.is_new:
        raise SessionGone("the session has ended, or never was")
    words, renew, version = Words(call.args[2:]), True, None
    for option in words:
        if option == b"version":
            version = _number(words.next())
        elif option == b"norenew":
            renew = False
        else:
            _change(session, option, words)
    if version is not None and version != session._version:
        raise SessionConflict("another request has changed the session")
    await run(server, operations.save(rules, session, version is not None, renew))
    return _shown(rules, session, call.proto)


@command("session.touch")
async def touch(server: Server, rules: Rules, call: "Call") -> bytes:
    return reply.integer(int(not (await _loaded(server, rules, call.args[1])).is_new))


@command("session.rotate")
async def rotate(server: Server, rules: Rules, call: "Call") -> bytes:
    words, user, kind = Words(call.args[2:]), None, None
    for option in words:
        if option == b"user":
            user = _text(words.next(), "a user")
        elif option == b"class":
            kind = _kind(rules, words.next())
        else:
            raise Misused(errors.SYNTAX)
    if user == "" or (kind is not None and user is None):
        raise Misused(errors.SYNTAX)
    session = await _loaded(server, rules, call.args[1])
    if session.is_new:
        raise SessionGone("the session has ended, or never was")
    await run(
        server,
        operations.renew(rules, session)
        if user is None
        else operations.login(rules, session, user, kind=kind),
    )
    return _shown(rules, session, call.proto)


@command("session.destroy")
async def destroy(server: Server, rules: Rules, call: "Call") -> bytes:
    session = await _loaded(server, rules, call.args[1])
    there = not session.is_new
    await run(server, operations.destroy(rules, session))
    return reply.integer(int(there))


@command("session.list")
async def list_sessions(server: Server, rules: Rules, call: "Call") -> bytes:
    found = await run(server, operations.list_sessions(rules, _text(call.args[1], "a user")))
    return reply.array(
        reply.mapping(
            [
                (reply.bulk("handle"), reply.bulk(each.handle)),
                (reply.bulk("class"), reply.bulk(each.kind)),
                (reply.bulk("created"), reply.integer(round(each.created_at * 1000))),
                (reply.bulk("seen"), reply.integer(round(each.last_seen_at * 1000))),
                (reply.bulk("expires"), reply.integer(round(each.expires_at * 1000))),
                (reply.bulk("device"), reply.bulk(msgspec.json.encode(each.device))),
            ],
            call.proto,
        )
        for each in found
    )


@command("session.revoke")
async def revoke(server: Server, rules: Rules, call: "Call") -> bytes:
    try:
        return reply.integer(
            int(await run(server, operations.revoke(rules, _text(call.args[1], "a handle"))))
        )
    except ValueError as error:
        raise Misused(f"ERR {error}") from None


@command("session.revokeall")
async def revoke_all(server: Server, rules: Rules, call: "Call") -> bytes:
    if len(call.args) not in (2, 4) or (len(call.args) == 4 and call.args[2].lower() != b"except"):
        raise Misused(errors.SYNTAX)
    kept = await _loaded(server, rules, call.args[3]) if len(call.args) == 4 else None
    user = _text(call.args[1], "a user")
    return reply.integer(await run(server, operations.revoke_all(rules, user, kept)))
