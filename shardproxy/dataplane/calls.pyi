from shardproxy.core.command_rows import Row
from shardproxy.dataplane.client_handle import ClientHandle

class Call:
    """One command that left the fast path; `reply` fills its slot, once, also after the client has left."""

    args: list[bytes]
    row: Row
    client: ClientHandle
    proto: int
    done: bool
    answered: dict[int, bytes]  # node number -> its reply, of one that has run it already, in a transaction
    in_exec: bool  # it is run by EXEC: it may not wait
    held: (
        tuple[int, bool, bytes, float] | None
    )  # of EXEC: node, are keys watched there, MULTI and what was queued, seconds
    memcached: int  # the number of the memcached node that has its keys; -1: it is not about one
    def reply(self, data: bytes) -> None: ...
