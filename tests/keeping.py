"""A Keeper for tests: nodes and workers that are only told of, and a clock that never waits."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shardproxy.config import Config, HealthConfig, PoolConfig, ShardConfig
from shardproxy.core.topology import Topology
from shardproxy.proxy.certificates import Way
from shardproxy.proxy.keeper import Keeper
from shardproxy.proxy.owing import Taken
from shardproxy.proxy.probe import NodeRefuses
from shardproxy.proxy.returns import Returns

A, B, C = (f"127.0.0.1:{port}" for port in (7001, 7002, 7003))


class VirtualLoop(asyncio.SelectorEventLoop):
    """Whatever waits for a time gets it at once."""

    def __init__(self) -> None:
        super().__init__(_Hasty(self))
        self.now = 1000.0

    def time(self) -> float:
        return self.now


class _Hasty(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> Any:
        self.loop.now += max(timeout or 0.0, 1e-6)
        return super().select(0)


class FakeFleet:
    """Workers that acknowledge at once, unless `acknowledge` says otherwise."""

    def __init__(self, pool: str = "rehash", shards: int = 3) -> None:
        cache = pool == "rehash"
        config = Config(
            pool={
                "main": PoolConfig(
                    kind="cache" if cache else "durable",
                    on_shard_down="rehash" if cache else "error",
                    on_return="invalidate" if cache else "keep",
                    timeout=0.5,
                    health=HealthConfig(),
                    shards={
                        name: ShardConfig(primary=f"redis://{address}")
                        for name, address in list(zip("abc", (A, B, C), strict=True))[:shards]
                    },
                )
            }
        )
        self.topology = Topology.from_config(config)
        self.acknowledge, self.alone = True, True
        self.slow: list[asyncio.Future[bool]] | None = None  # acknowledgements that are still to come
        self.seen: list[Topology] = []

    def set_topology(self, topology: Topology) -> Awaitable[bool]:
        assert topology.generation > self.topology.generation or topology is self.topology
        self.topology = topology
        self.seen.append(topology)
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self.slow is None:
            done.set_result(self.acknowledge)
        else:
            self.slow.append(done)
        return done

    async def databases(self) -> set[int]:
        return {0}

    async def take(self, address: str) -> list[Taken]:
        return []

    def state(self, address: str) -> str:
        return self.topology.nodes[address].state


class Nodes:
    """What probes of each node come to: seconds until it answers, or the error."""

    def __init__(self) -> None:
        self.found: dict[str, float | NodeRefuses] = {}
        self.probed: list[tuple[float, str, float]] = []  # (when, which, its timeout)

    async def check(self, address: str, login: object, timeout: float, *_: object) -> None:
        self.probed.append((asyncio.get_running_loop().time(), address, timeout))
        found = self.found.get(address, 0.001)
        if isinstance(found, NodeRefuses):
            raise found
        await asyncio.sleep(min(found, timeout))
        if found > timeout:
            raise NodeRefuses("no answer")


class NoLogins:
    def of(self, pool: str, shard: str) -> Way:
        return Way()


def fake_returns(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps of returns, which are not made."""
    steps: list[str] = []

    async def bring_back(_: Any, address: str, fence: Callable[[], Awaitable[bool]]) -> bool:
        steps.append(f"begin {address}")
        if not await fence():
            raise NodeRefuses("a worker does not acknowledge")
        steps.append(f"fenced {address}")
        return True

    async def sweep(_: Any, address: str) -> None:
        await asyncio.sleep(2.0)
        steps.append(f"swept {address}")

    async def beat(_: Any, address: str) -> None:
        return

    for name, fake in (("bring_back", bring_back), ("sweep", sweep), ("beat", beat)):
        monkeypatch.setattr(Returns, name, fake)
    return steps


def run(
    scene: Callable[[Keeper], Awaitable[None]], fleet: FakeFleet, inherits: bool = False
) -> list[tuple[str, dict[str, Any]]]:
    """The scene, and what was logged."""
    logged: list[tuple[str, dict[str, Any]]] = []

    async def main() -> None:
        keeper = Keeper(
            fleet,
            "run",
            lambda event, **fields: logged.append((event, fields)),
            clock=asyncio.get_running_loop().time,
            chance=lambda: 0.5,
            inherits=inherits,
        )
        keeper.follow(NoLogins())
        await scene(keeper)
        await keeper.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    return logged


def refusal() -> NodeRefuses:
    return NodeRefuses("Connection refused", refused=True)


def late(address: str, count: int = 1) -> list[tuple[Any, ...]]:
    return [(address, 0, count, 0, count, False, "too late")]
