from collections.abc import Sequence

def merge(
    how: str,
    owner: list[int],
    replies: list[tuple[int, bytes, bool]],
    names: Sequence[str],
    proto: int = 2,
    nil: bool = False,
) -> bytes:
    """Merge parts' raw replies into the client's.

    `how` is "array", "sum" or "ok"; `owner` has the part of each key; a reply is (shard number, raw bytes,
    whether the shard answered); `names` are the shards'; `nil` is the pool's partial = "nil".
    """
