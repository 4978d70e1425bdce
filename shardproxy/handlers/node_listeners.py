"""A worker's one connection to a node for what its clients have subscribed to, and all that is said on it.

What is asked is answered in order, between the messages: each SUBSCRIBE, UNSUBSCRIBE and PING has its place
in `waiting`. A lost connection is made again, and subscribes again: clients notice a gap. It speaks RESP2,
whose frames differ from RESP3's in their first byte alone.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from shardproxy.handlers.asking import pack

if TYPE_CHECKING:
    from shardproxy.dataplane.links import Link
    from shardproxy.handlers.subscriptions import Subscriptions

CHANNEL, PATTERN, SHARD = KINDS = (0, 1, 2)
SUBSCRIBE = (b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE")
UNSUBSCRIBE = (b"UNSUBSCRIBE", b"PUNSUBSCRIBE", b"SUNSUBSCRIBE")
# How a message begins, and of which kind it is; then comes the name
BEGINNINGS = (
    (b"*3\r\n$7\r\nmessage\r\n$", CHANNEL),
    (b"*4\r\n$8\r\npmessage\r\n$", PATTERN),
    (b"*3\r\n$8\r\nsmessage\r\n$", SHARD),
)
PING = pack("PING")
AT_ONCE = 500  # names of one request
AGAIN_FIRST, AGAIN_MOST = 0.05, 1.0  # seconds until a lost connection is tried again

# Gets an error line, or nothing; None: that node is not to be asked any more
Done = Callable[[bytes | None], None]


class Confirmation(NamedTuple):
    """What a node is to say next, besides messages."""

    frames: int
    done: Done | None
    since: float  # when it was asked


class Listener:
    """The connection to one node."""

    def __init__(self, home: "Subscriptions", number: int) -> None:
        self.home, self.number = home, number
        self.link: Link | None = None
        self.waiting: deque[Confirmation] = deque()
        self.failures = 0
        self.why = ""  # it is not there
        self.retry: asyncio.TimerHandle | None = None
        self.closed = False
        self.connect()

    def connect(self) -> None:
        """What waited for the last one is answered when this one has subscribed to everything."""
        self.retry = None
        before, self.waiting = self.waiting, deque()
        try:
            self.link = self.home.server.reactor.open_link(
                self.number, proto=2, stream=True, on_frame=self.take, on_lost=self.lost
            )
        except (ConnectionError, ValueError) as error:
            self.waiting = before
            self.again(str(error))
            return
        for kind, names in enumerate(self.home.names):
            mine = [each.name for each in names.values() if each.wanted and self.number in each.nodes]
            for at in range(0, len(mine), AT_ONCE):
                part = mine[at : at + AT_ONCE]
                self.say(pack(SUBSCRIBE[kind], *part), len(part))
        self.say(PING, done=self.is_up)
        for each in before:
            if each.done is not None:
                self.say(PING, done=each.done)

    def is_up(self, error: bytes | None) -> None:
        self.failures, self.why = 0, ""

    def say(self, request: bytes, frames: int = 1, done: Done | None = None) -> None:
        self.waiting.append(Confirmation(frames, done, self.home.now()))
        if self.link is not None:
            self.link.send(request)

    def take(self, frame: bytes) -> None:
        """From the node."""
        for beginning, kind in BEGINNINGS:
            if frame.startswith(beginning):
                self.home.message(kind, frame, len(beginning))
                return
        if not self.waiting:  # it says what nobody has asked: nothing that it says is to be trusted
            self.restart("it answers what was not asked")
            return
        frames, done, since = self.waiting.popleft()
        if frames > 1 and not frame.startswith(b"-"):
            self.waiting.appendleft(Confirmation(frames - 1, done, since))
        elif done is not None:
            done(frame if frame.startswith(b"-") else b"")

    def lost(self, why: str) -> None:
        self.link = None
        if self.retry is None and not self.closed:  # it may be told only after its end
            self.again(why)

    def again(self, why: str) -> None:
        self.why = why
        wait = min(AGAIN_FIRST * 2.0**self.failures, AGAIN_MOST)
        self.failures = min(self.failures + 1, 10)
        self.retry = asyncio.get_running_loop().call_later(wait, self.connect)

    def beat(self, patience: float) -> None:
        """One that says nothing to a PING is dead, whatever TCP thinks."""
        if self.link is None:
            return
        if self.waiting and self.waiting[0].since < self.home.now() - patience:
            self.restart("it says nothing")
        elif not self.waiting:
            self.say(PING)

    def restart(self, why: str) -> None:
        if self.link is not None:
            self.link.close()
        self.lost(why)

    def close(self) -> None:
        """Who waits for it looks where else to wait."""
        self.closed = True
        if self.retry is not None:
            self.retry.cancel()
        if self.link is not None:
            self.link.close()
            self.link = None
        for each in self.waiting:
            if each.done is not None:
                each.done(None)
        self.waiting.clear()
