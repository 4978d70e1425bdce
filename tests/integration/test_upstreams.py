"""Many clients share few upstreams: `connections_per_node` a node, protocol and database, as nodes see it."""

import time

import pytest
from servers import ProxyProcess, Raw, RedisNode, pack, redis_nodes, shards_of, toml, until

CLIENTS = 200


def ours(node: RedisNode) -> list[str]:
    """The connections to a node that have sent something other than what asks about it."""
    with node.raw() as raw:
        listed = raw.value("CLIENT", "LIST")
    text = listed if isinstance(listed, str) else str(listed)
    return [line for line in text.splitlines() if "cmd=set " in line or "cmd=get " in line]


@pytest.mark.parametrize("connections", [1, 3])
def test_clients_share_upstreams(connections: int) -> None:
    with (
        redis_nodes(3) as nodes,
        ProxyProcess(toml(shards_of(nodes), pool=f"connections_per_node = {connections}")) as proxy,
    ):
        clients = [proxy.raw() for _ in range(CLIENTS)]
        try:
            for number, client in enumerate(clients):
                if number % 2:
                    client.ask("HELLO", "3")
                if number % 4 > 1:
                    client.ask("SELECT", 5)
            for number, client in enumerate(clients):
                client.send(b"".join(pack("SET", f"k{number}:{k}", k) for k in range(20)))
            for client in clients:
                assert client.frames(20) == [b"+OK\r\n"] * 20
            for node in nodes:
                found = ours(node)
                # of each protocol in each database, and all of them are used
                assert len(found) == 4 * connections, found
                assert sum(" db=5 " in line for line in found) == 2 * connections
        finally:
            for client in clients:
                client.close()


def test_an_upstream_that_was_lost_is_replaced_not_added() -> None:
    with redis_nodes(1) as nodes, ProxyProcess(toml(shards_of(nodes))) as proxy, proxy.raw() as client:
        for turn in range(5):
            assert client.ask("SET", "k", turn) == b"+OK\r\n"
            with Raw(nodes[0].port) as raw:
                raw.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            until(lambda: client.ask("GET", "k").startswith(b"$"), "the upstream is back")
            assert client.ask("GET", "k") == b"$1\r\n%d\r\n" % turn
        time.sleep(0.1)
        assert len(ours(nodes[0])) == 1
