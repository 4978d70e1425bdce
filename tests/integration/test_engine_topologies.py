"""An engine in this process, its topology replaced step by step: what becomes of requests underway."""

import contextlib
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import Raw, RedisNode, frame_end, pack, redis_nodes, shards_of, toml, until

from shardproxy import config
from shardproxy.core import commands, misses
from shardproxy.core.topology import State, Topology
from shardproxy.dataplane.calls import Call
from shardproxy.dataplane.reactor import Reactor
from shardproxy.proxy.listeners import bind_all

POOL = 'kind = "cache"\non_shard_down = "rehash"\ntimeout = "%s"\nreset_after = "0s"'


class Engine:
    """One reactor, driven by hand, and clients of it."""

    def __init__(self, nodes: list[RedisNode], timeout: str) -> None:
        self.config = config.load(toml(shards_of(nodes), pool=POOL % timeout).encode())
        self.dispatch: Callable[[Call], None] = lambda call: None
        self.reactor = Reactor(
            self.config.limits,
            lambda call: self.dispatch(call),
            on_event=lambda name, fields: None,
            misses=misses.reply,
        )
        self.reactor.set_commands(commands.builtin())
        self.topology = Topology.from_config(self.config)
        self.reactor.set_topology(self.topology, {})
        self.bound = bind_all(["127.0.0.1:0"])[0]
        self.reactor.listen(self.bound.sockets[0][0].fileno(), protected=False)

    def client(self) -> Raw:
        return Raw(self.bound.port)

    def state(self, node: RedisNode, state: State, swept: bool = True) -> None:
        self.topology = self.topology.with_node_state(node.address, state, "a test", swept=swept)
        self.reactor.set_topology(self.topology, {})

    def until(self, what: Callable[[], bool], because: str) -> None:
        def turn() -> bool:
            self.reactor.cron()
            return what()

        until(turn, because)

    def taken(self, commands: int) -> None:
        """So many commands have been read from clients since the beginning."""
        self.until(lambda: self.reactor.counters()["commands"] == commands, f"{commands} commands")

    def frame(self, raw: Raw) -> bytes:
        raw.socket.setblocking(False)

        def whole() -> bool:
            with contextlib.suppress(BlockingIOError):
                raw.buffer += raw.socket.recv(1 << 16)
            return bool(raw.buffer) and frame_end(raw.buffer) > 0

        self.until(whole, "a reply")
        raw.socket.settimeout(10)
        return raw.frame()

    def ask(self, raw: Raw, *args: str) -> bytes:
        raw.send(pack(*args))
        return self.frame(raw)

    def home(self, shard: str) -> str:
        names = (f"key:{number}" for number in range(1000))
        return next(key for key in names if self.topology.pools[0].home(key.encode()).name == shard)

    def close(self) -> None:
        self.reactor.close()
        for each in self.bound.sockets[0]:
            each.close()


@pytest.fixture
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as found:
        yield found


@pytest.fixture
def engine(nodes: list[RedisNode], request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(nodes, getattr(request, "param", "20s"))
    yield engine
    engine.close()


def test_what_a_shard_that_is_not_swept_holds_is_not_looked_for_elsewhere(
    engine: Engine, nodes: list[RedisNode]
) -> None:
    """Nor are the keys of another that is out: this one may have stood in for them, and before it others."""
    with engine.client() as raw:
        swept, old = engine.home("a"), engine.home("b")
        engine.state(nodes[0], "out")
        with nodes[2].raw() as direct:
            for key in (swept, old):
                direct.ask("SET", key, "with c")
        engine.state(nodes[1], "out", swept=False)
        assert engine.ask(raw, "MGET", swept, old) == b"*2\r\n$-1\r\n$-1\r\n"
        for key in (swept, old):
            assert engine.ask(raw, "GET", key) == b"$-1\r\n"
            assert engine.ask(raw, "SET", key, "new").startswith(b"-SHARDDOWN")
        engine.state(nodes[1], "out", swept=True)
        assert engine.ask(raw, "MGET", swept, old) == b"*2\r\n" + b"$6\r\nwith c\r\n" * 2


def test_what_is_held_for_a_shard_goes_on_when_it_leaves(engine: Engine, nodes: list[RedisNode]) -> None:
    with engine.client() as raw:
        key = engine.home("c")
        engine.state(nodes[2], "suspect")
        raw.send(pack("SET", key, "1") + pack("GET", key))
        engine.taken(2)
        smaller = config.load(toml(shards_of(nodes[:2]), pool=POOL % "20s").encode())
        engine.topology = engine.topology.with_config(smaller)
        engine.reactor.set_topology(engine.topology, {})
        assert engine.frame(raw) == b"+OK\r\n"
        assert engine.frame(raw) == b"$1\r\n1\r\n"


@pytest.mark.parametrize("engine", ["1s"], indirect=True)
def test_a_transaction_that_was_held_too_long_leaves_the_reads_after_it_whole(
    engine: Engine, nodes: list[RedisNode]
) -> None:
    """Its place in the queue goes with it; the bytes of what comes there are kept until that is answered."""
    key = engine.home("a")
    with engine.client() as raw, engine.client() as other:
        assert engine.ask(raw, "GET", key) == b"$-1\r\n"
        nodes[0].pause()
        other.send(pack("GET", key))
        engine.taken(2)
        engine.state(nodes[0], "suspect")
        raw.send(pack("MULTI") + pack("SET", key, "1") + pack("EXEC"))
        engine.taken(5)
        nodes[0].resume()
        assert engine.frame(other) == b"$-1\r\n"
        assert [engine.frame(raw) for _ in range(3)][2].startswith(b"-TIMEOUT")
        engine.state(nodes[0], "up")
        nodes[0].pause()
        raw.send(pack("GET", key))
        engine.taken(6)
        other.send(pack("SET", key, "2"))
        engine.taken(7)
        nodes[0].kill()
        nodes[0].start()
        assert engine.frame(raw) == b"$-1\r\n"
        assert engine.frame(other).startswith(b"-UNKNOWN")


def timer() -> float:
    """In how many seconds the engine's timer goes off; 0: it is off."""
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/self/fdinfo/{fd}").read_text()
            if "it_value" in text:
                seconds, _, nano = text.partition("it_value: (")[2].partition(")")[0].partition(", ")
                return int(seconds) + int(nano) / 1e9
    raise AssertionError("no timer")


@pytest.mark.parametrize("engine", ["400ms"], indirect=True)
def test_a_deadline_passes_when_it_does_though_nothing_else_happens(
    engine: Engine, nodes: list[RedisNode]
) -> None:
    """Nobody calls cron: what is due is told because the engine says that it has something to do."""
    ready = select.poll()
    ready.register(engine.reactor.fileno(), select.POLLIN)
    with engine.client() as raw:
        key = engine.home("a")
        assert engine.ask(raw, "SET", key, "1") == b"+OK\r\n"
        nodes[0].pause()
        raw.send(pack("GET", key))
        raw.socket.setblocking(False)
        while not raw.buffer or frame_end(raw.buffer) < 0:
            assert ready.poll(10_000), "woken by its own timer"
            engine.reactor.tick()
            with contextlib.suppress(BlockingIOError):
                raw.buffer += raw.socket.recv(1 << 16)
        assert raw.frame().startswith(b"-TIMEOUT")
        nodes[0].resume()
        engine.until(lambda: engine.reactor.counters()["late_replies"] == 1, "the late reply")
        # and when nothing is in flight it is off
        engine.until(lambda: timer() == 0, "it has gone off for the last time")


def test_the_timer_is_not_moved_for_each_request(engine: Engine) -> None:
    with engine.client() as raw:
        engine.ask(raw, "SET", "key", "1")
        before = timer()
        assert 0 < before <= 20
        for _ in range(100):
            assert engine.ask(raw, "GET", "key") == b"$1\r\n1\r\n"
        assert 0 < timer() < before


def test_what_was_in_flight_comes_to_its_stand_ins_in_portions(
    engine: Engine, nodes: list[RedisNode]
) -> None:
    """They get no more at once than they answer in a moment; the rest follows, in everybody's order."""
    keys = [
        key for n in range(4000) if engine.topology.pools[0].home((key := f"key:{n:05}").encode()).name == "a"
    ]
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(engine.client()) for _ in range(4)]
        for raw in crowd:
            for key in ("up", *(engine.home(shard) for shard in "bc")):
                engine.ask(raw, "GET", key)
        begun = engine.reactor.counters()["commands"]
        for node in nodes:
            node.pause()
        asked = [pack("GET", key) for key in keys[:800]]
        for raw in crowd:
            raw.send(b"".join(asked))
        engine.taken(begun + len(crowd) * len(asked))
        engine.state(nodes[0], "out")
        for _ in range(3):
            engine.reactor.cron()
        seen = {node["shard"]: node["upstreams"][0] for node in engine.reactor.nodes()}
        assert seen["b"]["in_flight"] + seen["c"]["in_flight"] == len(crowd) * len(asked)
        for shard in "bc":
            written = seen[shard]["in_flight"] - seen[shard]["queue_bytes"] // len(asked[0])
            assert 0 < written < 300, seen[shard]
        for raw in crowd:
            raw.send(pack("SET", keys[1], "later") + pack("GET", keys[1]))
        for node in nodes[1:]:
            node.resume()
        found = [[engine.frame(raw) for _ in range(len(asked) + 2)] for raw in crowd]
        for replies in found:
            assert replies[-2:] == [b"+OK\r\n", b"$5\r\nlater\r\n"]
            assert replies[0] == b"$-1\r\n"
            assert all(reply in (b"$-1\r\n", b"$5\r\nlater\r\n") for reply in replies[:-2])
        assert all(node["upstreams"][0]["queue_bytes"] == 0 for node in engine.reactor.nodes())
        nodes[0].resume()


def test_who_is_recalled_and_whose_keys_come_back_waits_on(engine: Engine, nodes: list[RedisNode]) -> None:
    """Away and back before the old node has let it go: that it does then is not the client's affair."""
    key, larger = engine.home("c"), engine.topology
    smaller = larger.with_config(config.load(toml(shards_of(nodes[:2]), pool=POOL % "20s").encode()))
    before = smaller.pools[0].home(key.encode()).name
    engine.reactor.set_topology(smaller, {})
    with engine.client() as raw, nodes["ab".index(before)].raw() as direct:
        raw.send(pack("BLPOP", key, "0"))
        engine.until(lambda: b"cmd=blpop" in direct.ask("CLIENT", "LIST"), "it waits")
        engine.reactor.set_topology(larger, {})
        engine.reactor.set_topology(smaller, {})
        unblocked = "cmdstat_client|unblock:calls=1"
        engine.until(lambda: unblocked in direct.value("INFO", "commandstats"), "it is told to let go")
        for _ in range(10):
            engine.reactor.cron()
        assert direct.ask("RPUSH", key, "x") == b":1\r\n"
        assert engine.frame(raw) == pack(key, "x")


def test_a_tick_inside_a_tick_is_none(nodes: list[RedisNode]) -> None:
    """A handler that drives the engine: nothing is freed, written or read under the parser's feet."""
    engine = Engine(nodes, "20s")

    def dispatch(call: Call) -> None:
        engine.reactor.tick()
        engine.reactor.cron()
        call.reply(b"+PONG\r\n")

    engine.dispatch = dispatch
    with engine.client() as raw:
        raw.send(pack("PING") * 50 + pack("GET", "a") + pack("PING"))
        assert [engine.frame(raw) for _ in range(52)] == [b"+PONG\r\n"] * 50 + [b"$-1\r\n", b"+PONG\r\n"]
    engine.close()


@pytest.mark.parametrize("spare", [False, True])
def test_who_asks_an_engine_that_is_closed_gets_an_error(engine: Engine, spare: bool) -> None:
    """As a handler does that has not heard yet; before, that was the end of the process."""
    reactor = engine.reactor
    link = reactor.open_link(0, stream=True)
    if spare:  # what the link was on is kept for another
        link.close()
        reactor.cron()
    reactor.close()
    told: list[bytes] = []
    reactor.ask(0, pack("PING"), told.append)
    assert told == [b"-ERR the connection is closed\r\n"]
    for stream in (False, True):
        with pytest.raises(ConnectionError, match="the connection is closed"):
            reactor.open_link(0, stream=stream)
    link.ask(pack("PING"), told.append)
    link.release()
