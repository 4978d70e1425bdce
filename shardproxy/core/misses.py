"""What a read answers for keys that do not exist, in Redis 7.0's own bytes.

For shards that are down in a pool with `on_shard_down = "miss"`: their reads are answered here, without a
node. A command has one form or several, tried in order; a form says how the arguments look and what the
answer is. What no form fits (a mistake in them, an option of a newer Redis) is not known here: the caller
answers an error. So a form may be narrower than Redis, never wider; a test sends each to a real server and
compares the bytes. Pure, and only run while a shard is down.

A form's notation:
    key int              arguments by position, each of a kind of ARGUMENTS; FULL: this very word
    key... any*          one or more of them, any number of them: the last of those that stand by position
    [LIMIT int int]      an option with its values; options come after the others, in any order, each once at
                         most; [GET any]* also several times; {BYSCORE}: it must be there
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple, TypeAlias

from shardproxy.core import errors
from shardproxy.core import reply as say

Args: TypeAlias = Sequence[bytes]
# Where an argument that begins at args[at] ends; -1: it is not one of this kind
Argument: TypeAlias = Callable[[Args, int], int]
# The same bytes always (RESP2, RESP3), or made from the arguments
Answer: TypeAlias = tuple[bytes, bytes] | Callable[[Args, int], bytes]

# --- what arguments look like ---

_UNIT = rb"(?i:m|km|ft|mi)"
_NUMBER = rb"[+-]?\d{1,17}(?:\.\d{1,17})?(?:[eE][+-]?\d)?"
_WHOLE = rb"(?:0|-?[1-9]\d{0,17})"
_ID = rb"\d{1,19}(?:-\d{1,19})?"


def _like(pattern: bytes) -> Argument:
    """An argument that looks so, as a whole."""
    fits = re.compile(pattern, re.DOTALL).fullmatch
    return lambda args, at: at + 1 if at < len(args) and fits(args[at]) else -1


def _integer(args: Args, at: int) -> int:
    """As Redis reads it: of 64 bits, without leading zeros; the most negative one is often refused."""
    fits = at < len(args) and re.fullmatch(rb"0|-?[1-9]\d{0,18}", args[at])
    return at + 1 if fits and abs(int(args[at])) < 1 << 63 else -1


def _keys(args: Args, at: int) -> int:
    """Their number, and as many keys."""
    if at < len(args) and re.fullmatch(rb"[1-9]\d{0,8}", args[at]):
        end = at + 1 + int(args[at])
        return end if end <= len(args) else -1
    return -1


def _weights(args: Args, at: int) -> int:
    """One for each of the keys, whose number is the first argument."""
    end = at + int(args[1])
    fits = re.compile(rb"[+-]?(?i:inf)|" + _NUMBER).fullmatch
    return end if end <= len(args) and all(map(fits, args[at:end])) else -1


def _position(args: Args, at: int) -> int:
    """Longitude and latitude."""
    fits = re.compile(_NUMBER).fullmatch
    if at + 2 > len(args) or not (fits(args[at]) and fits(args[at + 1])):
        return -1
    return at + 2 if abs(float(args[at])) <= 180 and abs(float(args[at + 1])) <= 85 else -1


def _most(args: Args, at: int) -> int:
    """How many to find; with ANY it need not be the nearest."""
    if at >= len(args) or not re.fullmatch(rb"[1-9]\d{0,17}", args[at]):
        return -1
    return at + 2 if at + 1 < len(args) and args[at + 1].upper() == b"ANY" else at + 1


def _streams(args: Args, at: int) -> int:
    """As many ids as keys."""
    half, odd = divmod(len(args) - at, 2)
    fits = re.compile(rb"\$|" + _ID).fullmatch
    return len(args) if half > 0 and not odd and all(map(fits, args[at + half :])) else -1


ARGUMENTS: dict[str, Argument] = {
    "any": _like(rb".*"),
    "key": _like(rb".*"),
    "int": _integer,
    "small": _like(_WHOLE),  # where Redis takes fewer than all 64 bits
    "count": _like(rb"0|[1-9]\d{0,17}"),
    "positive": _like(rb"[1-9]\d{0,17}"),
    "nonzero": _like(rb"-?[1-9]\d{0,17}"),
    "bit": _like(rb"0|[1-9]\d{0,8}"),
    "zero": _like(rb"0"),
    "one": _like(rb"1"),
    "cursor": _like(rb"\d{1,19}"),
    "size": _like(rb"\+?" + _NUMBER.removeprefix(rb"[+-]?")),
    "unit": _like(_UNIT),
    "score": _like(rb"\(?(?:[+-]?(?i:inf)|" + _NUMBER + rb")"),
    "lex": _like(rb"[-+]|[\[(].*"),
    "id": _like(rb"[-+]|\(?" + _ID),  # of a range of a stream
    "type": _like(rb"i(?:[1-9]|[1-5]\d|6[0-4])|u(?:[1-9]|[1-5]\d|6[0-3])"),
    "offset": _like(rb"#?(?:0|[1-9]\d{0,6})"),
    "aggregate": _like(rb"(?i:sum|min|max)"),
    "keys": _keys,
    "weights": _weights,
    "position": _position,
    "most": _most,
    "streams": _streams,
}

# --- answers ---

ZERO = (b":0\r\n", b":0\r\n")
NULL = (say.null(2), say.null(3))
NULL_ARRAY = (say.null_array(2), say.null_array(3))
EMPTY = (b"$0\r\n\r\n",) * 2
NONE = (b"*0\r\n",) * 2
NO_SET = (say.set_((), 2), say.set_((), 3))
NO_MAP = (say.mapping((), 2), say.mapping((), 3))
NO_TIME = (b":-2\r\n",) * 2
END_OF_SCAN = (say.array([say.bulk("0"), say.array(())]),) * 2
_MATCHES = [(say.bulk("matches"), say.array(())), (say.bulk("len"), say.integer(0))]
NO_MATCHES = (say.mapping(_MATCHES, 2), say.mapping(_MATCHES, 3))
NO_SUCH_KEY = (say.error(errors.NO_SUCH_KEY),) * 2


def _each(answer: tuple[bytes, bytes], start: int, step: int = 1) -> Answer:
    """One of these for each argument, or each `step` of them, from `start` on."""
    return lambda args, proto: say.array([answer[proto - 2]] * ((len(args) - start) // step))


def _no_group(args: Args, proto: int) -> bytes:
    return say.error(errors.no_group(args[1], args[2]))


# --- commands ---

_NEAR = "[ASC] [DESC] [COUNT most] [WITHCOORD] [WITHDIST] [WITHHASH]"
_AROUND = product(
    ("{FROMMEMBER any}", "{FROMLONLAT position}"), ("{BYRADIUS size unit}", "{BYBOX size size unit}")
)
_COMBINED = "keys [WEIGHTS weights] [AGGREGATE aggregate] [WITHSCORES]"
_SCAN = "key cursor [MATCH any] [COUNT positive]"
_LCS = "key key [WITHMATCHLEN] [MINMATCHLEN int]"
_PENDING = ("id id int", "id id int any", "IDLE count id id int", "IDLE count id id int any")

# name → its forms with their answers
FORMS: Mapping[str, Sequence[tuple[str, Answer]]] = {
    # strings and bits
    "get": [("key", NULL)],
    "mget": [("key...", _each(NULL, 1))],
    "strlen": [("key", ZERO)],
    "getrange": [("key int int", EMPTY)],
    "substr": [("key int int", EMPTY)],
    "lcs": [(_LCS, EMPTY), (_LCS + " {LEN}", ZERO), (_LCS + " {IDX}", NO_MATCHES)],
    "getbit": [("key bit", ZERO)],
    "bitcount": [(form, ZERO) for form in ("key", "key int int", "key int int BYTE", "key int int BIT")],
    "bitpos": [
        (f"key {bit}{rest}", answer)
        for bit, answer in (("zero", ZERO), ("one", (b":-1\r\n",) * 2))
        for rest in ("", " int", " int int", " int int BYTE", " int int BIT")
    ],
    "bitfield_ro": [("key [GET type offset]*", _each(ZERO, 2, 3))],
    "pfcount": [("key...", ZERO)],
    # keys
    "exists": [("key...", ZERO)],
    "touch": [("key...", ZERO)],
    "type": [("key", (b"+none\r\n",) * 2)],
    "ttl": [("key", NO_TIME)],
    "pttl": [("key", NO_TIME)],
    "expiretime": [("key", NO_TIME)],
    "pexpiretime": [("key", NO_TIME)],
    "dump": [("key", NULL)],
    "object|encoding": [("key", NULL)],
    "object|freq": [("key", NULL)],
    "object|idletime": [("key", NULL)],
    "object|refcount": [("key", NULL)],
    "memory|usage": [("key [SAMPLES count]", NULL)],
    "sort_ro": [("key [ASC] [DESC] [ALPHA] [LIMIT int int] [BY any] [GET any]*", NONE)],
    # hashes
    "hget": [("key any", NULL)],
    "hmget": [("key any...", _each(NULL, 2))],
    "hgetall": [("key", NO_MAP)],
    "hkeys": [("key", NONE)],
    "hvals": [("key", NONE)],
    "hlen": [("key", ZERO)],
    "hstrlen": [("key any", ZERO)],
    "hexists": [("key any", ZERO)],
    "hrandfield": [("key", NULL), ("key small", NONE), ("key small WITHVALUES", NONE)],
    "hscan": [(_SCAN, END_OF_SCAN)],
    # lists
    "lindex": [("key int", NULL)],
    "llen": [("key", ZERO)],
    "lrange": [("key int int", NONE)],
    "lpos": [
        ("key any [RANK nonzero] [MAXLEN count]", NULL),
        ("key any [RANK nonzero] [MAXLEN count] {COUNT count}", NONE),
    ],
    # sets
    "scard": [("key", ZERO)],
    "sismember": [("key any", ZERO)],
    "smismember": [("key any...", _each(ZERO, 2))],
    "smembers": [("key", NO_SET)],
    "srandmember": [("key", NULL), ("key small", NONE)],
    "sdiff": [("key...", NO_SET)],
    "sinter": [("key...", NO_SET)],
    "sunion": [("key...", NO_SET)],
    "sintercard": [("keys [LIMIT count]", ZERO)],
    "sscan": [(_SCAN, END_OF_SCAN)],
    # sorted sets
    "zcard": [("key", ZERO)],
    "zcount": [("key score score", ZERO)],
    "zlexcount": [("key lex lex", ZERO)],
    "zscore": [("key any", NULL)],
    "zmscore": [("key any...", _each(NULL, 2))],
    "zrank": [("key any", NULL)],
    "zrevrank": [("key any", NULL)],
    "zrandmember": [("key", NULL), ("key small", NONE), ("key small WITHSCORES", NONE)],
    "zrange": [
        ("key int int [REV] [WITHSCORES]", NONE),
        ("key score score {BYSCORE} [REV] [LIMIT int int] [WITHSCORES]", NONE),
        ("key lex lex {BYLEX} [REV] [LIMIT int int]", NONE),
    ],
    "zrevrange": [("key int int [WITHSCORES]", NONE)],
    "zrangebyscore": [("key score score [WITHSCORES] [LIMIT int int]", NONE)],
    "zrevrangebyscore": [("key score score [WITHSCORES] [LIMIT int int]", NONE)],
    "zrangebylex": [("key lex lex [LIMIT int int]", NONE)],
    "zrevrangebylex": [("key lex lex [LIMIT int int]", NONE)],
    "zdiff": [("keys [WITHSCORES]", NONE)],
    "zinter": [(_COMBINED, NONE)],
    "zunion": [(_COMBINED, NONE)],
    "zintercard": [("keys [LIMIT count]", ZERO)],
    "zscan": [(_SCAN, END_OF_SCAN)],
    # places
    "geodist": [("key any any", NULL), ("key any any unit", NULL)],
    "geohash": [("key any*", _each(NULL, 2))],
    "geopos": [("key any*", _each(NULL_ARRAY, 2))],
    "geosearch": [(f"key {center} {shape} {_NEAR}", NONE) for center, shape in _AROUND],
    "georadius_ro": [(f"key position size unit {_NEAR}", NONE)],
    "georadiusbymember_ro": [(f"key any size unit {_NEAR}", NONE)],
    # streams
    "xlen": [("key", ZERO)],
    "xrange": [("key id id [COUNT int]", NONE)],
    "xrevrange": [("key id id [COUNT int]", NONE)],
    "xread": [("STREAMS streams", NULL_ARRAY), ("COUNT int STREAMS streams", NULL_ARRAY)],
    "xpending": [(form, _no_group) for form in ("key any", *(f"key any {rest}" for rest in _PENDING))],
    "xinfo|stream": [(form, NO_SUCH_KEY) for form in ("key", "key FULL", "key FULL COUNT int")],
    "xinfo|groups": [("key", NO_SUCH_KEY)],
    "xinfo|consumers": [("key any", NO_SUCH_KEY)],
}

# Reads that nobody can answer without a node: name → why
UNKNOWABLE: Mapping[str, str] = dict.fromkeys(
    ("eval_ro", "evalsha_ro", "fcall_ro"), "what a script answers for missing keys is its own affair"
)

# --- fitting ---


class Option(NamedTuple):
    values: tuple[Argument, ...]
    must: bool
    again: bool  # may come several times


class Form(NamedTuple):
    places: tuple[Argument, ...]
    more: Argument | None  # any number of these after the places
    options: Mapping[bytes, Option]
    answer: Answer

    @classmethod
    def parse(cls, text: str, answer: Answer) -> "Form":
        places: list[Argument] = []
        more: Argument | None = None
        options: dict[bytes, Option] = {}
        for option, word in re.findall(r"([\[{][^\]}]*[\]}]\*?)|(\S+)", text):
            if option:
                name, *values = option.strip("[]{}*").split()
                options[name.encode()] = Option(
                    tuple(ARGUMENTS[value] for value in values), option[0] == "{", option[-1] == "*"
                )
                continue
            kind = word.removesuffix("...").removesuffix("*")
            argument = _like(b"(?i:%s)" % kind.encode()) if kind.isupper() else ARGUMENTS[kind]
            if not word.endswith("*"):
                places.append(argument)
            if kind != word:
                more = argument
        return cls(tuple(places), more, options, answer)

    def fits(self, args: Args, at: int) -> bool:
        """Whether the arguments from args[at] on are of this form."""
        for place in self.places:
            at = place(args, at)
            if at < 0:
                return False
        while self.more is not None and at < len(args):
            at = self.more(args, at)
            if at < 0:
                return False
        seen: set[bytes] = set()
        while at < len(args):
            name = args[at].upper()
            option = self.options.get(name)
            if option is None or (name in seen and not option.again):
                return False
            seen.add(name)
            at += 1
            for value in option.values:
                at = value(args, at)
                if at < 0:
                    return False
        return all(name in seen for name, option in self.options.items() if option.must)


@cache
def _forms(name: str) -> tuple[Form, ...]:
    return tuple(Form.parse(text, answer) for text, answer in FORMS.get(name, ()))


def reply(name: str, args: Sequence[bytes], proto: int) -> bytes | None:
    """What a command answers when none of its keys exists; None: that is not known here.

    name: the row's in the command table ("get", "object|encoding"); args: all of them, with the command's
    own name; proto: 2 or 3. Of a command that is split over shards: the part for one shard, as it would be
    sent.
    """
    start = 1 + name.count("|")
    for form in _forms(name):
        if form.fits(args, start):
            return form.answer[proto - 2] if isinstance(form.answer, tuple) else form.answer(args, proto)
    return None
