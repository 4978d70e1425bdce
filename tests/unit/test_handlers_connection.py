"""connection.py and client.py: what Redis cannot be asked about, and the state that handlers leave behind.

Texts and formats that Redis has too are compared with it: tests/integration/test_handlers_like_redis.py.
"""

import pytest
from fakes import FakeClient, FakeServer, ask

from shardproxy.handlers.base import NodeInfo
from shardproxy.handlers.connection import integer_in


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"0", 0),
        (b"-1", -1),
        (b"9223372036854775807", (1 << 63) - 1),
        (b"-9223372036854775808", -(1 << 63)),
        *[
            (text, None)
            for text in (b"", b"-", b"+1", b"01", b"-0", b" 1", b"1 ", b"1.0", b"x", b"1_0", b"\xb2")
        ],
        (b"9223372036854775808", None),
        (b"1" * 5000, None),
    ],
)
def test_integers_are_read_as_redis_reads_them(text: bytes, value: int | None) -> None:
    assert integer_in(text) == value


async def test_select_knows_the_databases_of_all_nodes() -> None:
    server, client = FakeServer(), FakeClient()
    assert await ask(server, client, "SELECT", "15") == b"+OK\r\n"
    assert client.db == 15
    assert await ask(server, client, "SELECT", "16") == b"-ERR DB index is out of range\r\n"
    server.node_info = {"a": NodeInfo("7.0.15", databases=4), "b": NodeInfo("7.0.15", databases=9)}
    assert await ask(server, client, "SELECT", "4") == b"-ERR DB index is out of range\r\n"
    assert client.db == 15


async def test_hello_switches_the_protocol_only_when_all_of_it_is_right() -> None:
    client = FakeClient()
    for wrong in (["4"], ["3", "AUTH", "nobody", "x"], ["3", "FOO"], ["3", "SETNAME", "a b"]):
        assert (await ask(FakeServer(), client, "HELLO", *wrong)).startswith(b"-")
        assert client.proto == 2
    assert (await ask(FakeServer(), client, "HELLO", "3", "SETNAME", "me")).startswith(b"%7\r\n")
    assert (client.proto, client.name) == (3, b"me")
    assert (await ask(FakeServer(), client, "HELLO")).startswith(b"%7\r\n")
    assert (await ask(FakeServer(), client, "HELLO", "2")).startswith(b"*14\r\n")


async def test_hello_names_the_lowest_version_of_the_nodes() -> None:
    server = FakeServer(node_info={"a": NodeInfo("7.0.15"), "b": NodeInfo("7.0.9"), "c": NodeInfo()})
    assert b"$5\r\n7.0.9\r\n" in await ask(server, FakeClient(), "HELLO")


async def test_quit_answers_and_then_closes() -> None:
    client = FakeClient()
    assert await ask(FakeServer(), client, "QUIT") == b"+OK\r\n"
    assert client.leaving


async def test_reset_forgets_name_and_protocol() -> None:
    client = FakeClient(proto=3, name=b"x", reply_mode="on")
    assert await ask(FakeServer(), client, "RESET") == b"+RESET\r\n"
    assert (client.proto, client.name) == (2, b"")


async def test_client_reply_sets_the_mode() -> None:
    client, server = FakeClient(), FakeServer()
    assert await ask(server, client, "CLIENT", "REPLY", "SKIP") == b""
    assert client.reply_mode == "skip"
    assert await ask(server, client, "CLIENT", "REPLY", "OFF") == b""
    assert client.reply_mode == "off"
    assert await ask(server, client, "CLIENT", "REPLY", "SKIP") == b""
    assert client.reply_mode == "off"  # as Redis: off stays off
    assert await ask(server, client, "CLIENT", "REPLY", "ON") == b"+OK\r\n"
    assert client.reply_mode == "on"


async def test_setinfo_shows_in_client_info() -> None:
    client, server = FakeClient(), FakeServer()
    assert await ask(server, client, "CLIENT", "SETINFO", "LIB-NAME", "redis-py") == b"+OK\r\n"
    assert await ask(server, client, "CLIENT", "SETINFO", "lib-ver", "8.1") == b"+OK\r\n"
    assert b"lib-name=redis-py lib-ver=8.1\n" in await ask(server, client, "CLIENT", "INFO")
    assert await ask(server, client, "CLIENT", "SETINFO", "lib-ver", "8 1") == (
        b"-ERR lib-ver cannot contain spaces, newlines or special characters.\r\n"
    )
    assert await ask(server, client, "CLIENT", "SETINFO", "foo", "x") == b"-ERR Unrecognized option 'foo'\r\n"


async def test_no_touch_and_no_evict_are_flags() -> None:
    client, server = FakeClient(), FakeServer()
    assert b" flags=N " in await ask(server, client, "CLIENT", "INFO")
    for command in ("NO-EVICT", "NO-TOUCH"):
        assert await ask(server, client, "CLIENT", command, "ON") == b"+OK\r\n"
        assert await ask(server, client, "CLIENT", command, "maybe") == b"-ERR syntax error\r\n"
    assert b" flags=eT " in await ask(server, client, "CLIENT", "INFO")


async def test_client_list_filters() -> None:
    clients = [FakeClient(id=number) for number in (3, 5, 9)]
    server = FakeServer(clients=clients)

    async def ids(*options: str) -> list[int]:
        text = await ask(server, clients[0], "CLIENT", "LIST", *options)
        return [int(line.split()[0][3:]) for line in text.splitlines()[1:] if line]

    assert await ids() == [3, 5, 9]
    assert await ids("TYPE", "normal") == [3, 5, 9]
    assert await ids("TYPE", "pubsub") == []
    assert await ids("ID", "9", "4", "3") == [3, 9]


async def test_a_percent_sign_in_a_socket_path_is_shown() -> None:
    client = FakeClient(addr="/tmp/%b:0", laddr="/tmp/%s:0", name=b"n")
    line = await ask(FakeServer(), client, "CLIENT", "INFO")
    assert b"addr=/tmp/%b:0 laddr=/tmp/%s:0 fd=8 name=n age" in line
    assert b" flags=U " in line
