"""What a client knows of its nodes, and what follows for its requests: the core's state machine a node.

Owns one `Health` a node and the pool's snapshot with their states. No sockets and no clock: `now` is an
argument, and who has the time makes the trials. Rules: what its own requests meet makes a node suspect, a
refused connection puts it out; only a trial (a PING on a new connection) brings it back, by one caller at a
time and not before `health.wait`. While a proxy is followed it is the proxies who say what is out: what a
client meets by itself makes a node suspect at most, for where it sends a key others would not look for it. No
node is ever flushed.
"""

import os
import random
import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple

from shardproxy.core.health import Evidence, Health, fail_open
from shardproxy.core.topology import Node, Pool, State, Topology


class Transition(NamedTuple):
    """A node's state has changed; `shards`: the names of those whose keys it holds."""

    address: str
    shards: tuple[str, ...]
    old: State
    new: State
    reason: str


class Nodes:
    """The nodes of one pool as one client sees them; safe to use from several threads.

    on_change(pool): there is a new snapshot, called under the lock; on_transition(Transition): a node's
    state has changed, called after it, by the thread that made it so.
    """

    def __init__(
        self,
        pool: Pool,
        now: float,
        on_change: Callable[[Pool], None],
        on_transition: Callable[[Transition], None] | None = None,
    ) -> None:
        self._lock = threading.RLock()
        self._on_change, self._on_transition = on_change, on_transition
        self._healths: dict[str, Health] = {}
        self._trying: set[str] = set()
        self._streaks: dict[str, int] = {}
        self._followed = False
        self.probes = False  # somebody looks at all nodes: calls need not try those that are out
        self.wake: Callable[[], None] = lambda: None  # tells who probes that `probe_at` may be sooner
        self._told: dict[str, Node] = {}  # what the proxies say, while they are followed
        self._news: list[Transition] = []
        self._topology = Topology(0, (pool,))
        self._fill(now)
        _ALIVE.add(self)

    @property
    def pool(self) -> Pool:
        return self._topology.pools[0]

    @property
    def topology(self) -> Topology:
        return self._topology

    @property
    def trial_at(self) -> float:
        """When the next trial is due; infinite: all nodes are well."""
        return min(map(self._due, self._healths), default=float("inf"))

    @property
    def probe_at(self) -> float:
        """When the next probe is due, for who probes; of the nodes that nobody tries just now."""
        with self._lock:
            waiting = [each for each in self._healths if each not in self._trying]
            return min((self._due(each, True) for each in waiting), default=float("inf"))

    def apply(self, topology: Topology, pool: str, now: float, followed: bool) -> None:
        """Another snapshot takes this one's place. followed: its nodes' states are proxies' verdicts."""
        with self._lock:
            old = self._topology
            self._followed = followed
            new = topology.pool(pool)
            before, self._told = self._told, {}
            if followed:
                self._told = {shard.node.address: shard.node for shard in new.shards}
            for address, node in self._told.items():
                was = before.get(address)
                if node.state == "up" and was is not None and was.state in ("out", "suspect"):
                    self._healths.pop(
                        address, None
                    )  # they have brought it back: our doubts are of before that
            self._topology = Topology(topology.generation, (new,))
            self._fill(now)
            self._settle(old)
            self._on_change(self.pool)
        self.wake()
        self._tell()

    def forked(self) -> None:
        """After a fork: a lock that another thread held is never given back."""
        self._lock = threading.RLock()
        self.wake = lambda: None
        self._trying.clear()

    def slow(self, address: str, now: float, ok: int, slow: int = 1) -> None:
        """Requests took longer than `slow_call`, the last of `ok` that were answered."""
        self._observe(address, now, Evidence(max(ok, slow), 0, slow, 0, False, ""))

    def failed(self, address: str, now: float, reason: str, refused: bool = False, ok: int = 0) -> None:
        """A request failed, after `ok` that did not. refused: no connection could be made at all."""
        streak = 1 if ok else self._streaks.get(address, 0) + 1
        self._streaks[address] = streak
        self._observe(address, now, Evidence(ok, 1, 0, streak, refused, reason))

    def claim(self, now: float, probing: bool = False) -> str | None:
        """The address of a node whose trial is due; the caller makes it and says `tried`.

        probing: all nodes are looked at, also those of which nothing bad is known.
        """
        with self._lock:
            for address in self._healths:
                if address not in self._trying and now >= self._due(address, probing):
                    self._trying.add(address)
                    return address
        return None

    def claim_node(self, address: str) -> bool:
        """Whether the caller may make this node's trial now, due or not: somebody waits for it."""
        with self._lock:
            if address not in self._healths or address in self._trying:
                return False
            self._trying.add(address)
            return True

    def trials(self, address: str) -> int:
        """How many PINGs in a row bring this node back."""
        health = self._healths.get(address)
        return health.policy.successes if health is not None and health.state == "out" else 1

    def tried(self, address: str, now: float, ok: bool, reason: str = "", refused: bool = False) -> None:
        """What a trial found: all PINGs were answered, or why not."""
        with self._lock:
            self._trying.discard(address)
            health = self._healths.get(address)
            if health is None:
                return
            old = self._topology
            if ok:
                self._streaks[address] = 0
                for _ in range(self.trials(address)):
                    health.probed(now, True, "", random.random())
                if health.returning:
                    health.admitted(now)
            else:
                was_out = health.state == "out"
                health.probed(now, False, reason, random.random(), refused)
                if was_out:
                    health.put_off_trial(now, random.random())
            self._settle(old)
        self.wake()
        self._tell()

    def _due(self, address: str, probing: bool = False) -> float:
        health = self._healths[address]
        if self._followed and self._told.get(address, Node("")).state == "out":
            return float("inf")  # who says so says when it is back
        if health.state == "suspect" or probing:
            return health.next_probe
        return health.trial_at if health.state == "out" and not self.probes else float("inf")

    def _observe(self, address: str, now: float, evidence: Evidence) -> None:
        with self._lock:
            health = self._healths.get(address)
            if health is None:
                return
            old = self._topology
            health.observe(now, evidence, random.random())
            if not evidence.failed:
                self._streaks[address] = 0
            self._settle(old)
        if evidence.failed:
            self.wake()
        self._tell()

    def _tell(self) -> None:
        """Outside the lock: who is told may call the client."""
        while self._on_transition is not None and self._news:
            self._on_transition(self._news.pop(0))

    def _fill(self, now: float) -> None:
        pool = self.pool
        deadline = pool.shortest
        addresses = self._topology.nodes
        self._healths = {
            address: self._healths.get(address) or Health(pool.health, now, random.random(), deadline)
            for address in addresses
        }
        self._streaks = {address: self._streaks.get(address, 0) for address in addresses}
        self._trying &= addresses.keys()

    def _settle(self, old: Topology) -> None:
        """The snapshot gets the states that follow from what is known; who wants to know is told."""
        ignored = fail_open(self._healths, self.pool.health.fail_open_ratio)
        topology = self._topology
        for address, health in self._healths.items():
            state, reason = health.state, health.reason
            if address in ignored:
                state, reason = "unknown", "too many nodes look down: the fault is likely ours"
            told = self._told.get(address)
            swept = None
            if told is not None:
                state = "suspect" if state == "out" else state
                swept = told.swept
                if told.state in ("out", "suspect") or state == "unknown":
                    state, reason = told.state, told.reason
            if topology.nodes[address].state != state or swept is not None:
                topology = topology.with_node_state(address, state, reason, swept=swept)
        if topology is self._topology and topology is old:
            return
        self._topology = topology
        self._on_change(self.pool)
        if self._on_transition is None:
            return
        before = old.nodes
        for address, node in topology.nodes.items():
            was = before[address].state if address in before else "unknown"
            if was != node.state:
                shards = tuple(each.name for each in self.pool.shards if each.node.address == address)
                self._news.append(Transition(address, shards, was, node.state, node.reason))


_ALIVE: weakref.WeakSet[Nodes] = weakref.WeakSet()


def _forked() -> None:
    for nodes in list(_ALIVE):
        nodes.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
