"""Every type of RESP3 passes from a node to the client as it came."""

from collections.abc import Iterator

import pytest
from servers import ProxyProcess, RedisNode, redis_nodes, shards_of, toml

SCRIPT = """
redis.setresp(3)
local kinds = {
    map = {map = {a = 1}}, set = {set = {a = true}}, double = {double = 3.5},
    big = {big_number = '12345678901234567890'},
    verbatim = {verbatim_string = {format = 'txt', string = 'some text'}}, yes = true, no = false,
}
return kinds[ARGV[1]]
"""
KINDS = {
    "map": b"%1\r\n$1\r\na\r\n:1\r\n",
    "set": b"~1\r\n$1\r\na\r\n",
    "double": b",3.5\r\n",
    "big": b"(12345678901234567890\r\n",
    "verbatim": b"=13\r\ntxt:some text\r\n",
    "yes": b"#t\r\n",
    "no": b"#f\r\n",
    "null": b"_\r\n",
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(1) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def proxy(nodes: list[RedisNode]) -> Iterator[ProxyProcess]:
    with ProxyProcess(toml(shards_of(nodes))) as proxy:
        yield proxy


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_type_passes(proxy: ProxyProcess, nodes: list[RedisNode], kind: str, proto: int) -> None:
    found = []
    for raw in (nodes[0].raw(), proxy.raw()):
        with raw:
            raw.ask("HELLO", proto)
            found.append(raw.ask("EVAL", SCRIPT, 1, "k", kind))
    assert found[1] == found[0]
    if proto == 3:
        assert found[1] == KINDS[kind]


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("kind", ["ATTRIB", "BIGNUM", "VERBATIM", "DOUBLE", "MAP", "SET", "TRUE", "NULL"])
def test_what_a_node_says_to_debug_protocol_passes(
    proxy: ProxyProcess, nodes: list[RedisNode], kind: str, proto: int
) -> None:
    with nodes[0].raw() as direct, proxy.raw() as raw:
        for each in (direct, raw):
            each.ask("HELLO", proto)
        expected = direct.ask("DEBUG", "PROTOCOL", kind)
        assert raw.ask("PROXY", "NODE", "a", "DEBUG", "PROTOCOL", kind) == expected
        assert raw.ask("PING") == b"+PONG\r\n"
        if (kind, proto) == ("ATTRIB", 3):
            assert expected.startswith(b"|1\r\n") and expected.endswith(b"following the attribute\r\n")
