"""What both clients' askers share: the snapshot, how a call becomes a batch, the retries it may have.

A `Layout` is one snapshot: router and shards, swapped together; who works with an old one finds its
connections closed. A `Batch` is what is written to one shard at once, and what came of it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import redis.utils
from redis.exceptions import NoScriptError

from shardproxy.client import errors, steps
from shardproxy.client.health import Nodes, Transition
from shardproxy.client.merging import Scans
from shardproxy.client.routing import FOREVER, Plan, Router
from shardproxy.client.scripts import Scripts
from shardproxy.client.settings import Settings
from shardproxy.client.steps import Program, Step
from shardproxy.core.commands import CommandTable, builtin
from shardproxy.core.topology import Pool, Topology
from shardproxy.core.topology import Shard as ShardRecord

TOKENS = 10.0  # retries that are free of the budget, at the beginning and after a quiet time
DEFAULT_PROTOCOL = getattr(redis.utils, "DEFAULT_RESP_VERSION", 2)  # redis-py's, when nothing is said
SERVES, AGAIN = object(), object()  # of a shard in trouble: it serves; look again


class Layout:
    """One snapshot's router, and its shards by their numbers."""

    __slots__ = ("commands", "router", "shards", "troubled")

    def __init__(self, router: Router, shards: list[Any]) -> None:
        self.router, self.shards = router, shards
        self.commands = router.commands
        # Not every shard is simply asked: look before each request
        self.troubled = any(router.pool.mode(each) != "serve" for each in router.pool.shards)


class Batch:
    """Requests to one shard that are written together. replies: those that came, in order.

    shard, connection: of the client that has made it. limit: seconds for its replies, FOREVER; None: as
    always with that shard.
    """

    __slots__ = (
        *("connection", "count", "data", "decode", "error"),
        *("limit", "replies", "sent", "shard", "writes"),
    )

    def __init__(
        self,
        shard: Any,
        data: bytes,
        count: int,
        writes: bool,
        decode: bool = True,
        limit: float | None = None,
    ) -> None:
        self.shard, self.data, self.count, self.writes, self.decode = shard, data, count, writes, decode
        self.limit = limit
        self.connection: Any = None
        self.replies: list[Any] = []
        self.error: Exception | None = None  # why there are no more replies
        self.sent = False  # something of it may have reached the node

    @property
    def again(self) -> bool:
        """It failed, and may be sent once more."""
        return self.error is not None and not (self.sent and self.writes)


class BaseAsker:
    """Everything that the calls of one client share."""

    def __init__(
        self,
        settings: Settings,
        on_transition: Callable[[Transition], None] | None = None,
        table: CommandTable | None = None,
    ) -> None:
        self.settings, self.coding = settings, settings.coding
        self.pack = self.coding.packer()
        self.table = table or _table()
        self.proto = 3 if str(settings.common.get("protocol") or DEFAULT_PROTOCOL) == "3" else 2
        self.scripts = Scripts()
        self._learned = False
        self._tokens, self._counted = TOKENS, 0
        self.scans = Scans()
        self._shards: dict[tuple[str, str], Any] = {}
        retry = settings.common.get("retry")
        self._backoff = getattr(retry, "_backoff", None)
        self._retries = retry.get_retries() if retry is not None else None
        self.layout: Layout
        self.nodes = Nodes(settings.pool, time.monotonic(), self._changed, on_transition)
        self._changed(settings.pool)

    # --- snapshots ---

    def _changed(self, pool: Pool) -> None:
        """Another snapshot: shards that stay keep their connections."""
        shards: dict[tuple[str, str], Any] = {}
        for each in pool.shards:
            key = (each.name, each.node.address)
            known = self._shards.get(key)
            shards[key] = known or self._shard(each)
        gone = [shard for key, shard in self._shards.items() if key not in shards]
        self._shards = shards
        self.slow_call = pool.health.slow_call
        # who says how long a socket may take says it for every command
        router = Router(pool, self.table, self.coding, "socket_timeout" not in self.settings.common)
        self.layout = Layout(router, list(shards.values()))
        for shard in gone:
            self._gone(shard)

    def _shard(self, shard: ShardRecord) -> Any:
        """A shard of this client's for one of the snapshot."""
        raise NotImplementedError

    def _gone(self, shard: Any) -> None:
        """It is not in the snapshot any more."""
        raise NotImplementedError

    def apply(self, topology: Topology, followed: bool = False) -> None:
        self.nodes.apply(topology, self.settings.pool_name, time.monotonic(), followed)

    def reach(self, shard: ShardRecord) -> dict[str, Any]:
        """How its node is reached, as redis-py's settings."""
        found = self.settings.reach(shard.name, shard.node.address)
        return found | {"ssl": True} if shard.tls else found

    def follow(self, topology: Topology) -> None:
        """A snapshot that a proxy has told."""
        name = topology.pools[0].name
        self.settings = self.settings._replace(topology=topology, pool_name=name)
        self.apply(topology, followed=True)

    def taught(self, batch: Batch, plan: Plan) -> Batch | None:
        """The call of a script after SCRIPT LOAD, when its node has not known it and this client does."""
        reply = batch.replies[0]
        if plan.command.row.calls != "sha" or not isinstance(reply, NoScriptError) or plan.items is None:
            return None
        if (text := self.scripts.text(plan.items[1])) is None:
            return None
        self.scripts.loaded(plan.items[1])
        data = self.pack(("SCRIPT LOAD", text)) + self.pack(plan.items)
        return Batch(batch.shard, data, 2, True, batch.decode, batch.limit)

    def program(self, layout: Layout, plan: Plan, args: Sequence[Any], decode: bool) -> Program:
        """Of a call that takes several steps, or concerns no key."""
        if plan.across:
            from shardproxy.client.across import emulated  # seldom needed

            return emulated(layout.router, plan, decode)
        return steps.everywhere(layout.router, self.scans, self.scripts, plan, args, decode)

    def plan(self, args: Sequence[Any]) -> tuple[Layout, Plan]:
        """By one snapshot, which comes with it. Raises redis-py's exception for what is refused."""
        layout = self.layout
        return layout, layout.router.plan(args)

    def batch(self, layout: Layout, plan: Plan, args: Sequence[Any], decode: bool) -> Batch:
        """Of a call to one shard."""
        shard, limit = layout.shards[plan.shard], plan.command.limit
        if plan.waits is not None:
            waits = FOREVER if shard.timeout is None else plan.waits + (limit or shard.timeout)
            limit = max(waits, 1e-3)
        return Batch(shard, self.pack(args), 1, not plan.command.reads, decode, limit)

    def batches(self, layout: Layout, plan: Plan, decode: bool) -> list[Batch]:
        """Of a Split."""
        split, command = plan.split, plan.command
        assert split is not None
        return [
            Batch(layout.shards[at], self.pack(part), 1, not command.reads, decode, command.limit)
            for at, part in zip(split.shards, split.parts, strict=True)
        ]

    def batch_of(self, layout: Layout, step: Step) -> Batch:
        """Of a program's step. Raises refusals."""
        if step.at >= 0:
            return Batch(layout.shards[step.at], self.pack(step.args), 1, step.writes, step.decode)
        plan = layout.router.plan(step.args)
        if plan.shard < 0:
            raise errors.refusal(errors.CROSS_SHARD)
        return self.batch(layout, plan, step.args, step.decode)

    def _missing(self, shard: ShardRecord, mode: str, plan: Plan) -> Any:
        """What is answered for a shard that is down. Raises ShardError."""
        if mode == "miss" and plan.command.reads:
            from shardproxy.core import misses  # seldom needed, and slow to import

            frame = misses.reply(plan.command.name, plan.items or [], self.proto)
            if frame is not None:
                reader = self.coding.reader()
                reader.feed(frame)
                return reader.gets()
        raise errors.down(shard.name, shard.node.address, shard.node.reason or shard.node.state)

    def allows(self, tries: int, elapsed: float) -> bool:
        """Whether the budget has it that something is sent once more; it is taken from it then."""
        pool = self.nodes.pool
        retries = self._retries if self._retries is not None else pool.retries
        if (retries >= 0 and tries > retries) or elapsed > pool.timeout:
            return False
        answered = sum(shard.answered for shard in self.layout.shards)
        earned = max(answered - self._counted, 0) * pool.retry_budget
        self._counted, self._tokens = answered, min(self._tokens + earned, 10 * TOKENS)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


_builtin: CommandTable | None = None


def _table() -> CommandTable:
    """The built-in table, made once a process."""
    global _builtin
    if _builtin is None:
        _builtin = builtin()
    return _builtin
