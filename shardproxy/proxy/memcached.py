"""Memcached nodes beside the data plane: what `probe`, `returns` and `examine` ask of one.

`MetaLine` is a `Line` that takes the few commands of Redis that a return uses (UNLINK, SCAN, FLUSHDB, TIME,
the sorted set of heartbeats, which is one small value there) and says them in memcached's words; a probe
asks with `say`. Whatever it answers that does not fit raises NodeRefuses. Connections cannot be killed there:
`kill` waits until it has none of them any more.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar
from urllib.parse import unquote_to_bytes

import hiredis

from shardproxy.core import errors
from shardproxy.core.health import Policy
from shardproxy.core.memcached import connections as who
from shardproxy.core.memcached.wire import LISTINGS
from shardproxy.core.memcached_wire import ProtocolError, Scanner, encode_key
from shardproxy.proxy.certificates import Way
from shardproxy.proxy.probe import BEGINNING, KEY_LIFE, KEYS, Line, NodeRefuses, Told, crowded

OLDEST = (1, 6)  # the meta protocol
TRIES = 5  # of a compare-and-swap between proxies
BATCH = 1000  # keys at once
PAGE = 65536  # bytes of one read
GONE, GONE_STEP = 2.0, 0.02  # seconds until connections that it still has are waited for no longer
PATIENCE, PAUSE = 5, 0.1  # askings, and seconds between them, of a crawler that is busy


class MetaLine(Line):
    """A connection to one memcached node, as Line."""

    def __init__(self, address: str, way: Way, timeout: float) -> None:
        super().__init__(address, way, timeout)
        self._scanner, self._frames = Scanner(), list[bytes]()
        self._dump: MetaLine | None = None  # SCAN's

    def close(self) -> None:
        super().close()
        if self._dump is not None:
            self._dump.close()

    async def _login(self, username: str, password: str) -> None:
        text = f"{username} {password}".encode()
        (answer,) = await self._exchange(b"mn\r\n", 1)
        if not answer.startswith(b"CLIENT_ERROR unauth"):
            # it would keep the password as a value, for everybody to read
            raise NodeRefuses("it asks for no login, but the configuration gives one")
        (answer,) = await self._exchange(b"set login 0 0 %d\r\n%b\r\n" % (len(text), text), 1)
        if answer != b"STORED\r\n":
            raise NodeRefuses("it refuses the login", answer=answer.decode(errors="replace"))

    async def say(self, request: bytes, count: int = 1) -> list[bytes]:
        """The replies, whole frames, in order."""
        return await self._guarded(self._exchange(request, count), self._timeout)

    async def _exchange(self, request: bytes, count: int) -> list[bytes]:
        assert self._writer is not None
        self._writer.write(request)
        return [await self._frame() for _ in range(count)]

    async def _frame(self) -> bytes:
        assert self._reader is not None
        while not self._frames:
            data = await self._reader.read(PAGE)
            if not data:
                said = self.said()
                raise NodeRefuses(errors.not_memcached(said) if said else "it closes the connection")
            self._beginning += data[: max(BEGINNING - len(self._beginning), 0)]
            try:
                self._frames = self._scanner.feed(data)
            except ProtocolError:
                raise NodeRefuses(errors.not_memcached(self.said())) from None
        return self._frames.pop(0)

    async def stats(self, what: bytes = b"") -> dict[str, str]:
        (answer,) = await self.say(b"stats%b\r\n" % (b" " + what if what else b""))
        return stats_of(answer)

    async def kill(self, connections: Sequence[str]) -> int:
        """It cannot: waits until it has read them to their end, and so closed them, or for GONE seconds."""
        names = {each.rpartition(" ")[2] for each in connections}
        limit = asyncio.get_running_loop().time() + GONE
        while names := names & who.connections((await self.say(who.REQUEST))[0]).keys():
            if asyncio.get_running_loop().time() > limit:
                break
            await asyncio.sleep(GONE_STEP)
        return len(names)

    # --- in the words of Redis ---

    async def _ask(self, requests: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        return [await self._answer(str(name), *args) for name, *args in requests]

    async def _answer(self, name: str, *args: str | bytes | int) -> Any:
        try:
            return await self._spoken[name](self, *args)
        except hiredis.ReplyError as error:  # one that a Redis would have answered
            return error

    async def _unlink(self, *keys: bytes) -> int:
        names = [name for key in keys if (name := encode_key(key)) is not None]
        deleted = 0
        for at in range(0, len(names), BATCH):
            batch = names[at : at + BATCH]
            request = b"".join(b"md %b%b\r\n" % (name, b" b" if base64 else b"") for name, base64 in batch)
            for answer in await self._exchange(request, len(batch)):
                _expect(answer, b"HD", b"NF")
                deleted += answer.startswith(b"HD")
        return deleted

    async def _size(self) -> int:
        (answer,) = await self._exchange(b"stats\r\n", 1)
        return int(stats_of(answer).get("curr_items", "0"))

    async def _flush(self, *_: object) -> str:
        (answer,) = await self._exchange(b"flush_all\r\n", 1)
        _expect(answer, b"OK")
        return "OK"

    async def _time(self) -> list[bytes]:
        (answer,) = await self._exchange(b"stats\r\n", 1)
        return [stats_of(answer).get("time", "0").encode(), b"0"]

    async def _scan(self, cursor: bytes, *_: object) -> list[Any]:
        """What it lists, a page a call."""
        if cursor == b"0":
            if self._dump is not None:
                self._dump.close()
            self._dump = MetaLine(self._address, self._way, self._timeout)
            await self._dump._open()
            self._dump._request_dump()
        assert self._dump is not None
        keys: list[bytes] = []
        busy = 0
        how = 0
        while len(keys) < BATCH:
            line = await self._dump._frame()
            if line.startswith(b"END"):
                self._dump.close()
                self._dump = None
                return [b"0", keys]
            if line.startswith(b"BUSY") and busy < PATIENCE:  # with somebody else's listing, or its own work
                busy += 1
                await asyncio.sleep(PAUSE)
                self._dump._request_dump(how)
                continue
            if line.startswith(b"BADCLASS") and how + 1 < len(LISTINGS):
                how += 1
                self._dump._request_dump(how)
                continue
            if not line.startswith(b"key="):
                raise NodeRefuses(
                    f"it answers lru_crawler metadump with {line[:40].decode(errors='replace')!r}"
                )
            keys.append(unquote_to_bytes(line[4:].partition(b" ")[0]))
        return [b"1", keys]

    def _request_dump(self, how: int = 0) -> None:
        assert self._writer is not None
        self._writer.write(LISTINGS[how])

    async def _beats(self, key: bytes) -> tuple[dict[str, int], bytes]:
        """Who has used it when, and its CAS value; b"": nothing is there. ReplyError: something else is."""
        (answer,) = await self._exchange(b"mg %b v c\r\n" % key, 1)
        if answer.startswith(b"EN"):
            return {}, b""
        head, _, value = answer.partition(b"\r\n")
        try:
            found = json.loads(value)
            return {str(who): int(when) for who, when in found.items()}, head.rpartition(b" c")[2]
        except (ValueError, TypeError, AttributeError, OverflowError):
            raise hiredis.ReplyError("WRONGTYPE it has something else where heartbeats are kept") from None

    async def _zrange(self, key: bytes, *_: object) -> list[bytes]:
        beats = (await self._beats(key))[0]
        return [part for who, when in beats.items() for part in (who.encode(), b"%d" % when)]

    async def _zadd(self, key: bytes, when: int, who: bytes) -> int:
        for _turn in range(TRIES):
            beats, cas = await self._beats(key)
            beats = {each: at for each, at in beats.items() if at > when - 86400} | {who.decode(): when}
            value = json.dumps(beats).encode()
            mode = b"C" + cas if cas else b"ME"
            (answer,) = await self._exchange(
                b"ms %b %d T86400 %b\r\n%b\r\n" % (key, len(value), mode, value), 1
            )
            if answer.startswith(b"HD"):
                return 1
        return 0

    async def _nothing(self, *_: object) -> int:
        return 0

    _spoken: ClassVar[dict[str, Callable[..., Coroutine[Any, Any, Any]]]] = {
        "UNLINK": _unlink,
        "FLUSHDB": _flush,
        "DBSIZE": _size,
        "TIME": _time,
        "SCAN": _scan,
        "ZRANGE": _zrange,
        "ZADD": _zadd,
        "ZREMRANGEBYSCORE": _nothing,  # ZADD has done it
        "EXPIRE": _nothing,
    }


def _expect(answer: bytes, *words: bytes) -> None:
    if not answer.startswith(words):
        raise NodeRefuses(f"it answers {answer[:BEGINNING].decode(errors='replace').strip()!r}")


def stats_of(answer: bytes) -> dict[str, str]:
    lines = answer.decode(errors="replace").splitlines()
    parts = (line.split(" ", 2) for line in lines if line.startswith("STAT "))
    return {part[1]: part[2] for part in parts if len(part) == 3}


def too_old(version: str) -> str:
    """Why a node of this version cannot be a shard's; empty: it can."""
    parts = version.split(".")
    known = len(parts) > 1 and parts[0].isdigit() and parts[1].isdigit()
    if known and (int(parts[0]), int(parts[1])) >= OLDEST:
        return ""
    return f"it is memcached {version}: a shard's must be 1.6 or newer, which speaks the meta protocol"


async def version_of(line: MetaLine) -> str:
    """Raises NodeRefuses for what is no memcached."""
    (answer,) = await line.say(b"version\r\n")
    if answer.startswith(b"CLIENT_ERROR unauth"):
        raise NodeRefuses("it needs a login: give username and password")
    if not answer.startswith(b"VERSION "):
        raise NodeRefuses(errors.not_memcached(line.said()))
    return answer[8:].decode(errors="replace").strip()


async def ask(address: str, way: Way, timeout: float) -> Told:
    """As probe.ask."""
    try:
        async with asyncio.timeout(timeout), MetaLine(address, way, timeout) as line:
            version = await version_of(line)
            if fault := too_old(version):
                raise NodeRefuses(fault)
            settings = await line.stats(b"settings")
    except TimeoutError:
        raise NodeRefuses(f"no answer in {timeout:g} s") from None
    evicts = settings.get("evictions", "on") == "on"
    return Told(version, "allkeys-lru" if evicts else "noeviction", 1, [])


async def check(
    address: str, way: Way, timeout: float, policy: Policy, run_id: str, role: bool = False
) -> None:
    """As probe.check; there are no roles."""
    try:
        async with asyncio.timeout(timeout), MetaLine(address, way, timeout) as line:
            (answer,) = await line.say(b"mn\r\n")
            if answer != b"MN\r\n":
                raise NodeRefuses(errors.not_memcached(line.said()))
            if policy.probe != "ping":
                await _write(line, run_id)
            if policy.probe == "deep" and (fault := misfit(await line.stats(), policy.max_memory_percent)):
                raise NodeRefuses(fault)
    except TimeoutError:
        raise NodeRefuses(f"no answer in {timeout:g} s") from None


async def _write(line: MetaLine, run_id: str) -> None:
    """As probe's: sets a key that nobody has, reads it back, deletes it."""
    life = KEY_LIFE // 1000
    for _ in range(KEYS):
        token = secrets.token_hex(8).encode()
        key = b"shardproxy:probe:%b:%b" % (run_id.encode(), token)
        made, found, gone = await line.say(
            b"ms %b %d T%d ME\r\n%b\r\nmg %b v\r\nmd %b\r\n" % (key, len(token), life, token, key, key), 3
        )
        if made.startswith(b"NS"):
            raise NodeRefuses("the probe's key is taken by something else")
        if not made.startswith(b"HD"):
            raise NodeRefuses(f"it answers a set with {made[:BEGINNING].decode(errors='replace').strip()!r}")
        if found not in (b"VA %d\r\n%b\r\n" % (len(token), token), b"EN\r\n"):
            raise NodeRefuses("a key that was set reads otherwise")
        if not gone.startswith((b"HD", b"NF")):
            raise NodeRefuses("a key that was set cannot be deleted")
        if found.startswith(b"VA") and gone.startswith(b"HD"):
            return
    raise NodeRefuses("a key that was set is gone at once")


def misfit(stats: dict[str, str], max_memory_percent: float) -> str:
    """What a node says of itself that keeps it from serving as a shard; empty: nothing."""
    if "version" not in stats:
        return "it does not answer stats"
    names = ("bytes", "limit_maxbytes", "curr_connections", "max_connections")
    return crowded(stats, max_memory_percent, True, names)
