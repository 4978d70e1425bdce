"""Commands whose keys are on several shards, where the pool says cross_shard = "emulate": as programs. Pure.

The same steps as the proxy's (handlers/across), by the same plan (core/across), and the same promises: not
atomic; what is moved is written at its new place before it is taken from the old one; temporary copies have a
TTL and are deleted at once. A step that fails ends the command with that step's error.
"""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from shardproxy.client import errors
from shardproxy.client.routing import Plan, Router
from shardproxy.client.steps import Program, Step
from shardproxy.core import across
from shardproxy.core.errors import MOVED_MEANWHILE, NO_SUCH_KEY, SYNTAX


def emulated(router: Router, plan: Plan, decode: bool) -> Program:
    """One of core/across.EMULATED. The reply, as the node of a single Redis would give it to the reader."""
    name, items = plan.command.name, plan.items
    assert items is not None
    return _DONE[name](router, name, items, decode)


def _ask(*args: Any, decode: bool = False) -> Program:
    """Where its key lives. Raises what it fails with."""
    (answer,) = yield [Step(args, decode=decode)]
    if isinstance(answer, Exception):
        raise answer
    return answer


def _gathered(router: Router, name: str, items: list[bytes], decode: bool) -> Program:
    """Sets, sorted sets, HyperLogLogs, bits: what is read is brought to where it is needed."""
    positions = router.table.keys_of(items)
    plan = across.plan(name, items, positions, router.locate, secrets.token_hex(8))
    payloads = yield [Step(("DUMP", key), decode=False) for key in plan.copies]
    found = dict(zip(plan.copies, payloads, strict=True))
    for payload in payloads:
        if isinstance(payload, Exception):
            raise payload
    made = [plan.copies[key][1] for key, payload in found.items() if payload is not None]
    failed: Any = None
    if made:
        answers = yield [
            Step(("RESTORE", plan.copies[key][1], across.TEMPORARY_LIFE, payload), decode=False)
            for key, payload in found.items()
            if payload is not None
        ]
        failed = next((answer for answer in answers if isinstance(answer, Exception)), None)
    answer = failed
    if failed is None:
        (answer,) = yield [Step(plan.args, decode=decode)]
    if made:
        yield [Step(("UNLINK", *made), decode=False)]
    if isinstance(answer, Exception):
        raise answer
    return answer


def _carry(source: bytes, target: bytes, replace: bool) -> Program:
    """A copy of a key, with its TTL; None: there is no such key; False: the target exists."""
    left, payload = yield [Step(("PTTL", source), decode=False), Step(("DUMP", source), decode=False)]
    for answer in (left, payload):
        if isinstance(answer, Exception):
            raise answer
    if payload is None or left == -2:
        return None
    life = max(left, 1) if left >= 0 else 0
    (answer,) = yield [
        Step(("RESTORE", target, life, payload, *(("REPLACE",) if replace else ())), decode=False)
    ]
    if isinstance(answer, Exception):
        if str(answer).startswith("BUSYKEY"):
            return False
        raise answer
    return True


def _rename(router: Router, name: str, items: list[bytes], decode: bool) -> Program:
    _, source, target = items
    carried = yield from _carry(source, target, replace=name == "rename")
    if carried is None:
        raise errors.refusal(NO_SUCH_KEY)
    if not carried:
        return 0
    yield from _ask("DEL", source)
    return b"OK" if name == "rename" else 1


def _copy(router: Router, name: str, items: list[bytes], decode: bool) -> Program:
    """COPY source destination [REPLACE]; a client has one database only."""
    options = [each.lower() for each in items[3:]]
    if b"db" in options:
        raise errors.refusal(errors.CROSS_SHARD)
    if set(options) - {b"replace"}:
        raise errors.refusal(SYNTAX)
    return int(bool((yield from _carry(items[1], items[2], bool(options)))))


def _smove(router: Router, name: str, items: list[bytes], decode: bool) -> Program:
    _, source, target, member = items
    if not (yield from _ask("SISMEMBER", source, member)):
        if (yield from _ask("EXISTS", source)):
            yield from _ask("SCARD", target)  # of the wrong type: as Redis says it
        return 0
    yield from _ask("SADD", target, member)
    yield from _ask("SREM", source, member)
    return 1


def _lmove(router: Router, name: str, items: list[bytes], decode: bool) -> Program:
    source, target = items[1:3]
    ends = [each.upper() for each in items[3:5]] if name == "lmove" else [b"RIGHT", b"LEFT"]
    if not set(ends) <= {b"LEFT", b"RIGHT"}:
        raise errors.refusal(SYNTAX)
    origin, goal = ends
    index, push, first = 0 if origin == b"LEFT" else -1, goal[:1] + b"PUSH", 1 if goal == b"LEFT" else -1
    for _ in range(across.MOVES):
        element = yield from _ask("LINDEX", source, index)
        if element is None:
            return None
        yield from _ask(push, target, element)
        if (yield from _ask("EVAL", across.TAKE, 1, source, origin, element)) == 1:
            return router.coding.shown(element) if decode else element
        yield from _ask("LREM", target, first, element)  # somebody else took it
    raise errors.refusal(MOVED_MEANWHILE)


def _first_of(router: Router, name: str, items: list[bytes], decode: bool) -> Program:
    """LMPOP, ZMPOP: numkeys key [key ...] ...: each key alone, until one has something."""
    positions: Sequence[int] = router.table.keys_of(items)
    rest = items[positions[-1] + 1 :]
    if not rest:
        raise errors.refusal(SYNTAX)
    for at in positions:
        answer = yield from _ask(items[0], 1, items[at], *rest, decode=decode)
        if answer is not None:
            return answer
    return None


_DONE: dict[str, Callable[[Router, str, list[bytes], bool], Program]] = {
    **dict.fromkeys(across.GATHERED, _gathered),
    **dict.fromkeys(("rename", "renamenx"), _rename),
    **dict.fromkeys(("lmove", "rpoplpush"), _lmove),
    **dict.fromkeys(across.FIRST_OF, _first_of),
    "copy": _copy,
    "smove": _smove,
}
