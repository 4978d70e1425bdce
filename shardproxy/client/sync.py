"""`ShardedRedis`: redis-py's commands on the shards of a ring, each key where the proxy puts it.

    client = ShardedRedis({"a": "redis://10.0.0.1", "b": "redis://10.0.0.2"}, decode_responses=True)
    client.set("user:1", "Ada"); client.mget("user:1", "user:2"); client.locate("user:1").shard

The commands are redis-py's own mixins over `execute_command`, whose way from the command to the socket is
here: what asks several shards, or goes wrong, is in `asking`. Threads may share a client, and processes after
a fork; it has no thread of its own, and connects when it is first used.
"""

import functools
import os
import random
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import redis
from redis._parsers.encoders import Encoder
from redis.client import Monitor
from redis.commands import CoreCommands, RedisModuleCommands
from redis.commands.core import Script
from redis.exceptions import LockError, RedisError, ResponseError, WatchError
from redis.lock import Lock

from shardproxy.client.asking import Asker
from shardproxy.client.base import Batch
from shardproxy.client.errors import PartialError, refusal
from shardproxy.client.health import Transition
from shardproxy.client.settings import Settings
from shardproxy.config import Config
from shardproxy.core.errors import not_supported
from shardproxy.core.topology import State, Topology

if TYPE_CHECKING:
    from shardproxy.client.pipeline import ShardedPipeline
    from shardproxy.client.pubsub import ShardedPubSub
    from shardproxy.client.telemetry import Telemetry

monotonic = time.monotonic
NEVER_DECODE, EMPTY_RESPONSE = "NEVER_DECODE", "EMPTY_RESPONSE"
OURS = (NEVER_DECODE, EMPTY_RESPONSE)  # options that are for who executes, not for the callback
CACHE_LOCK = (
    "lock() on a cache pool: while a shard is out its stand-in may give the same lock to a second owner; "
    "lock(..., allow_cache_pool=True) says that this does no harm"
)


class Located(NamedTuple):
    """Where a key is. `shard` holds it now; `home` is where it belongs, `state` how that node is doing."""

    shard: str
    address: str
    home: str
    state: State


class ShardedScript(Script):
    """As redis-py's; in a pipeline each shard is taught the script before it is called."""

    def __call__(self, keys: Any = None, args: Any = None, client: Any = None) -> Any:
        client = self.registered_client if client is None else client
        keys, args = tuple(keys or ()), tuple(args or ())
        if hasattr(client, "asker"):
            client.asker.scripts.remember(self.sha, self.script)
            return client.evalsha(self.sha, len(keys), *keys, *args)
        return super().__call__(keys, args, client)


def observed(client: Any, telemetry: "bool | Telemetry") -> None:
    """Calls of this client are seen by OpenTelemetry from now on."""
    from shardproxy.client.telemetry import Telemetry

    (telemetry if isinstance(telemetry, Telemetry) else Telemetry()).follow(client)


class ShardedRedis(RedisModuleCommands, CoreCommands):
    """A client of all shards of one pool.

    shards: name → URL as redis-py takes it, or a table as in shardproxy.toml ({"primary": ..., "weight": 2});
    the name is what places keys. pool: its options as in shardproxy.toml (kind, on_shard_down, distribution,
    hash, hash_tag, virtual_nodes, timeout, retries, ...). The other keyword arguments are redis-py's
    (decode_responses, protocol, db, username, password, ssl_..., socket_timeout, client_name, retry, ...).
    on_transition(Transition) is called when a node's state changes, by the thread that has found it out.
    probe: nodes are probed by a thread while the client is in use. telemetry: True or a Telemetry: calls and
    pipelines are seen by OpenTelemetry. Raises ConfigError with every mistake.
    """

    _is_async_client: Literal[False] = False  # which of redis-py's overloads are meant
    _event_dispatcher: Any = None

    def __init__(
        self,
        shards: Mapping[str, str | Mapping[str, Any]] | Settings,
        *,
        pool: Mapping[str, Any] | None = None,
        on_transition: Callable[[Transition], None] | None = None,
        probe: bool = False,
        telemetry: "bool | Telemetry" = False,
        **redis_settings: Any,
    ) -> None:
        if isinstance(shards, Settings):
            settings = shards
        else:
            settings = Settings.from_shards(shards, redis_settings, **(pool or {}))
        self.asker = Asker(settings, on_transition)
        self._pack = self.asker.pack
        if probe:
            self.asker.probe()
        if telemetry:
            observed(self, telemetry)

    @functools.cached_property
    def response_callbacks(self) -> Any:
        """What redis-py makes of replies, by command: a dict that ignores case."""
        first = self.asker.layout.shards[0]
        return redis.Redis(connection_pool=first.pool).response_callbacks

    @classmethod
    def from_config(
        cls,
        source: str | os.PathLike[str] | bytes | Config,
        *,
        pool: str | None = None,
        on_transition: Callable[[Transition], None] | None = None,
        probe: bool = False,
        telemetry: "bool | Telemetry" = False,
        **redis_settings: Any,
    ) -> Self:
        """Of the proxy's own file, or its text. pool: which, where there are several. Raises ConfigError."""
        settings = Settings.from_config(source, pool, **redis_settings)
        return cls(settings, on_transition=on_transition, probe=probe, telemetry=telemetry)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        on_transition: Callable[[Transition], None] | None = None,
        telemetry: "bool | Telemetry" = False,
        **redis_settings: Any,
    ) -> Self:
        """Follows running proxies: "shardproxy://[USER:PASSWORD@]HOST[:PORT][,HOST...]"; shardproxys: TLS.

        Shards and the states of their nodes are what the proxies say: asked by a call every few seconds, and
        when one fails. The URL's login is for the proxies; the nodes', if they want one, is in the settings.
        Raises ValueError.
        """
        from shardproxy.client.follower import Follower, settings_of
        from shardproxy.client.following import Following, read_url

        proxies = read_url(url)
        client = cls(settings_of(redis_settings), on_transition=on_transition, telemetry=telemetry)
        following = Following(proxies, random.randrange(len(proxies.addresses)))
        client.asker.follower = Follower(following, redis_settings, client.asker.follow)
        return client

    def __repr__(self) -> str:
        shards = ", ".join(f"{shard.name}={shard.address}" for shard in self.asker.layout.shards)
        return f"<{type(self).__name__} {self.asker.settings.pool_name}: {shards}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes what is not in use. The client may be used again: then it connects again."""
        self.asker.close()

    # --- the hot path ---

    def execute_command(self, *args: Any, keys: Any = None, **options: Any) -> Any:
        """The reply, as redis-py gives it. Raises redis-py's exceptions, ShardError and PartialError."""
        asker, name = self.asker, args[0]
        if asker.follower is not None:
            asker.look()
        layout = asker.layout
        command = layout.commands.get(name)
        decode = NEVER_DECODE not in options
        if command is None or not 0 < command.key_at < len(args) or layout.troubled:
            try:
                reply = asker.ask(args, decode)
            except ResponseError as error:  # refused, as a node would have
                reply = error
        else:
            key = args[command.key_at]
            router = layout.router
            shard = layout.shards[router.locate(key if type(key) is bytes else router.key(key))]
            connection = shard.idle_one()
            if connection is None:
                reply = asker.ask(args, decode)
            else:
                data, sent = None, False
                try:
                    data = self._pack(args)
                    started = monotonic()
                    connection.send(data)
                    sent = True
                    reply = connection.read(decode)
                except (OSError, RedisError) as error:
                    if data is None:
                        shard.give(connection)
                        raise
                    batch = Batch(shard, data, 1, not command.reads, decode)
                    batch.sent = sent
                    reply = asker.recover(args, decode, batch, connection, error)
                except BaseException:
                    connection.close()  # its reply is still to come
                    raise
                else:
                    shard.answered += 1
                    shard.idle.append(connection)
                    if monotonic() - started > asker.slow_call:
                        asker.slow(shard)
        if isinstance(reply, Exception):
            if EMPTY_RESPONSE in options and isinstance(reply, ResponseError):
                return options[EMPTY_RESPONSE]
            raise reply
        if (callback := self.response_callbacks.get(name)) is None:
            return reply
        if options:
            for option in OURS:
                options.pop(option, None)
        return callback(reply, **options)

    # --- where things are ---

    def locate(self, key: Any) -> Located:
        """Where a key is now, without asking its node."""
        self.asker.look()
        layout = self.asker.layout
        router = layout.router
        name = router.key(key)
        home = router.pool.home(name)
        shard = layout.shards[router.locate(name)]
        return Located(shard.name, shard.address, home.name, home.node.state)

    @property
    def topology(self) -> Topology:
        """The snapshot that is worked with, with nodes' states as this client knows them."""
        return self.asker.nodes.topology

    def apply(self, topology: Topology) -> None:
        """Works with another topology from now on: shards added, removed, replaced, in one step.

        Calls that have begun end where they began. Raises KeyError when the client's pool is not in it.
        """
        self.asker.apply(topology)

    def on_shard(self, name: str) -> redis.Redis:
        """redis-py's own client of one shard's node, whatever its state: for INFO, CONFIG, ...

        It shares the shard's settings and no connection of this client. Raises KeyError.
        """
        self.asker.look()
        for shard in self.asker.layout.shards:
            if shard.name == name:
                if shard.memcached is not None:
                    raise TypeError(f"shard {name} is a memcached node: redis-py does not speak its protocol")
                return redis.Redis(connection_pool=shard.pool)
        raise KeyError(name)

    def on_all(self, *args: Any, **options: Any) -> dict[str, Any]:
        """A command to every shard whose keys are with it: its replies by shard's name.

        Raises PartialError when some fail.
        """
        self.asker.look()
        found = self.asker.all(args)
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

    def get_encoder(self) -> Encoder:
        return self.asker.coding.encoder

    def get_connection_kwargs(self) -> dict[str, Any]:
        """What all shards have in common."""
        return dict(self.asker.settings.common)

    def set_response_callback(self, command: str, callback: Callable[..., Any]) -> None:
        self.response_callbacks[command] = callback

    def register_script(self, script: Any) -> ShardedScript:
        """A script to be called with keys of one shard; it survives the restart of nodes."""
        found = ShardedScript(self, script)  # type: ignore[arg-type]  # redis-py means its own client
        self.asker.scripts.remember(found.sha, script)
        return found

    def script_load(self, script: Any) -> str:
        sha: str = self.execute_command("SCRIPT LOAD", script)  # redis-py's callback has made it one
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
            self,
            name,
            timeout=timeout,
            sleep=sleep,
            blocking=blocking,
            blocking_timeout=blocking_timeout,
            thread_local=thread_local,
            raise_on_release_error=raise_on_release_error,
        )
        return found

    def pipeline(self, transaction: bool = True, shard_hint: object = None) -> "ShardedPipeline":
        """transaction: MULTI ... EXEC, whose keys share a shard; False: over any shards, in parallel."""
        from shardproxy.client.pipeline import ShardedPipeline

        return ShardedPipeline(self, transaction)

    def transaction(
        self,
        func: Callable[["ShardedPipeline"], Any],
        *watches: Any,
        shard_hint: object = None,
        value_from_callable: bool = False,
        watch_delay: float | None = None,
    ) -> list[Any] | Any | None:
        """As redis-py's: func(pipe), again until nothing watched has changed meanwhile. Keys of one shard."""
        with self.pipeline(True) as pipe:
            while True:
                try:
                    if watches:
                        pipe.watch(*watches)
                    value = func(pipe)
                    executed = pipe.execute()
                    return value if value_from_callable else executed
                except WatchError:
                    if watch_delay:
                        time.sleep(watch_delay)

    def monitor(self) -> Monitor:
        """redis-py's, of the only shard's node. Raises ResponseError where there are several."""
        shards = self.asker.layout.shards
        if len(shards) > 1:
            raise refusal(not_supported("monitor", "on_shard(name).monitor() shows one shard's node"))
        return Monitor(self.on_shard(shards[0].name).connection_pool)  # type: ignore[no-untyped-call]

    def pubsub(self, **options: Any) -> "ShardedPubSub":
        """Channels are subscribed to on the shard of their name, where publish() goes; patterns on all."""
        from shardproxy.client.pubsub import ShardedPubSub

        return ShardedPubSub(self, **options)
