"""The engine while its topology changes all the time.

    python tests/fuzz/failover.py --seconds 60          with AddressSanitizer and UBSan (tests/fuzz/build.py)
    python tests/fuzz/failover.py --plain --seed 7      the modules that are built in place

A Reactor on this loop, three real Redis nodes, each also behind a relay that stalls and cuts connections.
Dozens of times a second the topology changes: states, swept or not, shards added, removed, drained, given
other addresses and weights, another policy. Clients pipeline meanwhile; each value begins with its key, each
batch ends with a marker of its own, and every command must have one reply, in its order, that can be its own.
After a lap, with all nodes up, all that it took must be given back. What breaks a rule is told with its
seed; exit code 1.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import msgspec  # noqa: E402  # the paths come first
from mutations import encode  # noqa: E402
from servers import RedisNode, toml  # noqa: E402

import build  # noqa: E402
from shardproxy import config  # noqa: E402
from shardproxy.core import commands, misses  # noqa: E402
from shardproxy.core.resp import Scanner  # noqa: E402
from shardproxy.core.topology import State, Topology  # noqa: E402
from shardproxy.dataplane.calls import Call  # noqa: E402
from shardproxy.dataplane.reactor import Reactor  # noqa: E402

PATIENCE = 60.0  # s; what takes longer hangs
DESCRIPTORS = 100  # an upstream through a relay is three
LAP = 3.0  # s between looks at whether everything is given back
OURS = (b"-SHARDDOWN", b"-UNKNOWN", b"-TIMEOUT", b"-OVERLOADED", b"-EXECABORT", b"-CROSSSLOT", b"-UNBLOCKED")
NIL = (b"*-1\r\n", b"_\r\n")
LARGE = 150_000
STATES: tuple[State, ...] = ("up", "up", "up", "unknown", "suspect", "suspect", "out")
Check = Callable[[bytes], bool]
Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter


class Broken(AssertionError):
    """A rule was broken."""


class Relay:
    """A way to a node that stalls, and is cut, at any byte."""

    def __init__(self, rnd: Random, to: int) -> None:
        self.rnd, self.to, self.port = rnd, to, 0
        self.writers: set[asyncio.StreamWriter] = set()
        self.stalled = False

    async def start(self) -> None:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(self.rnd.choice([100, 5000, 1 << 16])):
                while self.stalled:
                    await asyncio.sleep(0.01)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner, outer = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.transport.abort()
            return
        self.writers |= {writer, outer}
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(self.pump(reader, outer), self.pump(inner, writer))
        self.writers -= {writer, outer}

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()

    def stop(self) -> None:
        self.server.close()
        self.cut()


def echo(call: Call) -> None:
    """Instead of the handlers: ECHO, and PING for the rest."""
    last = call.args[-1]
    call.reply(b"$%d\r\n%b\r\n" % (len(last), last))


class Field:
    """The engine, its nodes and the topology of the moment."""

    def __init__(self, rnd: Random) -> None:
        self.rnd = rnd
        self.real = [RedisNode("--maxmemory", "200mb") for _ in range(3)]
        self.relays: list[Relay] = []
        told = ("topologies", "batches", "replies", "errors", "closed", "events", "laps")
        self.counts = dict.fromkeys(told, 0)
        self.calm = False
        self.reactor = Reactor(
            config.load(toml({"a": "127.0.0.1:1"}).encode()).limits,
            echo, on_event=self.event, misses=misses.reply,
        )  # fmt: skip
        self.generation = 0

    def event(self, name: str, fields: dict[str, Any]) -> None:
        self.counts["events"] += 1
        if name == "client_closed" and "node was lost in the middle" not in fields["reason"]:
            raise Broken(f"client closed: {fields['reason']}")

    async def start(self) -> None:
        for node in self.real:
            await asyncio.to_thread(node.start)
            relay = Relay(Random(self.rnd.random()), node.port)
            await relay.start()
            self.relays.append(relay)
        self.reactor.set_commands(commands.builtin())
        self.change()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.reactor.listen(self.listener.fileno(), protected=False)
        asyncio.get_running_loop().add_reader(self.reactor.fileno(), self.reactor.tick)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self.reactor.fileno())
        self.reactor.close()
        self.listener.close()
        for relay in self.relays:
            relay.stop()
        for node in self.real:
            with contextlib.suppress(OSError, AssertionError):
                node.resume()
            node.stop()

    # --- the topology ---

    def change(self) -> None:
        """Another one, of everything that may be different."""
        rnd = self.rnd
        ways = [node.address for node in self.real] + [f"127.0.0.1:{relay.port}" for relay in self.relays]
        names = ["a", "b", "c", *(name for name in "de" if rnd.random() < 0.3)]
        if rnd.random() < 0.15:
            names.remove(rnd.choice(names))
        if rnd.random() < 0.2:
            rnd.shuffle(ways)
        shards = {name: ways["abcde".index(name) + 1] for name in names}
        pool = ['kind = "cache"', f'on_shard_down = "{rnd.choice(["error", "miss"] + ["rehash"] * 6)}"']
        pool += [f"retries = {rnd.choice([0, 1, 1, 2])}", f'partial = "{rnd.choice(["error", "nil"])}"']
        pool += [f'timeout = "{rnd.choice([80, 300, 300, 1000])}ms"', 'connect_timeout = "300ms"']
        text = toml(shards, pool="\n".join(pool))
        topology = Topology.from_config(config.load(text.encode()), self.generation)
        if not self.calm:
            if rnd.random() < 0.2:
                topology = self.weighed(topology)
            if rnd.random() < 0.1:
                topology = topology.with_draining({"main": [rnd.choice(names)]})
            for address in list(topology.nodes):
                topology = self.worse(topology, address)
        else:
            for address in list(topology.nodes):
                topology = topology.with_node_state(address, "up")
        self.topology = topology
        self.generation = topology.generation + 1
        self.reactor.set_topology(topology, {})
        self.counts["topologies"] += 1

    def worse(self, topology: Topology, address: str) -> Topology:
        state = self.rnd.choice(STATES)
        return topology.with_node_state(address, state, "the fuzzer says so", swept=self.rnd.random() < 0.8)

    def weighed(self, topology: Topology) -> Topology:
        replace, pool = msgspec.structs.replace, topology.pools[0]
        shards = tuple(replace(shard, weight=self.rnd.randrange(1, 4)) for shard in pool.shards)
        return replace(topology, pools=(replace(pool, shards=shards),))

    async def changes(self) -> None:
        """The same shards go through several states before there are others."""
        rnd = self.rnd
        while True:
            await asyncio.sleep(rnd.choice([0, 0.002, 0.01, 0.02, 0.05]) if rnd.random() < 0.95 else 0.5)
            if self.calm:
                continue
            if rnd.random() < 0.3:
                self.change()
                continue
            for address in self.topology.nodes:
                if rnd.random() < 0.4:
                    self.topology = self.worse(self.topology, address)
            self.reactor.set_topology(self.topology, {})
            self.counts["topologies"] += 1
            self.reactor.evidence()
            address = rnd.choice(list(self.topology.nodes))
            self.reactor.settled()
            self.reactor.take_written(address)
            self.reactor.take_ghosts(address)
            self.reactor.nodes()

    async def trouble(self) -> None:
        rnd = self.rnd
        while True:
            await asyncio.sleep(rnd.random() / 4)
            if self.calm:
                continue
            node, relay = rnd.choice(self.real), rnd.choice(self.relays)
            what = rnd.random()
            if what < 0.5:
                relay.cut()
            elif what < 0.7:
                relay.stalled = True
                await asyncio.sleep(rnd.random() / 2)
                relay.stalled = False
            elif what < 0.9:
                node.pause()
                await asyncio.sleep(rnd.random() / 2)
                node.resume()
            else:
                node.kill()
                await asyncio.sleep(rnd.random() / 2)
                await asyncio.to_thread(node.start)

    async def cron(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            self.reactor.cron()

    # --- clients ---

    def command(self, rnd: Random, who: bytes) -> list[tuple[bytes, Check]]:
        """Commands, each with what its reply may be besides our errors."""

        def mine(key: bytes, frame: bytes) -> bool:
            return frame in (b"$-1\r\n", b"_\r\n") or frame.partition(b"\r\n")[2].startswith(key + b"|")

        def key() -> bytes:
            return b"%b:%d" % (who, rnd.randrange(40))

        def value(key: bytes) -> bytes:
            return key + b"|" + b"v" * rnd.choice([0, 10, 10, 10, 1000, LARGE if rnd.random() < 0.1 else 1])

        def array(keys: list[bytes], frame: bytes) -> bool:
            head, _, rest = frame.partition(b"\r\n")
            found = Scanner().feed(rest)
            return head == b"*%d" % len(keys) == b"*%d" % len(found) and all(map(mine, keys, found))

        what, one, many = rnd.random(), key(), [key() for _ in range(rnd.choice([2, 5, 20]))]
        if what < 0.3:
            return [(encode(b"GET", one), lambda frame: mine(one, frame))]
        if what < 0.5:
            return [(encode(b"SET", one, value(one)), lambda frame: frame == b"+OK\r\n")]
        if what < 0.7:
            return [(encode(b"MGET", *many), lambda frame: array(many, frame))]
        if what < 0.8:
            pairs = [part for each in many for part in (each, value(each))]
            return [(encode(b"MSET", *pairs), lambda frame: frame == b"+OK\r\n")]
        if what < 0.87:
            name = rnd.choice([b"DEL", b"UNLINK", b"EXISTS"])
            return [(encode(name, *many), lambda frame: frame[:1] == b":" and int(frame[1:]) <= len(many))]
        if what < 0.93:
            tag = b"{%b}x" % one
            return [
                (encode(b"MULTI"), lambda frame: frame == b"+OK\r\n"),
                (encode(b"SET", tag, value(tag)), lambda frame: frame == b"+QUEUED\r\n"),
                (encode(b"GET", tag), lambda frame: frame == b"+QUEUED\r\n"),
                (encode(b"EXEC"), lambda frame: frame[:9] == b"*2\r\n+OK\r\n" and mine(tag, frame[9:])),
            ]
        if what < 0.95:
            tag = b"{%b}x" % one
            return [
                (encode(b"SET", tag, value(tag)), lambda frame: frame == b"+OK\r\n"),
                (encode(b"WATCH", tag), lambda frame: frame == b"+OK\r\n"),
                (encode(b"GET", tag), lambda frame: mine(tag, frame)),
                (encode(b"MULTI"), lambda frame: frame == b"+OK\r\n"),
                (encode(b"GET", tag), lambda frame: frame == b"+QUEUED\r\n"),
                (
                    encode(b"EXEC"),
                    lambda frame: frame in NIL or (frame[:4] == b"*1\r\n" and mine(tag, frame[4:])),
                ),
            ]
        if what < 0.97:
            tag = b"{%b}l" % one
            popped = b"*2\r\n$%d\r\n%b\r\n" % (len(tag), tag)
            return [
                (encode(b"RPUSH", tag, value(tag)), lambda frame: frame[:1] == b":"),
                *[
                    (
                        encode(b"BLPOP", tag, b"0.02"),
                        lambda frame: (
                            frame in NIL or (frame.startswith(popped) and mine(tag, frame[len(popped) :]))
                        ),
                    )
                ]
                * 2,
            ]
        mark = b"mark:%d" % rnd.randrange(1 << 60)
        return [(encode(b"ECHO", mark), lambda frame: frame == b"$%d\r\n%b\r\n" % (len(mark), mark))]

    async def client(self, number: int) -> None:
        """Connects again and again; some leave in the middle."""
        rnd, turn = Random(self.rnd.random()), 0
        while True:
            turn += 1
            who, scanner = b"k%d" % number, Scanner()
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
            try:
                for _ in range(rnd.randrange(1, 30)):
                    if self.calm:
                        break
                    if not await self.batch(rnd, who, reader, writer, scanner):
                        break
                    await asyncio.sleep(rnd.choice([0, 0, 0.01, 0.1]))
            except OSError:
                self.counts["closed"] += 1
            writer.transport.abort()
            if self.calm:
                return

    async def batch(self, rnd: Random, who: bytes, reader: Reader, writer: Writer, scanner: Scanner) -> bool:
        """False: it has left, or the engine has closed it as it may."""
        asked = [each for _ in range(rnd.choice([1, 5, 30, 100])) for each in self.command(rnd, who)]
        end = b"end:%d" % rnd.randrange(1 << 60)
        asked.append((encode(b"ECHO", end), lambda frame: frame == b"$%d\r\n%b\r\n" % (len(end), end)))
        writer.write(b"".join(data for data, _ in asked))
        if rnd.random() < 0.05:
            await asyncio.sleep(rnd.random() / 10)
            return False
        at = 0
        while at < len(asked):
            try:
                data = await asyncio.wait_for(reader.read(1 << 18), PATIENCE)
            except TimeoutError:
                raise Broken(f"{asked[at][0][:80]!r}, number {at} of {len(asked)}, is not answered") from None
            if not data:
                self.counts["closed"] += 1
                return False
            for frame in scanner.feed(data):
                if at == len(asked):
                    raise Broken(f"a reply too many: {frame[:200]!r}")
                self.counts["replies"] += 1
                if frame.startswith(OURS):
                    self.counts["errors"] += 1
                elif not asked[at][1](frame):
                    raise Broken(f"{asked[at][0][:200]!r} is answered {frame[:300]!r}")
                at += 1
        self.counts["batches"] += 1
        return True

    async def given_back(self) -> None:
        limit, left = time.monotonic() + PATIENCE, ""
        while time.monotonic() < limit:
            queues = [each for node in self.reactor.nodes() for each in node["upstreams"]]
            waiting = sum(each["in_flight"] + each["queue_bytes"] for each in queues)
            private = max(node["private"] for node in self.reactor.nodes())
            counters = self.reactor.counters()
            fds, held = len(os.listdir("/proc/self/fd")), counters["buffer_bytes"]
            left = f"{waiting} requests, {counters['clients']} clients, {held} bytes, {fds} descriptors, {private} private"
            # each upstream keeps what it reads into; a node that has gone keeps none
            if (
                not waiting
                and not counters["clients"]
                and held < 8 << 20
                and fds < DESCRIPTORS
                and private <= 16
            ):
                return
            await asyncio.sleep(0.05)
        raise Broken(f"not given back: {left}")


async def fuzz(seconds: float, seed: int) -> dict[str, int]:
    """Raises Broken."""
    field = Field(Random(seed))
    await field.start()
    loop, failures = asyncio.get_running_loop(), list[BaseException]()
    sys.unraisablehook = lambda found: failures.append(found.exc_value or Broken(str(found)))
    around = [loop.create_task(each) for each in (field.changes(), field.trouble(), field.cron())]
    limit = time.monotonic() + seconds
    try:
        while time.monotonic() < limit:
            field.calm = False
            clients = [loop.create_task(field.client(number)) for number in range(12)]
            ends = time.monotonic() + min(LAP, limit - time.monotonic())
            while time.monotonic() < ends and not any(each.done() for each in clients):
                await asyncio.sleep(0.05)
            field.calm = True
            field.change()
            await asyncio.gather(*clients)
            for task in around:
                if task.done():
                    task.result()
            if failures:
                raise failures[0]
            await field.given_back()
            field.counts["laps"] += 1
    finally:
        for task in around:
            task.cancel()
        field.stop()
    return field.counts


def run(how: str, seconds: float, seed: int) -> subprocess.CompletedProcess[str]:
    """In a process of its own, with or without sanitizers."""
    env = dict(os.environ) | {"PYTHONPATH": str(build.ROOT)}
    if how == "asan":
        env = build.environment(build.build("asan"))
    command = [sys.executable, __file__, "--inside", f"--seconds={seconds}", f"--seed={seed}"]
    # not pipes: nodes that outlive a crash would hold them open, and nobody would hear of it
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=err, start_new_session=True)
        try:
            code = process.wait(10 * seconds + 300)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(command, code, out.read(), err.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--plain", dest="how", action="store_const", const="plain", default="asan")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not chosen.inside:
        done = run(chosen.how, chosen.seconds, chosen.seed)
        print(done.stdout, done.stderr[-8000:], sep="")
        raise SystemExit(done.returncode)
    os.environ.pop("LD_PRELOAD", None)  # for us, not for the nodes
    try:
        print(asyncio.run(fuzz(chosen.seconds, chosen.seed)))
    except Broken as broken:
        raise SystemExit(f"BROKEN, seed {chosen.seed}: {broken}") from broken


if __name__ == "__main__":
    main()
