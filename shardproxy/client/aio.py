"""`AsyncShardedRedis`: redis-py's asyncio commands on the shards of a ring, each key where the proxy puts it.

    client = AsyncShardedRedis({"a": "redis://10.0.0.1", "b": "redis://10.0.0.2"}, decode_responses=True)
    await client.set("user:1", "Ada"); await asyncio.gather(*(client.get(key) for key in keys))

Calls that wait at the same time share a connection to each shard, and what they ask in one turn of the loop
goes out in one write. The way of a plain command is here; what asks several shards, or goes wrong, is in
`aio_asking`. A client belongs to one event loop at a time: used in another one, when its own has ended, it
connects again; while its own runs (in another thread) it raises RuntimeError. It connects when it is first
used.
"""

import asyncio
import inspect
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import redis.asyncio
from redis._parsers.encoders import Encoder
from redis.asyncio.client import Monitor
from redis.asyncio.lock import Lock
from redis.commands import AsyncCoreCommands, AsyncRedisModuleCommands
from redis.commands.core import AsyncScript
from redis.exceptions import LockError, ResponseError, WatchError

from shardproxy.client.aio_asking import AsyncAsker
from shardproxy.client.aio_connection import Lost
from shardproxy.client.base import Batch
from shardproxy.client.errors import PartialError, refusal
from shardproxy.client.follower import AsyncFollower, settings_of
from shardproxy.client.following import Following, read_url
from shardproxy.client.health import Transition
from shardproxy.client.naming import async_redis_of
from shardproxy.client.settings import Settings
from shardproxy.client.sync import CACHE_LOCK, EMPTY_RESPONSE, NEVER_DECODE, OURS, Located, observed
from shardproxy.config import Config
from shardproxy.core.errors import not_supported
from shardproxy.core.topology import Topology

if TYPE_CHECKING:
    from shardproxy.client.aio_pipeline import AsyncShardedPipeline
    from shardproxy.client.aio_pubsub import AsyncShardedPubSub
    from shardproxy.client.telemetry import Telemetry

get_running_loop = asyncio.get_running_loop
_UNKNOWN = object()


class AsyncShardedScript(AsyncScript):
    """As redis-py's; it survives the restart of nodes."""

    async def __call__(self, keys: Any = None, args: Any = None, client: Any = None) -> Any:
        client = self.registered_client if client is None else client
        keys, args = tuple(keys or ()), tuple(args or ())
        if not hasattr(client, "asker"):
            return await super().__call__(keys, args, client)
        client.asker.scripts.remember(self.sha, self.script)
        found = client.evalsha(self.sha, len(keys), *keys, *args)
        return await found if inspect.isawaitable(found) else found


class AsyncShardedRedis(AsyncRedisModuleCommands, AsyncCoreCommands):  # type: ignore[misc]  # partly untyped mixins
    """A client of all shards of one pool, for asyncio.

    shards, pool, on_transition, telemetry and redis-py's settings: as `ShardedRedis`. probe: nodes are probed
    by a task while the client is in use. pipelining: calls share a connection to each shard; False: each has
    one alone, as with redis-py. Raises ConfigError.
    """

    _is_async_client: Literal[True] = True
    _event_dispatcher: Any = None

    def __init__(
        self,
        shards: Mapping[str, str | Mapping[str, Any]] | Settings,
        *,
        pool: Mapping[str, Any] | None = None,
        on_transition: Callable[[Transition], None] | None = None,
        probe: bool = False,
        telemetry: "bool | Telemetry" = False,
        pipelining: bool = True,
        **redis_settings: Any,
    ) -> None:
        if isinstance(shards, Settings):
            settings = shards
        else:
            settings = Settings.from_shards(shards, redis_settings, **(pool or {}))
        name, address = next((shard.name, shard.node.address) for shard in settings.pool.shards)
        # checks its settings, and never connects
        redis_py: Any = async_redis_of(settings.reach(name, address))
        self.asker = AsyncAsker(settings, on_transition, pipelining=pipelining)
        self._pack, self._large = self.asker.pack, self.asker.large
        self.response_callbacks: Any = redis_py.response_callbacks
        self._callbacks: dict[Any, Any] = {}  # by a command's name as it is written: a quicker look
        if probe:
            self.asker.probe()
        if telemetry:
            observed(self, telemetry)

    @classmethod
    def from_config(
        cls,
        source: str | os.PathLike[str] | bytes | Config,
        *,
        pool: str | None = None,
        on_transition: Callable[[Transition], None] | None = None,
        probe: bool = False,
        telemetry: "bool | Telemetry" = False,
        pipelining: bool = True,
        **redis_settings: Any,
    ) -> Self:
        """Of the proxy's own file, or its text. pool: its name, if there are several. Raises ConfigError."""
        settings = Settings.from_config(source, pool, **redis_settings)
        return cls(
            settings, on_transition=on_transition, probe=probe, telemetry=telemetry, pipelining=pipelining
        )

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        on_transition: Callable[[Transition], None] | None = None,
        telemetry: "bool | Telemetry" = False,
        pipelining: bool = True,
        **redis_settings: Any,
    ) -> Self:
        """Follows running proxies: "shardproxy://[USER:PASSWORD@]HOST[:PORT][,HOST...]"; shardproxys: TLS.

        Shards and the states of their nodes are what the proxies say, from the first call on. The URL's login
        is for the proxies; the nodes' is in redis_settings. Raises ValueError.
        """
        proxies = read_url(url)
        client = cls(
            settings_of(redis_settings),
            on_transition=on_transition,
            telemetry=telemetry,
            pipelining=pipelining,
        )
        following = Following(proxies, random.randrange(len(proxies.addresses)))
        client.asker.watcher = AsyncFollower(following, redis_settings, client.asker.follow)
        return client

    def __repr__(self) -> str:
        shards = ", ".join(f"{shard.name}={shard.address}" for shard in self.asker.layout.shards)
        return f"<{type(self).__name__} {self.asker.settings.pool_name}: {shards}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes its connections; whoever still waits gets an error. Used again, it connects again."""
        await self.asker.aclose()

    close = aclose  # redis-py's older name

    # --- the hot path ---

    async def execute_command(self, *args: Any, keys: Any = None, **options: Any) -> Any:
        """The reply, as redis-py gives it. Raises redis-py's exceptions, ShardError and PartialError.

        Cancelled, it leaves nothing behind; whether a write has run is then not known.
        """
        asker, name = self.asker, args[0]
        layout = asker.layout
        command = layout.commands.get(name)
        decode = NEVER_DECODE not in options
        line = None
        if command is not None and 0 < command.key_at < len(args) and not layout.troubled and decode:
            key = args[command.key_at]
            router = layout.router
            shard: Any = layout.shards[router.locate(key if type(key) is bytes else router.key(key))]
            line = shard.line
        if line is None or line.paused or line.loop is not get_running_loop():
            reply = await self._called(args, decode)
        else:
            request = self._pack(args)
            if len(request) > self._large:
                reply = await self._called(args, decode)
            else:
                reply = await line.ask(request)
                if isinstance(reply, Lost):
                    assert command is not None
                    batch = Batch(shard, request, 1, not command.reads)
                    reply = await asker.call_again(args, batch, reply)
        if isinstance(reply, Exception):
            if EMPTY_RESPONSE in options and isinstance(reply, ResponseError):
                return options[EMPTY_RESPONSE]
            raise reply
        callback = self._callbacks.get(name, _UNKNOWN)
        if callback is None:
            return reply
        if callback is _UNKNOWN:
            callback = self._callback(name)
            if callback is None:
                return reply
        if options:
            for option in OURS:
                options.pop(option, None)
        value = callback(reply, **options)
        return await value if hasattr(value, "__await__") else value

    async def _called(self, args: tuple[Any, ...], decode: bool) -> Any:
        try:
            return await self.asker.call(args, decode)
        except ResponseError as error:  # refused, as a node would have
            return error

    def _callback(self, name: Any) -> Any:
        found = self.response_callbacks.get(name) if isinstance(name, str) else None
        if len(self._callbacks) < 1024:
            self._callbacks[name] = found
        return found

    # --- where things are ---

    def locate(self, key: Any) -> Located:
        """Where a key is now, without asking anybody.

        Raises ConnectionError before the first call of a client that follows proxies.
        """
        self.asker.known()
        layout = self.asker.layout
        router = layout.router
        name = router.key(key)
        home = router.pool.home(name)
        shard = layout.shards[router.locate(name)]
        return Located(shard.name, shard.address, home.name, home.node.state)

    @property
    def topology(self) -> Topology:
        """The snapshot that is worked with: pool, shards, nodes and their states as the client knows them."""
        return self.asker.nodes.topology

    def apply(self, topology: Topology) -> None:
        """Works with another topology from now on: shards added, removed, replaced, in one step.

        Calls that have begun end where they began. Raises KeyError when the client's pool is not in it.
        """
        self.asker.apply(topology)

    def on_shard(self, name: str) -> redis.asyncio.Redis:
        """redis-py's own client of one shard's node, in whatever state, for what is the node's: INFO, CONFIG.

        It shares the shard's settings and no connection of this client. Raises KeyError.
        """
        for shard in self.asker.layout.shards:
            if shard.name == name:
                return self.asker.redis_of(shard)
        raise KeyError(name)

    async def on_all(self, *args: Any, **options: Any) -> dict[str, Any]:
        """A command to every shard whose keys are with it: its replies by shard's name.

        Raises PartialError when some fail.
        """
        await self.asker.ready()
        found = await self.asker.of_all(args)
        failed = {name: reply for name, reply in found.items() if isinstance(reply, Exception)}
        callback = self.response_callbacks.get(args[0])
        results = {
            name: reply if callback is None else callback(reply, **options)
            for name, reply in found.items()
            if name not in failed
        }
        if failed:
            raise PartialError(results, failed)
        return results

    # --- what redis-py's Redis has beside its commands ---

    def __await__(self) -> Any:
        return self.initialize().__await__()

    async def initialize(self) -> Self:
        return self

    def get_encoder(self) -> Encoder:
        return self.asker.coding.encoder

    def get_connection_kwargs(self) -> dict[str, Any]:
        """What all shards have in common."""
        return dict(self.asker.settings.common)

    def set_response_callback(self, command: str, callback: Callable[..., Any]) -> None:
        self.response_callbacks[command] = callback
        self._callbacks.clear()

    def register_script(self, script: Any) -> AsyncShardedScript:  # type: ignore[override]  # no Script
        """A script to be called with keys of one shard; it survives the restart of nodes."""
        found = AsyncShardedScript(self, script)  # type: ignore[arg-type]  # it is no Redis of redis-py's
        self.asker.scripts.remember(found.sha, script)
        return found

    async def script_load(self, script: Any) -> str:
        sha: str = await self.execute_command("SCRIPT LOAD", script)  # redis-py's callback has made it one
        self.asker.scripts.remember(sha, script)
        self.asker.scripts.loaded(sha.encode())
        return sha

    def lock(
        self,
        name: str,
        timeout: float | None = None,
        sleep: float = 0.1,
        blocking: bool = True,
        blocking_timeout: float | None = None,
        lock_class: Any = None,
        thread_local: bool = True,
        raise_on_release_error: bool = True,
        *,
        allow_cache_pool: bool = False,
    ) -> Lock:
        """As redis-py's. On a cache pool LockError, unless it is allowed: two owners are possible there."""
        if self.asker.nodes.pool.kind == "cache" and not allow_cache_pool:
            raise LockError(CACHE_LOCK)
        found: Lock = (lock_class or Lock)(
            self,  # type: ignore[arg-type]  # as redis-py's in all that a lock needs
            name,
            timeout=timeout,
            sleep=sleep,
            blocking=blocking,
            blocking_timeout=blocking_timeout,
            thread_local=thread_local,
            raise_on_release_error=raise_on_release_error,
        )
        return found

    def pipeline(self, transaction: bool = True, shard_hint: object = None) -> "AsyncShardedPipeline":
        """transaction: MULTI ... EXEC, whose keys share a shard; False: over any shards, in parallel."""
        from shardproxy.client.aio_pipeline import AsyncShardedPipeline

        return AsyncShardedPipeline(self, transaction)

    async def transaction(
        self,
        func: Callable[["AsyncShardedPipeline"], Awaitable[Any] | Any],
        *watches: Any,
        shard_hint: object = None,
        value_from_callable: bool = False,
        watch_delay: float | None = None,
    ) -> Any:
        """As redis-py's: func(pipe), again until nothing watched has changed meanwhile. Keys of one shard."""
        async with self.pipeline(True) as pipe:
            while True:
                try:
                    if watches:
                        await pipe.watch(*watches)
                    value = func(pipe)
                    if inspect.isawaitable(value):
                        value = await value
                    executed = await pipe.execute()
                    return value if value_from_callable else executed
                except WatchError:
                    if watch_delay:
                        await asyncio.sleep(watch_delay)

    def monitor(self) -> Monitor:
        """redis-py's, of the only shard's node. Raises ResponseError where there are several."""
        shards = self.asker.layout.shards
        if len(shards) > 1:
            raise refusal(not_supported("monitor", "on_shard(name).monitor() shows one shard's node"))
        return Monitor(self.on_shard(shards[0].name).connection_pool)

    def pubsub(self, **options: Any) -> "AsyncShardedPubSub":
        """Channels are subscribed to on the shard of their name, where publish() goes; patterns on all."""
        from shardproxy.client.aio_pubsub import AsyncShardedPubSub

        return AsyncShardedPubSub(self, **options)
