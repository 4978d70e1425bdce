class ProtocolError(Exception):
    """Bytes that no memcached of 1.6 sends."""

class Scanner:
    """Cuts a stream of a memcached's replies into frames: a line; with VA its value; STAT lines until END."""

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes; raises ProtocolError."""

def encode_key(key: bytes) -> tuple[bytes, bool] | None:
    """How a command names a key, and whether that is base64 (flag b); None: too long, or empty."""
