"""PROXY NODE: any command on the node of one shard, for administrators, on a connection of its own.

The reply is the node's, byte for byte, in the client's protocol and database. What would change the
connection, make it say more than one reply, or wait for data, is refused.
"""

from typing import TYPE_CHECKING

from shardproxy.core import errors, reply
from shardproxy.handlers.asking import LONG, ask_link
from shardproxy.handlers.base import Server, handles
from shardproxy.handlers.operate import trusted

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call

CONNECTION = frozenset((
    "asking", "auth", "discard", "exec", "hello", "monitor", "multi", "psubscribe", "psync", "punsubscribe",
    "quit", "readonly", "readwrite", "replconf", "reset", "select", "ssubscribe", "subscribe",
    "sunsubscribe", "sync", "unsubscribe", "unwatch", "watch",
))  # fmt: skip
CLIENT = frozenset({b"caching", b"kill", b"reply", b"tracking"})


@handles("proxy|node")
async def node(server: Server, call: "Call") -> bytes:
    """PROXY NODE shard command [arg ...]"""
    if not trusted(server, call):
        return reply.error(errors.NOT_LOCAL)
    name, command = call.args[2].decode(errors="replace"), call.args[3:]
    word = command[0].decode(errors="replace").lower()[:64]
    if word in CONNECTION or (word == "client" and CLIENT & {each.lower() for each in command[1:2]}):
        return reply.error(errors.not_through(word))
    row = server.commands.row(*command[:2])
    if (
        row is not None
        and "blocking" in row.flags
        and (not row.walk or b"block" in map(bytes.lower, command))
    ):
        return reply.error(errors.not_through(word))  # it would wait on when its client has left
    number = server.reactor.node_of_shard(name)
    if number is None:
        pool = server.topology.pools[0]
        return reply.error(errors.no_such_shard(name, [shard.name for shard in pool.shards]))
    try:
        link = server.reactor.open_link(number, proto=call.proto, db=call.client.db)
    except ConnectionError as error:
        return reply.error(str(error))
    try:
        return await ask_link(link, *command, timeout=LONG)
    finally:
        link.close()  # not used again: it may have been given a name
