"""Unix sockets with modes, PROXY headers and allow lists, on a running proxy."""

import contextlib
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from certs import Authority, RawTls
from servers import ProxyProcess, Raw, RedisNode, pack, shards_of, toml, until

from shardproxy.core.proxy_protocol import SIGNATURE


def header(source: str, port: int = 4321) -> bytes:
    return f"PROXY TCP4 {source} 10.0.0.1 {port} 6380\r\n".encode()


def binary(source: bytes, port: int = 4321) -> bytes:
    return SIGNATURE + b"\x21\x11\x00\x0c" + source + bytes([10, 0, 0, 1]) + struct.pack("!HH", port, 6380)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def doors(
    nodes3: list[RedisNode], authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProxyProcess]:
    cert, key = authority.issue("proxy")
    path = tmp_path_factory.mktemp("sockets")
    listen = [
        "127.0.0.1:0",
        "proxy://127.0.0.1:0",
        "proxy+tls://127.0.0.1:0",
        f"unix://{path}/narrow?mode=0600",
    ]
    listen += [f"proxy+unix://{path}/wide?mode=0666"]
    top = 'protected_mode = false\nallow = ["10.0.0.0/8", "127.0.0.1"]'
    more = f'[tls]\ncert = "{cert}"\nkey = "{key}"\n'
    more += '[limits]\nhandshake_timeout = "700ms"\nclients_per_address = 3\n'
    with ProxyProcess(toml(shards_of(nodes3), listen, top) + more) as process:
        yield process


def place(process: ProxyProcess, scheme: str) -> int:
    return int(next(each for each in process.addresses if each.startswith(scheme)).rpartition(":")[2])


def addresses(raw: Raw) -> tuple[str, str]:
    said = dict(pair.split("=", 1) for pair in str(raw.value("CLIENT", "INFO")).split())
    return said["addr"], said["laddr"]


@pytest.mark.parametrize("made", [header("10.1.2.3"), binary(bytes([10, 1, 2, 3]))])
def test_the_announced_address(doors: ProxyProcess, authority: Authority, made: bytes) -> None:
    with Raw(place(doors, "proxy://")) as raw:
        raw.send(made + pack("PING"))
        assert raw.frame() == b"+PONG\r\n"
        assert addresses(raw) == ("10.1.2.3:4321", "10.0.0.1:6380")
    with Raw(place(doors, "proxy://")) as raw:
        for byte in made + pack("PING"):
            raw.send(bytes([byte]))
        assert raw.frame() == b"+PONG\r\n"
    with RawTls(place(doors, "proxy+tls://"), authority.context(), begin=made) as raw:
        assert addresses(raw) == ("10.1.2.3:4321", "10.0.0.1:6380")


def test_the_balancer_itself(doors: ProxyProcess) -> None:
    """UNKNOWN and LOCAL announce nobody: the connection's own address it is."""
    for made in (b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x20\x00\x00\x00"):
        with Raw(place(doors, "proxy://")) as raw:
            raw.send(made)
            assert addresses(raw)[0] == f"127.0.0.1:{raw.socket.getsockname()[1]}"


def test_who_is_not_allowed(doors: ProxyProcess, authority: Authority) -> None:
    with Raw(place(doors, "proxy://")) as raw:
        raw.send(header("11.1.2.3") + pack("PING"))
        assert raw.rest().startswith(b"-DENIED the address of this client is not in the `allow` list")
    with (
        pytest.raises(OSError),
        RawTls(place(doors, "proxy+tls://"), authority.context(), begin=header("11.1.2.3")) as raw,
    ):
        raw.ask("PING")
    with Raw(place(doors, "127.")) as raw:
        assert raw.ask("PING") == b"+PONG\r\n"


def test_clients_of_one_announced_address(doors: ProxyProcess) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(3):
            raw = held.enter_context(Raw(place(doors, "proxy://")))
            raw.send(header("10.7.7.7") + pack("PING"))
            assert raw.frame() == b"+PONG\r\n"
        raw = held.enter_context(Raw(place(doors, "proxy://")))
        raw.send(header("10.7.7.7") + pack("PING"))
        assert raw.rest() == b"-ERR max number of clients of this address reached\r\n"
        raw = held.enter_context(Raw(place(doors, "proxy://")))
        raw.send(header("10.7.7.8") + pack("PING"))
        assert raw.frame() == b"+PONG\r\n"


def test_no_header_and_half_of_one(doors: ProxyProcess) -> None:
    for data, reason in (
        (pack("PING"), "is no PROXY header"),
        (header("10.1.2.3")[:20], "no PROXY header in time"),
    ):
        with Raw(place(doors, "proxy://")) as raw:
            raw.send(data)
            assert raw.rest() == b""
        until(lambda: any(reason in event["reason"] for event in doors.events("client_closed")), reason)  # noqa: B023


def test_a_header_of_somebody_else(nodes3: list[RedisNode]) -> None:
    top = 'proxy_protocol_from = ["10.0.0.0/8"]'
    with ProxyProcess(toml(shards_of(nodes3), ["proxy://127.0.0.1:0"], top)) as process, process.raw() as raw:
        assert raw.rest().startswith(b"-DENIED this port takes connections from load balancers")


def test_protected_mode_is_about_the_announced_address(nodes3: list[RedisNode]) -> None:
    with ProxyProcess(toml(shards_of(nodes3), ["proxy://127.0.0.1:0"])) as process:
        with process.raw() as raw:
            raw.send(header("192.168.0.1") + pack("PING"))
            assert raw.rest().startswith(b"-DENIED shardproxy is running in protected mode")
        with process.raw() as raw:
            raw.send(header("127.0.0.9") + pack("PING"))
            assert raw.frame() == b"+PONG\r\n"


def test_unix_sockets(doors: ProxyProcess) -> None:
    paths = [Path(each.split("unix://")[1].partition("?")[0]) for each in doors.addresses if "unix" in each]
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o600, 0o666]
    with Raw(str(paths[0])) as raw:
        assert raw.ask("PING") == b"+PONG\r\n"
    with Raw(str(paths[1])) as raw:
        raw.send(header("10.1.2.3"))
        assert addresses(raw)[0] == "10.1.2.3:4321"
