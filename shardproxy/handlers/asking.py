"""Asking nodes from a handler: raw replies of one or of all, and what they say.

Rules: an ask is always answered, with the node's own reply or with an error line as a client would get it
(SHARDDOWN, TIMEOUT, UNKNOWN outcome): a handler looks at the first byte. A command that asks more than once,
or more than one node, `holds` (command_policy), so that its client's later commands come after it.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import hiredis

from shardproxy.core import errors, memcached, reply
from shardproxy.core.memcached_wire import Scanner
from shardproxy.handlers.base import BadReply

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call
    from shardproxy.dataplane.client_handle import ClientHandle
    from shardproxy.dataplane.links import Link
    from shardproxy.handlers.base import Server

Argument: TypeAlias = "bytes | str | int"
# Seconds that what works on all keys, or on a node, may take: longer than a client's command, not for ever
LISTING, LONG = 30.0, 600.0


class NoAnswer(Exception):
    """A node could not be asked; `line` is the RESP error that says why."""

    def __init__(self, line: bytes) -> None:
        super().__init__(text_of(line))
        self.line = line


class Moved(Exception):
    """Keys may be on other nodes than when a command began, and it has not run."""


class Answer(NamedTuple):
    """What one shard's node answered."""

    shard: str
    frame: bytes  # a whole RESP reply

    @property
    def failed(self) -> bool:
        return is_error(self.frame)


def is_error(frame: bytes) -> bool:
    return frame[:1] in (b"-", b"!")


def pack(*args: Argument) -> bytes:
    """A request's bytes."""
    packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]  # its stub knows no int
    return packed


def value_of(frame: bytes, kind: type | tuple[type, ...] = object) -> Any:
    """A reply as bytes, int, list, None, hiredis.ReplyError; of RESP3 also dict, float, bool.

    Raises BadReply, which the guard answers, when it is not of this kind: a node may answer anything.
    """
    reader = hiredis.Reader()
    try:
        reader.feed(frame)
        value = reader.gets()
    except (hiredis.ProtocolError, TypeError):  # the second: a map whose keys are maps, which no dict takes
        raise BadReply(errors.bad_reply(frame)) from None
    if not isinstance(value, kind):
        raise BadReply(errors.bad_reply(frame))
    return value


def fill(future: asyncio.Future[bytes]) -> Callable[[bytes], None]:
    """Gets a reply for a future whose owner may have given up."""

    def done(frame: bytes) -> None:
        if not future.done():
            future.set_result(frame)

    return done


# About the keys of all shards, whatever their nodes speak
KEYSPACE = frozenset({"dbsize", "flushall", "flushdb", "keys", "randomkey", "scan", "swapdb"})


def redis_places(server: "Server") -> list[tuple[int, str]]:
    """As Reactor.placed, without memcached nodes; if there are no others these, which refuse it."""
    places, memcached = server.reactor.placed(), server.topology.pools[0].memcached
    return [place for place in places if place[1] not in memcached] or places


def _places(server: "Server", call: "Call") -> list[tuple[int, str]]:
    return server.reactor.placed() if call.row.name in KEYSPACE else redis_places(server)


async def ask(
    server: "Server",
    node: int,
    *args: Argument,
    client: "ClientHandle | None" = None,
    proto: int = 2,
    db: int = 0,
    write: bool = True,
    keys: Iterable[bytes] = (),
    timeout: float = -1,
) -> bytes:
    """One node (a number of Reactor.placed or node_of), on the client's own way to it or a shared one.

    A memcached node is asked in its own words, if there are any for the command.
    """
    if server.reactor.memcached(node) is not None:
        request = [each if isinstance(each, bytes) else str(each).encode() for each in args]
        name = request[0].decode("latin-1").lower()
        return await ask_in_steps(
            server, node, name, request, client=client, proto=proto, keys=keys, timeout=timeout
        )
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    server.reactor.ask(
        node,
        pack(*args),
        fill(future),
        client=client,
        proto=proto,
        db=db,
        write=write,
        keys=keys,
        timeout=timeout,
    )
    return await future


async def ask_memcached(
    server: "Server",
    node: int,
    request: bytes,
    *,
    frames: int = 1,
    client: "ClientHandle | None" = None,
    write: bool = True,
    keys: Iterable[bytes] = (),
    timeout: float = -1,
) -> list[bytes]:
    """A memcached node, in commands of its meta protocol: its replies, `frames` of them, each a frame.

    Raises NoAnswer with the error line (SHARDDOWN, TIMEOUT, UNKNOWN outcome) as a client is to get it.
    """
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    server.reactor.ask(
        node,
        request,
        fill(future),
        client=client,
        write=write,
        frames=frames,
        keys=keys,
        timeout=timeout,
        meta=True,
    )
    answer = await future
    if is_error(answer):  # no reply of a memcached begins so
        raise NoAnswer(answer)
    return Scanner().feed(answer)


async def ask_in_steps(
    server: "Server",
    node: int,
    name: str,
    args: list[bytes],
    *,
    client: "ClientHandle | None" = None,
    proto: int = 2,
    keys: Iterable[bytes] = (),
    timeout: float = -1,
    placement: int | None = None,
) -> bytes:
    """A command of Redis, run on a memcached node as core/memcached says: what Redis would reply.

    name: of the command table. keys: those it writes. timeout: seconds in all; below 0: as for a client's
    command, of each step. A step that gets no answer ends it with that error; if none before it has written
    anything, the command has not run. placement: Reactor.placements of when the node was found: no step is
    sent to it once that has changed, for what it writes there might be nowhere; Moved is raised.
    """

    def moved() -> bool:
        return placement not in (None, server.reactor.placements())

    if moved():
        raise Moved
    program = memcached.start(name, args, memcached_node(server, node))
    clock = asyncio.get_running_loop().time
    due, wrote = clock() + timeout, False
    try:
        step = next(program)
        while True:
            if step.pause:
                await asyncio.sleep(step.pause)
            if moved():
                raise Moved
            wrote = wrote or step.writes
            replies: list[memcached.Reply] = []
            try:
                frames = await ask_memcached(
                    server,
                    node,
                    step.data,
                    frames=step.replies,
                    client=client,
                    write=step.writes,
                    keys=keys,
                    timeout=max(due - clock(), 0.001) if timeout > 0 else timeout,
                )
                replies = [memcached.parse(frame) for frame in frames]
            except NoAnswer as error:
                if moved() and error.line.startswith(b"-SHARDDOWN"):  # this step has not run
                    raise Moved from None
                if not step.spare:
                    raise
            except ValueError as error:
                if not step.spare:
                    program.throw(memcached.OfNode(errors.memcached_said(str(error))))  # its end
            step = program.send(replies)
    except StopIteration as done:
        return memcached.encode(done.value, proto)
    except NoAnswer as error:
        return error.line if wrote else error.line.replace(b"may still run", b"has not run")


def memcached_node(server: "Server", node: int) -> memcached.Node:
    """What a program has to know of it."""
    limit, ahead = server.reactor.memcached(node) or (0, None)
    name = server.reactor.shard_of(node)
    shards = (shard for pool in server.topology.pools for shard in pool.shards)
    address = next((shard.node.address for shard in shards if shard.name == name), "")
    return memcached.Node(time.time, ahead or 0.0, limit, name, address)


def _answered(call: "Call", args: Sequence[Argument]) -> Mapping[int, bytes]:
    """What the run of its transaction has brought, if this is what was asked there."""
    first = args[0] if isinstance(args[0], bytes) else str(args[0]).encode()
    return call.answered if first.lower() == call.args[0].lower() else {}


async def ask_all(
    server: "Server", call: "Call", *args: Argument, write: bool = True, timeout: float = -1
) -> list[Answer]:
    """Every shard's node at the same time, in the order of the ring, on the client's own way to them.

    A memcached is asked only what is about all keys, and refuses it.
    """
    client, answered = call.client, _answered(call, args)
    places = _places(server, call)

    async def one(node: int) -> bytes:
        return answered.get(node) or await ask(
            server, node, *args, client=client, write=write, timeout=timeout
        )

    frames = await asyncio.gather(*(one(node) for node, _ in places))
    return [Answer(shard, frame) for (_, shard), frame in zip(places, frames, strict=True)]


async def ask_apart(
    server: "Server",
    node: int,
    *args: Argument,
    proto: int = 2,
    db: int = 0,
    timeout: float = LONG,
    keep: bool = True,
) -> bytes:
    """One node, on a connection of its own, so that what takes long holds nobody up; keep: in the pool.

    Not so a memcached node, where nothing that is asked in steps takes long.
    """
    if server.reactor.memcached(node) is not None:
        return await ask(server, node, *args, proto=proto, timeout=timeout)
    try:
        link = server.reactor.open_link(node, proto=proto, db=db)
    except ConnectionError as error:
        return reply.error(str(error))
    try:
        return await ask_link(link, *args, timeout=timeout)
    finally:
        (link.release if keep else link.close)()


async def ask_all_apart(
    server: "Server", call: "Call", *args: Argument, timeout: float = LONG
) -> list[Answer]:
    """Every shard's node, each on a connection of its own."""
    places, proto, db = _places(server, call), call.proto, call.client.db
    answered = _answered(call, args)

    async def one(node: int) -> bytes:
        return answered.get(node) or await ask_apart(server, node, *args, proto=proto, db=db, timeout=timeout)

    frames = await asyncio.gather(*(one(node) for node, _ in places))
    return [Answer(shard, frame) for (_, shard), frame in zip(places, frames, strict=True)]


def text_of(frame: bytes) -> str:
    """What an error line says."""
    return frame[1:].partition(b"\r\n")[0].decode(errors="replace")


def all_or_error(name: str, answers: list[Answer]) -> bytes | None:
    """What must be done by all, or the error that names those that have not; None: all have."""
    failed = [answer for answer in answers if answer.failed]
    if not answers:
        return reply.error(errors.NO_SHARDS)
    if not failed:
        return None
    if len(failed) == len(answers):
        return failed[0].frame
    return reply.error(errors.partly(name, [(answer.shard, text_of(answer.frame)) for answer in failed]))


def usable(server: "Server", answers: list[Answer]) -> list[Answer] | bytes:
    """Those that can be merged, as the pool's `partial` says, or the error that the client gets instead."""
    good = [answer for answer in answers if not answer.failed]
    if not answers:
        return reply.error(errors.NO_SHARDS)
    if len(good) < len(answers) and (server.topology.pools[0].partial == "error" or not good):
        return next(answer.frame for answer in answers if answer.failed)
    return good


async def ask_link(link: "Link", *args: Argument, timeout: float = -1) -> bytes:
    """On a connection of the handler's own."""
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    link.ask(pack(*args), fill(future), timeout=timeout)
    return await future
