"""The reply of `stats conns`, as memcached 1.6.18 gives it."""

from shardproxy.core.memcached.connections import asker, connections

LISTENING = (
    b"STAT 15:addr tcp:127.0.0.1:22122\r\nSTAT 15:state conn_listening\r\nSTAT 15:secs_since_last_cmd 0\r\n"
)


def of(number: int, address: bytes, state: bytes) -> bytes:
    return (
        b"STAT %d:addr %b\r\nSTAT %d:listen_addr tcp:127.0.0.1:22122\r\nSTAT %d:state %b\r\n"
        b"STAT %d:secs_since_last_cmd 3\r\n"
    ) % (number, address, number, number, state, number)


ONE = of(16, b"tcp:127.0.0.1:51004", b"conn_parse_cmd")
TWO = of(17, b"tcp6:[::1]:51006", b"conn_read")
FILE = of(18, b"unix:/run/memcached", b"conn_read")


def test_those_that_come_over_tcp() -> None:
    found = connections(LISTENING + ONE + TWO + FILE + b"END\r\n")
    assert found == {"127.0.0.1:51004": "conn_parse_cmd", "[::1]:51006": "conn_read"}


def test_what_is_no_listing_has_none() -> None:
    for reply in (b"ERROR\r\n", b"END\r\n", b"", b"STAT x:addr tcp:1:2\r\nEND\r\n", b"\xff\r\n"):
        assert connections(reply) == {}


def test_who_has_asked() -> None:
    found = connections(ONE + TWO)
    assert asker(found, "[::1]:51006") == "[::1]:51006"  # nothing between changes it
    assert asker(found, "10.0.0.1:51006") == "127.0.0.1:51004"
    both = connections(ONE + of(17, b"tcp:10.0.0.9:40000", b"conn_parse_cmd"))
    assert asker(both, "10.0.0.1:51006") == ""
    assert asker(both, "10.0.0.9:40000") == "10.0.0.9:40000"
    assert asker({}, "10.0.0.1:51006") == ""
