"""What is thrown: valid frames, commands and whole programs, and the ways in which they are spoilt.

Everything is drawn from a random.Random, so that a seed brings it back.
"""

from hashlib import sha1
from random import Random

KEYS = [b"a", b"b", b"{t}1", b"{t}2", b"key:%d", b"", b"{}", b"\x00\xff\r\n", b"k" * 300]
VALUES = [b"", b"1", b"-1", b"value", b"\r\n", b"\x00", b"$3\r\nfoo\r\n", b"v" * 5000, b"x" * 70000]
MARKS = b"+-:_,#($!=*~>%|"
NUMBERS = [
    b"0",
    b"1",
    b"-1",
    b"-2",
    b"00",
    b"01",
    b"+1",
    b"-0",
    b"3",
    b"1024",
    b"1025",
    b"1048576",
    b"1048577",
]
NUMBERS += [
    b"536870912",
    b"536870913",
    b"2147483648",
    b"4294967296",
    b"9223372036854775807",
    b"1" * 40,
    b"",
    b" 1",
]
SNIPPETS = [
    b"\r\n",
    b"\n",
    b"\r",
    b"*",
    b"$",
    b"*1\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"'",
    b'"',
    b"\\x0",
    b"\x00",
]
SNIPPETS += [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST / HTTP/1.1\r\n",
    b"PING\r\n",
    b"|1\r\n",
    b">2\r\n",
    b"%1\r\n",
]


def encode(*args: bytes) -> bytes:
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args)


def frame(rnd: Random, depth: int = 0) -> bytes:
    """A reply frame of any type, at most 4 levels deep."""
    mark = rnd.choice(MARKS if depth < 4 else MARKS[:10])
    if mark in b"+-":
        return b"%c%b\r\n" % (mark, rnd.choice([b"OK", b"ERR no", b"", b"QUEUED", b"x" * 40]))
    if mark in b":_,#(":
        return b"%c%b\r\n" % (mark, {58: b"%d" % rnd.randrange(-5, 10**12), 35: b"t"}.get(mark, b"1"))
    if mark in b"$!=":
        body = rnd.choice(VALUES[:7] if rnd.random() < 0.95 else VALUES)
        return b"$-1\r\n" if rnd.random() < 0.1 else b"%c%d\r\n%b\r\n" % (mark, len(body), body)
    count = rnd.randrange(4)
    parts = count * (2 if mark in b"%|" else 1) + (mark == ord("|"))
    return b"%c%d\r\n" % (mark, count) + b"".join(frame(rnd, depth + 1) for _ in range(parts))


def key(rnd: Random) -> bytes:
    found = rnd.choice(KEYS)
    return found % rnd.randrange(100) if found == b"key:%d" else found


def value(rnd: Random) -> bytes:
    return rnd.choice(VALUES[:7]) if rnd.random() < 0.9 else rnd.choice(VALUES)


def single(rnd: Random) -> list[bytes]:
    """A command on one key."""
    name = rnd.choice(
        [b"GET", b"SET", b"INCR", b"APPEND", b"DEL", b"LPUSH", b"LRANGE", b"HSET", b"TYPE", b"get"]
    )
    more = {b"SET": 1, b"APPEND": 1, b"LPUSH": 1, b"HSET": 2}.get(name, 0)
    tail = [b"0", b"-1"] if name == b"LRANGE" else [value(rnd) for _ in range(more)]
    return [name, key(rnd), *tail]


def spread(rnd: Random) -> list[bytes]:
    """A command on several keys."""
    name = rnd.choice(
        [b"MGET", b"MSET", b"DEL", b"UNLINK", b"EXISTS", b"TOUCH", b"RENAME", b"SINTER", b"BITOP"]
    )
    keys = [key(rnd) for _ in range(rnd.choice([1, 2, 3, 10, 40]))]
    if name == b"MSET":
        return [name, *(part for each in keys for part in (each, value(rnd)))]
    return [name, *([b"AND"] if name == b"BITOP" else []), *keys]


# Commands whose keys are where their options say
MOVABLE = [
    b"EVAL s 2 a b c|EVAL s 0|EVAL s -1 a|EVAL s 99 a|FCALL f 1 a|ZUNIONSTORE d 2 a b WEIGHTS 1 2",
    b"ZINTER 1 a|ZDIFF 3 a b|LMPOP 2 a b LEFT|ZMPOP 1 a MIN|SINTERCARD 2 a b LIMIT 1",
    b"SORT a BY w* GET # STORE d|SORT a STORE|XREAD COUNT 1 STREAMS a b 0 0|XREAD STREAMS a",
    b"XREADGROUP GROUP g c STREAMS a >|XREAD BLOCK 0 STREAMS a 0|GEORADIUS a 1 1 1 m STORE d",
    b"GEORADIUS a 1 1 1 m STOREDIST|MIGRATE h 1 a 0 5|MIGRATE h 1 '' 0 5 KEYS a b|BITOP AND d a b",
    b"PFMERGE d|PFCOUNT a b|MSETNX a 1 b 2|MSET a|COPY a b|SMOVE a b c|OBJECT FREQ a|XGROUP CREATE a",
    b"MEMORY USAGE a SAMPLES 1|DEBUG OBJECT a|BLPOP a b 0|BLMPOP 0 2 a b LEFT|BITFIELD a GET u8 0",
    b"SET a b GET",
]
LOCAL = [
    b"PING|PING x|ECHO hello|TIME|INFO|INFO all|CLIENT ID|CLIENT LIST|CLIENT INFO|CLIENT GETNAME",
    b"CLIENT SETNAME n|CLIENT REPLY ON|CLIENT REPLY OFF|CLIENT REPLY SKIP|CLIENT NO-EVICT on",
    b"CLIENT SETINFO lib-name x|CLIENT KILL 1|HELLO|HELLO 2|HELLO 3|HELLO 3 SETNAME x|HELLO 4",
    b"HELLO 3 AUTH default x|AUTH x|SELECT 0|SELECT 1|RESET|COMMAND COUNT|COMMAND DOCS get",
    b"COMMAND GETKEYS mget a b|COMMAND INFO get|COMMAND LIST|DBSIZE|KEYS *|SCAN 0|PROXY HELP|PROXY INFO",
    b"PROXY NODES|PROXY LOCATE a|PROXY COMMANDS get|PROXY TOPOLOGY|PROXY NOTHING|ROLE|WATCH a",
    b"UNWATCH|SUBSCRIBE c|PSUBSCRIBE c*|BLPOP a 0|WAIT 0 0|SHUTDOWN|DEBUG SLEEP 0|CONFIG GET *|MONITOR",
    b"EVAL x 0|EVAL return 1 a|XREAD BLOCK 0 STREAMS a 0|SORT a BY b*|NOSUCH|NOSUCH a b|GET|SET a|MGET",
    b"MSET a|DEL|MULTI|EXEC|DISCARD|QUIT|OBJECT ENCODING a|OBJECT HELP|MEMORY USAGE a|XINFO STREAM a",
    b"ACL WHOAMI|LATENCY HELP|WATCH a b|WATCH {t}a|SELECT 3|SELECT 99|CLIENT UNBLOCK 1",
    b"CLIENT UNBLOCK 7 ERROR|LOLWUT|WAIT 1 5",
    b"CLIENT PAUSE 5|CLIENT PAUSE 3 WRITE|CLIENT UNPAUSE|CLIENT KILL ID 0|CLIENT KILL TYPE pubsub",
    b"BLPOP {t}a 0.01|BLMOVE {t}a {t}b LEFT LEFT 0.01|XREAD BLOCK 5 STREAMS {t}a $|BLPOP a x|BZPOPMIN z 0.01",
    b"SUBSCRIBE c d|PSUBSCRIBE c* *|SSUBSCRIBE s|UNSUBSCRIBE|UNSUBSCRIBE c|PUNSUBSCRIBE|SUNSUBSCRIBE s",
    b"PUBLISH c x|PUBLISH d y|PUBLISH c z|SPUBLISH s x|PUBSUB CHANNELS|PUBSUB NUMSUB c d|PUBSUB NUMPAT",
    b"PUBSUB SHARDNUMSUB s|SUBSCRIBE __keyspace@0__:a|CLIENT TRACKING ON|CLIENT TRACKING OFF",
    b"CLIENT TRACKING ON BCAST|CLIENT TRACKING ON OPTIN|CLIENT TRACKING ON REDIRECT 1|CLIENT CACHING YES",
    b"CLIENT TRACKINGINFO|CLIENT GETREDIR",
]
LOCAL_COMMANDS = [line.split(b" ") for lines in LOCAL + MOVABLE for line in lines.split(b"|")]


def command(rnd: Random) -> list[bytes]:
    draw = rnd.random()
    if draw > 0.85:
        return scripted(rnd)
    return single(rnd) if draw < 0.4 else spread(rnd) if draw < 0.6 else list(rnd.choice(LOCAL_COMMANDS))


def scripted(rnd: Random) -> list[bytes]:
    """Scripts that nodes know, or do not, with keys and without; and what is asked of all nodes."""
    text = b"return redis.call('GET', KEYS[1] or 'none') or %d" % rnd.randrange(6)
    keys = [key(rnd)] * rnd.randrange(2)
    tail = [b"%d" % len(keys), *keys]
    return rnd.choice(
        [
            [rnd.choice([b"EVAL", b"EVAL_RO"]), text, *tail],
            [rnd.choice([b"EVALSHA", b"EVALSHA_RO", b"EVALSHA"]), sha1(text).hexdigest().encode(), *tail],
            [b"EVALSHA", rnd.choice([b"f" * 40, b"F" * 39, b"", b"g" * 40]), *tail],
            [b"FCALL", b"nothing", *tail],
            [b"SCRIPT", b"LOAD", text],
            [b"SCRIPT", b"EXISTS", sha1(text).hexdigest().encode()],
            [b"SCRIPT", rnd.choice([b"FLUSH", b"KILL", b"HELP"])],
            [b"SCAN", rnd.choice([b"0", b"%d" % rnd.randrange(1 << 63), b"x"]), b"COUNT", b"5"],
            [b"KEYS", b"nothing*"],
            [rnd.choice([b"DBSIZE", b"RANDOMKEY", b"LASTSAVE"])],
            [b"CONFIG", b"GET", b"hz"],
            [b"PROXY", b"NODE", rnd.choice([b"a", b"b", b"zz"]), b"PING"],
        ]
    )


def transaction(rnd: Random) -> list[list[bytes]]:
    tag = rnd.choice([b"{t}", b"{u}", b""])
    inside = [[b"SET", tag + key(rnd), b"1"], [b"GET", tag + key(rnd)]] + [
        command(rnd) for _ in range(rnd.randrange(2))
    ]
    return [
        *([[b"WATCH", tag + key(rnd)]] if rnd.random() < 0.3 else []),
        [b"MULTI"],
        *rnd.sample(inside, rnd.randrange(len(inside) + 1)),
        [rnd.choice([b"EXEC", b"EXEC", b"DISCARD"])],
    ]


def program(rnd: Random, length: int) -> list[list[bytes]]:
    """Commands that a client might send, transactions among them."""
    commands: list[list[bytes]] = []
    while len(commands) < length:
        commands += transaction(rnd) if rnd.random() < 0.15 else [command(rnd)]
    return commands


def packed(rnd: Random, commands: list[list[bytes]]) -> bytes:
    """Now and then as a plain line."""
    plain = rnd.random() < 0.1
    return b"".join(
        b" ".join(each) + b"\r\n"
        if plain and all(part.isalnum() and len(part) < 9000 for part in each)
        else encode(*each)
        for each in commands
    )


def spoil(rnd: Random, data: bytes, times: int = 1) -> bytes:
    """Truncated, flipped, cut out, doubled, with other numbers or other bytes in it."""
    for _ in range(times):
        at, how = rnd.randrange(len(data) + 1), rnd.randrange(8)
        end = min(len(data), at + rnd.choice([1, 1, 2, 5, 30]))
        if how == 0:
            data = data[:at]
        elif how == 1 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << rnd.randrange(8)]) + data[at + 1 :]
        elif how == 2:
            data = data[:at] + data[end:]
        elif how == 3:
            data = data[:end] + data[at:]
        elif how == 4:
            data = data[:at] + rnd.choice(SNIPPETS) + data[at:]
        elif how == 5:
            data = data[:at] + rnd.randbytes(rnd.choice([1, 3, 20])) + data[end:]
        else:  # another length or count
            line = data.rfind(b"\r\n", 0, at) + 2 if b"\r\n" in data[:at] else 0
            stop = data.find(b"\r\n", line)
            if stop > line:
                data = data[: line + 1] + rnd.choice(NUMBERS) + data[stop:]
    return data


LINES = (
    b"HD", b"HD s5 t-1 c12", b"EN", b"NF", b"NS", b"EX", b"MN", b"OK", b"ERROR", b"STORED", b"VERSION 1.6.18",
    b"SERVER_ERROR out of memory storing object", b"SERVER_ERROR object too large for cache",
    b"CLIENT_ERROR bad data chunk", b"key=a%20b exp=-1 la=1", b"STAT pid 1\r\nSTAT time 7\r\nEND", b"END",
)  # fmt: skip


def meta(rnd: Random) -> bytes:
    """A reply of a memcached."""
    if rnd.random() < 0.4:
        body = rnd.choice(VALUES[:7] if rnd.random() < 0.95 else VALUES)
        return b"VA %d%b\r\n%b\r\n" % (len(body), rnd.choice([b"", b" f0 c12", b" t-1"]), body)
    return rnd.choice(LINES) + b"\r\n"


def inputs(rnd: Random) -> bytes:
    """An input of the harness."""
    kind, how = rnd.randrange(6), rnd.randrange(256)
    if kind == 3:
        return bytes([3]) + rnd.randbytes(rnd.randrange(1, 60))
    if kind == 5:
        return bytes([5]) + rnd.choice([rnd.choice(KEYS), rnd.randbytes(rnd.randrange(1, 300))])
    if kind == 4:
        data = b"".join(meta(rnd) for _ in range(rnd.randrange(1, 6)))
        return bytes([kind, how]) + (spoil(rnd, data, rnd.randrange(4)) if rnd.random() < 0.7 else data)
    if kind == 1:
        data = packed(rnd, program(rnd, rnd.randrange(1, 4)))
    else:
        data = b"".join(frame(rnd) for _ in range(rnd.randrange(1, 6)))
    if kind == 2:
        data = rnd.randbytes(2) + rnd.choice([data, b"*1\r\n:1\r\n" * 3, b":1\r\n:2\r\n", b"+OK\r\n" * 2])
    return bytes([kind, how]) + (spoil(rnd, data, rnd.randrange(4)) if rnd.random() < 0.7 else data)
