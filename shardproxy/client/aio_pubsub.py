"""Messages over all shards, for asyncio: one connection to each shard that is needed, behind redis-py's face.

A channel is subscribed to on the shard that a key of its name would live on, where publish() goes, as with
the proxy; patterns, and channels of keyspace notifications, on every shard. Rules: messages wait, bounded,
until they are read, and who gives up reading loses none; a connection that is lost is made again and
subscribed again, and the next read says so once; when the ring or a node's state changes, channels move
with their shards.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from redis.commands import list_or_args
from redis.exceptions import PubSubError

from shardproxy.client import errors
from shardproxy.client.aio_connection import Connection, Lost
from shardproxy.client.aio_shard import AsyncShard
from shardproxy.client.aio_subscriber import KINDS, Kind, Part
from shardproxy.client.wire import pack
from shardproxy.core.errors import not_on_memcached

if TYPE_CHECKING:
    from shardproxy.client.aio import AsyncShardedRedis

EVERYWHERE = (b"__keyspace@", b"__keyevent@")  # every shard tells of its own keys
MOST = 1024  # messages of one pubsub that wait; beyond it the shards' sockets are not read


NOT_SUBSCRIBED = "pubsub connection not set: did you forget to call subscribe() or psubscribe()?"
_NOBODYS = object()  # a confirmation of what nobody has asked for just now
_BY_WORD = {word: kind for kind in KINDS for word in kind[1:]}


class AsyncShardedPubSub:
    """As redis-py's PubSub: subscribe, get_message, listen, run. Handlers run where messages are read."""

    def __init__(
        self,
        client: "AsyncShardedRedis",
        *,
        ignore_subscribe_messages: bool = False,
        push_handler_func: Callable[[Any], Any] | None = None,
        **_: Any,
    ) -> None:
        self.client, self._push_handler = client, push_handler_func
        self.ignore_subscribe_messages = ignore_subscribe_messages
        self.channels: dict[Any, Any] = {}  # name, as messages have it → its handler, or None
        self.patterns: dict[Any, Any] = {}
        self.shard_channels: dict[Any, Any] = {}
        self._parts: dict[AsyncShard, Part] = {}
        self._confirmed: set[tuple[str, bytes]] = set()
        # What is to be told of a name, in the order that it was asked for: subscribed to, or no more
        self._asked: dict[tuple[str, bytes], deque[bool]] = {}
        self._connected = False
        self._messages: deque[Any] = deque()
        self._some = asyncio.Event()
        self._held = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends all subscriptions; messages that have not been read are gone."""
        parts, self._parts = self._parts, {}
        self._connected = False
        for held in (self.channels, self.patterns, self.shard_channels):
            held.clear()
        for left in (self._confirmed, self._asked, self._messages):
            left.clear()
        self.client.asker.listeners.discard(self)
        for part in parts.values():
            part.close()
        if parts:
            await asyncio.wait([part.task for part in parts.values()])

    close = reset = aclose

    @property
    def subscribed(self) -> bool:
        """To anything, or the end of it has not been confirmed yet."""
        return bool(self.channels or self.patterns or self.shard_channels or self._confirmed)

    async def connect(self) -> None:
        """Returns when there is a connection to each shard with subscriptions. Raises ShardDownError."""
        await self.client.asker.ready()
        self._connected = True
        for part in list(self._parts.values()):
            why = await part.tried()
            if why is not None and part.connection is None:
                raise errors.down(part.shard.name, part.shard.address, why.reason)

    @property
    def connection(self) -> Connection | None:
        """The only one, where there is one shard with subscriptions; it has `disconnect`, as redis-py's."""
        parts = list(self._parts.values())
        return parts[0].connection if len(parts) == 1 else None

    # --- subscribing ---

    async def subscribe(self, *args: Any, **handlers: Callable[[Any], Any]) -> None:
        """Channels; as keyword arguments with who handles their messages. Raises ShardDownError."""
        await self._join(KINDS[0], args, handlers)

    async def psubscribe(self, *args: Any, **handlers: Callable[[Any], Any]) -> None:
        """Patterns, on every shard whose keys are with it."""
        await self._join(KINDS[1], args, handlers)

    async def ssubscribe(self, *args: Any, **handlers: Callable[[Any], Any]) -> None:
        await self._join(KINDS[2], args, handlers)

    async def unsubscribe(self, *args: Any) -> None:
        """These channels, or all."""
        self._leave(KINDS[0], args)

    async def punsubscribe(self, *args: Any) -> None:
        self._leave(KINDS[1], args)

    async def sunsubscribe(self, *args: Any) -> None:
        self._leave(KINDS[2], args)

    async def _join(self, kind: Kind, args: Any, handlers: dict[str, Any]) -> None:
        asker = self.client.asker
        await asker.ready()
        names: dict[bytes, Any] = {}
        for each in list_or_args(args[0], args[1:]) if args else ():
            # redis-py's Subscription has a name and a handler
            names[self._key(getattr(each, "name", each))] = getattr(each, "handler", None)
        names |= {self._key(name): handler for name, handler in handlers.items()}
        layout = asker.layout
        for name in names:
            shard = layout.shards[layout.router.locate(name)]
            if shard.memcached is not None and kind.name != "patterns" and not name.startswith(EVERYWHERE):
                raise errors.refusal(not_on_memcached(kind.subscribe, shard.name))
        asker.listeners.add(self)
        held: dict[Any, Any] = getattr(self, kind.name)
        before = dict(held)
        held.update({self._shown(name): handler for name, handler in names.items()})
        self.ask(kind, [name for name in names if self._shown(name) not in before], True)
        self.moved()
        for part in [part for part in self._parts.values() if part.wanted[kind.name] & names.keys()]:
            why = await part.tried()
            if why is not None and part.connection is None:
                for name in names:
                    if self._shown(name) not in before:
                        held.pop(self._shown(name), None)
                        self._asked.pop((kind.name, name), None)
                self.moved()
                raise errors.down(part.shard.name, part.shard.address, why.reason)

    def _leave(self, kind: Kind, args: Any) -> None:
        held: dict[Any, Any] = getattr(self, kind.name)
        given = list_or_args(args[0], args[1:]) if args else list(held)
        for name in map(self._key, given):
            if self._shown(name) in held:
                del held[self._shown(name)]
                self.ask(kind, [name], False)
        self.moved()

    def ask(self, kind: Kind, names: Iterable[bytes], subscribed: bool) -> None:
        """The next confirmation of these is told."""
        for name in names:
            self._asked.setdefault((kind.name, name), deque()).append(subscribed)

    def again(self, kind: Kind, names: Iterable[bytes]) -> None:
        """They are subscribed to anew, after a connection was lost: told as redis-py does."""
        self._confirmed -= {(kind.name, name) for name in names}
        self.ask(kind, names, True)

    async def ping(self, message: Any = None) -> None:
        """To every shard with subscriptions; each answers with a message."""
        request = pack(("PING",) if message is None else ("PING", message))
        for part in self._parts.values():
            if part.connection is not None:
                part.connection.tell(request)

    def _key(self, name: Any) -> bytes:
        return self.client.asker.layout.router.key(name)

    def _shown(self, name: bytes) -> Any:
        """A name as it is in messages."""
        return self.client.asker.coding.encoder.decode(name)  # type: ignore[no-untyped-call]  # redis-py's

    def moved(self) -> None:
        """Every name is subscribed to where it belongs now, and nowhere else."""
        layout = self.client.asker.layout
        router = layout.router
        shards: list[Any] = layout.shards
        everywhere = [
            shard for at, shard in enumerate(shards) if at not in router.absent and shard.memcached is None
        ]
        wanted: dict[AsyncShard, dict[str, set[bytes]]] = {}
        for kind in KINDS:
            for shown in getattr(self, kind.name):
                name = self._key(shown)
                wide = kind.name == "patterns" or name.startswith(EVERYWHERE)
                if not wide and shards[router.locate(name)].memcached is not None:
                    continue
                for shard in everywhere if wide else [shards[router.locate(name)]]:
                    wanted.setdefault(shard, {}).setdefault(kind.name, set()).add(name)
        for shard, names in wanted.items():
            part = self._parts.get(shard)
            if part is None:
                part = self._parts[shard] = Part(self, shard)
            for kind in KINDS:
                part.want(kind, names.get(kind.name, ()))
        for shard, part in list(self._parts.items()):
            mine = wanted.get(shard, {})
            for kind in KINDS:
                part.leave(kind, part.wanted[kind.name] - mine.get(kind.name, set()))
            if part.idle and (shard not in shards or part.connection is None):
                part.close()
                del self._parts[shard]
                self._prune()

    def _prune(self) -> None:
        """What was left and will not be confirmed any more."""
        self._confirmed = {mark for mark in self._confirmed if self._wanted(mark)}
        for mark in [mark for mark in self._asked if not self._wanted(mark)]:
            del self._asked[mark]
        for mark, asked in self._asked.items():  # what there was in between is over
            self._asked[mark] = deque([asked[-1]])

    def _wanted(self, mark: tuple[str, bytes]) -> bool:
        return self._shown(mark[1]) in getattr(self, mark[0])

    # --- reading ---

    def heard(self, frame: Any) -> None:
        self._put(frame)

    def failed(self, part: Part, why: Lost) -> None:
        """A connection was lost: whoever reads is told, once."""
        self._prune()
        if not part.idle and not isinstance(self._messages[-1] if self._messages else None, Exception):
            self._put(errors.down(part.shard.name, part.shard.address, why.reason))

    def _put(self, what: Any) -> None:
        self._messages.append(what)
        self._some.set()
        if len(self._messages) >= MOST and not self._held:
            self._hold(True)

    def _hold(self, held: bool) -> None:
        self._held = held
        for part in self._parts.values():
            if part.connection is not None:
                part.connection.hold(held)

    def hold(self, connection: Connection) -> None:
        """A new connection: it is not read either, if the others are not."""
        if self._held:
            connection.hold(True)

    async def get_message(
        self, ignore_subscribe_messages: bool = False, timeout: float | None = 0.0
    ) -> dict[str, Any] | None:
        """The next message of any shard; None: there is none within `timeout` seconds (None: for ever).

        Also None, as with redis-py, when a handler has taken one. Raises ShardDownError when a connection was
        lost; it is made again without being asked to.
        """
        if not (self._connected or self._parts or self._messages):
            raise RuntimeError(NOT_SUBSCRIBED)
        quiet = ignore_subscribe_messages or self.ignore_subscribe_messages
        found: Any = _NOBODYS
        try:
            async with asyncio.timeout(timeout):
                while found is _NOBODYS:
                    while not self._messages:
                        self._some.clear()
                        await self._some.wait()
                    frame = self._messages.popleft()
                    found = self._message(frame, quiet)
        except TimeoutError:
            return None
        if self._held and len(self._messages) < MOST // 2:
            self._hold(False)
        if isinstance(found, Exception):
            raise found
        if self._push_handler is not None:
            value = self._push_handler(frame)
            if inspect.isawaitable(value):
                await value
            return None
        if found is None or (handler := self._handler(found)) is None:
            return found  # type: ignore[no-any-return]  # None, or what _message has made
        value = handler(found)
        if inspect.isawaitable(value):
            await value
        return None

    def _handler(self, message: dict[str, Any]) -> Any:
        kind = _BY_WORD.get(message["type"])
        if kind is None or message["type"] != kind.message:
            return None
        return getattr(self, kind.name).get(
            message["pattern"] if kind.name == "patterns" else message["channel"]
        )

    def _message(self, frame: Any, quiet: bool) -> Any:
        """As redis-py's, None for one that is not wanted; _NOBODYS for one of our own; an exception."""
        if isinstance(frame, Exception):
            return frame
        if isinstance(frame, (bytes, str)):  # RESP3's answer to PING
            frame = ["pong", frame if frame not in (b"PONG", "PONG") else type(frame)()]
        word = frame[0].decode() if isinstance(frame[0], bytes) else str(frame[0])
        kind = _BY_WORD.get(word)
        if kind is None:
            return {
                "type": word,
                "pattern": None,
                "channel": None,
                "data": frame[1] if len(frame) > 1 else b"",
            }
        if word == kind.message:
            pattern = frame[1] if kind.name == "patterns" else None
            return {"type": word, "pattern": pattern, "channel": frame[-2], "data": frame[-1]}
        count = self._count(kind, word, frame[1])
        if count is None:
            return _NOBODYS
        return None if quiet else {"type": word, "pattern": None, "channel": frame[1], "data": count}

    def _count(self, kind: Kind, word: str, shown: Any) -> int | None:
        """How many subscriptions there are after this; None: it changes nothing that was asked for."""
        mark = kind.name, self._key(shown) if shown is not None else b""
        subscribed = word == kind.subscribe
        asked = self._asked.get(mark)
        if not asked or asked[0] is not subscribed:
            return None
        asked.popleft()
        if not asked:
            del self._asked[mark]
        (self._confirmed.add if subscribed else self._confirmed.discard)(mark)
        sharded = kind.name == "shard_channels"
        return sum((name == "shard_channels") is sharded for name, _ in self._confirmed)

    async def listen(self) -> AsyncIterator[dict[str, Any]]:
        """Messages, as long as anything is subscribed to."""
        while self.subscribed or self._messages:
            message = await self.get_message(timeout=1.0 if self.subscribed else 0.0)
            if message is not None:
                yield message

    async def run(
        self, *, exception_handler: Callable[..., Any] | None = None, poll_timeout: float = 1.0
    ) -> None:
        """Runs the handlers until it is cancelled; every channel and pattern must have one."""
        for kind, held in (("Channel", self.channels), ("Pattern", self.patterns)):
            for name, handler in held.items():
                if handler is None:
                    raise PubSubError(f"{kind}: '{name}' has no handler registered")
        await self.connect()
        while True:
            try:
                await self.get_message(ignore_subscribe_messages=True, timeout=poll_timeout)
            except Exception as error:
                if exception_handler is None:
                    raise
                handled = exception_handler(error, self)
                if inspect.isawaitable(handled):
                    await handled
            await asyncio.sleep(0)  # who cancels it has a turn, whatever fails
