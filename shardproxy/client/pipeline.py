"""Pipelines of the sync client: commands are gathered, then written to their shards at once.

    transaction=False   over any shards: one write and one read a shard, in parallel; results in order
    transaction=True    MULTI ... EXEC on the one shard of all keys; WATCH holds a connection of that shard

As redis-py's, down to the words of errors. Rules: a shard that fails leaves the others' results; its own
commands are sent again only when none has run that may have changed something. A pipeline is one thread's.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from redis.commands import CoreCommands, RedisModuleCommands
from redis.exceptions import ExecAbortError, RedisError, ResponseError, WatchError
from redis.utils import safe_str, truncate_text

from shardproxy.client import errors
from shardproxy.client.asking import Asker, Batch, Layout
from shardproxy.client.connection import Connection, Shard
from shardproxy.client.errors import ShardError
from shardproxy.client.routing import Plan
from shardproxy.client.sync import EMPTY_RESPONSE, NEVER_DECODE, OURS

if TYPE_CHECKING:
    from shardproxy.client.sync import ShardedRedis

UNWATCHING = ("DISCARD", "EXEC", "UNWATCH")
NOT_IN_PIPELINE = "ERR '{}' asks one shard after another: call it outside of the pipeline"
NOT_IN_MULTI = "ERR '{}' is not supported inside MULTI"

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Lane:
    """What goes to one shard: the commands' bytes, and whose replies come back."""

    __slots__ = ("data", "owners", "scripts", "shard", "writes")

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.data: list[bytes] = []
        self.owners: list[tuple[int, int]] = []  # (number of the call, number of its part); (-1, 0): nobody's
        self.scripts: set[bytes] = set()
        self.writes = False


class Round:
    """What is sent at once: a lane a shard; splits: parts of commands to several; asks: the others."""

    __slots__ = ("asks", "batches", "lanes", "layout", "splits")

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.lanes: dict[int, Lane] = {}
        self.splits: dict[int, tuple[Plan, list[Any]]] = {}
        self.asks: list[int] = []
        self.batches: list[Batch] = []


class PipelineBase:
    """Of both clients; what is awaited in the asyncio client's is done here in the sync one's way."""

    _event_dispatcher: Any = None

    def __init__(self, client: Any, transaction: bool) -> None:
        self.client, self.transaction = client, transaction
        self.asker: Asker = client.asker
        self.response_callbacks: Any = client.response_callbacks
        self.command_stack: list[Call] = []
        self.watching = False
        self.explicit_transaction = False
        self._held: tuple[Shard, Connection] | None = None  # where WATCH was sent

    def __len__(self) -> int:
        return len(self.command_stack)

    def __bool__(self) -> bool:
        return True

    def get_encoder(self) -> Any:
        return self.client.get_encoder()

    def register_script(self, script: Any) -> Any:
        return self.client.register_script(script)

    def reset(self) -> Any:
        """Forgets what was gathered, and watches nothing any more."""
        self.command_stack = []
        self.watching = self.explicit_transaction = False
        if self._held is not None:
            # its watched keys end with it: cheaper than a round trip to be sure
            self._held[1].close()
            self._held = None

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

    # --- gathering ---

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if (self.watching or args[0] == "WATCH") and not self.explicit_transaction:
            return self.immediate_execute_command(*args, **options)
        self.command_stack.append((args, options))
        return self

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """WATCH, and what comes after it: on the connection that watches, if its keys are there."""
        shard: Shard | None
        self.asker.look()
        if args[0] == "WATCH":
            shard = self._shard_of(args)
        elif args[0] == "UNWATCH":
            shard = self._held[0] if self._held else None
        else:
            plan = self.asker.plan(args)
            shard = self.asker.layout.shards[plan.shard] if plan.shard >= 0 else None
            if self._held is None or shard is not self._held[0]:
                return self.client.execute_command(*args, **options)
        if shard is None:
            return True
        if self._held is None:
            self._held = shard, self._taken(shard)
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

    def _shard_of(self, args: Sequence[Any]) -> Shard:
        """Of WATCH: its keys share one, and it serves."""
        layout = self.asker.layout
        found = {layout.router.locate(layout.router.key(key)) for key in args[1:]}
        if len(found) != 1:
            raise errors.refusal(errors.CROSS_SHARD)
        return layout.shards[found.pop()]

    def _taken(self, shard: Shard) -> Connection:
        try:
            return shard.take_fresh()
        except (RedisError, OSError):
            # the same again as a request, which says it in its words
            batch = Batch(shard, self.asker.pack(("PING",)), 1, False)
            self.asker.exchange([batch])
            if batch.error is not None:
                raise batch.error from None
            return shard.take_fresh()

    def _on_held(self, args: Sequence[Any], decode: bool) -> Any:
        assert self._held is not None
        shard, connection = self._held
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
            self.asker.look()
            if self.transaction or self.explicit_transaction:
                return self._run_transaction(calls, raise_on_error)
            results = self._run(calls)
        finally:
            self.reset()
        return self._checked(calls, results, raise_on_error)

    def _checked(self, calls: Sequence[Call], results: list[Any], raise_on_error: bool) -> list[Any]:
        """Errors raised, or left; the others as redis-py's callbacks make them."""
        callbacks: dict[Any, Any] = {}
        for number, (args, options) in enumerate(calls):
            reply, name = results[number], args[0]
            if isinstance(reply, Exception):
                if EMPTY_RESPONSE in options and isinstance(reply, ResponseError):
                    results[number] = options[EMPTY_RESPONSE]
                elif raise_on_error:
                    raise annotated(reply, number + 1, args)
                continue
            if name not in callbacks:
                callbacks[name] = self.response_callbacks.get(name)
            if (callback := callbacks[name]) is not None:
                if options:
                    for option in OURS:
                        options.pop(option, None)
                try:
                    results[number] = callback(reply, **options)
                except ResponseError as error:
                    if raise_on_error:
                        raise
                    results[number] = error
        return results

    def _called_back(self, name: Any, reply: Any, options: dict[str, Any]) -> Any:
        callback = self.response_callbacks.get(name)
        if callback is None:
            return reply
        return callback(reply, **{key: value for key, value in options.items() if key not in OURS})

    def _run(self, calls: Sequence[Call]) -> list[Any]:
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

    def _round(self, calls: Sequence[Call], pending: Sequence[int], results: list[Any]) -> list[int]:
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

    def _sorted(self, calls: Sequence[Call], pending: Sequence[int], results: list[Any]) -> Round:
        """These calls by where they go; what is refused has its result already."""
        asker = self.asker
        layout = asker.layout
        found = Round(layout)
        commands, locate, key_of = layout.commands, layout.router.locate, layout.router.key
        pack, troubled = asker.pack, layout.troubled
        lanes = found.lanes
        for number in pending:
            args, options = calls[number]
            command = commands.get(args[0])
            if command is None or not 0 < command.key_at < len(args) or troubled or options.get(NEVER_DECODE):
                self._add(found, number, calls[number], results)
                continue
            key = args[command.key_at]
            at = locate(key if type(key) is bytes else key_of(key))
            lane = lanes.get(at)
            if lane is None:
                lane = lanes[at] = Lane(layout.shards[at])
            try:
                lane.data.append(pack(args))
            except RedisError as error:
                results[number] = error
                continue
            lane.owners.append((number, 0))
            if not command.reads:
                lane.writes = True
        found.batches = [
            Batch(lane.shard, b"".join(lane.data), len(lane.owners), lane.writes) for lane in lanes.values()
        ]
        return found

    def _given(self, found: Round, results: list[Any]) -> list[int]:
        """Replies to their calls; answers those that may be sent again."""
        splits, again = found.splits, dict[int, None]()
        for lane, batch in zip(found.lanes.values(), found.batches, strict=True):
            if not splits and len(batch.replies) == len(lane.owners):
                for (number, _), reply in zip(lane.owners, batch.replies, strict=True):
                    if number >= 0:
                        results[number] = reply
                continue
            for at, (number, part) in enumerate(lane.owners):
                reply = batch.replies[at] if at < len(batch.replies) else batch.error
                if number in splits:
                    splits[number][1][part] = reply
                elif number >= 0:
                    results[number] = reply
                if at >= len(batch.replies) and batch.again and number >= 0:
                    again[number] = None
        for number, (plan, parts) in splits.items():
            results[number] = _merged(plan, parts)
        return list(again)

    def _add(self, found: Round, number: int, call: Call, results: list[Any]) -> None:
        """A call that is not simply one key's: to its lanes, or to those that are asked by themselves."""
        args, options = call
        layout, lanes, splits = found.layout, found.lanes, found.splits
        asker = self.asker
        try:
            plan = asker.plan(args)
            alone = options.get(NEVER_DECODE) or plan.waits is not None or plan.across
            if alone or asker.layout is not layout:
                found.asks.append(number)
                return
            if plan.split is not None:
                shards, parts = plan.split.shards, plan.split.parts
            elif plan.everywhere is not None:
                if plan.everywhere.who in ("scan", "random"):
                    raise errors.refusal(NOT_IN_PIPELINE.format(plan.command.name.upper()))
                shards = [at for at in range(len(layout.shards)) if at not in layout.router.absent]
                shards = shards if plan.everywhere.who == "all" else [layout.router.anywhere]
                parts = [list(args)] * len(shards)
            else:
                shards, parts = [plan.shard], [list(args)]
            if layout.troubled and any(layout.router.pool.mode(layout.router.pool.shards[at]) != "serve"
                                       for at in shards):  # fmt: skip
                found.asks.append(number)
                return
            if plan.split is not None or plan.everywhere is not None:
                splits[number] = plan, [None] * len(shards)
            for part, (at, sent) in enumerate(zip(shards, parts, strict=True)):
                lane = lanes.get(at)
                if lane is None:
                    lane = lanes[at] = Lane(layout.shards[at])
                packed = asker.pack(sent)
                if plan.command.row.calls == "sha" and plan.items:
                    self._teach(lane, plan.items[1])
                lane.data.append(packed)
                lane.owners.append((number, part))
                lane.writes = lane.writes or not plan.command.reads
        except RedisError as error:
            results[number] = error

    def _teach(self, lane: Lane, sha: bytes) -> None:
        """SCRIPT LOAD ahead of a script's first call: its node may have lost it."""
        text = self.asker.scripts.text(sha)
        if text is not None and sha not in lane.scripts:
            self.asker.scripts.loaded(sha)
            lane.scripts.add(sha)
            lane.data.append(self.asker.pack(("SCRIPT LOAD", text)))
            lane.owners.append((-1, 0))

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
                if batch.error is None:
                    shard.give(self._held[1])
                self._held = None
            else:
                asker.exchange([batch])
            if batch.error is None:
                return self._finished(calls, batch.replies[loads:], raise_on_error)
            self._unless_watching(batch.error)
            tries += 1
            if not batch.again or not asker.may_retry(tries, 0):
                raise batch.error

    def _framed(self, calls: Sequence[Call]) -> tuple[Batch, int]:
        """SCRIPT LOADs, and how many there are of them, MULTI, the calls, EXEC. Raises refusals."""
        shard, reads = self._place(self.asker.layout, calls)
        sent = [call for call in calls if EMPTY_RESPONSE not in call[1]]
        loads = [] if self.watching else self._loads(sent)
        frames = [*loads, ("MULTI",), *(args for args, _ in sent), ("EXEC",)]
        data = b"".join(map(self.asker.pack, frames))
        return Batch(shard, data, len(frames), not reads), len(loads)

    def _unless_watching(self, error: Exception) -> None:
        """What was watched is not any more: the caller begins again. Raises WatchError."""
        if self.watching:
            if isinstance(error, errors.UnknownOutcomeError):
                raise error
            kind = type(error).__name__
            raise WatchError(f"A {kind} occurred while watching one or more keys") from error

    def _place(self, layout: Layout, calls: Sequence[Call]) -> tuple[Shard, bool]:
        """The one shard of all keys, and whether all of it only reads. Raises refusals."""
        found: set[int] = set()
        reads = True
        for number, (args, options) in enumerate(calls):
            if EMPTY_RESPONSE in options:
                continue  # it is not sent
            try:
                plan = self.asker.plan(args)
                if plan.split is not None or plan.across:
                    raise errors.refusal(errors.CROSS_SHARD)
                if not layout.router.in_multi(plan.command):
                    raise errors.refusal(NOT_IN_MULTI.format(plan.command.name.upper().replace("|", " ")))
                reads = reads and (plan.command.reads or plan.command.row.keyless)
                if plan.everywhere is None:
                    found.add(plan.shard)
                if len(found) > 1:
                    raise errors.refusal(errors.CROSS_SHARD)
            except ResponseError as error:
                raise annotated(error, number + 1, args) from None
        if self._held is not None:
            if found and layout.shards[next(iter(found))] is not self._held[0]:
                raise errors.refusal(errors.CROSS_SHARD)
            return self._held[0], reads
        at = found.pop() if found else layout.router.anywhere
        if layout.troubled:
            shard = layout.router.pool.shards[at]
            if layout.router.pool.mode(shard) != "serve":
                raise errors.down(shard.name, shard.node.address, shard.node.reason or shard.node.state)
        return layout.shards[at], reads

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


class ShardedPipeline(PipelineBase, RedisModuleCommands, CoreCommands):
    """See `ShardedRedis.pipeline`. `execute` answers a list and empties it."""

    _is_async_client: Literal[False] = False

    def __init__(self, client: "ShardedRedis", transaction: bool) -> None:
        super().__init__(client, transaction)

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


def annotated(error: Exception, number: int, args: Sequence[Any]) -> Exception:
    """The error with the number of its command, in redis-py's words; its class and its fields stay."""
    if isinstance(error, (ResponseError, ShardError)):
        said = truncate_text(" ".join(map(safe_str, args)))  # type: ignore[no-untyped-call]  # redis-py's
        error.args = (
            f"Command # {number} ({said}) of pipeline caused error: {error.args[0]}",
            *error.args[1:],
        )
    return error


def _merged(plan: Plan, replies: list[Any]) -> Any:
    """Of a command to several shards: one reply, or PartialError."""
    failed = [reply for reply in replies if isinstance(reply, Exception)]
    if plan.split is not None:
        return plan.split.partial(replies) if failed else plan.split.merged(replies)
    assert plan.everywhere is not None
    return failed[0] if failed else plan.everywhere.merge(replies)
