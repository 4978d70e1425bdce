"""What the engine (dataplane/memcached) does not translate for memcached nodes: several steps, or errors.

Rules: commands on one key take their turn within this process, in the order in which they came, so that only
other workers, other proxies and memcached's own clients can make a compare-and-swap fail. A client has one
such command at a time, and what it sends later waits: so nobody waits behind more commands than there are
clients, nor longer than a request may take. Whose keys move between two of its steps starts over where
they are then: up to there nothing of it has run, since what writes is the last step.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from shardproxy.core import errors, reply
from shardproxy.core.glob import matches
from shardproxy.core.memcached import PROGRAMS
from shardproxy.core.memcached.listing import Page, Wanted
from shardproxy.core.memcached.wire import LISTINGS, Refused, dumped
from shardproxy.handlers.asking import LISTING, Moved, ask, ask_in_steps, memcached_node
from shardproxy.handlers.base import Answer, Server, on_memcached

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call

BUSY_PAUSE = 0.02  # seconds


class Turn(asyncio.Lock):
    """At one key: whoever holds it."""

    users = 0  # with those who wait


@on_memcached
def memcached(server: Server, call: "Call") -> Answer:
    if call.row.name not in PROGRAMS:
        shard = server.reactor.shard_of(call.memcached)
        return reply.error(errors.not_on_memcached(call.row.name, shard))
    return _in_turn(server, call, server.reactor.placements())


async def _in_turn(server: Server, call: "Call", placement: int) -> bytes:
    node, keys = call.memcached, [call.args[at] for at in server.commands.keys_of(call.args)]
    pool, clock = server.config.pool[server.topology.pools[0].name], asyncio.get_running_loop().time
    limit = (pool.timeouts.write if call.row.writes else pool.timeouts.read) or pool.timeout
    due, written = clock() + limit, keys if call.row.writes else ()
    while True:
        if placement != (now := server.reactor.placements()):
            node, placement = server.reactor.node_of(keys[0]), now
        if server.reactor.memcached(node) is None:
            break
        known = memcached_node(server, node)
        try:
            async with _turn(server, node, keys[0], due):
                return await ask_in_steps(
                    server,
                    node,
                    call.row.name,
                    call.args,
                    client=call.client,
                    proto=call.proto,
                    keys=written,
                    timeout=max(due - clock(), 0.001),
                    placement=placement,
                )
        except Moved:
            continue
        except TimeoutError:
            return reply.error(errors.not_asked(known.shard, known.address, limit))
    # a Redis has taken its place
    return await ask(
        server,
        node,
        *call.args,
        client=call.client,
        proto=call.proto,
        write=call.row.writes,
        keys=written,
        timeout=max(due - clock(), 0.001),
    )


@asynccontextmanager
async def _turn(server: Server, node: int, key: bytes, due: float) -> AsyncIterator[None]:
    """Raises TimeoutError when it has not come by then (by the loop's clock)."""
    turn = server.turns.setdefault((node, key), Turn())
    turn.users += 1
    try:
        async with asyncio.timeout_at(due):
            await turn.acquire()
        try:
            yield
        finally:
            turn.release()
    finally:
        turn.users -= 1
        if not turn.users:
            del server.turns[node, key]


# --- what a node has: a look at all of it, each time ---


async def scan(server: Server, node: int, cursor: int, args: list[bytes]) -> bytes:
    """SCAN cursor [MATCH pattern] [COUNT count] [TYPE type] of one node, as a Redis replies."""
    try:
        page = Page(cursor, Wanted.read(args))
        await _each_key(server, node, page.add)
    except Refused as error:
        return reply.error(str(error))
    following, keys = page.done()
    return reply.array([reply.bulk(str(following)), reply.bulks(keys)])


async def keys(server: Server, node: int, pattern: bytes) -> bytes:
    """KEYS pattern of one node."""
    found: list[bytes] = []

    def add(key: bytes) -> None:
        if matches(pattern, key):
            found.append(key)

    try:
        await _each_key(server, node, add)
    except Refused as error:
        return reply.error(str(error))
    return reply.bulks(found)


async def _each_key(server: Server, node: int, add: Callable[[bytes], None]) -> None:
    """All that a node lists, on a connection of its own. Raises Refused."""
    told = memcached_node(server, node)
    if not server.config.pool[server.topology.pools[0].name].memcached_keys:
        raise Refused(errors.memcached_keys(told.where()))
    ends: asyncio.Queue[str] = asyncio.Queue()  # what comes that is no key

    def line(frame: bytes) -> None:
        found = dumped(frame)
        if found is not None:
            add(found[0])
        else:
            ends.put_nowait(frame.strip().decode(errors="replace"))

    def lost(*_: object) -> None:
        ends.put_nowait("nothing more: the connection is lost")

    try:
        link = server.reactor.open_link(node, proto=2, stream=True, on_frame=line, on_lost=lost)
    except ConnectionError as error:
        raise Refused(str(error)) from None
    said, how = "BUSY", 0  # its crawler does one thing at a time
    try:
        async with asyncio.timeout(LISTING):
            while said.startswith("BUSY"):
                link.send(LISTINGS[how])
                said = await ends.get()
                if said.startswith("BADCLASS") and how + 1 < len(LISTINGS):
                    said, how = "BUSY", how + 1
                elif said.startswith("BUSY"):
                    await asyncio.sleep(BUSY_PAUSE)
    except TimeoutError:
        said = f"nothing more within {LISTING:g} s"
    finally:
        link.close()
    if said != "END":
        raise Refused(errors.memcached_said(said).replace("{}", told.where(), 1))
