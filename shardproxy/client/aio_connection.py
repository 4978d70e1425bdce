"""One socket to one node for asyncio: what is asked in one turn of the loop goes out in one write.

Owns: bytes out, replies in, and whose each reply is: the FIFO `owed` has a place for every reply that the
node still owes, in order. A place is never taken back: who was cancelled or timed out has left it, and its
reply is thrown away when it comes. Rules: a waiter is given every outcome as a *result*, so that nothing is
logged of one who has left; `Lost` says whether the node may have seen the request; nothing is written
before the greeting is answered; a connection that owes replies and brings nothing for `patience` seconds is
aborted.

    request ──▶ out ─┐ (one call of flush a turn)          ┌──▶ future
    future  ──▶ owed ┴──▶ transport ··· node ··· data_received ─ Many ──▶ list of n replies
"""

import asyncio
import select
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeAlias

import hiredis
from redis.exceptions import InvalidResponse, RedisError

from shardproxy.client.wire import NOTHING, Push

QUIET = 0.02  # seconds after which an idle connection is looked at before it is written to
RDHUP = getattr(select, "POLLRDHUP", None)  # Linux
CLOSED = "the node closed the connection"
Waiter: TypeAlias = "asyncio.Future[Any]"
Dial: TypeAlias = Callable[[Callable[[], asyncio.Protocol]], Awaitable[object]]


class Lost(Exception):
    """The connection is gone, or the time is over, before the reply came.

    sent: the node may have read the request. late: the connection is well, the reply may still come. slow: it
    could not be connected to in time. error: what the node said against the greeting.
    """

    def __init__(
        self,
        reason: str,
        sent: bool,
        late: bool = False,
        error: RedisError | None = None,
        slow: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason, self.sent, self.late, self.error, self.slow = reason, sent, late, error, slow


class Owner(Protocol):
    """Who is told what becomes of a connection. slow_call: seconds, after which an answer is a slow one."""

    slow_call: float

    def heard(self, count: int, slow: int) -> None:
        """So many were answered; slow: of these."""

    def late(self) -> None:
        """Some were not, in time."""

    def failed(self, reason: str) -> None:
        """A connection was lost while it owed replies."""

    def closed(self, connection: "Connection") -> None:
        """It is of no more use."""


class Many:
    """A place for several replies, for one waiter: errors among them are items of its list."""

    __slots__ = ("decode", "future", "lasting", "left", "replies")

    def __init__(self, future: Waiter, count: int, decode: bool = True, lasting: bool = False) -> None:
        self.future, self.left, self.decode = future, count, decode
        self.lasting = lasting  # who waits looks after the time itself
        self.replies: list[Any] = []

    def done(self) -> bool:
        return self.future.done()

    def set_result(self, result: Any) -> None:
        self.future.set_result(result)


class Connection(asyncio.Protocol):
    """timeout: seconds for a request, from when it is written; None: any. pushed: gets what nobody asked for.

    listener: gets every frame after the greeting: what is told to the node has no replies (a subscriber's).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reader: hiredis.Reader,
        owner: Owner,
        *,
        timeout: float | None = None,
        patience: float | None = None,
        pushed: Callable[[Any], None] | None = None,
        listener: Callable[[Any], None] | None = None,
    ) -> None:
        self.loop, self.owner, self.timeout, self.patience = loop, owner, timeout, patience
        self.lost: str | None = None  # why it is of no more use
        self.error: RedisError | None = None  # what the node said against the greeting
        self.slow = False  # it could not be connected to in time
        self.disconnected = False  # by who uses it
        self.ended: Callable[[], None] | None = None  # called when it is lost
        self.up = False  # the greeting was answered: requests may be written
        self.owed: deque[Waiter | Many] = deque()
        self.out: list[bytes] = []
        self.paused = False
        self._room: list[Waiter] = []  # who waits for the transport to take more
        self._greeting: deque[Waiter | Many] | None = None
        self._transport: asyncio.Transport | None = None
        self._feed, self._gets = reader.feed, reader.gets
        self._pushed, self._listener = pushed, listener
        self._unsent = 0  # of those at the end of owed
        self._sent = self._got = 0  # places, since it began
        self._due: deque[tuple[float, int]] = deque()  # (when, the places up to here are late)
        self._soon: deque[tuple[float, int]] = deque()  # the same: they are slow
        self._slow = 0  # the places up to here are
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0.0  # when something came, or was asked of an idle one
        self._poll: Any = None

    # --- its beginning and end ---

    async def open(self, dial: Dial, greeting: Sequence[bytes], check: Callable[[list[Any]], None]) -> None:
        """Connects and greets; then what has been asked meanwhile is written. Who calls limits the time.

        Raises what dial and check do (RedisError: what the node said), and Lost; it is closed then. Who
        cancels it closes it, and says why.
        """
        try:
            await dial(lambda: self)
            if greeting:
                waiter = self.loop.create_future()
                self._greeting = deque([Many(waiter, len(greeting))])
                assert self._transport is not None
                self._transport.write(b"".join(greeting))
                replies = await waiter
                if isinstance(replies, Lost):
                    raise replies
                check(replies)
                self._greeting = None
        except Exception as error:
            self.close(str(error) or type(error).__name__, error if isinstance(error, RedisError) else None)
            raise
        if self.lost is not None:
            raise Lost(self.lost, False)
        self.up = True
        if self.out:
            self.flush()

    def close(self, reason: str, error: RedisError | None = None, fault: bool = False) -> None:
        """At once; whoever waits is told. fault: the node's, or the network's."""
        if self.lost is not None:
            return
        self.lost, self.error = reason, error
        self.up = False
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        if self._greeting:
            self._answer(self._greeting.popleft(), Lost(reason, False, error=error))
        sent = len(self.owed) - self._unsent
        for number, place in enumerate(self.owed):
            self._answer(place, Lost(reason, number < sent, error=error, slow=self.slow))
        self.owed.clear()
        self.out.clear()
        self.resume_writing()
        self.owner.closed(self)
        if self.ended is not None:
            self.ended()
        if fault and sent:
            self.owner.failed(reason)

    @property
    def is_connected(self) -> bool:
        return self.up

    async def disconnect(self, *_: Any, **__: Any) -> None:
        """As of redis-py's connections, for who has one in his hands: a subscriber's."""
        self.disconnected = True
        self.close("it was disconnected")

    @staticmethod
    def _answer(place: "Waiter | Many", result: Any) -> None:
        if not place.done():
            place.set_result(result)

    # --- asking ---

    def ask(self, request: bytes) -> Waiter:
        """One request; its reply, or Lost."""
        waiter = self.loop.create_future()
        if self.lost is not None:
            waiter.set_result(Lost(self.lost, False))
            return waiter
        self.owed.append(waiter)
        self._unsent += 1
        if not self.out and self.up:
            self.loop.call_soon(self.flush)
        self.out.append(request)
        return waiter

    def ask_many(self, requests: bytes, count: int, decode: bool = True, lasting: bool = False) -> Waiter:
        """So many requests; the list of their replies, or Lost. lasting: no timeout but the waiter's own."""
        waiter = self.loop.create_future()
        if self.lost is not None:
            waiter.set_result(Lost(self.lost, False))
            return waiter
        self.owed.append(Many(waiter, count, decode, lasting))
        self._unsent += 1
        if not self.out and self.up:
            self.loop.call_soon(self.flush)
        self.out.append(requests)
        return waiter

    def tell(self, request: bytes) -> None:
        """With a listener: no reply is waited for. Nothing happens when it is not up."""
        if self.up and self._transport is not None:
            self._transport.write(request)

    def hold(self, held: bool) -> None:
        """Reads no more, or again."""
        if self._transport is not None and self.lost is None:
            (self._transport.pause_reading if held else self._transport.resume_reading)()

    async def room(self) -> None:
        """Returns when the transport takes more."""
        while self.paused and self.lost is None:
            waiter = self.loop.create_future()
            self._room.append(waiter)
            await waiter

    def flush(self) -> None:
        if not self.up or not self.out:
            return
        assert self._transport is not None
        now = self.loop.time()
        if self._sent == self._got:
            if now - self._last > QUIET and self._gone():
                self.close(CLOSED)
                return
            self._last = now
        self._transport.write(self.out[0] if len(self.out) == 1 else b"".join(self.out))
        self.out.clear()
        self._sent += self._unsent
        self._unsent = 0
        if self.timeout is not None or self.patience is not None:
            if self.timeout is not None:
                self._due.append((now + self.timeout, self._sent))
                self._soon.append((now + self.owner.slow_call, self._sent))
            if self._timer is None:
                self._set_timer(now)

    def _gone(self) -> bool:
        """The node has closed it, and the loop has not said so yet: what is written now would be lost."""
        assert self._transport is not None
        if RDHUP is None or (sock := self._transport.get_extra_info("socket")) is None:
            return False
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(sock.fileno(), RDHUP)
        return bool(self._poll.poll(0))

    # --- time ---

    def _set_timer(self, now: float) -> None:
        ends = [when[0][0] for when in (self._due, self._soon) if when]
        if self.patience is not None:
            ends.append(self._last + self.patience)
        self._timer = self.loop.call_at(max(min(ends), now), self._look) if ends else None

    def _look(self) -> None:
        """At those whose time is over. Once a timeout, not once a request."""
        self._timer = None
        now, late = self.loop.time(), False
        while self._soon and (self._soon[0][1] <= self._got or self._soon[0][0] <= now):
            _, upto = self._soon.popleft()
            if upto > self._got:
                # in two turns: if the loop was late, what has come meanwhile is read before
                self.loop.call_soon(self.loop.call_soon, self._are_slow, upto)
        while self._due and (self._due[0][1] <= self._got or self._due[0][0] <= now):
            _, upto = self._due.popleft()
            for number in range(upto - self._got):
                place = self.owed[number]
                if not (place.done() or (isinstance(place, Many) and place.lasting)):
                    place.set_result(Lost("no answer in time", True, late=True))
                    late = True
        if late:
            self.owner.late()
        if self._got == self._sent:
            return
        if self.patience is not None and now >= self._last + self.patience:
            if not all(isinstance(place, Many) and place.lasting for place in self.owed):
                self.close(f"it owes replies and has brought nothing for {self.patience:g} s", fault=True)
                return
            self._last = now
        self._set_timer(now)

    def _are_slow(self, upto: int) -> None:
        self._slow = max(self._slow, upto)

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self.lost is not None:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.lost is not None:
            return
        self._last = self.loop.time()
        owed = self.owed if self._greeting is None else self._greeting
        gets, got, long = self._gets, 0, 0
        try:
            self._feed(data)
            if self._listener is not None and self._greeting is None:
                self._listen(self._listener)
                return
            while owed:
                place = owed[0]
                if place.__class__ is Many:
                    try:
                        reply = gets(place.decode)
                    except UnicodeError as error:  # it has been read to its end
                        reply = error
                    if reply is NOTHING:
                        break
                    if reply.__class__ is Push:
                        self._push(reply)
                        continue
                    place.replies.append(reply)
                    place.left -= 1
                    if place.left:
                        continue
                    reply = place.replies
                    long += len(reply) > 1
                else:
                    try:
                        reply = gets()
                    except UnicodeError as error:
                        reply = error
                    if reply is NOTHING:
                        break
                    if reply.__class__ is Push:
                        self._push(reply)
                        continue
                owed.popleft()
                got += 1
                if not place.done():
                    place.set_result(reply)
            else:
                self._unasked()
        except InvalidResponse as error:
            self.close(f"it does not speak RESP ({error})", fault=True)
            return
        except Exception as error:  # the reader has lost its place
            self.close(f"a reply could not be read ({type(error).__name__})")
            return
        if got and owed is self.owed:
            slow = min(self._slow - self._got, got) - long  # pipelines may take their time
            self._got += got
            self.owner.heard(got, max(slow, 0))

    def _listen(self, listener: Callable[[Any], None]) -> None:
        frame: Any = None
        while frame is not NOTHING:
            try:
                frame = self._gets()
            except UnicodeError as error:
                frame = error
            if frame is not NOTHING:
                listener(frame)

    def _unasked(self) -> None:
        """Nothing is owed: what comes is a push, or nobody's."""
        while (reply := self._gets()) is not NOTHING:
            if reply.__class__ is not Push:
                self.close("it sent a reply that nobody has asked for", fault=True)
                return
            self._push(reply)

    def _push(self, message: Any) -> None:
        if self._pushed is not None:
            self._pushed(message)

    def eof_received(self) -> None:
        self.close(CLOSED, fault=True)

    def connection_lost(self, error: Exception | None) -> None:
        why = getattr(error, "strerror", None) or str(error) if error else CLOSED
        self.close(why, fault=True)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        waiting, self._room = self._room, []
        for waiter in waiting:
            self._answer(waiter, None)
