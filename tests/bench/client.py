"""The client library beside redis-py and pymemcache: CPU of a call, in one run, alternating.

    python -m tests.bench.client            # the table in docs/client.md
    python -m tests.bench.client --quick    # does it work at all?

Each round measures both once, in a child forked from a process that has used the same clients; goals
are ratios of medians within the run. Every reply is checked. Three nodes for us, the first of them for
redis-py, all of them for pymemcache; both have the same settings.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import redis
from pymemcache.client.hash import HashClient

from shardproxy import ShardedRedis
from tests.bench import client_async
from tests.servers import MemcachedNode, redis_nodes, shards_of

KEYS = [f"key:{number}" for number in range(1000)]
VALUE = b"v" * 64
SETTINGS: dict[str, Any] = {"socket_timeout": 5, "socket_connect_timeout": 5}
THREADS = 4


class Measure(NamedTuple):
    name: str
    goal: float  # ours, as a part of theirs
    run: Callable[[Any, int], int]  # (client, how often) → how many calls that were
    times: int


def get(client: Any, times: int) -> int:
    """A loop of GET, one client shared by four threads."""
    failed: list[BaseException] = []

    def loop(first: int) -> None:
        try:
            for number in range(first, first + times):
                assert client.get(KEYS[number % 1000]) == VALUE
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=loop, args=(250 * number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    return times * THREADS


def get_alone(client: Any, times: int) -> int:
    for number in range(times):
        assert client.get(KEYS[number % 1000]) == VALUE
    return times


def pipeline(client: Any, times: int) -> int:
    for _ in range(times):
        pipe = client.pipeline(transaction=False)
        for key in KEYS:
            pipe.get(key)
        assert pipe.execute() == [VALUE] * 1000
    return times


def mget(client: Any, times: int) -> int:
    for _ in range(times):
        assert client.mget(KEYS) == [VALUE] * 1000
    return times


def get_many(client: Any, times: int) -> int:
    """On memcached: pymemcache's HashClient, or ours."""
    wanted = dict.fromkeys(KEYS, VALUE)
    for _ in range(times):
        if isinstance(client, ShardedRedis):
            assert client.mget(KEYS) == [VALUE] * 1000
        else:
            assert client.get_many(KEYS) == wanted
    return times


MEASURES = [
    Measure("GET, four threads", 0.6, get, 2000),
    Measure("GET, one thread", 0.6, get_alone, 8000),
    Measure("pipeline of 1,000 GETs", 0.6, pipeline, 30),
    Measure("MGET of 1,000 keys", 1.2, mget, 200),
]
ON_MEMCACHED = Measure("MGET of 1,000 keys, memcached", 0.3, get_many, 30)
IMPORT_GOAL = 30.0  # ms beyond redis-py's own


def compare(measure: Measure, theirs: Any, ours: Any, rounds: int, part: int) -> bool:
    """Prints a line; whether the goal was missed. part: of the calls only one in so many is made."""
    spent: dict[Any, list[float]] = {theirs: [], ours: []}
    for _ in range(rounds):
        for client, found in spent.items():
            found.append(in_a_child(measure, client, max(measure.times // part, 1)))
    them, us = (statistics.median(found) for found in spent.values())
    print(f"{measure.name:30}{them:10.1f}{us:10.1f}{us / them:8.2f}{measure.goal:8.2f}")
    return us / them > measure.goal


def compare_on_memcached(rounds: int, part: int) -> bool:
    with MemcachedNode() as one, MemcachedNode() as two, MemcachedNode() as three:
        nodes = one, two, three
        urls = {name: f"memcached://{node.address}" for name, node in zip("abc", nodes, strict=True)}
        ours: Any = ShardedRedis(urls, **SETTINGS)
        hashed: Any = HashClient([("127.0.0.1", node.port) for node in nodes], timeout=5, connect_timeout=5)
        for key in KEYS:
            hashed.set(key, VALUE, noreply=False)
        ours.mset(dict.fromkeys(KEYS, VALUE))
        hashed.close()  # a child connects by itself, and so does ours
        return compare(ON_MEMCACHED, hashed, ours, rounds, part)


def in_a_child(measure: Measure, client: Any, times: int) -> float:
    """Microseconds of CPU a call, in a fork of this process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            measure.run(client, max(times // 10, 1))
            before = time.process_time()
            calls = measure.run(client, times)
            spent = (time.process_time() - before) / calls * 1e6
            os.write(writing, json.dumps(spent).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    if not said:
        raise RuntimeError(f"{measure.name}: the child failed")
    return float(json.loads(said))


def import_ms(what: str) -> float:
    """CPU milliseconds of a fresh Python that does this, bytecode cached."""
    code = f"import time; began = time.process_time(); {what}; print((time.process_time() - began) * 1e3)"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


OURS = (
    "import redis; begin = time.process_time(); from shardproxy import ShardedRedis; "
    "ShardedRedis.from_config("
    'b\'[pool.main.shards]\\na = "redis://127.0.0.1:1"\\nb = "redis://127.0.0.1:2"\'); began = begin'
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.client", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    rounds, part = (1, 50) if options.quick else (options.rounds, 1)
    missed = 0
    with redis_nodes(3) as nodes:
        ours: Any = ShardedRedis(
            {name: f"redis://{address}" for name, address in shards_of(nodes).items()}, **SETTINGS
        )
        plain: Any = redis.Redis(port=nodes[0].port, **SETTINGS)
        for client in (plain, ours):
            client.flushall()
            client.mset(dict.fromkeys(KEYS, VALUE))
            get_alone(client, 10)
            if client is plain:
                dump = dict.fromkeys(KEYS, VALUE)
        plain.mset(dump)
        print(f"{'CPU a call, µs':30}{'theirs':>10}{'ours':>10}{'ratio':>8}{'goal':>8}")
        for measure in MEASURES:
            missed += compare(measure, plain, ours, rounds, part)
        missed += compare_on_memcached(rounds, part)
        ours.close()
        plain.close()
        missed += asyncio.run(client_async.compare(nodes, rounds, part))
    import_ms(OURS)  # writes the bytecode
    beyond = statistics.median(import_ms(OURS) for _ in range(rounds))
    base = statistics.median(import_ms("import redis") for _ in range(rounds))
    missed += beyond > IMPORT_GOAL
    print(f"import and from_config: {beyond:.1f} ms beyond redis-py's own {base:.1f} (goal: {IMPORT_GOAL:g})")
    return 0 if options.quick else int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
