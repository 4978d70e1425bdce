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
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from redis.commands import list_or_args
from redis.exceptions import PubSubError

from shardproxy.client import errors
from shardproxy.client.aio_connection import Connection, Lost
from shardproxy.client.aio_shard import AsyncShard
from shardproxy.client.wire import pack
from shardproxy.core.errors import not_on_memcached

if TYPE_CHECKING:
    from shardproxy.client.aio import AsyncShardedRedis

EVERYWHERE = (b"__keyspace@", b"__keyevent@")  # every shard tells of its own keys
MOST = 1024  # messages of one pubsub that wait; beyond it the shards' sockets are not read
AGAIN, AGAIN_MOST = 0.05, 2.0  # seconds until a lost connection is made again


class Kind(NamedTuple):
    """One of the three ways to subscribe."""

    name: str
    subscribe: str
    unsubscribe: str
    message: str


KINDS = (
    Kind("channels", "subscribe", "unsubscribe", "message"),
    Kind("patterns", "psubscribe", "punsubscribe", "pmessage"),
    Kind("shard_channels", "ssubscribe", "sunsubscribe", "smessage"),
)
_NOBODYS = object()  # a confirmation of what nobody has asked for just now
_BY_WORD = {word: kind for kind in KINDS for word in kind[1:]}


class _Part:
    """What is subscribed to on one shard, and the task that keeps it so."""

    def __init__(self, owner: "AsyncShardedPubSub", shard: AsyncShard) -> None:
        self.owner, self.shard = owner, shard
        self.wanted: dict[str, set[bytes]] = {kind.name: set() for kind in KINDS}
        self.connection: Connection | None = None
        self._tried: asyncio.Future[Lost | None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.get_running_loop().create_task(self._keep())

    @property
    def idle(self) -> bool:
        return not any(self.wanted.values())

    def want(self, kind: Kind, names: Collection[bytes]) -> None:
        new = set(names) - self.wanted[kind.name]
        self.wanted[kind.name] |= new
        if new and self.connection is not None:
            self.connection.tell(pack((kind.subscribe.upper(), *new)))

    def leave(self, kind: Kind, names: Iterable[bytes]) -> None:
        gone = self.wanted[kind.name] & set(names)
        self.wanted[kind.name] -= gone
        if gone and self.connection is not None:
            self.connection.tell(pack((kind.unsubscribe.upper(), *gone)))

    async def tried(self) -> Lost | None:
        """Once the first connection is there, or why it is not."""
        return await asyncio.shield(self._tried)

    async def _keep(self) -> None:
        wait = AGAIN
        while True:
            lost: asyncio.Event = asyncio.Event()
            try:
                connection = await self.shard.listening(self._hear)
            except Lost as why:
                self._report(why)
            else:
                wait = AGAIN
                connection.ended = lost.set
                self.connection = connection
                for kind in KINDS:
                    if names := self.wanted[kind.name]:
                        connection.tell(pack((kind.subscribe.upper(), *names)))
                if not self._tried.done():
                    self._tried.set_result(None)
                self.owner.hold(connection)
                await lost.wait()
                self.connection = None
                self._report(Lost(connection.lost or "", True))
            await asyncio.sleep(wait)
            wait = min(2 * wait, AGAIN_MOST)

    def _report(self, why: Lost) -> None:
        if not self._tried.done():
            self._tried.set_result(why)
        else:
            self.owner.failed(self, why)

    def _hear(self, frame: Any) -> None:
        self.owner.heard(frame)

    def close(self) -> None:
        self.task.cancel()
        if self.connection is not None:
            self.connection.close("not subscribed any more")


class AsyncShardedPubSub:
    """As redis-py's PubSub: subscribe, get_message, listen, run. Handlers run where messages are read."""

    def __init__(
        self, client: "AsyncShardedRedis", *, ignore_subscribe_messages: bool = False, **_: Any
    ) -> None:
        self.client = client
        self.ignore_subscribe_messages = ignore_subscribe_messages
        self.channels: dict[Any, Any] = {}  # name, as messages have it → its handler, or None
        self.patterns: dict[Any, Any] = {}
        self.shard_channels: dict[Any, Any] = {}
        self._parts: dict[AsyncShard, _Part] = {}
        self._confirmed: set[tuple[str, bytes]] = set()
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
        for held in (self.channels, self.patterns, self.shard_channels, self._confirmed, self._messages):
            held.clear()
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
        self.moved()
        for part in [part for part in self._parts.values() if part.wanted[kind.name] & names.keys()]:
            why = await part.tried()
            if why is not None and part.connection is None:
                for name in names:
                    if self._shown(name) not in before:
                        held.pop(self._shown(name), None)
                self.moved()
                raise errors.down(part.shard.name, part.shard.address, why.reason)

    def _leave(self, kind: Kind, args: Any) -> None:
        held: dict[Any, Any] = getattr(self, kind.name)
        given = list_or_args(args[0], args[1:]) if args else list(held)
        for name in given:
            held.pop(self._shown(self._key(name)), None)
        self.moved()

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
                part = self._parts[shard] = _Part(self, shard)
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
        self._confirmed = {
            (kind, name) for kind, name in self._confirmed if self._shown(name) in getattr(self, kind)
        }

    # --- reading ---

    def heard(self, frame: Any) -> None:
        self._put(frame)

    def failed(self, part: _Part, why: Lost) -> None:
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
        quiet = ignore_subscribe_messages or self.ignore_subscribe_messages
        found: Any = _NOBODYS
        try:
            async with asyncio.timeout(timeout):
                while found is _NOBODYS:
                    while not self._messages:
                        self._some.clear()
                        await self._some.wait()
                    found = self._message(self._messages.popleft(), quiet)
        except TimeoutError:
            return None
        if self._held and len(self._messages) < MOST // 2:
            self._hold(False)
        if isinstance(found, Exception):
            raise found
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
        if (mark in self._confirmed) is subscribed or (shown in getattr(self, kind.name)) is not subscribed:
            return None
        (self._confirmed.add if subscribed else self._confirmed.discard)(mark)
        return len(self._confirmed)

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
        while True:
            try:
                await self.get_message(ignore_subscribe_messages=True, timeout=poll_timeout)
            except Exception as error:
                if exception_handler is None:
                    raise
                handled = exception_handler(error, self)
                if inspect.isawaitable(handled):
                    await handled
