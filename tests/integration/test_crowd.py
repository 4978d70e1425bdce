"""What one client does to others: CLIENT KILL, PAUSE, LIST, MONITOR; over one worker and two."""

import time
from collections.abc import Iterator

import pytest
from servers import ProxyProcess, Raw, redis_nodes, shards_of, toml, until


@pytest.fixture(scope="module", params=[1, 2])
def proxy(request: pytest.FixtureRequest) -> Iterator[ProxyProcess]:
    top = f"workers = {request.param}"
    with redis_nodes(2) as nodes, ProxyProcess(toml(shards_of(nodes), top=top)) as proxy:
        yield proxy


def field(raw: Raw, name: str) -> str:
    info = str(raw.value("CLIENT", "INFO"))
    return next(part for part in info.split() if part.startswith(name + "=")).partition("=")[2]


def closed(raw: Raw) -> bool:
    try:
        return raw.ask("PING") == b""
    except (EOFError, OSError):
        return True


def test_kill(proxy: ProxyProcess) -> None:
    with proxy.raw() as me:
        crowd = [proxy.raw() for _ in range(8)]
        ids = [raw.value("CLIENT", "ID") for raw in crowd]
        addresses = [field(raw, "addr") for raw in crowd]
        assert me.ask("CLIENT", "KILL", addresses[0]) == b"+OK\r\n"
        assert me.ask("CLIENT", "KILL", addresses[0]) == b"-ERR No such client\r\n"
        assert me.value("CLIENT", "KILL", "ADDR", addresses[1]) == 1
        assert me.value("CLIENT", "KILL", "ID", ids[2]) == 1
        assert me.value("CLIENT", "KILL", "ID", ids[2]) == 0
        assert me.value("CLIENT", "KILL", "ID", ids[3], "ADDR", addresses[4]) == 0
        assert me.value("CLIENT", "KILL", "ID", ids[3], "ADDR", addresses[3], "TYPE", "normal") == 1
        crowd[4].send(b"BLPOP nothing 0\r\n")
        assert me.value("CLIENT", "KILL", "ID", ids[4], "USER", "default") == 1
        assert all(closed(raw) for raw in crowd[:5])
        assert not any(closed(raw) for raw in crowd[5:])
        assert me.value("CLIENT", "KILL", "TYPE", "normal", "MAXAGE", 1000) == 0
        assert me.value("CLIENT", "KILL", "LADDR", field(me, "laddr")) == 3
        assert all(closed(raw) for raw in crowd[5:])
        # itself: after the reply
        me.send(b"CLIENT KILL ID %d SKIPME no\r\nPING\r\n" % me.value("CLIENT", "ID"))
        assert me.rest() == b":1\r\n"


def test_pause_holds_writes_or_all_until_its_end(proxy: ProxyProcess) -> None:
    with proxy.raw() as me:
        crowd = [proxy.raw() for _ in range(4)]
        for raw in crowd:
            raw.send(b"MULTI\r\nSET q 1\r\nCLIENT GETNAME\r\n")
            raw.frames(3)
        assert me.ask("CLIENT", "PAUSE", 100_000, "WRITE") == b"+OK\r\n"
        for raw in crowd[:2]:
            raw.send(b"EXEC\r\nGET a\r\n")
        for raw in crowd[2:]:
            raw.ask("DISCARD")
            assert raw.value("GET", "none") is None
            raw.send(b"GET none\r\nSET a 1\r\nGET a\r\n")
            assert raw.frame() == b"$-1\r\n"
        for raw in crowd:
            raw.socket.settimeout(0.05)
            with pytest.raises(TimeoutError):
                raw.frame()
            raw.socket.settimeout(10)
        with proxy.raw() as leaves:
            leaves.send(b"SET left 1\r\n")
        assert me.ask("CLIENT", "UNPAUSE") == b"+OK\r\n"
        for raw in crowd[:2]:
            assert raw.frame() == b"*2\r\n+OK\r\n$-1\r\n"
        for raw in crowd[2:]:
            assert raw.frames(2) == [b"+OK\r\n", b"$1\r\n1\r\n"]
        # all, for a time; a shorter one does not shorten it
        start = time.monotonic()
        me.send(b"CLIENT PAUSE 300 ALL\r\nPING\r\n")
        assert me.frame() == b"+OK\r\n"
        for raw in crowd:
            raw.send(b"PING\r\n")
        for raw in crowd:
            while raw.frame() != b"+PONG\r\n":
                pass
            raw.close()
        assert time.monotonic() - start >= 0.29
        assert me.frame() == b"+PONG\r\n"


def test_what_list_tells(proxy: ProxyProcess) -> None:
    with proxy.raw() as me, proxy.raw() as other, proxy.raw() as waiting, proxy.raw() as monitor:
        other.ask("SELECT", 3)
        other.ask("WATCH", "{w}a", "{w}b")
        other.ask("MULTI")
        other.ask("GET", "{w}a")
        monitor.ask("MONITOR")
        number = waiting.value("CLIENT", "ID")
        waiting.send(b"BLPOP nothing 0\r\n")

        def lines() -> dict[str, str]:
            found = str(me.value("CLIENT", "LIST")).splitlines()
            return {line.split()[0]: line for line in found}

        until(lambda: " flags=b " in lines()[f"id={number}"], "it waits")
        kinds = sorted(line.split(" flags=")[1].split()[0] for line in lines().values())
        assert kinds == ["N", "O", "b", "x"]
        transaction = next(line for line in lines().values() if " flags=x " in line)
        assert " db=3 " in transaction and " multi=1 watch=2 " in transaction
        only = str(me.value("CLIENT", "LIST", "ID", number)).splitlines()
        assert len(only) == 1 and only[0].startswith(f"id={number} ")
        assert me.value("CLIENT", "LIST", "TYPE", "master") == ""
        assert len(str(me.value("CLIENT", "LIST", "TYPE", "normal")).splitlines()) == 4


def test_monitor_sees_all_workers_and_costs_nothing_when_nobody_looks(proxy: ProxyProcess) -> None:
    with proxy.raw() as watching:
        assert watching.ask("MONITOR") == b"+OK\r\n"
        crowd = [proxy.raw() for _ in range(8)]
        for number, raw in enumerate(crowd):
            raw.ask("SET", f"k{number}", "v" * 10)
        seen = set()
        while len(seen) < 8:
            line = watching.frame()
            if b'"SET"' in line:
                seen.add(line.split(b'"SET" ')[1])
        assert seen == {b'"k%d" "vvvvvvvvvv"\r\n' % number for number in range(8)}
        for raw in crowd:
            raw.close()


def test_monitor_does_not_see_what_is_refused(proxy: ProxyProcess) -> None:
    """It may have a password."""
    with proxy.raw() as watching, proxy.raw() as raw:
        assert watching.ask("MONITOR") == b"+OK\r\n"
        assert raw.ask("MIGRATE", "host", 1, "k", 0, 100, "AUTH", "sesame").startswith(b"-ERR 'MIGRATE'")
        raw.ask("ECHO", "end of it")
        seen = b""
        while b"end of it" not in seen:
            seen += watching.frame()
        assert b"sesame" not in seen


def test_a_monitor_that_does_not_read_is_closed_and_nobody_else() -> None:
    top = "[limits]\nclient_output_hard = '1MB'\nclient_output_soft = '256KB'"
    with redis_nodes(1) as nodes, ProxyProcess(toml(shards_of(nodes), top=top)) as proxy:  # noqa: SIM117  # servers, then clients
        with proxy.raw() as slow, proxy.raw() as busy:
            slow.ask("MONITOR")
            for _ in range(400):
                busy.ask("ECHO", "x" * 50_000)
            assert busy.value("PING") == "PONG"
            until(lambda: proxy.events("client_closed"), "the slow one is closed")
