"""Users through the proxy, beside a plain Redis with the same ACL file: the same answers, and nothing gets
past.

What rules mean is compared in tests/property/test_users_like_redis.py; here it is about connections: logins,
pipelines, MULTI, spellings, what reaches a node. What Redis does not have is in test_users_configured.py.
"""

import contextlib
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from impostors import Relay
from servers import ProxyProcess, Raw, RedisNode, Stranger, logged_in, pack, toml, until

from shardproxy.core.commands import builtin

SHA = {"admin": "8c6976e5b5410415bde908bd4dee15dfb167a9c873fc4bb8a81f6f2ab448a918"}  # of "admin"
APP = (
    "user app on >secret ~app:* %R~ro:* %W~wo:* &chan* +@all -@dangerous -@scripting +eval -incr +config|get "
    "(~tmp:* +set +get)"
)
USERS = f"""
user default on >open resetchannels ~pub:* +@read +ping +select +multi +exec +discard
user admin on #{SHA["admin"]} ~* &* +@all
{APP}
user any on nopass ~any* +@all -exec
user gone off >gone ~* &* +@all
""".lstrip()
PATTERN = "user sorter on >sorter %R~* ~s* +@all\n"


@pytest.fixture(scope="module")
def acl_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("users") / "users.acl"
    path.write_text(USERS + PATTERN)
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def plain(acl_file: Path) -> Iterator[RedisNode]:
    with RedisNode("--aclfile", str(acl_file)) as node:
        yield node


@pytest.fixture(scope="module")
def node() -> Iterator[RedisNode]:
    with RedisNode() as node:
        yield node


@pytest.fixture(scope="module")
def guarded(acl_file: Path, node: RedisNode) -> Iterator[ProxyProcess]:
    with ProxyProcess(toml({"a": node.address}, top=f'acl_file = "{acl_file}"')) as proxy:
        yield proxy


MASKS = [
    (rb"\$2\r\nid\r\n:\d+", b"$2\r\nid\r\n:#"),
    (rb"id=\d+ addr=\S+ laddr=\S+ fd=\d+", b"id=#"),
    (rb"\$\d+\r\nid=#.*?(user=\S+).*?\n", rb"\1"),
    (rb",?[0-9.e-]+\r\n(\$11\r\nclient-info)", rb"#\1"),
    (rb"\$\d+\r\n#", b"#"),
]


def masked(frame: bytes) -> bytes:
    for pattern, instead in MASKS:
        frame = re.sub(pattern, instead, frame, flags=re.DOTALL)
    return frame


# Each is one connection's whole conversation.
CONVERSATIONS = """
GET a; PING; ECHO; NOSUCH; SELECT 0; MULTI; EXEC; EXEC x; CLIENT ID; CLIENT FOO; RESET; GET a

HELLO; HELLO 3; HELLO 3 SETNAME x; HELLO 4; HELLO 3 FOO; AUTH; AUTH a b c

AUTH nobody x; AUTH wrong; AUTH open; ACL WHOAMI; GET pub:a; GET a; SET pub:a 1; PING; RESET; PING

HELLO 3 AUTH app wrong; HELLO 3 AUTH app secret SETNAME me; ACL WHOAMI; CLIENT GETNAME; HELLO 2;
GET x

HELLO 3 AUTH app secret FOO; ACL WHOAMI

HELLO 2 AUTH gone gone; AUTH any; AUTH any whatever; ACL WHOAMI; HELLO; CLIENT LIST ID 1; EXEC

AUTH any x; MULTI; SET any1 2; EXEC; EXEC; DISCARD; GET any1; MULTI; GET other; GET any1; EXEC

AUTH app secret; SET app:1 v; SET ro:1 v; GET ro:1; GET wo:1; SET wo:1 v; SET wo:1 v GET;
APPEND wo:1 x

AUTH app secret; SET tmp:1 v; GETDEL tmp:1; GET tmp:1; incr app:1; Flushall; CONFIG SET a b

AUTH app secret; MGET app:1 app:2 x; MSET app:1 a app:2 b; MSET app:1 a x b; MSET x a app:1;
DEL x app:1

AUTH app secret; COPY app:1 other; COPY ro:1 wo:1; COPY wo:1 ro:1; PUBLISH other m; EVALSHA a 0

AUTH app secret; MULTI; SET x 1; SET app:1 2; EXEC; GET app:1; MULTI; INCR app:1; DISCARD; GET app:9

AUTH admin admin; MULTI; SET x 1; AUTH app secret; SET x 2; SET app:1 3; GET ro:1; SET ro:1 x; FLUSHALL;
DBSIZE; PUBLISH other m; ACL WHOAMI; SELECT 1; EXEC; GET x; GET app:1; SET app:9 1;
AUTH admin admin; GET app:9

AUTH admin admin; MULTI; AUTH app wrong; SET x 4; HELLO 3 SETNAME me AUTH app secret; SET x 5; GET app:1;
AUTH admin admin; SET x 6; EXEC; GET x; ACL WHOAMI

AUTH admin admin; MULTI; HELLO 4 AUTH app secret; SET x 7; EXEC; HELLO 3; MULTI; HELLO 2 AUTH app secret;
HGETALL x; HGETALL app:h; EXEC; HGETALL app:h

AUTH admin admin; SET x 1; WATCH x; SET x 2; MULTI; AUTH app secret; SET x 3; EXEC; ACL WHOAMI; GET x

AUTH app secret; AUTH admin wrong; ACL WHOAMI; AUTH admin admin; ACL WHOAMI; GET anything;
ACL GETUSER nobody

AUTH admin admin; ACL USERS; ACL GETUSER any; HELLO 3; ACL GETUSER any; ACL CAT x; ACL CAT a b

AUTH admin admin; ACL DRYRUN app GET x; ACL DRYRUN app FLUSHALL; ACL DRYRUN app GET;
ACL DRYRUN x GET x

AUTH admin admin; ACL DRYRUN app NOSUCH; ACL DRYRUN app PUBLISH x m; ACL DRYRUN app CONFIG GET x;
ACL CAT

AUTH admin admin; ACL GENPASS x; ACL GENPASS 0; ACL GENPASS 4097; ACL LOG x; ACL LOG 1 2; ACL FOO;
ACL

AUTH sorter sorter; SORT s1 BY w_*; SORT s1 GET #; SORT x; SORT s1 STORE x; SORT_RO x

AUTH app secret; SORT app:l BY x*; SORT app:l GET #; SORT app:l LIMIT 0 1 GET x*;
SORT app:l BY nosort

get a; Auth APP secret; auth app SECRET; aUtH app secret; gEt x; gET app:none
"""


@pytest.mark.parametrize("text", CONVERSATIONS.strip().split("\n\n"))
def test_a_conversation_as_with_redis(text: str, plain: RedisNode, guarded: ProxyProcess) -> None:
    with Stranger(plain) as theirs, Stranger(guarded) as ours:
        for line in re.split(r";\s+", text):
            expected = masked(theirs.ask(*line.split()))
            assert masked(ours.ask(*line.split())) == expected, line


def test_the_log_of_denials_is_that_of_redis(plain: RedisNode, guarded: ProxyProcess) -> None:
    found = []
    for where in (plain, guarded):
        with logged_in(where, "admin", "admin") as admin, logged_in(where, "app", "secret") as app:
            assert admin.ask("ACL", "LOG", "RESET") == b"+OK\r\n"
            app.ask("GET", "x")
            for _ in range(3):
                app.ask("FLUSHALL")
            app.ask("PUBLISH", "other", "m")
            app.ask("MULTI")
            app.ask("SET", "forbidden", "1")
            app.ask("AUTH", "app", "wrong")
            admin.ask("HELLO", "3")
            found.append([masked(admin.ask("ACL", "LOG")), masked(admin.ask("ACL", "LOG", "2"))])
    # AUTH inside MULTI is refused here before it is looked at
    theirs, ours = ([frame.replace(b"\r\n", b" ") for frame in each] for each in found)
    for said in (b"forbidden", b"flushall", b"other", b" $1 x "):
        assert said in theirs[0] and said in ours[0], said
    entry = (
        rb"%7 \$5 count :(\d+) \$6 reason \$\d+ (\w+) \$7 context \$\d+ (\w+) \$6 object \$\d+ (\S+) "
        rb"\$8 username \$\d+ (\w+)"
    )
    assert [e for e in re.findall(entry, theirs[0]) if e[1] != b"auth"] == re.findall(entry, ours[0])


# --- nothing gets past ---

SKIP = {
    # they change the other server, or the connection's replies, or take their time
    "subscribe", "psubscribe", "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe", "monitor",
    "quit", "wait", "client|reply", "client|pause", "client|kill", "client|unblock", "client|tracking",
    "client|caching", "auth", "hello", "blpop", "brpop", "blmove", "blmpop", "brpoplpush", "bzpopmin",
    "bzpopmax", "bzmpop", "xread", "xreadgroup", "reset", "shutdown", "sync", "psync", "replconf",
    "replicaof", "slaveof", "failover", "debug", "module|load", "module|loadex", "module|unload",
    "acl|setuser", "acl|deluser", "acl|load", "acl|save", "config|set", "config|rewrite", "pfselftest",
    "multi", "exec", "discard", "watch", "eval", "eval_ro", "evalsha", "evalsha_ro", "fcall", "fcall_ro",
    "acl|log",
}  # fmt: skip
OURS = {"proxy", "client|no-touch", "client|setinfo", "waitaof"}  # and of Redis 7.2
KEYS = [
    b"app:1",
    b"app:2",
    b"x",
    b"ro:1",
    b"wo:1",
    b"tmp:1",
    b"chan1",
    b"other",
    b"1",
    b"2",
    b"0",
    b"any1",
    b"pub:1",
]
DENIALS = (b"-NOAUTH", b"-NOPERM", b"-WRONGPASS", b"-EXECABORT Transaction discarded because of")


def random_command(rows: Sequence[Any], rng: random.Random) -> list[bytes]:
    row = rng.choice(rows)
    args = [*row.name.encode().split(b"|")]
    size = abs(row.arity) + (rng.choice([0, 0, 1, 2, 3]) if row.arity < 0 else 0)
    args += [rng.choice(KEYS) for _ in range(size - len(args) + rng.choice([0] * 20 + [1, -1]))]
    for spec in row.key_specs:
        at = spec.index + spec.count
        if spec.find == "keynum" and at < len(args) and rng.random() < 0.8:
            args[at] = b"%d" % rng.randint(1, max(1, len(args) - at - 1))
    args[0] = bytes(rng.choice((c, c ^ 0x20)) if chr(c).isalpha() else c for c in args[0])
    return args


def known_difference(step: bytes, theirs: bytes) -> bool:
    """Redis finds no key in PFMERGE KEY, and lets everybody make that key; and it looks at no_multi first."""
    return b"pfmerge" in step.lower() or theirs == b"-ERR Command not allowed inside a transaction\r\n"


def denial(frame: bytes) -> bytes:
    return frame if frame.startswith(DENIALS) else b""


@pytest.mark.parametrize("seed", range(6))
def test_a_random_program_is_denied_the_same(seed: int, plain: RedisNode, guarded: ProxyProcess) -> None:
    """Pipelined, in MULTI and out of it, in any spelling, as changing users: the same commands are denied."""
    rng = random.Random(seed)
    rows = [
        row
        for row in builtin().records
        if not row.subcommands and row.name not in SKIP | OURS and row.name.split("|")[0] not in OURS
        and row.group != "session"
        and not (row.name.split("|")[0] in ("script", "function") and "admin" in row.categories)
    ]  # fmt: skip
    users = [("app", "secret"), ("any", "x"), ("default", "open"), ("sorter", "sorter")]
    steps: list[bytes] = []
    for _ in range(600):
        kind = rng.random()
        if kind < 0.03:
            steps.append(pack("AUTH", *rng.choice(users)))
        elif kind < 0.05:
            steps.append(pack(rng.choice(["RESET", "MULTI", "EXEC", "EXEC", "DISCARD"])))
        elif kind < 0.15:
            line = b" ".join(
                b'"%b"' % arg if rng.random() < 0.3 else arg for arg in random_command(rows, rng)
            )
            steps.append(line + b"\r\n")
        else:
            steps.append(pack(*random_command(rows, rng)))
    found = []
    for where in (plain, guarded):
        with where.raw() as raw:
            frames = []
            for at in range(0, len(steps), BATCH):
                raw.send(b"".join(steps[at : at + BATCH]))
                try:
                    frames += raw.frames(len(steps[at : at + BATCH]))
                except EOFError:
                    pytest.fail(f"{where} closed after {steps[at : at + BATCH]}")
            found.append(frames)
    theirs, ours = found
    told = [
        (step, their, our)
        for step, their, our in zip(steps, theirs, ours, strict=True)
        if denial(their) != denial(our) and not known_difference(step, their)
    ]
    assert told == []
    assert sum(bool(denial(frame)) for frame in ours) > 150


# Redis closes a client that has not logged in and has 1 KB of replies outstanding
BATCH = 15

FORBIDDEN = "forbidden"
WAYS_IN = [
    [("GET", FORBIDDEN)],
    [("get", FORBIDDEN)],
    [("gEt", FORBIDDEN)],
    [b"get forbidden\r\n"],
    [b'"GET" "forbidden"\r\n'],
    [b"gEt 'forbidden'\r\n"],
    [b'"\\x47ET" "\\x66orbidden"\r\n'],
    [b"*2\r\n$3\r\nGET\r\n$9\r\nforbidden\r\n"],
    [("MULTI",), ("GET", FORBIDDEN), ("EXEC",)],
    [("MULTI",), ("GET", "app:1"), ("GET", FORBIDDEN), ("EXEC",)],
    [("MULTI",), b"get forbidden\r\n", ("EXEC",)],
    [("MGET", "app:1", FORBIDDEN)],
    [("MGET", *["app:1"] * 200, FORBIDDEN)],
    [("DEL", FORBIDDEN, "app:1")],
    [("MSET", "app:1", "v", FORBIDDEN, "v")],
    [("EVAL", "return redis.call('GET', 'forbidden')", "1", FORBIDDEN)],
    [("EVAL", "return redis.call('GET', 'forbidden')", "0")],
    [("EVAL", "return redis.call('GET', 'forbidden')", "1", "app:1")],
    [("EVAL_RO", "return redis.call('GET', 'forbidden')", "1", "app:1")],
    [("MULTI",), ("EVAL", "return redis.call('GET', 'forbidden')", "1", "app:1"), ("EXEC",)],
    [("SORT", "app:1", "BY", "forbidden*")],
    [("SORT", "app:1", "GET", "forbidden*")],
    [("SORT", "app:1", "STORE", FORBIDDEN)],
    [("SORT", "app:1", "LIMIT", "0", "1", "STORE", "app:2", "STORE", FORBIDDEN)],
    [("GEORADIUS", "app:1", "0", "0", "1", "km", "STORE", FORBIDDEN)],
    [("GEORADIUS", "app:1", "0", "0", "1", "km", "COUNT", "1", "STOREDIST", FORBIDDEN)],
    [("ZUNIONSTORE", FORBIDDEN, "1", "app:1")],
    [("ZUNIONSTORE", "app:1", "2", "app:1", FORBIDDEN)],
    [("LMPOP", "2", "app:1", FORBIDDEN, "LEFT")],
    [("XREAD", "COUNT", "1", "STREAMS", "app:1", FORBIDDEN, "0", "0")],
    [("XREADGROUP", "GROUP", "STREAMS", "app:1", "STREAMS", FORBIDDEN, ">")],
    [("COPY", "app:1", FORBIDDEN)],
    [("RENAME", FORBIDDEN, "app:1")],
    [("OBJECT", "ENCODING", FORBIDDEN)],
    [("object", "Encoding", FORBIDDEN)],
    [("MEMORY", "USAGE", FORBIDDEN)],
    [("XINFO", "STREAM", FORBIDDEN)],
    [("XGROUP", "CREATE", FORBIDDEN, "g", "0", "MKSTREAM")],
    [("BITFIELD", "ro:1", "GET", "u8", "0", "SET", "u8", "0", "1"), ("SET", "ro:1", FORBIDDEN)],
    [("SET", "wo:1", FORBIDDEN, "GET")],
    [("PFMERGE", FORBIDDEN)],
    [("PUBLISH", FORBIDDEN, "m"), ("SPUBLISH", FORBIDDEN, "m")],
    [("AUTH", "app", "wrong"), ("GET", FORBIDDEN)],
    [("AUTH", "admin", "secret"), ("GET", FORBIDDEN)],
    [("HELLO", "3", "AUTH", "admin", "secret"), ("GET", FORBIDDEN)],
    [("RESET",), ("GET", FORBIDDEN)],
    [("RESET",), ("AUTH", "default", "open"), ("GET", FORBIDDEN), ("SET", "pub:1", FORBIDDEN)],
    [("MULTI",), ("AUTH", "admin", "admin"), ("GET", FORBIDDEN), ("EXEC",)],
]  # fmt: skip


@pytest.fixture
def watcher(node: RedisNode) -> Iterator[Raw]:
    """What reaches the node, as MONITOR shows it."""
    with node.raw() as raw:
        assert raw.ask("MONITOR") == b"+OK\r\n"
        yield raw


def reached(watcher: Raw, node: RedisNode, mark: bytes) -> bytes:
    with node.raw() as raw:
        raw.ask("ECHO", mark)
    seen = b""
    while mark not in (frame := watcher.frame()):
        seen += frame
    return seen


def test_what_is_denied_never_reaches_a_node(guarded: ProxyProcess, node: RedisNode, watcher: Raw) -> None:
    for number, way in enumerate(WAYS_IN):
        for pipelined in (True, False):
            with logged_in(guarded, "app", "secret") as raw:
                pieces = [each if isinstance(each, bytes) else pack(*each) for each in way]
                if pipelined:
                    raw.send(b"".join(pieces))
                    frames = raw.frames(len(pieces))
                else:
                    frames = []
                    for piece in pieces:
                        raw.send(piece)
                        frames.append(raw.frame())
            assert any(denial(frame) or frame.startswith((b"-EXECABORT", b"-ERR")) for frame in frames), (
                way,
                frames,
            )
            if not any(b"wrong" in piece or b"admin" in piece for piece in pieces):
                seen = reached(watcher, node, b"mark-%d-%d" % (number, pipelined))
                assert FORBIDDEN.encode() not in seen, (way, seen)
    assert FORBIDDEN.encode() not in reached(watcher, node, b"the end")


def test_who_has_not_logged_in_reaches_no_node(guarded: ProxyProcess, node: RedisNode, watcher: Raw) -> None:
    rng = random.Random(23)
    rows = [
        row for row in builtin().records if row.name not in ("quit", "auth", "hello") and not row.subcommands
    ]
    with guarded.raw() as raw:
        for row in rows:
            args = random_command([row], rng)
            frame = raw.ask(*args[:1], *(arg.replace(b"app:", b"forbidden:") for arg in args[1:]))
            assert frame.startswith(
                (b"-NOAUTH", b"-ERR wrong number", b"-ERR unknown", b"-EXECABORT", b"+RESET")
            ), frame
    assert b"forbidden" not in reached(watcher, node, b"no login")


def test_scripts_may_be_trusted(acl_file: Path, node: RedisNode) -> None:
    text = toml({"a": node.address}, top=f'acl_file = "{acl_file}"\nuser_scripts = "trust"')
    with ProxyProcess(text) as proxy, logged_in(proxy, "app", "secret") as raw:
        assert raw.ask("EVAL", "return 7", "1", "app:1") == b":7\r\n"
        assert raw.ask("EVAL", "return 7", "1", "x").startswith(b"-NOPERM this user")
        assert raw.ask("EVALSHA", "0" * 40, "1", "app:1").startswith(b"-NOPERM this user")


def test_learned_commands_are_under_the_rules() -> None:
    """The node calls its GETDEL x.grab: a command that the proxy learns."""
    users = (
        '[users]\nfull = "on nopass ~app:* +@all"\nreads = "on nopass ~* +@all -@write"\n'
        'named = "on nopass ~* +x.grab"\nothers = "on nopass ~* +@all -x.grab"\n'
        'looks = "on nopass %R~* +@all"\n'
    )
    with (
        RedisNode() as node,
        Relay(node.port, (b"x.grab", b"getdel"), (b"getdel", b"x.grab")) as relay,
        ProxyProcess(toml({"a": relay.address}) + users) as proxy,
        proxy.raw() as raw,
    ):
        until(lambda: b"x.grab" in raw.ask("COMMAND", "LIST"), "the proxy to learn")
        for user, key, said in (
            (
                "full",
                "x",
                b"-NOPERM this user has no permissions to access one of the keys used as arguments",
            ),
            (
                "looks",
                "app:1",
                b"-NOPERM this user has no permissions to access one of the keys used as arguments",
            ),
            ("reads", "app:1", b"-NOPERM this user has no permissions to run the 'x.grab' command"),
            ("others", "app:1", b"-NOPERM this user has no permissions to run the 'x.grab' command"),
            ("full", "app:1", b"$5\r\nhello"),
            ("named", "other", b"$5\r\nhello"),
        ):
            with node.raw() as direct:
                direct.ask("MSET", "app:1", "hello", "x", "hello", "other", "hello")
            assert raw.ask("AUTH", user, "x") == b"+OK\r\n"
            assert raw.ask("x.grab", key) == said + b"\r\n", user


# --- logins ---

LARGE = [
    b"*11\r\n",
    b"*10\r\n$4\r\nPING\r\n$16385\r\n",
    b"*2\r\n$16384\r\n" + b"x" * 16384 + b"\r\n$1\r\nx\r\n",
]


@pytest.mark.parametrize("data", LARGE, ids=["arguments", "size", "just right"])
def test_who_has_not_logged_in_sends_little(data: bytes, plain: RedisNode, guarded: ProxyProcess) -> None:
    said = []
    for where in (plain, guarded):
        with where.raw() as raw:
            raw.send(data)
            frame = raw.frame()
            said.append(frame)
            if b"unauthenticated" in frame:
                assert raw.rest() == b""
    assert said[0] == said[1]
    with logged_in(guarded, "app", "secret") as raw:
        assert raw.ask("MSET", *["app:1", "x" * 20000] * 20) == b"+OK\r\n"
        raw.send(pack("RESET") + pack("AUTH", "app", "secret") + pack("MSET", *["app:1", "x" * 20000] * 20))
        assert raw.frames(3) == [b"+RESET\r\n", b"+OK\r\n", b"+OK\r\n"]


def test_who_has_not_logged_in_is_owed_little(guarded: ProxyProcess) -> None:
    """A pipeline whose answers nobody reads ends the connection, not only its reading; as in Redis."""
    with Stranger(guarded) as raw, contextlib.suppress(ConnectionError):
        raw.send(b"GET a\r\n" * 10_000)
        assert raw.rest().count(b"-NOAUTH") < 10_000
    why = "it has not logged in, and does not read what it is told"
    until(lambda: any(event["reason"] == why for event in guarded.events("client_closed")))
    with Stranger(guarded) as raw:
        raw.send(b"GET a\r\n" * 400)
        assert set(raw.frames(400)) == {b"-NOAUTH Authentication required.\r\n"}


def test_what_follows_a_login_waits_for_it(guarded: ProxyProcess) -> None:
    with Stranger(guarded) as raw:
        raw.send(
            pack("GET", "app:p") + pack("AUTH", "app", "wrong") + pack("GET", "app:p")
            + pack("AUTH", "app", "secret") + pack("SET", "app:p", "1") + pack("GET", "x")
            + pack("RESET") + pack("GET", "app:p")
        )  # fmt: skip
        said = [frame[:12] for frame in raw.frames(8)]
        assert said == [
            b"-NOAUTH Auth", b"-WRONGPASS i", b"-NOAUTH Auth", b"+OK\r\n", b"+OK\r\n", b"-NOPERM this",
            b"+RESET\r\n", b"-NOAUTH Auth",
        ]  # fmt: skip
