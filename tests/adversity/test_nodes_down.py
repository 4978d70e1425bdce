"""Nodes that are down, not Redis, locked, loading, silent: named at once, with the reason, and taken back when well."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from faults import Babbler, Echo, FakeNode, Server, Talk, bulk, obey
from servers import ProxyProcess, Raw, RedisNode, free_port, pack, redis_nodes, shards_of, toml, until

SECRET = "hunter2secret"


def key_on(raw: Raw, shard: str) -> str:
    """A key that lives there."""
    for number in range(1000):
        if json.loads(raw.value("PROXY", "LOCATE", f"key{number}"))["shard"] == shard:
            return f"key{number}"
    raise AssertionError(shard)


def node_state(raw: Raw, shard: str) -> dict[str, object]:
    found: dict[str, object] = next(
        node for node in json.loads(raw.value("PROXY", "NODES")) if node["shard"] == shard
    )
    return found


@contextmanager
def one_shard(address: str, pool: str = "") -> Iterator[tuple[ProxyProcess, Raw]]:
    with ProxyProcess(toml({"a": address}, pool=pool)) as proxy, proxy.raw() as raw:
        yield proxy, raw


# --- down, and back ---


def test_starts_with_every_node_down_and_takes_them_as_they_come() -> None:
    ports = [free_port(), free_port()]
    with ProxyProcess(toml({"a": f"127.0.0.1:{ports[0]}", "b": f"127.0.0.1:{ports[1]}"})) as proxy, proxy.raw() as raw:
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
                until(lambda: node_state(raw, "b")["state"] == "up")


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
        until(lambda: node_state(raw, "a")["in_flight"] == 60)
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
        assert 1 < node.accepted <= 20


# --- several shards ---


@pytest.mark.parametrize("partial", ["error", "nil"])
def test_part_of_the_shards_down(partial: str) -> None:
    with redis_nodes(2) as nodes, ProxyProcess(toml(shards_of(nodes), pool=f'partial = "{partial}"')) as proxy:
        with proxy.raw() as raw:
            a, b = key_on(raw, "a"), key_on(raw, "b")
            assert raw.ask("MSET", a, "1", b, "2") == b"+OK\r\n"
            nodes[0].kill()
            until(lambda: raw.ask("GET", a).startswith(b"-SHARDDOWN shard 'a'"))
            for proto, nil in ((2, None), (3, None)):
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


# --- not what was expected ---

# what it is, what it says → what the client is told
STRANGERS = {
    "ssh": (Babbler(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"), "is not a Redis: it answered 'SSH-2.0-OpenSSH_9.2p1"),
    "http": (
        Babbler(answer=b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n400"),
        "is not a Redis: it answered 'HTTP/1.1 400 Bad Request'",
    ),
    "garbage": (Babbler(bytes(range(128, 256)) * 10), "is not a Redis: it answered '????"),
    "memcached": (Babbler(answer=b"ERROR\r\n"), "is not a Redis: it answered 'ERROR'"),
    "closing": (Babbler(answer=None), "it closed the connection"),
    "half": (Babbler(answer=b"$100\r\nabc"), "it accepts the connection and says nothing"),
    "silent": (Babbler(), "it accepts the connection and says nothing"),
    "endless": (Babbler(answer=b"$500000000\r\n" + b"x" * 200_000), "is not a Redis: it answered '$500000000'"),
    "loading": (
        FakeNode(greet={b"PING": b"-LOADING Redis is loading the dataset in memory\r\n"}),
        "refuses us: LOADING Redis is loading the dataset in memory",
    ),
}


@pytest.mark.parametrize("kind", list(STRANGERS))
def test_a_node_that_is_something_else(kind: str) -> None:
    stranger, told = STRANGERS[kind]
    with stranger, RedisNode() as node:
        shards = {"a": stranger.address, "b": node.address}
        with ProxyProcess(toml(shards, pool='connect_timeout = "300ms"')) as proxy, proxy.raw() as raw:
            a, b = key_on(raw, "a"), key_on(raw, "b")
            for proto in (2, 3):
                raw.ask("HELLO", proto)
                # the first connections may be lost before anybody has asked; what is said settles
                until(lambda: told.encode() in raw.ask("GET", a), f"{raw.ask('GET', a)!r} instead of {told}")
                found = raw.ask("GET", a).decode()
                assert found.startswith(f"-SHARDDOWN shard 'a' at {stranger.address}"), found
                assert raw.ask("SET", b, "1") == b"+OK\r\n"
            assert node_state(raw, "a")["state"] != "up"
            assert any(event["node"] == stranger.address for event in proxy.events("node_down"))


@pytest.mark.parametrize("kind", ["echo", "pop3"])
def test_a_node_that_almost_speaks_resp(kind: str) -> None:
    stranger = Echo() if kind == "echo" else Babbler(b"+OK POP3 server ready\r\n", b"-ERR what\r\n")
    with stranger, one_shard(stranger.address) as (_, raw):
        assert b"is not a Redis: it answered" in raw.ask("GET", "key")


@pytest.mark.parametrize("surplus", [b"+PONG\r\n", b"$5\r\nvalue\r\n", b":1\r\n"])
def test_no_reply_answers_a_request_that_was_not_sent(surplus: bytes) -> None:
    with FakeNode(greet={b"PING": b"+PONG\r\n" + surplus}) as node, one_shard(node.address) as (_, raw):
        for _ in range(20):
            assert raw.ask("GET", "key").startswith((b"-SHARDDOWN", b"-UNKNOWN"))


# what a node answers to the first GET → what that client gets
MISDEEDS = {
    "twice": (b"$1\r\n1\r\n$1\r\n2\r\n", b"$1\r\n1\r\n"),
    "garbage": (b"nonsense\r\n", b"-SHARDDOWN shard 'a'"),
    "http": (b"HTTP/1.1 200 OK\r\n\r\n", b"-SHARDDOWN shard 'a'"),
    "bad length": (b"$abc\r\n", b"-SHARDDOWN shard 'a'"),
    "bad end": (b"$1\r\nabc", b"-SHARDDOWN shard 'a'"),
    "huge length": (b"$99999999999999\r\n", b"-SHARDDOWN shard 'a'"),
    "deep": (b"*1\r\n" * 200_000, b""),  # anything, but not a crash
}


@pytest.mark.parametrize("kind", list(MISDEEDS))
def test_a_node_that_breaks_the_protocol(kind: str) -> None:
    """The connection is reset with the reason; nothing of it reaches another request."""
    says, told = MISDEEDS[kind]

    async def once(talk: Talk, args: list[bytes]) -> None:
        if args[1] == b"bad":
            talk.write(says)
        else:
            await obey(talk, args)

    with FakeNode(once) as node, one_shard(node.address, 'timeout = "500ms"\nreset_after = "1s"') as (proxy, raw):
        raw.ask("SET", "good", "value")
        with proxy.raw() as other:
            raw.send(pack("GET", "bad"))
            if told:
                assert raw.frame().startswith(told)
            until(lambda: proxy.events("upstream_lost"))
            until(lambda: other.ask("GET", "good") == b"$5\r\nvalue\r\n")
        if kind == "twice":
            [event] = proxy.events("upstream_lost")
            assert event["reason"].startswith("it sent a reply that nothing had asked for: '$1'")


def test_unsolicited_replies_reach_nobody() -> None:
    """A node that speaks while nobody asks: reset; clients see a new connection at most."""

    async def chatty(talk: Talk, args: list[bytes]) -> None:
        await obey(talk, args)
        await talk.writer.drain()

        async def later() -> None:
            await asyncio.sleep(0.05)
            talk.write(b"+surprise\r\n")

        talk.later = asyncio.ensure_future(later())  # type: ignore[attr-defined]  # else it is collected

    with FakeNode(chatty) as node, one_shard(node.address) as (proxy, raw):
        raw.ask("SET", "key", "value")
        for _ in range(3):
            count = len(proxy.events("upstream_lost"))
            until(lambda: raw.ask("GET", "key") == b"$5\r\nvalue\r\n")
            until(lambda: len(proxy.events("upstream_lost")) > count)  # noqa: B023  # used at once
        assert all("nothing had asked for" in event["reason"] for event in proxy.events("upstream_lost"))


def test_pushes_between_replies_are_nobodys() -> None:
    push = b">3\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\nkey\r\n:1\r\n"

    async def pushing(talk: Talk, args: list[bytes]) -> None:
        talk.write(push)
        await obey(talk, args)
        talk.write(push * 3)

    with FakeNode(pushing) as node, one_shard(node.address) as (proxy, raw):
        for proto in (3, 2):
            raw.ask("HELLO", proto)
            raw.send(pack("SET", "key", "value") + pack("GET", "key") * 100)
            assert raw.frames(101) == [b"+OK\r\n"] + [b"$5\r\nvalue\r\n"] * 100
        assert json.loads(raw.value("PROXY", "INFO"))["counters"]["pushes_dropped"] >= 804
        assert not proxy.events("upstream_lost")


def test_a_reply_lost_in_the_middle() -> None:
    """Small: an error. Large, and begun: the client is closed with a reason, never given the rest of something else."""

    async def half(talk: Talk, args: list[bytes]) -> None:
        if args[1] == b"half":
            talk.write(b"$100\r\nabc")
        elif args[1] == b"large":
            talk.write(b"$1000000\r\n" + b"x" * 300_000)
        else:
            return await obey(talk, args)
        await talk.writer.drain()
        await asyncio.sleep(0.1)
        talk.close()
        return None

    with FakeNode(half) as node, one_shard(node.address) as (proxy, raw):
        raw.ask("SET", "key", "value")
        raw.send(pack("GET", "half") + pack("GET", "key"))
        assert all(frame.startswith(b"-SHARDDOWN") for frame in raw.frames(2))
        until(lambda: raw.ask("GET", "key") == b"$5\r\nvalue\r\n")
        with proxy.raw() as victim, proxy.raw() as behind:
            victim.send(pack("GET", "large") + pack("GET", "key"))
            until(lambda: node.seen[-1][1] == b"large" or node.seen[-2][1] == b"large")
            behind.send(pack("GET", "key"))
            rest = victim.rest()
            assert rest.startswith(b"$1000000\r\nxxx") and set(rest[10:]) == {ord("x")}
            assert behind.frame().startswith((b"-SHARDDOWN", b"$5\r\nvalue"))
        assert [event["reason"] for event in proxy.events("client_closed")] == [
            "a node was lost in the middle of its reply"
        ]


def test_lost_parts_do_not_stall_the_client() -> None:
    """Many fan-outs that lose a large part in mid-reply; the client is served as before."""

    async def half(talk: Talk, args: list[bytes]) -> None:
        if args[0] != b"MGET" and args[0] != b"GET":
            return await obey(talk, args)
        talk.write((b"*1\r\n" if args[0] == b"MGET" else b"") + b"$1000000\r\n" + b"x" * 200_000)
        await talk.writer.drain()
        await asyncio.sleep(0.02)
        talk.close()
        return None

    with FakeNode(half) as bad, FakeNode() as good:
        with ProxyProcess(toml({"a": bad.address, "b": good.address})) as proxy, proxy.raw() as raw:
            raw.socket.settimeout(5)
            a, b = key_on(raw, "a"), key_on(raw, "b")
            raw.ask("SET", b, "value")
            for _ in range(20):
                until(lambda: b"lost" in raw.ask("MGET", a, b) or b"closed" in raw.ask("MGET", a, b))
            assert raw.value("GET", b) == "value"


# --- passwords ---


def secrets_told(proxy: ProxyProcess, raw: Raw) -> list[str]:
    """Where the secret can be read."""
    places = {
        "log": proxy.log_text(),
        "PROXY NODES": raw.value("PROXY", "NODES"),
        "PROXY TOPOLOGY": raw.value("PROXY", "TOPOLOGY"),
        "PROXY INFO": raw.value("PROXY", "INFO"),
        "INFO": raw.value("INFO"),
        "GET": str(raw.value("GET", "key")),
        "process list": open(f"/proc/{proxy.pid}/cmdline").read(),
    }
    return [place for place, text in places.items() if SECRET in text]


@pytest.mark.parametrize("proto", [2, 3])
def test_passwords(proto: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """None where one is needed, a wrong one, the right one."""
    with RedisNode("--requirepass", SECRET) as node:
        with one_shard(node.address) as (proxy, raw):
            raw.ask("HELLO", proto)
            until(lambda: b"refuses us: NOAUTH" in raw.ask("GET", "key"), raw.ask("GET", "key").decode())
        monkeypatch.setenv("NODE_PASSWORD", f"not {SECRET}")
        with one_shard(node.address, 'password_env = "NODE_PASSWORD"') as (proxy, raw):
            raw.ask("HELLO", proto)
            until(lambda: b"refuses us: WRONGPASS" in raw.ask("GET", "key"), raw.ask("GET", "key").decode())
            until(lambda: proxy.events("node_refuses"))
            assert not secrets_told(proxy, raw)
        monkeypatch.setenv("NODE_PASSWORD", SECRET)
        with one_shard(node.address, 'password_env = "NODE_PASSWORD"') as (proxy, raw):
            raw.ask("HELLO", proto)
            assert raw.ask("SET", "key", "value") == b"+OK\r\n"
            assert raw.value("GET", "key") == "value"
            until(lambda: node_state(raw, "a")["version"])
            assert not secrets_told(proxy, raw)


@pytest.mark.parametrize("proto", [2, 3])
def test_a_node_that_repeats_the_password(proto: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Redis 5 does with HELLO, and every Redis with an AUTH that was renamed."""
    monkeypatch.setenv("NODE_PASSWORD", SECRET)
    unknown = "-ERR unknown command `{}`, with args beginning with: {}`" + SECRET + "`, \r\n"
    greet = {
        b"HELLO": unknown.format("HELLO", "`3`, `AUTH`, `u`, ").encode(),
        b"AUTH": unknown.format("AUTH", "").encode(),
    }
    with FakeNode(greet=greet) as node, one_shard(
        node.address, 'password_env = "NODE_PASSWORD"\nusername = "u"'
    ) as (proxy, raw):
        raw.ask("HELLO", proto)
        until(lambda: b"refuses us" in raw.ask("GET", "key"))
        until(lambda: proxy.events("node_refuses"))
        assert not secrets_told(proxy, raw)


# --- ordinary trouble ---


def test_a_node_that_closes_idle_connections() -> None:
    """`timeout 1` on the node: the next command finds a new connection and no client sees an error."""
    with RedisNode("--timeout", "1") as node, one_shard(node.address) as (proxy, raw):
        for turn in range(2):
            assert raw.ask("SET", "key", turn) == b"+OK\r\n"
            until(lambda: len(proxy.events("upstream_lost")) > turn)  # noqa: B023  # used at once
            assert raw.value("GET", "key") == str(turn)


def test_a_node_that_was_loading_is_taken_when_it_has() -> None:
    with FakeNode(greet={b"PING": b"-LOADING Redis is loading the dataset in memory\r\n"}) as node:
        with one_shard(node.address) as (_, raw):
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


@pytest.mark.xfail(strict=True, reason="A15: any byte extends connect_timeout")
def test_a_greeting_that_drips() -> None:
    """A byte now and then is no greeting: connect_timeout is for all of it."""

    class Dripping(Server):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for byte in b"+" + b"P" * 1000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)

    with Dripping() as node, one_shard(node.address, 'connect_timeout = "300ms"\ntimeout = "200ms"') as (_, raw):
        until(lambda: b"accepts the connection and says nothing" in raw.ask("GET", "key"), patience=8)


def test_attributes_belong_to_the_reply_after_them() -> None:
    attribute = b"|1\r\n+ttl\r\n:3600\r\n"

    async def attributed(talk: Talk, args: list[bytes]) -> None:
        talk.write(attribute)
        await obey(talk, args)

    with FakeNode(attributed) as node, one_shard(node.address) as (_, raw):
        raw.ask("HELLO", 3)
        raw.send(pack("SET", "key", "value") + pack("GET", "key") * 3 + pack("ECHO", "end"))
        assert raw.frames(5) == [
            attribute + b"+OK\r\n", *[attribute + b"$5\r\nvalue\r\n"] * 3, b"$3\r\nend\r\n"
        ]  # fmt: skip


def test_errors_of_commands_that_want_no_reply() -> None:
    """CLIENT REPLY OFF and SKIP hold for our own errors too, alone and in fan-outs; what follows is in its place."""
    with RedisNode() as node, ProxyProcess(toml({"down": f"127.0.0.1:{free_port()}", "up": node.address})) as proxy:
        with proxy.raw() as raw:
            down, up = key_on(raw, "down"), key_on(raw, "up")
            until(lambda: raw.ask("GET", down).startswith(b"-SHARDDOWN"))
            skip, off, on = (pack("CLIENT", "REPLY", mode) for mode in ("SKIP", "OFF", "ON"))
            raw.send(skip + pack("GET", down) + pack("ECHO", "1") + skip + pack("MGET", down, up) + pack("ECHO", "2"))
            raw.send(off + pack("GET", down) + pack("SET", up, "value") + pack("DEL", down, up) + on + pack("GET", up))
            assert raw.frames(4) == [b"$1\r\n1\r\n", b"$1\r\n2\r\n", b"+OK\r\n", b"$-1\r\n"]


def test_partial_nil_of_a_shard_that_is_slow() -> None:
    with redis_nodes(2) as nodes:
        pool = 'partial = "nil"\ntimeout = "300ms"\nreset_after = "1h"'
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
    """Sixty shards, most of them down: MGET over all names every one that failed, or the first; those up are served."""
    ports = [free_port() for _ in range(59)]
    with FakeNode() as node:
        shards = {f"down{number}": f"127.0.0.1:{port}" for number, port in enumerate(ports)} | {"up": node.address}
        with ProxyProcess(toml(shards, pool='partial = "nil"')) as proxy, proxy.raw() as raw:
            keys = [f"key{number}" for number in range(600)]
            up = [
                key for key in keys if json.loads(raw.value("PROXY", "LOCATE", key))["shard"] == "up"
            ]
            for key in up:
                assert raw.ask("SET", key, f"of {key}") == b"+OK\r\n"
            until(lambda: isinstance(raw.value("MGET", *keys), list))
            found = raw.value("MGET", *keys)
            assert found == [f"of {key}" if key in up else None for key in keys]
            assert bulk(b"of " + up[0].encode()) == raw.ask("GET", up[0])
