"""The same trial for as long as one likes: `python -m tests.adversity.soak --minutes 10`

Rounds of witnesses in trouble (see test_wrong_client), each on fresh nodes and a fresh proxy, with a random
client count, worker count and pool; besides the nodes' troubles the network's (see toxics) and, with
several workers, kills of workers. Prints a line a round, and the mistakes of the first round that has any;
the exit code is then 1. `--clients 4000 --workers 1` sets what else is left to chance, `--seed 7` repeats
the choices of a run, not its timing.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).parent
    sys.path[:0] = [str(here.parent), str(here)]

import pytest
from servers import ProxyProcess, RedisNode, redis_nodes, toml
from test_wrong_client import DURABLE, Trouble, all_quiet, judge, raise_open_files, trial
from toxics import Bandwidth, FaultProxy, Latency, LimitData, ResetPeer, Slicer, SlowClose, Timeout, Toxic
from witness import Court

TOXICS: Sequence[tuple[str, list[Toxic]]] = (
    ("latency", [Latency(0.05, 0.04)]),
    ("slow and sliced", [Slicer(500, 0.001), Slicer(500, 0.001).upstream()]),
    ("narrow", [Bandwidth(2_000_000), Bandwidth(2_000_000).upstream()]),
    ("swallowing replies", [Timeout()]),
    ("swallowing requests", [Timeout().upstream()]),
    ("closing after a while", [Timeout(0.3)]),
    ("resetting", [ResetPeer(0.1)]),
    ("cut after 100 KB of replies", [LimitData(100_000)]),
    ("cut after 50 KB of requests", [LimitData(50_000).upstream()]),
    ("slow to close", [SlowClose(0.5), LimitData(200_000)]),
)


class MoreTrouble(Trouble):
    """And the network's, and the workers'."""

    def __init__(
        self, nodes: Sequence[RedisNode], networks: Sequence[FaultProxy], proxy: ProxyProcess, seed: int
    ) -> None:
        super().__init__(nodes)
        self.random = random.Random(seed)
        self.networks, self.proxy = networks, proxy

    def network(self, node: RedisNode) -> None:
        network = self.networks[self.nodes.index(node)]
        name, network.toxics = self.random.choice(TOXICS)
        self.happened[-1] = name
        time.sleep(self.random.uniform(0.3, 1.5))
        network.toxics = ()
        if self.random.random() < 0.5:
            network.cut()

    def unreachable(self, node: RedisNode) -> None:
        network = self.networks[self.nodes.index(node)]
        network.refuse()
        time.sleep(self.random.uniform(0.1, 1.0))
        network.accept()

    def kill_worker(self, node: RedisNode) -> None:
        ready = {event["worker"]: event["pid"] for event in self.proxy.events("worker_ready")}
        if ready:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.random.choice(list(ready.values())), signal.SIGKILL)

    KINDS = (*Trouble.KINDS, network, network, network, network, unreachable, kill_worker)


def one_round(clients: int, workers: int, seconds: float, seed: int) -> Court:
    """Raises AssertionError with the mistakes."""
    chance = random.Random(seed)
    court = Court(clients, keys=chance.choice((1, 3, 10)))
    pool = [
        f'timeout = "{chance.choice((200, 400))}ms"',
        f'reset_after = "{chance.choice((400, 1500, 5000))}ms"',
        'connect_timeout = "500ms"',
        f"connections_per_node = {chance.choice((1, 1, 3))}",
    ]
    with contextlib.ExitStack() as stack:
        nodes = stack.enter_context(redis_nodes(3, *DURABLE))
        networks = [stack.enter_context(FaultProxy(node.port)) for node in nodes]
        shards = {name: network.address for name, network in zip("abc", networks, strict=True)}
        config = toml(shards, top=f"workers = {workers}", pool="\n".join(pool))
        proxy = stack.enter_context(ProxyProcess(config))
        with proxy.raw() as raw:
            for number in range(8):
                raw.ask("HSET", f"hash:{number}", "field", "value")
        trouble = MoreTrouble(nodes, networks, proxy, seed)
        asyncio.run(trial(court, proxy.port, lambda: trouble.run(seconds, trouble.KINDS)))
        all_quiet(proxy)
        reasons = {event.get("reason") for event in proxy.events("client_closed")}
        assert reasons <= {"a node was lost in the middle of its reply"}, reasons
        assert not proxy.events("handler_failed"), proxy.log_text()
        proxy.stop()
        judge(court, nodes)
    return court


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=0, help="0: from 50 to 4000, by chance")
    parser.add_argument("--workers", type=int, default=0, help="0: from 1 to 3, by chance")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    raise_open_files(10_000)
    end, number = time.monotonic() + 60 * args.minutes, args.seed
    while time.monotonic() < end:
        chance = random.Random(number)
        clients = args.clients or chance.choice((50, 500, 2000, 4000))
        workers = args.workers or chance.choice((1, 1, 2, 3))
        print(f"seed {number}: {clients} clients, {workers} workers: ", end="", flush=True)
        try:
            one_round(clients, workers, min(30.0, max(15.0, end - time.monotonic())), number)
        except (AssertionError, pytest.fail.Exception) as error:
            print(error)
            return 1
        number += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
