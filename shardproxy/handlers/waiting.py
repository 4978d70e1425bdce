"""WAIT: replicas of every shard that the client has written to; CLIENT UNBLOCK: whatever a client waits for.

Rules: a node is asked on a connection of its own, because it makes that wait; a PING comes first, as WAIT is
about what that connection has done, and one that has done nothing is answered at once. Asked for a short time
and again, so that nothing outlives a client that leaves.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING

from shardproxy.core import errors, reply
from shardproxy.handlers.asking import ask_link, fill, is_error, redis_places, value_of
from shardproxy.handlers.base import Server, handles, part
from shardproxy.handlers.connection import integer_in

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call
    from shardproxy.dataplane.links import Link

SLICE = 500  # ms that a node is asked to wait
UNBLOCK_LIMIT = 0.8  # seconds until a node that has not heard of what blocks yet must have
UNBLOCK_STEP = 0.01


def timeout_in(text: bytes) -> int | str:
    """Milliseconds as Redis reads them, or the error."""
    value = integer_in(text)
    if value is None:
        return errors.TIMEOUT_NOT_AN_INTEGER
    return value if value >= 0 else errors.TIMEOUT_NEGATIVE


@handles("wait")
async def wait(server: Server, call: "Call") -> bytes:
    """WAIT numreplicas timeout"""
    count, limit = integer_in(call.args[1]), timeout_in(call.args[2])
    if count is None:
        return reply.error(errors.NOT_AN_INTEGER)
    if isinstance(limit, str):
        return reply.error(limit)
    wrote = call.client.wrote
    places = [node for node, _ in redis_places(server)]
    nodes = [node for node in places if node in wrote] or places
    links: list[Link] = []
    unblocked = server.waits[call.client.id] = asyncio.get_running_loop().create_future()
    call.client.waiting = not call.in_exec
    try:
        for node in dict.fromkeys(nodes):  # one may be refused: those before it are released
            links.append(server.reactor.open_link(node, proto=2))
        if wrote:
            await asyncio.gather(*(ask_link(link, "PING") for link in links))
        return await _wait(call, links, count, limit, unblocked)
    except ConnectionError as error:
        return reply.error(str(error))
    finally:
        call.client.waiting = False
        server.waits.pop(call.client.id, None)
        for link in links:
            link.release()


async def _wait(
    call: "Call", links: "list[Link]", count: int, limit: int, unblocked: asyncio.Future[bool]
) -> bytes:
    loop = asyncio.get_running_loop()
    ends = loop.time() + limit / 1000 if limit else None
    if call.in_exec:
        count = 0
    while True:
        left = SLICE if ends is None else max(1, min(SLICE, round((ends - loop.time()) * 1000)))
        frames = await asyncio.gather(*(ask_link(link, "WAIT", count, left) for link in links))
        if failed := next((frame for frame in frames if is_error(frame)), None):
            return failed
        least = min(value_of(frame, int) for frame in frames)
        if unblocked.done() and unblocked.result():
            return reply.error(errors.UNBLOCKED)
        over = ends is not None and loop.time() >= ends
        if least >= count or over or unblocked.done() or not call.client.alive:
            return reply.integer(least)


@handles("client|unblock")
async def unblock(server: Server, call: "Call") -> bytes:
    """CLIENT UNBLOCK client-id [TIMEOUT|ERROR]"""
    if len(call.args) > 4:
        return reply.error(errors.subcommand_syntax(call.args[1]))
    how = call.args[3].lower() if len(call.args) == 4 else b"timeout"
    if how not in (b"timeout", b"error"):
        return reply.error(errors.UNBLOCK_REASON)
    number = integer_in(call.args[2])
    if number is None:
        return reply.error(errors.NOT_AN_INTEGER)
    return reply.integer(int(any(await server.everywhere("unblock", number, how == b"error"))))


@part("unblock")
async def unblock_here(server: Server, number: int, error: bool) -> bool:
    """Whether that client is this worker's, was blocked, and is not now."""
    client = next((client for client in server.reactor.clients() if client.id == number), None)
    if client is None:
        return False
    if waiter := server.waits.get(number):
        if not waiter.done():
            waiter.set_result(error)
        return True
    loop = asyncio.get_running_loop()
    ends, where = loop.time() + UNBLOCK_LIMIT, client.blocked_at
    while where is not None and loop.time() < ends:
        answered: asyncio.Future[bytes] = loop.create_future()
        if client.unblock(error, fill(answered)):
            with contextlib.suppress(TimeoutError):
                frame = await asyncio.wait_for(answered, ends - loop.time())
                if frame != b":0\r\n":
                    return frame == b":1\r\n"
        await asyncio.sleep(UNBLOCK_STEP)  # the node has not heard of what it is to end, or it has ended
        now = client.blocked_at
        if now is None or where[1] not in (0, now[1]):
            return False
        where = now
    return False
