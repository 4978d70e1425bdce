"""handlers/acl and the logins of handlers/connection, without an engine: what no live Redis can be asked."""

import asyncio
from dataclasses import replace

import pytest
from fakes import FakeCall, FakeClient, FakeServer, ask

from shardproxy import handlers
from shardproxy.core import acl_rules, errors, logins
from shardproxy.core.acl import User, Users
from shardproxy.core.commands import builtin
from shardproxy.handlers import accesslog, connection
from shardproxy.handlers.accesslog import AccessLog
from shardproxy.handlers.base import Outcome

REMOTE = "203.0.113.9:1234"


def users(**rules: str) -> Users:
    found: dict[str, User] = {}
    for name, text in rules.items():
        found[name], wrong = acl_rules.parse(name, acl_rules.words_of(text))
        assert not wrong
    return Users(found)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "FIRST", 0.0)


@pytest.mark.usefixtures("at_once")
async def test_a_failed_login_changes_nothing_and_is_noted_without_the_password() -> None:
    server = FakeServer(users=users(app="on >secret", default="off"))
    client = FakeClient()
    for args in (("AUTH", "app", "guessed"), ("AUTH", "guessed"), ("HELLO", "3", "AUTH", "app", "guessed")):
        assert await ask(server, client, *args) == b"-" + errors.WRONGPASS.encode() + b"\r\n"
    assert (client.user, client.proto, client.failed) == (b"", 2, 3)
    assert [(entry.reason, entry.object, entry.user) for entry in server.access_log.entries()] == [
        ("auth", b"HELLO", "app"), ("auth", b"AUTH", "default"), ("auth", b"AUTH", "app"),
    ]  # fmt: skip
    assert "guessed" not in str(server.access_log.entries()) and not server.logged
    assert server.failures.waiting == 0


async def test_a_right_password_is_not_kept_waiting() -> None:
    server = FakeServer(users=users(app="on >secret", default="off"))
    for _ in range(100):
        server.failures.failed("127.0.0.1", asyncio.get_running_loop().time())
    client = FakeClient()
    call = FakeCall([b"AUTH", b"app", b"secret"], client, _row("auth"))
    handlers.dispatch(server, call)  # type: ignore[arg-type]
    assert call.replies == [b"+OK\r\n"] and client.user == b"app"


async def test_too_many_who_wait_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MOST_FAILURES", 3)
    server = FakeServer(users=users(app="on >secret", default="off"))
    clients = [FakeClient() for _ in range(5)]
    calls = [FakeCall([b"AUTH", b"app", b"wrong"], client, _row("auth")) for client in clients]
    for call in calls:
        handlers.dispatch(server, call)  # type: ignore[arg-type]
        await asyncio.sleep(0)
    assert [bool(call.replies) for call in calls] == [False, False, False, True, True]
    assert [client.leaving for client in clients] == [False, False, False, True, True]
    for task in server.tasks:
        task.cancel()


def _row(name: str) -> object:
    return builtin().row(name.encode())


async def test_changes_are_taken_from_who_has_logged_in_with_a_password() -> None:
    server = FakeServer(
        users=users(app="on >x ~* &* +@all", free="on nopass +@all"), outcome=Outcome(answer={"changed": 1})
    )
    for user, addr, taken in (
        (b"", REMOTE, False),
        (b"free", REMOTE, False),
        (b"app", REMOTE, True),
        (b"gone", REMOTE, False),
        (b"", "127.0.0.1:1", True),
        (b"free", "/run/socket:0", True),
    ):
        for words in (
            ("PROXY", "RELOAD"),
            ("PROXY", "DRAIN", "a"),
            ("PROXY", "UNDRAIN", "a"),
            ("ACL", "LOAD"),
            ("ACL", "SAVE"),
            ("ACL", "SETUSER", "x", "on"),
            ("ACL", "DELUSER", "x"),
        ):
            said = await ask(server, FakeClient(user=user, addr=addr), *words)
            assert said.startswith(b"-NOPERM this changes") != taken, (user, addr, words)


async def test_users_are_changed_where_they_are_owned() -> None:
    server = FakeServer(users=users(app="on >x +@all"), outcome=Outcome(answer={"changed": 1}))
    for words, said in (
        (("SETUSER", "x", "on", ">p"), b"+OK\r\n"),
        (("DELUSER", "x", "y"), b":1\r\n"),
        (("SAVE",), b"+OK\r\n"),
    ):
        assert await ask(server, FakeClient(user=b"app", addr=REMOTE), "ACL", *words) == said
    assert server.operated == [
        ("setuser", "app", b"x", [b"on", b">p"]), ("deluser", "app", [b"x", b"y"]), ("saveusers", "app"),
    ]  # fmt: skip


async def test_who_removes_itself_leaves_unless_that_is_refused() -> None:
    for rules, names, leaves in (
        ("on >x +@all", ["app", "y"], True), ("on >x +@all", ["y"], False),
        ("on >x +@all", ["app", "default"], False), ("on nopass +@all", ["app"], False),
    ):  # fmt: skip
        server = FakeServer(users=users(app=rules), outcome=Outcome(answer={"changed": 1}))
        client = FakeClient(user=b"app", addr=REMOTE)
        await ask(server, client, "ACL", "DELUSER", *names)
        assert client.leaving == leaves


async def test_generated_passwords() -> None:
    for bits, digits in ((None, 64), (1, 1), (4, 1), (5, 2), (256, 64), (4096, 1024)):
        args = [] if bits is None else [str(bits)]
        said = await ask(FakeServer(), FakeClient(), "ACL", "GENPASS", *args)
        assert len(said.split(b"\r\n")[1]) == digits
    assert await ask(FakeServer(), FakeClient(), "ACL", "GENPASS") != await ask(
        FakeServer(), FakeClient(), "ACL", "GENPASS"
    )


async def test_dryrun_says_what_the_proxy_would_do_with_scripts() -> None:
    server = FakeServer(users=users(app="on ~a +@all"))
    said = await ask(server, FakeClient(), "ACL", "DRYRUN", "app", "EVAL", "s", "1", "a")
    assert b"no permissions to run the 'eval' command" in said
    server.users = Users(server.users.by_name, trust_scripts=True)
    assert await ask(server, FakeClient(), "ACL", "DRYRUN", "app", "EVAL", "s", "1", "a") == b"+OK\r\n"


def test_the_log_is_bounded_and_counts_what_comes_again() -> None:
    log, client = AccessLog(), FakeClient()
    for number in range(1000):
        log.denied(float(number), client, "app", "key", "toplevel", b"x%d" % number)  # type: ignore[arg-type]
    assert len(log.entries()) == accesslog.MOST
    assert log.entries()[0].object == b"x999"
    for _ in range(5):
        log.denied(1000.0, client, "app", "key", "toplevel", b"x999")  # type: ignore[arg-type]
    assert (log.entries()[0].count, log.entries()[0].updated, log.entries()[0].created) == (6, 1000.0, 999.0)
    log.denied(1000.0 + accesslog.SAME, client, "app", "key", "toplevel", b"x999")  # type: ignore[arg-type]
    assert log.entries()[0].count == 1
    log.denied(2000.0, client, "app", "key", "toplevel", b"k" * 5000)  # type: ignore[arg-type]
    assert len(log.entries()[0].object) == accesslog.LONGEST
    log.clear()
    assert log.entries() == []


async def test_a_login_over_the_users_limit() -> None:
    class Reactor:
        def logins(self, user: bytes) -> int:
            return 2 if user == b"app" else 0

    server = FakeServer(users=replace_limits(users(app="on >x", b="on >x"), {"app": 2}), reactor=Reactor())
    client = FakeClient()
    assert b"max number of clients of user 'app'" in await ask(server, client, "AUTH", "app", "x")
    assert b"max number" in await ask(server, client, "HELLO", "3", "AUTH", "app", "x")
    assert client.user == b"" and client.proto == 2
    assert await ask(server, client, "AUTH", "b", "x") == b"+OK\r\n"
    assert await ask(server, replace(client, user=b"app"), "AUTH", "app", "x") == b"+OK\r\n"


def replace_limits(found: Users, limits: dict[str, int]) -> Users:
    return Users(found.by_name, limits=limits)
