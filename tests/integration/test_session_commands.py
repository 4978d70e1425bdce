"""SESSION.*: what each answers, who may run it, and that the library has the same sessions."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result
from servers import ProxyProcess, RedisNode, frame_end, pack, shards_of, toml, until

from shardproxy.cli import main
from shardproxy.sessions import SessionStore

SECRETS = ["the newest secret of all", "an older secret, still good"]
DURABLE = 'kind = "durable"'
TABLES = """
[users]
default = "on nopass ~* &* +@all +@session"
app = "on nopass ~* &* +@all"
narrow = "on nopass +session.load +ping"
less = "on nopass ~* &* +@all +@session -session.revokeall"
slow = "on nopass +@slow +multi"
second = "on nopass +ping (+session.load)"
[sessions]
pool = "main"
secrets_file = "FILE"
max_sessions = 3
classes = { short = { idle = "5s" } }
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("secrets") / "secrets"
    path.write_text("# the newest first\n" + "\n".join(SECRETS) + "\n")
    return TABLES.replace("FILE", str(path))


@pytest.fixture(scope="module")
def door(nodes3: list[RedisNode], tables: str) -> Iterator[ProxyProcess]:
    with ProxyProcess(toml(shards_of(nodes3), top=tables, pool=DURABLE)) as proxy:
        yield proxy


@pytest.fixture
def client(door: ProxyProcess) -> Iterator["redis.Redis[Any]"]:
    with redis.Redis(port=door.port, protocol=3, decode_responses=True) as client:
        yield client


def create(client: Any, *args: str) -> dict[str, Any]:
    return dict(client.execute_command("SESSION.CREATE", *args))


def test_a_session_from_its_creation_to_its_end(client: Any) -> None:
    made = create(client, "SET", "cart", '["book"]', "SET", "n", "1", "DEVICE", '{"agent": "x"}')
    assert made["data"] == {"cart": '["book"]', "n": "1"}
    assert (made["changed"], made["user"], made["class"], made["max_age"]) == (1, None, "anonymous", None)
    cookie = made["cookie"]
    loaded = client.execute_command("SESSION.LOAD", cookie)
    assert loaded["data"] == made["data"]
    assert (loaded["changed"], loaded["handle"]) == (0, made["handle"])
    saved = client.execute_command(
        "SESSION.SAVE", cookie, "INCR", "n", "41", "APPEND", "cart", '"pen"', "SET", "x", "null"
    )
    assert saved["data"] == {"cart": '["book","pen"]', "n": "42", "x": "null"}
    assert client.execute_command("SESSION.SAVE", cookie, "DEL", "x")["data"].keys() == {"cart", "n"}
    assert client.execute_command("SESSION.TOUCH", cookie) == 1
    assert client.execute_command("SESSION.DESTROY", cookie) == 1
    assert client.execute_command("SESSION.DESTROY", cookie) == 0
    assert client.execute_command("SESSION.TOUCH", cookie) == 0
    assert client.execute_command("SESSION.LOAD", cookie) is None
    with pytest.raises(redis.ResponseError, match="SESSIONGONE"):
        client.execute_command("SESSION.SAVE", cookie, "SET", "a", "1")


def test_login_renewal_and_revocation(client: Any) -> None:
    planted = create(client, "SET", "cart", "[1]")["cookie"]
    signed = client.execute_command("SESSION.ROTATE", planted, "USER", "anna")
    assert (signed["user"], signed["class"], signed["data"]) == ("anna", "signed_in", {"cart": "[1]"})
    assert client.execute_command("SESSION.LOAD", planted) is None
    renewed = client.execute_command("SESSION.ROTATE", signed["cookie"])
    assert renewed["cookie"] != signed["cookie"]
    old = client.execute_command("SESSION.LOAD", signed["cookie"])  # for a little while
    assert (old["cookie"], old["changed"]) == (renewed["cookie"], 1)
    other = create(client, "USER", "anna", "CLASS", "remember_me")
    assert other["max_age"] > 86400
    listed = client.execute_command("SESSION.LIST", "anna")
    assert {each["handle"] for each in listed} == {signed["handle"], other["handle"]}
    assert client.execute_command("SESSION.REVOKE", other["handle"]) == 1
    assert client.execute_command("SESSION.LOAD", other["cookie"]) is None
    third = create(client, "USER", "anna")
    assert client.execute_command("SESSION.REVOKEALL", "anna", "EXCEPT", third["cookie"]) == 1
    assert client.execute_command("SESSION.LOAD", renewed["cookie"]) is None
    assert client.execute_command("SESSION.LOAD", third["cookie"])["user"] == "anna"
    assert client.execute_command("SESSION.REVOKEALL", "anna") == 1


def test_a_request_that_comes_after_the_login_makes_no_session(client: Any) -> None:
    old = create(client, "SET", "a", "1")["cookie"]
    client.execute_command("SESSION.ROTATE", old, "USER", "emil")
    assert client.execute_command("SESSION.LOAD", old) is None
    with pytest.raises(redis.ResponseError, match="SESSIONGONE"):
        create(client, "FOR", old, "SET", "b", "2")
    assert create(client, "FOR", old, "USER", "emil")["user"] == "emil"  # the login again: it is one itself
    assert create(client, "FOR", "nonsense", "SET", "b", "2")["data"] == {"b": "2"}


def test_versions_and_limits(client: Any) -> None:
    made = create(client, "SET", "n", "1", "CLASS", "short")
    assert made["ttl"] <= 5000
    cookie, version = made["cookie"], str(made["version"])
    client.execute_command("SESSION.SAVE", cookie, "VERSION", version, "SET", "n", "2")
    with pytest.raises(redis.ResponseError, match="SESSIONCONFLICT"):
        client.execute_command("SESSION.SAVE", cookie, "VERSION", version, "SET", "n", "3")
    assert client.execute_command("SESSION.LOAD", cookie)["data"] == {"n": "2"}
    with pytest.raises(redis.ResponseError, match="SESSIONTOOLARGE"):
        client.execute_command("SESSION.SAVE", cookie, "SET", "n", json.dumps("x" * 300_000))
    first, *_ = [create(client, "USER", "bert")["cookie"] for _ in range(4)]
    assert client.execute_command("SESSION.LOAD", first) is None
    assert len(client.execute_command("SESSION.LIST", "bert")) == 3


@pytest.mark.parametrize(
    "args",
    [
        ("CREATE", "SET", "a"),
        ("CREATE", "SET", "a", "{"),
        ("CREATE", "SET", "a", "[" * 5000),
        ("CREATE", "SET", b"\xff", "1"),
        ("CREATE", "USER", ""),
        ("CREATE", "USER", b"\xff"),
        ("CREATE", "CLASS", "royal"),
        ("CREATE", "DEVICE", "1"),
        ("CREATE", "INCR", "a", "x"),
        ("CREATE", "INCR", "a", "1" * 50),
        ("CREATE", "INCR", "a", "1_0"),
        ("CREATE", "INCR", "a", " 5"),
        ("CREATE", "SET", "a", '"x"', "INCR", "a", "1"),
        ("CREATE", "NONSENSE"),
        ("LOAD", "x", "y"),
        ("SAVE", "x", "SET", "a", "1"),
        ("SAVE", "x", "VERSION", "y"),
        ("ROTATE", "x"),
        ("ROTATE", "x", "CLASS", "signed_in"),
        ("REVOKE", "no handle"),
        ("REVOKE", b"\xff" * 28),
        ("REVOKEALL", "x", "EXCEPT"),
        ("REVOKEALL", "x", "BUT", "y"),
    ],
)
def test_bad_words_are_errors(client: Any, args: tuple[Any, ...]) -> None:
    with pytest.raises(redis.ResponseError) as told:
        client.execute_command("SESSION." + args[0], *args[1:])
    assert "internal" not in str(told.value)
    assert client.ping()


@pytest.mark.parametrize("cookie", ["", "x", "A" * 80, "\0" * 80, "ü" * 40, "A" * 100_000, b"\xff" * 80])
def test_a_cookie_that_is_none_is_no_session(client: Any, cookie: Any) -> None:
    assert client.execute_command("SESSION.LOAD", cookie) is None
    assert client.execute_command("SESSION.TOUCH", cookie) == 0
    assert client.execute_command("SESSION.DESTROY", cookie) == 0


def test_replies_are_as_the_table_says(door: ProxyProcess) -> None:
    """docs/session-commands.md: fields, their order and types, in RESP2 and RESP3."""
    text = (Path(__file__).parents[2] / "docs" / "session-commands.md").read_text()
    section = text.partition("## A session\n")[2].partition("\n## ")[0]
    table = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", section, re.MULTILINE))
    listed = re.findall(r"`(\w+)`", section.partition("`SESSION.LIST` has")[2])
    two = {"text": b"$", "0 or 1": b":", "integer": b":", "map": b"*"}
    three = two | {"map": b"%"}
    for proto, kinds, whole, nil in ((2, two, b"*", b"$-1\r\n"), (3, three, b"%", b"_\r\n")):
        with door.raw() as raw:
            raw.ask("HELLO", str(proto))
            anonymous = raw.ask("SESSION.CREATE", "SET", "a", "1")
            remembered = raw.ask("SESSION.CREATE", "USER", f"frida {proto}", "CLASS", "remember_me")
            for frame in (anonymous, remembered):
                fields = children(frame)
                assert frame[:1] == whole
                assert [text_of(each) for each in fields[::2]] == list(table)
                for kind, value in zip(table.values(), fields[1::2], strict=True):
                    may_be_nil = kind.endswith(" or nil") and value == nil
                    assert may_be_nil or value[:1] == kinds[kind.removesuffix(" or nil")], (kind, value)
            empty = {
                name for name, value in zip(table, children(anonymous)[1::2], strict=True) if value == nil
            }
            assert empty == {"max_age", "user", "authenticated"}
            assert nil not in children(remembered)
            of_list = children(raw.ask("SESSION.LIST", f"frida {proto}"))
            assert [frame[:1] for frame in of_list] == [whole]
            assert [text_of(each) for each in children(of_list[0])[::2]] == listed
            cookie = text_of(children(remembered)[1])
            assert raw.ask("SESSION.LOAD", "nonsense") == nil
            for command in ("TOUCH", "DESTROY"):
                assert raw.ask(f"SESSION.{command}", cookie) == b":1\r\n"
            assert raw.ask("SESSION.REVOKEALL", "frida") == raw.ask("SESSION.TOUCH", cookie) == b":0\r\n"
            assert raw.ask("SESSION.LIST", "frida") == b"*0\r\n"


def children(frame: bytes) -> list[bytes]:
    """The frames in an array or a map."""
    at, found = frame.index(b"\r\n") + 2, []
    while at < len(frame):
        end = frame_end(frame, at)
        found.append(frame[at:end])
        at = end
    return found


def text_of(frame: bytes) -> str:
    assert frame[:1] == b"$"
    return frame.partition(b"\r\n")[2][:-2].decode()


def test_resp2_has_flat_arrays(door: ProxyProcess) -> None:
    with door.raw() as raw:
        made = raw.value("SESSION.CREATE", "SET", "a", "1")
        assert made[0::2][:3] == ["cookie", "changed", "max_age"]
        assert made[-2:] == ["data", ["a", "1"]]
        assert raw.ask("SESSION.LOAD", "x") == b"$-1\r\n"


def test_only_who_was_given_sessions_may_have_them(door: ProxyProcess) -> None:
    with door.raw() as raw:
        assert raw.ask("AUTH", "app", "x") == b"+OK\r\n"
        assert raw.ask("SESSION.CREATE").startswith(b"-NOPERM ")
        assert raw.ask("AUTH", "narrow", "x") == b"+OK\r\n"
        assert raw.ask("SESSION.LOAD", "x") == b"$-1\r\n"
        assert raw.ask("SESSION.CREATE").startswith(b"-NOPERM ")
        assert raw.ask("AUTH", "less", "x") == b"+OK\r\n"
        assert raw.ask("SESSION.TOUCH", "x") == b":0\r\n"
        assert raw.ask("SESSION.REVOKEALL", "x").startswith(b"-NOPERM ")
        assert raw.ask("AUTH", "slow", "x") == b"+OK\r\n"
        assert raw.ask("SESSION.LOAD", "x").startswith(b"-NOPERM "), "of no other category"
        assert raw.ask("AUTH", "second", "x") == b"+OK\r\n"
        assert raw.ask("SESSION.LOAD", "x") == b"$-1\r\n"
        assert raw.ask("SESSION.TOUCH", "x").startswith(b"-NOPERM ")
        assert raw.ask("AUTH", "default", "x") == b"+OK\r\n"
        for user, may in (("app", False), ("narrow", True), ("less", True), ("slow", False)):
            assert (raw.ask("ACL", "DRYRUN", user, "SESSION.LOAD", "x") == b"+OK\r\n") == may
        denied = {(entry[9], entry[7]) for entry in raw.value("ACL", "LOG", "100")}
        assert {("app", "session.create"), ("less", "session.revokeall"), ("slow", "session.load")} <= denied


def test_no_session_inside_a_transaction_or_a_script(door: ProxyProcess) -> None:
    with door.raw() as raw:
        cookie = raw.value("SESSION.CREATE", "SET", "n", "0")[1]
        assert raw.ask("MULTI") == b"+OK\r\n"
        assert raw.ask("SESSION.SAVE", cookie, "INCR", "n", "1").startswith(
            b"-ERR Command not allowed inside"
        )
        assert raw.ask("EXEC").startswith(b"-EXECABORT ")
        for function in ("call", "pcall"):
            said = raw.ask("EVAL", f"return redis.{function}('SESSION.LOAD', ARGV[1])", "0", cookie)
            assert said.startswith(b"-ERR Unknown Redis command")
        assert raw.ask("WATCH", "x") == b"+OK\r\n"
        assert raw.value("SESSION.LOAD", cookie)[-1] == ["n", "0"]
        assert raw.ask("UNWATCH") == b"+OK\r\n"
        raw.send(pack("SESSION.SAVE", cookie, "INCR", "n", "1") * 20 + pack("PING"))
        *_, last, pong = raw.frames(21)
        assert last.endswith(b"$2\r\n20\r\n") and pong == b"+PONG\r\n"
        raw.send(pack("CLIENT", "REPLY", "SKIP") + pack("SESSION.LOAD", cookie) + pack("PING"))
        assert raw.frame() == b"+PONG\r\n"


def test_huge_arguments(client: Any) -> None:
    for args in (
        ("SET", "a", json.dumps("x" * 1_000_000)),
        ("SET", "n" * 300_000, "1"),
        ("USER", "u" * 300_000),
        ("USER", "u", "DEVICE", json.dumps({"agent": "x" * 300_000})),
        tuple(word for n in range(1001) for word in ("SET", f"f{n}", "1")),
    ):
        with pytest.raises(redis.ResponseError, match="SESSIONTOOLARGE"):
            create(client, *args)
    assert client.execute_command("SESSION.LIST", "u" * 300_000) == []
    assert client.execute_command("SESSION.REVOKEALL", "u" * 300_000) == 0
    cookie = create(client, "SET", "a\0\r\n", "1", "SET", "", '"\U0001f642"')["cookie"]
    assert client.execute_command("SESSION.LOAD", cookie)["data"] == {"a\0\r\n": "1", "": '"\U0001f642"'}


def test_the_slow_log_shows_no_session(door: ProxyProcess, nodes3: list[RedisNode]) -> None:
    with door.raw() as raw:
        assert raw.ask("SCRIPT", "FLUSH") == b"+OK\r\n"  # so that EVAL is seen, too
        assert raw.ask("CONFIG", "SET", "slowlog-log-slower-than", "0") == b"+OK\r\n"
        try:
            cookie = raw.value("SESSION.CREATE", "SET", "a", '"very secret"', "USER", "very private")[1]
            raw.value("SESSION.SAVE", cookie, "SET", "b", '"very secret"')
            raw.ask("SET", "mine", "and shown")
            shown = raw.ask("SLOWLOG", "GET", "1000")
        finally:
            raw.ask("CONFIG", "SET", "slowlog-log-slower-than", "10000")
            raw.ask("SLOWLOG", "RESET")
    assert b"EVALSHA" in shown and b"EVAL\r\n" in shown and b"(redacted)" in shown and b"and shown" in shown
    assert b"very secret" not in shown and b"private" not in shown and cookie.encode() not in shown


def test_the_library_and_the_commands_have_the_same_sessions(client: Any, nodes3: list[RedisNode]) -> None:
    store = SessionStore(client, SECRETS)
    mine = store.new()
    mine["a"] = {"deep": [1, None]}
    mine.login("carl")
    assert mine.cookie is not None
    theirs = client.execute_command("SESSION.LOAD", mine.cookie)
    assert (theirs["user"], json.loads(theirs["data"]["a"])) == ("carl", {"deep": [1, None]})
    client.execute_command("SESSION.SAVE", mine.cookie, "SET", "b", "2")
    assert dict(store.load(mine.cookie)) == {"a": {"deep": [1, None]}, "b": 2}


def test_flushing_is_refused_and_monitor_shows_no_arguments(door: ProxyProcess, client: Any) -> None:
    with pytest.raises(redis.ResponseError, match="sessions"):
        client.flushall()
    with pytest.raises(redis.ResponseError, match="sessions"):
        client.flushdb()
    with door.raw() as raw:
        assert raw.ask("MONITOR") == b"+OK\r\n"
        cookie = create(client, "SET", "a", '"very secret"')["cookie"]
        shown = b""
        while b"create" not in shown.lower():
            shown = raw.frame()
        assert b"(redacted)" in shown
        assert cookie.encode() not in shown
        assert b"very secret" not in shown


def test_off_and_unfit(nodes3: list[RedisNode], proxy: ProxyProcess, tables: str) -> None:
    with proxy.raw() as raw:
        assert raw.ask("SESSION.LOAD", "x").startswith(b"-NOPERM ")
    with (
        RedisNode("--maxmemory-policy", "allkeys-lru") as node,
        ProxyProcess(toml(shards_of([node]), top=tables, pool=DURABLE)) as unfit,
        unfit.raw() as raw,
    ):
        until(lambda: raw.ask("SESSION.LOAD", "x").startswith(b"-SESSIONUNFIT node "))  # once it is known
    everybody = '[users]\ndefault = "on nopass ~* &* +@all +@session"'
    with ProxyProcess(toml(shards_of(nodes3), top=everybody)) as off, off.raw() as raw:
        assert raw.ask("SESSION.LOAD", "x").startswith(b"-ERR sessions are off")


def test_operators_list_and_end_sessions(door: ProxyProcess, client: Any) -> None:
    def run(*args: str) -> Result:
        return CliRunner().invoke(main, ["sessions", *args])

    where = ("-c", str(door.config_path))
    made = create(client, "USER", "dora", "DEVICE", '{"agent": "Fire\\u001bfox"}', "SET", "a", '"private"')
    listed = run("list", *where, "dora")
    assert listed.exit_code == 0, listed.output
    assert made["handle"] in listed.output and "Fire fox" in listed.output
    assert "private" not in listed.output and made["cookie"] not in listed.output
    assert made["handle"] in run("show", *where, made["handle"]).output
    assert run("revoke", *where, made["handle"]).output == "1 session ended\n"
    assert client.execute_command("SESSION.LOAD", made["cookie"]) is None
    for gone in (
        ("list", *where, "dora"),
        ("show", *where, made["handle"]),
        ("revoke", *where, "--user", "dora"),
    ):
        done = run(*gone)
        assert (done.exit_code, done.output) == (1, "Error: no session\n")
    assert run("revoke", *where).exit_code == 2
    assert run("show", *where, "nonsense").exit_code == 2
