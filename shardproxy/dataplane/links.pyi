from collections.abc import Callable

class Link:
    """A connection to a node that is a handler's own: `Reactor.open_link`."""

    alive: bool
    node_client_id: int  # its CLIENT ID on the node; 0: not known, or not yet
    def ask(
        self, request: bytes, done: Callable[[bytes], None], frames: int = 1, timeout: float = -1
    ) -> None:
        """done gets the reply's bytes, or an error line, after the tick. timeout: as Reactor.ask's."""

    def send(self, request: bytes) -> None:
        """On a stream, where no reply belongs to a request."""

    def release(self) -> None:
        """Back to the pool, if nothing is in flight; else closed."""

    def close(self) -> None:
        """on_lost is not called."""
