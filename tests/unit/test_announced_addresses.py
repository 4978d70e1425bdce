"""Who may come in, pure: PROXY headers, networks, addresses in `listen`, and how long certificates last."""

import datetime
import struct
from pathlib import Path

import pytest
from certs import Authority
from hypothesis import given
from hypothesis import strategies as st

from shardproxy.config.text import Door, door, read_listen
from shardproxy.core.networks import Networks
from shardproxy.core.proxy_protocol import SIGNATURE, Header, parse
from shardproxy.proxy.certificates import validity

LINE = b"PROXY TCP4 10.1.2.3 10.9.9.9 1234 6380\r\n"
FOUR = bytes([10, 1, 2, 3]), bytes([10, 9, 9, 9])


def binary(
    command: int = 0x21, family: int = 0x11, body: bytes = FOUR[0] + FOUR[1] + struct.pack("!HH", 1234, 6380)
) -> bytes:
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(body)) + body


HEADERS = [
    (LINE, Header(len(LINE), FOUR[0], 1234, FOUR[1], 6380)),
    (b"PROXY UNKNOWN\r\n", Header(15)),
    (b"PROXY UNKNOWN ::1 ::2 1 2\r\n", Header(27)),
    (b"PROXY TCP6 ::1 ::2 1 2\r\n", Header(24, bytes(15) + b"\1", 1, bytes(15) + b"\2", 2)),
    (binary(), Header(28, FOUR[0], 1234, FOUR[1], 6380)),
    (binary(body=FOUR[0] + FOUR[1] + b"\0\1\0\2" + b"extra"), Header(33, FOUR[0], 1, FOUR[1], 2)),
    (
        binary(family=0x21, body=bytes(range(32)) + b"\0\1\0\2"),
        Header(52, bytes(range(16)), 1, bytes(range(16, 32)), 2),
    ),
    (binary(command=0x20, body=b""), Header(16)),  # LOCAL: the load balancer's own
    (binary(family=0x31, body=bytes(216)), Header(232)),  # unix sockets: nobody that we know
]


@pytest.mark.parametrize(("data", "header"), HEADERS, ids=[repr(data[:40]) for data, _ in HEADERS])
def test_a_header_whole_and_in_pieces(data: bytes, header: Header) -> None:
    assert parse(data + b"*1\r\n$4\r\nPING\r\n") == header
    for end in range(len(data)):
        found = parse(data[:end])
        assert isinstance(found, int) and found <= len(data) - end, end


@pytest.mark.parametrize(
    "data",
    [
        b"*1\r\n$4\r\nPING\r\n", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n", b"PROXY\n",
        b"PROXY TCP4 1.2.3.4\r\n",
        b"PROXY TCP4 ::1 ::2 1 2\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", b"PROXY TCP5 a b 1 2\r\n", b"PROXY UNKNOWN\nPING\r\n",
        b"PROXY TCP4 " + b"1" * 200, binary(command=0x11), binary(command=0x22), binary(body=b"short"),
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)  # fmt: skip
def test_what_is_no_header(data: bytes) -> None:
    with pytest.raises(ValueError, match="PROXY header"):
        parse(data)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda more: binary()[:14] + more))
def test_any_bytes(data: bytes) -> None:
    try:
        found = parse(data)
    except ValueError:
        return
    assert isinstance(found, int) or found.size <= len(data)


def test_networks() -> None:
    some = Networks(["10.0.0.0/8", "192.168.1.7", "fd00::/8", "::1"])
    for inside in ("10.255.0.1", "192.168.1.7"):
        packed = bytes(map(int, inside.split(".")))
        assert some.holds(packed) and some.holds(bytes(10) + b"\xff\xff" + packed)
    assert not some.holds(bytes([11, 0, 0, 1])) and not some.holds(bytes([192, 168, 1, 8]))
    assert some.holds(bytes(15) + b"\1") and some.holds(b"\xfd" + bytes(15))
    assert not some.holds(bytes(16)) and not some.holds(b"") and not Networks([]).holds(bytes(4))


def test_addresses_to_listen_on() -> None:
    for text, found in {
        "[::1]:6380": Door("[::1]:6380"),
        "tls://0.0.0.0:6390": Door("0.0.0.0:6390", tls=True),
        "proxy://h:1": Door("h:1", proxied=True),
        "proxy+tls://h:1": Door("h:1", tls=True, proxied=True),
        "unix:///run/a.sock": Door("/run/a.sock"),
        "unix:///run/a.sock?mode=0660": Door("/run/a.sock", mode=0o660),
        "proxy+unix:///run/a.sock": Door("/run/a.sock", proxied=True),
    }.items():
        assert read_listen(text) == text
        assert door(text) == found


def test_how_long_a_certificate_lasts(tmp_path: Path) -> None:
    cert, _ = Authority(tmp_path).issue("x", days=9)
    begins, ends = validity(cert.read_bytes())
    assert ends - begins == datetime.timedelta(days=9)
    assert abs(datetime.datetime.now(datetime.UTC) - begins) < datetime.timedelta(minutes=5)
    with pytest.raises(ValueError):
        validity(b"nothing")
