"""A command of several steps on a memcached: its key moves between two of them, or its node is lost then."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator

import pytest
from asking import key_on, node_of
from servers import MemcachedNode, ProxyProcess, RedisNode, pack, toml, until
from toxics import FaultProxy, Link, Send, Toxic

PATIENT = 'timeout = "60s"\nattempt_timeout = "60s"\nconnect_timeout = "60s"\nhealth = { interval = "1h" }'
REHASH = """kind = "cache"\non_shard_down = "rehash"\non_return = "keep"
timeout = "60s"\nattempt_timeout = "60s"\nhealth = { interval = "100ms", timeout = "1s", probe = "ping" }"""


class Gate(Toxic):
    """Lets so many replies to what clients ask through, and then nothing until it is opened."""

    def __init__(self, passes: int) -> None:
        self.left = passes
        self.held, self.open = threading.Event(), threading.Event()

    async def chunk(self, link: Link, data: bytes, send: Send) -> None:
        if not data.startswith((b"MN", b"VERSION", b"STAT")):  # of probes and greetings
            self.left -= 1
            if self.left < 0:
                self.held.set()
                while not self.open.is_set():
                    await asyncio.sleep(0.002)
        await send(data)


class Stage:
    """A proxy of two memcacheds, a and b, the first behind a network with faults; and a Redis."""

    def __init__(self, stack: contextlib.ExitStack, pool: str) -> None:
        self.pool = pool
        self.old, self.new = (stack.enter_context(MemcachedNode()) for _ in range(2))
        self.redis = stack.enter_context(RedisNode())
        self.network = stack.enter_context(FaultProxy(self.old.port))
        self.a, self.b = f"memcached://{self.network.address}", self.new.url
        self.proxy = stack.enter_context(ProxyProcess(toml({"a": self.a, "b": self.b}, pool=pool)))
        self.raw, self.other = (stack.enter_context(self.proxy.raw()) for _ in range(2))
        self.key = key_on(self.raw, "a")
        until(lambda: self.raw.ask("SET", self.key, "5") == b"+OK\r\n")
        until(lambda: node_of(self.raw, "b")["state"] == "up")

    def held(self, *command: str, passes: int) -> Gate:
        """Sends it; returns when the reply to its step of this number, from 0, is held back."""
        gate = Gate(passes)
        self.network.toxics = [gate]
        self.raw.send(pack(*command))
        assert gate.held.wait(30)
        return gate

    def reload(self, shards: dict[str, str]) -> None:
        self.proxy.config_path.write_text(toml(shards, pool=self.pool))
        assert json.loads(self.other.value("PROXY", "RELOAD"))["changed"]


@pytest.fixture
def stage(pool: str) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        yield Stage(stack, pool)


def there(node: MemcachedNode | RedisNode, key: str) -> bytes | None:
    if isinstance(node, RedisNode):
        with node.raw() as raw:
            found = raw.ask("GET", key)
        return None if found == b"$-1\r\n" else found.split(b"\r\n")[1]
    found = node.say(f"mg {key} v\r\nmn\r\n".encode(), b"MN\r\n")
    return found.split(b"\r\n")[1] if found.startswith(b"VA") else None


@pytest.mark.parametrize("pool", [PATIENT])
@pytest.mark.parametrize("where", ["another memcached", "the other shard", "a Redis"])
def test_a_reload_moves_the_key_after_the_first_step(stage: Stage, where: str) -> None:
    """It starts over where the key is now: nothing is written where nobody looks any more."""
    home: MemcachedNode | RedisNode = stage.redis if where == "a Redis" else stage.new
    gate = stage.held("INCRBY", stage.key, "7", passes=0)
    shards = {
        "another memcached": {"a": stage.new.url},
        "the other shard": {"b": stage.b},
        "a Redis": {"a": stage.redis.url, "b": stage.b},
    }
    stage.reload(shards[where])
    gate.open.set()
    assert stage.raw.frame() == b":7\r\n"
    assert there(home, stage.key) == b"7"
    assert there(stage.old, stage.key) == b"5"
    assert stage.raw.value("INCR", stage.key) == 8


@pytest.mark.parametrize("pool", [PATIENT])
def test_a_reload_moves_the_key_after_the_last_step(stage: Stage) -> None:
    """That has run, where the key was when it was sent, and is answered so."""
    gate = stage.held("INCRBY", stage.key, "7", passes=1)
    stage.reload({"a": stage.new.url})
    gate.open.set()
    assert stage.raw.frame() == b":12\r\n"
    assert there(stage.old, stage.key) == b"12"
    assert there(stage.new, stage.key) is None
    assert stage.raw.value("GET", stage.key) is None


@pytest.mark.parametrize("pool", [REHASH])
@pytest.mark.parametrize(
    ("command", "passes", "reply"),
    [
        (("INCRBY", "7"), 0, b":7\r\n"),  # its first step reads: it runs where the key is then
        (("GETRANGE", "0", "-1"), 0, b"$0\r\n\r\n"),
        (("EXPIRE", "100"), 0, b":0\r\n"),
        (("INCRBY", "7"), 1, b"-UNKNOWN outcome: shard 'a' at"),  # it has run
        (("DEL",), 0, b"-UNKNOWN outcome: shard 'a' at"),
        (("GET",), 0, b"$-1\r\n"),
    ],
)
def test_the_node_dies_while_a_step_is_on_its_way(
    stage: Stage, command: tuple[str, ...], passes: int, reply: bytes
) -> None:
    name, *rest = command
    stage.held(name, stage.key, *rest, passes=passes)
    stage.network.refuse()
    stage.old.kill()
    assert stage.raw.frame().startswith(reply)
    until(lambda: node_of(stage.raw, "a")["state"] == "out")
    assert there(stage.new, stage.key) == (b"7" if reply == b":7\r\n" else None)


@pytest.mark.parametrize("pool", [PATIENT])
@pytest.mark.parametrize(
    ("passes", "reply"), [(0, b"-SHARDDOWN shard 'a'"), (1, b"-UNKNOWN outcome: shard 'a'")]
)
def test_and_there_is_no_other_place(stage: Stage, passes: int, reply: bytes) -> None:
    stage.held("INCR", stage.key, passes=passes)
    stage.network.refuse()
    assert stage.raw.frame().startswith(reply)
    assert there(stage.old, stage.key) == (b"5" if passes == 0 else b"6")


@pytest.mark.parametrize("pool", [PATIENT])
def test_flushall_has_run_though_nobody_tidies_up(stage: Stage) -> None:
    """Its first step has: that the node is lost in those behind it is no reason to say that it has not."""
    stage.held("FLUSHALL", passes=1)
    stage.network.refuse()
    assert stage.raw.frame() == b"+OK\r\n"
    assert there(stage.old, stage.key) is None


def test_a_node_number_is_used_again() -> None:
    """Nodes come and go meanwhile; a command that waits for its turn finds its key where it is by then."""
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(MemcachedNode()) for _ in range(3)]
        network = stack.enter_context(FaultProxy(nodes[0].port))
        first = f"memcached://{network.address}"
        proxy = stack.enter_context(ProxyProcess(toml({"a": first}, pool=PATIENT)))
        clients = [stack.enter_context(proxy.raw()) for _ in range(10)]
        other = stack.enter_context(proxy.raw())
        until(lambda: other.ask("SET", "n", "100") == b"+OK\r\n")
        gate = Gate(0)
        network.toxics = [gate]
        for raw in clients:
            raw.send(pack("INCR", "n"))
        assert gate.held.wait(30)
        for node in (nodes[1], nodes[2], nodes[1]):
            proxy.config_path.write_text(toml({"a": node.url}, pool=PATIENT))
            assert json.loads(other.value("PROXY", "RELOAD"))["changed"]
        gate.open.set()
        assert sorted(int(raw.frame()[1:]) for raw in clients) == [*range(1, 11)]
        assert [there(node, "n") for node in nodes] == [b"100", b"10", None]
