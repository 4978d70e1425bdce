"""Clients that write down what they are told, while nodes die, hang, slow down and return: `--minutes 60`

    python -m tests.adversity.chaos --minutes 60 --pool invalidate flush --at-once --protocol mixed

Rounds of troubles over the same nodes and the same proxy; after each round everything is well again, every
key is read once more, and `history.check` judges all of it. Prints a line a round and, at the end, one a pool
with what the proxy's memory did; the exit code is 1 when there was a mistake. `--seed 7` repeats the choices
of a run, not its timing. Node c is behind a network with faults, a and b are reached directly.
`--protocol memcached` has three memcacheds, `mixed` two and a Redis.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    here = Path(__file__).parent
    sys.path[:0] = [str(here.parent), str(here)]

import hiredis
import psutil
import pytest
from asking import nodes_of
from history import OK, OUTCOMES, UNKNOWN, History, Operation, check, number_in, value_of
from servers import MemcachedNode, ProxyProcess, Raw, RedisNode, pack, toml, until
from toxics import Bandwidth, FaultProxy, Latency, LimitData, ResetPeer, Slicer, Timeout, Toxic

QUICK = 'timeout = "300ms"\nconnect_timeout = "300ms"\nhealth = { interval = "200ms", timeout = "250ms" }'
POOLS = {
    "invalidate": f'kind = "cache"\non_shard_down = "rehash"\non_return = "invalidate"\n{QUICK}',
    "flush": f'kind = "cache"\non_shard_down = "rehash"\non_return = "flush"\n{QUICK}',
    "miss": f'kind = "cache"\non_shard_down = "miss"\non_return = "keep"\n{QUICK}',
    "durable": QUICK,
}
NODES: dict[str, Sequence[type[RedisNode | MemcachedNode]]] = {  # a, b, c
    "redis": (RedisNode, RedisNode, RedisNode),
    "memcached": (MemcachedNode, MemcachedNode, MemcachedNode),
    "mixed": (RedisNode, MemcachedNode, MemcachedNode),
}
PATIENCE = 30.0  # of a client, for any reply
PATIENT = 60.0  # seconds that a machine with other work may take until a node is judged
WARM = 10  # rounds until the memory is what it is to stay

# --- those who ask ---

Asked = tuple[str, str, int | None]  # kind, key, number of a write


class Client:
    """The only writer of its keys and its counter; reads everybody's. One pipeline at a time."""

    def __init__(self, run: "Run", number: int) -> None:
        self.run, self.number = run, number
        self.random = random.Random(f"{run.name} {number}")
        self.written: dict[str, int] = dict.fromkeys(run.keys_of(number), 0)
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.parser = hiredis.Reader()
        self.connection = 0

    async def live(self, over: Callable[[], bool]) -> None:
        while not over():
            if self.random.random() < 0.01:
                self.leave()
            await self.ask(self.pipeline())
            await asyncio.sleep(self.random.random() * 0.02)
        self.leave()

    def pipeline(self) -> list[Asked]:
        """No key is written twice in it: each outcome is known before the next write."""
        mine = self.random.sample(sorted(self.written), self.random.choice((0, 1, 1, 2)))
        asked: list[Asked] = []
        for key in mine:
            self.written[key] += 1
            asked.append(("del" if self.random.random() < 0.1 else "set", key, self.written[key]))
        if self.random.random() < 0.3:
            asked.append(("incr", self.run.counter_of(self.number), None))
        for _ in range(self.random.choice((0, 1, 2, 5))):
            writer = self.random.randrange(self.run.clients)
            key = self.random.choice(self.run.keys_of(writer))
            asked.append(("get", key, None))
        if self.random.random() < 0.1:
            asked.append(("count", self.run.counter_of(self.random.randrange(self.run.clients)), None))
        self.random.shuffle(asked)
        return asked

    async def read_all(self) -> None:
        """Every key there is, once more."""
        for writer in range(self.run.clients):
            await self.ask([("get", key, None) for key in self.run.keys_of(writer)])
            await self.ask([("count", self.run.counter_of(writer), None)])
        self.leave()

    async def ask(self, asked: Sequence[Asked]) -> None:
        """Sends all, and writes down each outcome."""
        left = list(asked)
        start = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                if self.streams is None:
                    self.streams = await asyncio.open_connection("127.0.0.1", self.run.port)
                    self.parser = hiredis.Reader()
                    self.connection += 1
                reader, writer = self.streams
                writer.write(b"".join(self.request(*each) for each in asked))
                while left:
                    if not (data := await reader.read(1 << 16)):
                        break
                    self.parser.feed(data)
                    while left and (reply := self.parser.gets()) is not False:
                        self.note(left.pop(0), start, reply)
                if left:
                    self.leave()
        except TimeoutError:
            for each in left:
                self.write_down(each, start, "silence", error=f"for {PATIENCE:g} s")
            left.clear()
            self.leave()
        except OSError:
            self.leave()
        for each in left:
            self.write_down(each, start, UNKNOWN, error="LOST")

    def request(self, kind: str, key: str, number: int | None) -> bytes:
        if kind == "set":
            assert number is not None
            return pack("SET", key, value_of(key, self.number, number))
        return pack({"del": "DEL", "incr": "INCR"}.get(kind, "GET"), key)

    def note(self, asked: Asked, start: float, reply: Any) -> None:
        kind, key, number = asked
        if isinstance(reply, hiredis.ReplyError):
            code = str(reply).split(" ", 1)[0]
            self.write_down(asked, start, OUTCOMES.get(code, "wrong"), error=str(reply))
        elif kind == "get":
            number, wrong = (None, "") if reply is None else number_in(key, int(key.split(":")[1]), reply)
            self.write_down((kind, key, number), start, "wrong" if wrong else OK, error=wrong)
        elif kind in ("incr", "count"):
            fine = isinstance(reply, int) if kind == "incr" else reply is None or reply.isdigit()
            value = None if reply is None or not fine else int(reply)
            self.write_down((kind, key, value), start, OK if fine else "wrong", error=repr(reply)[:80])
        else:
            fine = reply == b"OK" if kind == "set" else reply in (0, 1)
            self.write_down(asked, start, OK if fine else "wrong", error=repr(reply)[:80])

    def write_down(self, asked: Asked, start: float, outcome: str, error: str = "") -> None:
        kind, key, number = asked
        self.run.seen[outcome if outcome == OK else error.split(" ", 1)[0]] += 1
        end, which = time.monotonic(), self.connection
        self.run.history.operations.append(
            Operation(self.number, kind, key, start, end, outcome, number, error, which)  # type: ignore[arg-type]
        )

    def leave(self) -> None:
        if self.streams:
            self.streams[1].close()
        self.streams = None


class Run:
    """One round: its clients, their keys, and everything that they are told. name: begins every key."""

    def __init__(self, port: int, name: str, clients: int, lossy: bool, apart: bool) -> None:
        self.port, self.name, self.clients = port, name, clients
        self.history = History(lossy=lossy, apart=apart)
        self.seen: Counter[str] = Counter()

    def keys_of(self, client: int) -> list[str]:
        return [f"{self.name}:{client}:{number}" for number in range(4)]

    def counter_of(self, client: int) -> str:
        return f"{self.name}:{client}:count"

    def locate(self, proxy: ProxyProcess) -> None:
        """Which shard each key belongs to."""
        names = [
            name for each in range(self.clients) for name in (*self.keys_of(each), self.counter_of(each))
        ]
        with proxy.raw() as raw:
            places = json.loads(raw.value("PROXY", "LOCATE", *names))
        self.history.homes = {name: str(place["shard"]) for name, place in zip(names, places, strict=True)}

    async def go(self, trouble: Callable[[], None]) -> None:
        """All clients, until the trouble (in a thread) is over; then one that looks at everything."""
        over = False
        clients = [Client(self, number) for number in range(self.clients)]
        lives = [asyncio.create_task(client.live(lambda: over)) for client in clients]
        try:
            await asyncio.to_thread(trouble)
        finally:
            over = True
            await asyncio.gather(*lives)
        await clients[0].read_all()


# --- what happens to the nodes ---

TOXICS: Sequence[tuple[str, list[Toxic]]] = (
    ("slow", [Latency(0.1, 0.05)]),
    ("slower than the deadline", [Latency(0.5)]),
    ("sliced", [Slicer(20, 0.0005), Slicer(20, 0.0005).upstream()]),
    ("narrow", [Bandwidth(200_000)]),
    ("swallowing replies", [Timeout()]),
    ("swallowing requests", [Timeout().upstream()]),
    ("resetting", [ResetPeer(0.05)]),
    ("cut after 20 KB", [LimitData(20_000)]),
)


class Stage:
    """Three nodes, a network before the last, a proxy: and what may happen to them, one thing at a time."""

    def __init__(
        self, stack: contextlib.ExitStack, pool: str, workers: int, seed: int, protocol: str = "redis"
    ) -> None:
        self.random = random.Random(seed)
        self.nodes = {
            name: stack.enter_context(kind()) for name, kind in zip("abc", NODES[protocol], strict=True)
        }
        self.network = stack.enter_context(FaultProxy(self.nodes["c"].port))
        self.urls = {name: node.url for name, node in self.nodes.items()}
        self.urls["c"] = f"{self.nodes['c'].scheme}://{self.network.address}"
        self.pool, self.workers = POOLS[pool], workers
        self.weights = dict.fromkeys("abc", 1)
        self.proxy = stack.enter_context(ProxyProcess(self.config()))
        self.happened: list[str] = []
        self.run: Run | None = None

    def config(self, retries: int = 2) -> str:
        shards = "\n".join(
            f'{name} = {{ primary = "{url}", weight = {self.weights[name]} }}'
            for name, url in self.urls.items()
        )
        pool = f"{self.pool}\nretries = {retries}"
        return f"{toml({}, top=f'workers = {self.workers}', pool=pool)}{shards}\n"

    # each names itself in `happened` and leaves the node well

    def kill(self, shard: str) -> None:
        """Comes back empty, at once or later."""
        since = time.monotonic()
        if shard == "c":
            self.network.refuse()
        self.nodes[shard].kill()
        self.wait_for(shard, "out", self.random.random() < 0.6)
        self.nodes[shard].start()
        if shard == "c":
            self.network.accept()
        assert self.run is not None
        self.run.history.emptied.append((shard, since, time.monotonic()))

    def hang(self, shard: str) -> None:
        """Until it is out: bytes wait in its sockets, and it wakes with old values."""
        self.nodes[shard].pause()
        try:
            self.wait_for(shard, "out", True)
            self.more(self.random.choice((50, 300)))
        finally:
            self.nodes[shard].resume()

    def hiccup(self, shard: str) -> None:
        """Shorter or a little longer than the deadline."""
        self.nodes[shard].pause()
        time.sleep(self.random.uniform(0.1, 0.6))
        self.nodes[shard].resume()

    def twice(self, shard: str) -> None:
        """A second outage as soon as the first is over: what was written meanwhile must not be seen again."""
        self.hang(shard)
        self.wait_for(shard, "up", True)
        self.more(20)
        self.hang(shard)

    def again_before_it_is_back(self, shard: str) -> None:
        """It hangs, wakes, and hangs again in the middle of its return."""
        self.hang(shard)
        time.sleep(self.random.uniform(0.05, 0.6))
        self.hiccup(shard)

    def busy(self, shard: str) -> None:
        """Of a memcached, which cannot be: a hiccup."""
        if not isinstance(node := self.nodes[shard], RedisNode):
            self.hiccup(shard)
            return
        with node.raw() as raw:
            raw.ask("DEBUG", "SLEEP", f"{self.random.uniform(0.1, 0.8):.2f}")

    def cut(self, shard: str) -> None:
        """By the node; the connections to a memcached by the network, so it is c whichever is asked for."""
        node = self.nodes[shard]
        for _ in range(3):
            if isinstance(node, RedisNode):
                with node.raw() as raw:
                    raw.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            else:
                self.happened[-1] = "c cut"
                self.network.cut()
            self.more(10)

    def toxic(self, shard: str) -> None:
        """Of c, whichever is asked for."""
        name, self.network.toxics = self.random.choice(TOXICS)
        self.happened[-1] = f"c {name}"
        time.sleep(self.random.uniform(0.2, 1.5))
        self.network.toxics = ()

    def reload(self, shard: str) -> None:
        """Three times another weight, or where keys that move back would find old values another option."""
        moves = "on_return" in self.pool and '"keep"' not in self.pool
        for turn in range(3):
            if moves:
                self.weights[shard] = self.weights[shard] % 3 + 1
            self.proxy.config_path.write_text(self.config(retries=2 - turn % 2))
            until(self.loaded, f"it to be loaded: {self.happened[-3:]}", PATIENT)
            self.more(20)

    def loaded(self) -> bool:
        """False: what the last change has left is not tidied yet, with a node that does not answer."""
        with Raw(self.proxy.port, PATIENT) as raw:
            found = str(raw.value("PROXY", "RELOAD"))
        assert found.startswith("{") or "being deleted" in found, found
        return found.startswith("{")

    KINDS = (kill, hang, twice, hiccup, again_before_it_is_back, busy, cut, toxic, reload)

    def troubles(self, kinds: Sequence[Callable[["Stage", str], None]], count: int) -> None:
        """Each of these once, in any order, and then others; `count` in all. Well at the end."""
        chosen = [*kinds, *(self.random.choice(self.KINDS) for _ in range(count - len(kinds)))]
        self.random.shuffle(chosen)
        for kind in chosen:
            shard = self.random.choice("abc")
            self.happened.append(f"{shard} {kind.__name__}")
            self.more(20)
            kind(self, shard)
            if self.random.random() < 0.7:
                self.all_up()
        self.all_up()
        self.more(100)

    def troubles_told(self, kinds: Sequence[Callable[["Stage", str], None]], count: int) -> None:
        """As troubles; asyncio forgets where in a thread a TimeoutError was raised."""
        try:
            self.troubles(kinds, count)
        except OSError:
            pytest.fail(f"{self.happened[-3:]}: {traceback.format_exc()}")

    # --- waiting ---

    def more(self, count: int) -> None:
        """So many more operations."""
        assert self.run is not None
        done = self.run.history.operations
        goal = len(done) + count
        until(lambda: len(done) >= goal, f"{count} more operations after {self.happened[-3:]}", PATIENT)

    def states(self) -> dict[str, str]:
        with Raw(self.proxy.port, PATIENT) as raw:
            return {node["shard"]: node["state"] for node in nodes_of(raw)}

    def wait_for(self, shard: str, state: str, really: bool) -> None:
        if really:
            until(
                lambda: self.states()[shard] == state,
                f"{shard} to be {state}: {self.happened[-3:]}",
                PATIENT,
            )
        else:
            time.sleep(self.random.uniform(0, 0.3))

    def all_up(self) -> None:
        until(lambda: set(self.states().values()) == {"up"}, f"all to be up: {self.happened[-3:]}", PATIENT)

    def memory(self) -> int:
        """Resident bytes of the proxy, with its workers."""
        process = psutil.Process(self.proxy.pid)
        family = [process, *process.children(recursive=True)]
        return sum(each.memory_info().rss for each in family)

    # --- a round ---

    def round(self, name: str, clients: int, lossy: bool, count: int) -> tuple[Run, list[str]]:
        """So many troubles, each kind at least once if there is room; and every mistake."""
        self.run = run = Run(self.proxy.port, name, clients, lossy, self.workers > 1)
        run.locate(self.proxy)
        kinds = self.KINDS if count >= len(self.KINDS) else ()
        asyncio.run(run.go(lambda: self.troubles_told(kinds, count)))
        mistakes = check(run.history)
        mistakes += [f"in the log: {event}" for event in self.proxy.events("handler_failed")]
        with self.proxy.raw() as raw:
            raw.ask("FLUSHALL")
        return run, mistakes


@contextlib.contextmanager
def stage(pool: str, workers: int = 1, seed: int = 1, protocol: str = "redis") -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        made = Stage(stack, pool, workers, seed, protocol)
        made.all_up()
        yield made


class Summary(NamedTuple):
    """What came of one pool. memory: resident bytes of the proxy, once it was warm and at the end."""

    pool: str
    rounds: int
    troubles: int
    replies: int
    mistakes: int
    minutes: float
    memory: tuple[int, int]

    def __str__(self) -> str:
        early, late = self.memory
        return (
            f"{self.pool}: {self.minutes:.0f} minutes, {self.rounds} rounds, {self.troubles} troubles, "
            f"{self.replies} replies, {self.mistakes} mistakes; "
            f"memory {early / 1e6:.1f} → {late / 1e6:.1f} MB"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="for each pool")
    parser.add_argument("--pool", choices=[*POOLS, "all"], nargs="+", default=["all"])
    parser.add_argument("--at-once", action="store_true", help="the pools, each with nodes of its own")
    parser.add_argument("--protocol", choices=[*NODES], default="redis", help="of the nodes")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    pools = list(POOLS) if "all" in args.pool else args.pool
    with ProcessPoolExecutor(len(pools) if args.at_once else 1, get_context("spawn")) as processes:
        found = list(processes.map(partial(chaos, args=args), pools))
    print(*found, sep="\n")
    return 1 if any(each.mistakes for each in found) else 0


def chaos(pool: str, args: argparse.Namespace) -> Summary:
    """Rounds for so long, in a process of its own; a wait in vain ends them, and is a mistake."""
    start, happened, memory, wrong, seen = time.monotonic(), list[str](), list[int](), 0, Counter[str]()
    try:
        with stage(pool, args.workers, args.seed, args.protocol) as made:
            while not memory or time.monotonic() < start + 60 * args.minutes:
                made.happened = []
                name = f"{pool}{len(memory) + 1}"
                run, mistakes = made.round(name, args.clients, pool != "durable", len(Stage.KINDS))
                memory.append(made.memory())
                happened += made.happened
                wrong += len(mistakes)
                seen.update(run.seen)
                told = f"{dict(run.seen)}, {memory[-1] / 1e6:.1f} MB, {len(mistakes)} mistakes"
                print(f"{time.strftime('%X')} {name}: {told}", flush=True)
                if mistakes:
                    print("  " + "; ".join(made.happened), *mistakes[:20], sep="\n  ", flush=True)
                    for key in {mistake.split(": ", 1)[0] for mistake in mistakes[:20]}:
                        print(*run.history.told(key), sep="\n    ", flush=True)
    except (Exception, pytest.fail.Exception):
        print(f"{pool}: {traceback.format_exc()}", flush=True)
        wrong += 1
    minutes, around = (time.monotonic() - start) / 60, memory[WARM - 1 : WARM] + memory[-1:] or [0]
    return Summary(pool, len(memory), len(happened), seen.total(), wrong, minutes, (around[0], around[-1]))


if __name__ == "__main__":
    sys.exit(main())
