"""SCRIPT and FUNCTION: code on every node. EVAL, EVALSHA and FCALL pass through the engine
(dataplane/scripts).

A script's text is kept here as well, in every worker, so that a node that could not be reached, or loses
it, is sent it before the first EVALSHA that it gets. Functions are the nodes' own; one that has none, new
or back without them, is given another's.
"""

import asyncio
from typing import TYPE_CHECKING

from shardproxy.core import errors, reply
from shardproxy.handlers.asking import (
    LISTING,
    Answer,
    all_or_error,
    ask_all,
    ask_all_apart,
    ask_apart,
    is_error,
    redis_places,
    value_of,
)
from shardproxy.handlers.base import BadReply, Server, handles, part

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call

ABSENT = (b"-SHARDDOWN ", b"-TIMEOUT ", b"-UNKNOWN ", b"-OVERLOADED ")
KILL_TIMEOUT = 2.0  # seconds; a node that is so busy answers at once or not at all


@handles("script|load")
async def load(server: Server, call: "Call") -> bytes:
    """SCRIPT LOAD script. Who cannot be asked now is sent it later; a refusal is an error."""
    text = call.args[2]
    answers = await ask_all(server, call, "SCRIPT", "LOAD", text)
    there = [answer for answer in answers if not answer.frame.startswith(ABSENT)]
    if error := all_or_error("SCRIPT LOAD", there or answers):
        return error
    sha = server.reactor.teach(text, True)
    await server.everywhere("teach", [(text, True)])
    if len(there) < len(answers) and not server.reactor.knows_script(sha):
        return next(answer.frame for answer in answers if answer.failed)  # too large to be kept for them
    return there[0].frame


@handles("script|exists")
async def exists(server: Server, call: "Call") -> bytes:
    """SCRIPT EXISTS sha1 [sha1 ...]: 1 when an EVALSHA would find it, on every node.

    The text that an EVAL brought says nothing: it need not compile. Some node has run it, then.
    """
    answers = await ask_all(server, call, *call.args, write=False)
    there = [value_of(answer.frame, list) for answer in answers if not answer.failed]
    if any(len(each) != len(call.args) - 2 for each in there):
        raise BadReply(errors.bad_reply(answers[0].frame))
    if not there:
        return answers[0].frame if answers else reply.error(errors.NO_SHARDS)
    if len(there) < len(answers):
        there.append([0] * len(call.args[2:]))
    knows = server.reactor.knows_script
    return reply.array(
        reply.integer(all(theirs) or knows(sha, True) or (any(theirs) and knows(sha)))
        for sha, *theirs in zip(call.args[2:], *there, strict=True)
    )


@handles("script|flush")
async def flush(server: Server, call: "Call") -> bytes:
    """SCRIPT FLUSH [ASYNC|SYNC]"""
    options = [option.lower() for option in call.args[2:]]
    if len(options) > 1 or options not in ([], [b"sync"], [b"async"]):
        return reply.error(errors.SCRIPT_FLUSH)
    await server.everywhere("forget scripts")
    answers = await ask_all(server, call, *call.args)
    await server.everywhere("forget scripts")  # what was sent meanwhile
    await tell_missed(server, "scripts", answers)
    return all_or_error("SCRIPT FLUSH", answers) or reply.OK


@handles("script|kill", "function|kill")
async def kill(server: Server, call: "Call") -> bytes:
    """Wherever one runs. A busy node reads no connection on which its script came: so on others."""
    answers = await asyncio.gather(
        *(ask_apart(server, node, *call.args, timeout=KILL_TIMEOUT) for node, _ in redis_places(server))
    )
    if not answers:
        return reply.error(errors.NO_SHARDS)
    if any(not is_error(answer) for answer in answers):
        return reply.OK
    busy = [answer for answer in answers if not answer.startswith(b"-NOTBUSY")]
    return busy[0] if busy else answers[0]


@handles("script|debug")
def debug(server: Server, call: "Call") -> bytes:
    """SCRIPT DEBUG YES|SYNC|NO"""
    mode = call.args[2].lower()
    if mode not in (b"yes", b"sync", b"no"):
        return reply.error(errors.SCRIPT_DEBUG)
    return reply.OK if mode == b"no" else reply.error(errors.NOT_DEBUGGER)


@handles("function|load", "function|delete", "function|flush", "function|restore")
async def change(server: Server, call: "Call") -> bytes:
    """By all, or an error that names those that have not."""
    answers = await ask_all(server, call, *call.args)
    await tell_missed(server, "functions", answers)
    if error := all_or_error(call.row.name.replace("|", " ").upper(), answers):
        return error
    return _alike(call, answers)


@handles("function|list", "function|dump")
async def show(server: Server, call: "Call") -> bytes:
    """Of any node: all have the same."""
    answers = await ask_all(server, call, *call.args, write=False)
    if not answers:
        return reply.error(errors.NO_SHARDS)
    return next((answer.frame for answer in answers if not answer.frame.startswith(ABSENT)), answers[0].frame)


@handles("function|stats")
async def stats(server: Server, call: "Call") -> bytes:
    """Of the node where one runs, else of the first."""
    answers = await ask_all_apart(server, call, *call.args)
    good = [answer.frame for answer in answers if not answer.failed]
    if not good:
        return answers[0].frame if answers else reply.error(errors.NO_SHARDS)
    return next((frame for frame in good if b"duration_ms" in frame), good[0])


async def tell_missed(server: Server, what: str, answers: list[Answer]) -> None:
    """Who was not there for a change makes up for it before it is admitted again: proxy/returns."""
    done = {answer.shard for answer in answers if not answer.frame.startswith(ABSENT)}
    pool = server.topology.pools[0]
    missed = [each.name for each in pool.shards if each.name not in done | pool.memcached]
    if missed and done:
        await server.everywhere("missed", what, missed)


@part("missed")
def missed(server: Server, what: str, shards: list[str]) -> None:
    for shard in shards:
        server.missed.setdefault(shard, set()).add(what)


def _alike(call: "Call", answers: list[Answer]) -> bytes:
    first = answers[0].frame
    odd = [answer.shard for answer in answers if answer.frame != first]
    return reply.error(errors.differing(call.row.name.replace("|", " ").upper(), odd)) if odd else first


@part("teach")
def teach(server: Server, known: list[tuple[bytes, bool]]) -> None:
    for text, loaded in known:
        server.reactor.teach(text, loaded)


@part("scripts")
def scripts(server: Server) -> list[tuple[bytes, bool]]:
    return server.reactor.scripts()


@part("forget scripts")
def forget(server: Server) -> None:
    server.reactor.forget_scripts()


async def give_functions(server: Server, shard: str) -> bool:
    """A node without functions is given those of another; whether it was.

    On connections of its own: nobody's request waits for it, and it says nothing about the node.
    """
    nodes = {name: node for node, name in redis_places(server)}
    if shard not in nodes:
        return False
    mine = nodes.pop(shard)
    if await _libraries(server, mine) != 0:
        return False
    for other in list(nodes.values())[:2]:  # all have the same
        if await _libraries(server, other):
            dump = await ask_apart(server, other, "FUNCTION", "DUMP", timeout=LISTING, keep=False)
            if is_error(dump):
                continue
            payload = value_of(dump, bytes)
            return not is_error(
                await ask_apart(server, mine, "FUNCTION", "RESTORE", payload, timeout=LISTING, keep=False)
            )
    return False


async def _libraries(server: Server, node: int) -> int:
    """How many it has; -1: it does not say, or has no engine of ours."""
    frame = await ask_apart(server, node, "FUNCTION", "LIST", timeout=LISTING, keep=False)
    return -1 if is_error(frame) else len(value_of(frame, list))
