"""MULTI ... EXEC and WATCH, of both clients' pipelines: on which shard, as which bytes, with which results.

As redis-py's, down to the words of errors. What is watched holds a connection of that shard, of this process.
"""

import os
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ExecAbortError, RedisError, ResponseError, WatchError

from shardproxy.client import errors
from shardproxy.client.base import Batch
from shardproxy.client.gathering import Call, Gathering, annotated
from shardproxy.client.sync import EMPTY_RESPONSE

UNWATCHING = ("DISCARD", "EXEC", "UNWATCH")
NONE: dict[str, Any] = {}  # options, of most calls
NOT_IN_MULTI = "ERR '{}' is not supported inside MULTI"


class Transaction(Gathering):
    """What a pipeline is, but for the steps that wait."""

    def __init__(self, client: Any, transaction: bool) -> None:
        super().__init__(client)
        self.transaction = transaction
        self.watching = False
        self.explicit_transaction = False
        # Where WATCH was sent: a shard and a connection of this client's, and the process
        self._held: tuple[Any, Any, int] | None = None

    def execute_command(self, *args: Any, keys: Any = None, **options: Any) -> Any:
        """keys: for redis-py's own caches; dropped, since the garbage collector visits what is kept."""
        if (self.watching or args[0] == "WATCH") and not self.explicit_transaction:
            return self.immediate_execute_command(*args, **options)
        self.command_stack.append((args, options or NONE))
        return self

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """WATCH, and what comes after it: on the connection that watches, if its keys are there."""
        raise NotImplementedError

    def reset(self) -> Any:
        """Forgets what was gathered, and watches nothing any more."""
        self.command_stack = []
        self.watching = self.explicit_transaction = False
        held, self._held = self._held, None
        if held is not None and held[2] == os.getpid():
            # its watched keys end with it: cheaper than a round trip to be sure
            self._let_go(held[1])

    def _let_go(self, connection: Any) -> None:
        connection.close()

    def _unless_forked(self) -> None:
        """A child says nothing on a connection of its parent's. Raises WatchError."""
        if self._held is not None and self._held[2] != os.getpid():
            self.command_stack, self.watching, self.explicit_transaction = [], False, False
            self._held = None
            raise WatchError("The process has forked while watching one or more keys")

    def multi(self) -> None:
        """After WATCH: what follows is gathered until `execute`."""
        if self.explicit_transaction:
            raise RedisError("Cannot issue nested calls to MULTI")
        if self.command_stack:
            raise RedisError("Commands without an initial WATCH have already been issued")
        self.explicit_transaction = True

    def discard(self) -> Any:
        self.reset()

    def watch(self, *names: Any) -> Any:
        """Watches keys of one shard; until `multi` commands run at once."""
        if self.explicit_transaction:
            raise RedisError("Cannot issue a WATCH after a MULTI")
        return self.execute_command("WATCH", *names)

    def unwatch(self) -> Any:
        return bool(self.execute_command("UNWATCH")) if self.watching else True

    def _shard_of(self, args: Sequence[Any]) -> Any:
        """Of WATCH: its keys share one, and it serves."""
        layout = self.asker.layout
        found = {layout.router.locate(layout.router.key(key)) for key in args[1:]}
        if len(found) != 1:
            raise errors.refusal(errors.CROSS_SHARD)
        return layout.shards[found.pop()]

    def _framed(self, calls: Sequence[Call]) -> tuple[Batch, int]:
        """SCRIPT LOADs, and how many there are of them, MULTI, the calls, EXEC. Raises refusals."""
        shard, reads, limit = self._place(calls)
        sent = [call for call in calls if EMPTY_RESPONSE not in call[1]]
        loads = [] if self.watching else self._loads(sent)
        frames = [*loads, ("MULTI",), *(args for args, _ in sent), ("EXEC",)]
        data = b"".join(map(self.asker.pack, frames))
        return Batch(shard, data, len(frames), not reads, limit=limit), len(loads)

    def _unless_watching(self, error: Exception) -> None:
        """What was watched is not any more: the caller begins again. Raises WatchError."""
        if self.watching:
            if isinstance(error, errors.UnknownOutcomeError):
                raise error
            kind = type(error).__name__
            raise WatchError(f"A {kind} occurred while watching one or more keys") from error

    def _place(self, calls: Sequence[Call]) -> tuple[Any, bool, float | None]:
        """The one shard of all keys, whether all of it only reads, and the batch's limit. Raises refusals."""
        found: set[int] = set()
        reads, layout = True, self.asker.layout
        limit = layout.router.limit_of(None)
        for number, (args, options) in enumerate(calls):
            if EMPTY_RESPONSE in options:
                continue  # it is not sent
            try:
                by, plan = self._plan(args)
                if by is not layout:  # there is another snapshot meanwhile
                    return self._place(calls)
                if plan.split is not None or plan.across:
                    raise errors.refusal(errors.CROSS_SHARD)
                if not layout.router.in_multi(plan.command):
                    raise errors.refusal(NOT_IN_MULTI.format(plan.command.name.upper().replace("|", " ")))
                reads = reads and (plan.command.reads or plan.command.row.keyless)
                limit = max(limit or 0.0, plan.command.limit or 0.0) or None
                if plan.everywhere is None:
                    found.add(plan.shard)
                if len(found) > 1:
                    raise errors.refusal(errors.CROSS_SHARD)
            except ResponseError as error:
                raise annotated(error, number + 1, args) from None
        if self._held is not None:
            if self._held[0] not in layout.shards:
                raise WatchError("The keys have moved to another shard while they were watched")
            if found and layout.shards[next(iter(found))] is not self._held[0]:
                raise errors.refusal(errors.CROSS_SHARD)
            return self._held[0], reads, limit
        at = found.pop() if found else layout.router.anywhere
        if layout.troubled:
            shard = layout.router.pool.shards[at]
            if layout.router.pool.mode(shard) != "serve":
                raise errors.down(shard.name, shard.node.address, shard.node.reason or shard.node.state)
        return layout.shards[at], reads, limit

    def _loads(self, calls: Sequence[Call]) -> list[tuple[str, Any]]:
        """Scripts that the transaction calls, loaded before it."""
        texts = {}
        for args, _ in calls:
            if str(args[0]).lower().startswith("evalsha") and len(args) > 1:
                sha = self.asker.layout.router.key(args[1])
                if (text := self.asker.scripts.text(sha)) is not None:
                    self.asker.scripts.loaded(sha)
                    texts[sha] = text
        return [("SCRIPT LOAD", text) for text in texts.values()]

    def _finished(self, calls: Sequence[Call], replies: list[Any], raise_on_error: bool) -> list[Any]:
        """MULTI's reply, QUEUED for each, and EXEC's → the results, as redis-py's."""
        queued = iter(replies[1:-1])
        refused: list[tuple[int, Exception]] = []
        if isinstance(replies[0], Exception):
            refused.append((0, replies[0]))
        for number, (args, options) in enumerate(calls):
            reply = options[EMPTY_RESPONSE] if EMPTY_RESPONSE in options else next(queued)
            if EMPTY_RESPONSE in options:
                refused.append((number, reply))
            elif isinstance(reply, Exception):
                refused.append((number, annotated(reply, number + 1, args)))
        executed = replies[-1]
        if isinstance(executed, ExecAbortError) and refused:
            raise refused[0][1]
        if isinstance(executed, Exception):
            raise executed
        if executed is None:
            raise WatchError("Watched variable changed.")
        results = list(executed)
        for number, reply in refused:
            results.insert(number, reply)
        if len(results) != len(calls):
            raise ResponseError("Wrong number of response items from pipeline execution")
        return self._checked(calls, results, raise_on_error)
