"""What is answered of a shard that is out: nothing found (`miss`), or the last value (`stale_while_down`)."""

import contextlib
import time
from collections.abc import Iterator

import pytest
from asking import key_on, node_of
from servers import ProxyProcess, Raw, RedisNode, pack, redis_nodes, shards_of, toml, until

STALE = 'kind = "cache"\nstale_while_down = "1h"'


@pytest.fixture
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(2) as nodes:
        yield nodes


def proxy_of(nodes: list[RedisNode], pool: str) -> ProxyProcess:
    return ProxyProcess(toml(shards_of(nodes), pool=pool))


def put_out(raw: Raw, node: RedisNode) -> None:
    node.kill()
    until(lambda: node_of(raw, "a")["state"] == "out", "the node is out")


def seed(node: RedisNode, *command: str) -> None:
    """Past the proxy: what is read close to a write that it has seen is not kept."""
    with node.raw() as raw:
        raw.ask(*command)


def test_reads_of_a_shard_that_is_out_find_nothing(nodes: list[RedisNode]) -> None:
    with proxy_of(nodes, 'kind = "cache"\non_shard_down = "miss"') as proxy, proxy.raw() as raw:
        a, b = key_on(raw, "a"), key_on(raw, "b")
        raw.ask("MSET", a, "1", b, "2")
        put_out(raw, nodes[0])
        assert raw.ask("GET", a) == b"$-1\r\n"
        assert raw.value("MGET", b, a, b) == ["2", None, "2"]
        assert raw.value("EXISTS", a, b) == 1
        assert raw.ask("ZRANGE", a, "0", "-1", "WITHSCORES") == b"*0\r\n"
        assert raw.ask("SET", a, "3").startswith(b"-SHARDDOWN shard 'a'")
        assert raw.ask("ZRANGE", a, "0", "-1", "NONSENSE").startswith(b"-SHARDDOWN shard 'a'")
        raw.ask("HELLO", 3)
        assert raw.ask("GET", a) == b"_\r\n"
        assert raw.ask("SMEMBERS", a) == b"~0\r\n"
        assert raw.value("GET", b) == "2"


@pytest.mark.parametrize("policy", ["error", "miss"])
def test_the_last_values_read_are_served(nodes: list[RedisNode], policy: str) -> None:
    with proxy_of(nodes, STALE + f'\non_shard_down = "{policy}"') as proxy, proxy.raw() as raw:
        a = key_on(raw, "a")
        seed(nodes[0], "SET", a, "old")
        assert raw.ask("GET", a) == b"$3\r\nold\r\n"
        seed(nodes[0], "SET", a, "new")
        assert raw.ask("get", a) == b"$3\r\nnew\r\n"
        put_out(raw, nodes[0])
        assert raw.ask("GET", a) == b"$3\r\nnew\r\n"
        raw.send(pack("GET", a) * 3)
        assert raw.frames(3) == [b"$3\r\nnew\r\n"] * 3
        missing = b"$-1\r\n" if policy == "miss" else b"-SHARDDOWN"
        assert raw.ask("HGET", a, "f").startswith(missing)
        assert raw.ask("SWAPDB", 0, 1).startswith(b"-SHARDDOWN")
        assert raw.ask("GET", a) == b"$3\r\nnew\r\n"
        assert raw.ask("SET", a, "3").startswith(b"-SHARDDOWN")
        nodes[0].start()
        until(lambda: node_of(raw, "a")["state"] == "up", "the node is back")
        assert raw.ask("GET", a) == b"$-1\r\n"


@pytest.mark.parametrize(
    "write",
    [
        [("SET", "{}", "2")],
        [("DEL", "{}", "elsewhere")],
        [("MSET", "{}", "2", "elsewhere", "3")],
        [("MULTI",), ("GET", "{}"), ("INCR", "{}"), ("EXEC",)],
        [("EVAL", "return redis.call('set', KEYS[1], 2)", "1", "{}")],
    ],
    ids=lambda write: write[0][0],
)
def test_a_write_ends_what_was_kept_of_its_keys_and_of_no_other(
    nodes: list[RedisNode], write: list[tuple[str, ...]]
) -> None:
    with proxy_of(nodes, STALE) as proxy, proxy.raw() as raw:
        a = key_on(raw, "a")
        other = f"{{{a}}}other"
        seed(nodes[0], "MSET", a, "1", other, "1")
        assert raw.ask("GET", a) == raw.ask("GET", other) == b"$1\r\n1\r\n"
        for command in write:
            assert not raw.ask(*(word.format(a) for word in command)).startswith(b"-")
        put_out(raw, nodes[0])
        assert raw.ask("GET", a).startswith(b"-SHARDDOWN shard 'a'")
        assert raw.ask("GET", other) == b"$1\r\n1\r\n"


def test_what_blocked_writes_when_it_ends(nodes: list[RedisNode]) -> None:
    """Long after it was sent: what was read meanwhile of the key that it moves to is old then."""
    with (
        proxy_of(nodes, STALE + '\ntimeout = "400ms"') as proxy,
        proxy.raw() as raw,
        proxy.raw() as waiter,
    ):
        a = key_on(raw, "a")
        source, target = f"{{{a}}}source", f"{{{a}}}target"
        seed(nodes[0], "RPUSH", target, "old")
        waiter.send(pack("BLMOVE", source, target, "LEFT", "LEFT", 0))
        until(lambda: "blocked_clients:1" in raw.value("INFO", "clients"), "it to wait")
        time.sleep(1)  # until then a write may be on its way, and nothing is kept of its keys
        assert raw.value("LRANGE", target, 0, -1) == ["old"]
        assert raw.value("RPUSH", source, "new") == 1
        assert waiter.frame() == b"$3\r\nnew\r\n"
        put_out(raw, nodes[0])
        assert raw.ask("LRANGE", target, 0, -1).startswith(b"-SHARDDOWN shard 'a'")


def test_a_write_through_another_worker_ends_what_was_kept(nodes: list[RedisNode]) -> None:
    """Each of two workers keeps what was read through it; neither serves what the other wrote."""
    config = toml(shards_of(nodes), top="workers = 2", pool=STALE)
    with ProxyProcess(config) as proxy, contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(proxy.raw()) for _ in range(16)]
        a = key_on(crowd[0], "a")
        other = f"{{{a}}}other"
        seed(nodes[0], "MSET", a, "1", other, "1")
        for raw in crowd:
            assert raw.ask("GET", a) == raw.ask("GET", other) == b"$1\r\n1\r\n"
        assert len({raw.value("CLIENT", "ID") >> 32 for raw in crowd}) == 2, "clients of both workers"
        assert crowd[0].ask("SET", a, "2") == b"+OK\r\n"
        put_out(crowd[0], nodes[0])
        for raw in crowd:
            until(lambda raw=raw: raw.ask("GET", other) == b"$1\r\n1\r\n", "its worker knows")  # type: ignore[misc]
            assert raw.ask("GET", a).startswith(b"-SHARDDOWN shard 'a'")
