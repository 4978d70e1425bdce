"""SESSION.* while its node is in trouble, and while [sessions] changes under load, with two workers."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import ProxyProcess, Raw, RedisNode, toml, until

FIRST, SECOND = "the first secret, long enough", "the second secret, long enough"
TOP = """
workers = 2
[users]
default = "on nopass ~* &* +@all +@session"
"""
SESSIONS = """
[sessions]
pool = "main"
secrets_file = "{file}"
"""
POOL = 'kind = "durable"\ntimeout = "300ms"\nconnect_timeout = "300ms"'
UNAVAILABLE = b"-SESSIONUNAVAILABLE "
# What a full node does
ENDS = {
    "SESSION.LOAD",
    "SESSION.TOUCH",
    "SESSION.LIST",
    "SESSION.REVOKE",
    "SESSION.REVOKEALL",
    "SESSION.DESTROY",
}


@pytest.fixture(scope="module")
def node() -> Iterator[RedisNode]:
    with RedisNode("--maxmemory-policy", "noeviction") as node:
        yield node


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secrets") / "secrets"
    path.write_text(FIRST)
    return path


@pytest.fixture(scope="module")
def door(node: RedisNode, secrets: Path) -> Iterator[ProxyProcess]:
    with ProxyProcess(toml({"a": node.address}, top=TOP + SESSIONS.format(file=secrets), pool=POOL)) as door:
        yield door


def say(text: str) -> Callable[[RedisNode], None]:
    def to(node: RedisNode) -> None:
        with node.raw() as raw:
            assert raw.ask(*text.split()) == b"+OK\r\n"

    return to


@pytest.mark.parametrize(
    ("before", "after", "works"),
    [
        pytest.param(say("CONFIG SET maxmemory 1"), say("CONFIG SET maxmemory 0"), ENDS, id="full"),
        pytest.param(say("REPLICAOF 127.0.0.1 1"), say("REPLICAOF NO ONE"), (), id="read-only"),
        pytest.param(
            say("ACL SETUSER default -evalsha"), say("ACL SETUSER default +@all"), (), id="no scripts"
        ),
        pytest.param(RedisNode.pause, RedisNode.resume, (), id="hung"),
        pytest.param(RedisNode.kill, RedisNode.start, (), id="down"),
    ],
)
def test_a_node_in_trouble(
    door: ProxyProcess,
    node: RedisNode,
    before: Callable[[RedisNode], None],
    after: Callable[[RedisNode], None],
    works: set[str],
) -> None:
    with door.raw() as raw:
        made = [raw.value("SESSION.CREATE", "USER", "anna", "SET", "a", "1") for _ in range(4)]
        mine, other, third, last = (each[1] for each in made)
        before(node)
        try:
            for command in (
                ("SESSION.CREATE", "SET", "a", "1"),
                ("SESSION.CREATE", "USER", "anna"),
                ("SESSION.LOAD", mine),
                ("SESSION.SAVE", mine, "SET", "a", "2"),
                ("SESSION.TOUCH", mine),
                ("SESSION.ROTATE", mine),
                ("SESSION.ROTATE", mine, "USER", "bert"),
                ("SESSION.LIST", "anna"),
                ("SESSION.REVOKE", made[0][7]),
                ("SESSION.DESTROY", other),
                ("SESSION.REVOKEALL", "anna", "EXCEPT", last),
            ):
                said = raw.ask(*command)
                assert said.startswith(UNAVAILABLE) == (command[0] not in works), (command, said)
        finally:
            after(node)
        until(lambda: not raw.ask("SESSION.LOAD", third).startswith(b"-"))
        living = [each for each in (mine, other, third, last) if raw.value("SESSION.LOAD", each)]
        if works:
            assert living == [last], "what could be ended has ended"
            assert raw.value("SESSION.LOAD", last)[-1] == ["a", "1"]
        raw.value("SESSION.REVOKEALL", "anna")


def test_sessions_change_under_load(door: ProxyProcess, node: RedisNode, secrets: Path) -> None:
    section = SESSIONS.format(file=secrets)
    config = door.config_path.read_text().replace("127.0.0.1:0", door.addresses[0])
    until(lambda: everywhere(door, lambda raw: raw.ask("SESSION.CREATE", "SET", "a", "1")[:1] == b"*"))
    with door.raw() as raw:
        cookie = raw.value("SESSION.CREATE", "SET", "n", "0")[1]
        said: list[bytes] = []
        stop = threading.Event()

        def busy() -> None:
            with door.raw() as raw:
                while not stop.is_set():
                    said.append(raw.ask("SESSION.SAVE", cookie, "INCR", "n", "1"))

        def reload(text: str) -> None:
            door.config_path.write_text(text)
            raw.value("PROXY", "RELOAD")  # or it has seen the file by itself already

        busiest = [threading.Thread(target=busy) for _ in range(3)]
        for each in busiest:
            each.start()
        try:
            secrets.write_text(f"{SECOND}\n{FIRST}\n")
            reload(config)
            until(lambda: everywhere(door, lambda raw: made_with(raw) != cookie[:2]))
            assert raw.value("SESSION.LOAD", cookie) is not None, "an older secret still counts"
            secrets.write_text("short")
            assert "refused" in raw.ask("PROXY", "RELOAD").decode()
            secrets.unlink()
            assert "refused" in raw.ask("PROXY", "RELOAD").decode()
            secrets.write_text(f"{SECOND}\n{FIRST}\n")
            reload(config.replace(section, section + "max_sessions = 1\n"))
            until(lambda: everywhere(door, at_most_one))
            assert raw.value("SESSION.LOAD", cookie) is not None
            assert {each[:1] for each in said} == {b"*"}, "none of them was refused"
            reload(config.replace(section, ""))
            until(lambda: everywhere(door, off))
            reload(config)
            until(lambda: everywhere(door, lambda raw: not off(raw)))
        finally:
            stop.set()
            for each in busiest:
                each.join()
        counted = sum(each.startswith(b"*") for each in said)
        assert raw.value("SESSION.LOAD", cookie)[-1] == ["n", str(counted)]
        assert {each[:21] for each in said if each[:1] == b"-"} <= {b"-ERR sessions are off"}


def everywhere(door: ProxyProcess, true: Callable[[Raw], bool]) -> bool:
    """Of connections enough to have met both workers."""
    found = []
    for _ in range(12):
        with door.raw() as raw:
            found.append(true(raw))
    return all(found)


def made_with(raw: Raw) -> str:
    """The beginning of a new cookie, which names its secret."""
    return str(raw.value("SESSION.CREATE", "SET", "a", "1")[1][:2])


def at_most_one(raw: Raw) -> bool:
    for _ in range(2):
        raw.value("SESSION.CREATE", "USER", "zoe")
    return len(raw.value("SESSION.LIST", "zoe")) == 1


def off(raw: Raw) -> bool:
    return raw.ask("SESSION.LOAD", "x").startswith(b"-ERR sessions are off")
