"""Reloads and takeovers under load: no error, no disconnect, no leak; names that change their meaning."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from asking import in_flight, node_of
from faults import FakeNode, Talk, obey
from servers import ProxyProcess, Raw, RedisNode, free_port, pack, redis_nodes, shards_of, toml, until
from test_workers_adversity import children

CACHE = 'kind = "cache"\ntimeout = "10s"'


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(4) as nodes:
        yield nodes


class Client(threading.Thread):
    """Reads and writes keys of its own, pipelined, on one connection; every reply must be a possible one.

    Keys move and their values stay behind, so a read may find any value that was ever written, or nothing.
    """

    def __init__(self, raw: Raw, number: int) -> None:
        super().__init__(daemon=True)
        self.raw, self.number = raw, number
        self.rounds = 0
        self.faults: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        with self.raw:
            try:
                while not self.over.is_set() and not self.faults:
                    self.round()
                    self.rounds += 1
            except (OSError, EOFError) as error:
                self.faults.append(f"disconnected: {error!r}")

    def round(self) -> None:
        keys = [f"reload:{self.number}:{n}" for n in range(8)]
        value = b"%d" % self.rounds
        self.raw.send(
            b"".join(pack("SET", key, value) for key in keys)
            + b"".join(pack("GET", key) for key in keys)
            + pack("MGET", *keys)
            + pack("MSET", *(part for key in keys for part in (key, value)))
            + pack("INCR", f"count:{self.number}")
            + b"".join((pack("MULTI"), pack("SET", keys[0], value), pack("GET", keys[0]), pack("EXEC")))
        )
        for _ in keys:
            self.expect(b"+OK\r\n")
        for _ in keys:
            self.possible(self.raw.frame())
        many = self.raw.frame()
        if not many.startswith(b"*8\r\n"):
            self.faults.append(f"MGET: {many[:100]!r}")
        self.expect(b"+OK\r\n")
        if not (count := self.raw.frame()).startswith(b":"):
            self.faults.append(f"INCR: {count[:100]!r}")
        self.expect(b"+OK\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n")
        self.expect(b"*2\r\n+OK\r\n$%d\r\n%b\r\n" % (len(value), value))

    def expect(self, *frames: bytes) -> None:
        for frame in frames:
            if (found := self.raw.frame()) != frame:
                self.faults.append(f"{found[:100]!r} instead of {frame!r}")

    def possible(self, frame: bytes) -> None:
        if frame != b"$-1\r\n" and not (frame[:1] == b"$" and int(frame.split(b"\r\n")[1]) <= self.rounds):
            self.faults.append(f"GET: {frame[:100]!r}")


def descriptors(pids: Sequence[int]) -> list[int]:
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]


def weighted(nodes: Sequence[RedisNode], weights: dict[str, int], top: str) -> str:
    shards = "\n".join(
        f'{name} = {{ primary = "redis://{nodes[ord(name) - ord("a")].address}", weight = {weight} }}'
        for name, weight in weights.items()
    )
    return toml({}, top=top, pool=CACHE) + shards + "\n"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_of_reloads_under_load(nodes: list[RedisNode], workers: int) -> None:
    top, chance = f"workers = {workers}", random.Random(workers)
    weights = {"a": 1, "b": 1, "c": 1}
    with ProxyProcess(weighted(nodes, weights, top)) as process, process.raw() as operator:
        pids = children(process.pid) if workers > 1 else [process.pid]
        clients = [Client(process.raw(), number) for number in range(6)]
        for client in clients:
            client.start()
        until(lambda: all(client.rounds > 5 for client in clients), "the load to begin")
        before = descriptors(pids)
        generation = 0
        for _ in range(60):
            # each one changes a shard or a weight; at least one shard stays
            name = chance.choice("abcd")
            if name not in weights:
                weights[name] = 1
            elif len(weights) > 1 and chance.random() < 0.5:
                del weights[name]
            else:
                weights[name] = weights[name] % 5 + 1
            process.config_path.write_text(weighted(nodes, weights, top))
            found = operator.value("PROXY", "RELOAD")
            answer = json.loads(found)
            assert answer["not_acknowledged"] == []
            assert answer["needs_restart"] == []
            assert answer["generation"] > generation or not answer["changed"]
            generation = answer["generation"]
            shown = json.loads(operator.value("PROXY", "TOPOLOGY"))
            assert shown["generation"] >= generation
            assert {each["name"]: each["weight"] for each in shown["pools"][0]["shards"]} == weights
            rounds = [client.rounds for client in clients]
            until(
                lambda rounds=rounds: all(
                    client.rounds > seen or client.faults
                    for client, seen in zip(clients, rounds, strict=True)
                ),
                "every client to go on",
            )
            assert not any(client.faults for client in clients), [client.faults for client in clients]
        # the same shards as at the start: then as many descriptors, when what is old has closed
        process.config_path.write_text(weighted(nodes, {"a": 1, "b": 1, "c": 1}, top))
        operator.value("PROXY", "RELOAD")
        until(lambda: descriptors(pids) == before, f"the descriptors to be {before} again")
        for client in clients:
            client.over.set()
            client.join()
        assert [client.faults for client in clients] == [[]] * len(clients)
        assert process.events("handler_failed") == process.events("change_failed") == []
        assert process.events("client_closed") == []


def test_drained_and_put_back_under_load(nodes: list[RedisNode]) -> None:
    with (
        ProxyProcess(toml(shards_of(nodes), top="workers = 2", pool=CACHE)) as process,
        process.raw() as operator,
    ):
        clients = [Client(process.raw(), number) for number in range(4)]
        for client in clients:
            client.start()
        for name, what in itertools.product("abcd", ("DRAIN", "UNDRAIN")):
            assert json.loads(operator.value("PROXY", what, name))["not_acknowledged"] == []
            rounds = [client.rounds for client in clients]
            until(
                lambda rounds=rounds: all(
                    client.rounds > seen or client.faults
                    for client, seen in zip(clients, rounds, strict=True)
                )
            )
        for client in clients:
            client.over.set()
            client.join()
        assert [client.faults for client in clients] == [[]] * len(clients)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (1, 2), (2, 1)])
def test_a_takeover_under_load(nodes: list[RedisNode], before: int, after: int) -> None:
    """Who is connected goes on undisturbed, who comes is never refused, and the old one ends by itself."""
    port = free_port()
    listen, over = [f"127.0.0.1:{port}"], threading.Event()
    faults: list[str] = []
    served = [0] * 4

    def newcomers(number: int) -> None:
        while not over.is_set():
            try:
                with Raw(port) as raw:
                    for n in range(5):
                        key = f"new:{number}:{n}"
                        if raw.ask("SET", key, n) != b"+OK\r\n" or raw.ask("GET", key) != b"$1\r\n%d\r\n" % n:
                            faults.append("a wrong answer")
                served[number] += 1
            except (OSError, EOFError) as error:
                faults.append(repr(error))

    def text(workers: int) -> str:
        return toml(shards_of(nodes), listen=listen, top=f"workers = {workers}", pool=CACHE)

    threads = [threading.Thread(target=newcomers, args=(number,), daemon=True) for number in range(4)]
    with ProxyProcess(text(before)) as old:
        clients = [Client(Raw(port), number) for number in range(4)]
        for thread in [*clients, *threads]:
            thread.start()
        until(lambda: all(client.rounds > 5 for client in clients), "the load to begin")
        with ProxyProcess(text(after), "--takeover") as new:
            until(lambda: old.events("handed_over"), "the old one to hand over")
            rounds, seen = [client.rounds for client in clients], list(served)
            until(lambda: all(now > then + 20 for now, then in zip(served, seen, strict=True)) or faults)
            until(lambda: all(c.rounds > then or c.faults for c, then in zip(clients, rounds, strict=True)))
            for client in clients:
                client.over.set()
                client.join()
            assert old.wait() == 0
            over.set()
            for thread in threads:
                thread.join()
            assert faults == []
            assert [client.faults for client in clients] == [[]] * len(clients)
            assert new.events("took_over")


RESOLVER = """\
import socket, sys
sys.modules["uvloop"] = None  # its lookups are its own
real = socket.getaddrinfo
def lookup(host, *args, **options):
    if host == "node.test":
        with open({path!r}) as file:
            host = file.read()
        if not host:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
    return real(host, *args, **options)
socket.getaddrinfo = lookup
"""


def test_a_name_that_changes_its_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node moves to another address: found when its connections are lost, and by and by anyway."""
    zone = tmp_path / "zone"
    (tmp_path / "sitecustomize.py").write_text(RESOLVER.format(path=str(zone)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    port = free_port()
    with contextlib.ExitStack() as stack:
        old, new = (stack.enter_context(_AtHost(host, port)) for host in ("127.0.0.1", "127.0.0.2"))
        zone.write_text("")
        text = toml({"a": f"node.test:{port}"}, pool='timeout = "2s"\nresolve_every = "1s"')
        process = stack.enter_context(ProxyProcess(text))
        raw = stack.enter_context(process.raw())
        assert raw.ask("GET", "who").startswith(b"-SHARDDOWN")
        zone.write_text("127.0.0.1")
        until(lambda: _who(raw) == "127.0.0.1", "the name to be found")
        zone.write_text("127.0.0.2")
        until(lambda: process.events("node_moved"), "the new meaning to be noticed")
        assert _who(raw) == "127.0.0.1"  # a connection that is up stays
        old.kill()
        until(lambda: _who(raw) == "127.0.0.2", "the node to be found at its new address")
        zone.write_text("")  # a name server that is down changes nothing
        assert _who(raw) == "127.0.0.2"
        assert new.pid


class _AtHost(RedisNode):
    """A node on another loopback address, which it keeps as the value of a key."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__("--bind", host, port=port)
        self.host = host

    def ready(self) -> bool:
        with Raw((self.host, self.port), timeout=1) as raw:
            return raw.ask("SET", "who", self.host) == b"+OK\r\n"


def _who(raw: Raw) -> Any:
    found = raw.value("GET", "who")
    return found if isinstance(found, str) else None


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_a_change_of_connections_per_node_keeps_each_clients_order(before: int, after: int) -> None:
    """A write that the node is busy with, the change, another write of the same client: in this order."""
    answer: list[asyncio.Event] = []

    async def busy(talk: Talk, args: list[bytes]) -> None:
        if args[0] == b"SET" and args[2] == b"1" and answer:
            await answer[0].wait()
        await obey(talk, args)

    def pool(connections: int) -> str:
        return f'kind = "cache"\ntimeout = "20s"\nconnections_per_node = {connections}'

    with FakeNode(busy) as node, ProxyProcess(toml({"a": node.address}, pool=pool(before))) as process:
        clients = [process.raw() for _ in range(8)]
        try:
            for number, client in enumerate(clients):
                assert client.ask("SET", f"k{number}", "0") == b"+OK\r\n"
            node.call(lambda: answer.append(asyncio.Event()))
            for number, client in enumerate(clients):
                client.send(pack("SET", f"k{number}", "1"))
            with process.raw() as other:
                until(lambda: in_flight(other) == 8)
                process.config_path.write_text(toml({"a": node.address}, pool=pool(after)))
                assert "connections_per_node" in other.value("PROXY", "RELOAD")
                for number, client in enumerate(clients):
                    client.send(pack("SET", f"k{number}", "2") + pack("MGET", f"k{number}", "other"))
                until(lambda: in_flight(other) == 24)
            node.call(answer[0].set)
            for number, client in enumerate(clients):
                assert client.frames(3) == [b"+OK\r\n", b"+OK\r\n", b"*2\r\n$1\r\n2\r\n$-1\r\n"]
                assert client.value("GET", f"k{number}") == "2"
            until(lambda: node_of(clients[0], "a")["upstreams"] >= after, "the connections to be used")
        finally:
            for client in clients:
                client.close()
