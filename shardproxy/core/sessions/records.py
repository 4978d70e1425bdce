"""How a session looks in Redis: one hash, a field for each top-level key, and a few fields of our own.

name    a key of the session, encoded (see `Codec`); opaque to the scripts. Ours begin with NUL, so one that
        does has "NUL ." before it
\0      what the record says of itself: `Meta`
\0e, \0u of a signed-in session: epoch, and the user's id, encoded
\0d     device data of a signed-in session, encoded
\0g     after a renewal: "0", and once the new id was seen, until when the old one still leads here (ms)
\0t     of the last save that must not be done twice: its token
\0p     instead of all that, what an old id has become: "hash-of-the-next nonce"; "": ended a moment ago
"""

import json
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from shardproxy.core.sessions.errors import NotStorable, SessionTooLarge, SessionUnavailable
from shardproxy.core.sessions.keyring import Keyring

SCHEMA = 1
HANDLE = 8  # characters of a handle that are not the tag
Chance: TypeAlias = Callable[[int], bytes]  # so many random bytes

OWN = META, EPOCH, USER, DEVICE, GRACE, TOKEN, POINTER = tuple(f"\0{each}" for each in ("", *"eudgtp"))

# The first byte of an encoded field that is not plain JSON
MSGPACK, COMPRESSED, ENCRYPTED = 1, 2, 4


# What an encoding has in it that may be NaN or infinite: JSON says null, msgpack the number itself
# JSON without any of these is spelled in one way only: spaces, escapes, fractions, exponents
_SPELLED = re.compile(rb"[\s\\.eE]").search
_NOT_FINITE = {0: re.compile(b"null"), MSGPACK: re.compile(b"\xcb[\x7f\xff]")}


class Undecodable(Exception):
    """A field is not what we have written: damaged, or somebody else's."""


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A class of sessions. Seconds. persistent: its cookie outlives the browser.

    idle: without a request; absolute: in all; renewal: until the next id. More than 17 years are 17 years.
    """

    idle: float = 30 * 60
    absolute: float = 8 * 3600
    renewal: float = 15 * 60
    persistent: bool = False

    def __post_init__(self) -> None:
        if min(self.idle, self.absolute, self.renewal) < 0.001:
            raise ValueError("idle, absolute and renewal are seconds, more than 0")

    @property
    def ms(self) -> tuple[int, int, int]:
        """absolute, idle, renewal: as scripts take them."""
        return tuple(
            max(1, round(min(each * 1000, LONGEST))) for each in (self.absolute, self.idle, self.renewal)
        )  # type: ignore[return-value]  # three of them


CLASSES: Mapping[str, Timeouts] = {
    "anonymous": Timeouts(),
    "signed_in": Timeouts(),
    "remember_me": Timeouts(idle=14 * 86400, absolute=30 * 86400, renewal=3600, persistent=True),
}


LETTER_OF_KIND = {"anonymous": "a", "signed_in": "s", "remember_me": "r"}
KIND_OF_LETTER = {letter.encode(): kind for kind, letter in LETTER_OF_KIND.items()}

# schema 1 byte; created 6; absolute, idle, renewal 5 each; version 4; due 5, of renew_at what comes after
# created; handle 8, nonce 8; then the class. Later schemas begin likewise. Numbers of 5 and 6 bytes are two
_META = struct.Struct(">BHIBIBIBIIBI8s8s")
LEAST_META = _META.size + 1
LONGEST = (1 << 39) - 1  # ms of a timeout: due must fit, too


class Meta(NamedTuple):
    """What a record says of itself. Times in ms of the Redis node's clock."""

    schema: int
    created: int
    absolute: int
    idle: int
    renewal: int
    version: int  # +1 with every change
    renew_at: int  # when a new id is due
    handle: str  # 8 characters: of its public name what is not the tag
    nonce: str  # 8 characters, of the next id
    kind: str  # the class of sessions it belongs to; our own are a letter there

    @classmethod
    def parse(cls, data: bytes) -> "Meta":
        """ValueError."""
        if len(data) < LEAST_META:
            raise ValueError("too short")
        schema, a, created, b, absolute, c, idle, d, renewal, version, e, due, handle, nonce = (
            _META.unpack_from(data)
        )
        created += a << 32
        kind = data[_META.size :]
        return cls(
            schema, created, absolute + (b << 32), idle + (c << 32), renewal + (d << 32), version,
            created + due + (e << 32), handle.decode("ascii"), nonce.decode("ascii"),
            KIND_OF_LETTER.get(kind) or kind.decode(),
        )  # fmt: skip

    def pack(self) -> bytes:
        """What is stored."""
        due = self.renew_at - self.created
        parts: list[int] = []
        for number in (self.created & (1 << 48) - 1, self.absolute, self.idle, self.renewal):
            parts += divmod(number, 1 << 32)
        return (
            _META.pack(
                self.schema,
                *parts,
                self.version,
                *divmod(due, 1 << 32),
                self.handle.encode(),
                self.nonce.encode(),
            )
            + LETTER_OF_KIND.get(self.kind, self.kind).encode()
        )


def field_of(name: str) -> str:
    """A key of the session → the field of its record."""
    return "\0." + name if name[:1] == "\0" else name


def name_of(field: str) -> str:
    """And back."""
    return field[2:] if field[:1] == "\0" else field


class Codec:
    """Values ↔ bytes of a field: plain JSON as it is; what is else begins with a byte under 8.

    format: "json" or "msgpack". compress_over: bytes from which a field is compressed if that helps; None:
    never. encrypt: AES-GCM, bound to record, field and schema, so that no field can be moved; then plain
    fields are refused, with "migrate" still read. max_size: bytes of one field, decoded.
    """

    def __init__(
        self,
        keyring: Keyring,
        chance: Chance,
        format: Literal["json", "msgpack"] = "json",
        compress_over: int | None = 1024,
        encrypt: bool | Literal["migrate"] = False,
        max_size: int = 1 << 18,
    ) -> None:
        if format not in ("json", "msgpack"):
            raise ValueError('format is "json" or "msgpack"')
        self.keyring, self.chance = keyring, chance
        self.encrypt, self.compress_over, self.max_size = encrypt, compress_over, max_size
        self.plain_json = format == "json" and not encrypt  # a script can count in it
        self.flags = MSGPACK if format == "msgpack" else 0
        self._encode: Callable[[Any], bytes] = (
            msgspec.msgpack.Encoder().encode if self.flags else msgspec.json.Encoder().encode
        )
        self._not_finite = _NOT_FINITE[self.flags].search
        self._json, self._msgpack = msgspec.json.Decoder().decode, msgspec.msgpack.Decoder().decode
        self._ciphers: dict[bytes, Any] = {}
        if encrypt:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # an extra: "shardproxy[sessions]"

            self._ciphers = {secret.kid: AESGCM(secret.cipher_key()) for secret in keyring.secrets}

    def plain(self, value: Any, field: str = "") -> bytes:
        """A value's encoding before compression and encryption: what changes are found by. NotStorable."""
        try:
            field.isascii() or field.encode()
            data = self._encode(value)
            if self._not_finite(data):
                json.dumps(msgspec.to_builtins(value, str_keys=True), allow_nan=False)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise NotStorable(f"the field {field!r} of a session cannot be stored: {_why(error)}") from None
        if len(data) > self.max_size:
            raise SessionTooLarge(f"a field of {len(data)} bytes; max_size is {self.max_size}")
        return data

    def canonical(self, data: bytes) -> bytes:
        """What another program has written, as `plain` does."""
        return self.plain(self.parse(data)) if self.flags or _SPELLED(data) else data

    def seal(self, key: str, field: str, data: bytes) -> bytes:
        """What `plain` made → what is stored under that key and field."""
        flags = self.flags
        if self.compress_over is not None and len(data) > self.compress_over:
            small: bytes = zlib.compress(data, 1)
            if len(small) < len(data):
                data, flags = small, flags | COMPRESSED
        if self.encrypt:
            kid, nonce, head = self.keyring.newest.kid, self.chance(12), bytes([flags | ENCRYPTED])
            sealed: bytes = self._ciphers[kid].encrypt(nonce, data, _bound(head, key, field))
            return head + kid + nonce + sealed
        return bytes([flags]) + data if flags else data

    def parse(self, data: bytes) -> Any:
        """What `plain` made → the value."""
        return self._msgpack(data) if self.flags else self._json(data)

    def open(self, key: str, field: str, data: bytes) -> tuple[Any, bytes]:
        """What is stored → its value, and what `plain` makes of it. Undecodable."""
        try:
            if self.plain_json and data[0] >= 8:  # most fields
                return self._json(data), data
            flags = data[0] if data[0] < 8 else 0
            if self.encrypt is True and not flags & ENCRYPTED:
                raise Undecodable("not encrypted")
            if flags & ENCRYPTED:
                cipher = self._ciphers.get(data[1:3])
                if (
                    cipher is None
                ):  # no damage, perhaps: another store has a secret, or encrypts, and this one not
                    raise SessionUnavailable(
                        "a session is encrypted with a secret that this store does not have"
                    )
                data = cipher.decrypt(data[3:15], data[15:], _bound(data[:1], key, field))
            elif flags:
                data = data[1:]
            if flags & COMPRESSED:
                inflate = zlib.decompressobj()
                data = inflate.decompress(data, self.max_size)
                if not inflate.eof or inflate.unused_data:
                    raise Undecodable("compressed too large, or cut off")
            value = self._msgpack(data) if flags & MSGPACK else self._json(data)
            if flags & MSGPACK != self.flags:  # by a store of the other format
                data = self._encode(value)
        except (Undecodable, SessionUnavailable):
            raise
        except Exception as error:  # what a damaged record raises is nobody's to enumerate
            raise Undecodable(type(error).__name__) from None
        return value, data

    def open_all(self, key: str, fields: Mapping[bytes, bytes]) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The values of many fields by the names of keys, and what `plain` makes of them. Undecodable."""
        values, plain = {}, {}
        simple, json = self.plain_json, self._json
        try:
            for field, data in fields.items():
                name = field.decode("utf-8", "surrogatepass")
                if simple and data[0] >= 8 and field[:1] != b"\0":  # most of them
                    values[name], plain[name] = json(data), data
                elif field[:1] != b"\0" or field[1:2] == b".":  # else of ours, perhaps of a later release
                    own = name_of(name)
                    values[own], plain[own] = self.open(key, name, data)
        except (Undecodable, SessionUnavailable):
            raise
        except Exception as error:
            raise Undecodable(type(error).__name__) from None
        return values, plain


def _why(error: Exception) -> str:
    """In words, without the value."""
    if isinstance(error, UnicodeEncodeError):
        return "a text has half a surrogate pair"
    if isinstance(error, OverflowError):
        return "an integer of more than 64 bits"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return str(error) if isinstance(error, TypeError) else "a number is NaN or infinite"


def _bound(head: bytes, key: str, field: str) -> bytes:
    return b"%b%b\0%b\0%d" % (head, key.encode(), field.encode("utf-8", "surrogatepass"), SCHEMA)
