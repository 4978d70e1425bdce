"""How the asyncio client asks its shards; as `asking`, which says what is done, with awaits in between.

Requests of a batch go to the connection that its shard's calls share, and all that is asked in one turn of
the loop goes out in one write. A connection of its own has what waits for data, what is large, what holds a
connection (transactions), and everything when `pipelining` is off. Nothing is closed because a call was
given up on a shared connection: its place in the FIFO stays, and the reply is dropped.
"""

import asyncio
import os
import random
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from shardproxy.client import errors, merging
from shardproxy.client.aio_connection import Connection, Lost
from shardproxy.client.aio_shard import AsyncShard
from shardproxy.client.asking import AGAIN, RANDOM_TRIES, SERVES, Asker, Batch, Layout
from shardproxy.client.everywhere import Everywhere
from shardproxy.client.follower import AsyncFollower
from shardproxy.client.health import Transition
from shardproxy.client.routing import FOREVER, Plan, Router, Split
from shardproxy.client.settings import Settings
from shardproxy.core.commands import CommandTable, learn
from shardproxy.core.errors import NO_SHARDS
from shardproxy.core.topology import Pool

if TYPE_CHECKING:
    from shardproxy.client.aio_pubsub import AsyncShardedPubSub

LARGE = 64 << 10  # bytes of a request that would hold up those behind it
SLOWEST = 10e6  # bytes a second: what is large has so much more time
HELD_FOR = 0.05  # seconds between trials while a call waits for their verdict


class AsyncAsker(Asker):
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
        super().__init__(settings, on_transition, table)
        self._delay, self._backoff = self._backoff, None
        _ALIVE.add(self)

    # --- snapshots ---

    def _changed(self, pool: Pool) -> None:
        shards: dict[tuple[str, str], AsyncShard] = {}
        before: Mapping[tuple[str, str], AsyncShard] = self._shards  # type: ignore[assignment]  # ours are these
        for each in pool.shards:
            key = (each.name, each.node.address)
            made = shards[key] = before.get(key) or AsyncShard(
                *key, self.reach(each), self.coding, pool.reset_after
            )
            made.nodes, made.shares = self.nodes, self.large > 0
            made.memcached = self.table if each.protocol == "memcached" else None
        self._shards = shards  # type: ignore[assignment]
        self.layout = Layout(Router(pool, self.table, self.coding), list(shards.values()))  # type: ignore[arg-type]
        for key, shard in before.items():
            if key not in shards:
                shard.retire()
        for listener in list(self.listeners):
            listener.moved()

    async def learn_commands(self) -> bool:
        """As `learn`."""
        if self._learned:
            return False
        self._learned = True
        batches = [self._batch(at, ("COMMAND",), False) for at in range(len(self.layout.shards))]
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

    async def call(self, args: Sequence[Any], decode: bool = True) -> Any:
        """As `ask`."""
        await self.ready()
        started, tries = 0.0, 0
        while True:
            plan = await self.planned(args)
            layout = self.layout
            if plan.split is not None:
                return await self.in_parts(layout, plan, plan.split, decode)
            if plan.everywhere is not None:
                return await self.of_everyone(layout, plan.everywhere, plan, args, decode)
            started = started or time.monotonic()
            if layout.troubled:
                instead = await self.despite_trouble(layout, plan, started)
                if instead is AGAIN:
                    continue
                if instead is not SERVES:
                    return instead
            batch = self._batch(plan.shard, args, not plan.command.reads, decode, layout)
            await self.exchange([batch], plan.waits)
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

    def _batch(
        self, at: int, args: Sequence[Any], writes: bool, decode: bool = True, layout: Layout | None = None
    ) -> Batch:
        return Batch((layout or self.layout).shards[at], self.pack(args), 1, writes, decode)

    async def planned(self, args: Sequence[Any]) -> Plan:
        """As `plan`."""
        try:
            return self.layout.router.plan(args)
        except ResponseError as error:
            if not str(error).startswith("unknown ") or not await self.learn_commands():
                raise
        return self.layout.router.plan(args)

    async def another_try(self, tries: int, elapsed: float) -> bool:
        """As `may_retry`."""
        if not self.may_retry(tries, elapsed):
            return False
        if self._delay is not None and (wait := self._delay.compute(tries)) > 0:
            await asyncio.sleep(wait)
        return True

    async def _with_its_script(self, batch: Batch, plan: Plan) -> Any:
        """As `_with_script`."""
        reply = batch.replies[0]
        if plan.command.row.calls != "sha" or not isinstance(reply, Exception) or plan.items is None:
            return reply
        text = self.script(plan.items[1]) if str(reply).startswith("No matching script") else None
        if text is None:
            return reply
        data = self.pack(("SCRIPT LOAD", text)) + self.pack(plan.items)
        again = Batch(batch.shard, data, 2, True, batch.decode)
        await self.exchange([again])
        if again.error is not None:
            raise again.error
        return again.replies[1]

    # --- batches ---

    async def exchange(  # type: ignore[override]  # as asyncio has it
        self, batches: Sequence[Batch], waits: float | None = None, alone: bool = False
    ) -> None:
        """Each batch to its shard, all at once. Nothing is raised for what fails: it is the batch's error."""
        shared: list[tuple[Batch, asyncio.Future[Any]]] = []
        private: list[Batch] = []
        for batch in batches:
            if alone or waits is not None or len(batch.data) > self.large:
                private.append(batch)
                continue
            connection = batch.shard.shared()  # type: ignore[attr-defined]  # ours are AsyncShards
            if connection.paused:
                await connection.room()
            shared.append((batch, connection.ask_many(batch.data, batch.count, batch.decode)))
        if len(private) == 1 and not shared:
            await self._alone(private[0], waits)
        elif private:
            await asyncio.gather(*(self._alone(batch, waits) for batch in private))
        for batch, waiter in shared:
            self._settle(batch, await waiter)

    async def _alone(self, batch: Batch, waits: float | None) -> None:
        shard: AsyncShard = batch.shard  # type: ignore[assignment]
        try:
            connection = await shard.private()
        except Lost as lost:
            self._settle(batch, lost)
            return
        try:
            await self.exchange_alone(batch, connection, waits)
        finally:
            shard.release(connection)

    async def exchange_alone(self, batch: Batch, connection: Connection, waits: float | None = None) -> None:
        """On a connection that the caller holds, and goes on holding; closed when the reply is given up."""
        shard: AsyncShard = batch.shard  # type: ignore[assignment]
        limit = None
        if shard.timeout is not None and waits != FOREVER:
            limit = shard.timeout + (waits or 0.0) + len(batch.data) / SLOWEST
        waiter = connection.ask_many(batch.data, batch.count, batch.decode, lasting=True)
        try:
            async with asyncio.timeout(limit):
                reply = await waiter
        except TimeoutError:
            connection.close("it did not answer in time")
            if not waits:
                shard.late()
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
            batch.error = errors.timed_out(shard.name, shard.address, shard.timeout or 0.0, batch.writes)
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
        batches = [
            self._batch(at, part, not plan.command.reads, decode, layout)
            for at, part in zip(split.shards, split.parts, strict=True)
        ]
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

    async def of_everyone(
        self, layout: Layout, what: Everywhere, plan: Plan, args: Sequence[Any], decode: bool
    ) -> Any:
        """As `everywhere`."""
        if what.who == "any":
            return await self._of_any(layout, args, decode)
        if what.who == "scan":
            return await self._next_of_scan(layout, args, plan.items or [])
        if what.who == "random":
            return await self._random_key(layout, decode)
        found = await self.of_all(args, decode, what.writes)
        return merging.of_all(what, found, self.nodes.pool.partial)

    async def of_all(self, args: Sequence[Any], decode: bool = True, writes: bool = True) -> dict[str, Any]:
        """As `all`."""
        layout = self.layout
        asked = [at for at in range(len(layout.shards)) if at not in layout.router.absent]
        others = [at for at in asked if layout.shards[at].memcached is None]
        if len(asked) > len(others) > 0:
            from shardproxy.core.memcached import PROGRAMS

            if layout.router.command(args[0]).name not in PROGRAMS:
                asked = others  # what memcached cannot do, the others do
        batches = [self._batch(at, args, writes, decode, layout) for at in asked]
        await self.exchange(batches)
        return {batch.shard.name: batch.error or batch.replies[0] for batch in batches}

    async def _of_any(self, layout: Layout, args: Sequence[Any], decode: bool) -> Any:
        error: Exception = errors.refusal(NO_SHARDS)
        pool = layout.router.pool
        ready = [at for at, each in enumerate(pool.shards) if pool.mode(each) == "serve"]
        for at in ready or range(len(layout.shards)):
            batch = self._batch(at, args, False, decode, layout)
            await self.exchange([batch])
            if batch.error is None:
                return batch.replies[0]
            error = batch.error
        raise error

    async def _next_of_scan(self, layout: Layout, args: Sequence[Any], items: list[bytes]) -> Any:
        """SCAN cursor ...: one shard a call."""
        shards = self._placed(layout)
        step = self.scans.step(items[1], shards)
        if step is None:
            return [b"0", []]
        batch = Batch(shards[step.shard], self.pack((args[0], step.cursor, *args[2:])), 1, False)
        await self.exchange([batch])
        if batch.error is not None and self.nodes.pool.partial == "error":
            raise batch.error
        return self.scans.reply(step, None if batch.error else batch.replies[0], shards)

    async def _random_key(self, layout: Layout, decode: bool) -> Any:
        """RANDOMKEY, of a shard in proportion to its keys."""
        shards = self._placed(layout)
        sizes = await self.of_all(("DBSIZE",), writes=False)
        failed = {name: size for name, size in sizes.items() if isinstance(size, Exception)}
        if failed:
            raise errors.PartialError({}, failed)
        for _ in range(RANDOM_TRIES):
            if not any(sizes.values()):
                break
            name = random.choices(list(sizes), list(sizes.values()))[0]
            batch = Batch(shards[name], self.pack(("RANDOMKEY",)), 1, False, decode)
            await self.exchange([batch])
            if batch.error is not None:
                raise batch.error
            if batch.replies[0] is not None:
                return batch.replies[0]
            sizes[name] = 0
        return None

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
            tasks += shard.stop()  # type: ignore[attr-defined]  # ours are AsyncShards
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for shard in self._shards.values():
            await shard.aclose()  # type: ignore[attr-defined]
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
            shard.forget()  # type: ignore[attr-defined]


_ALIVE: weakref.WeakSet[AsyncAsker] = weakref.WeakSet()
_LEFT: list[Any] = []  # of parents, in children: their ends are not ours to close, and their epoll is shared


def _forked() -> None:
    for asker in list(_ALIVE):
        _LEFT.append([shard.__dict__.copy() for shard in asker._shards.values()])
        asker.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
