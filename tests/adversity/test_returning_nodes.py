"""A node that returns, or answers strangely: no old value is served, and nothing is taken for its death.

The nine steps of twemproxy's issue #604, and the same over two outages, of Redis nodes and of memcacheds; a
node that loads, is read-only, is full, has no room for clients, is paused, or speaks nonsense.
"""

import contextlib
from collections.abc import Iterator, Sequence

import pytest
from asking import counters, key_on, node_of, shard_of
from faults import Behave, FakeNode, Talk, obey
from servers import (
    MemcachedNode,
    Node,
    ProxyProcess,
    Raw,
    RedisNode,
    pack,
    redis_nodes,
    shards_of,
    toml,
    until,
    urls_of,
)
from toxics import FaultProxy, Latency, Link, Send, Toxic

HEALTH = 'timeout = "500ms"\nhealth = { interval = "500ms" }'


def rehash(on_return: str) -> str:
    return f'kind = "cache"\non_shard_down = "rehash"\non_return = "{on_return}"\n{HEALTH}'


def becomes(raw: Raw, shard: str, state: str) -> None:
    until(
        lambda: (node_of(raw, shard)["state"], node_of(raw, shard)["swept"]) == (state, True),
        f"{shard} to be {state} and swept",
    )


def goes(node: Node, raw: Raw, shard: str, key: str) -> None:
    """Hangs, with its content, until it is out."""
    node.pause()
    raw.ask("GET", key)
    becomes(raw, shard, "out")


@pytest.fixture(params=[RedisNode, MemcachedNode], ids=["redis", "memcached"])
def kind(request: pytest.FixtureRequest) -> type[RedisNode | MemcachedNode]:
    found: type[RedisNode | MemcachedNode] = request.param
    return found


@contextlib.contextmanager
def nodes_of_kind(
    kind: type[RedisNode | MemcachedNode], count: int
) -> Iterator[Sequence[RedisNode | MemcachedNode]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(kind()) for _ in range(count)]


@contextlib.contextmanager
def client_elsewhere(proxy: ProxyProcess, raw: Raw, workers: int) -> Iterator[Raw]:
    """Of another worker than this one's, if there are several."""

    def worker_of(client: Raw) -> int:
        return int(client.value("CLIENT", "ID")) >> 32

    until(lambda: workers == 1 or len(proxy.events("worker_ready")) == workers)
    with contextlib.ExitStack() as stack:

        def found() -> Raw | None:
            client = stack.enter_context(proxy.raw())  # the kernel spreads them
            return client if workers == 1 or worker_of(client) != worker_of(raw) else None

        yield until(found, "a client of another worker")


# --- #604 ---


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("on_return", ["invalidate", "flush", "keep"])
def test_twemproxy_604(kind: type[RedisNode | MemcachedNode], on_return: str, workers: int) -> None:
    """With "keep" the old values do come back: these steps can fail."""
    old = on_return == "keep"
    with nodes_of_kind(kind, 3) as nodes:
        config = toml(urls_of(nodes), top=f"workers = {workers}", pool=rehash(on_return))
        with (
            ProxyProcess(config) as proxy,
            proxy.raw() as raw,
            client_elsewhere(proxy, raw, workers) as other,
        ):
            for shard in "abc":
                becomes(raw, shard, "up")
            key = key_on(raw, "a")
            assert raw.ask("SET", key, "first") == b"+OK\r\n"  # 1. k is on A
            assert other.value("GET", key) == "first"  # 2.
            goes(nodes[0], raw, "a", key)  # 3. A is out
            becomes(other, "a", "out")
            assert other.value("GET", key) is None  # 4. a stand-in is asked
            assert other.ask("SET", key, "second") == b"+OK\r\n"  # 5. k changes there
            assert raw.value("GET", key) == "second"  # 6.
            nodes[0].resume()  # 7. A returns
            for client in (raw, other):
                becomes(client, "a", "up")  # 8.
            for client in (raw, other):
                assert client.value("GET", key) == ("first" if old else None)  # 9. not A's old value
            # the second outage: what the stand-in has kept of the first must not be seen either
            assert raw.ask("SET", key, "third") == b"+OK\r\n"
            goes(nodes[0], raw, "a", key)
            becomes(other, "a", "out")
            for client in (raw, other):
                assert client.value("GET", key) == ("second" if old else None)
            assert other.ask("DEL", key) == (b":1\r\n" if old else b":0\r\n")
            nodes[0].resume()
            becomes(raw, "a", "up")
            assert raw.value("GET", key) == ("third" if old else None)  # deleted meanwhile


@pytest.mark.parametrize("on_return", ["invalidate", "flush"])
def test_bytes_in_a_hung_nodes_sockets_do_not_run_over_what_came_later(
    kind: type[RedisNode | MemcachedNode], on_return: str
) -> None:
    """Writes, some megabytes, that were sent to a node when it hung; written elsewhere; the node wakes."""
    with nodes_of_kind(kind, 3) as nodes:
        config = toml(urls_of(nodes), pool=rehash(on_return))
        with ProxyProcess(config) as proxy, proxy.raw() as raw:
            for shard in "abc":
                becomes(raw, shard, "up")
            keys = [key for number in range(300) if shard_of(raw, key := f"key:{number}") == "a"]
            raw.send(b"".join(pack("SET", key, "before") for key in keys))
            assert raw.frames(len(keys)) == [b"+OK\r\n"] * len(keys)
            nodes[0].pause()
            raw.send(b"".join(pack("SET", key, "old" * 10_000) for key in keys))
            frames = raw.frames(len(keys))
            for frame in frames:
                assert frame.startswith((b"-TIMEOUT", b"-UNKNOWN", b"-OVERLOADED", b"-SHARDDOWN", b"+OK")), (
                    frame
                )
            assert any(b"may still run" in frame or b"may have run" in frame for frame in frames)
            becomes(raw, "a", "out")
            raw.send(b"".join(pack("SET", key, "new") for key in keys))
            assert raw.frames(len(keys)) == [b"+OK\r\n"] * len(keys)
            nodes[0].resume()
            while node_of(raw, "a")["state"] != "up":
                assert set(raw.value("MGET", *keys)) <= {"new", None}
            assert set(raw.value("MGET", *keys)) <= {"new", None}


def test_a_write_that_a_slow_network_holds_does_not_survive_on_a_stand_in(
    kind: type[RedisNode | MemcachedNode],
) -> None:
    """It was given up, and runs after the shard is back; the next outage must not serve it."""
    with nodes_of_kind(kind, 2) as nodes, FaultProxy(nodes[1].port) as network:
        shards = {"a": nodes[0].url, "b": f"{kind.scheme}://{network.address}"}
        with ProxyProcess(toml(shards, pool=rehash("invalidate"))) as proxy, proxy.raw() as raw:
            for shard in "ab":
                becomes(raw, shard, "up")
            key = key_on(raw, "a")
            goes(nodes[0], raw, "a", key)
            assert raw.ask("SET", key, "first") == b"+OK\r\n"
            slow = network.add(Latency(3.0))
            raw.send(pack("SET", key, "held"))
            assert raw.frame().startswith(b"-TIMEOUT ")
            network.remove(slow)  # what comes now, on other connections, is quicker than what it holds
            nodes[0].resume()
            becomes(raw, "a", "up")
            assert key not in nodes[1].keys("key")
            assert raw.ask("SET", key, "last") == b"+OK\r\n"
            goes(nodes[0], raw, "a", key)
            assert raw.value("GET", key) is None
            nodes[0].resume()


class Undeleting(Toxic):
    """What has one of these words in it never arrives, and its connection ends."""

    side = "up"

    async def chunk(self, link: Link, data: bytes, send: Send) -> None:
        if any(word in data for word in (b"UNLINK", b"SCAN", b"md ", b"lru_crawler")):
            link.close()
        else:
            await send(data)


@pytest.mark.parametrize("on_return", ["invalidate", "flush"])
def test_an_outage_before_the_last_one_is_swept_shows_nothing_of_it(
    kind: type[RedisNode | MemcachedNode], on_return: str
) -> None:
    """What b keeps of a's keys could not be deleted when a goes again: they are read and written nowhere."""
    with nodes_of_kind(kind, 2) as nodes, FaultProxy(nodes[1].port) as network:
        shards = {"a": nodes[0].url, "b": f"{kind.scheme}://{network.address}"}
        with ProxyProcess(toml(shards, pool=rehash(on_return))) as proxy, proxy.raw() as raw:
            for shard in "ab":
                becomes(raw, shard, "up")
            key = key_on(raw, "a")
            goes(nodes[0], raw, "a", key)
            assert raw.ask("SET", key, "first") == b"+OK\r\n"
            refusing = network.add(Undeleting())
            nodes[0].resume()
            until(lambda: proxy.events("not_swept"))
            assert raw.ask("SET", key, "last") == b"+OK\r\n"
            nodes[0].pause()
            raw.ask("GET", key)
            until(lambda: node_of(raw, "a")["state"] == "out")
            assert raw.value("GET", key) is None
            assert raw.ask("SET", key, "nowhere").startswith(b"-SHARDDOWN shard 'a' at ")
            assert key in nodes[1].keys("key")
            network.remove(refusing)
            becomes(raw, "a", "out")
            assert raw.value("GET", key) is None
            assert key not in nodes[1].keys("key")
            assert raw.ask("SET", key, "here") == b"+OK\r\n"
            assert key in nodes[1].keys("key")
            nodes[0].resume()


# --- nodes that are there, and not well ---


def test_a_full_node_is_not_a_dead_one() -> None:
    """OOM is what Redis says to writes; it passes, and says nothing about health."""
    with RedisNode("--maxmemory", "1mb", "--maxmemory-policy", "noeviction") as full, RedisNode() as node:
        config = toml({"a": full.address, "b": node.address}, pool=rehash("invalidate"))
        with ProxyProcess(config) as proxy, proxy.raw() as raw:
            becomes(raw, "a", "up")
            key = key_on(raw, "a")
            for _ in range(200):
                assert raw.ask("SET", key, "x").startswith(b"-OOM")
                assert raw.ask("GET", key) == b"$-1\r\n"
            assert node_of(raw, "a")["state"] == "up"
            states = [e["state"] for e in proxy.events("node_state") if e["node"] == full.address]
            assert states == []
            assert counters(raw)["rehashed"] == 0


ANSWERS = {
    "LOADING": b"-LOADING Redis is loading the dataset in memory\r\n",
    "READONLY": b"-READONLY You can't write against a read only replica.\r\n",
    "MASTERDOWN": b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
}


@pytest.mark.parametrize("code", ANSWERS)
def test_what_a_node_says_of_itself_is_evidence(code: str) -> None:
    """Suspect with that reason; its PING says the same: out, and its keys are served; well again: back."""
    ill = False

    async def behave(talk: Talk, args: list[bytes]) -> None:
        if ill:
            talk.write(ANSWERS[code])
        else:
            await obey(talk, args)

    with FakeNode(behave) as fake, redis_nodes(2) as nodes:
        shards = {"a": fake.address} | {name: node.address for name, node in zip("bc", nodes, strict=True)}
        with ProxyProcess(toml(shards, pool=rehash("invalidate"))) as proxy, proxy.raw() as raw:
            becomes(raw, "a", "up")
            key = key_on(raw, "a")
            assert raw.ask("SET", key, "1") == b"+OK\r\n"
            ill = True
            fake.greet[b"PING"] = ANSWERS[code]
            for _ in range(20):
                raw.ask("SET", key, "2")
            becomes(raw, "a", "out")
            assert code in node_of(raw, "a")["reason"]
            assert raw.ask("SET", key, "2") == b"+OK\r\n"
            assert raw.value("GET", key) == "2"
            ill = False
            fake.greet[b"PING"] = b"+PONG\r\n"
            becomes(raw, "a", "up")
            assert [b"GET", key.encode()] not in fake.seen[-1:]
            raw.ask("GET", key)
            assert fake.seen[-1] == [b"GET", key.encode()]


async def half(talk: Talk, args: list[bytes]) -> None:
    talk.write(b"$100\r\nabc")
    await talk.writer.drain()
    talk.close()


async def nonsense(talk: Talk, args: list[bytes]) -> None:
    talk.write(b"nonsense\r\n")


async def twice(talk: Talk, args: list[bytes]) -> None:
    """In one piece: a second reply that comes later is the next request's, as far as anyone can tell."""
    talk.write((b"+OK\r\n" if args[0] == b"SET" else b"$-1\r\n") * 2)


async def closing(talk: Talk, args: list[bytes]) -> None:
    talk.close()


@pytest.mark.parametrize("behave", [half, nonsense, twice, closing])
def test_a_node_that_answers_badly_is_asked_a_few_times_and_written_once(behave: Behave) -> None:
    """It pings well, so it is not out; a read is sent again twice at most, a write never."""
    with FakeNode() as fake, redis_nodes(2) as nodes:
        shards = {"a": fake.address} | {name: node.address for name, node in zip("bc", nodes, strict=True)}
        with ProxyProcess(toml(shards, pool=rehash("invalidate"))) as proxy, proxy.raw() as raw:
            becomes(raw, "a", "up")
            key, other = key_on(raw, "a"), key_on(raw, "b")
            raw.ask("SET", other, "well")
            fake.behave = behave
            for number in range(5):
                count = len(fake.seen)
                reply = raw.ask("SET", key, str(number))
                written = [
                    args for args in fake.seen[count:] if args[0] == b"SET" and args[1] == key.encode()
                ]
                assert len(written) <= 1, written
                assert reply.startswith((b"+OK", b"-UNKNOWN", b"-SHARDDOWN", b"-TIMEOUT")), reply
                count = len(fake.seen)
                reply = raw.ask("GET", key)
                assert reply.startswith((b"$", b"-SHARDDOWN", b"-UNKNOWN", b"-TIMEOUT")), reply
                assert not reply.startswith(b"$4\r\nwell")
                assert fake.seen[count:].count([b"GET", key.encode()]) <= 3
                assert raw.value("GET", other) == "well"


@pytest.mark.parametrize("how", ["CLIENT PAUSE", "DEBUG SLEEP"])
def test_a_pause_longer_than_the_deadline(how: str) -> None:
    """Two errors at most for one that reads; then it is out, or back; nothing is wrong afterwards."""
    with redis_nodes(3) as nodes:
        config = toml(shards_of(nodes), pool=rehash("invalidate"))
        with ProxyProcess(config) as proxy, proxy.raw() as raw, nodes[0].raw() as direct:
            for shard in "abc":
                becomes(raw, shard, "up")
            key = key_on(raw, "a")
            raw.ask("SET", key, "before")
            direct.send(
                pack("CLIENT", "PAUSE", 2500, "ALL") if "PAUSE" in how else pack("DEBUG", "SLEEP", 2.5)
            )
            replies = [raw.ask("GET", key) for _ in range(200)]
            assert sum(reply.startswith(b"-") for reply in replies) <= 2
            becomes(raw, "a", "up")
            assert raw.value("GET", key) in ("before", None)


def test_a_node_without_room_for_clients() -> None:
    """The connections that there are go on; what cannot connect is told why."""
    with RedisNode("--maxclients", "3") as tight, RedisNode() as node:
        crowd = [tight.raw() for _ in range(3)]
        until(lambda: crowd[-1].ask("PING") == b"+PONG\r\n")
        config = toml({"a": tight.address, "b": node.address}, pool=HEALTH)
        with ProxyProcess(config) as proxy, proxy.raw() as raw:
            key, other = key_on(raw, "a"), key_on(raw, "b")
            until(lambda: b"max number of clients" in raw.ask("GET", key), "the reason")
            assert raw.ask("SET", other, "1") == b"+OK\r\n"
            for client in crowd:
                client.close()
            becomes(raw, "a", "up")
            until(lambda: raw.ask("SET", key, "1") == b"+OK\r\n")


def test_what_asks_a_node_that_fail_open_keeps_is_told_why_at_once() -> None:
    """One of three is out, and its keys are elsewhere; on the next one that dies no verdict is coming."""
    with (
        redis_nodes(3) as nodes,
        ProxyProcess(toml(shards_of(nodes), pool=rehash("keep"))) as proxy,
        proxy.raw() as raw,
    ):
        for shard in "abc":
            becomes(raw, shard, "up")
        b = key_on(raw, "b")
        nodes[0].kill()
        becomes(raw, "a", "out")
        nodes[1].kill()
        becomes(raw, "b", "unknown")
        assert raw.ask("GET", b).startswith(b"-SHARDDOWN shard 'b'")
        nodes[1].start()
        becomes(raw, "b", "up")
        assert raw.ask("SET", b, "1") == b"+OK\r\n"


def test_most_nodes_look_down_none_is_put_out_of_those_that_have_not_moved() -> None:
    """Fail open: with two of three silent the prober is the likelier fault."""
    with redis_nodes(3) as nodes:
        pool = f'kind = "cache"\non_shard_down = "error"\n{HEALTH}'
        with ProxyProcess(toml(shards_of(nodes), pool=pool)) as proxy, proxy.raw() as raw:
            for shard in "abc":
                becomes(raw, shard, "up")
            a, b = key_on(raw, "a"), key_on(raw, "b")
            for node in nodes[:2]:
                node.pause()
            for key in (a, b):
                raw.ask("GET", key)
            until(lambda: proxy.events("fail_open"))
            for node in nodes[:2]:
                node.resume()
            for shard in "ab":
                becomes(raw, shard, "up")
            assert raw.value("MGET", a, b) == [None, None]
