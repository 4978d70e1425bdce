"""proxy/reload: users that are changed while the proxy runs, where they are owned; without a proxy."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shardproxy.config import Config, Credentials, load
from shardproxy.core import acl, errors
from shardproxy.core.topology import Topology
from shardproxy.proxy import reload
from shardproxy.proxy.reload import Reloader

TEXT = 'acl_file = "{0}/users.acl"\n[pool.a.shards]\na = "redis://127.0.0.1:1"\n'


class FakeOwner:
    def __init__(self, config: Config, late: list[str]) -> None:
        self.config, self.topology, self.late = config, Topology.from_config(config), late
        self.handed_over = asyncio.Event()
        self.adopted: list[acl.Users] = []
        self.logged: list[tuple[str, dict[str, Any]]] = []

    def log(self, event: str, **fields: Any) -> None:
        self.logged.append((event, fields))

    async def adopt(
        self, config: Config, topology: Topology, credentials: Credentials, users: acl.Users
    ) -> list[str]:
        assert topology.generation > self.topology.generation
        self.topology = topology
        self.adopted.append(users)
        return self.late


def made(folder: Path, late: list[str] | None = None) -> tuple[FakeOwner, Reloader]:
    (folder / "users.acl").write_text("user default on nopass ~* &* +@all\n")
    file = folder / "shardproxy.toml"
    file.write_text(TEXT.format(folder))
    owner = FakeOwner(load(file), late or [])
    return owner, Reloader(owner, Credentials.read(owner.config), acl.Users(), str(file))  # type: ignore[arg-type]


async def test_a_change_is_logged_without_its_rules(tmp_path: Path) -> None:
    owner, reloader = made(tmp_path)
    assert not (await reloader.operate("setuser", "me", b"a", [b"on", b">hunter2"])).error
    assert (await reloader.operate("deluser", "me", [b"a", b"a", b"b"])).answer == {"changed": 1}
    assert (await reloader.operate("deluser", "me", [b"a"])).answer == {"changed": 0}
    assert "hunter2" not in (await reloader.operate("setuser", "me", b"a", [b"hunter2"])).error
    assert owner.logged == [("users_changed", {"by": "me", "users": ["a"]})] * 2
    assert [sorted(users.by_name) for users in owner.adopted] == [["a", "default"], ["default"]]


async def test_a_worker_that_is_late_is_named(tmp_path: Path) -> None:
    owner, reloader = made(tmp_path, ["worker 1"])
    assert "worker 1" in (await reloader.operate("setuser", "me", b"a", [])).error
    assert owner.logged[0][1]["not_acknowledged"] == ["worker 1"]


async def test_what_was_saved_is_no_change_of_the_file(tmp_path: Path) -> None:
    """Or else users that are changed after it would be gone when the file is looked at."""
    _, reloader = made(tmp_path)
    path = tmp_path / "users.acl"
    before = reloader._look()
    for name in (b"a", b"b", b"c"):
        await reloader.operate("setuser", "me", name, [b"on"])
        assert not (await reloader.operate("saveusers", "me")).error
        assert reloader._look() == before
    assert path.read_text().count("\n") == 4
    path.write_text("user a on\n")
    assert reloader._look() != before


async def test_what_cannot_be_saved(tmp_path: Path) -> None:
    owner, reloader = made(tmp_path)
    (tmp_path / "users.acl").unlink()
    (tmp_path / "users.acl").mkdir()
    assert (await reloader.operate("saveusers", "me")).error == errors.ACL_NOT_SAVED
    assert owner.logged[0][0] == "users_not_saved" and sorted(p.name for p in tmp_path.iterdir()) == [
        "shardproxy.toml", "users.acl",
    ]  # fmt: skip
    owner.config = load(TEXT.format(tmp_path).partition("\n")[2].encode())
    assert (await reloader.operate("saveusers", "me")).error == errors.ACL_NO_FILE


async def test_there_is_an_end_to_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "RULES_MOST", 100)
    owner, reloader = made(tmp_path)
    assert (await reloader.operate("setuser", "me", b"a", [b"~" + b"x" * 100])).error == errors.ACL_TOO_MANY
    assert (await reloader.operate("setuser", "me", b"a", [b"~x"])).error == "" and len(owner.adopted) == 1
