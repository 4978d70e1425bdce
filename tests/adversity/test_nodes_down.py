"""Nodes that are down, loading, busy, slow: named at once with the reason, taken back when they are well."""

import asyncio
import time

import pytest
from asking import in_flight, key_on, node_of, one_shard, shard_of
from faults import FakeNode, Server, Talk, bulk
from servers import ProxyProcess, RedisNode, free_port, free_ports, pack, redis_nodes, shards_of, toml, until

# --- down, and back ---


def test_starts_with_every_node_down_and_takes_them_as_they_come() -> None:
    ports = free_ports(2)
    with (
        ProxyProcess(toml({"a": f"127.0.0.1:{ports[0]}", "b": f"127.0.0.1:{ports[1]}"})) as proxy,
        proxy.raw() as raw,
    ):
        assert raw.ask("PING") == b"+PONG\r\n"
        for shard, port in zip("ab", ports, strict=True):
            key = key_on(raw, shard)
            found = raw.ask("GET", key).decode()
            assert found.startswith(f"-SHARDDOWN shard '{shard}' at 127.0.0.1:{port}"), found
            assert "Connection refused" in found
        a, b = key_on(raw, "a"), key_on(raw, "b")
        with RedisNode(port=ports[0]):
            until(lambda: raw.ask("SET", a, "there") == b"+OK\r\n")
            assert raw.ask("GET", b).startswith(b"-SHARDDOWN shard 'b'")
            with RedisNode(port=ports[1]):
                until(lambda: raw.ask("SET", b, "too") == b"+OK\r\n")
                assert raw.value("MGET", b, a) == ["too", "there"]
                until(lambda: node_of(raw, "b")["state"] == "up")


def test_a_node_that_dies_and_comes_back() -> None:
    with redis_nodes(2) as nodes, ProxyProcess(toml(shards_of(nodes))) as proxy, proxy.raw() as raw:
        a, b = key_on(raw, "a"), key_on(raw, "b")
        raw.ask("MSET", a, "1", b, "2")
        for _ in range(3):
            nodes[0].kill()
            until(lambda: raw.ask("SET", a, "1").startswith(b"-SHARDDOWN shard 'a'"))
            for _ in range(50):
                assert raw.value("GET", b) == "2"
                assert raw.ask("GET", a).startswith(b"-SHARDDOWN")
            nodes[0].start()
            until(lambda: raw.ask("SET", a, "1") == b"+OK\r\n")
        reasons = [event["reason"] for event in proxy.events("upstream_lost")]
        assert reasons == ["it closed the connection"] * 3


def test_down_is_said_at_once_to_whoever_waits() -> None:
    """What is in flight when a node dies: UNKNOWN; nobody waits for a deadline (an hour)."""
    with RedisNode() as node, one_shard(node.address, 'timeout = "1h"') as (proxy, raw):
        raw.ask("SET", "key", "1")
        node.pause()
        crowd = [proxy.raw() for _ in range(20)]
        for client in crowd:
            client.send(pack("INCR", "key") * 3)
        until(lambda: in_flight(raw) == 60)
        node.kill()
        for client in crowd:
            for frame in client.frames(3):
                assert frame.startswith(b"-UNKNOWN outcome: shard 'a' at 127.0.0.1"), frame
            client.close()


def test_reconnects_are_spaced_out() -> None:
    """However many ask for it, and for how long: some connections, then fewer; not one for each request."""

    class Closing(Server):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)

    with Closing() as node, one_shard(node.address) as (_, raw):
        for _ in range(2000):
            assert raw.ask("GET", "key").startswith((b"-SHARDDOWN", b"-UNKNOWN"))
        tried = node.accepted
    assert tried < 100


def test_a_node_that_greets_and_closes_is_not_stormed() -> None:
    class Closing(FakeNode):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if b"PING" in await reader.read(100):
                writer.write(b"+PONG\r\n")

    with Closing() as node, one_shard(node.address) as (_, raw):
        raw.ask("GET", "key")
        time.sleep(3)
        assert 1 < node.accepted <= 40  # waits are by chance, from 0 on; a storm has thousands


# --- several shards ---


@pytest.mark.parametrize("partial", ["error", "nil"])
def test_part_of_the_shards_down(partial: str) -> None:
    with (
        redis_nodes(2) as nodes,
        ProxyProcess(toml(shards_of(nodes), pool=f'partial = "{partial}"')) as proxy,
        proxy.raw() as raw,
    ):
        a, b = key_on(raw, "a"), key_on(raw, "b")
        assert raw.ask("MSET", a, "1", b, "2") == b"+OK\r\n"
        nodes[0].kill()
        until(lambda: raw.ask("GET", a).startswith(b"-SHARDDOWN shard 'a'"))
        for proto, _nil in ((2, None), (3, None)):
            raw.ask("HELLO", proto)
            until(lambda: raw.ask("GET", a).startswith(b"-SHARDDOWN shard 'a'"))
            for name in ("MGET", "EXISTS", "TOUCH", "DEL", "UNLINK"):
                raw.ask("SET", b, "2")
                found = raw.ask(name, b, a, b)
                if partial == "error":
                    assert found.startswith(b"-SHARDDOWN shard 'a'"), found
                    assert b"[failed on: a; done on: b]" in found
                elif name == "MGET":
                    null = b"_\r\n" if proto == 3 else b"$-1\r\n"
                    assert found == b"*3\r\n$1\r\n2\r\n" + null + b"$1\r\n2\r\n"
                else:
                    assert found == (b":1\r\n" if name in ("DEL", "UNLINK") else b":2\r\n")
            # part of it was written: always an error
            found = raw.ask("MSET", a, "x", b, "y")
            assert found.startswith(b"-SHARDDOWN shard 'a'") and b"[failed on: a; done on: b]" in found
            assert raw.value("GET", b) == "y"
        nodes[1].kill()
        until(lambda: raw.ask("GET", b).startswith(b"-SHARDDOWN shard 'b'"))
        found = raw.ask("DEL", a, b)
        assert found.startswith(b"-SHARDDOWN") and b"[failed on: a, b]" in found


# --- ordinary trouble ---


def test_a_node_that_closes_idle_connections() -> None:
    """`timeout 1` on the node: the next command finds a new connection and no client sees an error."""
    with RedisNode("--timeout", "1") as node, one_shard(node.address) as (proxy, raw):
        for turn in range(2):
            assert raw.ask("SET", "key", turn) == b"+OK\r\n"
            until(lambda: len(proxy.events("upstream_lost")) > turn)  # noqa: B023  # used at once
            assert raw.value("GET", "key") == str(turn)


def test_a_node_that_was_loading_is_taken_when_it_has() -> None:
    with (
        FakeNode(greet={b"PING": b"-LOADING Redis is loading the dataset in memory\r\n"}) as node,
        one_shard(node.address) as (_, raw),
    ):
        until(lambda: b"LOADING" in raw.ask("SET", "key", "value"))
        node.greet[b"PING"] = b"+PONG\r\n"
        until(lambda: raw.ask("SET", "key", "value") == b"+OK\r\n")


def test_a_busy_node_says_so_itself() -> None:
    """Its own error replies go to whoever asked: LOADING, OOM, MISCONF, BUSY; the connection stays."""

    async def busy(talk: Talk, args: list[bytes]) -> None:
        talk.write(b"-BUSY Redis is busy running a script.\r\n")

    with FakeNode(busy) as node, one_shard(node.address) as (proxy, raw):
        raw.send(pack("GET", "key") + pack("SET", "key", "value"))
        assert raw.frames(2) == [b"-BUSY Redis is busy running a script.\r\n"] * 2
        assert not proxy.events("upstream_lost")


def test_errors_of_commands_that_want_no_reply() -> None:
    """CLIENT REPLY OFF and SKIP hold for our own errors too, alone and in fan-outs."""
    with (
        RedisNode() as node,
        ProxyProcess(toml({"down": f"127.0.0.1:{free_port()}", "up": node.address})) as proxy,
        proxy.raw() as raw,
    ):
        down, up = key_on(raw, "down"), key_on(raw, "up")
        until(lambda: raw.ask("GET", down).startswith(b"-SHARDDOWN"))
        skip, off, on = (pack("CLIENT", "REPLY", mode) for mode in ("SKIP", "OFF", "ON"))
        raw.send(
            skip + pack("GET", down) + pack("ECHO", "1") + skip + pack("MGET", down, up) + pack("ECHO", "2")
        )
        raw.send(
            off + pack("GET", down) + pack("SET", up, "value") + pack("DEL", down, up) + on + pack("GET", up)
        )
        assert raw.frames(4) == [b"$1\r\n1\r\n", b"$1\r\n2\r\n", b"+OK\r\n", b"$-1\r\n"]


def test_partial_nil_of_a_shard_that_is_slow() -> None:
    with redis_nodes(2) as nodes:
        # it stays as it is: that it is put out is another matter
        pool = 'partial = "nil"\ntimeout = "300ms"\nreset_after = "1h"\nhealth = { fail_open_ratio = 0.0 }'
        with ProxyProcess(toml(shards_of(nodes), pool=pool)) as proxy, proxy.raw() as raw:
            a, b = key_on(raw, "a"), key_on(raw, "b")
            raw.ask("MSET", a, "1", b, "2")
            nodes[0].pause()
            assert raw.value("MGET", a, b, a) == [None, "2", None]
            assert raw.value("EXISTS", a, b) == 1
            found = raw.ask("MSET", a, "3", b, "4")
            assert found.startswith(b"-TIMEOUT shard 'a'") and b"done on: b" in found
            nodes[0].resume()
            assert raw.value("MGET", a, b, a) == ["3", "4", "3"]


def test_many_shards_down_of_many() -> None:
    """Sixty shards, all but one down: MGET over all of them has that one's values and nil for the rest."""
    with FakeNode() as node:  # first: it must not get one of the ports that are to be free
        ports = free_ports(59)
        shards = {f"down{number}": f"127.0.0.1:{port}" for number, port in enumerate(ports)} | {
            "up": node.address
        }
        with ProxyProcess(toml(shards, pool='partial = "nil"')) as proxy, proxy.raw() as raw:
            keys = [f"key{number}" for number in range(600)]
            up = [key for key in keys if shard_of(raw, key) == "up"]
            for key in up:
                assert raw.ask("SET", key, f"of {key}") == b"+OK\r\n"
            until(lambda: isinstance(raw.value("MGET", *keys), list))
            found = raw.value("MGET", *keys)
            assert found == [f"of {key}" if key in up else None for key in keys]
            assert bulk(b"of " + up[0].encode()) == raw.ask("GET", up[0])
