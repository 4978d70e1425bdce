"""The whole proxy under hostile clients and nodes.

    python tests/fuzz/engine.py --seconds 60         with AddressSanitizer and UBSan (tests/fuzz/build.py)
    python tests/fuzz/engine.py --rounds 20 --plain  the modules that are built in place
    python tests/fuzz/engine.py --seed 7 --first 135 --rounds 1

Two real Redis nodes and two of nodes.py are behind one proxy; a round of the table ROUNDS throws at it from
all sides. Meanwhile a witness, whose keys are on a node that nobody disturbs, must get every reply right.
After a round the proxy must answer, and have given back every client, buffer and descriptor; it must never
die, log a failure of its own, or grow. What breaks a rule is told with its seed and round; exit code 1.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any, Self

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import msgspec  # noqa: E402
from mutations import encode, packed, program, spoil  # noqa: E402
from nodes import VICES, HostileMemcached, HostileNode  # noqa: E402
from openings import MISTAKES, Openings  # noqa: E402
from openings import configured as openings_of  # noqa: E402
from servers import MemcachedNode, ProxyProcess, RedisNode, toml, until  # noqa: E402

import build  # noqa: E402  # the paths come first
from shardproxy import config  # noqa: E402
from shardproxy.core.resp import Scanner  # noqa: E402
from shardproxy.core.topology import Topology  # noqa: E402

PATIENCE = 60.0  # s; what takes longer hangs
GROWTH = (
    96 << 20
)  # bytes of resident memory over those after the first lap; a sanitizer keeps what is freed for a while
LIMITS = """
workers = 1
protected_mode = false
[limits]
maxclients = 3000
memory = "64mb"
max_value = "4mb"
max_request = "8mb"
handshake_timeout = "30s"
client_output_hard = "16mb"
client_output_soft = "%s"
client_requests = %d
"""
POOL = 'timeout = "5s"\nreset_after = "5s"\nconnect_timeout = "2s"\nconnections_per_node = %d\npartial = "%s"'
END = encode(b"PING") + encode(b"RESET")  # CLIENT REPLY SKIP takes the PING's reply, RESET undoes the rest
BAD_LOG = re.compile(
    r"AddressSanitizer|runtime error:|handler_failed|Traceback|Exception ignored|invalid (read|write)", re.I
)

# May wait for data
BLOCKING = frozenset(
    b"BLPOP BRPOP BLMOVE BLMPOP BRPOPLPUSH BZPOPMIN BZPOPMAX BZMPOP XREAD XREADGROUP WAIT".split()
)


def names_others(names: list[bytes]) -> bool:
    """The number of its replies says nothing."""
    return b"CLIENT REPLY" in names or b"MONITOR" in names


class Broken(AssertionError):
    """A rule was broken."""


class FuzzedProxy(ProxyProcess):
    """`shardproxy serve` from a build with sanitizers, or under valgrind."""

    def __init__(self, text: str, how: str) -> None:
        super().__init__(text)
        self.env, self.command = dict(os.environ) | {"PYTHONPATH": str(build.ROOT)}, [sys.executable]
        if how == "asan":
            self.env = build.environment(build.build("asan"))
        elif how == "valgrind":
            self.env["PYTHONMALLOC"] = "malloc"
            options = ["--quiet", "--error-exitcode=99", "--exit-on-first-error=yes"]
            options.append(f"--suppressions={HERE / 'valgrind.supp'}")
            self.command = ["valgrind", *options, sys.executable]

    def launch(self) -> Self:
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.command, "-m", "shardproxy", "serve", "-c", str(self.config_path)],
                stdout=log, stderr=subprocess.STDOUT, cwd=self.folder, env=self.env,
            )  # fmt: skip
        return self

    def start(self) -> Self:
        self.launch()
        self.addresses = until(self._listening, "shardproxy to listen", patience=2 * PATIENCE)
        return self


class Field:
    """The proxy, its nodes, and who is on the other side."""

    def __init__(
        self, rnd: Random, proxy: FuzzedProxy, real: list[RedisNode], fake: list[HostileNode]
    ) -> None:
        self.rnd, self.proxy, self.real, self.fake = rnd, proxy, real, fake
        self.openings: Openings | None = None
        self.counts = {"clients": 0, "bytes": 0, "programs": 0, "witnessed": 0, "replies": 0}
        self.base_fds = 0
        self.base_rss = 0
        self.log_read = 0

    # --- clients ---

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.counts["clients"] += 1
        return await asyncio.open_connection("127.0.0.1", self.proxy.port, limit=1 << 22)

    async def send(self, writer: asyncio.StreamWriter, rnd: Random, data: bytes) -> None:
        """Whole, in pieces, or byte by byte."""
        self.counts["bytes"] += len(data)
        how = rnd.random()
        if how < 0.4 or len(data) > 200_000:
            writer.write(data)
            await writer.drain()
            return
        at = 0
        while at < len(data):
            size = 1 if how > 0.9 and len(data) < 2000 else rnd.randrange(1, 2 + len(data) // 3)
            writer.write(data[at : at + size])
            at += size
            await asyncio.sleep(0 if rnd.random() < 0.9 else 0.002)

    async def rest(self, reader: asyncio.StreamReader, scanner: Scanner) -> list[bytes]:
        """Every frame until the proxy closes."""
        frames: list[bytes] = []
        try:
            while data := await asyncio.wait_for(reader.read(1 << 18), PATIENCE):
                frames += scanner.feed(data)
        except TimeoutError:  # which is an OSError, and those are nothing special here
            raise Broken(
                f"a client's end of file is not answered by another; {len(frames)} replies so far"
            ) from None
        self.counts["replies"] += len(frames)
        return frames

    async def spoilt_client(self, rnd: Random) -> None:
        """Bytes that are nearly right, or not at all; the proxy closes after our end of file."""
        reader, writer = await self.connect()
        with contextlib.suppress(OSError):
            data = packed(rnd, program(rnd, rnd.choice([1, 3, 10, 40])))
            await self.send(writer, rnd, spoil(rnd, data, rnd.choice([1, 1, 2, 5])))
            if rnd.random() < 0.4:
                writer.transport.abort()
                return
            writer.write_eof()
            await self.rest(reader, Scanner())
        writer.close()

    async def random_client(self, rnd: Random) -> None:
        reader, writer = await self.connect()
        with contextlib.suppress(OSError):
            await self.send(writer, rnd, rnd.randbytes(rnd.choice([1, 10, 100, 5000, 100000])))
            writer.write_eof()
            await self.rest(reader, Scanner())
        writer.close()

    async def valid_client(self, rnd: Random) -> None:
        """A program without a mistake: as many replies as commands, and the last is its own."""
        reader, writer = await self.connect()
        commands = program(rnd, rnd.choice([1, 5, 30, 200]))
        names = [b" ".join(each[:2]).upper() for each in commands]
        nonce = b"nonce:%d" % rnd.randrange(1 << 60)
        self.counts["programs"] += 1
        try:
            await self.send(writer, rnd, packed(rnd, commands) + END + encode(b"ECHO", nonce))
            writer.write_eof()
            frames = await self.rest(reader, Scanner())
        except OSError:
            frames = []
        writer.close()
        if b"QUIT" in names or any(each[0].upper() in BLOCKING for each in commands):
            return  # who waits for data and has sent an end of file is closed, as on a Redis
        if any(b"SUBSCRIBE" in name or b"TRACKING" in name for name in names):
            return  # nobody knows how many messages come, and others kill subscribers
        end = [b"+RESET\r\n", b"$%d\r\n%b\r\n" % (len(nonce), nonce)]
        if frames[-2:] != end:
            # a node that is lost in the middle of its reply takes the client with it
            if not any(node.vice != "none" for node in self.fake):
                raise Broken(f"the last replies are {frames[-2:]!r}"[:300])
        elif not names_others(names) and len(frames) != len(commands) + 3:
            raise Broken(f"{len(frames)} replies to {len(commands) + 3} commands")

    async def leaving_client(self, rnd: Random) -> None:
        """Sends a lot and goes without reading, or reads a little."""
        reader, writer = await self.connect()
        with contextlib.suppress(OSError):
            data = packed(rnd, program(rnd, rnd.choice([50, 300])))
            writer.write(data[: rnd.randrange(len(data) + 1)])
            await asyncio.sleep(rnd.choice([0, 0, 0.01, 0.2]))
            if rnd.random() < 0.3:
                await asyncio.wait_for(reader.read(1000), 0.2)
        writer.transport.abort()

    async def greedy_client(self, rnd: Random) -> None:
        """Asks for far more than it reads."""
        reader, writer = await self.connect()
        with contextlib.suppress(OSError):
            writer.write(encode(b"SET", b"{big}", b"B" * 300_000) + encode(b"MGET", *[b"{big}"] * 20) * 30)
            writer.write(encode(b"MULTI") + encode(b"SET", b"{big}", b"C" * 100_000) * 50)
            await asyncio.sleep(rnd.random())
            for _ in range(rnd.randrange(5)):
                await asyncio.wait_for(reader.read(1 << 20), 0.5)
        writer.transport.abort()

    async def idle_client(self, rnd: Random) -> None:
        _, writer = await self.connect()
        with contextlib.suppress(OSError):
            writer.write(
                rnd.choice([b"", b"*", b"*2\r\n$3\r\nGET\r\n", encode(b"GET", b"a"), encode(b"MULTI")])
            )
            await asyncio.sleep(0.5)
        writer.transport.abort() if rnd.random() < 0.5 else writer.close()

    async def many(self, kind: str, count: int) -> None:
        clients = [getattr(self, f"{kind}_client")(Random(self.rnd.random())) for _ in range(count)]
        # what lists all keys of nodes that never answer takes half a minute each time
        await asyncio.wait_for(asyncio.gather(*clients), 5 * PATIENCE)

    # --- rules ---

    async def ask(self, *args: bytes) -> Any:
        reader, writer = await self.connect()
        writer.write(encode(*args))
        line = await asyncio.wait_for(reader.readline(), PATIENCE)
        body = (
            await asyncio.wait_for(reader.readexactly(int(line[1:]) + 2), PATIENCE)
            if line[:1] == b"$"
            else b""
        )
        writer.close()
        return line, body

    async def counters(self) -> dict[str, int]:
        _, body = await self.ask(b"PROXY", b"INFO")
        found: dict[str, int] = msgspec.json.decode(body)["counters"]
        return found

    def alive(self) -> None:
        assert self.proxy.process is not None
        code = self.proxy.process.poll()
        if code is not None:
            raise Broken(f"the proxy ended with exit code {code}")
        with self.proxy.log_path.open("rb") as log:
            log.seek(self.log_read)
            news = log.read()
        self.log_read += max(0, len(news) - 100)  # a word may be cut in two
        if found := BAD_LOG.search(news.decode(errors="replace")):
            raise Broken(f"its log says {found[0]!r}")

    def memory(self) -> int:
        return int(Path(f"/proc/{self.proxy.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def settled(self) -> None:
        """Everything that the round took is given back."""
        for node in self.fake:
            node.vice = "none"
        limit, left = time.monotonic() + PATIENCE, ""
        while time.monotonic() < limit:
            self.alive()
            counters = await self.counters()
            fds = len(os.listdir(f"/proc/{self.proxy.pid}/fd"))
            left = (
                f"clients {counters['clients']}, buffer_bytes {counters['buffer_bytes']}, descriptors {fds}"
            )
            left += f", openings {counters['opening']}"
            # this one and the witness; up to four upstreams for every node, each with what it reads into
            if (
                counters["clients"] <= 2
                and counters["buffer_bytes"] < 8 << 20
                and counters["opening"] == 0
                and fds <= self.base_fds + 32
            ):
                return
            await asyncio.sleep(0.1)
        raise Broken(f"not given back: {left}")

    async def witness(self, keys: list[bytes]) -> None:
        """Right replies, whatever others do."""
        reader, writer = await self.connect()
        number = 0
        writer.write(b"".join(encode(b"SET", key, b"") for key in keys))
        await reader.readexactly(5 * len(keys))
        while True:
            number += 1
            key, value = keys[number % len(keys)], b"%d:%b" % (number, b"w" * (number % 50))
            writer.write(encode(b"SET", key, value) + encode(b"GET", key) + encode(b"EXISTS", *keys[:3]))
            expected = b"+OK\r\n$%d\r\n%b\r\n:3\r\n" % (len(value), value)
            got = b""
            while len(got) < len(expected) and (data := await asyncio.wait_for(reader.read(4096), PATIENCE)):
                got += data
            if got != expected:
                raise Broken(f"the witness got {got!r} instead of {expected!r}")
            self.counts["witnessed"] += 3
            await asyncio.sleep(0.01)


# --- rounds ---


async def spoilt(field: Field) -> None:
    await field.many("spoilt", 60)


async def random_bytes(field: Field) -> None:
    await field.many("random", 30)


async def valid(field: Field) -> None:
    await field.many("valid", 25)


async def leaving(field: Field) -> None:
    await asyncio.gather(field.many("leaving", 40), field.many("valid", 5))


async def greedy(field: Field) -> None:
    await asyncio.gather(field.many("greedy", 4), field.many("valid", 5))


async def crowd(field: Field) -> None:
    await asyncio.gather(*(field.many("idle", 500) for _ in range(3)), field.many("spoilt", 20))


async def hostile_nodes(field: Field) -> None:
    for node in field.fake:
        node.vice = None
    await asyncio.gather(field.many("valid", 25), field.many("spoilt", 10), field.many("leaving", 5))


async def hostile_memcached(field: Field) -> None:
    """One among nodes that are well: what it says must reach nobody else."""
    for node in field.fake:
        node.vice = None if isinstance(node, HostileMemcached) else "none"
    await asyncio.gather(field.many("valid", 25), field.many("spoilt", 10), field.many("leaving", 5))


async def one_vice(field: Field) -> None:
    vice = field.rnd.choice(list(VICES))
    for node in field.fake:
        node.vice = vice
    await asyncio.gather(field.many("valid", 20), field.many("leaving", 10))


async def node_dies(field: Field) -> None:
    """The second real node goes in the middle of everything, and comes back."""
    for node in field.fake:
        node.vice = None

    async def dies() -> None:
        for _ in range(2):
            await asyncio.sleep(field.rnd.random() / 2)
            field.real[1].kill()
            await asyncio.sleep(field.rnd.random() / 2)
            await asyncio.get_running_loop().run_in_executor(None, field.real[1].start)

    await asyncio.gather(dies(), *(field.many("valid", 10) for _ in range(3)), field.many("leaving", 10))


async def openings(field: Field) -> None:
    """Whoever is closed without a word, for that there is a reason in the log."""
    doors = field.openings
    assert doors is not None
    before, closed = await field.counters(), doors.unanswered
    clients = (doors.client(Random(field.rnd.random())) for _ in range(60))
    await asyncio.wait_for(asyncio.gather(*clients), 5 * PATIENCE)
    reasons = (await field.counters())["clients_killed"] - before["clients_killed"]
    if reasons < doors.unanswered - closed:
        raise Broken(f"{doors.unanswered - closed} were closed without a word, and {reasons} reasons told")


ROUNDS: dict[str, Callable[[Field], Awaitable[None]]] = {
    each.__name__: each
    for each in (
        *(spoilt, random_bytes, valid, leaving, greedy, crowd, openings),
        *(hostile_nodes, hostile_memcached, one_vice, node_dies),
    )
}


async def fuzz(
    how: str, seconds: float, rounds: int, seed: int, first: int = 0, only: str | None = None
) -> dict[str, int]:
    """Rounds from number `first` until the time or their number is over. Raises Broken.

    how: "asan", "plain" or "valgrind".
    """
    rnd, done = Random(seed), first
    with contextlib.ExitStack() as stack:
        real = [stack.enter_context(RedisNode("--maxmemory", "200mb")) for _ in range(2)]
        fake = [kind(Random(rnd.random())) for kind in (HostileNode, HostileNode, HostileMemcached)]
        memcached = stack.enter_context(MemcachedNode())
        for node in fake:
            await node.start()
            stack.callback(node.stop)
            node.vice = "none"
        shards = {"a": real[0].address, "b": real[1].address}
        shards |= {name: f"127.0.0.1:{node.port}" for name, node in zip("cd", fake[:2], strict=True)}
        shards |= {"e": memcached.url, "f": f"memcached://127.0.0.1:{fake[2].port}"}
        output, requests = rnd.choice(["1mb", "20kb"]), rnd.choice([1024, 1024, 7])
        limits = LIMITS % (output, requests)
        pool = POOL % (rnd.choice([1, 2]), rnd.choice(["error", "nil"]))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="shardproxy-fuzz-"))
        listen, more, context = openings_of(Path(folder))
        text = toml(shards, ["127.0.0.1:0", *listen], limits, pool) + more
        proxy = FuzzedProxy(text, how)
        stack.callback(proxy.stop)
        # the fake nodes are on this loop, so it must not wait
        await asyncio.get_running_loop().run_in_executor(None, proxy.start)
        made = Topology.from_config(config.load(text.encode())).pools[0]
        keys = [key for key in (b"witness:%d" % n for n in range(200)) if made.home(key).name == "a"][:10]
        field = Field(rnd, proxy, real, fake)
        ports = [int(each.rpartition(":")[2]) for each in proxy.addresses[1:]]
        field.openings = Openings(context, dict(zip(MISTAKES, ports, strict=True)), field.send)
        witness = asyncio.create_task(field.witness(keys))
        name, limit, log = "start", time.monotonic() + seconds, proxy.log_path
        try:
            field.base_fds = len(os.listdir(f"/proc/{proxy.pid}/fd"))
            await field.settled()
            while (done < first + rounds or not rounds) and time.monotonic() < limit:
                name = only or list(ROUNDS)[done % len(ROUNDS)]
                rnd.seed(seed * 1_000_003 + done)
                await ROUNDS[name](field)
                await field.settled()
                if witness.done():
                    witness.result()
                done += 1
                if done == first + len(ROUNDS):
                    field.base_rss = field.memory()
                elif field.base_rss and field.memory() > field.base_rss + GROWTH:
                    raise Broken(f"grown from {field.base_rss >> 20} to {field.memory() >> 20} MB")
        except Exception as error:
            tail = "\n".join(
                [line for line in log.read_text().splitlines() if "protocol_error" not in line][-60:]
            )
            raise Broken(
                f"round {done} ({name}), seed {seed}: {type(error).__name__}: {error}\n{tail}"
            ) from error
        finally:
            witness.cancel()
            (build.folder("fuzz")).mkdir(parents=True, exist_ok=True)
            (build.folder("fuzz") / "engine.log").write_text(log.read_text())
        grown = (field.memory() - field.base_rss) >> 20 if field.base_rss else 0
        proxy.signal(signal.SIGTERM)
        try:
            code = await asyncio.get_running_loop().run_in_executor(None, proxy.wait, PATIENCE)
        except subprocess.TimeoutExpired:
            raise Broken(f"it does not stop\n{log.read_text()[-3000:]}") from None
        if code != 0:
            raise Broken(f"stopped with exit code {code}\n{log.read_text()[-9000:]}")
    return {
        "rounds": done - first,
        "node replies": sum(node.replies for node in fake),
        "megabytes": grown,
        **field.counts,
        "came in": field.openings.came_in,
        "turned away": field.openings.unanswered,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=0, help="stop after so many; 0: by time alone")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--first", type=int, default=0, help="the number of the first round")
    parser.add_argument("--only", choices=list(ROUNDS))
    parser.add_argument("--plain", dest="how", action="store_const", const="plain", default="asan")
    parser.add_argument("--valgrind", dest="how", action="store_const", const="valgrind")
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.randrange(1 << 30)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of clients that were closed
    try:
        print(asyncio.run(fuzz(chosen.how, chosen.seconds, chosen.rounds, seed, chosen.first, chosen.only)))
    except Broken as broken:
        raise SystemExit(f"BROKEN {broken}") from broken


if __name__ == "__main__":
    main()
