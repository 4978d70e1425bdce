"""Subscriptions: what a client is told when its channel's node goes out before it has confirmed."""

import asyncio
from types import SimpleNamespace

from shardproxy.core.topology import Node
from shardproxy.handlers.subscriptions import Subscriptions


async def test_all_nodes_of_a_pattern_go_out_while_it_waits() -> None:
    node = Node("10.0.0.1:6379", "out", "Connection refused")
    shard = SimpleNamespace(name="a", node=node)
    pool = SimpleNamespace(timeout=0.01, shards=[shard], memcached=frozenset())
    reactor = SimpleNamespace(placed=lambda: [(0, "a")], node_of=lambda name: 0)
    server = SimpleNamespace(topology=SimpleNamespace(pools=[pool]), reactor=reactor)
    subscriptions = Subscriptions(server)  # type: ignore[arg-type]  # fakes
    waiting = SimpleNamespace(name=b"news*", nodes=frozenset({0}))

    async def said(*_: object) -> bytes:
        waiting.nodes = frozenset()
        await asyncio.Event().wait()
        return b""

    subscriptions.said = said  # type: ignore[method-assign]
    error = await asyncio.wait_for(subscriptions.confirmed([waiting]), 30)  # type: ignore[list-item]
    assert b"shard 'a' at 10.0.0.1:6379" in error
