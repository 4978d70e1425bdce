"""Messages over all shards: redis-py's PubSub to each shard that is needed, behind one face.

A channel is subscribed to on the shard that a key of its name would live on, where publish() goes, as with
the proxy; patterns, and channels of keyspace notifications, on every shard. Messages of one channel come in
order. A shard that fails raises on the next read; on the one after it redis-py subscribes again. When keys
move to other shards, so do subscriptions, with the next read: nothing is said of it. A child of a fork
subscribes by itself: the parent's messages are the parent's.
"""

import os
import select
import time
from collections import Counter, deque
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
# What each way to subscribe is called in its commands and messages → where redis-py keeps its names
KINDS = {"": "channels", "p": "patterns", "s": "shard_channels"}


class ShardedPubSub:
    """As redis-py's PubSub. options: its ignore_subscribe_messages and push_handler_func."""

    def __init__(self, client: "ShardedRedis", **options: Any) -> None:
        self.client, self._options = client, options
        self.ignore_subscribe_messages = bool(options.pop("ignore_subscribe_messages", False))
        self._parts: dict[Shard, PubSub] = {}
        self._turn = 0
        self._layout, self._pid = client.asker.layout, os.getpid()  # where everything is placed by
        self._told: set[tuple[str, Any]] = set()  # what is subscribed to, as far as messages have said
        self._quiet: Counter[tuple[PubSub, str, Any]] = Counter()  # confirmations that nobody waits for
        # How many shards are to confirm a name, for each time that it was asked for
        self._awaited: dict[tuple[str, Any], deque[int]] = {}

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
        self._forget()

    def _forget(self) -> None:
        self._awaited.clear()
        self._told.clear()
        self._quiet.clear()

    reset = close

    def _part(self, shard: Shard) -> PubSub:
        if shard.memcached is not None:
            raise refusal(not_on_memcached("subscribe", shard.name))
        found = self._parts.get(shard)
        if found is None:
            found = self._parts[shard] = PubSub(shard.pool, **self._options)
        return found

    def _follow(self) -> None:
        """Moves subscriptions to where they belong by now. Raises when a shard cannot be reached."""
        layout = self.client.asker.layout
        forked = self._pid != os.getpid()
        if layout is self._layout and not forked:
            return
        wanted: dict[tuple[Shard, str], dict[Any, Any]] = {}
        for (prefix, name), handler in self._subscriptions().items():
            for shard in self._all() if prefix == "p" else self._of(name):
                if shard.memcached is None:
                    wanted.setdefault((shard, prefix), {})[name] = handler
        if forked:
            self._parts, self._pid = {}, os.getpid()  # what they hold of the parent's is not touched
            self._forget()
        for shard in self._parts.keys() - set(layout.shards):
            self._parts.pop(shard).close()
        for (shard, prefix), names in wanted.items():
            part, kind = self._part(shard), KINDS[prefix]
            new = names.keys() - getattr(part, kind).keys()
            self._say(part, prefix + "subscribe", new)
            getattr(part, kind).update({name: names[name] for name in new})
        for shard, part in self._parts.items():
            for prefix, kind in KINDS.items():
                gone = _held(part, kind) - wanted.get((shard, prefix), {}).keys()
                self._say(part, prefix + "unsubscribe", gone)
        self._layout = layout

    def _say(self, part: PubSub, verb: str, names: Any) -> None:
        if names:
            self._quiet.update((part, verb, name) for name in names)
            getattr(part, verb)(*names)

    def _subscriptions(self) -> dict[tuple[str, Any], Any]:
        """(prefix of the kind, name) → its handler."""
        return {
            (prefix, name): getattr(part, kind)[name]
            for part in self._parts.values()
            for prefix, kind in KINDS.items()
            for name in _held(part, kind)
        }

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

    @property
    def shard_channels(self) -> dict[Any, Any]:
        return {
            name: handler for part in self._parts.values() for name, handler in part.shard_channels.items()
        }

    @property
    def connection(self) -> Any:
        """redis-py's, where there is one shard with subscriptions; else None."""
        parts = list(self._parts.values())
        return parts[0].connection if len(parts) == 1 else None

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
        self._follow()
        wanted: dict[Shard, tuple[list[Any], dict[str, Any]]] = {}
        for name in list_or_args(args[0], args[1:]) if args else ():
            for shard in where(getattr(name, "name", name)):  # redis-py's Subscription has its own
                wanted.setdefault(shard, ([], {}))[0].append(name)
        for name, handler in handlers.items():
            for shard in where(name):
                wanted.setdefault(shard, ([], {}))[1][name] = handler
        self._await(verb, [name for names, handled in wanted.values() for name in (*names, *handled)])
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
        self._follow()
        names = list_or_args(args[0], args[1:]) if args else []
        leaving: list[tuple[PubSub, list[Any]]] = []
        for part in self._parts.values():
            held = getattr(part, kind)
            mine = [name for name in names if next(iter(part._normalize_keys({name: None}))) in held]
            if mine or (held and not args):
                leaving.append((part, mine or list(held)))
        self._await(verb, [name for _, mine in leaving for name in mine])
        for part, mine in leaving:
            getattr(part, verb)(*mine)

    def _await(self, verb: str, names: list[Any]) -> None:
        """What several shards are going to confirm is told once, when the last of them has."""
        encoder: Any = self.client.get_encoder()
        said = (encoder.decode(encoder.encode(getattr(name, "name", name))) for name in names)
        for name, count in Counter(said).items():
            self._awaited.setdefault((verb, name), deque()).append(count)

    def _confirmed(self, part: PubSub, message: Any) -> bool:
        """Whether a message is to be passed on; with its count over all shards then."""
        if not isinstance(message, dict) or not message["type"].endswith("subscribe"):
            return True
        mark = part, message["type"], message["channel"]
        if self._quiet[mark] > 0:
            self._quiet[mark] -= 1
            return False
        if not self._is_last(message):
            return False
        prefix, unsubscribed, _ = message["type"].partition("unsubscribe")
        prefix = prefix.removesuffix("subscribe")
        (self._told.discard if unsubscribed else self._told.add)((prefix, message["channel"]))
        if len(self._parts) > 1:
            message["data"] = sum((kind == "s") is (prefix == "s") for kind, _ in self._told)
        return True

    def _is_last(self, message: dict[str, Any]) -> bool:
        """All shards have confirmed it."""
        awaited = self._awaited.get((message["type"], message["channel"]))
        if not awaited:
            return True
        awaited[0] -= 1
        if awaited[0] > 0:
            return False
        awaited.popleft()
        if not awaited:
            del self._awaited[message["type"], message["channel"]]
        return True

    def ping(self, message: Any = None) -> None:
        """To every shard with subscriptions; each answers with a message."""
        for part in self._parts.values():
            part.ping(message)

    def get_message(self, ignore_subscribe_messages: bool = False, timeout: float | None = 0.0) -> Any:
        """The next message of any shard; None: there is none within `timeout` seconds (None: for ever)."""
        limit = None if timeout is None else time.monotonic() + timeout
        ignored = ignore_subscribe_messages or self.ignore_subscribe_messages
        while True:
            self.client.asker.look()
            self._follow()
            for part in self._ready(limit):
                message = part.get_message(timeout=0)
                if message is None or not self._confirmed(part, message):
                    continue
                if not (ignored and message["type"].endswith("subscribe")):
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


def _held(part: PubSub, kind: str) -> set[Any]:
    """Names that it is not about to leave."""
    return set(getattr(part, kind)) - set(getattr(part, f"pending_unsubscribe_{kind}"))
