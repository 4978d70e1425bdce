"""memcached's meta protocol as bytes: how a request is written, what a reply says.

Rules: a request is one line, with `ms` and a value two; a key that is not plain text goes as base64, so
nothing that a client sends can end a line. A reply is cut off by whoever reads the socket (`Frames` does it
for those who have no scanner of their own) and parsed here: whatever its first word is, it is a reply.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from shardproxy.core import errors

KEY_MOST, BINARY_MOST = 250, 186  # bytes of a key: as text, and as base64
_NOT_TEXT = bytes([*range(33), 127])
HEADER = 56  # bytes of an item beside its key and value: its header, with CAS
# What lists all keys. The first goes through the hash table, and misses none that stays; a node that is too
# old for it (BADCLASS) goes through its LRUs, and leaves out what is moved or locked at the moment.
LISTINGS = (b"lru_crawler metadump hash\r\n", b"lru_crawler metadump all\r\n")


class Refused(Exception):
    """A command ends with this error; str(): its text, which begins with its code."""


class OfNode(Refused):
    """The same; {} in it stands for the node."""


class Reply(NamedTuple):
    """One reply: "HD", "VA", "EN", "NF", "NS", "EX", "OK", "STAT", "SERVER_ERROR", ..."""

    code: str
    value: bytes | None = None  # of VA its value, of an error what it says
    flags: Mapping[str, bytes] = {}  # {"c": b"17", "t": b"-1"}; of STAT names → values

    @property
    def hit(self) -> bool:
        return self.code in ("HD", "VA")


# --- keys ---


def name_of(key: bytes) -> tuple[bytes, bytes]:
    """How a command names a key, and the flag that says so (b" b": base64). Raises OfNode."""
    if not key:
        raise OfNode(errors.MEMCACHED_EMPTY_KEY)
    if len(key) == len(key.translate(None, _NOT_TEXT)):
        if len(key) > KEY_MOST:
            raise OfNode(errors.MEMCACHED_LONG_KEY)
        return key, b""
    if len(key) > BINARY_MOST:
        raise OfNode(errors.MEMCACHED_LONG_KEY)
    return b64encode(key), b" b"


# --- requests ---


def command(verb: bytes, key: bytes, flags: bytes = b"") -> bytes:
    """mg, md or ma of a key; flags: b" v t"."""
    name, binary = name_of(key)
    return b"%b %b%b%b\r\n" % (verb, name, binary, flags)


def store(key: bytes, value: bytes, flags: bytes = b"") -> bytes:
    """ms"""
    name, binary = name_of(key)
    return b"ms %b %d%b%b\r\n%b\r\n" % (name, len(value), binary, flags, value)


def room(key: bytes, client_flags: bytes, limit: int) -> int:
    """How long a value may be, where an item has `limit` bytes (the node's item_size_max; 0: not known)."""
    if not limit:
        return 1 << 62
    return limit - HEADER - len(key) - 1 - 2 - (0 if client_flags == b"0" else 4)


# --- replies ---


def parse(frame: bytes) -> Reply:
    """A whole reply: a line, with VA its value, with STAT all lines until END.

    Raises ValueError, the line, when its size is missing: what follows might be anything.
    """
    line, _, rest = frame.partition(b"\r\n")
    code, _, said = line.partition(b" ")
    match code:
        case b"VA":
            size = said.partition(b" ")[0]
            if not size.isdigit():
                raise ValueError(line.decode(errors="replace"))
            return Reply("VA", rest[: int(size)], _flags(said[len(size) :]))
        case b"HD" | b"EN" | b"NF" | b"NS" | b"EX":
            return Reply(code.decode(), None, _flags(said))
        case b"STAT":
            lines = [each.split(b" ", 2) for each in frame.split(b"\r\n") if each.startswith(b"STAT ")]
            return Reply("STAT", None, {each[1].decode(errors="replace"): each[-1] for each in lines})
    return Reply(code.decode(errors="replace"), said)


def _flags(said: bytes) -> dict[str, bytes]:
    return {chr(each[0]): each[1:] for each in said.split()}


class Frames:
    """Cuts a stream into whole replies."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._searched = 0  # of what has come of a reply of many lines

    def feed(self, data: bytes) -> list[bytes]:
        self._held += data
        found: list[bytes] = []
        at = 0
        while (end := self._end(at)) > 0:
            found.append(bytes(self._held[at:end]))
            at = end
        del self._held[:at]
        return found

    @property
    def held(self) -> bool:
        """A part of a reply has come, and its end has not."""
        return bool(self._held)

    def _end(self, at: int) -> int:
        held = self._held
        line = held.find(b"\r\n", at) + 2
        if line < 2:
            return 0
        if held.startswith(b"VA ", at):
            line += int(held[at + 3 : line].split()[0]) + 2
            return line if line <= len(held) else 0
        if held.startswith((b"STAT ", b"key="), at):
            return held.find(b"\r\nEND\r\n", at) + 7 if held.find(b"\r\nEND\r\n", at) >= 0 else 0
        return line


def dumped(line: bytes) -> tuple[bytes, int] | None:
    """A line of `lru_crawler metadump`: the key, and when it expires (seconds since 1970; -1: never)."""
    fields = dict(part.split(b"=", 1) for part in line.split() if b"=" in part)
    if b"key" not in fields or not re.fullmatch(rb"-?\d{1,19}", fields.get(b"exp", b"")):
        return None
    return unquote_to_bytes(fields[b"key"]), int(fields[b"exp"])
