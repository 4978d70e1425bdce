"""Messages over all shards: redis-py's PubSub to each shard that is needed, behind one face.

A channel is subscribed to on the shard that a key of its name would live on, where publish() goes, as with
the proxy; patterns, and channels of keyspace notifications, on every shard. Messages of one channel come in
order. A shard that fails raises on the next read; on the one after it redis-py subscribes again.
"""

import select
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from redis.client import PubSub, PubSubWorkerThread
from redis.commands import list_or_args
from redis.exceptions import PubSubError

from shardproxy.client.connection import Shard
from shardproxy.client.errors import refusal
from shardproxy.core.errors import not_on_memcached

if TYPE_CHECKING:
    from shardproxy.client.sync import ShardedRedis

EVERYWHERE = (b"__keyspace@", b"__keyevent@")  # every shard tells of its own keys
LOOK = 0.05  # seconds: how long an idle wait goes on before those that were subscribed meanwhile are seen


class ShardedPubSub:
    """As redis-py's PubSub. options: its ignore_subscribe_messages and push_handler_func."""

    def __init__(self, client: "ShardedRedis", **options: Any) -> None:
        self.client, self._options = client, options
        self._parts: dict[Shard, PubSub] = {}
        self._turn = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for part in self._parts.values():
            part.close()
        self._parts.clear()

    reset = close

    def _part(self, shard: Shard) -> PubSub:
        if shard.memcached is not None:
            raise refusal(not_on_memcached("subscribe", shard.name))
        found = self._parts.get(shard)
        if found is None:
            found = self._parts[shard] = PubSub(shard.pool, **self._options)
        return found

    def _of(self, channel: Any) -> list[Shard]:
        layout = self.client.asker.layout
        name = layout.router.key(channel)
        if name.startswith(EVERYWHERE):
            return self._all()
        return [layout.shards[layout.router.locate(name)]]

    def _all(self) -> list[Shard]:
        layout = self.client.asker.layout
        ready = [shard for at, shard in enumerate(layout.shards) if at not in layout.router.absent]
        return [shard for shard in ready if shard.memcached is None]

    @property
    def subscribed(self) -> bool:
        return any(part.subscribed for part in self._parts.values())

    @property
    def channels(self) -> dict[Any, Any]:
        """Those that are subscribed to, with their handlers."""
        return {name: handler for part in self._parts.values() for name, handler in part.channels.items()}

    @property
    def patterns(self) -> dict[Any, Any]:
        return {name: handler for part in self._parts.values() for name, handler in part.patterns.items()}

    def subscribe(self, *args: Any, **handlers: Callable[[Any], Any]) -> None:
        """Channels; as keyword arguments with who handles their messages."""
        self._each("subscribe", self._of, args, handlers)

    def ssubscribe(self, *args: Any, **handlers: Callable[[Any], Any]) -> None:
        self._each("ssubscribe", self._of, args, handlers)

    def psubscribe(self, *args: Any, **handlers: Callable[[Any], Any]) -> None:
        """Patterns, on every shard whose keys are with it."""
        self._each("psubscribe", lambda pattern: self._all(), args, handlers)

    def _each(
        self, verb: str, where: Callable[[Any], list[Shard]], args: Any, handlers: dict[str, Any]
    ) -> None:
        self.client.asker.look()
        wanted: dict[Shard, tuple[list[Any], dict[str, Any]]] = {}
        for name in list_or_args(args[0], args[1:]) if args else ():
            for shard in where(getattr(name, "name", name)):  # redis-py's Subscription has its own
                wanted.setdefault(shard, ([], {}))[0].append(name)
        for name, handler in handlers.items():
            for shard in where(name):
                wanted.setdefault(shard, ([], {}))[1][name] = handler
        for shard, (names, handled) in wanted.items():
            getattr(self._part(shard), verb)(*names, **handled)

    def unsubscribe(self, *args: Any) -> None:
        """These channels, or all."""
        self._leave("unsubscribe", "channels", args)

    def sunsubscribe(self, *args: Any) -> None:
        self._leave("sunsubscribe", "shard_channels", args)

    def punsubscribe(self, *args: Any) -> None:
        self._leave("punsubscribe", "patterns", args)

    def _leave(self, verb: str, kind: str, args: Any) -> None:
        names = list_or_args(args[0], args[1:]) if args else []
        for part in self._parts.values():
            held = getattr(part, kind)
            mine = [name for name in names if next(iter(part._normalize_keys({name: None}))) in held]
            if mine or (held and not args):
                getattr(part, verb)(*mine)

    def ping(self, message: Any = None) -> None:
        """To every shard with subscriptions; each answers with a message."""
        for part in self._parts.values():
            part.ping(message)

    def get_message(self, ignore_subscribe_messages: bool = False, timeout: float | None = 0.0) -> Any:
        """The next message of any shard; None: there is none within `timeout` seconds (None: for ever)."""
        limit = None if timeout is None else time.monotonic() + timeout
        while True:
            for part in self._ready(limit):
                message = part.get_message(ignore_subscribe_messages, timeout=0)
                if message is not None:
                    return message
            if limit is not None and time.monotonic() >= limit:
                return None

    get_sharded_message = get_message

    def _ready(self, limit: float | None) -> list[PubSub]:
        """Those with something to read, another first each time; waits a while for one."""
        parts = [part for part in list(self._parts.values()) if part.connection is not None]
        left = LOOK if limit is None else min(max(limit - time.monotonic(), 0), LOOK)
        self._turn += 1
        parts = parts[(at := self._turn % max(len(parts), 1)) :] + parts[:at]
        sockets: dict[Any, PubSub] = {}
        for part in parts:
            connection: Any = part.connection
            sock = getattr(connection, "_sock", None)
            # without a socket it connects again when it is read; what was read already needs no socket
            if sock is None or connection._parser._reader.has_data():
                return [part]
            sockets[sock.fileno()] = part
        if not sockets:
            time.sleep(left)
            return []
        if hasattr(select, "poll"):
            poll = select.poll()
            for number in sockets:
                poll.register(number, select.POLLIN)
            return [sockets[number] for number, _ in poll.poll(left * 1000)]
        return [sockets[number] for number in select.select(list(sockets), [], [], left)[0]]

    def listen(self) -> Iterator[Any]:
        """Messages, as long as anything is subscribed to."""
        while self.subscribed:
            message = self.get_message(timeout=1.0)
            if message is not None:
                yield message

    def run_in_thread(
        self,
        sleep_time: float = 0.0,
        daemon: bool = False,
        exception_handler: Callable[..., Any] | None = None,
    ) -> PubSubWorkerThread:
        """A thread that runs the handlers; every channel and pattern must have one."""
        for kind, held in (("Channel", self.channels), ("Pattern", self.patterns)):
            for name, handler in held.items():
                if handler is None:
                    raise PubSubError(f"{kind}: '{name}' has no handler registered")
        thread = PubSubWorkerThread(self, sleep_time, daemon=daemon, exception_handler=exception_handler)
        thread.start()
        return thread
