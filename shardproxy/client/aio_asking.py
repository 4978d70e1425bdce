"""How the asyncio client asks its shards; as `asking`, which says what is done, with awaits in between.

Requests of a batch go to the connection that its shard's calls share, and all that is asked in one turn of
the loop goes out in one write. A connection of its own has what waits for data, what is large, what holds a
connection (transactions), and everything when `pipelining` is off. Nothing is closed because a call was
given up on a shared connection: its place in the FIFO stays, and the reply is dropped.
"""

import asyncio
import os
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from shardproxy.client import errors, merging, steps
from shardproxy.client.aio_connection import Connection, Lost
from shardproxy.client.aio_shard import AsyncShard
from shardproxy.client.base import AGAIN, SERVES, BaseAsker, Batch, Layout
from shardproxy.client.follower import AsyncFollower
from shardproxy.client.health import Transition
from shardproxy.client.routing import FOREVER, Plan, Split
from shardproxy.client.settings import Settings
from shardproxy.client.steps import Program, Step
from shardproxy.core.commands import CommandTable, learn
from shardproxy.core.topology import Pool
from shardproxy.core.topology import Shard as ShardRecord

if TYPE_CHECKING:
    from shardproxy.client.aio_pubsub import AsyncShardedPubSub

LARGE = 64 << 10  # bytes of a request that would hold up those behind it
SLOWEST = 10e6  # bytes a second: what is large has so much more time
HELD_FOR = 0.05  # seconds between trials while a call waits for their verdict


class AsyncAsker(BaseAsker):
    """Everything that the calls of one client share. It belongs to the loop that uses it."""

    def __init__(
        self,
        settings: Settings,
        on_transition: Callable[[Transition], None] | None = None,
        table: CommandTable | None = None,
        pipelining: bool = True,
    ) -> None:
        self.large = LARGE if pipelining else -1
        self.listeners: weakref.WeakSet[AsyncShardedPubSub] = weakref.WeakSet()  # told of new layouts
        self._trials: dict[str, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.watcher: AsyncFollower | None = None  # where proxies say what there is
        self.prober: Any = None  # an AsyncProber, if one is asked for
        super().__init__(settings, on_transition, table)
        _ALIVE.add(self)

    # --- snapshots ---

    def _changed(self, pool: Pool) -> None:
        super()._changed(pool)
        for shard in self._shards.values():
            shard.nodes, shard.slow_call = self.nodes, self.slow_call
        for listener in list(self.listeners):
            listener.moved()

    def _shard(self, shard: ShardRecord) -> AsyncShard:
        name, address = shard.name, shard.node.address
        made = AsyncShard(name, address, self.reach(shard), self.coding, self.nodes.pool.reset_after)
        made.shares = self.large > 0
        made.memcached = self.table if shard.protocol == "memcached" else None
        return made

    def _gone(self, shard: AsyncShard) -> None:
        shard.retire()

    async def learn_commands(self) -> bool:
        """As `learn`."""
        if self._learned:
            return False
        self._learned = True
        batches = [Batch(shard, self.pack(("COMMAND",)), 1, False) for shard in self.layout.shards]
        await self.exchange(batches)
        replies = [batch.replies[0] for batch in batches if batch.error is None]
        table = learn(self.table, [reply for reply in replies if isinstance(reply, list)])
        if table is self.table:
            return False
        self.table = table
        self._changed(self.nodes.pool)
        return True

    # --- one call ---

    async def ready(self) -> None:
        """To be awaited before anything else: it is this loop's, and there is a topology."""
        self.enter()
        if self.watcher is not None and self.watcher.following.topology is None:
            await self.watcher.first()

    def known(self) -> None:
        """Raises ConnectionError while no proxy has told the topology."""
        if self.watcher is not None and self.watcher.following.topology is None:
            raise self.watcher.none()

    async def call(self, args: Sequence[Any], decode: bool = True) -> Any:
        """As `asking.Asker.ask`."""
        await self.ready()
        started, tries = 0.0, 0
        while True:
            layout, plan = await self.planned(args)
            if plan.split is not None:
                return await self.in_parts(layout, plan, plan.split, decode)
            if plan.everywhere is not None or plan.across:
                return await self.run_through(layout, self.program(layout, plan, args, decode))
            started = started or time.monotonic()
            if layout.troubled:
                instead = await self.despite_trouble(layout, plan, started)
                if instead is AGAIN:
                    continue
                if instead is not SERVES:
                    return instead
            batch = self.batch(layout, plan, args, decode)
            await self.exchange([batch])
            if batch.error is None:
                return await self._with_its_script(batch, plan)
            if not batch.again:
                raise batch.error
            tries += 1
            if not await self.another_try(tries, time.monotonic() - started):
                raise batch.error

    async def call_again(self, args: Sequence[Any], batch: Batch, lost: Lost) -> Any:
        """What comes of a call on the fast path whose connection was lost: it is made again, or raises."""
        self._settle(batch, lost)
        assert batch.error is not None
        if batch.again and await self.another_try(1, batch.shard.timeout or 0.0 if lost.late else 0.0):
            return await self.call(args)
        raise batch.error

    async def planned(self, args: Sequence[Any]) -> tuple[Layout, Plan]:
        """As `asking.Asker.planned`."""
        try:
            return self.plan(args)
        except ResponseError as error:
            if not str(error).startswith("unknown ") or not await self.learn_commands():
                raise
        return self.plan(args)

    async def another_try(self, tries: int, elapsed: float) -> bool:
        """As `may_retry`."""
        if not self.allows(tries, elapsed):
            return False
        if self._backoff is not None and (wait := self._backoff.compute(tries)) > 0:
            await asyncio.sleep(wait)
        return True

    async def _with_its_script(self, batch: Batch, plan: Plan) -> Any:
        """As `_with_script`."""
        again = self.taught(batch, plan)
        if again is None:
            return batch.replies[0]
        await self.exchange([again])
        if again.error is not None:
            raise again.error
        return again.replies[1]

    # --- batches ---

    async def exchange(self, batches: Sequence[Batch], alone: bool = False) -> None:
        """Each batch to its shard, all at once. Nothing is raised for what fails: it is the batch's error."""
        shared: list[tuple[Batch, asyncio.Future[Any]]] = []
        private: list[Batch] = []
        for batch in batches:
            if alone or len(batch.data) > self.large or (batch.limit or 0) > (batch.shard.timeout or FOREVER):
                private.append(batch)
                continue
            connection = batch.shard.shared()
            if connection.paused:
                await connection.room()
            shared.append((batch, connection.ask_many(batch.data, batch.count, batch.decode)))
        if len(private) == 1 and not shared:
            await self._alone(private[0])
        elif private:
            await asyncio.gather(*map(self._alone, private))
        for batch, waiter in shared:
            self._settle(batch, await (waiter if batch.limit is None else self._within(batch, waiter)))

    async def _within(self, batch: Batch, waiter: asyncio.Future[Any]) -> Any:
        """Its reply, if it comes sooner than others on that connection have to."""
        try:
            async with asyncio.timeout(batch.limit):
                return await waiter
        except TimeoutError:
            batch.shard.late()
            return Lost("it did not answer in time", True, late=True)

    async def _alone(self, batch: Batch) -> None:
        shard: AsyncShard = batch.shard
        try:
            connection = await shard.private()
        except Lost as lost:
            self._settle(batch, lost)
            return
        try:
            await self.exchange_alone(batch, connection)
        finally:
            shard.release(connection)

    async def exchange_alone(self, batch: Batch, connection: Connection) -> None:
        """On a connection that the caller holds, and goes on holding; closed when the reply is given up."""
        limit = batch.limit or batch.shard.timeout
        if limit is not None:
            limit = None if limit == FOREVER else limit + len(batch.data) / SLOWEST
        waiter = connection.ask_many(batch.data, batch.count, batch.decode, lasting=True)
        try:
            async with asyncio.timeout(limit):
                reply = await waiter
        except TimeoutError:
            connection.close("it did not answer in time")
            batch.shard.late()
            reply = Lost("it did not answer in time", True, late=True)
        except BaseException:
            connection.close("its call was given up")
            raise
        self._settle(batch, reply)

    def _settle(self, batch: Batch, reply: Any) -> None:
        if not isinstance(reply, Lost):
            batch.replies = reply
            return
        shard = batch.shard
        batch.sent = reply.sent
        if reply.error is not None:
            batch.error = type(reply.error)(*reply.error.args)
        elif reply.late:
            limit = batch.limit or shard.timeout or 0.0
            batch.error = errors.timed_out(shard.name, shard.address, limit, batch.writes)
        elif reply.slow:
            batch.error = errors.not_asked(shard.name, shard.address, self.nodes.pool.connect_timeout)
        elif reply.sent:
            batch.error = errors.lost(shard.name, shard.address, reply.reason, batch.writes)
        else:
            batch.error = errors.down(shard.name, shard.address, reply.reason)

    # --- several shards ---

    async def in_parts(self, layout: Layout, plan: Plan, split: Split, decode: bool) -> Any:
        """As `split`."""
        if layout.troubled:
            replies = await asyncio.gather(*(self._caught_call(part, decode) for part in split.parts))
            return merging.of_parts(split, replies, self.nodes.pool.partial)
        batches = self.batches(layout, plan, decode)
        await self.exchange(batches)
        replies = [
            batch.replies[0]
            if batch.error is None
            else await self._caught_call(part, decode)
            if batch.again and await self.another_try(1, 0)
            else batch.error
            for batch, part in zip(batches, split.parts, strict=True)
        ]
        return merging.of_parts(split, replies, self.nodes.pool.partial)

    async def _caught_call(self, args: Sequence[Any], decode: bool) -> Any:
        try:
            return await self.call(args, decode)
        except RedisError as error:
            return error

    async def run_through(self, layout: Layout, program: Program) -> Any:
        """As `run`."""
        answers: Any = None
        while True:
            try:
                asked = program.send(answers)
            except StopIteration as done:
                return done.value
            answers = await self._answered(layout, asked)

    async def _answered(self, layout: Layout, asked: Sequence[Step]) -> list[Any]:
        if any(step.at < 0 for step in asked) and layout.troubled:
            return await asyncio.gather(*(self._caught_call(step.args, step.decode) for step in asked))
        batches = [self.batch_of(layout, step) for step in asked]
        await self.exchange(batches)
        return [batch.error or batch.replies[0] for batch in batches]

    async def of_all(self, args: Sequence[Any]) -> dict[str, Any]:
        """As `all`."""
        layout = self.layout
        found: dict[str, Any] = await self.run_through(layout, steps.of_each(layout.router, args))
        return found

    # --- while not all is well ---

    async def despite_trouble(self, layout: Layout, plan: Plan, started: float) -> Any:
        """As `in_trouble`."""
        if (
            time.monotonic() >= self.nodes.trial_at
            and (due := self.nodes.claim(time.monotonic())) is not None
        ):
            self.begin_trial(due)
        pool = layout.router.pool
        shard = pool.shards[plan.shard]
        mode = pool.mode(shard)
        if mode == "serve":
            return SERVES
        if mode == "move":
            raise errors.refusal(errors.NO_PLACE)
        if mode == "hold" and await self._verdict(pool, shard.node.address, started + pool.timeout):
            return AGAIN
        return self._missing(shard, mode, plan)

    async def _verdict(self, pool: Pool, address: str, limit: float) -> bool:
        """Whether there is another snapshot, before that time; a trial is made meanwhile."""
        while pool is self.nodes.pool and (left := limit - time.monotonic()) > 0:
            if address not in self._trials and self.nodes.claim_node(address):
                self.begin_trial(address)
            trial = self._trials.get(address)
            if trial is not None:
                await asyncio.wait([trial], timeout=left)
            if pool is self.nodes.pool:
                await asyncio.sleep(min(HELD_FOR, left))
        return pool is not self.nodes.pool

    def probe(self) -> None:
        from shardproxy.client.probing import AsyncProber

        self.prober = AsyncProber(self.nodes, self.begin_trial)

    def begin_trial(self, address: str) -> None:
        task = self._trials[address] = asyncio.get_running_loop().create_task(self._make_trial(address))
        task.add_done_callback(lambda _: self._trials.pop(address, None))

    async def _make_trial(self, address: str) -> None:
        shard: Any = next((each for each in self.layout.shards if each.address == address), None)
        reason, refused = "it was given up", False
        try:
            if shard is not None:
                reason, refused = await shard.trial(self.nodes.trials(address))
        finally:
            self.nodes.tried(address, time.monotonic(), not reason, reason, refused)

    def redis_of(self, shard: Any) -> Redis:
        """redis-py's client of its node."""
        self.enter()
        if shard.memcached is not None:
            raise TypeError(f"shard {shard.name} is a memcached node: redis-py does not speak its protocol")
        found: AsyncShard = shard
        return found.redis

    # --- its loop, and its end ---

    def enter(self) -> None:
        """To be called first. Raises RuntimeError when another loop has it."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None and self._loop.is_running():
            raise RuntimeError(
                "this client is used by another event loop, which runs: each needs one of its own"
            )
        self.forget()
        self._loop = loop
        for each in (self.watcher, self.prober):
            if each is not None:
                each.start()

    async def aclose(self) -> None:
        """Everything ends, and may begin again; nothing of it is left in the loop then."""
        if self._loop is not asyncio.get_running_loop():
            self.forget()
            return
        tasks = list(self._trials.values())
        for each in (self.watcher, self.prober):
            tasks += each.stop() if each is not None else ()
        for shard in self._shards.values():
            tasks += shard.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for shard in self._shards.values():
            await shard.aclose()
        self._loop = None
        await asyncio.sleep(0)  # transports close in the loop's next turn

    def forget(self) -> None:
        """What belongs to a loop that is not there any more is not touched again."""
        self._loop = None
        self._trials.clear()
        for each in (self.watcher, self.prober):
            if each is not None:
                each.forget()
        for shard in self._shards.values():
            shard.forget()


_ALIVE: weakref.WeakSet[AsyncAsker] = weakref.WeakSet()
_LEFT: list[Any] = []  # of parents, in children: their ends are not ours to close, and their epoll is shared


def _forked() -> None:
    for asker in list(_ALIVE):
        _LEFT.append([shard.__dict__.copy() for shard in asker._shards.values()])
        asker.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
