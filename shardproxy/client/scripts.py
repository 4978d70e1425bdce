"""The scripts that a client knows by their SHA1: what a node that has lost one is taught again. Pure.

A script that was only registered is known and not loaded: SCRIPT EXISTS says so, as redis-py's users expect.
"""

from collections.abc import Sequence
from typing import Any

MOST = 1024  # texts that are kept


class Scripts:
    """The latest MOST; one that is called again is as good as new."""

    def __init__(self) -> None:
        self._texts: dict[str, Any] = {}
        self._loaded: set[str] = set()

    def remember(self, sha: str, text: Any) -> None:
        self._texts.pop(sha, None)
        while len(self._texts) >= MOST:
            oldest = next(iter(self._texts))
            del self._texts[oldest]
            self._loaded.discard(oldest)
        self._texts[sha] = text

    def text(self, sha: bytes) -> Any:
        """None: it is not known."""
        return self._texts.get(_name(sha))

    def loaded(self, sha: bytes) -> None:
        """A node has it: where others have not, they will be taught when it is called there."""
        if (name := _name(sha)) in self._texts:
            self._loaded.add(name)

    def flushed(self) -> None:
        self._texts.clear()
        self._loaded.clear()

    def exist(self, shas: Sequence[bytes], found: Sequence[int]) -> list[int]:
        """SCRIPT EXISTS: 1 where every node has it, or will when it is called."""
        return [int(there or _name(sha) in self._loaded) for there, sha in zip(found, shas, strict=True)]


def _name(sha: bytes) -> str:
    return sha.decode("latin-1").lower()
