"""WAIT, WAITAOF: replicas and disks of the shards that a client has written to; CLIENT UNBLOCK.

Rules: a node is asked on a connection of its own, because it makes that wait; a mark comes first, as WAIT is
about what that connection has done, and one that has done nothing is answered at once. Asked for a short time
and again, so that nothing outlives a client that leaves. The reply is the least that any of these nodes says.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shardproxy.core import errors, reply
from shardproxy.handlers.asking import ask_link, fill, is_error, redis_places, value_of
from shardproxy.handlers.base import BadReply, Server, handles, part
from shardproxy.handlers.connection import integer_in, version_order

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
    count = integer_in(call.args[1])
    if count is None:
        return reply.error(errors.NOT_AN_INTEGER)
    return await _wait(server, call, [count])


@handles("waitaof")
async def waitaof(server: Server, call: "Call") -> bytes:
    """WAITAOF numlocal numreplicas timeout"""
    local, replicas = (integer_in(text) for text in call.args[1:3])
    if local is None:
        return reply.error(errors.NOT_AN_INTEGER)
    if local not in (0, 1):
        return reply.error(errors.NEITHER_ZERO_NOR_ONE)
    if replicas is None or replicas < 0:
        return reply.error(errors.NOT_POSITIVE)
    return await _wait(server, call, [local, replicas])


async def _wait(server: Server, call: "Call", wanted: Sequence[int]) -> bytes:
    """Until all nodes say at least what is wanted; a node says one number, or several in an array."""
    limit = timeout_in(call.args[-1])
    if isinstance(limit, str):
        return reply.error(limit)
    wrote = call.client.wrote
    places = dict(server.reactor.placed())
    nodes = [node for node in places if node in wrote] or [node for node, _ in redis_places(server)]
    for node in nodes:  # it has no replicas: a number would say too much
        if server.reactor.memcached(node) is not None:
            return reply.error(errors.not_on_memcached(call.row.name, places[node]))
    links: list[Link] = []
    unblocked = server.waits[call.client.id] = asyncio.get_running_loop().create_future()
    call.client.waiting = not call.in_exec
    try:
        for node in nodes:  # one may be refused: those before it are released
            links.append(server.reactor.open_link(node, proto=2))
        if wrote:
            marks = [_mark(server, places[node]) for node in nodes]
            asks = (ask_link(link, *mark) for link, mark in zip(links, marks, strict=True))
            if failed := next(filter(is_error, await asyncio.gather(*asks)), None):
                return failed
        return await _ask(call, links, wanted, limit, unblocked)
    except ConnectionError as error:
        return reply.error(str(error))
    finally:
        call.client.waiting = False
        server.waits.pop(call.client.id, None)
        for link in links:
            link.release()


def _mark(server: Server, shard: str) -> tuple[str | int, ...]:
    """Makes all that its node has written until now what a WAIT on the same connection is about.

    Before Redis 7.2 any command does; since then only one that is replicated, and this one changes nothing.
    """
    shards = (each for pool in server.topology.pools for each in pool.shards if each.name == shard)
    info = next((server.node_info.get(each.node.address) for each in shards), None)
    old = info is not None and info.version and version_order(info.version) < [7, 2]
    return ("PING",) if old else ("SWAPDB", 0, 0)


async def _ask(
    call: "Call", links: "list[Link]", wanted: Sequence[int], limit: int, unblocked: asyncio.Future[bool]
) -> bytes:
    """In a transaction nothing waits: they are asked once."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + limit / 1000 if limit else None
    while True:
        left = 1 if call.in_exec else SLICE
        if ends is not None:
            left = max(1, min(left, round((ends - loop.time()) * 1000)))
        frames = await asyncio.gather(*(ask_link(link, call.args[0], *wanted, left) for link in links))
        if failed := next((frame for frame in frames if is_error(frame)), None):
            return failed
        least = [
            min(column) for column in zip(*(_numbers(frame, len(wanted)) for frame in frames), strict=True)
        ]
        if unblocked.done() and unblocked.result():
            return reply.error(errors.UNBLOCKED)
        enough = all(has >= wants for has, wants in zip(least, wanted, strict=True))
        over = call.in_exec or unblocked.done() or (ends is not None and loop.time() >= ends)
        if enough or over or not call.client.alive:
            numbers = [reply.integer(each) for each in least]
            return numbers[0] if len(numbers) == 1 else reply.array(numbers)


def _numbers(frame: bytes, count: int) -> list[int]:
    """What a node says: a number, or so many of them in an array."""
    if count == 1:
        return [value_of(frame, int)]
    value = value_of(frame, list)
    if len(value) != count or not all(isinstance(each, int) for each in value):
        raise BadReply(errors.bad_reply(frame))
    return value  # type: ignore[no-any-return]  # it was looked at


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
