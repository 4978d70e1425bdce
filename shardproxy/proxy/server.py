"""The server around one reactor: its listeners, its place in the asyncio loop, what it learns of the nodes.

`Proxy` is one worker and knows no other; what concerns all workers goes through `Peers`, which nobody needs
who is alone. Rules: it starts whatever the nodes do; a stop first drains, within a limit; nothing global is
changed but the limit of descriptors, so that a program can run a proxy inside itself.
"""

import asyncio
import functools
import os
import secrets
import time
from collections.abc import Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from shardproxy import handlers
from shardproxy.config import Config, Credentials, Limits, read_users
from shardproxy.config.text import door
from shardproxy.core import commands, misses, raising
from shardproxy.core.acl import Users
from shardproxy.core.logins import Failures
from shardproxy.core.networks import Networks
from shardproxy.core.topology import RETURNING, Topology
from shardproxy.dataplane.reactor import Reactor
from shardproxy.handlers.accesslog import AccessLog
from shardproxy.handlers.base import NodeInfo, Outcome, ProcessRecord
from shardproxy.handlers.memcached import Turn
from shardproxy.handlers.monitor import Monitors
from shardproxy.handlers.subscriptions import Subscriptions
from shardproxy.handlers.topology import Watchers
from shardproxy.handlers.tracking import Trackers
from shardproxy.proxy import (
    listeners,
    parts,
    sessions,  # noqa: F401  # SESSION.* registers itself
)
from shardproxy.proxy.certificates import Ways
from shardproxy.proxy.keeper import Keeper
from shardproxy.proxy.learning import Learner
from shardproxy.proxy.listeners import StartError
from shardproxy.proxy.logs import Logger
from shardproxy.proxy.owing import Taken
from shardproxy.proxy.reload import Reloader
from shardproxy.proxy.resolve import Resolver
from shardproxy.proxy.takeover import Sockets
from shardproxy.proxy.team import Team
from shardproxy.proxy.transitions import Transition, Transitions, hook_of, password_variables
from shardproxy.proxy.usage import LoopLag, process_record
from shardproxy.proxy.watched import WorkerRecord

__all__ = ["Proxy", "StartError"]

CRON = 0.1  # seconds between two calls of reactor.cron
TAKE_MOST = 64 << 20  # bytes of remembered keys that are handed over; more count as too many
DRAIN_STEP = 0.01
SETTLE_STEP = 0.005  # seconds between looks at what is in flight, behind a fence

T = TypeVar("T")


class Proxy:
    """One worker, in this process.

        async with Proxy(config) as proxy:
            await proxy.serve_forever()

    Leaving the block drains (`limits.drain_timeout` at most) and closes. Raises StartError when it cannot
    listen, ConfigError when a password cannot be read. file: where the configuration is from, to be loaded
    again when it changes. taken: sockets that are bound already. team: for a worker under a supervisor.
    """

    def __init__(
        self, config: Config, *, file: str = "", taken: Sockets | None = None, team: Team | None = None
    ) -> None:
        self.config = config
        self.topology = Topology.from_config(config)
        self.commands = commands.builtin()
        self.started = team.started if team else time.time()
        self.run_id = team.run_id if team else secrets.token_hex(20)
        self.pid = team.pid if team else os.getpid()
        self.tcp_port = 0
        self.missed: dict[str, set[str]] = {}
        self.counted: dict[str, int] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        self.log = Logger(config.log, context={"worker": team.slot} if team else {})
        hidden = password_variables(config)
        self.transitions = Transitions(
            self.log, None if team else hook_of(config, hidden), team.transitions if team else (), hidden
        )
        self.draining = False
        self._lag = LoopLag(CRON)
        self._team = team
        self._peers = team.peers if team else None
        self.slot = team.slot if team else 0
        self.shared = team is not None
        self.subscriptions = Subscriptions(self)
        self.trackers = Trackers(self)
        users = team.users if team else read_users(config)
        self.users = self._share_of(users)
        self._ways = Ways.read(config, team.credentials if team else None)
        self.access_log = AccessLog()
        self.failures = Failures()
        self.monitors = Monitors(self)
        self.watchers = Watchers()
        self.waits: dict[int, asyncio.Future[bool]] = {}
        self.turns: dict[tuple[int, bytes], Turn] = {}
        self.bound = list(team.bound) if team else []
        self.reloader = Reloader(self, self._ways.credentials, users, file)
        self._taken = taken
        self.inherits, self.handed_over = taken is not None, asyncio.Event()
        self._resolver = Resolver(self._tell_address, self._address_changed)
        self._connections: dict[str, list[str]] = {}  # to nodes, as they were last told
        self._learner = Learner(self)
        inherits = taken is not None and taken.knows
        self.keeper = None if team else Keeper(self, self.run_id, self.log, inherits=inherits)
        self._closing = False
        self._ended = asyncio.Event()
        self._cron: asyncio.TimerHandle | None = None
        self.reactor = Reactor(
            share_of(config.limits, team.workers if team else 1),
            functools.partial(handlers.dispatch, self),
            on_event=self._on_event,
            id_base=team.id_base if team else 0,
            page=team.page if team else None,
            stamps=team.stamps if team else None,
            misses=misses.reply,
            raised=raising.raised,
        )

    # --- its life ---

    async def __aenter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.drain()
        finally:
            await self.close()

    def start(self) -> None:
        """Begins to serve; `close` ends it. For those who cannot use `async with`."""
        limits = self.config.limits
        upstreams = sum(2 * pool.connections_per_node * len(pool.shards) for pool in self.topology.pools)
        descriptors = listeners.raise_descriptors(limits.maxclients + upstreams)
        # as Redis does: fewer clients, never nodes that cannot be reached for want of a descriptor
        room = descriptors - min(listeners.SPARE_DESCRIPTORS + upstreams, descriptors // 2)
        if room < limits.maxclients:
            self.log("descriptors_limited", descriptors=descriptors, maxclients=room)
            self.reactor.set_max_clients(room)
        if self._team is None:
            taken = self._taken
            self.bound = listeners.bind_all(self.config.listen, taken=taken.listeners if taken else ())
            self.reloader.restore(*(taken.drained, taken.away) if taken else ())
        self.tcp_port = next((each.port for each in self.bound if each.port), 0)
        self.reactor.set_commands(self.commands)
        self.reactor.set_users(self.users)
        self.apply(self.topology)
        self._open_doors()
        loop = asyncio.get_running_loop()
        loop.add_reader(self.reactor.fileno(), self.reactor.tick)
        self._tick_cron(loop)
        self._follow()
        if self._team is None:
            self.keep(self.reloader.run())
        else:
            self.keep(self._share_scripts())

    def _open_doors(self) -> None:
        """Accept clients, on the terms of the configuration as it is now."""
        self.reactor.set_tls(self._ways.server, names_users=self.config.tls.user_from_cert)
        allow = Networks(self.config.allow) if self.config.allow else None
        announcers = Networks(self.config.proxy_protocol_from)
        for listener in () if self.draining else self.bound:
            terms = door(listener.address)
            for each in listener.sockets[0]:
                self.reactor.listen(
                    each.fileno(),
                    protected=self.config.protected_mode and (terms.proxied or not listener.path),
                    tls=terms.tls,
                    allow=allow,
                    announcers=announcers if terms.proxied else None,
                )

    def _tick_cron(self, loop: asyncio.AbstractEventLoop) -> None:
        self._cron = loop.call_later(CRON, self._tick_cron, loop)
        self._lag.note(loop.time())
        self.reactor.cron()
        if self._peers and (texts := self.reactor.take_taught()):
            self._peers.tell("teach", [[[text, False] for text in texts]])
        self._report()

    def keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Runs it beside the rest; it is cancelled when the proxy closes."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    @property
    def addresses(self) -> list[str]:
        """Where it listens, as in the configuration, port 0 resolved."""
        return [listener.address for listener in self.bound]

    async def serve_forever(self) -> None:
        """Returns when the proxy is closed."""
        await self._ended.wait()

    async def linger(self) -> None:
        """Takes no more clients and serves those it has, until they leave or drain_timeout has passed."""
        for listener in self.bound:
            for each in listener.sockets[0]:
                self.reactor.unlisten(each.fileno())
        self._close_listeners()
        limit = time.monotonic() + self.config.limits.drain_timeout
        while not self.reactor.idle() and time.monotonic() < limit:
            await asyncio.sleep(DRAIN_STEP)

    async def drain(self) -> bool:
        """Takes no more clients and finishes what is in flight; False when that took too long."""
        self.draining = True
        self.watchers.close()
        self.reactor.drain()
        self._close_listeners()
        limit = time.monotonic() + self.config.limits.drain_timeout
        while not self.reactor.idle():
            if time.monotonic() > limit:
                self.log("drain_incomplete", clients=len(self.reactor.clients()))
                return False
            await asyncio.sleep(DRAIN_STEP)
        return True

    async def close(self) -> None:
        """At once; what is in flight is not answered."""
        self._closing = True
        if self._cron is not None:
            asyncio.get_running_loop().remove_reader(self.reactor.fileno())
            self._cron.cancel()
            self._cron = None
        if self.keeper:
            await self.keeper.close()
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        self._resolver.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.transitions.close()
        self.subscriptions.close()
        self.trackers.close()
        self.reactor.close()
        self._close_listeners()
        self._ended.set()

    def _close_listeners(self) -> None:
        for listener in self.bound:
            listener.close()

    # --- what changes while it runs ---

    def reconfigure(self, config: Config, topology: Topology, credentials: Credentials, users: Users) -> None:
        """A new configuration and what belongs to it, in one step; ConfigError: nothing has changed."""
        ways, users = Ways.read(config, credentials), self._share_of(users)
        before = self.config, self.topology, self._ways
        self.config, self._ways = config, ways
        try:
            self.apply(topology)
        except BaseException:
            self.config, self.topology, self._ways = before
            raise
        self._open_doors()
        if users != self.users:
            self.users = users
            self.reactor.set_users(users)
            self.subscriptions.permit(users)
        self.transitions.hide(config)
        self._follow()

    def _share_of(self, users: Users) -> Users:
        """With this worker's part of their limits."""
        workers = self._team.workers if self._team else 1
        limits = {name: -(-limit // workers) for name, limit in users.limits.items()}
        return msgspec.structs.replace(users, limits=limits)

    async def hold(self) -> None:
        """As a `reload.Owner` of one worker: there is nobody who would ask meanwhile."""

    def release(self) -> None:
        """There is no hold."""

    async def adopt(
        self, config: Config, topology: Topology, credentials: Credentials, users: Users
    ) -> list[str]:
        """The same, as a `reload.Owner` does it."""
        self.reconfigure(config, topology, credentials, users)
        return []

    async def operate(self, what: str, *args: Any) -> Outcome:
        """A change for all workers; who owns the topology makes it."""
        return await (self._peers or self.reloader).operate(what, *args)

    def _follow(self) -> None:
        """Those who look after single nodes are told which there are now."""
        pool = self.topology.pools[0]
        addresses = {shard.node.address for shard in pool.shards}
        self._resolver.watch(addresses, pool.resolve_every)
        self._learner.follow(addresses, self._ways)
        if self.keeper:
            self.keeper.follow(self._ways)

    def _tell_address(self, node: str, address: str) -> None:
        self.reactor.set_address(node, address)

    def _address_changed(self, node: str, address: str) -> None:
        self.log("node_moved", node=node, address=address)

    # --- what it learns of the nodes ---

    def _on_event(self, event: str, fields: dict[str, Any]) -> None:
        """From the engine, within a tick."""
        if self._closing:
            return  # what is lost now we have closed ourselves
        if event == "denied":
            self.access_log.denied(time.time(), **fields)
            return
        self.log(event, **fields)
        if event in ("node_down", "node_failing", "upstream_lost"):
            self._resolver.lost(fields["node"])
        if event == "node_failing":  # not here: what comes of it changes the engine's topology
            asyncio.get_running_loop().call_soon(self._report)
        if event in ("node_up", "upstream_lost"):
            self._learner.ask_again(fields["node"])

    def _report(self) -> None:
        """What the engine has seen of the nodes goes to whoever decides."""
        if self._closing:
            return
        if self._peers and (ids := self.reactor.connection_ids()) != self._connections:
            self._connections = ids
            self._peers.connections(ids, self.reactor.used_databases())
        if not (found := self.reactor.evidence()):
            return
        if self.keeper:
            self.keeper.observe(found)
        elif self._peers:
            self._peers.evidence(found)

    def set_commands(self, table: commands.CommandTable) -> None:
        """With what the nodes have told of theirs."""
        self.commands = table
        self.reactor.set_commands(table)

    def tell_version(self, address: str, version: str) -> None:
        """What a node runs, to whoever owns the topology."""
        if self._peers:
            self._peers.node_version(address, version)
            return
        node = self.topology.nodes.get(address)
        if node is not None and node.version != version:
            self.set_topology(self.topology.with_node_state(address, node.state, node.reason, version))

    # --- the topology (returns.Fleet, of one worker) ---

    def apply(self, topology: Topology) -> None:
        """Serves by this snapshot from now on."""
        self.transitions.changed(self.topology, topology)
        before, self.topology = self.topology.nodes, topology
        pool = topology.pools[0]
        ways = {shard.name: self._ways.of(pool.name, shard.name) for shard in pool.shards}
        self.reactor.set_topology(
            topology,
            {name: way.login for name, way in ways.items() if way.login},
            {name: way.tls for name, way in ways.items() if way.tls},
        )
        self.watchers.wake()
        self.subscriptions.follow()
        self.trackers.follow()
        self._resolver.tell_again()
        for address, node in topology.nodes.items():
            if node.state == "up" and (address not in before or before[address].state != "up"):
                self._learner.ask_again(address)

    alone = True  # as a Fleet

    async def settled(self, topology: Topology) -> bool:
        """Waits until nothing is in flight on stand-ins for keys of shards that this snapshot brings back.

        No longer than a request may take: what is later has been given up by who asked for it.
        """
        pool = topology.pools[0]
        held = any(pool.mode(shard) == "hold" and shard.node.reason == RETURNING for shard in pool.shards)
        limit = time.monotonic() + pool.longest
        while held and not self.reactor.settled() and time.monotonic() < limit:
            await asyncio.sleep(SETTLE_STEP)
        return True

    def set_topology(self, topology: Topology) -> asyncio.Task[bool]:
        if topology.generation > self.topology.generation:
            self.apply(topology)
        return self.keep(self.settled(topology))

    async def take(self, address: str) -> list[Taken]:
        return [self.taken(address)]

    async def databases(self) -> set[int]:
        return set(self.reactor.used_databases())

    def taken(self, address: str) -> Taken:
        """What this worker remembers of a node that is out; it forgets it."""
        keys, overflow = self.reactor.take_written(address)
        if sum(map(len, keys)) > TAKE_MOST:
            keys, overflow = [], True
        shards = [shard.name for shard in self.topology.pools[0].shards if shard.node.address == address]
        missed = [what for shard in shards for what in self.missed.pop(shard, ())]
        unanswered = not self.reactor.answered(address)
        return Taken(self.reactor.take_ghosts(address), keys, overflow, missed, unanswered)

    # --- what handlers ask (handlers.base.Server) ---

    @property
    def node_info(self) -> Mapping[str, NodeInfo]:
        return self._learner.info

    def counters(self) -> Mapping[str, int]:
        return self._peers.counters() if self._peers else self.reactor.counters()

    def latency(self) -> Mapping[str, Sequence[int]]:
        return self._peers.latency() if self._peers else self.reactor.latency()

    def process(self) -> ProcessRecord:
        return process_record(self._lag, self.reactor.blocked())

    async def everywhere(self, name: str, *args: Any) -> list[Any]:
        others = asyncio.ensure_future(self._peers.ask(name, *args)) if self._peers else None
        mine = await handlers.do_part(self, name, *args)
        return [mine, *(await others if others else ())]

    def tell_others(self, name: str, args: Sequence[Any]) -> None:
        if self._peers:
            self._peers.tell(name, args)

    def meet(self) -> None:
        """The others tell this worker what changes from now on: it asks for what there was before."""
        self.keep(self._meet())

    async def _meet(self) -> None:
        for slot, names in await self._peers.ask("subscriptions") if self._peers else ():
            self.subscriptions.receivers.heard(slot, names)

    async def _share_scripts(self) -> None:
        """Those that the others have are this one's too; what EVAL brings here goes to them, see _report."""
        assert self._peers is not None
        self.reactor.share_scripts()
        for part in await self._peers.ask("scripts"):
            await handlers.do_part(self, "teach", part)

    def transitions_of(self, address: str) -> list[Transition]:
        return self.transitions.of(address)

    # --- what is seen from outside (watched.Watched) ---

    @property
    def listening(self) -> bool:
        return self._cron is not None and not self.draining

    @property
    def mistaken(self) -> Mapping[str, int]:
        return self.keeper.mistaken if self.keeper else {}

    @property
    def invalidated(self) -> Mapping[str, int]:
        return self.keeper.invalidated if self.keeper else {}

    @property
    def silent(self) -> Mapping[str, float]:
        return self.keeper.silent if self.keeper else {}

    @property
    def workers(self) -> Mapping[int, int]:
        return {0: os.getpid()} if self._cron is not None else {}

    async def all_workers(self) -> dict[int, WorkerRecord]:
        return {0: parts.worker(self)} if self._cron is not None else {}

    def supervisor(self) -> None:
        """It has none: this process is the worker."""


def share_of(limits: Limits, workers: int) -> Limits:
    """The limits of one worker: clients are counted over all of them, and the kernel spreads them evenly."""
    return msgspec.structs.replace(limits, maxclients=-(-limits.maxclients // workers))
