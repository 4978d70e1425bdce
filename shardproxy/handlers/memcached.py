"""What the engine (dataplane/memcached) does not translate for memcached nodes: several steps, or errors.

Rules: commands on one key take their turn within this process, in the order in which they came, so that only
other workers, other proxies and memcached's own clients can make a compare-and-swap fail. A client has one
such command at a time, and what it sends later waits: so nobody waits behind more commands than there are
clients.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from shardproxy.core import errors, reply
from shardproxy.core.memcached import PROGRAMS
from shardproxy.handlers.asking import ask_in_steps
from shardproxy.handlers.base import Answer, Server, on_memcached

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call


class Turn(asyncio.Lock):
    """At one key: whoever holds it."""

    users = 0  # with those who wait


@on_memcached
def memcached(server: Server, call: "Call") -> Answer:
    if call.row.name not in PROGRAMS:
        shard = server.reactor.shard_of(call.memcached)
        return reply.error(errors.not_on_memcached(call.row.name, shard))
    return _in_turn(server, call)


async def _in_turn(server: Server, call: "Call") -> bytes:
    keys = [call.args[at] for at in server.commands.keys_of(call.args)]
    async with _turn(server, call.memcached, keys[0]):
        return await ask_in_steps(
            server,
            call.memcached,
            call.row.name,
            call.args,
            client=call.client,
            proto=call.proto,
            keys=keys if call.row.writes else (),
        )


@asynccontextmanager
async def _turn(server: Server, node: int, key: bytes) -> AsyncIterator[None]:
    turn = server.turns.setdefault((node, key), Turn())
    turn.users += 1
    try:
        async with turn:
            yield
    finally:
        turn.users -= 1
        if not turn.users:
            del server.turns[node, key]
