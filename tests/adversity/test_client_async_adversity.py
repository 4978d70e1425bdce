"""AsyncShardedRedis when things go wrong: cancellation at every await, other loops, forks, nodes that die.

The rule that every test here is about: a call gets its own reply or an error, never another call's.
"""

import asyncio
import contextlib
import os
import random
import signal
import threading
from collections.abc import Coroutine, Generator, Iterator
from typing import Any

import pytest
import redis
from asking import keys_of
from redis.exceptions import RedisError, WatchError
from servers import RedisNode, redis_nodes, urls_of

from shardproxy import AsyncShardedRedis, PartialError
from shardproxy.client.aio_asking import LARGE
from shardproxy.client.errors import (
    NotAskedError,
    ShardDownError,
    ShardTimeoutError,
    UnknownOutcomeError,
    UnknownOutcomeTimeoutError,
)

SOON = {"wait": "100ms", "wait_most": "100ms", "interval": "200ms"}
STEPS_MOST = 100


@pytest.fixture(scope="module")
def steady() -> Iterator[list[RedisNode]]:
    """Nodes that stay well."""
    with redis_nodes(3) as found:
        yield found


@pytest.fixture
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as found:
        yield found


def made(nodes: list[RedisNode], on_transition: Any = None, **pool: Any) -> AsyncShardedRedis:
    patient = {"timeout": "20s", "connect_timeout": "20s", "health": SOON}  # the machine may be busy
    return AsyncShardedRedis(urls_of(nodes), pool=patient | pool, on_transition=on_transition)


class Interrupted:
    """Awaits a coroutine and cancels it at its await number `at`, as a task is cancelled.

    late: what it waits for is there already, and its task has not run yet. It raises CancelledError then;
    `ended`: it had no such await.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, late: bool) -> None:
        self.coroutine, self.at, self.late, self.ended = coroutine, at, late, False

    def __await__(self) -> Generator[Any, Any, Any]:
        steps, number = self.coroutine.__await__(), -1
        send: Any = lambda: next(steps)  # noqa: E731  # it changes
        while True:
            try:
                waited = send()
            except StopIteration as end:
                self.ended = number < self.at
                return end.value
            number += 1
            send = lambda: next(steps)  # noqa: E731
            if number == self.at:
                send = lambda: steps.throw(asyncio.CancelledError())  # type: ignore[attr-defined]  # noqa: E731
                if not self.late:
                    if waited is not None:
                        waited._asyncio_future_blocking = False
                        waited.cancel()
                    continue
            yield waited


async def watched(client: AsyncShardedRedis) -> Any:
    async with client.pipeline() as pipe:
        await pipe.watch("{w}a")
        await pipe.get("{w}a")
        pipe.multi()
        pipe.set("{w}a", 1).get("{w}a")
        try:
            return await pipe.execute()
        except WatchError:
            return None


async def messages(client: AsyncShardedRedis) -> Any:
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("channel")
        return await pubsub.get_message(timeout=5)


async def locked(client: AsyncShardedRedis) -> Any:
    lock = client.lock(f"lock:{random.random()}", timeout=5)
    async with lock:
        return await lock.owned()


async def scanned(client: AsyncShardedRedis) -> Any:
    return [key async for key in client.scan_iter(count=100)]


OPERATIONS: dict[str, Any] = {
    "get": lambda it: it.get("o:get"),
    "set": lambda it: it.set("o:set", "mine"),
    "incr": lambda it: it.incr("o:incr"),
    "mget": lambda it: it.mget([f"o:{number}" for number in range(30)]),
    "mset": lambda it: it.mset({f"o:{number}": "mine" for number in range(30)}),
    "dbsize": lambda it: it.dbsize(),
    "large": lambda it: it.set("o:large", b"x" * (LARGE + 1)),
    "large to all": lambda it: it.mset({f"o:l{number}": b"x" * LARGE for number in range(9)}),
    "blpop": lambda it: it.blpop(f"o:{random.random()}", timeout=0.01),
    "pipeline": lambda it: (
        it.pipeline(transaction=False).set("o:p", 1).get("o:q").mget("a", "b", "c").execute()
    ),
    "transaction": lambda it: it.pipeline().set("{o}p", 1).get("{o}p").execute(),
    "watch": watched,
    "script": lambda it: it.register_script("return ARGV[1]")(keys=["o:s"], args=["mine"]),
    "on_all": lambda it: it.on_all("PING"),
    "scan": scanned,
    "messages": messages,
    "lock": locked,
}


@pytest.mark.parametrize("fresh", [False, True], ids=["connected", "fresh"])
@pytest.mark.parametrize("name", OPERATIONS)
async def test_cancelled_at_every_await_it_leaves_no_reply_to_others(
    steady: list[RedisNode], name: str, fresh: bool
) -> None:
    """Beside it others call, and after it all get their own; so do those on connections that it had alone."""
    client = made(steady)
    wanted = [f"v:{number}".encode() for number in range(12)]
    try:
        await asyncio.gather(*(client.set(f"v:{number}", value) for number, value in enumerate(wanted)))
        for late in (False, True):
            for at in range(STEPS_MOST):
                if fresh:
                    await client.aclose()
                running = Interrupted(OPERATIONS[name](client), at, late)
                beside = [asyncio.ensure_future(client.get(f"v:{number}")) for number in range(6)]
                with contextlib.suppress(asyncio.CancelledError, WatchError):
                    await running
                after = [asyncio.ensure_future(client.get(f"v:{number}")) for number in range(6, 12)]
                assert await asyncio.gather(*beside, *after) == wanted
                alone = client.pipeline().set("{v:alone}x", at).get("{v:alone}x")
                assert await alone.execute() == [True, str(at).encode()]
                if running.ended:
                    break
            else:
                pytest.fail(f"more than {STEPS_MOST} awaits")
    finally:
        await client.aclose()
    assert len(asyncio.all_tasks()) == 1


async def use(
    client: AsyncShardedRedis, who: str, rounds: int, errors: tuple[type[Exception], ...] = ()
) -> int:
    """Everything that a client does, each reply looked at; how often there was one of these errors."""
    chance, failed = random.Random(who), 0
    for number in range(rounds):
        keys = [f"{who}:{chance.randrange(50)}" for _ in range(chance.randrange(1, 20))]
        try:
            for key, value in zip(keys, await client.mget(keys), strict=True):
                assert value is None or value.startswith(f"{key}=".encode())
            pipe = client.pipeline(transaction=False)
            for key in keys:
                pipe.set(key, f"{key}={number}").get(key)
            for key, value in zip(keys, (await pipe.execute())[1::2], strict=True):
                assert value.startswith(f"{key}=".encode())
            values = await asyncio.gather(*(client.get(key) for key in keys), return_exceptions=True)
            for key, found in zip(keys, values, strict=True):
                if isinstance(found, BaseException):
                    raise found
                assert found is None or found.startswith(f"{key}=".encode())
            tagged = f"{{{keys[0]}}}n"
            assert (await client.pipeline().set(tagged, number).incr(tagged).execute())[1] == number + 1
        except errors:
            failed += 1
            await asyncio.sleep(0.005)
    return failed


@pytest.mark.parametrize("kind", ["durable", "cache"])
async def test_nodes_killed_in_mid_pipeline(nodes: list[RedisNode], kind: str) -> None:
    pool = {"kind": kind, "on_shard_down": "rehash" if kind == "cache" else "error"}
    client = made(nodes, **pool)
    failures = (RedisError,)
    tasks = [asyncio.ensure_future(use(client, f"t{number}", 60, failures)) for number in range(5)]
    for number in (0, 1):
        await asyncio.sleep(0.1)
        await asyncio.to_thread(nodes[number].kill)
        await asyncio.sleep(0.1)
        await asyncio.to_thread(nodes[number].start)
    await asyncio.gather(*tasks)

    async def well() -> bool:
        try:
            await use(client, "again", 3)
        except RedisError:
            return False
        return True

    async with asyncio.timeout(20):
        while not await well():
            await asyncio.sleep(0.05)
    await client.aclose()


async def test_a_write_on_a_lost_connection_has_an_unknown_outcome_and_is_not_sent_again(
    nodes: list[RedisNode],
) -> None:
    client = made(nodes, timeout="10s")
    key = keys_of(client, "a", 1)[0]
    await client.set(key, 0)
    nodes[0].pause()
    waiting = [asyncio.ensure_future(client.incr(key)), asyncio.ensure_future(client.get(key))]
    large = asyncio.ensure_future(client.append(key, b"x" * (LARGE + 1)))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(nodes[0].kill)
    results = await asyncio.gather(*waiting, large, return_exceptions=True)
    assert isinstance(results[0], UnknownOutcomeError) and isinstance(results[1], ShardDownError)
    assert isinstance(results[2], (UnknownOutcomeError, ShardDownError))
    with pytest.raises(ShardDownError, match="shard 'a'"):
        await client.get(key)
    with pytest.raises(PartialError) as partial:
        await client.mget([key, keys_of(client, "b", 1)[0]])
    assert list(partial.value.errors) == [key]
    await client.aclose()


async def test_a_node_that_hangs(nodes: list[RedisNode]) -> None:
    """Late replies are nobody's: not on the connection that all share, and not on one's own."""
    seen: list[Any] = []
    client = made(nodes, seen.append, timeout="500ms", connect_timeout="500ms", retries=0)
    key, *others = keys_of(client, "a", 10)
    for other in (key, *others):
        await client.set(other, f"value of {other}")
    nodes[0].pause()
    calls = [
        client.get(key),
        client.set(key, "x"),
        client.pipeline().get(key).execute(),
        client.get(others[0]),
    ]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in results] == [
        ShardTimeoutError, UnknownOutcomeTimeoutError, NotAskedError, ShardTimeoutError,
    ]  # fmt: skip
    nodes[0].resume()
    async with asyncio.timeout(20):
        while True:
            try:
                await client.get(others[0])
                break
            except RedisError:
                await asyncio.sleep(0.05)
    found = await asyncio.gather(*(client.get(other) for other in others))
    assert found == [f"value of {other}".encode() for other in others]
    await client.aclose()


async def test_topologies_that_change_in_mid_pipeline(steady: list[RedisNode]) -> None:
    client, two = made(steady), made(steady[:2])
    snapshots = [client.topology, two.topology]
    tasks = [asyncio.ensure_future(use(client, f"u{number}", 30)) for number in range(4)]
    turn = 0
    while not all(task.done() for task in tasks):
        turn += 1
        client.apply(snapshots[turn % 2])
        await asyncio.sleep(0.002 * (turn % 5))
    await asyncio.gather(*tasks)
    assert turn > 3
    await client.aclose()
    await two.aclose()


async def test_times_of_each_class(nodes: list[RedisNode]) -> None:
    """timeouts.read on the connection that calls share; .write, which is longer, on one alone."""
    times = {"read": "150ms", "write": "10s"}
    client = made(nodes[:1], timeout="1s", timeouts=times, retries=0)
    await client.mset({"a": 1, "b": 2})
    nodes[0].pause()
    with pytest.raises(ShardTimeoutError, match="within 150 ms"):
        await client.get("a")
    asyncio.get_running_loop().call_later(1.5, nodes[0].resume)
    assert await client.set("a", 3) is True
    assert await client.get("a") == b"3"  # what came late was nobody's
    await client.aclose()


async def test_slow_calls_are_evidence(nodes: list[RedisNode]) -> None:
    seen: list[Any] = []
    policy = SOON | {"slow_call": "1ms", "minimum": 5}
    client = made(nodes, seen.append, health=policy)
    for _ in range(3):
        await client.blpop("waiting", 0.01)  # it was asked to: nothing to be held against its node
    assert seen == []
    async with asyncio.timeout(60):
        while not seen:
            await asyncio.gather(*(client.eval("for i = 1, 1e6 do end", 1, "k") for _ in range(3)))
    assert seen[0].new == "suspect" and "took over" in seen[0].reason
    async with asyncio.timeout(60):
        while len(seen) < 2:  # a trial is made, and it is well
            with contextlib.suppress(ShardDownError):
                assert await client.get("k") is None
            await asyncio.sleep(0)
    assert [each.new for each in seen] == ["suspect", "up"]
    await client.aclose()


async def test_too_many_calls_that_wait(steady: list[RedisNode], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardproxy.client.aio_shard.MOST", 5)
    client = made(steady[:1])
    waiting = [asyncio.ensure_future(client.blpop("nothing", timeout=5)) for _ in range(8)]
    done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
    assert done and all("Too many connections" in str(each.exception()) for each in done)
    for each in rest:
        each.cancel()
    await asyncio.wait(rest)
    assert await client.set("a", 1) is True
    await client.aclose()


def test_one_loop_after_another_and_not_two_at_once(steady: list[RedisNode]) -> None:
    client = made(steady)

    async def call(number: int) -> None:
        await client.set(f"loop:{number}", number)
        assert await asyncio.gather(*(client.get(f"loop:{number}") for _ in range(20))) == [
            str(number).encode()
        ] * 20  # fmt: skip

    for number in range(3):
        asyncio.run(call(number))
    ready, over = threading.Event(), threading.Event()

    async def hold() -> None:
        await call(7)
        ready.set()
        await asyncio.to_thread(over.wait)
        await call(8)
        await client.aclose()

    thread = threading.Thread(target=asyncio.run, args=(hold(),))
    thread.start()
    ready.wait(20)
    try:
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(call(9))
    finally:
        over.set()
        thread.join()
    asyncio.run(call(10))


def in_a_child(what: Any) -> None:
    """Runs it in a fork; fails when it does."""
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            what()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_child_has_connections_of_its_own_and_leaves_its_parents_alone(steady: list[RedisNode]) -> None:
    client = made(steady)

    async def call(who: str) -> None:
        for number in range(20):
            assert await client.set(f"{who}:{number}", f"{who}={number}")
        found = await asyncio.gather(*(client.get(f"{who}:{number}") for number in range(20)))
        assert found == [f"{who}={number}".encode() for number in range(20)]

    async def ids() -> set[int]:
        return {(await client.on_shard(name).client_id()) for name in "abc"}

    with asyncio.Runner() as runner:
        runner.run(call("parent"))
        in_a_child(lambda: asyncio.run(call("child")))
        with redis.Redis(port=steady[0].port) as alone:
            before = {each["id"] for each in alone.client_list()}  # type: ignore[union-attr]
            runner.run(call("parent"))
            after = {each["id"] for each in alone.client_list()}  # type: ignore[union-attr]
        assert before == after, "the parent goes on with the connections that it had"
        runner.run(client.aclose())


def test_a_fork_inside_a_loop_that_runs(steady: list[RedisNode]) -> None:
    """As a server does that forks workers late."""
    client = made(steady)

    async def parent() -> None:
        await client.set("x", "parent")

        async def child() -> None:
            assert await client.get("x") == b"parent"

        def run() -> None:
            asyncio._set_running_loop(None)
            asyncio.run(child())

        in_a_child(run)
        assert await asyncio.gather(*(client.get("x") for _ in range(10))) == [b"parent"] * 10
        await client.aclose()

    asyncio.run(parent())
