"""The scripts in Python, on a dictionary: where `MemorySessionStore` keeps sessions; tests compare with it.

Pure: `now` (ms) is an argument. Statement by statement what core/sessions/scripts has in Lua, so that the two
can be read side by side; a test runs both and compares every reply and every key.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from shardproxy.core.sessions.records import KIND_OF_LETTER, OWN, Meta

META, EPOCH, USER, DEVICE, GRACE, TOKEN, POINTER = map(str.encode, OWN)
Args: TypeAlias = Sequence[bytes]
_INTEGER, _LIST = re.compile(rb"-?\d+").fullmatch, re.compile(rb"\[.*\]", re.DOTALL).fullmatch
_COUNTED = ("i", "a")
_NO_ITEMS = re.compile(rb"\[\s*\]").fullmatch


class _Found:
    """What `look` saw of a record."""

    def __init__(self, fields: dict[bytes, bytes]) -> None:
        self.get = fields.get
        self.epoch, self.grace, self.pointer = fields.get(EPOCH), fields.get(GRACE), fields.get(POINTER)
        self.meta = _NOTHING
        self.member = b""
        self.left = 0

    def pack(self, **changed: Any) -> bytes:
        self.meta = self.meta._replace(**changed)
        return self.meta.pack()


_NOTHING = Meta(0, 0, 0, 0, 0, 0, 0, "", "", "")


class Model:
    """Records, indexes and when they expire."""

    def __init__(self) -> None:
        self.records: dict[str, dict[bytes, bytes]] = {}
        self.indexes: dict[str, dict[bytes, int]] = {}
        self.expiry: dict[str, int] = {}  # ms
        self.now = 0

    def run(self, script: str, keys: Sequence[str], args: Sequence[str | bytes | int], now: int) -> list[Any]:
        """What the script answers, as a client of Redis has it: bytes, int, lists. now: ms."""
        self.now = now
        for key in [key for key in keys if self.expiry.get(key, now) < now]:
            self._remove(key)
        given = [
            each if isinstance(each, bytes) else str(each).encode("utf-8", "surrogatepass") for each in args
        ]
        return SCRIPTS[script](self, keys, given)

    def sweep(self, now: int) -> None:
        """Forgets whatever has expired."""
        for key in [key for key, when in self.expiry.items() if when < now]:
            self._remove(key)

    # --- what the prelude has ---

    def _remove(self, key: str) -> None:
        self.records.pop(key, None)
        self.indexes.pop(key, None)
        self.expiry.pop(key, None)

    def _ttl(self, key: str) -> int:
        if key not in self.records and key not in self.indexes:
            return -2
        return self.expiry[key] - self.now if key in self.expiry else -1

    def _expire(self, key: str, ttl: int) -> None:
        if ttl <= 0:
            self._remove(key)
        elif key in self.records or key in self.indexes:
            self.expiry[key] = self.now + ttl

    def _zrem(self, key: str, member: bytes) -> None:
        index = self.indexes.get(key, {})
        index.pop(member, None)
        if key in self.indexes and not index:
            self._remove(key)

    def _members(self, key: str) -> list[bytes]:
        index = self.indexes.get(key, {})
        return sorted((member for member, score in index.items() if score >= 0), key=lambda m: (index[m], m))

    def _prune(self, key: str) -> None:
        for member in self._members(key):
            if self.indexes[key][member] < self.now:
                self._zrem(key, member)

    def _keep(self, key: str, ttl: int) -> None:
        if self._ttl(key) < ttl + 1000:
            self._expire(key, ttl + 1000)

    def _look(self, record: str, user: str) -> tuple[bytes, _Found]:
        found = _Found(self.records.get(record, {}))
        if found.pointer is not None:
            return b"MOVED" if found.pointer else b"ENDED", found
        data = found.get(META)
        if data is None:
            return b"GONE", found
        try:
            found.meta = meta = Meta.parse(data)
        except ValueError:
            return b"DAMAGED", found
        found.member = meta.handle.encode() + record[-24:].encode()
        found.left = meta.created + meta.absolute - self.now
        if found.left <= 0:
            self._remove(record)
            return b"GONE", found
        if found.epoch is not None:
            index = self.indexes.get(user, {})
            if -index.get(b"e", 0) != int(found.epoch) or found.member not in index:
                self._remove(record)
                self._zrem(user, found.member)
                return b"REVOKED", found
        return b"OK", found

    def _touch(self, record: str, user: str, found: _Found, least: float) -> int:
        ttl, want = self._ttl(record), min(found.meta.idle, found.left)
        if want - ttl < found.meta.idle * least:
            return ttl
        self._expire(record, want)
        if found.epoch is not None:
            self.indexes[user][found.member] = self.now + want
            self._keep(user, want)
        return want

    def _try(self, key: str, args: Args) -> bytes | None:
        fields = self.records.get(key, {})
        for what, field, value in _steps(args):
            has = fields.get(field) if what in _COUNTED else None
            if has is not None and (has[:1] or b" ") < b" ":
                return b"OPAQUE"
            if what == "i" and has is not None and not _INTEGER(has):
                return b"KIND"
            if what == "i" and (len(has or b"") > 17 or len(value) > 17):
                return b"KIND"
            if what == "a" and has is not None and not _LIST(has):
                return b"KIND"
        return None

    def _apply(self, key: str, args: Args, meta: bytes) -> list[bytes]:
        fields, results = self.records[key], []
        fields[META] = meta
        for what, field, value in _steps(args):
            if what in ("s", "t"):
                fields[field] = value
            elif what == "d":
                fields.pop(field, None)
            elif what == "i":
                fields[field] = b"%d" % (int(fields.get(field, b"0")) + int(value))
            else:
                has = fields.get(field, b"[]")
                fields[field] = has[:-1] + (b"" if _NO_ITEMS(has) else b",") + value + b"]"
            if what in _COUNTED:
                results += [field, fields[field]]
        return results

    # --- the scripts ---

    def load(self, keys: Sequence[str], args: Args) -> list[Any]:
        record, user = keys
        how, least, grace = args[0].split(b" ")
        state, found = self._look(record, user)
        g = int(found.grace or b"-1")
        if how == b"1" and 0 < g < self.now:
            return [b"GONE"]
        if state != b"OK":
            return _state(state, found)
        ttl = self._touch(record, user, found, float(least))
        if g == 0 and how == b"0":
            self.records[record][GRACE] = b"%d" % (self.now + int(grace))
        return [state, self.now, ttl, [each for pair in self.records[record].items() for each in pair]]

    def save(self, keys: Sequence[str], args: Args) -> list[Any]:
        record, user = keys
        state, found = self._look(record, user)
        if state != b"OK":
            return _state(state, found)
        fields, meta = self.records[record], found.meta
        if args[1][-1:] == b"t" and fields.get(TOKEN) == args[-1]:
            found_now = [
                each
                for what, field, _ in _steps(args[1:])
                if what in _COUNTED
                for each in (field, fields.get(field, b""))
            ]
            return [state, self.now, self._ttl(record), meta.version, meta.renew_at, found_now]
        part, expected, times = args[0].split(b" ", 2)
        if expected and int(expected) != meta.version:
            return [b"CONFLICT"]
        if no := self._try(record, args[1:]):
            return [no]
        data, least = found.pack(version=(meta.version + 1) % (1 << 32)), float(part)
        if times:
            absolute, idle, renewal = map(int, times.split())
            renew_at = max(meta.created, min(meta.renew_at, self.now + renewal))
            data = found.pack(absolute=absolute, idle=idle, renewal=renewal, renew_at=renew_at)
            found.left, least = meta.created + absolute - self.now, float("-inf")
        results = self._apply(record, args[1:], data)
        ttl = self._touch(record, user, found, least)
        return [state, self.now, ttl, found.meta.version, found.meta.renew_at, results]

    def create(self, keys: Sequence[str], args: Args) -> list[Any]:
        record, user = keys
        handle, schema, absolute, idle, renewal, kind, whose, most, then, replaced = args[:10]
        meta = Meta(
            int(schema), self.now, int(absolute), int(idle), int(renewal), 1, self.now + int(renewal),
            handle[:8].decode(), handle[8:].decode(), KIND_OF_LETTER.get(kind) or kind.decode(),
        )  # fmt: skip
        if record in self.records:
            own = self.records[record]
            if own.get(META, b"")[31:47] != handle:
                return [b"EXISTS"]
            return [b"OK", self.now, self._ttl(record), own.get(EPOCH, b""), []]
        ttl, epoch, evicted = min(meta.absolute, meta.idle), b"", []
        if whose:
            self._prune(user)
            index = self.indexes.get(user, {})
            over = max(len(index) - 1, 0) + 1 - int(most) - (replaced in index)
            if int(most) > 0 and over > 0:
                if then == b"reject":
                    return [b"FULL"]
                evicted = self._members(user)[:over]
            epoch = _int(-index[b"e"] if b"e" in index else self.now)
        self.records[record] = {META: meta.pack()}
        self._expire(record, ttl)
        if epoch:
            self.records[record] |= {EPOCH: epoch, USER: whose}
            for each in evicted:
                self._zrem(user, each)
            member = handle[:8] + record[-24:].encode()
            self.indexes.setdefault(user, {}).update({b"e": -int(epoch), member: self.now + ttl})
            self._keep(user, ttl)
        self._apply(record, args[10:], meta.pack())
        return [b"OK", self.now, ttl, epoch, evicted]

    def renew(self, keys: Sequence[str], args: Args) -> list[Any]:
        record, user, fresh = keys
        state, found = self._look(record, user)
        if state != b"OK":
            return _state(state, found)
        meta = found.meta
        if args[0] and int(args[0]) != meta.version:
            return [b"CONFLICT"]
        if no := self._try(record, args[4:]):
            return [no]
        ttl = min(meta.idle, found.left)
        data = found.pack(
            nonce=args[1].decode(),
            renew_at=max(meta.created, self.now + meta.renewal),
            version=(meta.version + int(args[3])) % (1 << 32),
        )
        self.records[fresh] = self.records[record] | {META: data, GRACE: b"0"}
        self._expire(fresh, ttl)
        results = self._apply(fresh, args[4:], data)
        self._remove(record)
        self.records[record] = {POINTER: f"{fresh[-24:]} {meta.nonce}".encode()}
        if found.grace is not None:
            self.records[record][GRACE] = found.grace
        self._expire(record, min(int(args[2]), ttl))
        if found.epoch is not None:
            self.indexes[user][meta.handle.encode() + fresh[-24:].encode()] = self.now + ttl
            self._zrem(user, found.member)
            self._keep(user, ttl)
        return [b"OK", self.now, ttl, found.meta.version, found.meta.renew_at, results]

    def destroy(self, keys: Sequence[str], args: Args) -> list[Any]:
        record, user = keys
        state, found = self._look(record, user)
        if state == b"DAMAGED":
            self._remove(record)
        if state != b"OK":
            return _state(state, found)
        if args[0] and int(args[0]) != found.meta.version:
            return [b"CONFLICT"]
        self._remove(record)
        if found.epoch is not None:
            self._zrem(user, found.member)
        if int(args[1]) > 0:
            self.records[record] = {POINTER: b""}
            self._expire(record, int(args[1]))
        return [state]

    def revoke(self, keys: Sequence[str], args: Args) -> list[Any]:
        gone = [member for member in self._members(keys[1]) if member[:8] == args[0]]
        for member in gone:
            self._zrem(keys[1], member)
        return [b"OK", gone]

    def revoke_all(self, keys: Sequence[str], args: Args) -> list[Any]:
        record, user = keys
        if b"e" not in self.indexes.get(user, {}):
            return [b"OK", [], b""]
        epoch, kept = max(1 - self.indexes[user][b"e"], self.now), None
        if args[0] == b"1":
            state, found = self._look(record, user)
            if state == b"MOVED":
                return _state(state, found)
            kept = found.member if state == b"OK" and found.epoch is not None else None
        gone = [member for member in self._members(user) if member != kept]
        for member in gone:
            self._zrem(user, member)
        self.indexes[user][b"e"] = -epoch
        if kept:
            self.records[record][EPOCH] = _int(epoch)
        return [b"OK", gone, _int(epoch)]

    def index(self, keys: Sequence[str], args: Args) -> list[Any]:
        self._prune(keys[1])
        index = self.indexes.get(keys[1], {})
        flat = [each for member in self._members(keys[1]) for each in (member, _int(index[member]))]
        return [b"OK", self.now, flat]

    def show(self, keys: Sequence[str], args: Args) -> list[Any]:
        records = [self.records.get(key, {}) for key in keys]
        return [b"OK", [[fields.get(META, b""), fields.get(DEVICE, b"")] for fields in records]]

    def purge(self, keys: Sequence[str], args: Args) -> list[Any]:
        for key in keys[:-1]:
            self._remove(key)
        return [b"OK"]


def _int(number: int) -> bytes:
    return b"%d" % number


def _state(state: bytes, found: _Found) -> list[Any]:
    return [state] if found.pointer is None else [state, found.pointer]


def _steps(args: Args) -> list[tuple[str, bytes, bytes]]:
    kinds = args[0].decode()
    end = 1 + 2 * len(kinds)
    return list(zip(kinds, args[1:end:2], args[2:end:2], strict=True))


SCRIPTS: dict[str, Callable[[Model, Sequence[str], Args], list[Any]]] = {
    "load": Model.load,
    "save": Model.save,
    "create": Model.create,
    "renew": Model.renew,
    "destroy": Model.destroy,
    "revoke": Model.revoke,
    "revoke_all": Model.revoke_all,
    "index": Model.index,
    "show": Model.show,
    "purge": Model.purge,
}
