"""A late reply is not a broken connection: the client gets TIMEOUT, the upstream stays, the reply is
dropped.

Only an upstream that brings nothing at all for `reset_after` is reset; other shards notice nothing of it.
"""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from asking import counters, key_on, shard_of
from faults import FakeNode, Talk, obey
from servers import ProxyProcess, RedisNode, pack, redis_nodes, toml, until
from toxics import FaultProxy, Held, Latency, Slicer, Timeout

# what the engine does alone: fail open is for good, no node is put out
ALONE = "\nhealth = { fail_open_ratio = 0.0 }"
POOL = 'timeout = "300ms"\nreset_after = "1h"\nconnect_timeout = "2s"' + ALONE


class Stage:
    """Two nodes, the first behind a network, and a proxy before them."""

    def __init__(self, nodes: list[RedisNode], network: FaultProxy, proxy: ProxyProcess) -> None:
        self.slow_node, self.other_node = nodes
        self.network, self.proxy = network, proxy
        self.raw = proxy.raw()
        self.slow, self.other = key_on(self.raw, "slow"), key_on(self.raw, "other")

    @property
    def upstreams(self) -> list[str]:
        """The ids of the proxy's connections as the slow node has them, without ours and the probes'."""
        with self.slow_node.raw() as raw:
            lines = str(raw.value("CLIENT", "LIST")).splitlines()
        # a new one shows what it was greeted with, or that it is asked for functions, and goes
        others = (
            "cmd=client|list",
            "cmd=command",
            "cmd=ping",
            "cmd=NULL",
            "cmd=function|list",
            "cmd=client|i",
        )
        return [line.split()[0] for line in lines if not any(other in line for other in others)]


@contextmanager
def stage_of(pool: str) -> Iterator[Stage]:
    with redis_nodes(2) as nodes, FaultProxy(nodes[0].port) as network:
        shards = {"slow": network.address, "other": nodes[1].address}
        with ProxyProcess(toml(shards, pool=pool)) as proxy:
            stage = Stage(nodes, network, proxy)
            with stage.raw:
                yield stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    with stage_of(POOL) as stage:
        yield stage


def test_the_upstream_stays_and_the_late_reply_is_dropped(stage: Stage) -> None:
    raw = stage.raw
    raw.ask("SET", stage.slow, "first")
    before, connections = counters(raw), stage.upstreams
    for turn in range(3):
        stage.slow_node.pause()
        raw.send(pack("GET", stage.slow) + pack("SET", stage.slow, f"turn {turn}") + pack("ECHO", "between"))
        found = raw.frames(3)
        assert found[0].startswith(b"-TIMEOUT shard 'slow' at 127.0.0.1"), found
        assert found[1].startswith(b"-TIMEOUT shard 'slow' at"), found
        assert found[2] == b"$7\r\nbetween\r\n"
        stage.slow_node.resume()
        # the very next command gets its own reply, and sees the write that was not answered in time
        assert raw.value("GET", stage.slow) == f"turn {turn}"
    after = counters(raw)
    assert after["timeouts"] - before["timeouts"] == 6
    assert after["late_replies"] - before["late_replies"] == 6
    assert after["upstream_resets"] == after["upstream_losses"] == 0
    assert stage.upstreams == connections


def test_other_shards_are_not_disturbed(stage: Stage) -> None:
    raw = stage.raw
    raw.ask("SET", stage.other, "here")
    stage.slow_node.pause()
    with stage.proxy.raw() as waiting:
        waiting.send(pack("GET", stage.slow))
        for number in range(100):
            raw.ask("SET", stage.other, str(number))
            assert raw.value("GET", stage.other) == str(number)
        # in one client's order: its reply waits for the one before it, its execution does not
        raw.send(pack("GET", stage.slow) + pack("SET", stage.other, "after"))
        with stage.other_node.raw() as node:
            until(lambda: node.value("GET", stage.other) == "after")
        assert waiting.frame().startswith(b"-TIMEOUT")
        assert raw.frames(2)[1] == b"+OK\r\n"
    stage.slow_node.resume()


def test_a_deadline_of_one_client_is_not_the_next_ones() -> None:
    """Behind each other on one upstream: the node answers both when the first one's deadline has passed."""
    answer = asyncio.Event()

    async def when_told(talk: Talk, args: list[bytes]) -> None:
        if args[0] == b"GET":
            await answer.wait()
        await obey(talk, args)

    with (
        FakeNode(when_told) as node,
        ProxyProcess(toml({"a": node.address}, pool='timeout = "2s"')) as proxy,
        proxy.raw() as first,
        proxy.raw() as second,
    ):
        first.ask("SET", "key", "value")
        first.send(pack("GET", "key"))
        until(lambda: node.seen[-1][0] == b"GET")
        time.sleep(1)
        second.send(pack("GET", "key"))
        assert first.frame().startswith(b"-TIMEOUT")
        node.call(answer.set)
        assert second.frame() == b"$5\r\nvalue\r\n"
        assert first.ask("GET", "key") == b"$5\r\nvalue\r\n"
        assert counters(first)["timeouts"] == 1


def test_latency_within_the_deadline_is_only_latency() -> None:
    """Many clients over a slow network: their requests overlap there, and each gets its own reply."""
    with stage_of('timeout = "20s"') as stage:
        keys = [key for number in range(60) if shard_of(stage.raw, key := f"own{number}") == "slow"]
        for key in keys:
            stage.raw.ask("SET", key, f"of {key}")
        stage.network.toxics = [Latency(0.05, 0.02)]
        crowd = [stage.proxy.raw() for _ in keys]
        for client, key in zip(crowd, keys, strict=True):
            client.send(pack("GET", key) + pack("STRLEN", key))
        for client, key in zip(crowd, keys, strict=True):
            size = len(key) + 3
            assert client.frames(2) == [f"${size}\r\nof {key}\r\n".encode(), f":{size}\r\n".encode()]
            client.close()


def test_only_no_progress_resets() -> None:
    """Nothing for reset_after: reset with that reason, once; the next connection works."""
    with stage_of('timeout = "300ms"\nreset_after = "900ms"\nconnect_timeout = "2s"' + ALONE) as stage:
        raw = stage.raw
        raw.ask("SET", stage.slow, "value")
        stage.slow_node.pause()
        for _ in range(2):
            assert raw.ask("GET", stage.slow).startswith(b"-TIMEOUT")
        until(lambda: counters(raw)["upstream_resets"] == 1)
        [event] = stage.proxy.events("upstream_lost")
        assert event["reason"] == "it makes no progress at all"
        assert event["node"] == stage.network.address
        stage.slow_node.resume()
        until(lambda: raw.ask("GET", stage.slow) == b"$5\r\nvalue\r\n")
        assert counters(raw)["upstream_resets"] == 1


@pytest.mark.parametrize("ours", [True, False], ids=["reset by us", "lost"])
def test_what_a_connection_that_is_lost_still_holds_does_not_run_over_what_came_later(ours: bool) -> None:
    """No node goes out: it is whoever connects next that has it killed."""
    with stage_of('timeout = "300ms"\nreset_after = "900ms"\nconnect_timeout = "2s"' + ALONE) as stage:
        raw, key = stage.raw, stage.slow
        assert raw.ask("SET", key, "first") == b"+OK\r\n"
        held = Held()
        stage.network.add(held)
        raw.send(pack("SET", key, "held"))
        until(lambda: held.count)
        stage.network.remove(held)
        if not ours:
            stage.network.forsake()
        assert raw.frame().startswith((b"-TIMEOUT", b"-UNKNOWN"))
        until(lambda: stage.proxy.events("upstream_lost"))
        until(lambda: raw.ask("SET", key, "last") == b"+OK\r\n")
        held.free = True
        until(lambda: held.gone)
        with stage.slow_node.raw() as node:
            until(lambda: len(stage.upstreams) <= 1, "the node to have read what the network held")
            assert node.value("GET", key) == "last"


def test_slow_progress_is_progress() -> None:
    """A large reply that takes several times reset_after, in small pieces, arrives."""
    with stage_of('timeout = "300ms"\nreset_after = "500ms"\nconnect_timeout = "2s"') as stage:
        raw = stage.raw
        value = "0123456789" * 400_000
        raw.ask("SET", stage.slow, value)
        stage.network.toxics = [Slicer(40_000, 0.02)]
        assert raw.value("GET", stage.slow) == value
        stage.network.toxics = []
        assert raw.value("GET", stage.slow) == value
        assert counters(raw)["upstream_resets"] == counters(raw)["upstream_losses"] == 0


def test_a_network_that_swallows_everything_is_left() -> None:
    with stage_of('timeout = "200ms"\nreset_after = "600ms"\nconnect_timeout = "400ms"' + ALONE) as stage:
        raw = stage.raw
        raw.ask("SET", stage.slow, "value")
        stage.network.toxics = [Timeout()]
        assert raw.ask("GET", stage.slow).startswith(b"-TIMEOUT")
        silent = b"accepts the connection and says nothing"
        until(lambda: silent in raw.ask("GET", stage.slow), patience=10)
        stage.network.toxics = []
        until(lambda: raw.ask("GET", stage.slow) == b"$5\r\nvalue\r\n")


def test_the_slow_part_of_a_fan_out() -> None:
    """Its late part is dropped like any other; the client's next MGET is whole again."""
    with stage_of(POOL) as stage:
        raw = stage.raw
        raw.ask("MSET", stage.slow, "s", stage.other, "o")
        stage.slow_node.pause()
        found = raw.ask("MGET", stage.other, stage.slow)
        assert found.startswith(b"-TIMEOUT shard 'slow'") and b"done on: other" in found
        raw.send(pack("MSET", stage.other, "o2", stage.slow, "s2") + pack("ECHO", "x"))
        found = raw.frame()
        assert found.startswith(b"-TIMEOUT shard 'slow'")
        assert raw.frame() == b"$1\r\nx\r\n"
        stage.slow_node.resume()
        assert raw.value("MGET", stage.slow, stage.other) == ["s2", "o2"]


def test_a_client_that_left_before_its_late_reply(stage: Stage) -> None:
    """Its place in the FIFO stays; who gets its descriptor and its number gets none of its replies."""
    stage.raw.ask("SET", stage.slow, "late")
    stage.slow_node.pause()
    for _ in range(10):
        with stage.proxy.raw() as leaver:
            before = counters(stage.raw)["forwarded"]
            leaver.send(pack("GET", stage.slow) * 5)
            until(lambda: counters(stage.raw)["forwarded"] == before + 5)  # noqa: B023  # used at once
    crowd = [stage.proxy.raw() for _ in range(10)]
    for number, client in enumerate(crowd):
        client.send(pack("ECHO", f"{number}"))
    stage.slow_node.resume()
    for number, client in enumerate(crowd):
        assert client.frame() == f"$1\r\n{number}\r\n".encode()
        assert client.value("STRLEN", stage.slow) == 4
        client.close()


def test_a_late_reply_larger_than_a_piece(stage: Stage) -> None:
    """It is dropped whole, however many reads it takes."""
    raw = stage.raw
    raw.ask("SET", stage.slow, "x" * 5_000_000)
    stage.slow_node.pause()
    assert raw.ask("GET", stage.slow).startswith(b"-TIMEOUT")
    stage.slow_node.resume()
    assert raw.value("STRLEN", stage.slow) == 5_000_000
    assert counters(raw)["late_replies"] == 1


def test_our_own_lag_is_not_the_nodes() -> None:
    """The reply came in time and waits in the socket while the proxy itself was stopped."""

    async def soon(talk: Talk, args: list[bytes]) -> None:
        await asyncio.sleep(0.2)
        await obey(talk, args)

    with (
        FakeNode(soon) as node,
        ProxyProcess(toml({"a": node.address}, pool='timeout = "700ms"')) as proxy,
        proxy.raw() as raw,
    ):
        raw.ask("SET", "key", "value")
        for _ in range(3):
            raw.send(pack("GET", "key"))
            until(lambda: any(args[0] == b"GET" for args in node.seen))  # and probes
            node.seen.clear()
            proxy.signal(signal.SIGSTOP)
            time.sleep(1)
            proxy.signal(signal.SIGCONT)
            assert raw.frame() == b"$5\r\nvalue\r\n"


def test_waiting_costs_nothing(stage: Stage) -> None:
    """A barrier in mid-pipeline waits for the slow node asleep."""
    raw = stage.raw
    raw.ask("SET", stage.slow, "value")
    with stage.proxy.raw() as other:
        before = counters(other)
        stage.slow_node.pause()
        raw.send(pack("GET", stage.slow) + pack("HELLO", 3) + pack("GET", stage.slow))
        assert raw.frame().startswith(b"-TIMEOUT")
        stage.slow_node.resume()
        assert b"proto" in raw.frame()
        assert raw.frame() == b"$5\r\nvalue\r\n"
        after = counters(other)
    assert after["stalls"] - before["stalls"] < 100
    assert after["ticks"] - before["ticks"] < 1000


def test_order_of_writes_over_timeouts_and_a_protocol_switch(stage: Stage) -> None:
    """A write answered TIMEOUT does not run after a later one of the same client that was acknowledged."""
    raw = stage.raw
    raw.ask("SET", stage.slow, "0")
    raw.ask("HELLO", 3)
    raw.ask("GET", stage.slow)  # both upstreams are there
    raw.ask("HELLO", 2)
    for turn in range(4):
        stage.slow_node.pause()
        assert raw.ask("SET", stage.slow, f"{turn} old").startswith(b"-TIMEOUT")
        raw.ask("HELLO", 3 - turn % 2)
        raw.send(pack("SET", stage.slow, f"{turn} new"))
        stage.slow_node.resume()
        if raw.frame() == b"+OK\r\n":
            with stage.slow_node.raw() as node:
                for _ in range(20):
                    assert node.value("GET", stage.slow) == f"{turn} new"


CLASSES = 'timeout = "10s"\ntimeouts = { read = "300ms", write = "1200ms" }\nreset_after = "1h"' + ALONE


def test_each_class_has_its_own_deadline() -> None:
    """A read behind a write and a script on one upstream is given up first; nobody gets another's reply."""
    with stage_of(CLASSES) as stage, stage.proxy.raw() as writer, stage.proxy.raw() as scripter:
        raw = stage.raw
        raw.ask("SET", stage.slow, "0")
        stage.slow_node.pause()
        before = counters(raw)["forwarded"]
        # each in a client of its own, so that each reply comes when it is there
        scripter.send(pack("EVAL", "return redis.call('INCR', KEYS[1])", 1, stage.slow))
        until(lambda: counters(raw)["forwarded"] == before + 1)
        writer.send(pack("INCR", stage.slow))
        until(lambda: counters(raw)["forwarded"] == before + 2)
        assert b"did not answer within 300 ms" in raw.ask("GET", stage.slow)
        assert counters(raw)["timeouts"] == 1
        assert b"did not answer within 1200 ms" in writer.frame()
        assert counters(raw)["timeouts"] == 2
        # reads that come later still fall due before the script that is ahead of them
        assert b"did not answer within 300 ms" in raw.ask("GET", stage.slow)
        stage.slow_node.resume()
        assert scripter.frame() == b":1\r\n"
        assert raw.value("GET", stage.slow) == "2"
        found = counters(raw)
        assert (found["timeouts"], found["late_replies"]) == (3, 3)
        assert found["upstream_resets"] == found["upstream_losses"] == 0


def test_a_transaction_may_take_as_long_as_the_longest_of_its_commands() -> None:
    with stage_of(CLASSES) as stage, stage.proxy.raw() as other:
        raw = stage.raw
        raw.ask("SET", stage.slow, "0")
        stage.slow_node.pause()
        other.send(pack("MULTI") + pack("INCR", stage.slow) + pack("EXEC"))
        script = pack("EVAL", "return 1", 1, stage.slow)
        raw.send(pack("MULTI") + script + pack("INCR", stage.slow) + pack("EXEC"))
        assert other.frames(2) == [b"+OK\r\n", b"+QUEUED\r\n"]
        assert raw.frames(3) == [b"+OK\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n"]
        assert b"did not answer within 1200 ms" in other.frame()
        stage.slow_node.resume()
        assert raw.frame() == b"*2\r\n:1\r\n:2\r\n"


def test_a_script_that_takes_its_time_is_no_fault_of_the_node() -> None:
    """Slower than slow_call and attempt_timeout, not a byte for longer than reset_after: its class may."""
    pool = (
        'timeout = "200ms"\nattempt_timeout = "100ms"\nreset_after = "300ms"\ntimeouts = { script = "20s" }\n'
        "health = { consecutive = 1, minimum = 1, slow_rate = 0.1, failures = 100 }"
    )
    takes_its_time = """
        local function now() local t = redis.call('TIME'); return t[1] + t[2] / 1e6 end
        local begun = now()
        while now() < begun + 0.8 do end
        return 'done'"""
    with stage_of(pool) as stage:
        raw = stage.raw
        for _ in range(2):
            assert raw.ask("EVAL", takes_its_time, 1, stage.slow) == b"$4\r\ndone\r\n"
        assert raw.ask("SET", stage.slow, "after") == b"+OK\r\n"
        found = counters(raw)
        assert found["upstream_resets"] == found["upstream_losses"] == found["timeouts"] == 0
        assert not stage.proxy.events("node_failing")
        states = [each["to"] for each in json.loads(str(raw.value("PROXY", "NODES")))[0]["transitions"]]
        assert "suspect" not in states and "out" not in states
