"""A command as bytes, and what reads replies: hiredis, set up as redis-py does.

Pure: no sockets. Arguments are what redis-py takes (str, bytes, memoryview, int, float); the first may hold
several words ("CONFIG GET").
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import hiredis
from redis._parsers.base import BaseParser
from redis._parsers.encoders import Encoder
from redis.exceptions import DataError, InvalidResponse, ResponseError

NOTHING = object()  # what a reader gives when a reply is not whole yet
Push = getattr(hiredis, "PushNotification", type("NoPush", (), {}))
_pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
_UTF8 = ("utf-8", "utf8", "UTF-8", "UTF8")


def parse_error(text: str) -> ResponseError:
    """The text of an error reply, without "-", as redis-py's exception."""
    found: ResponseError = BaseParser.parse_error(text)  # type: ignore[no-untyped-call]  # redis-py's
    return found


class Coding(NamedTuple):
    """How text becomes bytes, and replies text: as redis-py's settings say."""

    encoding: str = "utf-8"
    errors: str = "strict"
    decode: bool = False

    @property
    def encoder(self) -> Encoder:
        return Encoder(self.encoding, self.errors, self.decode)  # type: ignore[no-untyped-call]  # redis-py's

    def shown(self, value: bytes) -> Any:
        """As a reader gives it."""
        return value.decode(self.encoding, self.errors) if self.decode else value

    def reader(self) -> hiredis.Reader:
        """A new one for each connection; `gets` answers NOTHING when it needs more."""
        return hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=parse_error,
            encoding=self.encoding if self.decode else None,
            errors=self.errors,
            notEnoughData=NOTHING,
        )

    def packer(self) -> Callable[[Sequence[Any]], bytes]:
        """What makes a command's bytes of its arguments. It raises redis-py's DataError."""
        if self.encoding in _UTF8 and self.errors == "strict":
            return pack
        encode = self.encoder.encode

        def pack_encoded(args: Sequence[Any]) -> bytes:
            return pack([args[0], *map(encode, args[1:])])

        return pack_encoded


def pack(args: Sequence[Any]) -> bytes:
    name = args[0]
    if isinstance(name, str):
        if " " in name:
            args = (*name.split(), *args[1:])
    elif b" " in name:
        args = (*name.split(), *args[1:])
    try:
        return _pack(args if type(args) is tuple else tuple(args))
    except TypeError:
        plain = tuple(bytes(arg) if isinstance(arg, (bytearray, memoryview)) else arg for arg in args)
        try:
            return _pack(plain)
        except TypeError as error:
            raise DataError(str(error)) from None
