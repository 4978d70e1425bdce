"""ACL SETUSER, DELUSER and SAVE: users that change while the proxy runs, beside a plain Redis.

What rules mean is compared in tests/property/test_users_like_redis.py; logins and denials in test_users.py.
"""

import contextlib
import hashlib
import os
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
from servers import ProxyProcess, Raw, RedisNode, Stranger, logged_in, pack, toml, until

ADMIN = (
    'admin = "on #8c6976e5b5410415bde908bd4dee15dfb167a9c873fc4bb8a81f6f2ab448a918 ~* &* +@all"\n'  # "admin"
)
NOPERM = b"-NOPERM this user has no permissions to run the 'acl|%b' command\r\n"


@pytest.fixture(scope="module")
def node() -> Iterator[RedisNode]:
    with RedisNode("--protected-mode", "no") as node:
        yield node


@pytest.fixture
def proxy(node: RedisNode) -> Iterator[ProxyProcess]:
    with ProxyProcess(toml({"a": node.address}, top="workers = 2") + "[users]\n" + ADMIN) as proxy:
        yield proxy


def many(proxy: ProxyProcess, user: str, password: str) -> list[Raw]:
    """So many that no worker has none of them."""
    return [logged_in(proxy, user, password) for _ in range(8)]


# --- as Redis ---

NAMES = ["a", "b", "é", "default"]
RULES = [
    "on", "on", "on", "off", "nopass", ">p", ">q", "<p", "<never", "resetpass", "reset", "~*", "~k*",
    "~other", "%R~r*", "resetkeys", "allkeys", "+@all", "+@all", "-@all", "+get", "-get", "+@write", "-set",
    "+acl|whoami", "&*", "&ch", "resetchannels", "(~s* +get)", "(~s*", "+get)", "clearselectors",
    "nonsense", "+nope", "#short", "",
]  # fmt: skip
# Not of the default user: who is connected has to log in then, and in Redis need not
LOGIN = {"off", ">p", ">q", "resetpass", "reset"}
OPEN = ["on", ">p", "resetkeys", "~*", "+@all", "-eval"]
DELETED = ["a", "b", "é", "a", "b", "é", "a", "b", "é", "x", "default"]
LOGINS = [
    ("AUTH", "a", "p"),
    ("AUTH", "b", "p"),
    ("AUTH", "é", "p"),
    ("HELLO", "2", "AUTH", "a", "p"),
    ("AUTH", "b", "q"),
]
COMMANDS = [
    ("GET", "k1"), ("SET", "k1", "v"), ("GET", "s1"), ("GET", "r1"), ("SET", "r1", "v"), ("ACL", "WHOAMI"),
    ("DEL", "other"), ("PING",), ("AUTH", "p"), ("ACL", "SETUSER", "a", "+@all"), ("ACL", "DELUSER", "b"),
]  # fmt: skip


class Side:
    """One server, its administrators and its clients."""

    def __init__(self, where: ProxyProcess | RedisNode) -> None:
        self.where = where
        self.admins = [logged_in(where, "admin", "admin") for _ in range(4)]
        self.clients: list[Raw] = [Stranger(where) for _ in range(4)]

    def client(self, number: int, command: tuple[str, ...]) -> bytes:
        """Its reply; b"" when its connection was closed: there is a new one then."""
        try:
            reply = self.clients[number].ask(*command)
        except (EOFError, OSError):
            self._again(number)
            return b""
        if reply.startswith(b"-WRONGPASS"):  # the next one from there would be answered late
            self._again(number)
        return reply

    def _again(self, number: int) -> None:
        self.clients[number].close()
        self.clients[number] = Stranger(self.where)

    def users(self, name: str) -> Any:
        """What is told of them, but for commands: of those Redis 7.0's text is an approximation."""
        reader = hiredis.Reader(encoding="utf-8")
        reader.feed(self.admins[0].ask("ACL", "GETUSER", name))
        user = reader.gets()
        for fields in [user, *(user[11] if user else [])]:
            if fields:
                fields[fields.index("commands") + 1] = ""
        if user:
            user[1] = [flag for flag in user[1] if flag != "sanitize-payload"]
        listed = self.admins[1].ask("ACL", "USERS")
        return user, listed

    def close(self) -> None:
        for each in (*self.admins, *self.clients):
            each.close()


def veiled(frame: bytes) -> bytes:
    """We do not say again what may be a password: "..." or "<..."; nor such words of a selector."""
    frame = re.sub(rb"(id\r\n):\d+", rb"\1:", frame)
    return re.sub(rb"modifier '(?:([(])[^']*|([<#])[^']*|nonsense)'", rb"modifier '\1\2...'", frame)


@pytest.mark.parametrize("seed", range(3))
def test_a_program_that_changes_users(seed: int, node: RedisNode, tmp_path: Path) -> None:
    rng, closed, errors = random.Random(seed), 0, set()
    top = 'workers = 2\nuser_scripts = "trust"'
    with (
        RedisNode("--protected-mode", "no") as plain,
        ProxyProcess(toml({"a": node.address}, top=top)) as proxy,
    ):
        for where in (plain, proxy):
            with where.raw() as raw:
                assert raw.ask("ACL", "SETUSER", "admin", "on", ">admin", "~*", "&*", "+@all") == b"+OK\r\n"
                raw.ask("FLUSHALL")
        with node.raw() as raw:
            raw.ask("FLUSHALL")
        theirs, ours = Side(plain), Side(proxy)
        for _ in range(300):
            kind, name, number = rng.random(), rng.choice(NAMES), rng.randrange(4)
            if kind < 0.5:
                rules = [rule for rule in RULES if name != "default" or rule not in LOGIN]
                change = ("ACL", "SETUSER", name, *rng.choices(rules, k=rng.randint(0, 6)))
                if kind < 0.2 and name != "default":
                    change = ("ACL", "SETUSER", name, *OPEN[: rng.randint(3, 6)])
                elif kind > 0.45:
                    change = ("ACL", "DELUSER", *rng.choices(DELETED, k=2))
                expected, found = (side.admins[number].ask(*change) for side in (theirs, ours))
                errors.add(expected)
                assert veiled(found) == veiled(expected), change
                assert ours.users(name) == theirs.users(name), change
            asked = rng.choice(LOGINS if rng.random() < 0.3 else COMMANDS)
            expected, found = (side.client(number, asked) for side in (theirs, ours))
            closed += not expected
            assert veiled(found) == veiled(expected), asked
        theirs.close()
        ours.close()
    assert closed and len(errors) > 3


SHA_OF_S = hashlib.sha256(b"s").hexdigest()
WRONG = [
    ("SETUSER",), ("DELUSER",), ("SAVE", "x"), ("SETUSER", "a b", "on"), ("SETUSER", "a\0b"),
    ("SETUSER", "a\n"), ("DELUSER", "default"), ("DELUSER", "admin", "default"), ("SAVE",),
    ("DELUSER", "nobody"),
    ("SETUSER", "u", "(+get", "~a"), ("SETUSER", "u", "(+get ~a"),
    ("SETUSER", "u", "+config|nope"), ("SETUSER", "u", "+config|get|x"), ("SETUSER", "u", "+get|"),
    ("SETUSER", "u", "~*", "~a"), ("SETUSER", "u", "&*", "&a"), ("SETUSER", "u", "+@nope"), ("GETUSER", "u"),
]  # fmt: skip


def test_mistakes_as_redis_tells_them(proxy: ProxyProcess, node: RedisNode) -> None:
    with node.raw() as theirs, logged_in(proxy, "admin", "admin") as ours:
        for words in WRONG:
            assert ours.ask("ACL", *words) == theirs.ask("ACL", *words), words
        for name in ("", "x" * 129, b"\xff"):
            assert ours.ask("ACL", "SETUSER", name, "on").startswith(b"-ERR Usernames")


# --- in all workers ---


def test_every_worker_has_changed_before_the_reply(proxy: ProxyProcess) -> None:
    admins = many(proxy, "admin", "admin")
    assert admins[0].ask("ACL", "SETUSER", "app", "on", ">s", "~a*", "+@all") == b"+OK\r\n"
    apps = many(proxy, "app", "s")
    for turn, admin in enumerate(admins):
        assert admin.ask("ACL", "SETUSER", "app", "resetkeys", f"~never{turn}") == b"+OK\r\n"
        for app in apps:
            assert app.ask("GET", f"never{turn}") == b"$-1\r\n"
            assert app.ask("GET", f"never{turn - 1}").startswith(b"-NOPERM")
    assert apps[0].ask("MULTI") == b"+OK\r\n" and apps[0].ask("GET", "never7") == b"+QUEUED\r\n"
    admins[0].ask("ACL", "SETUSER", "app", "-get")
    assert apps[0].ask("EXEC").startswith(b"-EXECABORT")
    assert admins[3].ask("ACL", "DELUSER", "app", "nobody") == b":1\r\n"
    for app in apps:
        with pytest.raises((EOFError, OSError)):
            app.ask("PING")
    for admin in admins:
        assert admin.ask("ACL", "GETUSER", "app") == b"$-1\r\n"
        admin.close()
    with Stranger(proxy) as late:
        assert late.ask("AUTH", "app", "s").startswith(b"-WRONGPASS")


def test_a_worker_that_takes_anothers_place_has_them(proxy: ProxyProcess) -> None:
    with logged_in(proxy, "admin", "admin") as admin:
        admin.ask("ACL", "SETUSER", "app", "on", ">s", "~*", "+@all")
        admin.ask("ACL", "SETUSER", "default", "off")
    for event in proxy.events("worker_ready"):
        os.kill(event["pid"], signal.SIGKILL)
    until(lambda: len(proxy.events("worker_ready")) == 4, "two new workers")
    for app in many(proxy, "app", "s"):
        assert app.ask("GET", "x") == b"$-1\r\n"
        app.close()
    with proxy.raw() as nobody:
        assert nobody.ask("GET", "x").startswith(b"-NOAUTH")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_puts_the_configuration_back(workers: int, node: RedisNode) -> None:
    users = ADMIN + f'app = "on #{SHA_OF_S} ~a* +@all"\n'
    with ProxyProcess(toml({"a": node.address}, top=f"workers = {workers}") + "[users]\n" + users) as proxy:
        admins, apps = many(proxy, "admin", "admin"), many(proxy, "app", "s")
        assert admins[0].ask("ACL", "SETUSER", "new", "on", ">hunter2", "~*", "+@all") == b"+OK\r\n"
        assert admins[1].ask("ACL", "SETUSER", "app", "~x", ">hunter2") == b"+OK\r\n"
        assert admins[2].ask("ACL", "DELUSER", "nobody") == b":0\r\n"
        news = many(proxy, "new", "hunter2")
        assert all(app.ask("GET", "x") == b"$-1\r\n" for app in apps)
        assert b"users" in admins[3].ask("PROXY", "RELOAD")
        assert all(app.ask("GET", "x").startswith(b"-NOPERM") for app in apps)
        assert all(new.rest() == b"" for new in news)
        assert all(admin.ask("ACL", "GETUSER", "new") == b"$-1\r\n" for admin in admins)
        told = [(event["by"], event["users"]) for event in proxy.events("users_changed")]
        assert told == [("admin", ["new"]), ("admin", ["app"])]
        assert "hunter2" not in proxy.log_text() and "~x" not in proxy.log_text()
        for each in (*admins, *apps, *news):
            each.close()


def test_who_may_not_listen_any_more_is_closed(proxy: ProxyProcess) -> None:
    with logged_in(proxy, "admin", "admin") as admin:
        admin.ask("ACL", "SETUSER", "ear", "on", ">p", "+@all", "&*")
        crowd = [(raw, name) for name in ("one", "two") for raw in many(proxy, "ear", "p")]
        for raw, name in crowd:
            raw.ask("SUBSCRIBE", name)
            raw.ask("PSUBSCRIBE", "t*")
        admin.ask("ACL", "SETUSER", "ear", "resetchannels", "&o*", "&t*")
        admin.ask("PUBLISH", "one", "still")
        for raw, name in crowd:
            if name == "one":
                assert b"still" in raw.frame()
        assert admin.ask("ACL", "SETUSER", "ear", "resetchannels", "&one", "&t*") == b"+OK\r\n"
        admin.ask("PUBLISH", "two", "last")
        for raw, name in crowd:
            if name == "one":
                raw.close()
            else:
                assert b"last" in raw.frame()
        admin.ask("ACL", "SETUSER", "ear", "resetchannels", "&nothing")
        for raw, name in crowd:
            if name == "two":
                raw.send(b"PING\r\n")
                with pytest.raises((EOFError, ConnectionError)):
                    while True:
                        raw.frame()
                raw.close()


def test_in_a_transaction(proxy: ProxyProcess) -> None:
    with logged_in(proxy, "admin", "admin") as admin:
        admin.send(
            pack("MULTI")
            + pack("ACL", "SETUSER", "t", "on", ">t", "+ping")
            + pack("ACL", "DELUSER", "t", "x")
        )
        assert admin.frames(3) == [b"+OK\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n"]
        assert admin.ask("EXEC") == b"*2\r\n+OK\r\n:1\r\n"


def test_who_removes_itself_is_answered_and_closed(proxy: ProxyProcess, node: RedisNode) -> None:
    for where in (node, proxy):
        with where.raw() as first, where.raw() as looks:
            if where is proxy:
                first.ask("AUTH", "admin", "admin")
            first.ask("ACL", "SETUSER", "self", "on", ">s", "~*", "+@all")
            with logged_in(where, "self", "s") as raw:
                raw.send(
                    pack("SET", "self", "1")
                    + pack("ACL", "DELUSER", "self", "self")
                    + pack("SET", "self", "2")
                )
                assert raw.frames(2) == [b"+OK\r\n", b":1\r\n"]
                with contextlib.suppress(OSError):  # what it sent after that was not read: a reset
                    assert raw.rest() == b""
            assert looks.ask("GET", "self") == b"$1\r\n1\r\n"
            looks.ask("DEL", "self")


# --- who may, and what is told ---


def test_who_may_not_changes_nothing(proxy: ProxyProcess) -> None:
    with logged_in(proxy, "admin", "admin") as admin:
        for rules in (
            "+@all -@admin",
            "+@all -acl",
            "+@all -acl|setuser -acl|deluser -acl|save",
            "+@read",
            "+acl|whoami",
        ):
            admin.ask("ACL", "DELUSER", "low")
            assert admin.ask("ACL", "SETUSER", "low", "on", ">low", "~*", "&*", *rules.split()) == b"+OK\r\n"
            before = admin.ask("ACL", "LIST")
            with logged_in(proxy, "low", "low") as low:
                for name, words in (("setuser", ["low", "+@all"]), ("deluser", ["admin"]), ("save", [])):
                    assert low.ask("ACL", name, *words) == NOPERM % name.encode()
                    assert low.ask("aCl", name.upper(), *words) == NOPERM % name.encode()
                    low.send(b" ".join(word.encode() for word in ("acl", name, *words)) + b"\r\n")
                    assert low.frame() == NOPERM % name.encode()
                    low.send(pack("MULTI") + pack("ACL", name, *words) + pack("EXEC"))
                    assert b"+OK\r\n" not in low.frames(3)[1:]
                said = low.ask("EVAL", "return redis.call('ACL', 'SETUSER', 'low', '+@all')", "0")
                assert said.startswith(b"-NOPERM")
            assert admin.ask("ACL", "LIST") == before
    with Stranger(proxy) as nobody:  # the default user is not named, so it may do everything; on this machine
        assert nobody.ask("ACL", "SETUSER", "default", "off") == b"+OK\r\n"
        assert nobody.ask("ACL", "SETUSER", "default", "on").startswith(b"-NOAUTH")


def test_rules_are_shown_to_nobody(proxy: ProxyProcess, node: RedisNode) -> None:
    with node.raw() as at_node, proxy.raw() as monitor, logged_in(proxy, "admin", "admin") as admin:
        at_node.ask("CONFIG", "SET", "slowlog-log-slower-than", "0")
        assert at_node.ask("MONITOR") == monitor.ask("MONITOR") == b"+OK\r\n"
        with logged_in(proxy, "admin", "admin") as other:
            for words in (
                [">hunter2"],
                ["<hunter2"],
                ["hunter2"],
                ["#hunter2"],
                ["(~a", "hunter2)"],
                [">a", "hunter2(", "+x"],
            ):
                assert b"hunter2" not in other.ask("ACL", "SETUSER", "seen", "on", "+ping", *words)
                assert b"hunter2" not in admin.ask("ACL", "SETUSER", "seen", *words)
            assert b"hunter2" not in other.ask("ACL", "SETUSER", "hunter2 a", "on")
            other.ask("MULTI")
            other.ask("ACL", "SETUSER", "seen", ">hunter2")
            other.ask("EXEC")
        with logged_in(proxy, "seen", "hunter2") as seen:
            seen.ask("ACL", "SETUSER", "seen", ">hunter2", "+@all")
        told = b"".join(
            admin.ask(*each) for each in (("ACL", "LOG"), ("SLOWLOG", "GET"), ("INFO",), ("CLIENT", "LIST"))
        )
        admin.ask("ECHO", "the end")
        shown = b""
        while b"the end" not in shown:
            shown += monitor.frame()
        at_node.send(pack("ECHO", "x"))
        shown += at_node.frame()
        assert b"hunter2" not in told + shown and "hunter2" not in proxy.log_text()


# --- ACL SAVE ---


@pytest.mark.parametrize("workers", [1, 2])
def test_save_writes_the_acl_file(workers: int, node: RedisNode, tmp_path: Path) -> None:
    path = tmp_path / "users.acl"
    path.write_text("user admin on >admin ~* &* +@all\n# goes\n")
    path.chmod(0o640)
    path.chmod(0o600)
    (tmp_path / "link").symlink_to(path)
    with ProxyProcess(
        toml({"a": node.address}, top=f'acl_file = "{tmp_path}/link"\nworkers = {workers}')
    ) as proxy:
        with logged_in(proxy, "admin", "admin") as admin:
            rules = [
                "on",
                ">hunter2",
                "~a*",
                b"%R~\xff",
                b"~\xc2\xa0x",
                "&ch",
                "+@read",
                "(~b +set)",
                "+select|0",
            ]
            assert admin.ask("ACL", "SETUSER", "(é", *rules) == b"+OK\r\n"
            listed = admin.ask("ACL", "LIST")
            assert admin.ask("ACL", "SAVE") == b"+OK\r\n"
            lines = path.read_bytes().splitlines()
            assert (
                all(line in listed for line in lines)
                and len(lines) == 3
                and b"hunter2" not in path.read_bytes()
            )
            assert path.stat().st_mode & 0o777 == 0o600 and sorted(os.listdir(tmp_path)) == [
                "link",
                "users.acl",
            ]
            assert admin.ask("ACL", "LOAD") == b"+OK\r\n" and admin.ask("ACL", "LIST") == listed
            path.write_text(
                path.read_text(errors="surrogateescape").replace("&ch", ""), errors="surrogateescape"
            )
            until(lambda: b"&ch" not in admin.ask("ACL", "LIST"), "the file that another changed")
        with logged_in(proxy, "(é", "hunter2") as user:
            assert user.ask("GET", "a1") == b"$-1\r\n"
