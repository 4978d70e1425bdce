from collections.abc import Iterable
from typing import Any

from shardproxy.core.ring import Ring

def share(
    ring: Ring, args: Iterable[Any], step: int, first: Any
) -> tuple[list[int], dict[int, list[Any]]] | None: ...
def spread(homes: list[int], replies: dict[int, list[Any]]) -> list[Any]: ...
def gather(
    ring: Ring,
    commands: dict[Any, Any],
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]],
    numbers: list[int],
    first: int,
    but: str,
) -> tuple[int, dict[int, tuple[bytes, list[int], bool]]]: ...
