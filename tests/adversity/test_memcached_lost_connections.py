"""A connection to a memcached that was lost while a network, or the node, still held what we had sent on it.

It cannot be killed there; it is waited for. Or else what it holds would run over what was written since.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import key_on, node_of
from servers import MemcachedNode, ProxyProcess, pack, toml, until
from toxics import FaultProxy, Held

from shardproxy.core.memcached.connections import connections

ALONE = """timeout = "300ms"\nreset_after = "900ms"\nconnect_timeout = "5s"
health = { fail_open_ratio = 0.0 }"""
REHASH = """kind = "cache"\non_shard_down = "rehash"\non_return = "invalidate"
timeout = "300ms"\nhealth = { interval = "100ms", timeout = "1s" }"""


class Stage:
    """Two memcacheds, the first behind a network that holds back a write of "held" to `key`."""

    def __init__(self, stack: contextlib.ExitStack, pool: str) -> None:
        self.node, other = (stack.enter_context(MemcachedNode()) for _ in range(2))
        self.network = stack.enter_context(FaultProxy(self.node.port))
        shards = {"a": f"memcached://{self.network.address}", "b": other.url}
        self.proxy = stack.enter_context(ProxyProcess(toml(shards, pool=pool)))
        self.raw = stack.enter_context(self.proxy.raw())
        self.key = key_on(self.raw, "a")
        until(lambda: self.raw.ask("SET", self.key, "first") == b"+OK\r\n")
        self.held = Held(b"held")
        self.network.add(self.held)
        self.raw.send(pack("SET", self.key, "held"))
        until(lambda: self.held.count)

    def let_go(self, after: float) -> None:
        """Seconds from now, meanwhile whoever does not wait for it has gone ahead."""

        def free() -> None:
            self.held.free = True

        timer = threading.Timer(after, free)
        timer.daemon = True
        timer.start()

    @property
    def connections(self) -> int:
        """To the first node, with the one that asks."""
        return len(connections(self.node.say(b"stats conns\r\n", b"END\r\n")))

    @property
    def value(self) -> str | None:
        found: str | None = self.raw.value("GET", self.key)
        return found


@pytest.fixture
def stage(pool: str) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        yield Stage(stack, pool)


@pytest.mark.parametrize("pool", [ALONE])
@pytest.mark.parametrize("ours", [True, False], ids=["reset by us", "lost"])
def test_the_next_connection_waits_until_it_is_gone(stage: Stage, ours: bool) -> None:
    if not ours:
        stage.network.forsake()
    assert stage.raw.frame().startswith((b"-TIMEOUT", b"-UNKNOWN"))
    until(lambda: stage.proxy.events("upstream_lost"))
    stage.let_go(0.5)
    until(lambda: stage.raw.ask("SET", stage.key, "last") == b"+OK\r\n")
    until(lambda: stage.held.gone)
    until(lambda: stage.connections <= 2, "the node to have read what the network held")
    assert stage.value == "last"
    assert not stage.proxy.events("connections_remain")


@pytest.mark.parametrize("pool", [REHASH])
def test_a_node_returns_when_it_is_gone(stage: Stage) -> None:
    stage.node.pause()
    assert stage.raw.frame().startswith((b"-TIMEOUT", b"-UNKNOWN"))
    until(lambda: node_of(stage.raw, "a")["state"] == "out")
    assert stage.raw.ask("SET", stage.key, "on the stand-in") == b"+OK\r\n"
    stage.let_go(1.0)
    stage.node.resume()
    until(lambda: node_of(stage.raw, "a")["state"] == "up")
    until(lambda: stage.held.gone)
    until(lambda: stage.connections <= 3, "the node to have read what the network held")
    assert stage.value is None


def ends_here(port: int) -> dict[str, str]:
    """This machine's sockets that are connected to a port: own address → state, in hexadecimal."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {here: state for _, here, there, state, *_ in rows if there.endswith(f":{port:04X}")}


def test_nothing_of_a_process_that_has_died_is_delivered_any_more() -> None:
    """Nobody waits for its connections; what the kernel had not delivered might come minutes later."""
    pool = 'timeout = "1h"\nattempt_timeout = "1h"\nhealth = { interval = "1h" }'
    with MemcachedNode() as node, ProxyProcess(toml({"a": node.url}, pool=pool)) as proxy:
        with proxy.raw() as raw, proxy.raw() as other:
            until(lambda: raw.ask("SET", "key", "first") == b"+OK\r\n")
            until(lambda: node_of(other, "a")["state"] == "up")
            node.pause()
            raw.send(pack("SET", "key", "late") * 10)
            until(lambda: node_of(other, "a")["in_flight"] == 10)
            ours = {end for end, state in ends_here(node.port).items() if state == "01"}
            assert ours
            os.kill(proxy.pid, signal.SIGKILL)
            proxy.wait()
        until(lambda: not ours & ends_here(node.port).keys(), "them to be gone, without a handshake of FINs")
        node.resume()
