from collections.abc import Callable, Mapping

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
    subscriptions: tuple[int, int, int]
    tracked: tuple[str, int]  # what CLIENT LIST shows: its flags, and whom it redirects to
    tracking: bool
    caching: int  # for its next command: 1: CLIENT CACHING YES, 2: NO
    def push(self, data: bytes, resp3: bytes | None = None) -> None:
        """Whole frames that belong to no command; resp3: what they are for a client of RESP3."""

    def when_gone(self, callback: Callable[[int], None]) -> None:
        """callback(id), after the client has left."""

    def track(
        self,
        setups: Mapping[int, tuple[bytes, int]] | None,
        redirected: Callable[[bytes], None] | None = None,
    ) -> None:
        """From now on all its upstreams are its own; None: no more.

        setups: what one says first on the node of that number (-1: any other), and how many replies that has.
        redirected: gets their pushes, which else go to the client.
        """

    def track_everywhere(self) -> bool:
        """Has an upstream of its own to every node, also where it has asked nothing; False: not yet."""

    def track_again(self, node: int) -> None:
        """Its upstream to that node is closed, and what was read there is to be forgotten."""

    def invalidate(self) -> None:
        """It, or whom it redirects to, is told to forget everything."""

    waiting: bool
    watched: int
    monitors: bool
    def unblock(self, error: bool, done: Callable[[bytes], object] | None) -> bool: ...
    def kill(self, reason: str) -> None: ...
    user: bytes
    def login(self, name: bytes) -> None:
        """It is this user from now on; b"": nobody, which makes it the default user."""

    def login_failed(self) -> None: ...
    def close_after_reply(self, reason: str | None = None) -> None: ...
    def reset(self) -> None: ...
