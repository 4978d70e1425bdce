TABLE: tuple[tuple[str, str, str], ...]
HISTOGRAMS: tuple[str, str]
PAGE_BYTES: int
BUCKET_COUNT: int

def bucket(us: int) -> int:
    """The histogram bucket of a latency in microseconds."""

def bucket_start(b: int) -> int:
    """The smallest latency, in microseconds, that falls into bucket b."""
