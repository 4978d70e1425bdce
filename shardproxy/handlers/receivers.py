"""How many clients get a message, over all workers: what PUBLISH and PUBSUB NUMSUB add to what nodes count.

A node takes each worker's listener for one client. Workers tell each other of every name whose clients
change, what changes within a turn of the loop in one message, and before the client that subscribes is told.
A message of this worker's clients for a name that one of them has asked for waits until the node has
confirmed it: many publish without looking at the confirmation, and one Redis reads the SUBSCRIBE first.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from shardproxy.core import glob
from shardproxy.handlers.base import part
from shardproxy.handlers.node_listeners import CHANNEL, KINDS, PATTERN, SHARD

if TYPE_CHECKING:
    from shardproxy.handlers.base import Server

Counts = dict[bytes, int]  # name -> clients


class Receivers:
    """As one worker knows them."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.mine: tuple[Counts, ...] = ({}, {}, {})
        self.others: dict[int, tuple[Counts, ...]] = {}  # of other workers, by slot
        self.coming: tuple[Counts, ...] = ({}, {}, {})  # clients of this worker that are about to listen
        self.held: list[tuple[int, bytes, Callable[[], None]]] = []  # messages that wait for these
        # workers in which a name has more than one client, and whoever is coming: a node counts too few
        self.crowded: tuple[Counts, ...] = ({}, {}, {})
        self.changed: set[tuple[int, bytes]] = set()  # not yet told to the other workers
        self.telling: asyncio.Future[None] | None = None  # when what is in `changed` has been told

    def count(self, kind: int, name: bytes, clients: int) -> None:
        """So many of this worker listen to it now."""
        _put(self.mine[kind], name, clients)
        self._recount(kind, name)
        if self.server.shared:
            self.changed.add((kind, name))
            self._tell()

    def _recount(self, kind: int, name: bytes) -> None:
        crowded = sum(count > 1 for count in self._counts(kind, name)) + self.coming[kind].get(name, 0)
        _put(self.crowded[kind], name, crowded)
        self.server.reactor.count_receivers(
            self.crowded[CHANNEL], self.crowded[SHARD], bool(self.crowded[PATTERN])
        )

    def _counts(self, kind: int, name: bytes) -> list[int]:
        """Clients of each worker that has some."""
        return [each[kind][name] for each in (self.mine, *self.others.values()) if name in each[kind]]

    def surplus(self, kind: int, name: bytes) -> int:
        """How many clients a node does not see."""
        return sum(count - 1 for count in self._counts(kind, name))

    def of_message(self, kind: int, channel: bytes, seen: int) -> int:
        """Its receivers, when the node has counted so many."""
        if not seen:
            return 0
        found = seen + self.surplus(kind, channel)
        if kind == CHANNEL:
            for pattern in self.crowded[PATTERN]:
                if glob.matches(pattern, channel):
                    found += self.surplus(PATTERN, pattern)
        return found

    # --- those that are about to listen ---

    def expect(self, kind: int, name: bytes, change: int) -> None:
        """One more that is about to listen to it (1), or does now, or will not (-1)."""
        _put(self.coming[kind], name, self.coming[kind].get(name, 0) + change)
        held, self.held = self.held, []
        for each in held:
            self.when_heard(*each)
        self._recount(kind, name)

    def when_heard(self, kind: int, channel: bytes, send: Callable[[], None]) -> None:
        """Calls it, in order: now, or when nobody is only about to listen to this channel."""
        patterns = self.coming[PATTERN] if kind == CHANNEL else ()
        if channel in self.coming[kind] or any(glob.matches(each, channel) for each in patterns):
            self.held.append((kind, channel, send))
        else:
            send()

    # --- the other workers ---

    def _tell(self) -> None:
        if self.telling is None:
            loop = asyncio.get_running_loop()
            self.telling = loop.create_future()
            task = loop.create_task(self._tell_changed(self.telling))
            self.server.tasks.add(task)
            task.add_done_callback(self.server.tasks.discard)

    async def told(self) -> None:
        """When the other workers know what has changed."""
        if self.telling is not None:
            await asyncio.shield(self.telling)

    async def _tell_changed(self, done: asyncio.Future[None]) -> None:
        changed, self.changed, self.telling = self.changed, set(), None
        news: list[Counts] = [{}, {}, {}]
        for kind, name in changed:
            news[kind][name] = self.mine[kind].get(name, 0)
        try:
            await self.server.everywhere("subscribed", self.server.slot, news)
        finally:
            if not done.done():
                done.set_result(None)

    def heard(self, slot: int, news: list[Counts] | None) -> None:
        """From another worker; None: it has died."""
        if slot == self.server.slot:
            return
        if news is None:
            gone = self.others.pop(slot, ({}, {}, {}))
            changed = [set(names) for names in gone]
        else:
            changed = [set(names) for names in news]
            theirs = self.others.setdefault(slot, ({}, {}, {}))
            for kind in KINDS:
                for name, count in news[kind].items():
                    _put(theirs[kind], name, count)
        for kind in KINDS:
            for name in changed[kind]:
                self._recount(kind, name)


def _put(counts: Counts, name: bytes, count: int) -> None:
    """Names that nobody listens to are not kept."""
    if count:
        counts[name] = count
    else:
        counts.pop(name, None)


@part("subscribed")
def subscribed(server: "Server", slot: int, news: list[Counts] | None) -> None:
    server.subscriptions.receivers.heard(slot, news)


@part("subscriptions")
def subscriptions(server: "Server") -> tuple[int, list[Counts]]:
    """All of this worker's, for another."""
    return server.slot, list(server.subscriptions.receivers.mine)
