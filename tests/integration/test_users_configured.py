"""Users as this proxy has them and Redis has not: in a configuration that is reloaded, in all its workers.

Failed logins wait; a user has so many connections; passwords are in no file that others can read.
"""

import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import ProxyProcess, Raw, RedisNode, logged_in, pack, shards_of, toml, until

from shardproxy.core import errors, reply

ADMIN = "on #8c6976e5b5410415bde908bd4dee15dfb167a9c873fc4bb8a81f6f2ab448a918 ~* &* +@all"  # "admin"


@pytest.fixture(scope="module")
def node() -> Iterator[RedisNode]:
    with RedisNode() as node:
        yield node


@pytest.fixture
def acl_file(tmp_path: Path) -> Path:
    path = tmp_path / "users.acl"
    path.write_text(
        f"user default on >open ~pub:* +@read\nuser admin {ADMIN}\n"
        "user app on >secret ~app:* +@all\nuser any on nopass ~any* +@all\n"
    )
    path.chmod(0o600)
    return path


def test_a_wrong_password_makes_its_client_wait_and_nobody_else(node: RedisNode) -> None:
    users = '[users]\ndefault = "on nopass ~* &* +@all"\napp = "on #' + "ab" * 32 + ' ~* +@all"\n'
    with (
        ProxyProcess(toml({"a": node.address}) + users) as proxy,
        proxy.raw() as guesser,
        proxy.raw() as other,
    ):
        for _ in range(4):
            assert guesser.ask("AUTH", "app", "wrong-guess").startswith(b"-WRONGPASS")
        guesser.send(pack("AUTH", "app", "wrong-guess") + pack("GET", "x"))
        for _ in range(50):
            assert other.ask("GET", "x") == b"$-1\r\n"
        assert not select.select([guesser.socket], [], [], 0)[0]
        assert [frame[:5] for frame in guesser.frames(2)] == [b"-WRON", b"$-1\r\n"]
        counters = other.value("PROXY", "INFO")
        assert '"failed_logins": 5' in counters
        with proxy.raw() as leaves:
            leaves.send(pack("AUTH", "app", "wrong-guess"))
        assert other.ask("PING") == b"+PONG\r\n"
        listed = other.ask("CLIENT", "LIST") + other.ask("ACL", "LOG", "100") + other.ask("PROXY", "INFO")
        assert b"wrong-guess" not in listed and "wrong-guess" not in proxy.log_text()


def test_wrong_passwords_inside_multi_wait_at_exec(node: RedisNode) -> None:
    """Queued at once; each is another failure, and the array comes when all have waited."""
    users = '[users]\ndefault = "on nopass ~* &* +@all"\napp = "on #' + "ab" * 32 + ' ~* +@all"\n'
    wrong = pack("AUTH", "app", "wrong")
    with (
        ProxyProcess(toml({"a": node.address}) + users) as proxy,
        proxy.raw() as raw,
    ):
        for byte in pack("MULTI") + 3 * wrong + pack("EXEC") + pack("PING"):
            raw.send(bytes([byte]))
        assert raw.frames(4) == [b"+OK\r\n", *[b"+QUEUED\r\n"] * 3]
        assert raw.frame() == b"*3\r\n" + 3 * reply.error(errors.WRONGPASS)
        assert raw.frame() == b"+PONG\r\n"


def test_a_user_has_only_so_many_connections(node: RedisNode) -> None:
    users = '[users.app]\nacl = "on nopass ~* +@all"\nclients = 2\n'
    with (
        ProxyProcess(toml({"a": node.address}) + users) as proxy,
        logged_in(proxy, "app", "x") as first,
        logged_in(proxy, "app", "x"),
        proxy.raw() as third,
    ):
        assert third.ask("AUTH", "app", "x") == b"-ERR max number of clients of user 'app' reached\r\n"
        assert first.ask("AUTH", "app", "x") == b"+OK\r\n"
        first.ask("RESET")
        assert third.ask("AUTH", "app", "x") == b"+OK\r\n"
        assert first.ask("AUTH", "app", "x").startswith(b"-ERR max number")
        third.close()
        until(lambda: first.ask("AUTH", "app", "x") == b"+OK\r\n", "the place of who has left")


def test_passwords_from_elsewhere(node: RedisNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    monkeypatch.setenv("APP_PASSWORD", "from-the-environment")
    users = (
        f'[users]\na = {{ acl = "on ~* +@all", password_file = "{tmp_path}/secret" }}\n'
        'b = { acl = "on ~* +@all", password_env = "APP_PASSWORD" }\n'
    )
    with ProxyProcess(toml({"a": node.address}) + users) as proxy, proxy.raw() as raw:
        assert raw.ask("AUTH", "a", "from a file") == b"+OK\r\n"
        assert raw.ask("AUTH", "b", "from-the-environment") == b"+OK\r\n"
        assert raw.ask("AUTH", "b", "from a file").startswith(b"-WRONGPASS")


# --- changes while it runs ---


def rewrite(proxy: ProxyProcess, text: str) -> Any:
    proxy.config_path.write_text(text)
    with logged_in(proxy, "admin", "admin") as admin:
        return admin.value("PROXY", "RELOAD")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_changes_users_at_once(workers: int, node: RedisNode) -> None:
    def text(users: str) -> str:
        return toml({"a": node.address}, top=f"workers = {workers}") + f'[users]\nadmin = "{ADMIN}"\n' + users

    old = 'app = "on nopass ~* +@all"\ngone = "on nopass ~* +@all"\ndefault = "on nopass ~* &* +@all"\n'
    new = 'app = "on nopass ~app:* +@all"\ndefault = "off"\n'
    with ProxyProcess(text(old)) as proxy:
        apps = [logged_in(proxy, "app", "x") for _ in range(4)]
        gone = [logged_in(proxy, "gone", "x") for _ in range(4)]
        nobody, multi = proxy.raw(), logged_in(proxy, "app", "x")
        assert nobody.ask("GET", "x") == b"$-1\r\n"
        assert [multi.ask("MULTI"), multi.ask("GET", "x")] == [b"+OK\r\n", b"+QUEUED\r\n"]
        said = rewrite(proxy, text(new))
        assert "users.gone removed" in said and "users.default" in said
        for app in apps:
            assert app.ask("GET", "x").startswith(b"-NOPERM")
            assert app.ask("GET", "app:x") == b"$-1\r\n"
        assert multi.ask("EXEC").startswith(b"-EXECABORT")
        assert nobody.ask("GET", "x").startswith(b"-NOAUTH")
        for client in gone:
            assert client.rest() == b""
        assert "1 mistake:" in str(rewrite(proxy, text('app = "on +nope"')))
        assert apps[0].ask("GET", "app:x") == b"$-1\r\n"
        for client in (*apps, nobody, multi):
            client.close()


def test_mistakes_are_refused_all_at_once(node: RedisNode) -> None:
    good = f'[users]\nadmin = "{ADMIN}"\n'
    with ProxyProcess(toml({"a": node.address}) + good) as proxy:
        said = str(
            rewrite(proxy, toml({"a": node.address}) + good + 'a = "on +gte ~* ~x hunter2"\nb = "(on)"\n')
        )
        assert "4 mistakes" in said and "did you mean get" in said and "hunter2" not in said
        assert "users.a" in said and "users.b" in said and "hunter2" not in proxy.log_text()


def test_a_changed_acl_file_is_seen(node: RedisNode, tmp_path: Path) -> None:
    path = tmp_path / "users.acl"
    path.write_text("user default on nopass ~* &* +@all\nuser app on nopass ~* +@all\n")
    with (
        ProxyProcess(toml({"a": node.address}, top=f'acl_file = "{path}"')) as proxy,
        logged_in(proxy, "app", "x") as app,
    ):
        until(lambda: proxy.raw().ask("PING") == b"+PONG\r\n")
        path.write_text("user default on nopass ~* &* +@all\nuser app on nopass ~app:* +@all\n")
        until(lambda: app.ask("GET", "x").startswith(b"-NOPERM"), "the changed file to be seen")
        path.write_text("user app on nopass ~*\nuser app off +nope\nmore\n")
        until(lambda: proxy.events("reload_refused"), "the bad file to be refused")
        (event,) = proxy.events("reload_refused")
        assert (
            len(event["mistakes"]) == 2
            and "line 2" in str(event["mistakes"])
            and "line 3" in str(event["mistakes"])
        )
        assert app.ask("GET", "app:x") == b"$-1\r\n"
        path.write_text("user default on nopass ~* &* +@all\nuser app on nopass ~b:* +@all\n")
        with proxy.raw() as raw:
            assert raw.ask("ACL", "LOAD") == b"+OK\r\n"
        assert app.ask("GET", "b:x") == b"$-1\r\n"


def test_all_workers_show_users_and_denials(acl_file: Path, node: RedisNode) -> None:
    with ProxyProcess(toml({"a": node.address}, top=f'acl_file = "{acl_file}"\nworkers = 2')) as proxy:
        apps = [logged_in(proxy, "app", "secret") for _ in range(8)]
        admins = [logged_in(proxy, "admin", "admin") for _ in range(8)]
        for number, app in enumerate(apps):
            app.ask("GET", f"no{number}")
        for admin in admins:
            assert admin.ask("CLIENT", "LIST").count(b" user=app ") == 8
            entries = admin.ask("ACL", "LOG", "100")
            assert all(b"no%d\r\n" % number in entries for number in range(8))
        assert admins[0].ask("ACL", "LOG", "RESET") == b"+OK\r\n"
        assert [admin.ask("ACL", "LOG") for admin in admins] == [b"*0\r\n"] * 8
        for client in (*apps, *admins):
            client.close()


def test_other_machines_are_served_once_somebody_must_log_in(nodes3: list[RedisNode], acl_file: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        here = probe.getsockname()[0]
    text = toml(shards_of(nodes3), listen=["0.0.0.0:0"], top=f'acl_file = "{acl_file}"')
    with ProxyProcess(text) as proxy, Raw((here, proxy.port)) as raw:
        assert raw.ask("PROXY", "RELOAD").startswith(b"-NOAUTH")
        assert raw.ask("AUTH", "any", "x") == b"+OK\r\n"
        assert raw.ask("PROXY", "RELOAD").startswith(b"-NOPERM this changes the proxy")
        assert raw.ask("AUTH", "admin", "admin") == b"+OK\r\n"
        assert raw.ask("PROXY", "RELOAD").startswith(b"$")


def test_a_file_that_others_can_read_has_no_password(node: RedisNode, tmp_path: Path) -> None:
    path = tmp_path / "users.acl"
    path.write_text("user app on >secret ~* +@all\n")
    path.chmod(0o644)
    proxy = ProxyProcess(toml({"a": node.address}, top=f'acl_file = "{path}"')).launch()
    try:
        assert proxy.wait() == 2
        assert (
            "a password in a file that others can read" in proxy.log_text()
            and "secret" not in proxy.log_text()
        )
        assert os.stat(path).st_mode & 0o044
    finally:
        proxy.stop()
