"""Connections that a session store borrows from redis-py's pools: whose reply comes, how late, how many."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis as redis_py
import redis.asyncio as redis_async
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import RedisNode, until

from shardproxy.sessions import AsyncSessionStore, SessionStore, SessionUnavailable
from shardproxy.sessions.borrowing import is_simple

SECRETS = ["a secret of at least sixteen bytes"]


def stored(store: SessionStore, **values: Any) -> str:
    """A new session's cookie."""
    session = store.load(None)
    session.update(values)
    session.save()
    assert session.cookie is not None
    return session.cookie


async def astored(store: AsyncSessionStore, **values: Any) -> str:
    session = await store.load(None)
    session.update(values)
    await session.save()
    assert session.cookie is not None
    return session.cookie


def nobody_holds(pool: Any) -> bool:
    return not len(pool._in_use_connections)


@pytest.mark.parametrize("kind", [redis_py.ConnectionPool, redis_py.BlockingConnectionPool])
def test_a_reply_that_somebody_left_is_not_taken_for_ours(redis: RedisNode, kind: Any) -> None:
    """redis-py 8.1 itself would: a connection with something to read may have a notification of a node."""
    with redis_py.Redis.from_pool(kind(port=redis.port)) as client:
        store = SessionStore(client, SECRETS)
        assert is_simple(client) == (kind is redis_py.ConnectionPool)
        mine, other = stored(store, whose="mine"), stored(store, whose="other's")
        pool = client.connection_pool
        for _ in range(3):
            connection = pool.get_connection()
            connection.send_command("ECHO", "a reply nobody has read")
            until(connection.can_read)
            pool.release(connection)
            assert store.load(mine)["whose"] == "mine"
            assert store.load(other)["whose"] == "other's"
        assert not pool._get_in_use_connections()


@pytest.mark.parametrize("kind", [redis_async.ConnectionPool, redis_async.BlockingConnectionPool])
async def test_a_reply_that_somebody_left_awaited(redis: RedisNode, kind: Any) -> None:
    async with redis_async.Redis.from_pool(kind(port=redis.port)) as client:
        store = AsyncSessionStore(client, SECRETS)
        assert is_simple(client) == (kind is redis_async.ConnectionPool)
        mine = await astored(store, whose="mine")
        pool = client.connection_pool
        for _ in range(3):
            connection = await pool.get_connection()
            await connection.send_command("ECHO", "a reply nobody has read")
            while not await connection.can_read():
                await asyncio.sleep(0.001)
            await pool.release(connection)
            assert (await store.load(mine))["whose"] == "mine"
        assert nobody_holds(pool) and len(pool._available_connections) == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12, when a thread is left
def test_a_child_process_has_connections_of_its_own(redis: RedisNode) -> None:
    """Both ask at once: on one connection each would read the other's replies."""
    with redis_py.Redis(port=redis.port) as client:
        store = SessionStore(client, SECRETS)
        ours, theirs = stored(store, whose="parent's"), stored(store, whose="child's")
        child = os.fork()
        if child == 0:
            try:
                right = all(store.load(theirs)["whose"] == "child's" for _ in range(200))
            except BaseException:
                right = False
            os._exit(0 if right else 1)
        assert all(store.load(ours)["whose"] == "parent's" for _ in range(200))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_many_threads_get_their_own_replies(redis: RedisNode) -> None:
    with redis_py.Redis(port=redis.port) as client, ThreadPoolExecutor(8) as threads:
        store = SessionStore(client, SECRETS)
        cookies = {stored(store, n=number): number for number in range(8)}
        together = threading.Barrier(8)

        def asks(cookie: str) -> bool:
            together.wait(10)
            return all(store.load(cookie)["n"] == cookies[cookie] for _ in range(50))

        assert all(threads.map(asks, cookies))
        pool = client.connection_pool
        assert nobody_holds(pool) and len(pool._available_connections) == pool._created_connections <= 8


async def test_many_tasks_get_their_own_replies_cancelled_or_not(redis: RedisNode) -> None:
    async with redis_async.Redis(port=redis.port) as client:
        store = AsyncSessionStore(client, SECRETS)
        cookies = {await astored(store, n=number): number for number in range(8)}

        async def asks(cookie: str) -> bool:
            return bool((await store.load(cookie))["n"] == cookies[cookie])

        for turn in range(20):
            asking = [asyncio.ensure_future(asks(cookie)) for cookie in cookies]
            for _ in range(turn % 5):
                await asyncio.sleep(0)
            for each in asking[::3]:
                each.cancel()
            found = await asyncio.gather(*asking, return_exceptions=True)
            assert all(each is True or isinstance(each, asyncio.CancelledError) for each in found)
        assert nobody_holds(client.connection_pool)
        assert not store._executor._deadlines._waiting  # type: ignore[union-attr]


def test_no_more_connections_than_the_pool_may_have(redis: RedisNode) -> None:
    with redis_py.Redis(port=redis.port, max_connections=1, retry=Retry(NoBackoff(), 0)) as client:
        store = SessionStore(client, SECRETS)
        cookie = stored(store, n=1)
        held = client.connection_pool.get_connection()
        with pytest.raises(SessionUnavailable):
            store.load(cookie)
        client.connection_pool.release(held)
        assert store.load(cookie)["n"] == 1


def test_what_is_to_be_connected_anew_is(redis: RedisNode) -> None:
    """As redis-py marks connections to a node that is about to go."""
    with redis_py.Redis(port=redis.port) as client:
        store = SessionStore(client, SECRETS)
        cookie = stored(store, n=1)
        connection = client.connection_pool._available_connections[0]
        first = connection._sock
        connection.mark_for_reconnect()
        assert store.load(cookie)["n"] == store.load(cookie)["n"] == 1
        assert connection._sock is not first and nobody_holds(client.connection_pool)


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_reply_that_does_not_come_is_waited_for_as_long_as_redis_py_does(retries: int) -> None:
    """Whoever asks then is told, and the connection is not used again; later ones work."""
    retry = AsyncRetry(NoBackoff(), retries)
    with RedisNode() as node:
        async with redis_async.Redis(port=node.port, socket_timeout=0.2, retry=retry) as client:
            store = AsyncSessionStore(client, SECRETS)
            cookies = [await astored(store, n=number) for number in range(4)]
            node.pause()
            try:
                found = await asyncio.gather(*map(store.load, cookies), return_exceptions=True)
            finally:
                node.resume()
            assert all(isinstance(each, SessionUnavailable) for each in found)
            assert nobody_holds(client.connection_pool)
            for number, cookie in enumerate(cookies):
                assert (await store.load(cookie))["n"] == number


def test_one_event_loop_after_the_other(redis: RedisNode) -> None:
    """As tests of applications have them: a deadline of the last one is none of the next."""
    client = redis_async.Redis(port=redis.port, socket_timeout=5.0)
    store = AsyncSessionStore(client, SECRETS)

    async def once(cookie: str | None) -> str:
        session = await store.load(cookie)
        session["n"] = session.get("n", 0) + 1
        await session.save()
        await client.aclose()
        assert session.cookie is not None
        return session.cookie

    async def left(cookie: str) -> None:
        asking = asyncio.ensure_future(store.load(cookie))
        await asyncio.sleep(0)
        asking.cancel()
        await client.aclose()

    cookie = asyncio.run(once(None))
    asyncio.run(left(cookie))
    assert asyncio.run(once(cookie)) == cookie

    async def counted() -> int:
        found = (await store.load(cookie))["n"]
        await client.aclose()
        return int(found)

    assert asyncio.run(counted()) == 2
