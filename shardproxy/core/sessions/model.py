"""The scripts in Python, on a dictionary: where `MemorySessionStore` keeps sessions; tests compare with it.

Pure: `now` (ms) is an argument. Statement by statement what core/sessions/scripts has in Lua, so that the two
can be read side by side; a test runs both and compares every reply and every key.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

Args: TypeAlias = Sequence[bytes]
_META = re.compile(rb"\d+ (\d+) (\d+) (\d+) (\d+) ").match
_NUMBERS = re.compile(rb"([1-9]\d*) (\d+)").fullmatch
_INTEGER, _LIST = re.compile(rb"-?\d+").fullmatch, re.compile(rb"\[.*\]", re.DOTALL).fullmatch
_NO_ITEMS = re.compile(rb"\[\s*\]").fullmatch


class _Found:
    """What `look` saw of a record."""

    def __init__(self, fields: dict[bytes, bytes], hash: bytes) -> None:
        self.get = fields.get
        self.member = fields.get(b"h", b"")[:8] + hash
        self.left = self.idle = self.renewal = 0


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

    def _look(self, record: str, user: str, hash: bytes) -> tuple[bytes, _Found]:
        found = _Found(self.records.get(record, {}), hash)
        pointer = found.get(b"p")
        if pointer is not None:
            return b"MOVED" if pointer else b"ENDED", found
        if not found.get(b"m"):
            return b"GONE", found
        times = _META(found.get(b"m") or b"")
        if not times:
            return b"DAMAGED", found
        numbers = _NUMBERS((found.get(b"v") or b"") + b" " + (found.get(b"r") or b""))
        if not numbers or max(map(float, times.groups() + numbers.groups())) > 2**50:
            return b"DAMAGED", found
        created, absolute, found.idle, found.renewal = map(int, times.groups())
        found.left = created + absolute - self.now
        if found.left <= 0:
            self._remove(record)
            return b"GONE", found
        if epoch := found.get(b"e"):
            index = self.indexes.get(user, {})
            if -index.get(b"e", 0) != int(epoch) or found.member not in index:
                self._remove(record)
                self._zrem(user, found.member)
                return b"REVOKED", found
        return b"OK", found

    def _touch(self, record: str, user: str, found: _Found, least: float) -> int:
        ttl, want = self._ttl(record), min(found.idle, found.left)
        if want - ttl < found.idle * least:
            return ttl
        self._expire(record, want)
        if found.get(b"e"):
            self.indexes[user][found.member] = self.now + want
            self._keep(user, want)
        return want

    def _try(self, key: str, args: Args) -> bytes | None:
        fields = self.records.get(key, {})
        for what, field, value in _steps(args):
            has = fields.get(field) if what in (b"incr", b"append") else None
            if has is not None and (has[:1] or b" ") < b" ":
                return b"OPAQUE"
            if what == b"incr" and has is not None and not _INTEGER(has):
                return b"KIND"
            if what == b"incr" and (len(has or b"") > 17 or len(value) > 17):
                return b"KIND"
            if what == b"append" and has is not None and not _LIST(has):
                return b"KIND"
        return None

    def _apply(self, key: str, args: Args) -> list[bytes]:
        fields, results = self.records[key], []
        for what, field, value in _steps(args):
            if what in (b"set", b"once"):
                fields[field] = value
            elif what == b"del":
                fields.pop(field, None)
            elif what == b"incr":
                fields[field] = b"%d" % (int(fields.get(field, b"0")) + int(value))
            else:
                has = fields.get(field, b"[]")
                fields[field] = has[:-1] + (b"" if _NO_ITEMS(has) else b",") + value + b"]"
            if what in (b"incr", b"append"):
                results += [field, fields[field]]
        return results

    # --- the scripts ---

    def load(self, keys: Sequence[str], args: Args) -> list[Any]:
        record, user = keys
        state, found = self._look(record, user, args[0])
        g = int(found.get(b"g") or b"-1")
        if args[2] == b"1" and 0 < g < self.now:
            return [b"GONE"]
        if state == b"MOVED":
            return [state, found.get(b"p")]
        if state != b"OK":
            return [state]
        ttl = self._touch(record, user, found, float(args[1]))
        if g == 0 and args[2] == b"0":
            self.records[record][b"g"] = b"%d" % (self.now + int(args[3]))
        return [
            state,
            _int(self.now),
            _int(ttl),
            [each for pair in self.records[record].items() for each in pair],
        ]

    def save(self, keys: Sequence[str], args: Args) -> list[Any]:
        record, user = keys
        state, found = self._look(record, user, args[0])
        if state == b"MOVED":
            return [state, found.get(b"p")]
        if state != b"OK":
            return [state]
        fields = self.records[record]
        if args[-3] == b"once" and fields.get(args[-2]) == args[-1]:
            found_now = [
                each
                for what, field, _ in _steps(args[4:])
                if what in (b"incr", b"append")
                for each in (field, fields.get(field, b""))
            ]
            left = _int(self._ttl(record))
            return [state, _int(self.now), left, int(fields[b"v"]), found_now, fields[b"r"]]
        if args[1] not in (b"", fields[b"v"]):
            return [b"CONFLICT"]
        if no := self._try(record, args[4:]):
            return [no]
        version, least, renew_at = int(fields[b"v"]) + 1, float(args[2]), fields[b"r"]
        fields[b"v"] = b"%d" % version
        if args[3]:
            schema, created, _, _, _, kind = fields[b"m"].split(b" ", 5)
            absolute, idle, renewal = map(int, args[3].split())
            fields[b"m"] = b" ".join((schema, created, args[3], kind))
            found.left, found.idle, least = int(created) + absolute - self.now, idle, float("-inf")
            fields[b"r"] = renew_at = _int(min(int(renew_at), self.now + renewal))
        results = self._apply(record, args[4:])
        ttl = self._touch(record, user, found, least)
        return [state, _int(self.now), _int(ttl), version, results, renew_at]

    def create(self, keys: Sequence[str], args: Args) -> list[Any]:
        record, user = keys
        hash, handle, schema, times, absolute, idle, renewal, kind, whose, most, then, replaced = args[:12]
        if record in self.records:
            own = self.records[record]
            if own.get(b"h") != handle:
                return [b"EXISTS"]
            return [b"OK", _int(self.now), _int(self._ttl(record)), own.get(b"e", b""), []]
        ttl, epoch, evicted = min(int(absolute), int(idle)), b"", []
        if whose:
            self._prune(user)
            index = self.indexes.get(user, {})
            over = max(len(index) - 1, 0) + 1 - int(most) - (replaced in index)
            if int(most) > 0 and over > 0:
                if then == b"reject":
                    return [b"FULL"]
                evicted = self._members(user)[:over]
            epoch = _int(-index[b"e"] if b"e" in index else self.now)
        self.records[record] = {
            b"m": b" ".join((schema, _int(self.now), times, kind)),
            b"h": handle,
            b"v": b"1",
            b"r": _int(self.now + int(renewal)),
        }
        self._expire(record, ttl)
        if epoch:
            self.records[record] |= {b"e": epoch, b"u": whose}
            for each in evicted:
                self._zrem(user, each)
            self.indexes.setdefault(user, {}).update({b"e": -int(epoch), handle[:8] + hash: self.now + ttl})
            self._keep(user, ttl)
        self._apply(record, args[12:])
        return [b"OK", _int(self.now), _int(ttl), epoch, evicted]

    def renew(self, keys: Sequence[str], args: Args) -> list[Any]:
        record, user, fresh = keys
        state, found = self._look(record, user, args[0])
        if state == b"MOVED":
            return [state, found.get(b"p")]
        if state != b"OK":
            return [state]
        if args[1] not in (b"", self.records[record][b"v"]):
            return [b"CONFLICT"]
        if no := self._try(record, args[6:]):
            return [no]
        whole = found.get(b"h") or b""
        handle, renew_at = whole[:8], _int(self.now + found.renewal)
        ttl = min(found.idle, found.left)
        version = int(self.records[record][b"v"]) + int(args[5])
        self.records[fresh] = self.records[record] | {
            b"h": handle + args[3],
            b"r": renew_at,
            b"g": b"0",
            b"v": b"%d" % version,
        }
        self._expire(fresh, ttl)
        results = self._apply(fresh, args[6:])
        self._remove(record)
        self.records[record] = {b"p": args[2] + b" " + whole[8:]}
        if g := found.get(b"g"):
            self.records[record][b"g"] = g
        self._expire(record, min(int(args[4]), ttl))
        if found.get(b"e"):
            self.indexes[user][handle + args[2]] = self.now + ttl
            self._zrem(user, found.member)
            self._keep(user, ttl)
        return [b"OK", _int(self.now), _int(ttl), version, results, renew_at]

    def destroy(self, keys: Sequence[str], args: Args) -> list[Any]:
        record, user = keys
        state, found = self._look(record, user, args[0])
        if state == b"MOVED":
            return [state, found.get(b"p")]
        if state == b"DAMAGED":
            self._remove(record)
        if state != b"OK":
            return [state]
        if args[1] not in (b"", found.get(b"v")):
            return [b"CONFLICT"]
        self._remove(record)
        if found.get(b"e"):
            self._zrem(user, found.member)
        if int(args[2]) > 0:
            self.records[record] = {b"p": b""}
            self._expire(record, int(args[2]))
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
        if args[0]:
            state, found = self._look(record, user, args[0])
            if state == b"MOVED":
                return [state, found.get(b"p")]
            kept = found.member if state == b"OK" and found.get(b"e") else None
        gone = [member for member in self._members(user) if member != kept]
        for member in gone:
            self._zrem(user, member)
        self.indexes[user][b"e"] = -epoch
        if kept:
            self.records[record][b"e"] = _int(epoch)
        return [b"OK", gone, _int(epoch)]

    def index(self, keys: Sequence[str], args: Args) -> list[Any]:
        self._prune(keys[1])
        index = self.indexes.get(keys[1], {})
        flat = [each for member in self._members(keys[1]) for each in (member, _int(index[member]))]
        return [b"OK", _int(self.now), flat]

    def show(self, keys: Sequence[str], args: Args) -> list[Any]:
        return [
            b"OK",
            [
                [self.records.get(key, {}).get(name, b"") for name in (b"m", b"h", b"d", b"e", b"v")]
                for key in keys
            ],
        ]

    def purge(self, keys: Sequence[str], args: Args) -> list[Any]:
        for key in keys[:-1]:
            self._remove(key)
        return [b"OK"]


def _int(number: int) -> bytes:
    return b"%d" % number


def _steps(args: Args) -> list[tuple[bytes, bytes, bytes]]:
    end = 1 + 3 * int(args[0])
    return list(zip(args[1:end:3], args[2:end:3], args[3:end:3], strict=True))


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
