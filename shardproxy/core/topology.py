"""The topology: which pools, shards and nodes there are, and how each node is doing.

Owns: the records and the pure functions that derive one snapshot from another. A snapshot never changes: a
change is a new one with the next generation, swapped in one step, so nobody sees half of it. Holds addresses
and never credentials: whatever is here may be shown (`as_json`) or sent to a worker.
"""

import functools
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from shardproxy.core.health import Policy
from shardproxy.core.ring import Ring

if TYPE_CHECKING:
    from shardproxy.config import Config, PoolConfig

State = Literal["unknown", "up", "suspect", "out"]
# serve: its node does; fail: an error at once; miss: reads find nothing, writes fail; hold: kept, unsent,
# until the verdict or their deadline; move: its stand-ins serve
Mode = Literal["serve", "fail", "miss", "hold", "move"]


class Node(msgspec.Struct, frozen=True):
    """One server, at "HOST:PORT", "[IPV6]:PORT" or "/PATH"; `reason` says why it is in its state."""

    address: str
    state: State = "unknown"
    reason: str = ""
    version: str = ""
    swept: bool = True  # False: its stand-ins may keep old values of its keys, which must not be served again


class Shard(msgspec.Struct, frozen=True):
    name: str
    weight: int
    protocol: str
    node: Node
    draining: bool = False  # PROXY DRAIN: its keys go elsewhere, its node stays connected until it is idle


class Timeouts(msgspec.Struct, frozen=True):
    """How long a request may take in all, by its class. Seconds."""

    read: float
    write: float
    script: float


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """The shards of one ring and what holds for all of them. Times are seconds."""

    name: str
    kind: str
    on_shard_down: str
    on_return: str
    distribution: str
    hash: str
    hash_tag: str
    virtual_nodes: int
    partial: str
    timeout: float
    timeouts: Timeouts
    attempt_timeout: float
    connect_timeout: float
    reset_after: float
    connections_per_node: int
    retries: int
    retry_budget: float
    remember: int
    stale_while_down: float
    stale_memory: int
    resolve_every: float
    health: Policy
    shards: tuple[Shard, ...]

    @property
    def longest(self) -> float:
        """What any request may take in all."""
        return max(self.timeout, self.timeouts.read, self.timeouts.write, self.timeouts.script)

    @property
    def placed(self) -> tuple[Shard, ...]:
        """The shards on the ring, as it numbers them: all but those that drain."""
        return tuple(shard for shard in self.shards if not shard.draining)

    @property
    def ring(self) -> Ring:
        """The same object for as long as placement stays the same, over any number of snapshots.

        Raises ValueError when the shards make no ring; a pool from `Topology.from_config` never does.
        """
        names = tuple((shard.name, shard.weight) for shard in self.placed)
        return _ring(names, self.distribution, self.virtual_nodes, self.hash, self.hash_tag)

    def mode(self, shard: Shard) -> Mode:
        """What a request for this shard's keys gets now, by its node's state and the pool's policy."""
        state = shard.node.state
        if state in ("up", "unknown"):
            return "serve"
        if self.on_shard_down != "rehash":
            return "miss" if self.on_shard_down == "miss" else "fail"
        if state == "suspect":
            return "hold"
        return "move" if shard.node.swept else "miss"

    def home(self, key: bytes) -> Shard:
        """The shard that a key belongs to, whatever its state."""
        number = self.ring.locate(key)
        assert number is not None
        return self.placed[number]

    def stand_in(self, key: bytes) -> Shard | None:
        """The shard that would hold a key if its home were out, past those that are; None: there is none."""
        home = self.home(key)
        number = self.ring.locate(key, self.no_stand_in(home))
        return None if number is None else self.placed[number]

    def no_stand_in(self, home: Shard) -> frozenset[int]:
        """Ring numbers of those that cannot hold home's keys: itself, those out, any of another protocol."""
        return frozenset(
            number
            for number, shard in enumerate(self.placed)
            if shard.name == home.name or shard.node.state == "out" or shard.protocol != home.protocol
        )

    def shard(self, name: str) -> Shard:
        """Raises KeyError when there is none of that name."""
        for shard in self.shards:
            if shard.name == name:
                return shard
        raise KeyError(name)

    def with_draining(self, names: Collection[str]) -> Self:
        """The same, of whose shards exactly these drain. Raises ValueError when none is left for the keys."""
        shards = [msgspec.structs.replace(shard, draining=shard.name in names) for shard in self.shards]
        if all(shard.draining for shard in shards):
            named = ", ".join(shard.name for shard in shards)
            raise ValueError(f"pool {self.name}: no shard would be left for its keys ({named})")
        pool = msgspec.structs.replace(self, shards=tuple(shards))
        pool.ring  # noqa: B018  # built here, as in from_config
        return pool

    @classmethod
    def from_config(cls, name: str, config: "PoolConfig") -> Self:
        shards = tuple(
            Shard(shard_name, shard.weight, shard.protocol, Node(shard.address))
            for shard_name, shard in config.shards.items()
        )
        same = {
            field: getattr(config, field)
            for field in cls.__struct_fields__
            if field not in ("name", "shards", "health", "timeouts")
        }
        health = {field: getattr(config.health, field) for field in Policy.__struct_fields__}
        health["slow_call"] = health["slow_call"] or config.timeout / 2
        timeouts = Timeouts(*(getattr(config.timeouts, field) for field in Timeouts.__struct_fields__))
        pool = cls(name=name, shards=shards, health=Policy(**health), timeouts=timeouts, **same)
        try:
            pool.ring  # noqa: B018  # built here, so that a mistake is found now
        except ValueError as error:
            raise ValueError(f"pool {name}: {error}") from None
        return pool


class Topology(msgspec.Struct, frozen=True):
    """A snapshot of everything. Compare generations to tell which of two is newer."""

    generation: int
    pools: tuple[Pool, ...]

    @classmethod
    def from_config(cls, config: "Config", generation: int = 0) -> Self:
        """Every node's state is unknown. Raises ValueError naming the pool whose shards make no ring."""
        return cls(generation, tuple(Pool.from_config(name, pool) for name, pool in config.pool.items()))

    @property
    def nodes(self) -> dict[str, Node]:
        """By address; one that serves several shards is here once."""
        return {shard.node.address: shard.node for pool in self.pools for shard in pool.shards}

    def pool(self, name: str) -> Pool:
        """Raises KeyError when there is none of that name."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise KeyError(name)

    def with_node_state(
        self,
        address: str,
        state: State,
        reason: str = "",
        version: str | None = None,
        swept: bool | None = None,
    ) -> Self:
        """The next snapshot, with this node in this state wherever it serves; `self` if nothing changes.

        version: what the node says it runs; swept: see Node; None keeps what is known. Raises KeyError
        for an unknown address.
        """
        old = self.nodes[address]
        node = Node(
            address,
            state,
            reason,
            old.version if version is None else version,
            old.swept if swept is None else swept,
        )
        return self if node == old else self._next(self.pools, {address: node})

    def with_config(self, config: "Config") -> Self:
        """The next snapshot, of a changed configuration; `self` if nothing changes.

        A node that stays keeps its state, a shard that drains goes on draining. Raises ValueError as
        `from_config`, and when only shards that drain would stay.
        """
        pools = self.from_config(config).pools
        drained = self.draining
        pools = tuple(pool.with_draining(drained.get(pool.name, ())) for pool in pools)
        new = self._next(pools, self.nodes)
        return self if new.pools == self.pools else new

    @property
    def draining(self) -> dict[str, tuple[str, ...]]:
        """By pool, the names of the shards that drain; pools where none does are left out."""
        found = {
            pool.name: tuple(shard.name for shard in pool.shards if shard.draining) for pool in self.pools
        }
        return {name: names for name, names in found.items() if names}

    def with_draining(self, drained: Mapping[str, Collection[str]]) -> Self:
        """The next snapshot, where of each pool exactly these shards drain; `self` if nothing changes.

        Raises ValueError when no shard of a pool would be left for its keys.
        """
        pools = tuple(pool.with_draining(drained.get(pool.name, ())) for pool in self.pools)
        return self if pools == self.pools else self._next(pools, {})

    def again(self) -> Self:
        """The next snapshot, of the same: for what changes beside it, as logins do."""
        return self._next(self.pools, {})

    def _next(self, pools: tuple[Pool, ...], nodes: dict[str, Node]) -> Self:
        replace = msgspec.structs.replace

        def with_nodes(pool: Pool) -> Pool:
            shards = [replace(shard, node=nodes.get(shard.node.address, shard.node)) for shard in pool.shards]
            return replace(pool, shards=tuple(shards))

        return type(self)(self.generation + 1, tuple(map(with_nodes, pools)))

    def as_json(self) -> bytes:
        """For PROXY TOPOLOGY and for workers: the records as they are, and each pool's ring fingerprint."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        for shown, pool in zip(document["pools"], self.pools, strict=True):
            shown["fingerprint"] = pool.ring.fingerprint
        return msgspec.json.encode(document)

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """What `as_json` made. Raises msgspec.ValidationError for anything else."""
        return msgspec.json.decode(data, type=cls)


@functools.lru_cache(maxsize=64)
def _ring(
    shards: tuple[tuple[str, int], ...], distribution: str, virtual_nodes: int, hash: str, hash_tag: str
) -> Ring:
    return Ring(shards, distribution, virtual_nodes, hash, hash_tag)
