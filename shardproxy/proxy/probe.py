"""Asking a node what it is: its version, its eviction policy, its commands.

A connection of its own, beside the data plane's: a short one, made when there is something to learn. hiredis
reads the replies; what comes instead of RESP is quoted, so that an address of something else is found out.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import hiredis
import msgspec

from shardproxy.core import errors

BEGINNING = 80  # bytes that are kept of what a node says, to quote
MOST = 16 << 20  # bytes of a reply; COMMAND of Redis 8 has a third of a megabyte


class NodeRefuses(Exception):
    """The node could not be asked; the text says why, in a few words."""


class Told(msgspec.Struct, frozen=True):
    """What a node said of itself."""

    version: str
    maxmemory_policy: str
    commands: list[Any]  # its reply to COMMAND; empty: it does not say


def fields_of(info: str) -> dict[str, str]:
    """The reply of INFO as name → value."""
    return dict(line.split(":", 1) for line in info.splitlines() if ":" in line)


async def ask(address: str, login: tuple[str, str] | None, timeout: float) -> Told:
    """Asks one node; login: (username or "", password). Raises NodeRefuses; `timeout` seconds in all."""
    beginning = bytearray()
    try:
        async with asyncio.timeout(timeout):
            info, commands = await _talk(address, login, [("INFO",), ("COMMAND",)], beginning)
    except TimeoutError:
        raise NodeRefuses(f"no answer in {timeout:g} s") from None
    except hiredis.ProtocolError:
        raise NodeRefuses(errors.not_redis(bytes(beginning))) from None
    except OSError as error:
        raise NodeRefuses(error.strerror or str(error)) from None
    except UnicodeError:
        raise NodeRefuses("no such host") from None
    if isinstance(info, hiredis.ReplyError):
        raise NodeRefuses(f"it answers INFO with {str(info)[:BEGINNING]!r}")
    fields = fields_of(info) if isinstance(info, str) else {}
    if "redis_version" not in fields:
        raise NodeRefuses(errors.not_redis(bytes(beginning)))
    return Told(
        fields["redis_version"],
        fields.get("maxmemory_policy", ""),
        commands if isinstance(commands, list) else [],
    )


async def _talk(
    address: str, login: tuple[str, str] | None, requests: Sequence[Sequence[str]], beginning: bytearray
) -> list[Any]:
    """Logs in, sends the requests, returns their replies; `beginning` gets the first bytes that came back."""
    host, _, port = address.rpartition(":")
    if address.startswith("/"):
        reader, writer = await asyncio.open_unix_connection(address)
    else:
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        parser = hiredis.Reader(encoding="utf-8", errors="replace")
        if login is not None:
            username, password = login
            writer.write(_pack("AUTH", *([username] if username else []), password))
        for request in requests:
            writer.write(_pack(*request))
        if login is not None:
            answer = await _reply(reader, parser, beginning)
            if isinstance(answer, hiredis.ReplyError):
                # only the code: the text may quote what was sent, which is a password
                raise NodeRefuses(f"it refuses the login: {str(answer).split(' ')[0][:BEGINNING]}")
        return [await _reply(reader, parser, beginning) for _ in requests]
    finally:
        writer.transport.abort()


def _pack(*args: str) -> bytes:
    return bytes(hiredis.pack_command(tuple(args)))  # type: ignore[arg-type]  # its stub says a tuple of one


async def _reply(reader: asyncio.StreamReader, parser: hiredis.Reader, beginning: bytearray) -> Any:
    while (reply := parser.gets()) is False:
        data = await reader.read(65536)
        if not data:
            raise NodeRefuses(errors.not_redis(bytes(beginning)) if beginning else "it closes the connection")
        beginning += data[: max(BEGINNING - len(beginning), 0)]
        parser.feed(data)
        if parser.len() > MOST:
            raise NodeRefuses(errors.not_redis(bytes(beginning)))
    return reply
