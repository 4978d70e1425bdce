class ProtocolError(Exception):
    """Bytes that are not RESP."""

class Scanner:
    """Cuts a stream of replies into frames."""

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes; raises ProtocolError."""

class RequestParser:
    """Cuts a stream of requests into commands. Limits are counts and bytes."""

    def __init__(
        self,
        max_arguments: int = 1048576,
        max_value: int = 536870912,
        max_inline: int = 65536,
        max_request: int = 1073741824,
    ) -> None: ...
    def feed(self, data: bytes) -> list[list[bytes]]:
        """The commands that `data` completes, each a list of arguments; raises ProtocolError."""
