"""Programs of commands that work on values: GET, SET, INCR, APPEND and their kin.

A program takes (node, name, args), with the command's name as the first of args, yields what it asks of the
node and returns what the client gets; it raises Refused for an error. Arity is checked before. Options are
read as Redis 7.0 reads them, in its order.
"""

from fractions import Fraction
from typing import NamedTuple, TypeAlias

from shardproxy.core import errors
from shardproxy.core.memcached import expiry, numbers, wire
from shardproxy.core.memcached.expiry import NEVER, Node, number
from shardproxy.core.memcached.items import (
    KEEP,
    Item,
    Steps,
    add,
    delete,
    fits,
    many,
    one,
    put,
    read,
    replace,
    tries,
)
from shardproxy.core.memcached.wire import OfNode, Refused

STRING_MOST = 512 << 20  # bytes, of Redis


class Status(NamedTuple):
    """A simple string."""

    text: str


class Failure(NamedTuple):
    """An error, beginning with its code."""

    text: str


Value: TypeAlias = "int | bytes | Status | Failure | list[Value] | None"
Args: TypeAlias = list[bytes]
OK = Status("OK")


# --- whole values ---


def get(node: Node, name: str, args: Args) -> Steps[Value]:
    item = yield from read(node, args[1], b" v")
    return item and item.value


def mget(node: Node, name: str, args: Args) -> Steps[Value]:
    asked = [wire.command(b"mg", key, b" v") for key in args[1:]]
    replies = yield from many(node, asked, "VA EN")
    return [reply.value if reply.hit else None for reply in replies]


def mset(node: Node, name: str, args: Args) -> Steps[Value]:
    """Each key for itself: memcached knows no transaction."""
    if len(args) % 2 == 0:
        raise Refused(errors.wrong_arity(name))
    pairs = zip(args[1::2], args[2::2], strict=True)
    yield from many(node, [put(node, *pair) for pair in pairs], "HD", writes=True)
    return OK


def set_(node: Node, name: str, args: Args) -> Steps[Value]:
    """SET key value [NX | XX] [GET] [EX | PX | EXAT | PXAT number | KEEPTTL]"""
    words, expire = expiry.options(args[3:], frozenset({"nx", "xx", "get", "keepttl"}))
    until = expiry.token(node, expiry.left(node, name, expire)) if expire else NEVER
    return (yield from _set(node, args[1], args[2], words, until))


def setex(node: Node, name: str, args: Args) -> Steps[Value]:
    left = expiry.left(node, name, (args[2], 1 if name == "psetex" else 1000, True))
    return (yield from _set(node, args[1], args[3], frozenset(), expiry.token(node, left)))


def setnx(node: Node, name: str, args: Args) -> Steps[Value]:
    return int((yield from add(node, args[1], args[2])))


def getset(node: Node, name: str, args: Args) -> Steps[Value]:
    return (yield from _set(node, args[1], args[2], frozenset({"get"}), NEVER))


def _set(node: Node, key: bytes, value: bytes, words: frozenset[str], until: bytes) -> Steps[Value]:
    if not words & {"get", "keepttl"}:
        mode = b"E" if "nx" in words else b"R" if "xx" in words else b"S"
        reply = yield from one(node, put(node, key, value, mode, until), "HD NS", writes=True)
        return OK if reply.code == "HD" else None
    fits(node, key, len(value))
    for _ in tries():
        item = yield from read(node, key, b" v c t" if "get" in words else b" c t")
        if "nx" in words if item else "xx" in words:
            done = True
        elif item is None:
            done = yield from add(node, key, value, until)
        else:
            kept = KEEP if "keepttl" in words else until
            done = yield from replace(node, key, item, value, kept, flags=b"0")
        if done and "get" in words:
            return item and item.value
        if done:
            return OK if bool(item) != ("nx" in words) or not words & {"nx", "xx"} else None
    return None


def getdel(node: Node, name: str, args: Args) -> Steps[Value]:
    for _ in tries():
        item = yield from read(node, args[1], b" v c")
        if item is None or (yield from delete(node, args[1], item)):
            break
    return item and item.value


def getex(node: Node, name: str, args: Args) -> Steps[Value]:
    """GETEX key [EX | PX | EXAT | PXAT number | PERSIST]"""
    words, expire = expiry.options(args[2:], frozenset({"persist"}))
    key = args[1]
    for _ in tries():
        item = yield from read(node, key)
        if item is None:
            break
        if expire:
            until = expiry.token(node, expiry.left(node, name, expire))
            done = yield from replace(node, key, item, item.value, until)
        else:
            done = "persist" not in words or item.ttl < 0
            done = done or (yield from replace(node, key, item, item.value, NEVER))
        if done:
            break
    return item and item.value


# --- parts of values ---


def strlen(node: Node, name: str, args: Args) -> Steps[Value]:
    item = yield from read(node, args[1], b" s")
    return item.size if item else 0


def getrange(node: Node, name: str, args: Args) -> Steps[Value]:
    start, end = number(args[2]), number(args[3])
    item = yield from read(node, args[1], b" v")
    if item is None or (start < 0 and end < 0 and start > end):
        return b""
    size = len(item.value)
    start = max(start + size, 0) if start < 0 else start
    end = max(end + size, 0) if end < 0 else end
    return item.value[start : end + 1]


def setrange(node: Node, name: str, args: Args) -> Steps[Value]:
    key, at, part = args[1], number(args[2]), args[3]
    if at < 0:
        raise Refused(errors.OFFSET_RANGE)
    for _ in tries():
        item = yield from read(node, key)
        if not part:
            return len(item.value) if item else 0
        if at + len(part) > STRING_MOST:
            raise Refused(errors.STRING_TOO_LONG)
        fits(node, key, at + len(part), item.flags if item else b"0")
        old = item.value if item else b""
        value = old[:at].ljust(at, b"\0") + part + old[at + len(part) :]
        if (yield from replace(node, key, item, value) if item else add(node, key, value)):
            break
    return len(value)


def append(node: Node, name: str, args: Args) -> Steps[Value]:
    """The node appends, and keeps TTL and flags."""
    key, more = args[1], args[2]
    failed = b""
    for _ in tries():
        item = yield from read(node, key, b" c f s")
        if item is None:
            if (yield from add(node, key, more)):
                return len(more)
            continue
        if not more:
            return item.size
        if item.cas == failed:  # it is there, and yet was not appended to: the node has no memory for it
            raise OfNode(errors.MEMCACHED_FULL)
        fits(node, key, item.size + len(more), item.flags)
        data = wire.store(key, more, b" MA C" + item.cas)
        reply = yield from one(node, data, "HD EX NF NS", writes=True)
        if reply.code == "HD":
            return item.size + len(more)
        failed = item.cas if reply.code == "NS" else b""
    return None


# --- numbers ---


def incr(node: Node, name: str, args: Args) -> Steps[Value]:
    """INCR, DECR, INCRBY, DECRBY"""
    delta = number(args[2]) if len(args) > 2 else 1
    if name.startswith("decr"):
        if delta == numbers.LEAST:
            raise Refused(errors.DECREMENT_OVERFLOW)
        delta = -delta
    for _ in tries():
        item = yield from read(node, args[1])
        old = numbers.integer(item.value) if item else 0
        if old is None:
            raise Refused(errors.NOT_AN_INTEGER)
        new = old + delta
        if not numbers.LEAST <= new <= numbers.MOST:
            raise Refused(errors.OVERFLOW)
        if (yield from _count(node, args[1], item, old, new)):
            break
    return new


def _count(node: Node, key: bytes, item: Item | None, old: int, new: int) -> Steps[bool]:
    """Old into new: by the node where it can, for that keeps the TTL, in one step."""
    text = b"%d" % new
    if item is None:
        return (yield from add(node, key, text))
    # its numbers have no sign, and one that gets shorter leaves a space behind
    if old < 0 or new < 0 or len(text) < len(item.value):
        return (yield from replace(node, key, item, text))
    flags = b" C%b M%b D%d" % (item.cas, b"I" if new >= old else b"D", abs(new - old))
    reply = yield from one(node, wire.command(b"ma", key, flags), "HD EX NF NS", writes=True)
    return reply.code == "HD"


def incrbyfloat(node: Node, name: str, args: Args) -> Steps[Value]:
    for _ in tries():
        item = yield from read(node, args[1])
        old, delta = _float(item.value) if item else Fraction(0), _float(args[2])
        new = numbers.rounded(old + delta) if old is not None and delta is not None else None
        if new is None:
            raise Refused(errors.NOT_FINITE)
        text = numbers.written(new)
        if (yield from replace(node, args[1], item, text) if item else add(node, args[1], text)):
            break
    return text


def _float(text: bytes) -> Fraction | None:
    """None: infinite. Raises Refused."""
    value = numbers.long_double(text)
    if value is None and not numbers.infinite(text):
        raise Refused(errors.NOT_A_FLOAT)
    return value
