"""Pipelines of the asyncio client: the steps that wait; what they do is in `gathering` and `transaction`.

Without a transaction the commands go to the connections that all calls share, in one piece a shard. MULTI
... EXEC and what is watched have a connection of their own. A pipeline that is cancelled leaves no reply to
anybody; what of it has run is then not known.
"""

import contextlib
import os
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from redis.commands import AsyncCoreCommands, AsyncRedisModuleCommands
from redis.exceptions import RedisError, WatchError

from shardproxy.client import errors
from shardproxy.client.aio_asking import AsyncAsker
from shardproxy.client.aio_connection import Connection, Lost
from shardproxy.client.aio_shard import AsyncShard
from shardproxy.client.base import Batch
from shardproxy.client.gathering import Call
from shardproxy.client.sync import NEVER_DECODE
from shardproxy.client.transaction import UNWATCHING, Transaction

if TYPE_CHECKING:
    from shardproxy.client.aio import AsyncShardedRedis


class AsyncShardedPipeline(Transaction, AsyncRedisModuleCommands, AsyncCoreCommands):  # type: ignore[misc]
    """See `AsyncShardedRedis.pipeline`. `execute` answers a list and empties it.

    Commands are gathered without being awaited; after `watch` and before `multi` they are awaited.
    """

    _is_async_client: Literal[True] = True

    def __init__(self, client: "AsyncShardedRedis", transaction: bool) -> None:
        super().__init__(client, transaction)
        self.asker: AsyncAsker = client.asker

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.reset()

    def __await__(self) -> Generator[Any, None, Self]:
        """As redis-py's: `await pipe.set(...)` does nothing but gather."""
        return self
        yield

    async def reset(self) -> None:  # type: ignore[override]  # not the command
        """Forgets what was gathered, and watches nothing any more."""
        super().reset()

    async def aclose(self) -> None:
        await self.reset()

    close = aclose
    discard = reset

    def _let_go(self, connection: Connection) -> None:
        connection.close("it watched keys")

    async def unwatch(self) -> bool:  # type: ignore[override]  # as redis-py's Pipeline
        return bool(await self.immediate_execute_command("UNWATCH")) if self.watching else True

    # --- at once ---

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """WATCH, and what comes after it: on the connection that watches, if its keys are there."""
        self._unless_forked()
        await self.asker.ready()
        shard: Any
        if args[0] == "WATCH":
            shard = self._shard_of(args)
        elif args[0] == "UNWATCH":
            shard = self._held[0] if self._held else None
        else:
            layout, plan = await self.asker.planned(args)
            shard = layout.shards[plan.shard] if plan.shard >= 0 else None
            if self._held is None or shard is not self._held[0]:
                return await self.client.execute_command(*args, **options)
        if shard is None:
            return True
        if self._held is None:
            self._held = shard, await self._taken_alone(shard), os.getpid()
        elif self._held[0] is not shard:
            raise errors.refusal(errors.CROSS_SHARD)
        reply = await self._on_watcher(args, NEVER_DECODE not in options)
        if args[0] == "WATCH":
            self.watching = not isinstance(reply, Exception)
        elif args[0] in UNWATCHING:
            self.watching = False
        if isinstance(reply, Exception):
            raise reply
        return self._called_back(args[0], reply, options)

    async def _taken_alone(self, shard: AsyncShard) -> Connection:
        try:
            return await shard.private()
        except Lost as lost:
            if lost.error is not None:
                raise type(lost.error)(*lost.error.args) from None
            raise errors.down(shard.name, shard.address, lost.reason) from None

    async def _on_watcher(self, args: Sequence[Any], decode: bool) -> Any:
        assert self._held is not None
        shard, connection, _ = self._held
        batch = Batch(shard, self.asker.pack(args), 1, True, decode)
        await self.asker.exchange_alone(batch, connection)
        if batch.error is not None:
            super().reset()
            raise WatchError(
                f"A {type(batch.error).__name__} occurred while watching one or more keys: {batch.error}"
            ) from batch.error
        return batch.replies[0]

    # --- running ---

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Runs what was gathered. raise_on_error=False: exceptions stand in the list, in place of replies."""
        calls = self.command_stack
        if not calls and not self.watching:
            return []
        try:
            self._unless_forked()
            await self.asker.ready()
            await self._know(calls)
            if self.transaction or self.explicit_transaction:
                return await self._transact(calls, raise_on_error)
            results = await self._all(calls)
        finally:
            super().reset()
        return self._checked(calls, results, raise_on_error)

    async def _know(self, calls: Sequence[Call]) -> None:
        """Commands that only the nodes know are learned before they are sorted."""
        known = self.asker.layout.commands
        for args in {args[0]: args for args, _ in calls if args[0] not in known}.values():
            with contextlib.suppress(RedisError):
                await self.asker.planned(args)

    async def _all(self, calls: list[Call]) -> list[Any]:
        """Each call's reply, or exception."""
        results: list[Any] = [None] * len(calls)
        pending = list(range(len(calls)))
        tries = 0
        while pending:
            pending = await self._once(calls, pending, results)
            tries += 1
            if pending and not await self.asker.another_try(tries, 0):
                break
        return results

    async def _once(self, calls: list[Call], pending: list[int], results: list[Any]) -> list[int]:
        """As `_round`."""
        found = self._sorted(calls, pending, results)
        for number in found.asks:
            args, options = calls[number]
            try:
                results[number] = await self.asker.call(args, NEVER_DECODE not in options)
            except RedisError as error:
                results[number] = error
        await self.asker.exchange(found.batches)
        return self._given(found, results)

    async def _transact(self, calls: Sequence[Call], raise_on_error: bool) -> list[Any]:
        """As `_run_transaction`."""
        asker, tries = self.asker, 0
        while True:
            batch, loads = self._framed(calls)
            if self._held is not None:
                await asker.exchange_alone(batch, self._held[1])
                shard, connection, _ = self._held
                self._held = None
                shard.release(connection)  # EXEC has ended what it watched
            else:
                await asker.exchange([batch], alone=True)
            if batch.error is None:
                return self._finished(calls, batch.replies[loads:], raise_on_error)
            self._unless_watching(batch.error)
            tries += 1
            if not batch.again or not await asker.another_try(tries, 0):
                raise batch.error
