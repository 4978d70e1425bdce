"""Talking to a node beside the data plane: what it is, and whether it is well.

Owns: `Line`, a short connection of its own; `ask`, what a node says of itself; `check`, a probe of one of
three depths. hiredis reads the replies; what comes instead of RESP is quoted, so that an address of something
else is found out. A probe never touches a key that it did not make itself.
"""

import asyncio
import errno
import os
import secrets
import ssl
from collections.abc import Coroutine, Sequence
from typing import Any, Self, TypeVar

import hiredis
import msgspec

from shardproxy.core import errors
from shardproxy.core.health import Policy
from shardproxy.proxy.certificates import Way

BEGINNING = 80  # bytes that are kept of what a node says, to quote
MOST = 16 << 20  # bytes of a reply; COMMAND of Redis 8 has a third of a megabyte
KEY_LIFE = 60_000  # milliseconds that a probe's key stays when we cannot delete it
# Of our own: no descriptor, memory or port left to connect with
OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}
FULL = "ERR max number of clients"  # which is no login's fault
KEYS = 3  # that a probe tries, one after the other, while a node that is full throws them out


T = TypeVar("T")


class NodeRefuses(Exception):
    """The node could not be asked; the text says why. refused: there is nobody to connect to.

    answer: what it said, which may quote a password: to look at, never to show. ours: it is our own fault.
    """

    def __init__(self, reason: str, refused: bool = False, answer: str = "", ours: bool = False) -> None:
        super().__init__(reason)
        self.refused, self.answer, self.ours = refused, answer, ours


class Told(msgspec.Struct, frozen=True):
    """What a node said of itself."""

    version: str
    maxmemory_policy: str
    databases: int  # 0: it does not say
    commands: list[Any]  # its reply to COMMAND; empty: it does not say


def fields_of(info: str) -> dict[str, str]:
    """The reply of INFO as name → value."""
    return dict(line.split(":", 1) for line in info.splitlines() if ":" in line)


class Line:
    """A connection to one node. Use it as `async with`.

    Raises NodeRefuses for whatever goes wrong; `timeout` seconds are for connecting and logging in together,
    and for each `ask`. text: replies are str, otherwise bytes.
    """

    def __init__(self, address: str, way: Way, timeout: float, text: bool = False) -> None:
        self._address, self._way, self._timeout = address, way, timeout
        self._parser = hiredis.Reader(encoding="utf-8", errors="replace") if text else hiredis.Reader()
        self._beginning = bytearray()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._guarded(self._open(), self._timeout)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()

    async def ask(self, *requests: Sequence[str | bytes | int], timeout: float | None = None) -> list[Any]:
        """The replies, in order; errors of the node are in it, as hiredis.ReplyError."""
        return await self._guarded(self._ask(requests), self._timeout if timeout is None else timeout)

    async def kill(self, connections: Sequence[str]) -> int:
        """What is still on these, "ID 3 ADDR 10.0.0.1:60500", never runs, but for so many of them."""
        requests = [("CLIENT", "KILL", *each.split(" ")) for each in connections]
        for reply in await self.ask(*requests) if requests else ():
            if isinstance(reply, hiredis.ReplyError):
                raise NodeRefuses(f"it answers CLIENT KILL with {str(reply).split(' ')[0]}")
        return 0

    async def _guarded(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        """Whatever happens as NodeRefuses."""
        try:
            async with asyncio.timeout(timeout):
                return await work
        except TimeoutError:
            raise NodeRefuses(f"no answer in {timeout:g} s") from None
        except hiredis.ProtocolError:
            raise NodeRefuses(errors.not_redis(bytes(self._beginning))) from None
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                raise NodeRefuses(tls_reason(error)) from None
            number = error.errno or 0  # name lookups have negative numbers of their own
            reason = os.strerror(number) if number > 0 else error.strerror or str(error)
            refused = isinstance(error, ConnectionRefusedError | FileNotFoundError)
            raise NodeRefuses(reason, refused, ours=number in OURS) from None
        except UnicodeError:
            raise NodeRefuses("no such host") from None

    async def _open(self) -> None:
        host, _, port = self._address.rpartition(":")
        if self._address.startswith("/"):
            self._reader, self._writer = await asyncio.open_unix_connection(self._address)
        else:
            tls = (
                {"ssl": self._way.tls.context, "server_hostname": self._way.tls.server_name}
                if self._way.tls
                else {}
            )
            self._reader, self._writer = await asyncio.open_connection(host.strip("[]"), int(port), **tls)  # type: ignore[arg-type]
        if self._way.login is not None:
            await self._login(*self._way.login)

    async def _login(self, username: str, password: str) -> None:
        assert self._writer is not None
        self._writer.write(_pack("AUTH", *([username] if username else []), password))
        answer = await self._reply()
        if isinstance(answer, hiredis.ReplyError):
            # only the code: the text may quote what was sent, which is a password
            said = str(answer)
            code = said[:BEGINNING] if said.startswith(FULL) else said.split(" ")[0][:BEGINNING]
            raise NodeRefuses(f"it refuses the login: {code}", answer=said)

    async def _ask(self, requests: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        assert self._writer is not None
        self._writer.writelines([_pack(*request) for request in requests])
        return [await self._reply() for _ in requests]

    async def _reply(self) -> Any:
        assert self._reader is not None
        while (reply := self._parser.gets()) is False:
            data = await self._reader.read(65536)
            if not data:
                said = bytes(self._beginning)
                raise NodeRefuses(errors.not_redis(said) if said else "it closes the connection")
            self._beginning += data[: max(BEGINNING - len(self._beginning), 0)]
            self._parser.feed(data)
            if self._parser.len() > MOST:
                raise NodeRefuses(errors.not_redis(bytes(self._beginning)))
        return reply

    def said(self) -> bytes:
        """The first bytes that it sent, to quote."""
        return bytes(self._beginning)


def _pack(*args: str | bytes | int) -> bytes:
    return bytes(hiredis.pack_command(args))  # type: ignore[arg-type]  # its stub says a tuple of one


def tls_reason(error: ssl.SSLError) -> str:
    """As the engine says it of its own connections."""
    said = getattr(error, "verify_message", "") or (error.reason or "").lower().replace("_", " ")
    return f"TLS: {said or error}"


async def ask(address: str, way: Way, timeout: float) -> Told:
    """Asks one node what it is. Raises NodeRefuses; `timeout` seconds in all."""
    try:
        async with asyncio.timeout(timeout), Line(address, way, timeout, text=True) as line:
            info, config, commands = await line.ask(("INFO",), ("CONFIG", "GET", "databases"), ("COMMAND",))
            said = line.said()
    except TimeoutError:
        raise NodeRefuses(f"no answer in {timeout:g} s") from None
    if isinstance(info, hiredis.ReplyError):
        raise NodeRefuses(f"it answers INFO with {str(info)[:BEGINNING]!r}")
    fields = fields_of(info) if isinstance(info, str) else {}
    if "redis_version" not in fields:
        raise NodeRefuses(errors.not_redis(said))
    return Told(
        fields["redis_version"],
        fields.get("maxmemory_policy", ""),
        int(config[1]) if isinstance(config, list) and len(config) == 2 and config[1].isdigit() else 0,
        commands if isinstance(commands, list) else [],
    )


# --- probes ---


async def check(
    address: str, way: Way, timeout: float, policy: Policy, run_id: str, role: bool = False
) -> None:
    """A probe as deep as the policy says. Raises NodeRefuses with what is wrong; `timeout` seconds in all.

    role: what it is said to be is looked at however deep: a replica answers PING as a primary does.
    """
    try:
        async with asyncio.timeout(timeout), Line(address, way, timeout, text=True) as line:
            (pong,) = await line.ask(("PING",))
            if isinstance(pong, hiredis.ReplyError):
                raise NodeRefuses(f"it answers PING with {str(pong)[:BEGINNING]!r}")
            if pong != "PONG":
                raise NodeRefuses(errors.not_redis(line.said()))
            if policy.probe != "ping":
                await _write(line, run_id)
            if policy.probe == "deep":
                (info,) = await line.ask(("INFO",))
                fault = misfit(fields_of(info) if isinstance(info, str) else {}, policy.max_memory_percent)
                if fault:
                    raise NodeRefuses(fault)
            elif role:
                (info,) = await line.ask(("INFO", "replication"))
                if fault := demoted(fields_of(info) if isinstance(info, str) else {}):
                    raise NodeRefuses(fault)
    except TimeoutError:
        raise NodeRefuses(f"no answer in {timeout:g} s") from None


async def _write(line: Line, run_id: str) -> None:
    """Sets a key that nobody has, reads it back, deletes it. Who finds it taken leaves it alone."""
    for _ in range(KEYS):
        token = secrets.token_hex(8)
        key = f"shardproxy:probe:{run_id}:{token}"
        made, found = await line.ask(("SET", key, token, "NX", "PX", KEY_LIFE), ("GET", key))
        if made is None:
            raise NodeRefuses("the probe's key is taken by something else")
        if made != "OK":
            raise NodeRefuses(f"it answers SET with {str(made)[:BEGINNING]!r}")
        (gone,) = await line.ask(("DEL", key))
        if found not in (token, None):
            raise NodeRefuses("a key that was set reads otherwise")
        if gone not in (0, 1):
            raise NodeRefuses("a key that was set cannot be deleted")
        if found and gone:
            return
    raise NodeRefuses("a key that was set is gone at once")


def demoted(fields: dict[str, str]) -> str:
    """Why it is no primary, by INFO replication; empty: it is, or does not say."""
    if fields.get("role", "master") == "master":
        return ""
    return f"it is a replica, and its link to the primary is {fields.get('master_link_status', '?')}"


def misfit(fields: dict[str, str], max_memory_percent: float) -> str:
    """What a node says of itself that keeps it from serving as a shard; empty: nothing."""
    if "redis_version" not in fields:
        return "it does not answer INFO"
    if fields.get("loading", "0") != "0":
        return "it is loading its data"
    evicts = fields.get("maxmemory_policy", "noeviction") != "noeviction"
    names = ("used_memory", "maxmemory", "connected_clients", "maxclients")
    return demoted(fields) or crowded(fields, max_memory_percent, evicts, names)


def crowded(
    fields: dict[str, str], max_memory_percent: float, evicts: bool, names: tuple[str, str, str, str]
) -> str:
    """Why it has no room; empty: it has. names: of memory used, its limit, clients, their limit.

    evicts: it makes room when it is full, which a cache always is; then only a limit below that counts.
    """
    used, most, clients, room = (_number(fields, name) for name in names)
    if most and used > max_memory_percent * most and not (evicts and max_memory_percent >= 1.0):
        return f"its memory is full: {used / most:.0%} of {names[1]}"
    if room and clients >= room:
        return f"it is out of clients: {clients} of {room}"
    return ""


def _number(fields: dict[str, str], name: str) -> int:
    """0: it does not say."""
    text = fields.get(name, "")
    return int(text) if text.isdigit() else 0
