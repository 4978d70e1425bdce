"""What concerns the keys of all shards: asked of every node, merged.

When a node cannot answer, the pool's `partial` decides: the error, which names its shard, or the others' sum.
"""

from typing import TYPE_CHECKING

from shardproxy.core import reply
from shardproxy.handlers.asking import Answer, ask_all, value_of
from shardproxy.handlers.base import Server, handles

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call


def usable(server: Server, answers: list[Answer]) -> list[Answer] | bytes:
    """Those that can be merged, or the error that the client gets instead."""
    good = [answer for answer in answers if not answer.failed]
    if len(good) < len(answers) and (server.topology.pools[0].partial == "error" or not good):
        return next(answer.frame for answer in answers if answer.failed)
    return good


@handles("dbsize")
async def dbsize(server: Server, call: "Call") -> bytes:
    answers = usable(server, await ask_all(server, call, "DBSIZE", write=False))
    if isinstance(answers, bytes):
        return answers
    return reply.integer(sum(value_of(answer.frame, int) for answer in answers))
