"""Programs of commands that work on keys, whatever their value: DEL, EXPIRE, TTL, TYPE and their kin.

As in strings.py. EXPIRE and PERSIST write the value again: memcached's own touch changes no CAS, so who
rewrites the key at that moment would not see it, and take it back.
"""

from shardproxy.core import errors
from shardproxy.core.memcached import expiry, numbers, wire
from shardproxy.core.memcached.expiry import NEVER, Node
from shardproxy.core.memcached.items import Ask, Item, Steps, delete, many, one, read, replace, tries, whole
from shardproxy.core.memcached.strings import OK, Args, Status, Value
from shardproxy.core.memcached.wire import Refused

EMBEDDED_MOST = 44  # bytes of a value that Redis calls embstr
TIDY_TRIES, TIDY_PAUSE = 100, 0.005  # of waiting for the crawler after FLUSHALL; seconds
SLOT = 8  # what a node spends on a key beside its item


def del_(node: Node, name: str, args: Args) -> Steps[Value]:
    """DEL, UNLINK"""
    asked = [wire.command(b"md", key) for key in args[1:]]
    return sum(reply.hit for reply in (yield from many(node, asked, "HD NF", writes=True)))


def exists(node: Node, name: str, args: Args) -> Steps[Value]:
    """EXISTS, TOUCH"""
    asked = [wire.command(b"mg", key) for key in args[1:]]
    return sum(reply.hit for reply in (yield from many(node, asked, "HD EN")))


def type_(node: Node, name: str, args: Args) -> Steps[Value]:
    return Status("string" if (yield from read(node, args[1], b"")) else "none")


def object_encoding(node: Node, name: str, args: Args) -> Steps[Value]:
    """What it would be had it been written by SET."""
    item = yield from read(node, args[2], b" v")
    if item is None:
        return None
    if numbers.integer(item.value) is not None:
        return b"int"
    return b"embstr" if len(item.value) <= EMBEDDED_MOST else b"raw"


def memory_usage(node: Node, name: str, args: Args) -> Steps[Value]:
    """MEMORY USAGE key [SAMPLES count]: bytes of its item."""
    given = args[3:]
    while given:
        if expiry.word(given[0]) != "samples" or len(given) < 2 or expiry.number(given[1]) < 0:
            raise Refused(errors.SYNTAX)
        given = given[2:]
    item = yield from read(node, args[2], b" s f")
    if item is None:
        return None
    return item.size - wire.room(args[2], item.flags, 1 << 40) + (1 << 40) + SLOT


# --- expiry ---

# name → (milliseconds of one, from now)
_EXPIRES = {"expire": (1000, True), "pexpire": (1, True), "expireat": (1000, False), "pexpireat": (1, False)}


def expire(node: Node, name: str, args: Args) -> Steps[Value]:
    """EXPIRE, PEXPIRE, EXPIREAT, PEXPIREAT key number [NX | XX | GT | LT ...]"""
    words = _conditions(args[3:])
    left = expiry.left_signed(node, name, args[2], *_EXPIRES[name])
    key = args[1]
    for _ in tries():
        item = yield from read(node, key, b" v c f t" if left > 0 else b" c t")
        if item is None or not _meets(words, item, left):
            return 0
        if left <= 0:
            done = yield from delete(node, key, item)
        else:
            done = yield from replace(node, key, item, item.value, expiry.token(node, left))
        if done:
            return 1
    return None


def _conditions(arguments: Args) -> set[str]:
    words: set[str] = set()
    for argument in arguments:
        words.add(expiry.word(argument))
        if not words <= {"nx", "xx", "gt", "lt"}:
            raise Refused(errors.expire_option(argument))
    if "nx" in words and len(words) > 1:
        raise Refused(errors.EXPIRE_NX_OTHERS)
    if {"gt", "lt"} <= words:
        raise Refused(errors.EXPIRE_GT_LT)
    return words


def _meets(words: set[str], item: Item, left: int) -> bool:
    """Compared in the node's seconds."""
    new, old = expiry.seconds(left) if left > 0 else 0, item.ttl
    return not (
        ("nx" in words and old >= 0)
        or ("xx" in words and old < 0)
        or ("gt" in words and (old < 0 or new <= old))
        or ("lt" in words and 0 <= old <= new)
    )


def persist(node: Node, name: str, args: Args) -> Steps[Value]:
    for _ in tries():
        item = yield from read(node, args[1])
        if item is None or item.ttl < 0:
            return 0
        if (yield from replace(node, args[1], item, item.value, NEVER)):
            return 1
    return None


def ttl(node: Node, name: str, args: Args) -> Steps[Value]:
    """TTL, PTTL, EXPIRETIME, PEXPIRETIME: -1: never, -2: no such key."""
    item = yield from read(node, args[1], b" t")
    if item is None or item.ttl < 0:
        return -2 if item is None else -1
    left = expiry.left_of(item.ttl)
    if name.endswith("time"):
        left += node.milliseconds()
    return left if name.startswith("p") else (left + 500) // 1000


# --- the whole node ---


def dbsize(node: Node, name: str, args: Args) -> Steps[Value]:
    """What it holds, with what has expired and is not tidied away yet."""
    reply = yield from one(node, b"stats\r\n", "STAT")
    return whole(reply, node, "curr_items", 0)


def flush(node: Node, name: str, args: Args) -> Steps[Value]:
    """FLUSHALL, FLUSHDB [ASYNC | SYNC]"""
    if len(args) > 2 or (len(args) == 2 and expiry.word(args[1]) not in ("async", "sync")):
        raise Refused(errors.SYNTAX)
    yield from one(node, b"flush_all\r\n", "OK", writes=True)
    # what is flushed is still counted until somebody comes across it: the crawler does
    started = False
    for _ in range(TIDY_TRIES):
        if not started:
            said = yield Ask(b"lru_crawler crawl all\r\n", spare=True)
            if not said or said[0].code not in ("OK", "BUSY"):
                break
            started = said[0].code == "OK"
        said = yield Ask(b"stats\r\n", pause=TIDY_PAUSE, spare=True)
        if not said or (started and said[0].flags.get("lru_crawler_running") == b"0"):
            break
    return OK


def ping(node: Node, name: str, args: Args) -> Steps[Value]:
    yield from one(node, b"mn\r\n", "MN")
    return args[1] if len(args) > 1 else Status("PONG")
