"""Who asks the proxies, for each of the two clients; `following` says which one, when, and what comes of it.

The sync client has no thread: a call that finds the snapshot old asks first, or goes on with what there is
when another thread is asking. The asyncio client has a task from its first call until `aclose`, which waits
in PROXY TOPOLOGY WATCH. Until the first answer there is a `placeholder`, whose only shard is down.
"""

import asyncio
import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError
from redis.retry import Retry

from shardproxy.client.following import ASK, WATCH, Following, Heard, Proxies
from shardproxy.client.settings import Settings, check
from shardproxy.config import Config, PoolConfig, ShardConfig
from shardproxy.core.topology import Topology

log = logging.getLogger("shardproxy.client")
TOPOLOGY = ("PROXY", "TOPOLOGY")


def placeholder() -> Topology:
    """Before a proxy has answered: nothing can be asked of it."""
    shard = ShardConfig(primary="redis://unknown:6379")
    topology = Topology.from_config(Config(pool={"main": PoolConfig(shards={"unknown": shard})}))
    return topology.with_node_state("unknown:6379", "out", "no proxy has been asked yet")


def settings_of(common: Mapping[str, Any]) -> Settings:
    """For a client whose shards are not known yet; common: settings of redis-py's, for the nodes."""
    check(common)
    return Settings(placeholder(), "main", {}, common)


def _proxy_settings(proxies: Proxies, address: str, common: Mapping[str, Any]) -> dict[str, Any]:
    """How a proxy is reached; of the nodes' settings, TLS's are for the proxies as well."""
    host, _, port = address.rpartition(":")
    found = {name: value for name, value in common.items() if name.startswith("ssl_")} if proxies.tls else {}
    return {
        **found,
        "ssl": proxies.tls,
        "host": host.strip("[]"),
        "port": int(port),
        "username": proxies.username or None,
        "password": proxies.password or None,
        "socket_connect_timeout": ASK,
    }


class _Follows:
    """What both have. apply(topology): the client's; it works with that one from then on."""

    def __init__(
        self, following: Following, common: Mapping[str, Any], apply: Callable[[Topology], None]
    ) -> None:
        self.following, self._common, self._apply = following, common, apply

    def _take(self, found: Heard) -> None:
        for warning in found.warnings:
            log.warning(warning)
        if found.topology is not None:
            self._apply(msgspec.structs.replace(found.topology, pools=found.topology.pools[:1]))

    def none(self) -> ConnectionError:
        return ConnectionError(f"no proxy tells the topology; {self.following.reason}")


class Follower(_Follows):
    """For threads. next: when `look` has something to do, so that a call need not ask before that."""

    def __init__(
        self, following: Following, common: Mapping[str, Any], apply: Callable[[Topology], None]
    ) -> None:
        super().__init__(following, common, apply)
        self._lock, self._pid = threading.Lock(), os.getpid()
        self._clients: dict[str, redis.Redis] = {}

    @property
    def next(self) -> float:
        return self.following.next

    def look(self, doubt: bool = False) -> bool:
        """Asks a proxy if it is time; doubt: a call failed. Whether there is another snapshot now.

        Raises ConnectionError until one has answered.
        """
        before = self.following.topology
        first = before is None
        if not first and not self.following.wanted(time.monotonic(), doubt):
            return False
        if self._pid != os.getpid():
            self._lock, self._pid = threading.Lock(), os.getpid()
        if not self._lock.acquire(blocking=first):
            return False
        try:
            if first:
                self._first()
            else:
                self._ask()
        finally:
            self._lock.release()
        return self.following.topology is not before

    def _first(self) -> None:
        for _ in self.following.proxies.addresses:
            if self.following.topology is not None:
                return
            self._ask()
        if self.following.topology is None:
            raise self.none()

    def _ask(self) -> None:
        following = self.following
        following.asking(time.monotonic())
        address = following.proxy
        try:
            answer = self._client(address).execute_command(*TOPOLOGY)
            found = following.heard(time.monotonic(), random.random(), answer)
        except (RedisError, OSError, ValueError) as error:
            following.failed(time.monotonic(), random.random(), str(error))
        else:
            self._take(found)

    def _client(self, address: str) -> Any:
        found = self._clients.get(address)
        if found is None:
            retry: Any = Retry(NoBackoff(), 0)  # the next proxy is asked instead
            settings = _proxy_settings(self.following.proxies, address, self._common)
            found = self._clients[address] = redis.Redis(**settings, socket_timeout=ASK, retry=retry)
        return found

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


class AsyncFollower(_Follows):
    """For one event loop at a time."""

    def __init__(
        self, following: Following, common: Mapping[str, Any], apply: Callable[[Topology], None]
    ) -> None:
        super().__init__(following, common, apply)
        self._task: asyncio.Task[None] | None = None
        self._rounds: list[asyncio.Future[None]] = []  # who waits for an answer, or for all to have failed
        self._hurry = asyncio.Event()

    def start(self) -> None:
        """In the running loop; once is enough."""
        if self._task is None or self._task.done():
            self._hurry = asyncio.Event()
            self._task = asyncio.get_running_loop().create_task(self._follow())

    async def first(self) -> None:
        """Returns when there is a topology. Raises ConnectionError when no proxy has one."""
        self.start()
        if self.following.topology is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._rounds.append(waiter)
            self._hurry.set()
            await waiter
        if self.following.topology is None:
            raise self.none()

    async def _follow(self) -> None:
        following = self.following
        while True:
            address = following.proxy
            client = self._client(address)
            try:
                async with asyncio.timeout(ASK):
                    answer = await client.execute_command(*TOPOLOGY)
                while True:
                    self._take(following.heard(time.monotonic(), random.random(), answer))
                    self._wake()
                    answer = await client.execute_command(*TOPOLOGY, "WATCH", following.generation, WATCH)
            except (RedisError, OSError, ValueError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
            except Exception as error:  # a mistake of ours must not end it unnoticed
                log.exception("following %s failed", address)
                reason = type(error).__name__
            finally:
                with contextlib.suppress(Exception):
                    await client.aclose()
            wait = following.failed(time.monotonic(), random.random(), reason)
            if following.all_failed:
                self._wake()
            if wait:
                self._hurry.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._hurry.wait()

    def _wake(self) -> None:
        waiting, self._rounds = self._rounds, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _client(self, address: str) -> Any:
        retry: Any = redis.asyncio.retry.Retry(NoBackoff(), 0)
        settings = _proxy_settings(self.following.proxies, address, self._common)
        return redis.asyncio.Redis(**settings, socket_timeout=WATCH / 1000 + ASK, retry=retry)

    def stop(self) -> "list[asyncio.Task[None]]":
        """The task that has to be cancelled, if there is one."""
        task, self._task = self._task, None
        self._wake()
        return [task] if task is not None else []

    def forget(self) -> None:
        """Its loop is not there any more."""
        self._task, self._rounds = None, []
