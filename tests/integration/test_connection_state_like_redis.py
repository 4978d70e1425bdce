"""Transactions, databases, what waits and what is answered here, in one pipeline: as one Redis."""

import re
from collections.abc import Iterator

import pytest
from servers import ProxyProcess, Raw, RedisNode, redis_nodes, shards_of, toml, until

# one program a line; commands separated by ";", keys with one hash tag
PROGRAMS = """
SET {t}a 1; WATCH {t}a; GET {t}a; MULTI; INCR {t}a; CLIENT GETNAME; EXEC; BLPOP {t}l 0.05; SELECT 1; GET {t}a; SELECT 0
MULTI; SET {t}a 5; SELECT 1; SET {t}a 6; GET {t}a; EXEC; GET {t}a; SELECT 0; GET {t}a; DBSIZE
MULTI; SELECT 1; SET {t}b 1; SELECT 2; SET {t}b 2; SELECT 0; GET {t}b; EXEC; GET {t}b; SELECT 2; GET {t}b
MULTI; SELECT 99; SET {t}a 1; EXEC; GET {t}a; MULTI; SELECT x; SELECT -1; EXEC; GET {t}a
SELECT 3; MULTI; SET {t}a 3; SELECT 4; EXEC; SET {t}a 4; SELECT 3; GET {t}a; SELECT 4; GET {t}a; SELECT 0; GET {t}a
SET {t}a 1; WATCH {t}a; SELECT 1; SET {t}a 2; SELECT 0; MULTI; GET {t}a; EXEC
SET {t}a 1; WATCH {t}a; SET {t}a 2; MULTI; CLIENT GETNAME; GET {t}a; EXEC; GET {t}a; MULTI; GET {t}a; PING; EXEC
WATCH {t}a; SELECT 1; MULTI; GET {t}a; SELECT 2; SET {t}a 2; EXEC; GET {t}a; SELECT 0
SET {t}a 1; WATCH {t}a; SET {t}a 2; MULTI; SELECT 1; EXEC; SET {t}a here; SELECT 0; GET {t}a
MULTI; CLIENT SETNAME me; CLIENT GETNAME; SET {t}a 1; CLIENT SETNAME you; EXEC; CLIENT GETNAME
MULTI; DBSIZE; SET {t}a 1; DBSIZE; SELECT 1; DBSIZE; SET {t}a 1; EXEC; DBSIZE; SELECT 0; DBSIZE
MULTI; ECHO hi; PING; PING there; CLIENT NO-EVICT on; CLIENT NO-EVICT maybe; EXEC
MULTI; COMMAND COUNT extra; SET {t}a 1; EXEC; GET {t}a
MULTI; COMMAND GETKEYS GET x; CLIENT SETNAME a b; SET {t}a 1; EXEC; MULTI; COMMAND GETKEYS GET x; COMMAND GETKEYS PING; SET {t}a 1; EXEC
MULTI; CLIENT KILL 1.2.3.4:5; CLIENT KILL ID 0; CLIENT KILL TYPE x; CLIENT UNBLOCK 99999; CLIENT UNBLOCK x; CLIENT REPLY maybe; EXEC
MULTI; NOSUCH; CLIENT GETNAME; EXEC; EXEC; DISCARD; MULTI; MULTI; CLIENT GETNAME; DISCARD
MULTI; CLIENT NOSUCH; EXEC; MULTI; CLIENT; EXEC; MULTI; SELECT; EXEC; MULTI; CLIENT SETNAME; EXEC
MULTI; CLIENT GETNAME; EXEC now; EXEC; MULTI; WATCH {t}a; CLIENT GETNAME; EXEC; UNWATCH
MULTI; SYNC; EXEC; MULTI; MONITOR; GET {t}a; EXEC; PING
MULTI; CLIENT GETNAME; SET {t}a 1; INCR {t}b; LPUSH {t}b x; GET {t}a; EXEC; GET {t}b
MULTI; CLIENT GETNAME; SET {t}a 1; RESET; GET {t}a; EXEC
SELECT 2; CLIENT SETNAME x; WATCH {t}a; MULTI; SET {t}a 1; RESET; CLIENT GETNAME; SET {t}a 0; SELECT 2; GET {t}a
MULTI; BLPOP {t}l 0; BLPOP {t}l x; CLIENT GETNAME; RPUSH {t}l 1; BLPOP {t}l 0; WAIT 0 0; XREAD BLOCK 0 STREAMS {t}s $; EXEC
WATCH {t}a; MULTI; EXEC; WATCH {t}a; MULTI; CLIENT GETNAME; EXEC; SET {t}a 1; MULTI; EXEC
RPUSH {t}l a b; BLPOP {t}l 0; BLMOVE {t}l {t}m LEFT RIGHT 1; BRPOPLPUSH {t}m {t}l 1; BLMPOP 1 1 {t}l LEFT; LLEN {t}l; BRPOP {t}m 0.02
ZADD {t}z 1 a 2 b; BZPOPMIN {t}z 0; BZPOPMAX {t}z 0; BZMPOP 0.02 1 {t}z MIN; ZCARD {t}z; SET {t}z x; BZPOPMIN {t}z 1
BLPOP {t}l x; BLPOP {t}l -1; BLPOP {t}l; BLMOVE {t}l {t}m LEFT UP 1; XREAD BLOCK -1 STREAMS {t}s $; XREAD BLOCK x STREAMS {t}s $
XADD {t}s 1-1 f v; XREAD BLOCK 10 STREAMS {t}s 0; XREAD BLOCK 10 STREAMS {t}s $; SET {t}a 1; GET {t}a
SELECT 5; RPUSH {t}l five; SELECT 0; BLPOP {t}l 0.02; SELECT 5; BLPOP {t}l 0; WATCH {t}l; RPUSH {t}l six; MULTI; LLEN {t}l; EXEC; BLPOP {t}l 1
WAIT 0 0; SET {t}a 1; WAIT 0 0; WAIT 1 10; WAIT x 0; WAIT 0 x; WAIT 0 -1; WAIT 0; WAIT 0 0 0
CLIENT UNBLOCK 123456; CLIENT UNBLOCK x; CLIENT UNBLOCK 1 MAYBE; CLIENT UNBLOCK 1 TIMEOUT x; CLIENT UNBLOCK
CLIENT PAUSE x; CLIENT PAUSE -1; CLIENT PAUSE 1 MAYBE; CLIENT PAUSE 1 ALL x; CLIENT PAUSE; CLIENT UNPAUSE; CLIENT UNPAUSE x
CLIENT KILL; CLIENT KILL x; CLIENT KILL ID; CLIENT KILL ID 0; CLIENT KILL ID x; CLIENT KILL ID 99999; CLIENT KILL ID 99999 ADDR
CLIENT KILL TYPE x; CLIENT KILL TYPE pubsub; CLIENT KILL SKIPME maybe; CLIENT KILL USER nobody; CLIENT KILL ADDR 1.2.3.4:5
CLIENT KILL LADDR 1.2.3.4:5; CLIENT KILL FOO bar; CLIENT LIST TYPE x; CLIENT LIST TYPE pubsub; CLIENT LIST ID x; CLIENT LIST FOO
CLIENT PAUSE 30 WRITE; GET {t}a; SET {t}a 1; GET {t}a; CLIENT PAUSE 30; GET {t}a; CLIENT UNPAUSE; MULTI; GET {t}a; EXEC
SET {t}a 1; WATCH {t}a; HELLO 3; SELECT 2; MULTI; SELECT 0; GET {t}a; EXEC; HELLO 2; SELECT 0
SET {t}a 1; HELLO 3; WATCH {t}a; SET {t}a 2; MULTI; CLIENT GETNAME; EXEC; BLPOP {t}l 0.02; HELLO 2; BLPOP {t}l 0.02
HSET {t}h a 1; ZADD {t}z 1 a; MULTI; HGETALL {t}h; HELLO 4; HELLO 3; HGETALL {t}h; GET {t}no; ZSCORE {t}z a; EXEC; HGETALL {t}h; DEL {t}h {t}z; HELLO 2
HSET {t}h a 1; ZADD {t}z 1 a; HELLO 3; MULTI; HGETALL {t}h; HELLO 2; HGETALL {t}h; GET {t}no; LPOP {t}no 2; ZRANGE {t}z 0 -1 WITHSCORES; EXEC; HGETALL {t}h
HSET {t}h a 1; HELLO 3; MULTI; HELLO 2 AUTH a wrong; HGETALL {t}h; HELLO 2 SETNAME me; HELLO 3; HGETALL {t}h; SELECT 1; HELLO 2; GET {t}no; EXEC; GET {t}no; SELECT 0
HSET {t}h a 1; HELLO 3; WATCH {t}h; MULTI; HELLO 2; HGETALL {t}h; EXEC; HELLO 3; WATCH {t}h; HSET {t}h a 2; MULTI; HELLO 2; HGETALL {t}h; EXEC; HGETALL {t}h
HSET {t}h a 1; HELLO 3; MULTI; HELLO 2; NOSUCH; EXEC; HGETALL {t}h; MULTI; HELLO 2; HGETALL {t}h; DISCARD; HGETALL {t}h; MULTI; HELLO 2; INCR {t}h; EXEC
GET {t}a; HELLO 3; CLIENT TRACKING ON; GET {t}a; HELLO 2; PING; CLIENT TRACKINGINFO; CLIENT TRACKING OFF
"""  # noqa: E501


@pytest.fixture(scope="module")
def oracle() -> Iterator[RedisNode]:
    with RedisNode() as node:
        yield node


@pytest.fixture(scope="module", params=[1, 3])
def proxy(request: pytest.FixtureRequest) -> Iterator[ProxyProcess]:
    with redis_nodes(request.param) as nodes, ProxyProcess(toml(shards_of(nodes))) as proxy:
        yield proxy


def without_volatile(command: str, frame: bytes) -> bytes:
    return b"*HELLO" if command.startswith("HELLO") else re.sub(rb"\r\nid\r\n:\d+", b"", frame)


def play(raw: Raw, commands: list[str], proto: int, at_once: bool) -> list[bytes]:
    raw.ask("HELLO", proto)
    if at_once:
        raw.send("".join(command + "\r\n" for command in commands).encode())
        frames = raw.frames(len(commands))
    else:
        frames = [raw.ask(*command.split()) for command in commands]
    return [without_volatile(command, frame) for command, frame in zip(commands, frames, strict=True)]


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("at_once", [True, False])
def test_every_program_is_answered_as_by_redis(
    proxy: ProxyProcess, oracle: RedisNode, proto: int, at_once: bool
) -> None:
    wrong = []
    for program in PROGRAMS.strip().splitlines():
        commands = [command.strip() for command in program.split(";")]
        with proxy.raw() as ours, oracle.raw() as theirs:
            for raw in ours, theirs:
                for db in range(6):
                    raw.send(b"SELECT %d\r\nDEL {t}a {t}b {t}h {t}l {t}m {t}s {t}z\r\n" % db)
                    raw.frames(2)
                raw.ask("SELECT", 0)
            got, expected = play(ours, commands, proto, at_once), play(theirs, commands, proto, at_once)
        wrong += [
            f"{program}\n  {command}\n    {mine!r}\n    {his!r}"
            for command, mine, his in zip(commands, got, expected, strict=True)
            if mine != his
        ]
    assert not wrong, "\n".join(wrong)


def test_what_monitor_shows(proxy: ProxyProcess, oracle: RedisNode) -> None:
    """Names, arguments and databases, in Redis's order; no administrators' commands, no passwords."""
    program = (
        'SET {t}a "x y"|GET {t}a|MULTI|INCR {t}b|SELECT 1|ECHO hi|SELECT 0|EXEC|DISCARD|AUTH default secret|'
        "HELLO 2 AUTH default secret|CLIENT KILL ID 99999|WATCH {t}a|UNWATCH|BLPOP {t}l 0.01|NOSUCH|GET|"
        "EVAL x|DBSIZE|PING"
    ).replace("|", "\r\n")
    seen = []
    for server in proxy, oracle:
        with server.raw() as watching, server.raw() as raw:
            raw.ask("DEL", "{t}a", "{t}b", "{t}l")
            assert watching.ask("MONITOR") == b"+OK\r\n"
            raw.send(program.encode() + b"\r\n")
            raw.frames(20)
            lines = []
            while not lines or not lines[-1].endswith(b'"PING"\r\n'):
                lines.append(watching.frame())
            seen.append(
                [b"[%b %b" % (line.split(b"[")[1].split()[0], line.split(b"] ")[1]) for line in lines]
            )
            watching.ask("RESET")
            raw.ask("PING")
            watching.send(b"ECHO over\r\n")
            assert watching.frame() == b"$4\r\nover\r\n"
    assert seen[0] == seen[1]


def test_a_transaction_says_what_the_node_would_not_queue() -> None:
    with RedisNode("--maxmemory", "1") as full, ProxyProcess(toml(shards_of([full]))) as proxy:
        for more in ([], ["CLIENT", "GETNAME"]):
            with proxy.raw() as raw:
                raw.ask("MULTI")
                assert raw.ask("SET", "a", 1) == b"+QUEUED\r\n"
                if more:
                    assert raw.ask(*more) == b"+QUEUED\r\n"
                assert raw.ask("EXEC") == (
                    b"-EXECABORT Transaction discarded because of: "
                    b"OOM command not allowed when used memory > 'maxmemory'.\r\n"
                )
                with full.raw() as direct:
                    direct.ask("CONFIG", "SET", "maxmemory", 0)
                raw.ask("MULTI")
                assert raw.ask("GET", "a") == b"+QUEUED\r\n"
                assert raw.ask("EXEC") == b"*1\r\n$-1\r\n"
                with full.raw() as direct:
                    direct.ask("CONFIG", "SET", "maxmemory", 1)


def test_a_client_that_vanishes_leaves_nothing_behind() -> None:
    with redis_nodes(1) as nodes, ProxyProcess(toml(shards_of(nodes))) as proxy, nodes[0].raw() as direct:

        def state() -> list[str]:
            return [
                line for line in direct.value("CLIENT", "LIST").splitlines()
                if " multi=-1 " not in line or " flags=N " not in line
            ]  # fmt: skip

        for last in (
            b"",
            b"MULTI\r\nINCR b\r\n",
            b"MULTI\r\nINCR b\r\nCLIENT ID\r\n",
            b"BLPOP nothing 0\r\n",
        ):
            with proxy.raw() as raw:
                raw.send(b"SET a 1\r\nWATCH a\r\n" + last)
                raw.frames(2)
            until(lambda: not state(), "nothing is left")
        with proxy.raw() as raw:  # and a watch of one is not another's
            raw.ask("WATCH", "a")
            with proxy.raw() as other:
                other.ask("SET", "a", 2)
        with proxy.raw() as raw:
            raw.ask("WATCH", "b")
            raw.ask("MULTI")
            raw.ask("SET", "a", 3)
            assert raw.ask("EXEC") == b"*1\r\n+OK\r\n"
            assert raw.value("GET", "b") is None
