"""What the random programs are made of: every command that the proxy serves, as lines of a small grammar.

Rules: a line is a command's form, upper-case words stand for themselves, `@x` is a key of the family x, and
lower-case words are values of VALUES. `[ a ]` may be there, `( a | b )` is one of them, `( a )*` is one to
three of them. Forms are right, or wrong on purpose; programs.py makes more of them wrong. What a plain Redis
does not repeat (what SPOP takes, when a key of 1 ms is gone) is not written here. Knows no socket, no test.

LINES     family → its forms. Families share keys of one type, so that programs meet what they have written
SEEDS     family → a command that fills its first key
FANOUT    forms whose keys may live on several shards
LOCAL     what the proxy answers itself, and a plain Redis alike
REFUSED_FORMS, NOT_COMPARED   what is not written here, and why; the test checks that nothing else is missing
"""

import functools
import hashlib
from typing import Any, TypeAlias

Node: TypeAlias = tuple[
    str, Any
]  # ("word", text), ("seq", nodes), ("any", nodes), ("maybe", node), ("many", node)

# as a plain Redis 7.0 dumps them; the last one is not a dump
DUMPS = [
    b"\x00\x05hello\n\x00cr\xdfve4 \n",
    b"\x12\x01\x02\x0f\x0f\x00\x00\x00\x03\x00\x81a\x02\x81b\x02\x03\x01\xff\n\x00\xdc\xa1\xe6}P\x05PH",
    b"\x0b\x0c\x02\x00\x00\x00\x02\x00\x00\x00\x01\x00\x02\x00\n\x00oy8\xb14\xeb .",
    b"\x10\x12\x12\x00\x00\x00\x04\x00\x81a\x02\x01\x01\x81b\x02\x81x\x02\xff\n\x00x\x07Lk\xd9\xd7\x05\x1f",
    b"\x11\x14\x14\x00\x00\x00\x04\x00\x81a\x02\x01\x01\x81b\x02\x832.5\x04\xff\n\x00\xd4Ln\xa4\xf6D\xd9\xd7",
    b"\x00\x05hello\n\x00cr\xdfve4 \x0b",
]

SCRIPTS = [
    b"return ARGV",
    b"return redis.call('INCR', KEYS[1])",
    b"return redis.pcall('LPUSH', KEYS[1], 'a')",
    b"return {1, {2, 'x'}, false, redis.status_reply('FINE'), {err='MINE is mine'}}",
    b"redis.setresp(3); return redis.call('ZSCORE', KEYS[1], 'a')",
    b"return {double=2.5}",
    b"return {map={a=1}}",
    b"nonsense(",
]


_ODD = ["", "abc", "1.5", "-0", "01", "+1", " 1", "99999999999999999999", b"\xff\x00", "nan"]


def _one(*texts: str | bytes) -> list[bytes]:
    return [text if isinstance(text, bytes) else text.encode() for text in texts]


def _mostly(*texts: str | bytes) -> list[bytes]:
    """Now and then, about one time in ten, something odd."""
    return _one(*texts) * (90 // len(texts) + 1) + _one(*_ODD)


VALUES: dict[str, list[bytes]] = {
    "value": _one(
        *(
            "1",
            "10",
            "-3",
            "3.5",
            "abc",
            "hello world",
            "",
            b"a\r\n\x00\xff$9\r\n",
            "x" * 100,
            "0123456789" * 50,
        ),
        *("7", "abcdef", "foobar", "9223372036854775807", "1e3", b"\xc3\xa9", "*3\r\n", bytes(range(256))),
    ),
    "large": _one("L" * 20_000, b"0123456789\r\n" * 6_000, "M" * 300_000),
    "field": _one("a", "b", "c", "d", "", b"f\r\n\xff", "long" * 30),
    # at most 64 bytes: a longer one makes a skip list of a sorted set, and what a range by LEX finds there
    # where scores differ depends on the levels, which are random
    "member": _one("a", "b", "c", "1", "2", "30", "", b"m\x00\r\n", "long" * 16),
    "integer": _mostly("1", "2", "-7", "100", "0", "9223372036854775807", "-9223372036854775808"),
    "count": _mostly("1", "2", "3", "0", "10", "-1"),
    "positive": _mostly("1", "2", "5", "10"),
    "index": _mostly("0", "1", "-1", "2", "-2", "5", "-100", "100"),
    "offset": _mostly("0", "1", "7", "8", "23", "100", "-1"),
    "bit": _mostly("0", "1", "2"),
    "bits": _mostly("u8", "i5", "u1", "i64", "u63", "u64", "i0"),
    "at": _mostly("0", "#1", "7", "#3", "-1"),
    "float": _mostly("0.5", "1", "-2.25", "1e2", "inf"),
    "score": _mostly("1", "2", "0", "-1", "2.5", "inf", "-inf", "1e300"),
    "bound": _mostly("-inf", "+inf", "1", "(1", "2.5", "0", "("),
    "lex": _mostly("-", "+", "[a", "(a", "[c", "(b", "a"),
    "secs": _mostly("100000", "200000", "0", "-1", "9223372036854775807"),
    "msecs": _mostly("100000000", "200000000", "0", "-1", "9223372036854775807"),
    "when": _mostly("4000000000", "4100000000", "4200000000", "1"),
    "mwhen": _mostly("4000000000000", "4100000000000", "4200000000000", "1"),
    "glob": _one("*", "a*", "?", "[ab]", "", "nothing"),
    "group": _one("g1", "g2", "streams"),
    "consumer": _one("c1", "c2"),
    "id": _mostly("1-1", "2-1", "3-5", "5-0", "7", "0-0", "0", "100-1"),
    "autoid": _mostly("8-*", "9-*", "200-1", "201-7", "300"),
    "from": _mostly("-", "0", "1-1", "(1-1", "2", "+"),
    "to": _mostly("+", "5", "3-5", "(3-5", "7-0", "-"),
    "after": _mostly("0", "1-1", "$", "0-0", "5"),
    "fresh": _mostly(">", "0", "1-1"),
    "lon": _mostly("13.361389", "15.087269", "2.35", "-122.4", "0", "181"),
    "lat": _mostly("38.115556", "37.502669", "48.85", "37.77", "0", "86"),
    "radius": _mostly("200", "1000", "0", "20000", "-1"),
    "unit": _mostly("km", "m", "mi", "ft", "parsec"),
    "dump": DUMPS,
    "script": SCRIPTS,
    "sha": _one("0" * 40, "f" * 40, "short"),
    "loaded": [hashlib.sha1(script).hexdigest().encode() for script in SCRIPTS],
    "library": _one(
        *(
            f"#!lua name={name}\nredis.register_function('{name}', function(keys, args) return {what} end)"
            for name, what in (("lib1", "args"), ("lib2", "redis.call('INCR', keys[1])"))
        ),
        "#!lua name=broken\nnonsense(",
        "no header",
    ),
    "function": _one("lib1", "lib2", "nothing"),
    "tick": _one("0.01", "0.01", "0.01", "-1", "x"),  # a timeout that ends soon, or is none
    "db": _mostly("0", "1", "2"),
    "channel": _one("news", "new", "chat", b"c\r\n\x00"),
    "text": _one("x", "hello world", "", b"\r\n\x00"),
    "name": _one("me", "a b", "", "n-1", b"\xc3\xa9"),
}

LINES: dict[str, str] = {
    "string": """
        SET @s value [ ( NX | XX ) ] [ GET ] [ ( EX secs | PX msecs | EXAT when | PXAT mwhen | KEEPTTL ) ]
        SET @s large
        GET @s
        GETDEL @s
        GETEX @s [ ( EX secs | PX msecs | EXAT when | PXAT mwhen | PERSIST ) ]
        GETSET @s value
        GETRANGE @s index index
        SUBSTR @s index index
        SETRANGE @s offset value
        STRLEN @s
        APPEND @s value
        SETNX @s value
        SETEX @s secs value
        PSETEX @s msecs value
        INCR @s
        DECR @s
        INCRBY @s integer
        DECRBY @s integer
        INCRBYFLOAT @s float
        LCS @s @s [ LEN ] [ IDX ] [ MINMATCHLEN count ] [ WITHMATCHLEN ]
        MSETNX ( @s value )*
    """,
    "bitmap": """
        SETBIT @b offset bit
        GETBIT @b offset
        BITCOUNT @b [ index index [ ( BYTE | BIT ) ] ]
        BITPOS @b bit [ index [ index [ ( BYTE | BIT ) ] ] ]
        BITFIELD @b ( ( GET bits at | SET bits at integer ) )*
        BITFIELD @b OVERFLOW ( WRAP | SAT | FAIL ) ( INCRBY bits at integer )*
        BITFIELD_RO @b ( GET bits at )*
        BITOP ( AND | OR | XOR ) @b ( @b )*
        BITOP NOT @b @b
        SET @b value
        GET @b
    """,
    "hash": """
        HSET @h ( field value )*
        HMSET @h ( field value )*
        HSETNX @h field value
        HGET @h field
        HMGET @h ( field )*
        HGETALL @h
        HKEYS @h
        HVALS @h
        HLEN @h
        HSTRLEN @h field
        HEXISTS @h field
        HDEL @h ( field )*
        HINCRBY @h field integer
        HINCRBYFLOAT @h field float
        HRANDFIELD @h [ count [ WITHVALUES ] ]
        HSCAN @h ( 0 | 0 | x ) [ MATCH glob ] [ COUNT 1000 ]
    """,
    "list": """
        LPUSH @l ( value )*
        RPUSH @l ( value )*
        LPUSHX @l ( value )*
        RPUSHX @l ( value )*
        LPOP @l [ count ]
        RPOP @l [ count ]
        LRANGE @l index index
        LLEN @l
        LINDEX @l index
        LSET @l index value
        LINSERT @l ( BEFORE | AFTER ) value value
        LREM @l index value
        LTRIM @l index index
        LPOS @l value [ RANK index ] [ COUNT count ] [ MAXLEN count ]
        LMOVE @l @l ( LEFT | RIGHT ) ( LEFT | RIGHT | UP )
        RPOPLPUSH @l @l
        LMPOP 1 @l ( LEFT | RIGHT ) [ COUNT positive ]
        LMPOP 2 @l @l ( LEFT | RIGHT ) [ COUNT positive ]
        SORT @l [ LIMIT index count ] [ ( ASC | DESC ) ] [ ALPHA ] [ STORE @l ]
        SORT_RO @l [ GET # ] [ LIMIT 0 count ] [ DESC ] [ ALPHA ]
    """,
    "set": """
        SADD @t ( member )*
        SREM @t ( member )*
        SCARD @t
        SISMEMBER @t member
        SMISMEMBER @t ( member )*
        SMEMBERS @t
        SRANDMEMBER @t [ index ]
        SPOP @t 1000
        SPOP @t -1
        SMOVE @t @t member
        SINTER ( @t )*
        SUNION ( @t )*
        SDIFF ( @t )*
        SINTERSTORE @t ( @t )*
        SUNIONSTORE @t ( @t )*
        SDIFFSTORE @t ( @t )*
        SINTERCARD 1 @t [ LIMIT count ]
        SINTERCARD 2 @t @t [ LIMIT count ]
        SINTERCARD integer @t
        SSCAN @t ( 0 | 0 | x ) [ MATCH glob ] [ COUNT 1000 ]
        SORT @t [ ( ASC | DESC ) ] [ ALPHA ] [ STORE @l ]
        SORT @t BY nosort ALPHA
    """,
    "zset": """
        ZADD @z [ ( NX | XX ) ] [ ( GT | LT ) ] [ CH ] ( score member )*
        ZADD @z INCR score member
        ZINCRBY @z score member
        ZCARD @z
        ZSCORE @z member
        ZMSCORE @z ( member )*
        ZCOUNT @z bound bound
        ZLEXCOUNT @z lex lex
        ZRANK @z member
        ZREVRANK @z member
        ZREM @z ( member )*
        ZRANGE @z index index [ REV ] [ WITHSCORES ]
        ZRANGE @z bound bound BYSCORE [ REV ] [ LIMIT count count ] [ WITHSCORES ]
        ZRANGE @z lex lex BYLEX [ REV ] [ LIMIT count count ]
        ZREVRANGE @z index index [ WITHSCORES ]
        ZRANGEBYSCORE @z bound bound [ WITHSCORES ] [ LIMIT count count ]
        ZREVRANGEBYSCORE @z bound bound [ WITHSCORES ]
        ZRANGEBYLEX @z lex lex [ LIMIT count count ]
        ZREVRANGEBYLEX @z lex lex
        ZRANGESTORE @z @z index index [ REV ]
        ZREMRANGEBYRANK @z index index
        ZREMRANGEBYSCORE @z bound bound
        ZREMRANGEBYLEX @z lex lex
        ZPOPMIN @z [ count ]
        ZPOPMAX @z [ count ]
        ZMPOP 1 @z ( MIN | MAX ) [ COUNT positive ]
        ZMPOP 2 @z @z ( MIN | MAX )
        ZRANDMEMBER @z [ count [ WITHSCORES ] ]
        ZUNION 2 @z @z [ WEIGHTS score score ] [ AGGREGATE ( SUM | MIN | MAX ) ] [ WITHSCORES ]
        ZINTER 2 @z @z [ AGGREGATE ( SUM | MIN | MAX ) ] [ WITHSCORES ]
        ZDIFF 2 @z @z [ WITHSCORES ]
        ZUNIONSTORE @z 2 @z @z [ WEIGHTS score score ]
        ZINTERSTORE @z 1 @z [ AGGREGATE MAX ]
        ZINTERSTORE @z 2 @z @z
        ZDIFFSTORE @z 2 @z @z
        ZINTERCARD 2 @z @z [ LIMIT count ]
        ZUNION count @z @z
        ZSCAN @z ( 0 | 0 | x ) [ MATCH glob ] [ COUNT 1000 ]
        SORT @z [ ALPHA ] [ DESC ] [ LIMIT 0 count ]
    """,
    "stream": """
        XADD @x [ NOMKSTREAM ] [ MAXLEN [ ( = | ~ ) ] count ] ( id | autoid ) ( field value )*
        XADD @x [ MINID id ] autoid ( field value )*
        XADD @x id field
        XADD @y * field value
        XLEN @y
        XLEN @x
        XRANGE @x from to [ COUNT count ]
        XREVRANGE @x to from [ COUNT count ]
        XREAD [ COUNT positive ] STREAMS @x after
        XREAD [ COUNT positive ] STREAMS @x @x after after
        XREAD STREAMS @x
        XDEL @x ( id )*
        XTRIM @x ( MAXLEN count | MINID id )
        XSETID @x id [ ENTRIESADDED count MAXDELETEDID id ]
        XGROUP CREATE @x group after [ MKSTREAM ] [ ENTRIESREAD count ]
        XGROUP SETID @x group after
        XGROUP DESTROY @x group
        XGROUP CREATECONSUMER @x group consumer
        XGROUP DELCONSUMER @x group consumer
        XREADGROUP GROUP group consumer [ COUNT positive ] [ NOACK ] STREAMS @x fresh
        XREADGROUP GROUP group consumer STREAMS @x @x fresh fresh
        XACK @x group ( id )*
        XPENDING @x group [ [ IDLE 0 ] from to positive [ consumer ] ]
        XCLAIM @x group consumer 0 ( id )* [ JUSTID ] [ FORCE ] [ RETRYCOUNT count ]
        XAUTOCLAIM @x group consumer 0 after [ COUNT positive ] [ JUSTID ]
        XINFO STREAM @x [ FULL [ COUNT positive ] ]
        XINFO GROUPS @x
        XINFO CONSUMERS @x group
    """,
    "geo": """
        GEOADD @g [ ( NX | XX ) ] [ CH ] ( lon lat member )*
        GEOPOS @g ( member )*
        GEODIST @g member member [ unit ]
        GEOHASH @g ( member )*
        GEOSEARCH @g FROMLONLAT lon lat BYRADIUS radius unit [ ( ASC | DESC ) ] [ WITHDIST ] [ WITHHASH ]
        GEOSEARCH @g FROMMEMBER member BYBOX radius radius unit ASC [ COUNT positive [ ANY ] ]
        GEOSEARCHSTORE @g @g FROMLONLAT lon lat BYRADIUS radius unit [ STOREDIST ]
        GEORADIUS @g lon lat radius unit [ WITHDIST ] [ ASC ] [ COUNT positive ]
        GEORADIUS @g lon lat radius unit ( STORE | STOREDIST ) @g
        GEORADIUS_RO @g lon lat radius unit [ WITHCOORD ] DESC
        GEORADIUSBYMEMBER @g member radius unit [ WITHHASH ] [ DESC ]
        GEORADIUSBYMEMBER @g member radius unit STORE @z
        GEORADIUSBYMEMBER_RO @g member radius unit ASC
        ZRANGE @g 0 -1 WITHSCORES
    """,
    "hyperloglog": """
        PFADD @p ( value )*
        PFADD @p
        PFCOUNT ( @p )*
        PFMERGE @p ( @p )*
        PFMERGE @p
    """,
    "generic": """
        TYPE @k
        EXPIRE @k secs [ ( NX | XX ) ]
        PEXPIRE @k msecs [ ( NX | XX ) ]
        EXPIREAT @k when [ ( NX | XX | GT | LT ) ]
        PEXPIREAT @k mwhen [ ( NX | XX | GT | LT ) ]
        TTL @k
        PTTL @k
        EXPIRETIME @k
        PEXPIRETIME @k
        PERSIST @k
        RENAME @k @k
        RENAMENX @k @k
        COPY @k @k [ DB 0 ] [ REPLACE ]
        DUMP @k
        RESTORE @k ( 0 | 100000000 ) dump [ REPLACE ] [ ( IDLETIME count | FREQ count ) ]
        OBJECT ENCODING @k
        OBJECT REFCOUNT @k
        OBJECT IDLETIME @k
        OBJECT FREQ @k
        MEMORY USAGE @k [ SAMPLES 0 ]
        EVAL script 1 @k [ value ]
        EVAL_RO script 1 @k
        EVALSHA sha 1 @k
        EVALSHA_RO sha 1 @k value
        FCALL nothing 1 @k
        FCALL_RO nothing 1 @k
    """,
}

FANOUT = """
    MGET ( @s )*
    MGET @k ( @k )*
    MSET ( @s value )*
    MSET ( @s value )* @s large
    DEL ( @k )*
    UNLINK ( @k )*
    EXISTS ( @k )*
    TOUCH ( @k )*
    MSET @s value @s
    MGET
    DEL
"""

# SORT by other keys: they are on the shard only when there is one shard
PATTERNS = """
    SORT @l BY w_* [ GET # ] [ GET w_* ] [ ALPHA ]
    SORT @t BY nosort GET w_* ALPHA
    SORT_RO @l BY @s
    SORT @l GET w_*->a STORE @l
    SET w_a value
"""

LOCAL = """
    PING [ text ]
    PING text text
    ECHO text
    ECHO
    TIME
    HELLO ( 2 | 3 )
    HELLO
    HELLO ( 1 | 4 | x )
    HELLO ( 2 | 3 ) SETNAME name
    HELLO 3 AUTH default secret
    HELLO 2 AUTH default secret SETNAME name
    HELLO 3 AUTH x
    AUTH secret
    AUTH default secret
    AUTH a b c
    SELECT ( 0 | 0 | -1 | x | 01 | 99999999999 )
    RESET
    CLIENT SETNAME name
    CLIENT GETNAME
    CLIENT ID
    CLIENT NO-EVICT ( ON | OFF | x )
    CLIENT REPLY ( ON | x )
    CLIENT NONSENSE
    CLIENT
    COMMAND INFO ( get | mset | proxyless )
    COMMAND DOCS nothing
    COMMAND LIST FILTERBY ACLCAT nothing
    COMMAND NONSENSE
    EXEC
    DISCARD
    EXEC text
    NONSENSE [ text ]
    NONSENSE large text
    OBJECT NONSENSE text
    OBJECT
    XGROUP NONSENSE text
    XINFO
    MEMORY NONSENSE
"""

# Feature → lines, for any place in a program; what needs more than a line is a unit of programs.py
FEATURE_LINES: dict[str, str] = {
    "watch": """
        WATCH ( @k )*
        UNWATCH
        WATCH
    """,
    "blocking": """
        BLPOP @l tick
        BLPOP @l @l tick
        BRPOP @l @l tick
        BLMOVE @l @l ( LEFT | RIGHT ) ( LEFT | RIGHT | UP ) tick
        BRPOPLPUSH @l @l tick
        BLMPOP tick 1 @l ( LEFT | RIGHT ) [ COUNT positive ]
        BLMPOP tick 2 @l @l ( LEFT | RIGHT )
        BZPOPMIN @z tick
        BZPOPMAX @z @z tick
        BZMPOP tick 2 @z @z ( MIN | MAX ) [ COUNT positive ]
        XREAD [ COUNT positive ] BLOCK ( 10 | -1 | x ) STREAMS @x after
        XREADGROUP GROUP group consumer BLOCK 10 STREAMS @x fresh
    """,
    "select": """
        SELECT db
    """,
    "copy to a database": """
        COPY @k @k DB db [ REPLACE ]
    """,
    "databases": """
        MOVE @k db
        SWAPDB ( 0 | 1 ) ( 1 | 2 )
    """,
    "dbsize": """
        DBSIZE
    """,
    "users": """
        ACL WHOAMI
        ACL USERS
        ACL LIST
        ACL GETUSER ( default | nobody )
        ACL CAT [ ( string | nothing ) ]
        ACL DRYRUN ( default | nobody ) ( get | nonsense | mset ) @k
        ACL GENPASS [ ( 32 | 0 | x ) ]
        ACL LOG [ ( RESET | x ) ]
        ACL NONSENSE
        ACL
    """,
    "keyspace": """
        KEYS glob
        KEYS *
        RANDOMKEY
        SCAN ( x | 1.5 )
        SCAN 0 ( COUNT ( 0 | x ) | MATCH | TYPE | 1 )
        FLUSHDB [ ( ASYNC | SYNC | x ) ]
        FLUSHALL [ ( ASYNC | SYNC ) ]
    """,
    "scripts": """
        EVAL script 1 @k value
        EVALSHA loaded 1 @k value
        EVALSHA_RO loaded 1 @k
        EVAL script 0 value
        EVALSHA loaded 0
        SCRIPT LOAD script
        SCRIPT EXISTS loaded sha loaded
        SCRIPT FLUSH [ ( SYNC | ASYNC | x ) ]
        SCRIPT KILL
        SCRIPT NONSENSE
    """,
    "functions": """
        FUNCTION LOAD [ REPLACE ] library
        FCALL function 1 @k value
        FCALL function 0
        FUNCTION DELETE function
        FUNCTION LIST LIBRARYNAME function
        FUNCTION FLUSH
        FUNCTION KILL
    """,
    "pubsub": """
        PUBLISH channel value
        SPUBLISH channel value
        PUBSUB CHANNELS
        PUBSUB NUMSUB channel channel
        PUBSUB NUMPAT
        PUBSUB SHARDCHANNELS
        PUBSUB SHARDNUMSUB channel
        UNSUBSCRIBE nothing
        PUNSUBSCRIBE nothing
        SUNSUBSCRIBE nothing
    """,
}
# Between MULTI and EXEC alone
LOCAL_IN_MULTI = """
    SELECT db
    CLIENT GETNAME
    CLIENT SETNAME name
    CLIENT NO-EVICT ( ON | x )
    COMMAND INFO get
    HELLO
    HELLO ( 2 | 3 )
    AUTH secret
"""
# Of several shards, or none: whatever a world says of keys, a transaction on one shard cannot hold them
LOOSE_FEATURES = ("dbsize", "users", "keyspace", "select", "databases", "scripts", "functions", "pubsub")

# Between MULTI and EXEC, besides the families' lines
QUEUED = """
    PING [ text ]
    ECHO text
    TIME
    MULTI
    WATCH @k
    NONSENSE text
    GET
"""

# What only the units of programs.py write
UNITS = """
    MULTI
    QUIT
    SUBSCRIBE
    PSUBSCRIBE
"""

# Sent by the hundred
BURSTS = """
    INCR @s
    APPEND @s x
    RPUSH @l 1
    PING
    EXISTS @s @s @h
    MGET @h @l @t
"""

SEEDS: dict[str, str] = {
    "string": "SET @s hello",
    "bitmap": "SETBIT @b 7 1",
    "hash": "HSET @h a 1 b 2.5 c x",
    "list": "RPUSH @l 3 1 2 a",
    "set": "SADD @t a b c 1 2",
    "zset": "ZADD @z 1 a 2 b 2 c 30 30",
    "stream": "XADD @x 1-1 a 1",
    "geo": "GEOADD @g 13.361389 38.115556 a 15.087269 37.502669 b",
    "hyperloglog": "PFADD @p a b c",
    "generic": "SET @k 7",
}

ADMINISTRATION = {
    "config": "get set rewrite resetstat help",
    "slowlog": "get len reset help",
    "latency": "reset history latest graph doctor histogram help",
    "memory": "stats doctor malloc-stats purge help",
    "module": "list help",
    "object": "help",
    "xinfo": "help",
    "xgroup": "help",
    "script": "help",
    "function": "help",
}

# Served, and yet not in the lines above: command → why
NOT_COMPARED = {
    **dict.fromkeys(
        [
            "ssubscribe",
            "pubsub|help",
        ],
        "messages come when they come: tests/integration/test_pubsub.py has programs of its own",
    ),
    **dict.fromkeys(
        ["client|tracking", "client|caching", "client|getredir", "client|trackinginfo"],
        "pushes come when they come: tests/integration/test_tracking.py has programs of its own",
    ),
    **dict.fromkeys(
        [f"{name}|{sub}" for name, subs in ADMINISTRATION.items() for sub in subs.split()],
        "it speaks of the node or the proxy: tests/integration/test_keyspace.py, test_every_command.py",
    ),
    **dict.fromkeys(
        ["save", "bgsave", "bgrewriteaof", "lastsave", "role", "lolwut", "debug"],
        "it speaks of the node or the proxy: tests/integration/test_keyspace.py, test_every_command.py",
    ),
    **dict.fromkeys(
        ["client|kill", "client|pause", "client|unpause", "client|unblock", "monitor"],
        "of clients beside each other: tests/integration/test_connection_state_like_redis.py, test_crowd.py",
    ),
    "wait": "tests/integration/test_waiting.py, with replicas",
    "waitaof": "a plain Redis 7.0 has none: tests/adversity/test_newer_nodes.py",
    "script|debug": "it changes what a connection to a plain Redis is; here it is for nothing",
    "function|dump": "a payload of all libraries; tests/integration/test_keyspace.py",
    "function|restore": "as function|dump",
    "function|stats": "of one node, of now",
    **dict.fromkeys(
        [
            f"session.{name}"
            for name in [
                "create",
                "load",
                "save",
                "touch",
                "rotate",
                "destroy",
                "list",
                "revoke",
                "revokeall",
            ]
        ],
        "a plain Redis has no sessions: tests/integration/test_session_commands.py",
    ),
    "proxy|node": "a plain Redis has no PROXY",
    "proxy|help": "a plain Redis has no PROXY",
    "proxy|info": "a plain Redis has no PROXY",
    "proxy|nodes": "a plain Redis has no PROXY",
    "proxy|locate": "a plain Redis has no PROXY",
    "proxy|commands": "a plain Redis has no PROXY",
    "proxy|topology": "a plain Redis has no PROXY",
    "proxy|reload": "a plain Redis has no PROXY",
    "proxy|drain": "a plain Redis has no PROXY",
    "proxy|undrain": "a plain Redis has no PROXY",
    "info": "it speaks of the proxy; tests/unit/test_handlers_info.py",
    "client|info": "it speaks of the proxy's connection; tests/integration/test_handlers_like_redis.py",
    "client|list": "it speaks of the proxy's connections; tests/integration/test_handlers_like_redis.py",
    "client|help": "the proxy has other subcommands than Redis 7.0",
    "client|setinfo": "of Redis 7.2; the plain Redis here is 7.0",
    "client|no-touch": "of Redis 7.2; the plain Redis here is 7.0",
    "acl|setuser": "users are in the proxy's configuration; tests/integration/test_users.py",
    "acl|deluser": "users are in the proxy's configuration",
    "acl|save": "users are in the proxy's configuration",
    "acl|load": "it loads the proxy's configuration",
    "acl|help": "of the subcommands that there are",
    "command|count": "the proxy's table has PROXY, too",
    "command|help": "tests/integration/test_handlers_like_redis.py",
    "command|getkeys": "asked in test_keys_are_found_as_redis_finds_them, of all these lines",
    "command|getkeysandflags": "asked in test_keys_are_found_as_redis_finds_them, of all these lines",
}

# Forms of commands that are in the lines, left out: what → why
REFUSED_FORMS = {
    "SORT BY or GET with a pattern, on three nodes": "not supported: it reads keys of other shards",
    "a wrong login": "its answer waits, longer each time: tests/integration/test_handlers_like_redis.py",
    "SPOP without a count, or with less than all": "takes other members each time",
    "HSCAN, SSCAN, ZSCAN of less than all": "the order of a hash table, seeded at random",
    "SCAN, one page of it": "how much is a page; programs.scanned follows it to the end",
    "EXPIRE, PEXPIRE with GT or LT; TTLs near their end": "would compare the time of two servers",
    "a bulk string without CRLF, a count over max_arguments": "the proxy is stricter than Redis, by intent",
    "the number in a header, longer than 30 bytes": "refused at once; Redis reads 64 KB on, in other words",
    "a NUL in a command's name": "Redis finds the command before it when both hash alike, by chance",
    "CLIENT REPLY OFF, then QUIT or a protocol error": "Redis does not close then; the proxy does",
    "a NUL in an inline command": "Redis reads them as C strings, and waits for a line end that it has",
}


def parse(text: str) -> Node:
    """A line as a tree."""
    words = text.split()
    at = 0

    def sequence(ends: tuple[str, ...]) -> tuple[Node, str]:
        nonlocal at
        nodes: list[Node] = []
        while at < len(words):
            word = words[at]
            at += 1
            if word in ends:
                return ("seq", nodes), word
            if word == "[":
                nodes.append(("maybe", sequence(("]",))[0]))
            elif word == "(":
                choices, end = [], "|"
                while end == "|":
                    node, end = sequence(("|", ")", ")*"))
                    choices.append(node)
                nodes.append(("many" if end == ")*" else "any", choices[0] if end == ")*" else choices))
            else:
                nodes.append(("word", word))
        if ends:
            raise ValueError(f"not closed: {text}")
        return ("seq", nodes), ""

    return sequence(())[0]


@functools.cache
def lines(block: str) -> list[Node]:
    return [parse(line) for line in block.splitlines() if line.strip()]


def first_word(node: Node) -> str:
    """The command of a line."""
    kind, what = node
    return str(what) if kind == "word" else first_word(what[0])


def names(block: str) -> set[str]:
    """The commands of a block, as in the command table: "get", "xinfo" and "xinfo|stream"."""
    found: set[str] = set()
    for line in block.splitlines():
        words = line.split()
        if words:
            found.add(words[0].lower())
            found |= {f"{words[0]}|{word}".lower() for word in words[1:2]}
    return found
