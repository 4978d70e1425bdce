"""The asyncio client beside redis-py's: calls a second of 200 tasks at once, in one run, alternating.

    python -m tests.bench.client            # runs these too
    python -m tests.bench.client_async      # these alone

Three nodes for us, the first of them for redis-py; both have the same settings, and every reply is checked.
One call after another is measured on one node for both: with more than one, a machine with few cores measures
how long its scheduler takes to wake another process.
"""

import asyncio
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import redis.asyncio

from shardproxy import AsyncShardedRedis
from tests.servers import RedisNode, redis_nodes, shards_of

KEYS = [f"key:{number}" for number in range(1000)]
VALUE = b"v" * 64
SETTINGS: dict[str, Any] = {"socket_timeout": 5, "socket_connect_timeout": 5}
TASKS = 200


class Measure(NamedTuple):
    name: str
    goal: float  # our calls a second, as a multiple of redis-py's
    run: Callable[[Any, int], Awaitable[int]]  # (client, how often) → how many calls that were
    times: int
    shards: int = 3


async def get(client: Any, times: int) -> int:
    """Tasks that each call one GET after another."""

    async def loop(first: int) -> None:
        for number in range(first, first + times):
            assert await client.get(KEYS[number % 1000]) == VALUE

    await asyncio.gather(*(loop(5 * number) for number in range(TASKS)))
    return times * TASKS


async def get_alone(client: Any, times: int) -> int:
    for number in range(times):
        assert await client.get(KEYS[number % 1000]) == VALUE
    return times


async def pipeline(client: Any, times: int) -> int:
    for _ in range(times):
        pipe = client.pipeline(transaction=False)
        for key in KEYS:
            pipe.get(key)
        assert await pipe.execute() == [VALUE] * 1000
    return times


MEASURES = [
    Measure(f"asyncio, {TASKS} GETs at once", 3.0, get, 50),
    Measure("asyncio, one GET after another", 1.0, get_alone, 3000, shards=1),
    Measure("asyncio, pipeline of 1,000 GETs", 1.0, pipeline, 20),
]


async def one(measure: Measure, client: Any, times: int) -> tuple[float, float]:
    """Calls a second, and microseconds of CPU a call."""
    await measure.run(client, max(times // 10, 1))
    began, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    calls = await measure.run(client, times)
    used, spent = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    return calls / spent, (used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime) / calls * 1e6


async def compare(nodes: Sequence[RedisNode], rounds: int, part: int) -> int:
    """Prints a table; how many goals were missed. part: of the calls only one in so many is made."""
    urls = {name: f"redis://{address}" for name, address in shards_of(nodes).items()}
    all_, first = AsyncShardedRedis(urls, **SETTINGS), AsyncShardedRedis({"a": urls["a"]}, **SETTINGS)
    plain: Any = redis.asyncio.Redis(port=nodes[0].port, max_connections=TASKS + 50, **SETTINGS)
    missed = 0
    for client in (all_, plain):
        await client.mset(dict.fromkeys(KEYS, VALUE))
    print(f"{'calls a second':32}{'redis-py':>10}{'ours':>10}{'ratio':>8}{'goal':>8}{'CPU µs':>16}")
    for measure in MEASURES:
        ours = first if measure.shards == 1 else all_
        found: dict[Any, list[tuple[float, float]]] = {plain: [], ours: []}
        for _ in range(rounds):
            for client in (plain, ours):
                found[client].append(await one(measure, client, max(measure.times // part, 1)))
        theirs, mine = (
            [statistics.median(column) for column in zip(*found[it], strict=True)] for it in found
        )
        ratio = mine[0] / theirs[0]
        missed += ratio < measure.goal
        cpu = f"{theirs[1]:.1f} → {mine[1]:.1f}"
        print(f"{measure.name:32}{theirs[0]:10.0f}{mine[0]:10.0f}{ratio:8.2f}{measure.goal:8.2f}{cpu:>16}")
    await all_.aclose()
    await first.aclose()
    await plain.aclose()
    return missed


def main(rounds: int = 7) -> int:
    with redis_nodes(3) as nodes:
        return int(asyncio.run(compare(nodes, rounds, 1)) > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
