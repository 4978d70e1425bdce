"""Pipelines before anything is sent, and after: calls to their shards' lanes, replies to their calls.

    calls ──▶ Round: a Lane a shard, one write each ──▶ Batch ──▶ replies in the order of the calls

Both clients' pipelines are this and `transaction` (MULTI ... EXEC, WATCH), and have the steps that wait.
"""

from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

from redis.exceptions import RedisError, ResponseError
from redis.utils import safe_str, truncate_text

from shardproxy.client import errors
from shardproxy.client.base import Batch, Layout
from shardproxy.client.errors import ShardError
from shardproxy.client.routing import Plan
from shardproxy.client.sync import EMPTY_RESPONSE, NEVER_DECODE, OURS
from shardproxy.core.shares import gather

NOT_IN_PIPELINE = "ERR '{}' asks one shard after another: call it outside of the pipeline"

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Lane:
    """What goes to one shard: the commands' bytes, and whose replies come back."""

    __slots__ = ("data", "limit", "owners", "parts", "scripts", "shard", "writes")

    def __init__(self, shard: Any) -> None:
        self.shard = shard
        self.data: list[bytes] = []
        self.owners: list[int] = []  # of each reply, the number of its call; -1: nobody's
        self.parts: dict[int, int] = {}  # by the place in owners: which part of a call's it is
        self.scripts: set[bytes] = set()
        self.writes = False
        self.limit = 0.0  # seconds, the longest of its commands; 0: as always


class Round:
    """What is sent at once: a lane a shard; splits: parts of commands to several; asks: the others."""

    __slots__ = ("asks", "batches", "lanes", "layout", "splits")

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.lanes: dict[int, Lane] = {}
        self.splits: dict[int, tuple[Plan, list[Any]]] = {}
        self.asks: list[int] = []
        self.batches: list[Batch] = []

    def lane(self, at: int) -> Lane:
        """Of the shard of this number."""
        if (found := self.lanes.get(at)) is None:
            found = self.lanes[at] = Lane(self.layout.shards[at])
        return found


class Gathering:
    """The calls of one pipeline."""

    _event_dispatcher: Any = None

    def __init__(self, client: Any) -> None:
        self.client = client
        self.asker: Any = client.asker
        self.response_callbacks: Any = client.response_callbacks
        self.command_stack: list[Call] = []

    def __len__(self) -> int:
        return len(self.command_stack)

    def __bool__(self) -> bool:
        return True

    def set_response_callback(self, command: str, callback: Any) -> None:
        self.client.set_response_callback(command, callback)

    def get_encoder(self) -> Any:
        return self.client.get_encoder()

    def register_script(self, script: Any) -> Any:
        return self.client.register_script(script)

    def _plan(self, args: Sequence[Any]) -> tuple[Layout, Plan]:
        found: tuple[Layout, Plan] = self.asker.plan(args)
        return found

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

    def _sorted(self, calls: list[Call], pending: list[int], results: list[Any]) -> Round:
        """These calls by where they go; what is refused has its result already."""
        layout = self.asker.layout
        found, router = Round(layout), layout.router
        at = 0
        while at < len(pending):
            if router.shares and not layout.troubled:
                at, runs = gather(router.pool.ring, layout.commands, calls, pending, at, NEVER_DECODE)
                for number, (data, owners, writes) in runs.items():
                    lane = found.lane(number)
                    lane.data.append(data)
                    lane.owners += owners
                    lane.writes = lane.writes or writes
            if at < len(pending):
                self._add(found, pending[at], calls[pending[at]], results)
                at += 1
        found.batches = [
            Batch(lane.shard, b"".join(lane.data), len(lane.owners), lane.writes, limit=_limit(lane))
            for lane in found.lanes.values()
        ]
        return found

    def _given(self, found: Round, results: list[Any]) -> list[int]:
        """Replies to their calls; answers those that may be sent again."""
        splits, again = found.splits, dict[int, None]()
        for lane, batch in zip(found.lanes.values(), found.batches, strict=True):
            replies: list[Any] = batch.replies
            if not splits and len(replies) == len(lane.owners) and not lane.scripts:
                for number, reply in zip(lane.owners, replies, strict=True):
                    results[number] = reply
                continue
            missing = len(lane.owners) - len(replies)
            for number in lane.owners[len(replies) :] if batch.again else ():
                if number >= 0:
                    again[number] = None
            for at, (number, reply) in enumerate(
                zip(lane.owners, chain(replies, repeat(batch.error, missing)), strict=True)
            ):
                if number in splits:
                    splits[number][1][lane.parts[at]] = reply
                elif number >= 0:
                    results[number] = reply
        for number, (plan, parts) in splits.items():
            results[number] = _merged(plan, parts)
        return list(again)

    def _add(self, found: Round, number: int, call: Call, results: list[Any]) -> None:
        """A call that is not simply one key's: to its lanes, or to those that are asked by themselves."""
        args, options = call
        layout, splits = found.layout, found.splits
        asker = self.asker
        try:
            by, plan = self._plan(args)
            alone = options.get(NEVER_DECODE) or plan.waits is not None or plan.across
            if alone or by is not layout:
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
            packed = [asker.pack(sent) for sent in parts]
            if plan.split is not None or plan.everywhere is not None:
                splits[number] = plan, [None] * len(shards)
            for part, (at, data) in enumerate(zip(shards, packed, strict=True)):
                lane = found.lane(at)
                if plan.command.row.calls == "sha" and plan.items:
                    self._teach(lane, plan.items[1])
                lane.data.append(data)
                if number in splits:
                    lane.parts[len(lane.owners)] = part
                lane.owners.append(number)
                lane.writes = lane.writes or not plan.command.reads
                lane.limit = max(lane.limit, plan.command.limit or 0.0)
        except RedisError as error:
            results[number] = error

    def _teach(self, lane: Lane, sha: bytes) -> None:
        """SCRIPT LOAD ahead of a script's first call: its node may have lost it."""
        text = self.asker.scripts.text(sha)
        if text is not None and sha not in lane.scripts:
            self.asker.scripts.loaded(sha)
            lane.scripts.add(sha)
            lane.data.append(self.asker.pack(("SCRIPT LOAD", text)))
            lane.owners.append(-1)


def _limit(lane: Lane) -> float | None:
    """Never sooner than others of that shard, which are in it, too."""
    return lane.limit if lane.limit > (lane.shard.timeout or float("inf")) else None


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
