"""A pytest plugin for redis-py's suite: the clients that its fixtures make are this project's.

COMPAT_NODES are the ports of the ring's nodes; COMPAT_POOL its options, as JSON. A test that has made such a
client, and is not about redis-py's own connection, mocked or not, is written down (recorder): only those tell
something. What the fixtures ask of a client beyond its commands (a pool to disconnect, a single connection)
is added here, and does nothing else. It runs in the suite's own environment.
"""

import json
import os
import re
import sys
import types

import pytest
import recorder
import redis
import redis.asyncio

from shardproxy import AsyncShardedRedis, ShardedRedis

SHARDS = {f"node-{at}": f"redis://127.0.0.1:{port}" for at, port in enumerate(recorder.PORTS)}
POOL = json.loads(os.environ["COMPAT_POOL"])
# Tests of what redis-py has inside of it, and that never was its users'
INSIDE = re.compile("HealthCheckResponse|parse_response|memoryviews_are_not_packed|_on_connect_")
made = []  # clients, since the test began


def settings_of(options):
    """What the suite gives a connection → what our client takes."""
    ours = {**options, "pool": POOL}
    for name in ("host", "port", "connection_class", "single_connection_client"):
        ours.pop(name, None)
    return ours


class Pool:
    """What is left of redis-py's pool: the tests look at its settings, and disconnect it."""

    def __init__(self, client, options):
        self.client, self.connection_kwargs = client, options

    def disconnect(self, *_, **__):
        self.client.close()

    reset = disconnect


class AsyncPool(Pool):
    async def disconnect(self, *_, **__):
        await self.client.aclose()

    reset = disconnect


class Tested(ShardedRedis):
    def __init__(self, options):
        super().__init__(SHARDS, **settings_of(options))
        self.connection_pool = Pool(self, options)
        made.append(self)

    def client(self):
        return self


class AsyncTested(AsyncShardedRedis):
    def __init__(self, connection_pool):
        super().__init__(SHARDS, **settings_of(connection_pool.options))
        self.connection_pool = AsyncPool(self, connection_pool.options)
        made.append(self)

    def client(self):
        return self


class Given:
    """Stands where redis-py's asyncio pool is made."""

    def __init__(self, **options):
        self.options = options


def get_client(cls, request, single_connection_client=True, flushdb=True, from_url=None, **options):
    """As the suite's own, whose place it takes."""
    protocol = request.config.getoption("--protocol")
    client = Tested({"protocol": protocol, **options})

    def teardown():
        if flushdb:
            client.flushdb()
        client.close()

    request.addfinalizer(teardown)
    return client


def _settings(client):
    return client.connection_pool.connection_kwargs


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    for name in ("tests.conftest", "tests.test_asyncio.conftest"):
        conftest = sys.modules.get(name)
        if conftest is None:
            continue
        if hasattr(conftest, "_get_client"):
            conftest._get_client = get_client
            # It asks for redis-py's classes; what it wants to know holds for ours as well
            conftest._get_raw_protocol = lambda r: _settings(r).get("protocol")
            conftest.get_legacy_responses = lambda r: _settings(r).get("legacy_responses", True)
        else:
            known = {each: getattr(redis.asyncio, each) for each in redis.asyncio.__all__}
            conftest.redis = types.SimpleNamespace(**{**known, "Redis": AsyncTested, "ConnectionPool": Given})


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    made.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
    mocked = any(name.startswith("mock_") for name in item.fixturenames)
    if made and not mocked and not INSIDE.search(item.nodeid):
        recorder.write(asked=item.nodeid)
