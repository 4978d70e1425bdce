"""Commands over several shards, where the pool says `cross_shard = "emulate"`: in steps, and so not atomic.

Rules: what is moved is written at its new place before it is taken from the old one, so that a failure may
leave it at both and never at none; temporary copies have a TTL and are deleted at once. A step that fails
ends the command with that step's error. The client's later commands wait (`hold`), other clients' do not.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from shardproxy.core import across, errors, reply
from shardproxy.handlers.asking import ask, is_error, value_of
from shardproxy.handlers.base import Server, handles
from shardproxy.handlers.connection import database_in

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call


class Failed(Exception):
    """A step was answered with an error: its frame."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame


class Steps:
    """One emulated command's way to the nodes."""

    def __init__(self, server: Server, call: "Call") -> None:
        self.server, self.proto, self.db = server, call.proto, call.client.db

    def node_of(self, key: bytes) -> int:
        return self.server.reactor.node_of(key)

    async def ask(self, key: bytes, *args: bytes | str | int, write: bool = True) -> bytes:
        """Where that key lives. Raises Failed."""
        return await self.at(self.node_of(key), *args, write=write, keys=[key] if write else [])

    async def at(self, node: int, *args: bytes | str | int, write: bool = True, keys: Any = ()) -> bytes:
        frame = await ask(self.server, node, *args, proto=self.proto, db=self.db, write=write, keys=keys)
        if is_error(frame):
            raise Failed(frame)
        return frame

    async def dump(self, node: int, key: bytes) -> bytes | None:
        found = value_of(await self.at(node, "DUMP", key, write=False), (bytes, type(None)))
        assert found is None or isinstance(found, bytes)
        return found


# --- sets, sorted sets, HyperLogLogs, bits: what is read is brought to where it is needed ---


async def gathered(steps: Steps, name: str, args: list[bytes]) -> bytes:
    positions = steps.server.commands.keys_of(args)
    plan = across.plan(name, args, positions, steps.node_of, secrets.token_hex(8))
    written = across.GATHERED[name]
    keys = [] if written is None else [args[positions[written]]]
    made: list[bytes] = []
    try:
        await _settle(_bring(steps, plan.node, key, *where, made) for key, where in plan.copies.items())
        return await steps.at(plan.node, *plan.args, write=bool(keys), keys=keys)
    finally:
        if made:  # not waited for: the reply has it all, and their TTL is short
            steps.server.reactor.ask(plan.node, reply.bulks([b"UNLINK", *made]), lambda _: None, db=steps.db)


async def _bring(steps: Steps, node: int, key: bytes, home: int, temporary: bytes, made: list[bytes]) -> None:
    payload = await steps.dump(home, key)
    if payload is not None:
        made.append(temporary)
        await steps.at(node, "RESTORE", temporary, across.TEMPORARY_LIFE, payload)


async def _settle(steps: Any) -> None:
    """All of them, also when one fails: none may still write when the others' copies are deleted."""
    for found in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(found, BaseException):
            raise found


# --- whole keys ---


async def _carry(steps: Steps, source: bytes, target: bytes, db: int, replace: bool) -> bool | None:
    """A copy of a key, with its TTL; None: there is no such key; False: the target exists."""
    home = steps.node_of(source)
    left = value_of(await steps.at(home, "PTTL", source, write=False), int)
    payload = await steps.dump(home, source)
    if payload is None or left == -2:
        return None
    request = (
        *("RESTORE", target, max(left, 1) if left >= 0 else 0, payload),
        *(["REPLACE"] if replace else []),
    )
    frame = await ask(steps.server, steps.node_of(target), *request, proto=steps.proto, db=db, keys=[target])
    if frame.startswith(b"-BUSYKEY"):
        return False
    if is_error(frame):
        raise Failed(frame)
    return True


async def rename(steps: Steps, name: str, args: list[bytes]) -> bytes:
    _, source, target = args
    carried = await _carry(steps, source, target, steps.db, replace=name == "rename")
    if carried is None:
        return reply.error(errors.NO_SUCH_KEY)
    if not carried:
        return reply.integer(0)
    await steps.ask(source, "DEL", source)
    return reply.OK if name == "rename" else reply.integer(1)


async def copy(steps: Steps, name: str, args: list[bytes]) -> bytes:
    """COPY source destination [DB number] [REPLACE]"""
    db, replace, options = steps.db, False, args[3:]
    while options:
        option = options.pop(0).lower()
        if option == b"replace":
            replace = True
        elif option == b"db" and options:
            number = database_in(steps.server, options.pop(0))
            if isinstance(number, str):
                return reply.error(number)
            db = number
        else:
            return reply.error(errors.SYNTAX)
    carried = await _carry(steps, args[1], args[2], db, replace)
    return reply.integer(1 if carried else 0)


# --- members ---


async def smove(steps: Steps, name: str, args: list[bytes]) -> bytes:
    _, source, target, member = args
    if value_of(await steps.ask(source, "SISMEMBER", source, member, write=False), int) == 0:
        if value_of(await steps.ask(source, "EXISTS", source, write=False), int):
            await steps.ask(target, "SCARD", target, write=False)  # of the wrong type: as Redis says it
        return reply.integer(0)
    await steps.ask(target, "SADD", target, member)
    await steps.ask(source, "SREM", source, member)
    return reply.integer(1)


async def lmove(steps: Steps, name: str, args: list[bytes]) -> bytes:
    source, target = args[1:3]
    ends = [each.upper() for each in args[3:5]] if name == "lmove" else [b"RIGHT", b"LEFT"]
    if not set(ends) <= {b"LEFT", b"RIGHT"}:
        return reply.error(errors.SYNTAX)
    origin, goal = ends
    index, push, first = 0 if origin == b"LEFT" else -1, goal[:1] + b"PUSH", 1 if goal == b"LEFT" else -1
    for _ in range(across.MOVES):
        element = value_of(await steps.ask(source, "LINDEX", source, index, write=False), (bytes, type(None)))
        if element is None:
            return reply.null(steps.proto)
        await steps.ask(target, push, target, element)
        if value_of(await steps.ask(source, "EVAL", across.TAKE, 1, source, origin, element), int) == 1:
            return reply.bulk(element)
        await steps.ask(target, "LREM", target, first, element)  # somebody else took it
    return reply.error(errors.MOVED_MEANWHILE)


async def first_of(steps: Steps, name: str, args: list[bytes]) -> bytes:
    """LMPOP, ZMPOP: numkeys key [key ...] ...: each key alone, until one has something."""
    positions = steps.server.commands.keys_of(args)
    rest = args[positions[-1] + 1 :]
    if not rest:
        return reply.error(errors.SYNTAX)
    for at in positions:
        frame = await steps.ask(args[at], name, 1, args[at], *rest)
        if value_of(frame) is not None:
            return frame
    return reply.null_array(steps.proto)


_DONE: dict[str, Callable[[Steps, str, list[bytes]], Coroutine[Any, Any, bytes]]] = {
    **dict.fromkeys(across.GATHERED, gathered),
    **dict.fromkeys(("rename", "renamenx"), rename),
    **dict.fromkeys(("lmove", "rpoplpush"), lmove),
    **dict.fromkeys(across.FIRST_OF, first_of),
    "copy": copy,
    "smove": smove,
}


async def _emulate(name: str, server: Server, call: "Call") -> bytes:
    try:
        return await _DONE[name](Steps(server, call), name, call.args)
    except Failed as step:
        return step.frame


for _name in across.EMULATED:
    handles(_name)(partial(_emulate, _name))
