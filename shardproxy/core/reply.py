"""Values → RESP bytes, for handlers: the forms that Redis 7.0 itself sends, in RESP2 and RESP3.

Pure. Every function takes the protocol version of the client (2 or 3) last and returns one whole frame. The
aggregates (array, mapping, set_, push) take frames that are already encoded, so that a reply is built from
the inside out. Where RESP2 has no such type, it gets what Redis sends there: a map is a flat array, a double
and a verbatim string are bulk strings, a boolean is an integer.
"""

import math
from collections.abc import Iterable, Sequence

OK = b"+OK\r\n"
PONG = b"+PONG\r\n"
NOTHING = b""  # fills a slot with no frame at all

_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode(errors="surrogateescape")


def _line(value: str | bytes) -> bytes:
    """On one line, whatever is in it: nothing that follows may look like another frame."""
    return _bytes(value).strip(b"\r\n").translate(_LINE_ENDS)


def simple(value: str | bytes, proto: int = 2) -> bytes:
    """A simple string: one line."""
    return b"+" + _line(value) + b"\r\n"


def error(value: str | bytes, proto: int = 2) -> bytes:
    """An error of this text, which begins with its code ("ERR ...") and no "-"."""
    return b"-" + _line(value) + b"\r\n"


def integer(value: int, proto: int = 2) -> bytes:
    return b":%d\r\n" % value


def bulk(value: str | bytes | None, proto: int = 2) -> bytes:
    """A string of any bytes; None is null."""
    if value is None:
        return null(proto)
    data = _bytes(value)
    return b"$%d\r\n%s\r\n" % (len(data), data)


def null(proto: int = 2) -> bytes:
    return b"_\r\n" if proto == 3 else b"$-1\r\n"


def null_array(proto: int = 2) -> bytes:
    """What stands for a missing array: RESP2 has a null of its own for it."""
    return b"_\r\n" if proto == 3 else b"*-1\r\n"


def _aggregate(head: bytes, frames: Sequence[bytes]) -> bytes:
    return b"%s%d\r\n%s" % (head, len(frames), b"".join(frames))


def array(value: Iterable[bytes], proto: int = 2) -> bytes:
    """An array of these frames."""
    return _aggregate(b"*", tuple(value))


def bulks(value: Iterable[str | bytes | None], proto: int = 2) -> bytes:
    """An array of bulk strings."""
    return array((bulk(each, proto) for each in value), proto)


def simples(value: Iterable[str | bytes], proto: int = 2) -> bytes:
    """An array of simple strings."""
    return array(map(simple, value), proto)


def mapping(value: Iterable[tuple[bytes, bytes]], proto: int = 2) -> bytes:
    """A map of (key frame, value frame)."""
    pairs = [key + content for key, content in value]
    return _aggregate(b"%", pairs) if proto == 3 else b"*%d\r\n%s" % (2 * len(pairs), b"".join(pairs))


def set_(value: Iterable[bytes], proto: int = 2) -> bytes:
    """A set of these frames, which the caller has made unique."""
    return _aggregate(b"~" if proto == 3 else b"*", tuple(value))


def push(value: Iterable[bytes], proto: int = 2) -> bytes:
    """Out-of-band data; RESP2 has an ordinary array for it."""
    return _aggregate(b">" if proto == 3 else b"*", tuple(value))


def double(value: float, proto: int = 2) -> bytes:
    """As printf's %.17g, which is what 7.0 uses."""
    if math.isnan(value) or math.isinf(value):
        text = b"nan" if math.isnan(value) else b"inf" if value > 0 else b"-inf"
    else:
        text = b"%.17g" % value
    return b",%s\r\n" % text if proto == 3 else bulk(text)


def boolean(value: bool, proto: int = 2) -> bytes:
    if proto == 3:
        return b"#t\r\n" if value else b"#f\r\n"
    return integer(bool(value))


def verbatim(value: str | bytes, proto: int = 2, kind: str = "txt") -> bytes:
    """Text for people; kind: three letters, txt or mkd."""
    data = _bytes(value)
    return b"=%d\r\n%s:%s\r\n" % (len(data) + 4, kind.encode(), data) if proto == 3 else bulk(data)


def big_number(value: int, proto: int = 2) -> bytes:
    """An integer of any size."""
    return b"(%d\r\n" % value if proto == 3 else bulk(b"%d" % value)
