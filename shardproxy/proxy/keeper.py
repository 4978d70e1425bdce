"""The Keeper: looks after the nodes, for all workers, in the process that owns the topology.

Owns one `core.health.Health` a node and one task that probes it; takes what the workers saw of it; turns what
comes of that into snapshots of the topology; has a node that was out brought back (`proxy.returns`). Rules:
nobody else sets the state of a node; a snapshot is made of the newest one and handed on without waiting in
between; keys move to stand-ins when all workers have said that they leave the node alone; what failed while
our own loop lagged is no evidence; when most nodes look down we are the likelier fault, and those whose keys
did not move are used on.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from shardproxy.core.health import Evidence, Health, fail_open
from shardproxy.core.topology import FAIL_OPEN, RETURNING, Pool, Shard, State, Topology, replaced
from shardproxy.proxy import memcached, probe
from shardproxy.proxy.certificates import Way
from shardproxy.proxy.owing import CODE, Known
from shardproxy.proxy.probe import NodeRefuses
from shardproxy.proxy.returns import Fleet, Returns

FENCE_STEP = 0.01  # seconds between two looks at a return that is underway
LAG_STEP = 0.05  # seconds between two looks at how late our loop is
LAG_PART = 0.25  # of a probe's timeout: a loop that is later than this says nothing about nodes


class Map(Protocol):
    """certificates.Ways."""

    def of(self, pool: str, shard: str) -> Way: ...


class Shown(NamedTuple):
    """A node, as the topology is to show it."""

    state: State
    reason: str
    swept: bool


class Watch:
    """What is known of one node, and the tasks that are busy with it."""

    def __init__(self, health: Health) -> None:
        self.health = health
        self.wake = asyncio.Event()
        self.asking: asyncio.Task[None] | None = None
        self.asking_urgently = False
        self.away = False  # it has been shown as out: there is a return before it is admitted
        self.unproven = False  # it is out, and no probe of it has ended since
        self.fenced = False
        self.held: float | None = None  # `since` of the outage for which all workers leave it alone
        self.holding: asyncio.Task[None] | None = None
        self.swept = True
        self.tidied = True  # False: stand-ins may keep what was theirs before its shard's place changed
        self.beat_at = 0.0  # when it is due to be told that we use it
        self.task: asyncio.Task[None] | None = None
        self.sweeper: asyncio.Task[None] | None = None

    @property
    def leaving(self) -> bool:
        """It is out, and not all workers have said yet that they leave it alone."""
        return self.health.state == "out" and not self.away and self.held != self.health.since


class Keeper:
    """`follow` begins, `close` ends. `observe` takes evidence in at any time; it never blocks."""

    def __init__(
        self,
        fleet: Fleet,
        run_id: str,
        log: Callable[..., None],
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        inherits: bool = False,
    ) -> None:
        self._fleet, self._run_id, self._log = fleet, run_id, log
        self._clock, self._chance = clock, chance
        self._watches: dict[str, Watch] = {}
        self.mistaken: Counter[str] = Counter()  # by address: put out, and its very next probe succeeded
        self._ways: Map | None = None
        self._returns = Returns(fleet, self.way, run_id, log)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ignored: set[str] = set()  # fail open
        self._pools: dict[str, Pool] = {}  # as they were when `follow` was last called
        self._tidying: dict[str, asyncio.Task[None]] = {}  # by pool
        # set: what the process before knows has been told, and nodes may return
        self._told = asyncio.Event()
        if not inherits:
            self._told.set()
        self._retired = False  # another process has taken over: what returns, returns there
        self._meter: asyncio.Task[None] | None = None
        self._lags: list[tuple[float, float]] = []  # our loop's: (when, how late)

    @property
    def invalidated(self) -> Mapping[str, int]:
        """How many keys of each node have been deleted because what they held was old."""
        return self._returns.invalidated

    @property
    def silent(self) -> Mapping[str, float]:
        """Seconds since each node last answered anybody."""
        now = self._clock()
        return {address: now - watch.health.heard_at for address, watch in self._watches.items()}

    # --- its life ---

    def follow(self, ways: Map) -> None:
        """Looks after the nodes that the topology has now; for the start, and after each change of shards."""
        self._ways = ways
        topology, now = self._fleet.topology, self._clock()
        places = places_of(topology)
        before, self._pools = self._pools, {pool.name: pool for pool in topology.pools}
        self._take_places(before, places)
        for address in self._watches.keys() - places.keys():
            gone = self._watches.pop(address)
            self._returns.forget(address)
            self.mistaken.pop(address, None)
            for task in (gone.task, gone.sweeper):
                if task is not None:
                    task.cancel()
        for address, (pool, shard) in places.items():
            if (watch := self._watches.get(address)) is None:
                health = Health(pool.health, now, self._chance(), pool.shortest)
                watch = self._watches[address] = Watch(health)
                self._begin(address, watch, shard)
            watch.health.follow(pool.health, pool.shortest)
            if shard.returning:
                watch.health.next_probe = now
            watch.wake.set()
        for pool in topology.pools:
            if pool.removes and pool.name in before and replaced(before[pool.name], pool):
                self._tidy(pool, {shard.node.address for shard in before[pool.name].shards})
        if self._meter is None:
            self._meter = self._keep(self._measure_lag())
        self._publish()

    def _take_places(self, before: Mapping[str, Pool], places: Mapping[str, Any]) -> None:
        """Nodes that have taken the place of others."""
        for name, pool in before.items():
            now = (
                {shard.name: shard.node.address for shard in self._pools[name].shards}
                if name in self._pools
                else {}
            )
            for shard in pool.shards:
                old, new = shard.node.address, now.get(shard.name)
                if new is not None and old not in places and new not in self._watches:
                    self._returns.move(old, new)

    def _begin(self, address: str, watch: Watch, shard: Shard) -> None:
        """A node that the topology knows as out has to return, whoever saw it go."""
        if shard.node.state == "out":
            watch.health.put_out(self._clock(), shard.node.reason)
            watch.away = True
        if shard.draining and not self._meter and self._told.is_set():
            self._returns.lack(address)
        watch.swept = shard.node.swept
        if not watch.swept:
            watch.sweeper = self._keep(self._sweep(address, watch))
        watch.task = self._keep(self._look_after(address, watch))

    def _tidy(self, pool: Pool, stayed: Collection[str]) -> None:
        """Keys are looked for with other nodes: those that they were with must not keep them."""
        addresses = [shard.node.address for shard in pool.shards if shard.node.address in stayed]
        for address in addresses:
            self._returns.owe_all(address)
            # what is out now is served by stand-ins that have its newest values
            self._watches[address].tidied = self._watches[address].away
        if pool.name in self._tidying:
            self._tidying[pool.name].cancel()
        self._tidying[pool.name] = self._keep(self._tidy_all(pool, addresses))

    async def _tidy_all(self, pool: Pool, addresses: Sequence[str]) -> None:
        started = self._clock()
        await asyncio.sleep(pool.longest)  # what was sent before has run
        await asyncio.gather(*map(self._returns.tidy, addresses))
        del self._tidying[pool.name]
        for address in addresses:
            if address in self._watches:
                self._watches[address].tidied = True
        self._log("tidied", pool=pool.name, nodes=addresses, seconds=round(self._clock() - started, 3))
        self._publish()

    # --- from one process to the next ---

    async def bequeath(self) -> list[Known]:
        """What the process that has taken over has to know; nothing returns here from now on."""
        self._retired = True
        return await self._returns.known()

    def inherit(self, known: Known) -> None:
        """What the process before knows. After `all_told` it is new: a node that is back returns again."""
        watch = self._watches.get(known.address)
        if watch is None:
            return
        self._returns.inherit(known)
        if known.missed and self._told.is_set() and not watch.away:
            self._keep(self._returns.make_up(known.address))
        _, shard = places_of(self._fleet.topology)[known.address]
        late = self._told.is_set() and known.kind == "owed" and (known.keys or known.everything)
        if late and not watch.away and not shard.draining:
            watch.away = True
            watch.health.put_out(self._clock(), "the process before has written keys of it elsewhere")
            watch.wake.set()
            self._publish()

    def all_told(self, complete: bool) -> None:
        """complete: False: the process before has ended too early, and nobody knows all."""
        if self._told.is_set():
            return
        for pool in self._fleet.topology.pools:
            addresses = {shard.node.address for shard in pool.shards}
            for shard in pool.shards if not complete else ():
                if shard.node.state == "out":
                    self._returns.inherit(Known("owed", shard.node.address, missed=list(CODE)))
                if pool.removes and pool.elsewhere(shard):
                    self._returns.lack(shard.node.address)
                if pool.removes and not shard.node.swept:
                    self._returns.inherit(Known("unswept", shard.node.address, [], True))
            if addresses.intersection(self._returns.in_debt):
                self._tidy(pool, addresses)
        self._told.set()
        for watch in self._watches.values():
            watch.wake.set()

    async def tidied(self, patience: float) -> bool:
        """Waits until no node has old values that a change of places could bring to light: what it serves no
        more, or has served for one that is back. False: not so long (seconds)."""
        limit = self._clock() + patience
        while True:
            sweepers = [watch.sweeper for watch in self._watches.values() if watch.sweeper]
            busy = [task for task in (*self._tidying.values(), *sweepers) if not task.done()]
            if not busy and not any(watch.fenced for watch in self._watches.values()):
                return True
            if (left := limit - self._clock()) <= 0:
                return False
            await asyncio.wait(busy, timeout=left) if busy else await asyncio.sleep(FENCE_STEP)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def way(self, address: str) -> Way:
        place = places_of(self._fleet.topology).get(address)
        return self._ways.of(place[0].name, place[1].name) if self._ways and place else Way()

    def bury(self, connections: Mapping[str, Sequence[str]]) -> None:
        """A worker has died: by node, its connections there, in the words of CLIENT KILL."""
        for address, ghosts in connections.items():
            if address in self._watches:
                self._keep(self._returns.bury(address, ghosts))

    # --- evidence ---

    def observe(self, evidence: Iterable[Sequence[Any]]) -> None:
        """What one worker saw: (address, then the fields of core.health.Evidence) a node."""
        now = self._clock()
        for address, *rest in evidence:
            watch = self._watches.get(address)
            if watch is None:
                continue  # it has left the topology
            health = watch.health
            health.observe(now, Evidence(*rest), self._chance())
            if health.urgent and watch.asking and not watch.asking_urgently:
                watch.asking.cancel()  # it has more patience than those who wait now
            watch.wake.set()
        self._publish()

    async def _measure_lag(self) -> None:
        while True:
            due = self._clock() + LAG_STEP
            await asyncio.sleep(LAG_STEP)
            now = self._clock()
            if now - due > LAG_STEP:
                self._lags = [*(each for each in self._lags if each[0] > now - 10.0), (now, now - due)]

    def _lagged(self, since: float, more: float) -> bool:
        return any(when >= since and late > more for when, late in self._lags)

    # --- one node ---

    async def _look_after(self, address: str, watch: Watch) -> None:
        while True:
            try:
                await self._until_due(watch)
                await self._probe(address, watch)
                self._publish()
                returns = watch.health.returning or self._undrained(address, watch)
                if returns and self._told.is_set() and not self._retired:
                    await self._bring_back(address, watch)
            except Exception as error:  # ours: the node must not stay unwatched for it
                self._log("keeper_failed", node=address, exc_info=error)
                watch.health.not_admitted(self._clock(), watch.health.reason, self._chance())
                self._publish()

    async def _until_due(self, watch: Watch) -> None:
        while (delay := watch.health.next_probe - self._clock()) > 0:
            watch.wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):  # not wait_for: see Proxy._learn
                    await watch.wake.wait()

    async def _probe(self, address: str, watch: Watch) -> None:
        health, started, unproven = watch.health, self._clock(), watch.unproven
        timeout, watch.asking_urgently = health.probe_timeout, health.urgent
        way = self.way(address)
        check = memcached.check if way.memcached else probe.check
        watch.asking = self._keep(
            check(address, way, timeout, health.policy, self._run_id, health.look_at_role)
        )
        try:
            await asyncio.wait([watch.asking])
        finally:
            watch.asking.cancel()
            asked, watch.asking = watch.asking, None
        if asked.cancelled():
            return  # there is a more urgent one to make
        watch.unproven = watch.unproven and not unproven
        failure = asked.exception()
        if failure is not None and not isinstance(failure, NodeRefuses):
            self._log("keeper_failed", node=address, exc_info=failure)
            failure = NodeRefuses(type(failure).__name__)
        if failure is None:
            self.mistaken[address] += unproven
            health.probed(self._clock(), True, "", self._chance())
            self._beat(address, watch)
            return
        await asyncio.sleep(0)  # the look at our own lag was due as well
        if failure.ours:
            self._log("not_probed", node=address, reason=str(failure))
            health.not_probed(self._clock(), self._chance())
        elif failure.refused or not self._lagged(started, LAG_PART * timeout):
            health.probed(self._clock(), False, str(failure), self._chance(), failure.refused)

    def _beat(self, address: str, watch: Watch) -> None:
        """Others that share the node learn that we use it."""
        place = places_of(self._fleet.topology).get(address)
        if place is None or place[0].on_return == "keep" or watch.health.state != "up":
            return
        if self._clock() >= watch.beat_at:
            watch.beat_at = (
                self._clock() + watch.health.policy.interval / 2
            )  # so that no probe just misses it
            self._keep(self._returns.beat(address))

    def _undrained(self, address: str, watch: Watch) -> bool:
        """It has been well all the time, and may have its keys back."""
        place = places_of(self._fleet.topology).get(address)
        return place is not None and place[1].returning and watch.health.state == "up"

    async def _bring_back(self, address: str, watch: Watch) -> None:
        """It is well again: what has to be done before its keys come back, then it is up."""
        reason, sweep, back = "it was lost again", False, ""
        try:
            place = places_of(self._fleet.topology).get(address)
            if place is None:
                raise NodeRefuses("it has left the topology")
            pool, shard = place
            back = address if shard.returning else ""
            # one that goes on draining returns when it has drained: nothing of its keys comes back now
            if back or (watch.away and not shard.draining):
                sweep = await self._returns.bring_back(address, lambda: self._fence(watch))
        except NodeRefuses as failure:
            reason = str(failure)
            returned = False
        else:
            returned = watch.health.returning or self._undrained(address, watch)
        finally:
            watch.fenced = False
        # nothing waits between the last look at its debts and the snapshot that has it up
        if not returned:
            self._log("node_not_returned", node=address, reason=reason)
            watch.health.not_admitted(self._clock(), reason, self._chance())
        else:
            watch.health.admitted(self._clock())
            watch.away = False
            watch.tidied = pool.name not in self._tidying
            if sweep:
                watch.swept = False
                if watch.sweeper is not None:
                    watch.sweeper.cancel()
                watch.sweeper = self._keep(self._sweep(address, watch))
        self._publish(back if returned else "")

    async def _fence(self, watch: Watch) -> bool:
        """Nobody uses the node, nor has anything in flight for its keys; True when all workers say so."""
        watch.fenced = True
        acknowledged = self._publish()
        return acknowledged is not None and await acknowledged

    async def _hold(self, watch: Watch) -> None:
        """Before its keys move: who has not heard of it reads there what others write elsewhere.

        Who does not say so in time is logged, and waited for no longer.
        """
        while watch.leaving:
            since = watch.health.since
            await self._fleet.set_topology(self._fleet.topology)
            watch.held = since
        watch.holding = None
        self._publish()

    async def _sweep(self, address: str, watch: Watch) -> None:
        await self._told.wait()
        await self._returns.sweep(address)
        watch.swept = True
        self._publish()

    # --- the topology ---

    def _publish(self, back: str = "") -> Awaitable[bool] | None:
        """A new snapshot, if anything has changed. back: a node whose shard has drained and does no more."""
        old = new = self._fleet.topology
        before = old.nodes
        for pool in old.pools:
            for address, (state, reason, swept) in self._shown(pool).items():
                was = before[address]
                if (state, reason, swept) != (was.state, was.reason, was.swept) or address == back:
                    new = new.with_node_state(address, state, reason, swept=swept, back=address == back)
                    self._watches[address].away |= state == "out"
                    self._watches[address].unproven |= state == "out" and was.state != "out"
                if state != was.state:
                    # at a start there is nothing to tell of a node that is well
                    event = "node_answers" if (was.state, state) == ("unknown", "up") else "node_state"
                    self._log(event, node=address, was=was.state, state=state, reason=reason)
        if new is old:
            return None
        return self._fleet.set_topology(new)

    def _shown(self, pool: Pool) -> dict[str, Shown]:
        """The nodes of one pool."""
        watches = {
            shard.node.address: self._watches[shard.node.address]
            for shard in pool.shards
            if shard.node.address in self._watches
        }
        ignored = fail_open(
            {address: watch.health for address, watch in watches.items()}, pool.health.fail_open_ratio
        )
        if pool.on_shard_down == "rehash":  # what has moved stays moved
            ignored -= {address for address, watch in watches.items() if watch.away}
        if ignored - self._ignored:
            self._log("fail_open", pool=pool.name, nodes=sorted(ignored))
        self._ignored = (self._ignored - watches.keys()) | ignored
        moving = pool.on_shard_down == "rehash" and not self._fleet.alone
        for address, watch in watches.items():
            if address in ignored:
                watch.held = None
            elif moving and watch.leaving and watch.holding is None:
                watch.holding = self._keep(self._hold(watch))
        return {address: shown(watch, address in ignored, moving) for address, watch in watches.items()}


def shown(watch: Watch, ignored: bool, moving: bool) -> Shown:
    """moving: its keys go elsewhere when it is out, and there are several workers."""
    health = watch.health
    swept = watch.swept and watch.tidied
    if watch.fenced:
        return Shown("suspect", RETURNING, swept)
    if ignored:
        return Shown("unknown", FAIL_OPEN + health.reason, swept)
    return Shown("suspect" if moving and watch.leaving else health.state, health.reason, swept)


def places_of(topology: Topology) -> Mapping[str, tuple[Pool, Shard]]:
    """By address; of a node that serves several shards the first."""
    found: dict[str, tuple[Pool, Shard]] = {}
    for pool in topology.pools:
        for shard in pool.shards:
            found.setdefault(shard.node.address, (pool, shard))
    return found
