from collections.abc import Callable

from shardproxy.core.command_rows import Row

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
    def reply(self, data: bytes) -> None: ...

class ClientHandle:
    """A client connection. Times are seconds, sizes bytes; of one that has left: zeros."""

    id: int
    alive: bool
    proto: int
    name: bytes
    lib_name: bytes
    lib_ver: bytes
    tls: str | None
    """The version of TLS that it speaks; None: none."""
    db: int
    addr: str
    laddr: str
    fd: int
    age: float
    idle: float
    last_command: str
    query_buffer: int
    output_bytes: int
    total_memory: int
    pending: int
    in_multi: int
    multi_memory: int
    no_evict: bool
    no_touch: bool
    reply_mode: str
    total_commands: int
    blocked_at: tuple[int, int] | None
    wrote: list[int]
    waiting: bool
    watched: int
    monitors: bool
    def unblock(self, error: bool, done: Callable[[bytes], object] | None) -> bool: ...
    def push(self, data: bytes) -> None: ...
    def kill(self, reason: str) -> None: ...
    user: bytes
    def login(self, name: bytes) -> None:
        """It is this user from now on; b"": nobody, which makes it the default user."""

    def login_failed(self) -> None: ...
    def close_after_reply(self, reason: str | None = None) -> None: ...
    def reset(self) -> None: ...
