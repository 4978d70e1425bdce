"""A world of requests on one session store, for hypothesis: what every interleaving of them may do.

Requests run their operations call by call, so that they interleave, die between any two calls, lose replies,
meet a full node, and a node that came back empty. Every call runs on Redis *and* on core/sessions/model,
whose replies must agree. What must be true is kept here in the plainest way: a lineage is one session
through all its ids; its fields are what the operations that succeeded have said.

Time is made to pass by shifting what is stored: nothing sleeps.
"""

import copy
import re
from collections.abc import Generator
from typing import Any

from shardproxy.core.sessions import operations
from shardproxy.core.sessions.errors import (
    SessionConflict,
    SessionGone,
    SessionUnavailable,
    TooManySessions,
)
from shardproxy.core.sessions.model import Model
from shardproxy.core.sessions.operations import Call
from shardproxy.core.sessions.records import Meta
from shardproxy.core.sessions.writing import next_of
from shardproxy.sessions import SessionStore, Timeouts
from shardproxy.sessions.executors import Blocking

IDLE, ABSOLUTE, RENEWAL, BOUND = 1800, 28800, 900, 300
TIMES = Timeouts(idle=IDLE, absolute=ABSOLUTE, renewal=RENEWAL)
CLASSES = {"anonymous": TIMES, "signed_in": TIMES, "remember_me": TIMES}
NEAR = 30000  # ms by which the clocks of the two may differ
SLACK = 20  # seconds in which the oracle has no opinion
_NUMBERS = re.compile(rb"\d+")


def alike(one: Any, two: Any) -> bool:
    """Equal, but for times that were read a moment apart."""
    if isinstance(one, list | tuple):
        return isinstance(two, list | tuple) and len(one) == len(two) and all(map(alike, one, two))
    one, two = (each if isinstance(each, bytes) else str(each).encode() for each in (one, two))
    if one == two:
        return True
    pairs = list(zip(_NUMBERS.findall(one), _NUMBERS.findall(two), strict=False))
    return _NUMBERS.sub(b"#", one) == _NUMBERS.sub(b"#", two) and all(
        a == b or (len(a) > 4 and abs(int(a) - int(b)) < NEAR) for a, b in pairs
    )


def fields_of(flat: list[bytes]) -> list[Any]:
    return readable(dict(zip(flat[::2], flat[1::2], strict=True)))


def readable(fields: dict[bytes, bytes]) -> list[Any]:
    """In an order, and with numbers that `alike` sees."""
    about = repr(Meta.parse(fields[b"\0"])).encode() if b"\0" in fields else b""
    return sorted((fields | {b"\0": about}).items())


class Both:
    """Runs a call on Redis and on the model, which must say the same."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.redis, self.model = Blocking(client), Model()

    def run(self, call: Call) -> list[Any]:
        seconds, micros = self.client.time()
        reply = self.redis.run(call)  # what raises here has changed nothing, and does not run on the model
        said = self.model.run(call.script, call.keys, call.args, seconds * 1000 + micros // 1000)
        one, two = list(reply), list(said)
        if call.script == "load" and one[0] == b"OK":
            one[3], two[3] = fields_of(one[3]), fields_of(two[3])
        assert alike(one, two), f"{call}: redis says {one}, the model {two}"
        return reply

    def age(self, seconds: int) -> None:
        """That much time passes."""
        ms = seconds * 1000
        full = self.client.config_get("maxmemory")["maxmemory"]
        self.client.config_set("maxmemory", 0)
        pipe = self.client.pipeline(transaction=False)
        for key in self.client.keys("*"):
            end = self.client.pexpiretime(key)
            assert end > 0 or end == -2, f"{key!r} has no TTL"
            if end < 0:
                continue
            if key.startswith(b"u:"):
                members = self.client.zrange(key, 0, -1, withscores=True)
                for member, score in members:
                    if member != b"e":
                        pipe.zadd(key, {member: score - ms})
            else:
                fields = self.client.hgetall(key)
                pipe.hset(key, mapping=shifted(fields, ms))
            pipe.pexpireat(key, end - ms)
        pipe.config_set("maxmemory", full)
        pipe.execute()
        for fields in self.model.records.values():
            fields.update(shifted(fields, ms))
        for index in self.model.indexes.values():
            for member in index.keys() - {b"e"}:
                index[member] -= ms
        for key in self.model.expiry:
            self.model.expiry[key] -= ms

    def compare(self) -> None:
        """Both have the same, and everything has an end."""
        seconds, micros = self.client.time()
        self.model.sweep(seconds * 1000 + micros // 1000)
        keys = {key.decode() for key in self.client.keys("*")}
        assert keys == self.model.records.keys() | self.model.indexes.keys()
        for key in keys:
            end = self.client.pexpiretime(key)
            assert end > 0, f"{key} has no TTL"
            assert abs(end - self.model.expiry[key]) < NEAR
            if key.startswith("u:"):
                index = {
                    member: b"%d" % score for member, score in self.client.zrange(key, 0, -1, withscores=True)
                }
                mine = {member: b"%d" % score for member, score in self.model.indexes[key].items()}
                assert alike(sorted(index.items()), sorted(mine.items()))
                self._index(key, index, end)
            else:
                assert alike(readable(self.client.hgetall(key)), readable(self.model.records[key]))

    def _index(self, key: str, index: dict[bytes, bytes], end: int) -> None:
        """No entry promises more than its record lives; none outlives the index."""
        for member, score in index.items():
            if member == b"e":
                continue
            assert int(score) <= end, "an entry outlives its index"
            record = self.client.pexpiretime("s" + key[1:] + ":" + member[8:].decode())
            if record > 0:
                assert abs(record - int(score)) < 2, "an entry does not end with its record"

    def empty(self) -> None:
        self.client.flushall()
        self.model = Model()


def shifted(fields: dict[bytes, bytes], ms: int) -> dict[bytes, bytes]:
    found = {}
    if b"\0" in fields:
        meta = Meta.parse(fields[b"\0"])
        found[b"\0"] = meta._replace(created=meta.created - ms, renew_at=meta.renew_at - ms).pack()
    if fields.get(b"\0g", b"0") != b"0":
        found[b"\0g"] = b"%d" % (int(fields[b"\0g"]) - ms)
    if not found:
        found[b"\0p"] = fields[b"\0p"]
    return found


class Lineage:
    """A session through all its ids."""

    def __init__(self, fields: dict[str, Any], user: str | None, clock: int) -> None:
        self.fields, self.user, self.alive = fields, user, True
        self.born = self.seen = clock
        self.cookies: list[str] = []  # the last one is the current
        self.version = 1
        self.steady = True  # False: a login that was not finished; nobody has its cookie


class Request:
    """A request: its session, what it was told to do with it, and the operation under way."""

    def __init__(self, number: int, session: Any, lineage: Lineage | None) -> None:
        self.number, self.session, self.lineage = number, session, lineage
        self.view = copy.deepcopy(lineage.fields) if lineage else {}
        self.seen = lineage.version if lineage else 0
        self.wanted: list[tuple[str, str, Any]] = []
        self.plan: Generator[Call, Any, Any] | None = None
        self.call: Call | None = None
        self.what = ""
        self.argument: Any = None

    def effective(self) -> list[tuple[str, str, Any]]:
        """What of it is a change: not what sets a field to what it was."""
        whole = {name for what, name, _ in self.wanted if what in ("set", "del")}
        found: list[tuple[str, str, Any]] = []
        for name in whole:
            value = run(self.view, self.wanted).get(name, None)
            if name not in run(self.view, self.wanted):
                if name in self.view:
                    found.append(("del", name, None))
            elif name not in self.view or self.view[name] != value:
                found.append(("set", name, value))
        return found + [each for each in self.wanted if each[1] not in whole]


def run(fields: dict[str, Any], steps: list[tuple[str, str, Any]]) -> dict[str, Any]:
    """Those steps, one after the other."""
    found = copy.deepcopy(fields)
    for what, name, value in steps:
        if what == "set":
            found[name] = copy.deepcopy(value)
        elif what == "del":
            found.pop(name, None)
        elif what == "incr":
            found[name] = found.get(name, 0) + value
        else:
            found[name] = [*found.get(name, []), value]
    return found


class World:
    """Everything, and what must be true of it."""

    def __init__(self, client: Any, **options: Any) -> None:
        self.client = client
        self.both = Both(client)
        self.both.empty()
        self.store = SessionStore(
            client, ["a secret of the machine, long enough"], classes=CLASSES, **options
        )
        self.store._executor = self.both  # type: ignore[assignment]  # it has run(), which is all that is asked
        self.rules = self.store.rules
        self.clock = 0
        self.full = False
        self.lineages: list[Lineage] = []
        self.by_key: dict[str, Lineage] = {}
        self.replaced: dict[str, int] = {}  # records that are pointers: since when
        self.requests: dict[int, Request] = {}
        self.count = 0

    # --- what happens ---

    def arrive(self, cookie: str | None, lineage: Lineage | None) -> Request:
        """A request with that cookie: what it sees must be right."""
        session = self.store.load(cookie)
        if lineage is not None:
            self._seen(session, cookie, lineage)
        else:
            assert session.is_new and not session
        request = Request(self.count, session, lineage if not session.is_new else None)
        self.requests[self.count] = request
        self.count += 1
        return request

    def _seen(self, session: Any, cookie: str | None, lineage: Lineage) -> None:
        if not lineage.alive:
            assert session.is_new and not session and session.user_id is None, "a dead session came back"
            return
        current = cookie == lineage.cookies[-1]
        idle, age = self.clock - lineage.seen, self.clock - lineage.born
        if session.is_new:
            assert not session
            if current:
                assert idle > IDLE * 0.9 - SLACK or age > ABSOLUTE - SLACK, "a session was lost"
                lineage.alive = False
            return
        assert idle < IDLE + SLACK and age < ABSOLUTE + SLACK, "a session outlived its time"
        assert dict(session) == lineage.fields, "a field was lost, or came from elsewhere"
        assert session.user_id == lineage.user
        assert session.cookie == lineage.cookies[-1] and session.cookie_changed == (not current)
        lineage.seen = self.clock

    def change(self, request: Request, what: str, name: str, value: Any) -> None:
        session, seen, given = request.session, run(request.view, request.wanted), copy.deepcopy(value)
        if what == "set":
            session[name] = given
        elif what == "del":
            if name not in seen:
                return
            del session[name]
        elif what == "incr":
            session.incr(name, value)
        elif what == "append":
            session.append(name, value)
        else:  # inside a value
            if name not in seen:
                return
            session[name].append(value)
            what, value = "set", [*seen[name], value]
        request.wanted.append((what, name, value))
        assert dict(session) == run(request.view, request.wanted)

    def begin(self, request: Request, what: str, argument: Any = None) -> None:
        rules, session = self.rules, request.session
        plans = {
            "save": lambda: operations.save(rules, session),
            "optimistic": lambda: operations.save(rules, session, optimistic=True),
            "renew": lambda: operations.renew(rules, session),
            "login": lambda: operations.login(rules, session, argument),
            "destroy": lambda: operations.destroy(rules, session),
            "revoke_all": lambda: operations.revoke_all(rules, argument, session),
            "revoke": lambda: operations.revoke(rules, session.handle),
        }
        if what == "revoke" and not session.handle:
            return
        request.what, request.argument = what, argument
        request.changes = request.effective()  # type: ignore[attr-defined]  # of this operation
        request.local = run(request.view, request.wanted)  # type: ignore[attr-defined]
        request.old = request.lineage  # type: ignore[attr-defined]
        request.began = session._identity  # type: ignore[attr-defined]
        request.plan = plans[what]()
        self._advance(request, None, first=True)

    def step(self, request: Request, lose: bool = False) -> None:
        """Its next call; lose: the reply never comes."""
        assert request.call is not None
        try:
            reply = self.both.run(request.call)
        except SessionUnavailable as error:
            assert self.full and request.call.script in ("save", "create", "renew"), error
            self._advance(request, error)
            return
        self._done(request, request.call, reply)
        self._advance(request, SessionUnavailable("lost") if lose else reply)

    def finish(self, request: Request) -> None:
        """All of them, one after the other."""
        while request.plan is not None and request.number in self.requests:
            self.step(request)

    def crash(self, request: Request) -> None:
        if request.plan is not None:
            request.plan.close()
        del self.requests[request.number]

    def _advance(self, request: Request, reply: Any, first: bool = False) -> None:
        plan = request.plan
        assert plan is not None
        try:
            if first:
                request.call = next(plan)
            elif isinstance(reply, Exception):
                request.call = plan.throw(reply)
            else:
                request.call = plan.send(reply)
        except StopIteration as done:
            request.plan = request.call = None
            self._finished(request, done.value)
        except SessionConflict:
            assert request.what == "optimistic" and request.lineage.version != request.seen  # type: ignore[union-attr]
            self.crash(request)
        except SessionGone:
            assert (
                request.lineage is None
                or not request.lineage.alive
                or self._may_be_over(request, request.lineage)
            )
            self.crash(request)
        except (SessionUnavailable, TooManySessions):
            self.crash(request)

    def _may_be_over(self, request: Request, lineage: Lineage) -> bool:
        """Not by anybody's doing. Who has an old id, and takes longer than it leads on, has lost his way."""
        idle, age = self.clock - lineage.seen, self.clock - lineage.born
        key = self.rules.keys(request.began)[0] if request.began else ""
        lost = self.clock - self.replaced.get(key, self.clock) > BOUND - SLACK
        return idle > IDLE * 0.9 - SLACK or age > ABSOLUTE - SLACK or lost

    def _done(self, request: Request, call: Call, reply: Any) -> None:
        """What a call that was carried out means."""
        if reply[0] != b"OK":
            return
        key = call.keys[0]
        if call.script == "create":
            user = request.argument if request.what == "login" else None
            lineage = Lineage(dict(request.local), user, self.clock)  # type: ignore[attr-defined]
            if request.what == "login" and request.old is not None and request.old.user not in (None, user):  # type: ignore[attr-defined]
                lineage.fields = {}
            lineage.steady = request.what != "login"
            self.by_key[key] = lineage
            self.lineages.append(lineage)
            request.lineage, request.seen = lineage, 1
            self._ended(reply[4], call)
        elif call.script in ("save", "renew"):
            lineage = self.by_key[key]
            if request.what != "login":
                if request.what == "optimistic":
                    assert lineage.version == request.seen, "a conflict was not seen"
                lineage.fields = run(lineage.fields, request.changes)  # type: ignore[attr-defined]
                contiguous = lineage.version == request.seen
                bump = 1 if request.changes or call.script == "save" else 0  # type: ignore[attr-defined]
                lineage.version += bump
                if contiguous:
                    request.seen = lineage.version
            lineage.seen = self.clock
            if call.script == "renew":
                self.by_key[call.keys[2]], self.replaced[key] = lineage, self.clock
                lineage.cookies.append(self._cookie_after(request, call))
        elif call.script == "load":
            lineage = self.by_key[key]
            lineage.seen = self.clock
            if request.what in ("save", "renew"):  # who reads again has seen everything
                request.seen = lineage.version
            elif request.what == "login" and request.lineage not in (None, lineage):
                request.lineage.fields = run(lineage.fields, request.changes)  # type: ignore[attr-defined, union-attr]
        elif call.script == "destroy":
            lineage = self.by_key[key]
            ours = request.lineage if request.what == "login" else None
            if ours not in (None, lineage) and lineage.user in (None, request.argument):
                request.lineage.fields = run(lineage.fields, request.changes)  # type: ignore[attr-defined]
            lineage.alive = False
        elif call.script in ("revoke", "revoke_all"):
            self._ended(reply[1], call)

    def _cookie_after(self, request: Request, call: Call) -> str:
        who = request.session._identity
        return self.rules.keyring.cookie(next_of(self.rules, who, request.session._nonce))

    def _ended(self, members: list[bytes], call: Call) -> None:
        for member in members:
            key = "s" + call.keys[1][1:] + ":" + member[8:].decode()
            if key in self.by_key:
                self.by_key[key].alive = False

    def _finished(self, request: Request, value: Any) -> None:
        """An operation has returned: whose request knows now what."""
        session, lineage = request.session, request.lineage
        if request.what == "destroy":
            assert session.is_new and not session
            del self.requests[request.number]
            return
        if request.what in ("revoke", "revoke_all"):
            return
        if session.is_new:
            assert not request.changes, "nothing was saved, and nothing was said"  # type: ignore[attr-defined]
            return
        assert lineage is not None
        if request.what == "login":
            lineage.steady = True
            assert request.old is None or not request.old.alive or self._may_be_over(request, request.old)  # type: ignore[attr-defined]
            request.seen = session._version
            lineage.version = session._version
        if not lineage.cookies or session.cookie not in lineage.cookies:
            lineage.cookies.append(session.cookie)
        request.wanted = []
        request.view = copy.deepcopy(dict(session))
        if request.what == "login":
            assert dict(session) == lineage.fields
        elif lineage.alive:
            for name in {name for _, name, _ in request.changes}:  # type: ignore[attr-defined]
                assert session.get(name) == request.view.get(name)
