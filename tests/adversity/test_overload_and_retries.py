"""More than a node answers in time is refused at once; what is sent again is bounded."""

import asyncio
import contextlib
import time

import pytest
from asking import counters, node_of, shard_of
from faults import FakeNode, Talk, obey
from servers import MemcachedNode, ProxyProcess, RedisNode, pack, redis_nodes, shards_of, toml, until, urls_of

ALONE = "health = { fail_open_ratio = 0.0 }"


class SlowNode(FakeNode):
    """A command takes 20 ms."""

    def __init__(self) -> None:
        async def slow(talk: Talk, args: list[bytes]) -> None:
            await asyncio.sleep(0.02)
            await obey(talk, args)

        super().__init__(slow)


@pytest.mark.parametrize(
    "times",
    ['timeout = "2s"\ntimeouts = { write = "10m" }', 'timeout = "1h"\ntimeouts = { read = "2s" }'],
    ids=["a write has longer", "a read has less"],
)
def test_more_than_a_node_answers_in_time_is_refused_at_once_but_a_pipeline_waits(times: str) -> None:
    """2000 writes wait, which may take long; a read may not: behind them it would be late."""
    pool = f"{times}\n{ALONE}"
    with SlowNode() as node, ProxyProcess(toml({"a": node.address}, pool=pool)) as proxy:
        crowd = [proxy.raw() for _ in range(5)]
        for raw in crowd:
            raw.send(pack("SET", "key", "value") * 400)
        with proxy.raw() as raw:
            refused = 0

            def is_refused() -> bool:
                nonlocal refused
                reply = raw.ask("GET", "key")
                refused += reply.startswith(b"-OVERLOADED shard 'a' at ")
                return reply.startswith(b"-OVERLOADED")

            until(is_refused, "the first ones are late, and it is known how fast the node is")
            crowd[0].send(pack("GET", "key"))  # behind its own
            for _ in range(5):
                assert is_refused()
            assert counters(raw)["overloaded"] == refused
        node.behave = obey
        for raw in crowd:
            assert raw.frames(3) == [b"+OK\r\n"] * 3
            raw.close()


def test_a_try_may_be_shorter_than_all_of_it() -> None:
    """attempt_timeout: who hangs is found out by the first try, and the read goes elsewhere."""
    pool = """kind = "cache"
on_shard_down = "rehash"
timeout = "1h"
attempt_timeout = "200ms"
reset_after = "1h"
health = { interval = "1h", timeout = "200ms" }"""
    with (
        redis_nodes(3) as nodes,
        ProxyProcess(toml(shards_of(nodes), pool=pool)) as proxy,
        proxy.raw() as raw,
    ):
        until(lambda: all(node_of(raw, name)["state"] == "up" for name in "abc"))
        keys = [f"key{number}" for number in range(20)]
        for key in keys:
            assert raw.ask("SET", key, "value") == b"+OK\r\n"
        nodes[0].pause()
        try:
            replies = {raw.ask("GET", key) for key in keys}
        finally:
            nodes[0].resume()
        assert replies == {b"$5\r\nvalue\r\n", b"$-1\r\n"}


def test_what_is_sent_again_is_a_small_part_of_all_requests() -> None:
    """A node that closes at each second read: once more is free, what is lost again comes from the budget."""

    async def second_closes(talk: Talk, args: list[bytes]) -> None:
        if talk.count == 2:
            talk.close()
        else:
            await obey(talk, args)

    pool = f'timeout = "1m"\nretries = 10\nretry_budget = 0.1\n{ALONE}'
    with (
        FakeNode(second_closes) as node,
        ProxyProcess(toml({"a": node.address}, pool=pool)) as proxy,
        proxy.raw() as raw,
    ):
        until(lambda: node_of(raw, "a")["state"] == "up")
        count = 30
        raw.send(pack("GET", "key") * count)
        replies = raw.frames(count)
        found = counters(raw)
        assert set(replies[:3]) == {b"$-1\r\n"} and replies[-1].startswith(b"-SHARDDOWN shard 'a' at ")
        assert found["retry_budget_empty"] > 0
        # the first time each, then ten tokens that are there at first, and a tenth of one for each request
        assert found["retries"] <= count + 10 + count / 10


@pytest.mark.parametrize("kind", [RedisNode, MemcachedNode])
def test_what_a_node_that_hangs_has_held_up_is_no_fault_of_its_stand_ins(
    kind: type[RedisNode | MemcachedNode],
) -> None:
    """Hundreds of reads are sent again at once, long after they were read: stand-ins that were all but idle
    refuse none of them, and do not count as slow."""
    pool = """kind = "cache"
on_shard_down = "rehash"
timeout = "30s"
attempt_timeout = "1s"
health = { interval = "1h", slow_call = "1s" }"""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(kind()) for _ in range(3)]
        proxy = stack.enter_context(ProxyProcess(toml(urls_of(nodes), pool=pool)))
        raw = stack.enter_context(proxy.raw())
        until(lambda: all(node_of(raw, name)["state"] == "up" for name in "abc"))
        homes = {key: shard_of(raw, key) for key in (f"key{number}" for number in range(900))}
        mine = [key for key, home in homes.items() if home == "a"]
        for _ in range(3):  # so few in a while that this is all that is known of how fast a node is
            for name in "abc":
                raw.ask("GET", next(key for key, home in homes.items() if home == name))
            time.sleep(0.15)
        nodes[0].pause()
        crowd = [stack.enter_context(proxy.raw()) for _ in range(4)]
        for client in crowd:
            client.send(b"".join(pack("GET", key) for key in mine))
        try:
            replies = {reply for client in crowd for reply in client.frames(len(mine))}
        finally:
            nodes[0].resume()
        assert replies == {b"$-1\r\n"}
        assert counters(raw)["overloaded"] == counters(raw)["timeouts"] == 0
        assert {event["node"] for event in proxy.events("node_state")} == {nodes[0].address}
        assert not proxy.events("fail_open")
