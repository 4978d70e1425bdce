"""PROXY TOPOLOGY: the snapshot, for programs that place keys themselves; WATCH: again, when it is another.

WATCH is a long poll, so that any client can do it, on any worker: its reply comes when the generation is not
the one that the client has, and at the latest when its time is over, then with what there is. So a client
that asks again and again sees the latest, may miss those between, and knows that the proxy lives. It waits on
its own connection: what it sends after WATCH is answered after it. CLIENT UNBLOCK ends it, and a drain.
"""

import asyncio
import functools
from typing import TYPE_CHECKING

from shardproxy.core import errors, reply
from shardproxy.handlers.base import Answer, Server, handles
from shardproxy.handlers.connection import integer_in

if TYPE_CHECKING:
    from shardproxy.core.topology import Topology
    from shardproxy.dataplane.calls import Call

WAIT, WAIT_MOST = 30_000, 300_000  # ms


class Watchers:
    """A worker's clients that wait for its next topology."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[bool]] = {}
        self.over = False  # nobody waits any more

    def join(self, client: int) -> asyncio.Future[bool]:
        """Done when there is another topology, or with True: the client is to get an error."""
        made = self._waiting[client] = asyncio.get_running_loop().create_future()
        if self.over:
            made.set_result(False)
        return made

    def leave(self, client: int) -> None:
        waited = self._waiting.pop(client, None)
        if waited is not None and not waited.done():
            waited.set_result(False)

    def wake(self) -> None:
        for client in list(self._waiting):
            self.leave(client)

    def close(self) -> None:
        self.over = True
        self.wake()


@functools.lru_cache(maxsize=1)
def _frame(topology: "Topology", run_id: str) -> bytes:
    return reply.bulk(topology.announced().as_json(run_id=run_id))


def _shown(server: Server) -> bytes:
    """Made once: many clients ask for the same one, all at once when it is new."""
    return _frame(server.topology, server.run_id)


@handles("proxy|topology")
def topology(server: Server, call: "Call") -> Answer:
    """PROXY TOPOLOGY [WATCH [generation [milliseconds]]]"""
    if len(call.args) == 2:
        return _shown(server)
    if len(call.args) > 5 or call.args[2].lower() != b"watch":
        return reply.error(errors.SYNTAX)
    numbers = [integer_in(text) for text in call.args[3:]]
    if any(number is None or number < 0 for number in numbers):
        return reply.error(errors.NOT_AN_INTEGER)
    known = numbers[0] if numbers else server.topology.generation
    wait = (numbers[1] if len(numbers) > 1 else WAIT) or 0
    if call.in_exec or not wait or known != server.topology.generation:
        return _shown(server)
    return _watch(server, call, known, min(wait, WAIT_MOST) / 1000)


async def _watch(server: Server, call: "Call", known: int, seconds: float) -> bytes:
    if known != server.topology.generation:  # since the command came: this begins a turn of the loop later
        return _shown(server)
    client = call.client
    changed = server.waits[client.id] = server.watchers.join(client.id)
    client.waiting = True
    client.when_gone(server.watchers.leave)
    try:
        await asyncio.wait([changed], timeout=seconds)
    finally:
        client.waiting = False
        server.waits.pop(client.id, None)
        server.watchers.leave(client.id)
    if changed.done() and changed.result():
        return reply.error(errors.UNBLOCKED)
    return _shown(server)
