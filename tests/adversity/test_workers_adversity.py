"""Workers killed under load, and stops under load: others notice nothing; what was sent is answered."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from asking import counters, in_flight, key_on, node_of
from faults import FakeNode, Talk, obey
from servers import ProxyProcess, Raw, RedisNode, pack, redis_nodes, shards_of, toml, until
from toxics import FaultProxy, Held


def children(pid: int) -> list[int]:
    """Its worker processes."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def worker_of(raw: Raw) -> int:
    """The number of the worker that serves this client; client ids of one worker have a base of their own."""
    return int(raw.value("CLIENT", "ID")) >> 32


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(2) as nodes:
        yield nodes


class Load(threading.Thread):
    """A client that counts on a key of its own, one command at a time; `ended`: its connection is lost."""

    def __init__(self, proxy: ProxyProcess, number: int) -> None:
        super().__init__(daemon=True)
        self.raw, self.key = proxy.raw(), f"load:{number}"
        self.worker = worker_of(self.raw)
        self.count = 0
        self.wrong: list[bytes] = []
        self.ended, self.stop = threading.Event(), threading.Event()

    def run(self) -> None:
        with self.raw, contextlib.suppress(OSError, EOFError):
            while not self.stop.is_set():
                found = self.raw.ask("INCR", self.key)
                self.count += 1
                if found != b":%d\r\n" % self.count:
                    self.wrong.append(found)
            return
        self.ended.set()


def test_a_killed_worker_is_replaced_and_the_others_notice_nothing(nodes: list[RedisNode]) -> None:
    for node in nodes:
        with node.raw() as raw:
            raw.ask("FLUSHALL")
    with ProxyProcess(toml(shards_of(nodes), top="workers = 2")) as proxy:
        until(lambda: len(proxy.events("worker_ready")) == 2)
        loads: list[Load] = []
        # the kernel spreads them; some on each
        while len(loads) < 8 or len({load.worker for load in loads}) < 2:
            loads.append(Load(proxy, len(loads)))
        refused: list[OSError] = []
        over = threading.Event()

        def newcomers() -> None:
            """Connect all the time: nobody is ever refused, and whoever is not cut off is served."""
            while not over.is_set():
                try:
                    raw = proxy.raw()
                except OSError as error:
                    refused.append(error)
                    continue
                with raw, contextlib.suppress(OSError, EOFError):
                    if raw.ask("PING") != b"+PONG\r\n":
                        refused.append(OSError("not served"))

        knocking = [threading.Thread(target=newcomers, daemon=True) for _ in range(3)]
        for thread in [*loads, *knocking]:
            thread.start()
        until(lambda: all(load.count > 50 for load in loads))
        ready = {event["worker"]: event["pid"] for event in proxy.events("worker_ready")}
        assert sorted(ready.values()) == sorted(children(proxy.pid))
        first_base = min(load.worker for load in loads)
        victim = [load for load in loads if load.worker == first_base]
        others = [load for load in loads if load.worker != first_base]
        # spawns are counted from 0, and so are the slots at first
        os.kill(ready[first_base], signal.SIGKILL)
        until(lambda: proxy.events("worker_died"))
        until(lambda: len(proxy.events("worker_ready")) == 3)
        [died] = proxy.events("worker_died")
        assert died["worker"] == first_base and died["how"] == "killed by SIGKILL"
        for load in victim:
            assert load.ended.wait(10)
        marks = [load.count for load in others]
        until(lambda: all(load.count > mark + 50 for load, mark in zip(others, marks, strict=True)))
        over.set()
        for load in others:
            load.stop.set()
        for thread in [*others, *knocking]:
            thread.join(10)
        assert not refused
        assert not any(load.wrong for load in loads)
        assert not any(load.ended.is_set() for load in others)
        # acknowledged increments are there, at most one more each
        with proxy.raw() as raw:
            for load in loads:
                assert load.count <= int(raw.value("GET", load.key)) <= load.count + 1
            assert len(children(proxy.pid)) == 2
            # both serve again, with ids of their own
            bases: set[int] = set()
            while len(bases) < 2:
                bases.add(_base(proxy))
            assert first_base not in bases


def _base(proxy: ProxyProcess) -> int:
    with proxy.raw() as raw:
        return worker_of(raw)


def test_workers_killed_again_and_again(nodes: list[RedisNode]) -> None:
    """Three times, whichever is there; at the end everything is served and counted as before."""
    with ProxyProcess(toml(shards_of(nodes), top="workers = 2")) as proxy:
        until(lambda: len(proxy.events("worker_ready")) == 2)
        for turn in range(3):
            os.kill(children(proxy.pid)[turn % 2], signal.SIGKILL)
            until(lambda: len(proxy.events("worker_ready")) == 3 + turn)  # noqa: B023  # used at once
        with proxy.raw() as raw:
            assert raw.ask("SET", "key", "value") == b"+OK\r\n"
            assert json.loads(raw.value("PROXY", "INFO"))["workers"] == 2
            until(lambda: counters(raw)["clients"] == 1)


def one_on_each(proxy: ProxyProcess) -> tuple[dict[int, Raw], dict[int, int]]:
    """Of its two workers, by number: a client, and the process."""
    until(lambda: len(proxy.events("worker_ready")) == 2)
    crowd: dict[int, Raw] = {}

    def both() -> bool:
        raw = proxy.raw()
        crowd.setdefault(worker_of(raw), raw)
        return len(crowd) == 2

    until(both)
    return crowd, {event["worker"]: event["pid"] for event in proxy.events("worker_ready")}


def test_a_stopped_worker_does_not_stop_the_other(nodes: list[RedisNode]) -> None:
    """SIGSTOP, not death: questions that concern all workers are answered without it."""
    with ProxyProcess(toml(shards_of(nodes), top="workers = 2")) as proxy:
        crowd, pids = one_on_each(proxy)
        frozen, other = sorted(crowd)
        os.kill(pids[frozen], signal.SIGSTOP)
        try:
            assert crowd[other].ask("SET", "key", "value") == b"+OK\r\n"
            assert crowd[other].value("CLIENT", "LIST")
            assert json.loads(crowd[other].value("PROXY", "INFO"))["workers"] == 1
        finally:
            os.kill(pids[frozen], signal.SIGCONT)
        assert crowd[frozen].ask("GET", "key") == b"$5\r\nvalue\r\n"
        for raw in crowd.values():
            raw.close()


def test_keys_do_not_move_before_every_worker_leaves_the_node_alone() -> None:
    """One that stood still meanwhile would read on the node what others have overwritten elsewhere."""
    pool = """kind = "cache"
on_shard_down = "rehash"
on_return = "invalidate"
timeout = "30s"
health = { interval = "100ms", timeout = "200ms", successes = 1000 }"""
    with (
        redis_nodes(2) as (a, b),
        ProxyProcess(toml(shards_of([a, b]), top="workers = 2", pool=pool)) as proxy,
    ):
        crowd, pids = one_on_each(proxy)
        serving, frozen = crowd[0], crowd[1]
        until(lambda: node_of(serving, "a")["state"] == "up")
        key = key_on(serving, "a")
        assert serving.ask("SET", key, "old") == b"+OK\r\n"
        assert frozen.ask("GET", key) == b"$3\r\nold\r\n"
        os.kill(pids[1], signal.SIGSTOP)
        try:
            a.pause()
            until(lambda: states_of(proxy, a)[-1:] == ["suspect"])
            a.resume()
            serving.send(pack("SET", key, "new"))
            frozen.send(pack("GET", key))
            time.sleep(0.3)
            assert states_of(proxy, a)[-1:] == ["suspect"]
        finally:
            os.kill(pids[1], signal.SIGCONT)
        until(lambda: states_of(proxy, a)[-1:] == ["out"])
        assert serving.frame() == b"+OK\r\n"
        frozen.frame()  # at the same time: either
        assert frozen.ask("GET", key) == b"$3\r\nnew\r\n"
        for raw in crowd.values():
            raw.close()


def states_of(proxy: ProxyProcess, node: RedisNode) -> list[str]:
    return [event["state"] for event in proxy.events("node_state") if event["node"] == node.address]


def test_what_a_dead_worker_had_sent_does_not_run_over_what_came_later() -> None:
    """The node is up all the time: the worker's connections are killed there as soon as it is dead."""
    with RedisNode() as node, FaultProxy(node.port) as network:
        pool = 'health = { interval = "1h" }'
        with ProxyProcess(toml({"a": network.address}, top="workers = 2", pool=pool)) as proxy:
            crowd, pids = one_on_each(proxy)
            victim, other = crowd[0], crowd[1]
            assert victim.ask("SET", "key", "first") == b"+OK\r\n"
            assert other.ask("GET", "key") == b"$5\r\nfirst\r\n"
            [its] = connections(node, "cmd=set")
            for _ in range(2):  # it tells what connections it has ten times a second; then that is heard
                time.sleep(0.2)
                assert victim.ask("PING") == b"+PONG\r\n"
            assert not other.ask("PROXY", "RELOAD").startswith(b"-")
            held = Held(b"held")
            network.add(held)
            victim.send(pack("SET", "key", "held"))
            until(lambda: held.count)
            network.remove(held)
            os.kill(pids[0], signal.SIGKILL)
            until(lambda: proxy.events("worker_died"))
            assert other.ask("SET", "key", "last") == b"+OK\r\n"
            until(lambda: its not in connections(node), "the node to be told")
            held.free = True
            until(lambda: held.gone)
            assert other.ask("GET", "key") == b"$4\r\nlast\r\n"
            victim.close()
            other.close()


def connections(node: RedisNode, word: str = "") -> list[str]:
    """The ids of those that it has, with this in what it says of them."""
    with node.raw() as raw:
        return [line.split()[0] for line in str(raw.value("CLIENT", "LIST")).splitlines() if word in line]


# --- stops ---

WORKERS = pytest.mark.parametrize("workers", [1, 2])


class SlowNode(FakeNode):
    """Answers each command a little later, in order."""

    def __init__(self, delay: float) -> None:
        async def slow(talk: Talk, args: list[bytes]) -> None:
            await asyncio.sleep(delay)
            await obey(talk, args)

        super().__init__(slow)


@WORKERS
def test_sigterm_answers_what_is_in_flight(workers: int) -> None:
    with (
        SlowNode(0.02) as node,
        ProxyProcess(toml({"a": node.address}, top=f"workers = {workers}", pool='timeout = "1m"')) as proxy,
    ):
        crowd = [proxy.raw() for _ in range(10)]
        for number, client in enumerate(crowd):
            client.send(
                pack("SET", f"key{number}", number) + pack("GET", f"key{number}") + pack("ECHO", number)
            )
        until(lambda: len(node.seen) > 5)
        proxy.signal(signal.SIGTERM)
        for number, client in enumerate(crowd):
            shown = f"$1\r\n{number}\r\n".encode()
            assert client.rest() == b"+OK\r\n" + shown + shown
            client.close()
        assert proxy.wait() == 0
        assert proxy.events("stopped")[0]["clean"]


@WORKERS
def test_sigterm_answers_what_was_sent(workers: int, nodes: list[RedisNode]) -> None:
    """A pipeline deeper than what may be in flight: every command had been sent before the signal."""
    with (
        RedisNode() as node,
        ProxyProcess(toml({"a": node.address}, top=f"workers = {workers}", pool='timeout = "1m"')) as proxy,
    ):
        with proxy.raw() as raw:
            raw.ask("SET", "key", "value")
            node.pause()
            raw.send(pack("GET", "key") * 5_000)
            with proxy.raw() as other:
                until(lambda: counters(other)["forwarded"] > 1000)
            proxy.signal(signal.SIGTERM)
            until(lambda: proxy.events("draining"))
            time.sleep(0.2)
            node.resume()
            assert raw.rest() == b"$5\r\nvalue\r\n" * 5_000
        assert proxy.wait() == 0


def test_sigterm_under_load_loses_nothing(nodes: list[RedisNode]) -> None:
    """Clients count, one command at a time: each is answered or, sent after the drain, was not executed."""
    with nodes[0].raw() as raw:
        raw.ask("FLUSHALL")
    lost = []
    for _ in range(3):
        with ProxyProcess(toml({"a": nodes[0].address})) as proxy:
            loads = [Load(proxy, number) for number in range(20)]
            with nodes[0].raw() as raw:
                raw.ask("FLUSHALL")
            for load in loads:
                load.start()
            until(lambda: all(load.count > 20 for load in loads))  # noqa: B023  # used at once
            proxy.signal(signal.SIGTERM)
            assert proxy.wait() == 0
            for load in loads:
                assert load.ended.wait(10)
                assert not load.wrong
            with nodes[0].raw() as raw:
                lost += [load.key for load in loads if int(raw.value("GET", load.key)) != load.count]
    assert not lost


@WORKERS
def test_sigterm_with_a_node_that_stands_still(workers: int, nodes: list[RedisNode]) -> None:
    """Who waits for it is told TIMEOUT, as ever; the others are answered; nothing is left over."""
    with RedisNode() as still:
        shards = {"a": still.address, "b": nodes[0].address}
        pool = 'timeout = "1s"\nreset_after = "1h"'
        with ProxyProcess(toml(shards, top=f"workers = {workers}", pool=pool)) as proxy, proxy.raw() as raw:
            keys = [f"key{number}" for number in range(20)]
            for key in keys:
                assert raw.ask("SET", key, "value") == b"+OK\r\n"
            still.pause()
            raw.send(b"".join(pack("GET", key) for key in keys))
            until(lambda: _flying(proxy) > 0)
            proxy.signal(signal.SIGTERM)
            found = raw.rest()
            assert proxy.wait() == 0
        answered = found.count(b"$5\r\nvalue\r\n")
        assert 0 < answered < 20 and found.count(b"-TIMEOUT shard 'a' at") == 20 - answered


@WORKERS
def test_sigterm_does_not_wait_for_those_who_ask_nothing(workers: int, nodes: list[RedisNode]) -> None:
    """Idle clients, and those in mid-command, are closed; drain_timeout (an hour) is not waited for."""
    limits = '[limits]\ndrain_timeout = "1h"'
    with (
        ProxyProcess(toml(shards_of(nodes), top=f"workers = {workers}") + limits) as proxy,
        proxy.raw() as idle,
        proxy.raw() as half,
    ):
        assert idle.ask("PING") == half.ask("PING") == b"+PONG\r\n"
        half.send(b"*2\r\n$3\r\nGET\r\n$3\r\nke")
        proxy.signal(signal.SIGTERM)
        assert idle.rest() == half.rest() == b""
        assert proxy.wait() == 0


def test_a_drain_that_takes_too_long_ends(nodes: list[RedisNode]) -> None:
    """A client that never reads holds it up for drain_timeout, no longer; the exit code says so."""
    with (
        ProxyProcess(toml(shards_of(nodes)) + '[limits]\ndrain_timeout = "500ms"') as proxy,
        proxy.raw() as greedy,
    ):
        greedy.ask("SET", "big", "x" * 1_000_000)
        greedy.send(pack("GET", "big") * 50)
        until(lambda: _waiting(proxy) > 1_000_000)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 1
        assert proxy.events("drain_incomplete")[0]["clients"] == 1
        assert not proxy.events("stopped")[0]["clean"]


def _waiting(proxy: ProxyProcess) -> int:
    with proxy.raw() as raw:
        return counters(raw)["buffer_bytes"]


@WORKERS
def test_a_second_signal_ends_at_once(workers: int, nodes: list[RedisNode]) -> None:
    with RedisNode() as node:
        pool, limits = 'timeout = "1h"', '[limits]\ndrain_timeout = "1h"'
        with ProxyProcess(toml({"a": node.address}, top=f"workers = {workers}", pool=pool) + limits) as proxy:
            with proxy.raw() as raw:
                raw.ask("SET", "key", "value")
                node.pause()
                raw.send(pack("GET", "key"))
                until(lambda: _flying(proxy) == 1)
                proxy.signal(signal.SIGTERM)
                until(lambda: proxy.events("draining"))
                time.sleep(0.2)
                proxy.signal(signal.SIGTERM)
                assert proxy.wait() == 1
                assert raw.rest() == b""
            left = [
                pid for pid in os.listdir("/proc") if pid.isdigit() and _is_of(pid, str(proxy.config_path))
            ]
            assert not left


def _flying(proxy: ProxyProcess) -> int:
    with proxy.raw() as raw:
        return in_flight(raw)


def _is_of(pid: str, text: str) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as file:
        return text in file.read()
    return False


def test_workers_end_with_their_supervisor(nodes: list[RedisNode]) -> None:
    """kill -9 of the supervisor: nobody would ever stop them; the port is free again."""
    with ProxyProcess(toml(shards_of(nodes), top="workers = 2")) as proxy:
        until(lambda: len(proxy.events("worker_ready")) == 2)
        workers = children(proxy.pid)
        proxy.signal(signal.SIGKILL)
        proxy.wait()
        until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", proxy.port))


def test_a_dead_workers_connections_are_killed_on_a_node_that_returns() -> None:
    """There may be requests in them that the node has not read yet."""
    asked: list[list[bytes]] = []

    async def behave(talk: Talk, args: list[bytes]) -> None:
        if args[0] == b"CLIENT":
            asked.append(args)
            talk.write(b":7\r\n")
        else:
            await obey(talk, args)

    pool = (
        'kind = "cache"\non_shard_down = "rehash"\non_return = "invalidate"\nhealth = { interval = "200ms" }'
    )
    with FakeNode(behave) as fake, redis_nodes(1) as others:
        del fake.greet[b"CLIENT"]
        config = toml({"a": fake.address, "b": others[0].address}, top="workers = 2", pool=pool)
        with ProxyProcess(config) as proxy:
            for count in (4, 6, 8, 10):  # they may die before they have told what connections they have
                with proxy.raw() as raw:
                    until(lambda: node_of(raw, "a")["state"] == "up")
                    assert raw.ask("SET", key_on(raw, "a"), "1") == b"+OK\r\n"
                    time.sleep(0.3)
                assert [b"CLIENT", b"KILL", b"ID", b"7"] not in asked
                for pid in children(proxy.pid):
                    os.kill(pid, signal.SIGKILL)
                until(lambda: len(proxy.events("worker_ready")) == count, "them to be replaced")  # noqa: B023
                fake.refuse()
                with proxy.raw() as raw:
                    until(lambda: node_of(raw, "a")["state"] == "out")
                    fake.accept()
                    until(lambda: node_of(raw, "a")["state"] == "up")
                if [b"CLIENT", b"KILL", b"ID", b"7"] in asked:
                    return
            pytest.fail("nothing was killed")
