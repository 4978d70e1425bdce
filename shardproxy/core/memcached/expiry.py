"""When a key expires: Redis's milliseconds ↔ memcached's seconds. And the options that say it.

memcached looks at its clock once a second, and then shows the whole seconds of it. What it is told is T, it
lives from T-1 to T seconds; and where its timer, each time a millisecond late, has drifted over the edge of
a second meanwhile (once in a quarter of an hour), from T-2 to T-1. So T is two more than the whole seconds:
what is asked for in whole seconds goes never earlier than on Redis and at most two seconds later. Of other
times the part of a second may be missing, once in that quarter of an hour: with a third second they would
all be three late. (A life that is as long as the drift may also be most of a second longer.) What is left
is told without the two. A number over 30 days is a time since 1970 to memcached, and one over 2^31 an item
that has expired already: an error here.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from shardproxy.core import errors
from shardproxy.core.memcached.numbers import LEAST, MOST, integer
from shardproxy.core.memcached.wire import OfNode, Refused

RELATIVE_MOST = 30 * 24 * 3600
ABSOLUTE_MOST = (1 << 31) - 1
NEVER, AT_ONCE = b"0", b"-1"
EXTRA = 2


class Node(NamedTuple):
    """What a program has to know of the node it runs on."""

    now: Callable[[], float]  # our clock: seconds since 1970
    offset: float = 0.0  # the node's clock (`time` of its stats) minus ours
    limit: int = 1 << 20  # its item_size_max; 0: not known
    shard: str = ""  # as errors name it
    address: str = ""

    def where(self) -> str:
        return f"memcached shard '{self.shard}' at {self.address}"

    def milliseconds(self) -> int:
        return int(self.now() * 1000)


def seconds(left: int) -> int:
    """memcached's TTL for so many milliseconds."""
    return left // 1000 + EXTRA


def token(node: Node, left: int) -> bytes:
    """The T of a key that has so many milliseconds left. Raises OfNode beyond memcached's range."""
    if left <= 0:
        return AT_ONCE
    ttl = seconds(left)
    if ttl <= RELATIVE_MOST:
        return b"%d" % ttl
    return absolute(int(node.now() + node.offset) + 1 + ttl)


def absolute(at: int) -> bytes:
    """The T of seconds since 1970, by the node's clock."""
    if not RELATIVE_MOST < at <= ABSOLUTE_MOST:
        raise OfNode(errors.MEMCACHED_TTL_RANGE)
    return b"%d" % at


def left_of(ttl: int) -> int:
    """Milliseconds of a key whose `t` is this."""
    return max(ttl - EXTRA, 0) * 1000


# --- options ---


def word(argument: bytes) -> str:
    """An option as C's strcasecmp sees it."""
    return argument.partition(b"\0")[0].lower().decode("latin-1")


def number(text: bytes) -> int:
    """Raises Refused."""
    value = integer(text)
    if value is None:
        raise Refused(errors.NOT_AN_INTEGER)
    return value


_EXPIRES = {"ex": (1000, True), "px": (1, True), "exat": (1000, False), "pxat": (1, False)}


class Options(NamedTuple):
    """Of SET and GETEX."""

    words: frozenset[str]
    expire: tuple[bytes, int, bool] | None  # (number, milliseconds of one, from now)


def options(arguments: Sequence[bytes], allowed: frozenset[str]) -> Options:
    """allowed: beside those of time. Raises Refused."""
    words: set[str] = set()
    expire: tuple[bytes, int, bool] | None = None
    given = list(reversed(arguments))
    while given:
        option = word(given.pop())
        others = words & {"keepttl", "persist", *_EXPIRES} - {option}
        if option in _EXPIRES and given and not others:
            expire = (given.pop(), *_EXPIRES[option])
        elif option not in allowed or (option in ("keepttl", "persist") and others):
            raise Refused(errors.SYNTAX)
        words.add(option)
        if {"nx", "xx"} <= words:
            raise Refused(errors.SYNTAX)
    return Options(frozenset(words), expire)


def left(node: Node, name: str, expire: tuple[bytes, int, bool]) -> int:
    """Milliseconds until then, of SET and its kin, which take no past from now."""
    text, unit, from_now = expire
    value = number(text)
    if value <= 0 or value > MOST // unit:
        raise Refused(errors.expire_time(name))
    value *= unit
    now = node.milliseconds()
    if not from_now:
        return value - now
    if value + now > MOST:
        raise Refused(errors.expire_time(name))
    return value


def left_signed(node: Node, name: str, text: bytes, unit: int, from_now: bool) -> int:
    """The same of EXPIRE and its kin, which take any."""
    value = number(text)
    if not -(-LEAST // unit) <= value <= MOST // unit:
        raise Refused(errors.expire_time(name))
    value *= unit
    now = node.milliseconds()
    if not from_now:
        return value - now
    if value > MOST - now:
        raise Refused(errors.expire_time(name))
    return value
