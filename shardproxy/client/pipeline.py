"""Pipelines of the sync client: commands are gathered, then written to their shards at once.

    transaction=False   over any shards: one write and one read a shard, in parallel; results in order
    transaction=True    MULTI ... EXEC on the one shard of all keys; WATCH holds a connection of that shard

As redis-py's, down to the words of errors. Rules: a shard that fails leaves the others' results; its own
commands are sent again only when none has run that may have changed something. A pipeline is one thread's.
"""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from redis.commands import CoreCommands, RedisModuleCommands
from redis.exceptions import RedisError, WatchError

from shardproxy.client import errors
from shardproxy.client.base import Batch, Layout
from shardproxy.client.connection import Connection, Shard
from shardproxy.client.gathering import Call
from shardproxy.client.routing import Plan
from shardproxy.client.sync import NEVER_DECODE
from shardproxy.client.transaction import UNWATCHING, Transaction

if TYPE_CHECKING:
    from shardproxy.client.sync import ShardedRedis


class ShardedPipeline(Transaction, RedisModuleCommands, CoreCommands):
    """See `ShardedRedis.pipeline`. `execute` answers a list and empties it."""

    _is_async_client: Literal[False] = False

    def __init__(self, client: "ShardedRedis", transaction: bool) -> None:
        super().__init__(client, transaction)

    def _plan(self, args: Sequence[Any]) -> tuple[Layout, Plan]:
        found: tuple[Layout, Plan] = self.asker.planned(args)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reset()

    def close(self) -> None:
        self.reset()

    def __del__(self) -> None:
        if getattr(self, "_held", None) is not None:
            self.reset()

    # --- at once ---

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """WATCH, and what comes after it: on the connection that watches, if its keys are there."""
        shard: Shard | None
        self._unless_forked()
        self.asker.look()
        if args[0] == "WATCH":
            shard = self._shard_of(args)
        elif args[0] == "UNWATCH":
            shard = self._held[0] if self._held else None
        else:
            layout, plan = self._plan(args)
            shard = layout.shards[plan.shard] if plan.shard >= 0 else None
            if self._held is None or shard is not self._held[0]:
                return self.client.execute_command(*args, **options)
        if shard is None:
            return True
        if self._held is None:
            self._held = shard, self._taken(shard), os.getpid()
        elif self._held[0] is not shard:
            raise errors.refusal(errors.CROSS_SHARD)
        reply = self._on_held(args, NEVER_DECODE not in options)
        if args[0] == "WATCH":
            self.watching = not isinstance(reply, Exception)
        elif args[0] in UNWATCHING:
            self.watching = False
        if isinstance(reply, Exception):
            raise reply
        return self._called_back(args[0], reply, options)

    def _taken(self, shard: Shard) -> Connection:
        try:
            return shard.take()
        except (RedisError, OSError):
            # the same again as a request, which says it in its words
            batch = Batch(shard, self.asker.pack(("PING",)), 1, False)
            self.asker.exchange([batch])
            if batch.error is not None:
                raise batch.error from None
            return shard.take()

    def _on_held(self, args: Sequence[Any], decode: bool) -> Any:
        assert self._held is not None
        shard, connection, _ = self._held
        batch = Batch(shard, self.asker.pack(args), 1, True, decode)
        self.asker.exchange_on(batch, connection)
        if batch.error is not None:
            self._held = None
            self.reset()
            raise WatchError(
                f"A {type(batch.error).__name__} occurred while watching one or more keys: {batch.error}"
            ) from batch.error
        return batch.replies[0]

    # --- running ---

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Runs what was gathered. raise_on_error=False: exceptions stand in the list, in place of replies."""
        calls = self.command_stack
        if not calls and not self.watching:
            return []
        try:
            self._unless_forked()
            self.asker.look()
            if self.transaction or self.explicit_transaction:
                return self._run_transaction(calls, raise_on_error)
            results = self._run(calls)
        finally:
            self.reset()
        return self._checked(calls, results, raise_on_error)

    def _run(self, calls: list[Call]) -> list[Any]:
        """Each call's reply, or exception."""
        results: list[Any] = [None] * len(calls)
        pending = list(range(len(calls)))
        tries = 0
        while pending:
            pending = self._round(calls, pending, results)
            tries += 1
            if pending and not self.asker.may_retry(tries, 0):
                break
        return results

    def _round(self, calls: list[Call], pending: list[int], results: list[Any]) -> list[int]:
        """Sends these calls once; answers those that may be sent again, with why in their results."""
        asker = self.asker
        if asker.layout.troubled:
            asker.try_due()
        found = self._sorted(calls, pending, results)
        for number in found.asks:
            args, options = calls[number]
            try:
                results[number] = asker.ask(args, NEVER_DECODE not in options)
            except RedisError as error:
                results[number] = error
        asker.exchange(found.batches)
        return self._given(found, results)

    # --- transactions ---

    def _run_transaction(self, calls: Sequence[Call], raise_on_error: bool) -> list[Any]:
        asker = self.asker
        tries = 0
        while True:
            if asker.layout.troubled:
                asker.try_due()
            batch, loads = self._framed(calls)
            shard = batch.shard
            if self._held is not None:
                asker.exchange_on(batch, self._held[1])
                held, self._held = self._held, None
                if batch.error is None:
                    shard.give(held[1])
            else:
                asker.exchange([batch])
            if batch.error is None:
                return self._finished(calls, batch.replies[loads:], raise_on_error)
            self._unless_watching(batch.error)
            tries += 1
            if not batch.again or not asker.may_retry(tries, 0):
                raise batch.error
