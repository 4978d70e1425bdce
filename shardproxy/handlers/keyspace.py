"""What concerns the keys of all shards: SCAN, KEYS, DBSIZE, RANDOMKEY, FLUSHALL, FLUSHDB, SWAPDB.

What a node lists is sieved: a key that lives on another shard now is not shown, since no command would find
it (DBSIZE counts it). A shard that is out, with its keys at stand-ins, is left out. When another cannot
answer, the pool's `partial` decides: the error, which names it, or the others alone; what changes something
is done by all, or answers an error.
"""

import asyncio
import random
import re
from typing import TYPE_CHECKING

from shardproxy.core import errors, reply
from shardproxy.core.scan_cursor import NODE_MOST, Position, after, place, ring_of
from shardproxy.handlers import memcached
from shardproxy.handlers.asking import (
    LISTING,
    Answer,
    all_or_error,
    ask,
    ask_all,
    ask_all_apart,
    ask_apart,
    is_error,
    usable,
    value_of,
)
from shardproxy.handlers.base import BadReply, Server, handles, part

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call

CURSOR = re.compile(rb"([+-]?\d+)?")  # what strtoul takes
SCANNED = re.compile(rb"\*2\r\n\$\d+\r\n(\d+)\r\n")
RANDOM_TRIES = 16
HEARTBEATS = b"shardproxy:heartbeats"
OURS = (HEARTBEATS, b"shardproxy:probe:", b"shardproxy:temporary:")  # beginnings of keys that are no client's
# The shards of rings that were scanned, by their mark; of other proxies in this process too, without harm
_RINGS: dict[int, frozenset[str]] = {}


def _sieved(server: Server, node: int, frame: bytes, at: int = 0) -> tuple[int, bytes]:
    found = server.reactor.sieve(node, frame, at)
    if found is None:
        raise BadReply(errors.bad_reply(frame))
    return found


@handles("dbsize")
async def dbsize(server: Server, call: "Call") -> bytes:
    answers = usable(server, await ask_all(server, call, "DBSIZE", write=False))
    if isinstance(answers, bytes):
        return answers
    count = sum(value_of(answer.frame, int) for answer in answers)
    if server.topology.pools[0].on_return != "keep":
        own = await ask_all(server, call, "EXISTS", HEARTBEATS, write=False)
        count -= sum(value_of(answer.frame, int) for answer in own if not answer.failed)
    return reply.integer(max(count, 0))


@handles("scan")
async def scan(server: Server, call: "Call") -> bytes:
    """SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]: one node a call."""
    if not CURSOR.fullmatch(call.args[1]) or abs(int(call.args[1] or b"0")) >= 1 << 64:
        return reply.error(errors.INVALID_CURSOR)
    cursor = int(call.args[1] or b"0") % (1 << 64)
    nodes = {name: node for node, name in server.reactor.placed()}
    ring = ring_of(nodes)
    _RINGS[ring] = frozenset(nodes)
    at = Position.unpack(cursor) if cursor else Position(ring=ring)
    found = place(at, nodes, _RINGS)
    if found is None:
        return _page(0, (0, b""))
    at, name = found
    if server.reactor.memcached(nodes[name]) is None:
        frame = await ask(
            server, nodes[name], "SCAN", at.node, *call.args[2:], client=call.client, write=False
        )
    else:
        frame = await memcached.scan(server, nodes[name], at.node, call.args[2:])
    if is_error(frame):
        if (
            not frame.startswith((b"-SHARDDOWN ", b"-TIMEOUT ", b"-OVERLOADED "))
            or server.topology.pools[0].partial == "error"
        ):
            return frame
        node_cursor, page = 0, (0, b"")
    else:
        match = SCANNED.match(frame)
        if match is None:
            raise BadReply(errors.bad_reply(frame))
        node_cursor = int(match[1])
        if node_cursor > NODE_MOST:
            return reply.error(errors.large_cursor(name))
        page = _sieved(server, nodes[name], frame, match.end())
    following = place(after(at, node_cursor), nodes, _RINGS)
    return _page(following[0].pack() if following else 0, page)


def _page(cursor: int, keys: tuple[int, bytes]) -> bytes:
    return reply.array([reply.bulk(str(cursor)), b"*%d\r\n%b" % keys])


@handles("keys")
async def keys(server: Server, call: "Call") -> bytes:
    """KEYS pattern"""
    nodes = {name: node for node, name in server.reactor.placed()}

    async def one(name: str, node: int) -> Answer:
        if server.reactor.memcached(node) is not None:
            return Answer(name, await memcached.keys(server, node, call.args[1]))
        proto, db, held = call.proto, call.client.db, call.answered.get(node)
        return Answer(
            name, held or await ask_apart(server, node, *call.args, proto=proto, db=db, timeout=LISTING)
        )

    answers = usable(server, await asyncio.gather(*(one(*each) for each in nodes.items())))
    if isinstance(answers, bytes):
        return answers
    found = [_sieved(server, nodes[answer.shard], answer.frame) for answer in answers]
    return b"*%d\r\n%b" % (sum(count for count, _ in found), b"".join(part for _, part in found))


@handles("randomkey")
async def randomkey(server: Server, call: "Call") -> bytes:
    """From a shard in proportion to its keys; what lives elsewhere now is drawn again."""
    if others := server.topology.pools[0].memcached:
        return reply.error(errors.not_on_memcached("randomkey", min(others)))
    nodes = {name: node for node, name in server.reactor.placed()}
    answers = usable(server, await ask_all(server, call, "DBSIZE", write=False))
    if isinstance(answers, bytes):
        return answers
    sizes = {answer.shard: value_of(answer.frame, int) for answer in answers}
    drawn = {name: call.answered[node] for name, node in nodes.items() if node in call.answered}
    # by its transaction's run; what followed there may have changed the size
    for name, frame in drawn.items():
        sizes[name] = max(sizes.get(name, 0), 1) if value_of(frame) is not None else 0
    key = None
    for _ in range(RANDOM_TRIES):
        if not any(sizes.values()):
            break
        name = random.choices(list(sizes), list(sizes.values()))[0]
        frame = drawn.pop(name, b"") or await ask(
            server, nodes[name], "RANDOMKEY", client=call.client, write=False
        )
        if is_error(frame):
            return frame
        found = value_of(frame, (bytes, type(None)))
        if found is None:
            sizes[name] = 0  # emptied meanwhile
            continue
        if found.startswith(OURS):
            continue
        key = found
        if server.reactor.node_of(found) == nodes[name]:
            break
    return reply.bulk(key, call.proto)


@handles("flushall", "flushdb")
async def flush(server: Server, call: "Call") -> bytes:
    """FLUSHALL|FLUSHDB [ASYNC|SYNC]; stale values go too, and what nodes that are out still have."""
    if server.config.sessions.pool and not server.config.sessions.allow_flush:
        return reply.error(errors.SESSIONS_FLUSH)
    answers = await ask_all_apart(server, call, *call.args)
    await server.everywhere("flushed")
    return all_or_error(call.row.name.upper(), answers) or reply.OK


@part("flushed")
def flushed(server: Server) -> None:
    server.reactor.flushed()


@handles("swapdb")
async def swapdb(server: Server, call: "Call") -> bytes:
    """SWAPDB index1 index2: by all or none, as far as that can be; for a moment by some."""
    nodes = {name: node for node, name in server.reactor.placed()}
    swapped = list(call.answered)  # in the run of its transaction
    if len(nodes) < len(server.topology.pools[0].shards):
        failed = [reply.error(errors.SWAP_OUT)]
    else:
        answers = await ask_all(server, call, "PING", write=False)
        failed = [answer.frame for answer in answers if answer.failed]
    if not failed:
        answers = await ask_all(server, call, *call.args)
        failed = [answer.frame for answer in answers if answer.failed]
        swapped = [nodes[each.shard] for each in answers if not each.failed and each.shard in nodes]
    for node in swapped if failed else ():
        await ask_apart(server, node, *call.args, timeout=-1)  # back again
    if swapped:
        await server.everywhere("flushed")
    return failed[0] if failed else answers[0].frame
