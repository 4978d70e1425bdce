"""What the engine (dataplane/memcached) does not translate for memcached nodes: several steps, or errors."""

from typing import TYPE_CHECKING

from shardproxy.core import errors, reply
from shardproxy.handlers.base import Server, on_memcached

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call


@on_memcached
def memcached(server: Server, call: "Call") -> bytes:
    return reply.error(errors.not_on_memcached(call.row.name, server.reactor.shard_of(call.memcached)))
