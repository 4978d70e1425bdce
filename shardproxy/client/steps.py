"""Calls that ask shards several times: programs, which say what is asked next and get the answers. Pure.

    program ── [Step, Step, ...] ──▶ whoever runs it: asking (blocks) or aio_asking (awaits)
            ◀── [answer, ...] ──────  an answer is a reply, a node's error, or why there is none

Here are those of commands without a key; `across` has those of commands whose keys are on several shards. The
steps of one list are asked at once. Who gives a program up just leaves it.
"""

import random
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeAlias

from redis.exceptions import AuthenticationError

from shardproxy.client import errors
from shardproxy.client.errors import PartialError, ShardError
from shardproxy.client.merging import Scans, of_all
from shardproxy.client.routing import Plan, Router
from shardproxy.client.scripts import Scripts
from shardproxy.core.errors import NO_SHARDS

RANDOM_TRIES = 16


class Step(NamedTuple):
    """One command. at: the number of the shard; negative: where its keys are."""

    args: Sequence[Any]
    at: int = -1
    writes: bool = True
    decode: bool = True


Program: TypeAlias = Generator[list[Step], list[Any], Any]


def everywhere(
    router: Router, scans: Scans, scripts: Scripts, plan: Plan, args: Sequence[Any], decode: bool
) -> Program:
    """A command for which the plan says so. The reply; raises PartialError, ShardError."""
    what, partial = plan.everywhere, router.pool.partial
    assert what is not None
    if what.who == "any":
        return (yield from _any(router, args, decode))
    if what.who == "scan":
        return (yield from _scan(router, scans, args, plan.items or []))
    if what.who == "random":
        return (yield from _random(router, decode))
    found = of_all(what, (yield from of_each(router, args, decode, what.writes)), partial)
    if plan.command.name == "script|flush":
        scripts.flushed()
    elif plan.command.name == "script|exists" and isinstance(found, list):
        return scripts.exist((plan.items or [])[2:], found)
    return found


def of_each(router: Router, args: Sequence[Any], decode: bool = True, writes: bool = True) -> Program:
    """What each shard whose keys are with it answers, by name; what fails is there as the exception."""
    shards = router.pool.shards
    asked = [at for at in range(len(shards)) if at not in router.absent]
    others = [at for at in asked if shards[at].protocol != "memcached"]
    if len(asked) > len(others) > 0:
        from shardproxy.core.memcached import PROGRAMS

        if router.command(args[0]).name not in PROGRAMS:
            asked = others  # what memcached cannot do, the others do
    answers = yield [Step(args, at, writes, decode) for at in asked]
    return {shards[at].name: answer for at, answer in zip(asked, answers, strict=True)}


def _any(router: Router, args: Sequence[Any], decode: bool) -> Program:
    answer: Any = errors.refusal(NO_SHARDS)
    pool = router.pool
    ready = [at for at, each in enumerate(pool.shards) if pool.mode(each) == "serve"]
    for at in ready or range(len(pool.shards)):
        (answer,) = yield [Step(args, at, False, decode)]
        if not isinstance(answer, (ShardError, AuthenticationError)):
            return answer
    raise answer


def _scan(router: Router, scans: Scans, args: Sequence[Any], items: list[bytes]) -> Program:
    """SCAN cursor ...: one shard a call, the cursor says which comes next; as the proxy's."""
    shards = _placed(router)
    step = scans.step(items[1], shards)
    if step is None:
        return [b"0", []]
    (answer,) = yield [Step((args[0], step.cursor, *args[2:]), shards[step.shard], False)]
    if isinstance(answer, ShardError):
        if router.pool.partial == "error":
            raise answer
        answer = None
    return scans.reply(step, answer, shards)


def _random(router: Router, decode: bool) -> Program:
    """RANDOMKEY, of a shard in proportion to its keys."""
    shards = _placed(router)
    sizes = yield from of_each(router, ("DBSIZE",), writes=False)
    sizes = {name: size for name, size in sizes.items() if name in shards}
    failed = {name: size for name, size in sizes.items() if isinstance(size, Exception)}
    if failed:
        raise PartialError({}, failed)
    for _ in range(RANDOM_TRIES):
        if not any(sizes.values()):
            break
        name = random.choices(list(sizes), list(sizes.values()))[0]
        (answer,) = yield [Step(("RANDOMKEY",), shards[name], False, decode)]
        if answer is not None:
            return answer
        sizes[name] = 0
    return None


def _placed(router: Router) -> dict[str, int]:
    """Shards whose keys are with them, by name."""
    return {name: at for at, name in enumerate(router.names) if at not in router.absent}
