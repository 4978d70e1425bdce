"""Nodes that are no Redis, break the protocol, or tell secrets: named, reset, and never anybody's reply."""

import asyncio
from pathlib import Path

import pytest
from asking import counters, key_on, node_of, one_shard
from faults import Babbler, Echo, FakeNode, Server, Talk, obey
from servers import ProxyProcess, Raw, RedisNode, pack, toml, until

SECRET = "hunter2secret"

# --- not what was expected ---

# what it is, what it says → what the client is told
STRANGERS = {
    "ssh": (
        Babbler(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"),
        "is not a Redis: it answered 'SSH-2.0-OpenSSH_9.2p1",
    ),
    "http": (
        Babbler(answer=b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n400"),
        "is not a Redis: it answered 'HTTP/1.1 400 Bad Request'",
    ),
    "garbage": (Babbler(bytes(range(128, 256)) * 10), "is not a Redis: it answered '????"),
    "memcached": (Babbler(answer=b"ERROR\r\n"), "is not a Redis: it answered 'ERROR'"),
    "closing": (Babbler(answer=None), "it closed the connection"),
    "half": (Babbler(answer=b"$100\r\nabc"), "it accepts the connection and says nothing"),
    "silent": (Babbler(), "it accepts the connection and says nothing"),
    "endless": (
        Babbler(answer=b"$500000000\r\n" + b"x" * 200_000),
        "is not a Redis: it answered '$500000000'",
    ),
    "loading": (
        FakeNode(greet={b"PING": b"-LOADING Redis is loading the dataset in memory\r\n"}),
        "refuses us: LOADING Redis is loading the dataset in memory",
    ),
}


@pytest.mark.parametrize("kind", list(STRANGERS))
def test_a_node_that_is_something_else(kind: str) -> None:
    stranger, told = STRANGERS[kind]
    with stranger, FakeNode() as node:
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
            assert node_of(raw, "a")["state"] != "up"
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

    with (
        FakeNode(once) as node,
        one_shard(node.address, 'timeout = "500ms"\nreset_after = "1s"') as (proxy, raw),
    ):
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
        assert counters(raw)["pushes_dropped"] >= 804
        assert not proxy.events("upstream_lost")


def test_names_of_channels_that_are_none_count_nothing() -> None:
    async def nameless(talk: Talk, args: list[bytes]) -> None:
        talk.write(b"*4\r\n*1\r\n+x\r\n:1\r\n$7\r\nchannel\r\n:2\r\n")

    with FakeNode(nameless) as node, one_shard(node.address) as (proxy, raw):
        for name in ("NUMSUB", "SHARDNUMSUB"):
            assert raw.value("PUBSUB", name, "channel", "other") == ["channel", 2, "other", 0]
        assert not proxy.events("handler_failed")


def test_a_reply_lost_in_the_middle() -> None:
    """Small: an error. Large, and begun: the client is closed with a reason, never given anything else."""

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
            until(lambda: [b"GET", b"large"] in node.seen)
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

    with (
        FakeNode(half) as bad,
        FakeNode() as good,
        ProxyProcess(toml({"a": bad.address, "b": good.address})) as proxy,
        proxy.raw() as raw,
    ):
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
        "process list": Path(f"/proc/{proxy.pid}/cmdline").read_text(),
    }
    return [place for place, text in places.items() if SECRET in text]


@pytest.mark.parametrize("proto", [2, 3])
def test_passwords(proto: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """None where one is needed, a wrong one, the right one."""
    with RedisNode("--requirepass", SECRET) as node:
        with one_shard(node.address) as (proxy, raw):
            raw.ask("HELLO", proto)
            until(lambda: b"NOAUTH" in raw.ask("GET", "key"), raw.ask("GET", "key").decode())
        monkeypatch.setenv("NODE_PASSWORD", f"not {SECRET}")
        with one_shard(node.address, 'password_env = "NODE_PASSWORD"') as (proxy, raw):
            raw.ask("HELLO", proto)
            until(lambda: b"WRONGPASS" in raw.ask("GET", "key"), raw.ask("GET", "key").decode())
            until(lambda: proxy.events("node_refuses"))
            assert not secrets_told(proxy, raw)
        monkeypatch.setenv("NODE_PASSWORD", SECRET)
        with one_shard(node.address, 'password_env = "NODE_PASSWORD"') as (proxy, raw):
            raw.ask("HELLO", proto)
            assert raw.ask("SET", "key", "value") == b"+OK\r\n"
            assert raw.value("GET", "key") == "value"
            until(lambda: node_of(raw, "a")["version"])
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
    with (
        FakeNode(greet=greet) as node,
        one_shard(node.address, 'password_env = "NODE_PASSWORD"\nusername = "u"') as (proxy, raw),
    ):
        raw.ask("HELLO", proto)
        until(lambda: b"refuses " in raw.ask("GET", "key"))
        until(lambda: proxy.events("node_refuses"))
        assert not secrets_told(proxy, raw)


def test_a_greeting_that_drips() -> None:
    """A byte now and then is no greeting: connect_timeout is for all of it."""

    class Dripping(Server):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for byte in b"+" + b"P" * 1000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)

    with (
        Dripping() as node,
        one_shard(node.address, 'connect_timeout = "300ms"\ntimeout = "200ms"') as (_, raw),
    ):
        until(lambda: b"accepts the connection and says nothing" in raw.ask("GET", "key"), patience=3)


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
