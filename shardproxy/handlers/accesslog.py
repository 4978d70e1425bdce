"""What clients were refused: the entries of ACL LOG, of one worker, bounded.

The same thing refused again within a minute is the same entry, as in Redis. An entry names a key or a
channel: it is for who may run ACL LOG, and goes into no other log.
"""

from collections import deque
from typing import TYPE_CHECKING, Literal

import msgspec

from shardproxy.handlers.base import Server, gather, part
from shardproxy.handlers.client import line, record_of

if TYPE_CHECKING:
    from shardproxy.dataplane.client_handle import ClientHandle

MOST = 128  # as Redis's acllog-max-len
SAME = 60.0  # seconds
LONGEST = 1024  # bytes of a name that are kept

Reason = Literal["command", "key", "channel", "auth"]


class AccessEntry(msgspec.Struct):
    """One of ACL LOG. Times are seconds since 1970."""

    reason: Reason
    context: str  # "toplevel", "multi"
    object: bytes
    user: str
    client: str  # a line of CLIENT LIST
    created: float
    updated: float
    count: int = 1


class AccessLog:
    def __init__(self) -> None:
        self._entries: deque[AccessEntry] = deque(maxlen=MOST)

    def denied(
        self, now: float, client: "ClientHandle", user: str, reason: Reason, context: str, object: bytes
    ) -> None:
        for entry in self._entries:
            same = (entry.reason, entry.context, entry.object, entry.user) == (reason, context, object, user)
            if same and now - entry.updated < SAME:
                entry.count, entry.updated = entry.count + 1, now
                return
        text = line(record_of(client)).decode(errors="replace").rstrip("\n")
        self._entries.appendleft(AccessEntry(reason, context, object[:LONGEST], user, text, now, now))

    def entries(self) -> list[AccessEntry]:
        return list(self._entries)

    def clear(self) -> None:
        self._entries.clear()


async def all_entries(server: Server) -> list[AccessEntry]:
    """What every worker has refused, the latest first."""
    found = [entry for entries in await gather(server, "denials", list[AccessEntry]) for entry in entries]
    return sorted(found, key=lambda entry: -entry.updated)


@part("denials")
def denials(server: Server) -> list[AccessEntry]:
    return server.access_log.entries()


@part("forget denials")
def forget(server: Server) -> None:
    server.access_log.clear()
