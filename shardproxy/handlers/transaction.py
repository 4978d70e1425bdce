"""EXEC of a transaction with commands that are answered here: the node's results and ours, each in its place.

Rules: what the node can run is one run on the client's own way to it, with nobody else's command inside; it
is sent before this handler returns. Only when the node has run it are ours run, in their order: what is
aborted does nothing here either. SELECT is the node's too, so that what follows runs in that database, and so
is HELLO 2: a reply in RESP3 can be made of one in RESP2 (core/raising), the other way it cannot. The upstream
is told to go back. What is `spread` (command_policy) runs in the run there, on the others after it. What
stands behind a login is checked once more, against the new user, before anything is sent.
"""

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from shardproxy.core import acl, errors, raising, reply
from shardproxy.core.permit import Permit
from shardproxy.core.resp import RequestParser, Scanner
from shardproxy.handlers.accesslog import Reason
from shardproxy.handlers.asking import fill, is_error, pack
from shardproxy.handlers.base import Answer, BadReply, Server, dispatch, handles
from shardproxy.handlers.connection import login_in, may_log_in

if TYPE_CHECKING:
    from shardproxy.core.command_rows import Row
    from shardproxy.dataplane.calls import Call
    from shardproxy.dataplane.client_handle import ClientHandle

QUEUED = b"+QUEUED\r\n"
MOST_LOGINS = 8  # in one transaction: each costs a digest, and a table of what its user may do


class Queued:
    """A command between MULTI and EXEC, for its handler: as a Call."""

    held = None
    in_exec = True
    memcached = -1

    def __init__(
        self, args: list[bytes], row: "Row", client: "ClientHandle", answered: dict[int, bytes]
    ) -> None:
        self.args, self.row, self.client, self.answered = args, row, client, answered
        self.data: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @property
    def proto(self) -> int:
        return self.client.proto

    @property
    def done(self) -> bool:
        return self.data.done()

    def reply(self, data: bytes) -> None:
        self.data.set_result(data or reply.OK)  # CLIENT REPLY OFF says nothing: an array needs something


def _ours(row: "Row | None") -> bool:
    """For a handler; a message goes to the shard of its channel, which may be another one."""
    return row is not None and (row.channel or (row.kind == "local" and not row.in_multi))


def _of_node(row: "Row | None") -> bool:
    return row is None or not _ours(row) or row.spread or row.name == "select"


def _lowers(args: list[bytes], row: "Row | None") -> bool:
    return row is not None and row.name == "hello" and args[1:2] == [b"2"]


class Denied(NamedTuple):
    """What who has logged in inside the transaction may not run; reason, object: for ACL LOG."""

    user: str
    reason: Reason
    object: bytes
    error: bytes


def _denied(
    server: Server, call: "Call", queued: "list[tuple[list[bytes], Row | None]]"
) -> dict[int, Denied]:
    """By position. Whatever is queued was allowed to who queued it."""
    denied: dict[int, Denied] = {}
    user: acl.User | None = None
    permit: Permit | None = None
    for at, (args, row) in enumerate(queued):
        if permit is not None and not permit.everything and user is not None:
            verdict, which = permit.examine(args)
            if verdict != "allowed":
                name = args[0].lower() if row is None else row.name.encode()
                on_what: Reason = (
                    "key" if verdict == "key" else "channel" if verdict == "channel" else "command"
                )
                denied[at] = Denied(
                    user.name,
                    on_what,
                    args[which] if on_what != "command" else name,
                    reply.error(errors.exec_denied(verdict)),
                )
        login = login_in(server, args) if row is not None and row.name in ("auth", "hello") else None
        if login is not None and not may_log_in(server, call.client, *login):
            user = server.users.get(login[0].decode(errors="surrogateescape"))
            permit = Permit(user, server.commands, server.users.trust_scripts)
    return denied


@handles("exec")
def exec_(server: Server, call: "Call") -> Answer:
    """Sends the run, now."""
    assert call.held is not None
    node, watching, held, timeout = call.held
    limits = server.config.limits
    parser = RequestParser(limits.max_arguments, limits.max_value, limits.max_inline, 2 * limits.max_request)
    queued = [(args, server.commands.row(args[0], *args[1:])) for args in parser.feed(held)[1:]]
    if sum(row is not None and row.name in ("auth", "hello") for _, row in queued) > MOST_LOGINS:
        return reply.error(errors.EXEC_LOGINS)
    denied = _denied(server, call, queued)
    lowered = -1
    if call.proto == 3 and server.reactor.speaks(node) == 3:
        lowered = next((at for at, each in enumerate(queued) if _lowers(*each)), -1)
    run = [
        [b"HELLO", b"2"] if at == lowered else args
        for at, (args, row) in enumerate(queued)
        if at == lowered or (_of_node(row) and at not in denied)
    ]
    ran: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    if run or watching:
        back = [pack("HELLO", 3)] if lowered >= 0 else []
        if any(args[0].lower() == b"select" for args in run):
            back.append(pack("SELECT", call.client.db))
        request = b"".join([pack("MULTI"), *(pack(*args) for args in run), pack("EXEC"), *back])
        frames = 2 + len(run) + len(back)
        server.reactor.ask(node, request, fill(ran), client=call.client, frames=frames, timeout=timeout)
    else:
        ran.set_result(b"*0\r\n")
    return _finish(server, call, queued, denied, ran, node, len(run), lowered)


async def _finish(
    server: Server,
    call: "Call",
    queued: "list[tuple[list[bytes], Row | None]]",
    denied: dict[int, Denied],
    ran: asyncio.Future[bytes],
    node: int,
    count: int,
    lowered: int,
) -> bytes:
    """lowered: the position of the HELLO after which the node's replies are RESP2; below 0: there is none."""
    frames = Scanner().feed(await ran)
    if len(frames) < count + 2:  # an error, maybe in the middle of it, or nothing was the node's
        result = frames[-1]
    else:
        result = frames[count + 1]
        refused = next((frame for frame in frames[1 : count + 1] if frame != QUEUED), b"")
        if refused and result.startswith(b"-EXECABORT"):
            return b"-EXECABORT Transaction discarded because of: " + refused[1:]
    if is_error(result) or result in (b"*-1\r\n", b"_\r\n"):
        return result
    head, _, rest = result.partition(b"\r\n")
    if head != b"*%d" % count:  # else it is an array, and so are `count` frames in it
        raise BadReply(errors.bad_reply(result))
    theirs = iter(Scanner().feed(rest))
    results, proto = [], call.proto  # of what the node says
    for at, (args, row) in enumerate(queued):
        if no := denied.get(at):
            server.access_log.denied(time.time(), call.client, no.user, no.reason, "multi", no.object)
            results.append(no.error)
            continue
        frame = next(theirs) if at == lowered or _of_node(row) else b""
        if at == lowered:
            proto = 2
        if row is not None and _ours(row) and not is_error(frame):
            piece = Queued(args, row, call.client, {node: frame} if row.spread else {})
            dispatch(server, piece)  # type: ignore[arg-type]  # as a Call
            frame = await piece.data
        elif proto < call.client.proto:  # since a HELLO 3 among them, which the node has not heard of
            frame = raising.shape_of(args)(frame, 0)[0]
        results.append(frame)
    return b"*%d\r\n" % len(results) + b"".join(results)
