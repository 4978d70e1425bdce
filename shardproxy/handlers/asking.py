"""Asking nodes from a handler: raw replies of one or of all, and what they say.

Rules: an ask is always answered, with the node's own reply or with an error line as a client would get it
(SHARDDOWN, TIMEOUT, UNKNOWN outcome): a handler looks at the first byte. A command that asks more than once,
or more than one node, `holds` (command_policy), so that its client's later commands come after it.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import hiredis

from shardproxy.core import errors, reply
from shardproxy.handlers.base import BadReply

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call, ClientHandle
    from shardproxy.dataplane.links import Link
    from shardproxy.handlers.base import Server

Argument: TypeAlias = "bytes | str | int"
# Seconds that what works on all keys, or on a node, may take: longer than a client's command, not for ever
LISTING, LONG = 30.0, 600.0


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
    """One node (a number of Reactor.placed or node_of), on the client's own way to it or a shared one."""
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


async def ask_all(
    server: "Server", call: "Call", *args: Argument, write: bool = True, timeout: float = -1
) -> list[Answer]:
    """Every shard's node at the same time, in the order of the ring, on the client's own way to them."""
    client, answered = call.client, call.answered
    places = server.reactor.placed()

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
    """One node, on a connection of its own, so that what takes long holds nobody up; keep: in the pool."""
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
    places, proto, db, answered = server.reactor.placed(), call.proto, call.client.db, call.answered

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
