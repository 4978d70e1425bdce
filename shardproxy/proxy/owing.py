"""What is known of a node that is out: keys that it and its stand-ins have to delete, and what it has missed.

Bounded: beyond its room a key is not remembered, and everything is looked through instead.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

CODE = ("functions", "scripts")  # what a node may have missed changes of
PER_KEY = 64  # bytes that a remembered key costs beside its own
KNOWN_BYTES = 32 << 10  # a key, and half a part, for the process that takes over


class Taken(NamedTuple):
    """What one worker knows of a node that is out; it has forgotten it now."""

    ghosts: Sequence[str]  # our connections that were lost with requests on them: "ID 3 ADDR 10.0.0.1:60500"
    keys: Sequence[bytes]  # written or deleted on stand-ins
    overflow: bool  # not all of them
    missed: Sequence[str] = ()  # what of CODE has changed on the others meanwhile
    unanswered: bool = False  # of a node that is up: it owes replies to what was sent before the last change


class Known(msgspec.Struct, array_like=True, frozen=True):
    """A part of what is owed, for the process that takes over. kind: "owed", "unswept", "debts"."""

    kind: str
    address: str
    keys: list[bytes] = []
    everything: bool = False
    ghosts: list[str] = []
    missed: list[str] = []
    databases: list[int] = []  # that clients have used, on any node


class Owed:
    """Keys to delete, at most `room` bytes of them; `everything`: there were more, or nobody knows."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.keys: set[bytes] = set()
        self.everything = False
        self._size = 0

    def __bool__(self) -> bool:
        return self.everything or bool(self.keys)

    def add(self, keys: Iterable[bytes], everything: bool = False) -> None:
        self.everything |= everything
        for key in keys:
            if self.everything:
                break
            if key not in self.keys:
                self.keys.add(key)
                self._size += len(key) + PER_KEY
                self.everything = self._size > self.room
        if self.everything:
            self.keys.clear()

    def merge(self, other: "Owed") -> None:
        self.add(other.keys, other.everything)


def in_parts(kind: str, address: str, owed: Owed) -> Iterator[Known]:
    """Small ones; a key that is too long for one is as one that is not remembered."""
    keys = [key for key in owed.keys if len(key) <= KNOWN_BYTES]
    yield Known(kind, address, [], owed.everything or len(keys) < len(owed.keys))
    while keys:
        part, size = 0, 0
        while part < len(keys) and (size := size + len(keys[part]) + 8) <= 2 * KNOWN_BYTES:
            part += 1
        yield Known(kind, address, keys[:part])
        keys = keys[part:]
