"""What those who watch a whole proxy from outside (`admin`) may ask of it; they show and never act.

`Watched` is the process that owns the topology: the supervisor, or with one worker the `Proxy` itself.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from shardproxy.handlers.base import ProcessRecord

if TYPE_CHECKING:
    from shardproxy.config import Config
    from shardproxy.core.topology import Topology
    from shardproxy.proxy.transitions import Transitions


class WorkerRecord(msgspec.Struct, frozen=True):
    """One worker, now: its process, and the nodes as its engine sees them (Reactor.nodes)."""

    process: ProcessRecord
    nodes: list[dict[str, Any]]


class Watched(Protocol):
    """Everything here is cheap but `all_workers`, which asks the workers."""

    config: "Config"
    topology: "Topology"
    transitions: "Transitions"
    started: float  # seconds since 1970
    inherits: bool  # it goes on for a process that still runs, which may hold ports that are not given away
    handed_over: asyncio.Event  # another process goes on for this one

    @property
    def addresses(self) -> list[str]:
        """Where it listens."""

    @property
    def listening(self) -> bool: ...

    @property
    def draining(self) -> bool: ...

    @property
    def mistaken(self) -> Mapping[str, int]:
        """How often each node was put out and its very next probe succeeded."""

    @property
    def invalidated(self) -> Mapping[str, int]:
        """How many keys of each node were deleted because they were old."""

    @property
    def silent(self) -> Mapping[str, float]:
        """Seconds since each node last answered, requests or probes."""

    @property
    def workers(self) -> Mapping[int, int]:
        """The live workers: slot → process id."""

    def counters(self) -> Mapping[str, int]:
        """Over all workers, past ones too."""

    def latency(self) -> Mapping[str, Sequence[int]]:
        """As counters."""

    async def all_workers(self) -> dict[int, WorkerRecord]:
        """By slot; who does not answer in time is left out."""

    def supervisor(self) -> ProcessRecord | None:
        """This process, where it is not itself a worker."""

    def log(self, event: str, **fields: object) -> None: ...


# What runs around a proxy, from before it starts until after its end
Around: TypeAlias = Callable[[Watched], AbstractAsyncContextManager[object]]
