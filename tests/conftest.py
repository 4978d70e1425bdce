"""Fixtures that many tests share. Servers live for the session; what a test breaks it starts itself."""

from collections.abc import Iterator

import pytest
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
