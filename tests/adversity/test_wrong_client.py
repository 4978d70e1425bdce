"""No reply ever reaches the wrong client, and no client's order breaks, whatever goes wrong around them.

Thousands of witnesses on one proxy, while its nodes are stopped, killed in mid-reply, restarted, paused,
and their connections cut. The nodes keep an append-only file, so that what they have acknowledged is there
after a kill.
"""

import asyncio
import random
import resource
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from asking import counters, in_flight
from servers import ProxyProcess, Raw, RedisNode, redis_nodes, shards_of, toml, until
from witness import Court, Witness

DURABLE = ("--appendonly", "yes", "--appendfsync", "no")
POOL = 'timeout = "400ms"\nreset_after = "1200ms"\nconnect_timeout = "500ms"'


Kinds = Sequence[Callable[[Any, RedisNode], None]]  # methods of Trouble


class Trouble:
    """What happens to the nodes; each for about a second."""

    def __init__(self, nodes: Sequence[RedisNode]) -> None:
        self.nodes = nodes
        self.random = random.Random(1)
        self.happened: list[str] = []

    def stop(self, node: RedisNode) -> None:
        """Deadlines pass; the late replies come."""
        node.pause()
        time.sleep(0.8)
        node.resume()

    def stop_long(self, node: RedisNode) -> None:
        """The upstreams are reset; what was sent is executed later."""
        node.pause()
        time.sleep(1.8)
        node.resume()

    def sleep(self, node: RedisNode) -> None:
        with node.raw() as raw:
            raw.ask("DEBUG", "SLEEP", "0.7")

    def pause_clients(self, node: RedisNode) -> None:
        with node.raw() as raw:
            raw.ask("CLIENT", "PAUSE", "700", "ALL")
        time.sleep(0.8)

    def cut(self, node: RedisNode) -> None:
        """Ten times, every connection but ours."""
        with node.raw() as raw:
            for _ in range(10):
                raw.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                time.sleep(0.05)

    def kill(self, node: RedisNode) -> None:
        """In the middle of whatever it is saying; it comes back with its data."""
        node.kill()
        time.sleep(0.3)
        node.start()
        until(lambda: Raw(node.port).ask("PING") == b"+PONG\r\n", "the node to have loaded its file")

    KINDS: Kinds = (stop, stop_long, sleep, pause_clients, cut, kill)

    def one(self, kind: Callable[[Any, RedisNode], None]) -> None:
        node = self.random.choice(self.nodes)
        self.happened.append(kind.__name__)
        kind(self, node)

    async def run(self, seconds: float, each: Kinds = ()) -> None:
        """Each of these at least once, then any."""
        end = time.monotonic() + seconds
        kinds = list(each)
        while kinds or time.monotonic() < end:
            await asyncio.to_thread(self.one, kinds.pop() if kinds else self.random.choice(self.KINDS))
            await asyncio.sleep(0.4)


async def trial(
    court: Court, port: int, trouble: Callable[[], Awaitable[None]], *, patience: float = 60.0
) -> None:
    """All writers until the trouble is over."""
    over = False
    witnesses = [Witness(court, writer, port, patience=patience) for writer in range(court.writers)]
    lives = [
        asyncio.create_task(witness.live(lambda: over, stay=witness.writer % 3 == 0)) for witness in witnesses
    ]
    await trouble()
    over = True
    await asyncio.gather(*lives)


def judge(court: Court, nodes: Sequence[RedisNode]) -> None:
    """What the nodes hold at the end against what was acknowledged, and then all mistakes."""
    found: dict[str, object] = {}
    for node in nodes:
        with node.raw() as raw:
            keys = raw.value("KEYS", "*")
            for key in keys:
                if key.startswith(("key:", "count:")):
                    assert key not in found, f"{key} is on two nodes"
                    frame = raw.ask("GET", key)
                    found[key] = frame.split(b"\r\n", 1)[1][:-2]
    for key in court.values:
        court.check_node_value(key, found.get(key))
    for key in court.counts:
        court.check_node_count(key, found.get(key))
    print(dict(court.seen), f"{len(found)} keys")
    assert not court.mistakes, "\n".join(court.mistakes)


def raise_open_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def all_quiet(proxy: ProxyProcess) -> None:
    """Nothing is left of clients that left: nothing in flight, no more buffers than upstreams keep."""

    def quiet() -> bool:
        with proxy.raw() as raw:
            now, flying = counters(raw), in_flight(raw)
            seen[:] = [f"{now['clients']} clients, {now['buffer_bytes']} bytes, {flying} in flight"]
            return now["clients"] <= 2 and flying == 0 and now["buffer_bytes"] < 8 << 20

    seen: list[str] = []
    until(quiet, seen)  # type: ignore[arg-type]  # shown as it is at the end


def hurt(clients: int, top: str = "", kinds: Kinds = Trouble.KINDS) -> Court:
    """Each of these troubles once."""
    raise_open_files(clients + 500)
    court = Court(clients)
    with redis_nodes(3, *DURABLE) as nodes:
        with ProxyProcess(toml(shards_of(nodes), top=top, pool=POOL)) as proxy:
            with proxy.raw() as raw:
                for number in range(8):
                    raw.ask("HSET", f"hash:{number}", "field", "value")
            trouble = Trouble(nodes)
            asyncio.run(trial(court, proxy.port, lambda: trouble.run(0, kinds)))
            all_quiet(proxy)
            reasons = {event.get("reason") for event in proxy.events("client_closed")}
            assert reasons <= {"a node was lost in the middle of its reply"}, reasons
            assert not proxy.events("handler_failed") and not proxy.events("worker_died")
        judge(court, nodes)
    return court


def test_thousands_of_clients_in_trouble() -> None:
    court = hurt(2000)
    # else the run has shown nothing
    assert court.seen["replies"] > 20_000, court.seen
    assert court.seen["TIMEOUT"] and court.seen["SHARDDOWN"], court.seen
    assert court.seen["connections"] > 2500, court.seen


def test_thousands_of_clients_in_peace() -> None:
    """No trouble: no error at all."""
    raise_open_files(3500)
    court = Court(3000)
    with redis_nodes(3) as nodes:
        with ProxyProcess(toml(shards_of(nodes), pool='timeout = "60s"')) as proxy:
            with proxy.raw() as raw:
                for number in range(8):
                    raw.ask("HSET", f"hash:{number}", "field", "value")
            asyncio.run(trial(court, proxy.port, lambda: asyncio.sleep(5)))
            all_quiet(proxy)
        judge(court, nodes)
    assert not any(court.seen[code] for code in ("TIMEOUT", "UNKNOWN", "SHARDDOWN", "OVERLOADED")), court.seen
    assert court.seen["replies"] > 20_000, court.seen


def test_two_workers_in_trouble() -> None:
    court = hurt(600, "workers = 2", (Trouble.stop, Trouble.cut, Trouble.kill))
    assert court.seen["replies"] > 5_000, court.seen
