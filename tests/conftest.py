"""Fixtures that many tests share. Servers live for the session; what a test breaks it starts itself."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_py
from hypothesis import settings
from servers import ProxyProcess, RedisNode, redis_nodes, shards_of, toml

# No test watches the clock of a busy machine
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisNode]:
    """A Redis to compare with; emptied by whoever cares."""
    with RedisNode() as node:
        yield node


@pytest.fixture
def client(redis: RedisNode) -> Iterator[Any]:
    """redis-py on that Redis, emptied."""
    with redis_py.Redis(port=redis.port) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def nodes3() -> Iterator[list[RedisNode]]:
    """Three Redis nodes that stay up."""
    with redis_nodes(3) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def proxy(nodes3: list[RedisNode]) -> Iterator[ProxyProcess]:
    """`shardproxy serve`, one worker, in front of nodes3."""
    with ProxyProcess(toml(shards_of(nodes3))) as process:
        yield process
