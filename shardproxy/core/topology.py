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
RETURNING = "returning"  # the reason of a node behind the fence


FAIL_OPEN = "fail open: "  # begins the reason of such a node's state


class Node(msgspec.Struct, frozen=True):
    """One server, at "HOST:PORT", "[IPV6]:PORT" or "/PATH"; `reason` says why it is in its state."""

    address: str
    state: State = "unknown"
    reason: str = ""
    version: str = ""
    swept: bool = True  # False: its stand-ins may keep old values of its keys, which must not be served again

    @property
    def stays(self) -> bool:
        """It looks down and is used on all the same, since most do: no verdict is coming."""
        return self.state == "unknown" and self.reason.startswith(FAIL_OPEN)


class Shard(msgspec.Struct, frozen=True):
    name: str
    weight: int
    protocol: str
    node: Node
    tls: bool = False
    announce: str = ""  # the URL at which programs that follow us reach it; "": as we do
    draining: bool = False  # PROXY DRAIN: its keys go elsewhere, its node stays connected until it is idle
    returning: bool = False  # PROXY UNDRAIN: it drains until its node has been brought back


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
    cross_shard: str
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
    def shortest(self) -> float:
        """What the most impatient request may take, or one try of it."""
        times = (self.attempt_timeout, self.timeouts.read, self.timeouts.write, self.timeouts.script)
        return min(self.timeout, *(time for time in times if time))

    @property
    def ring(self) -> Ring:
        """The same object for as long as placement stays the same, over any number of snapshots.

        Raises ValueError when the shards make no ring; a pool from `Topology.from_config` never does.
        """
        names = tuple((shard.name, shard.weight) for shard in self.shards)
        return _ring(names, self.distribution, self.virtual_nodes, self.hash, self.hash_tag)

    @property
    def memcached(self) -> frozenset[str]:
        """Names of the shards whose nodes are memcacheds."""
        return frozenset(shard.name for shard in self.shards if shard.protocol == "memcached")

    def mode(self, shard: Shard) -> Mode:
        """What a request for this shard's keys gets now, by its node's state and the pool's policy."""
        state = shard.node.state
        if shard.draining:
            if shard.returning and state == "suspect":
                return "hold"
            return "move" if self.moves(shard) else "miss"
        if state in ("up", "unknown"):
            return "serve"
        if self.on_shard_down != "rehash":
            return "miss" if self.on_shard_down == "miss" else "fail"
        if state == "suspect":
            return "hold"
        return "move" if self.moves(shard) else "miss"

    def moves(self, shard: Shard) -> bool:
        """Whether stand-ins may have its keys: they keep no old values of them.

        Nor of what another that is away has stood in with: its guests would go on to who had them before.
        """
        return all(
            each.node.swept
            for each in self.shards
            if each.name == shard.name or each.draining or each.node.state == "out"
        )

    @property
    def removes(self) -> bool:
        """Whether what is old is deleted: there are no other values of its keys to be found."""
        return self.on_return != "keep"

    def elsewhere(self, shard: Shard) -> bool:
        """Whether its keys are with stand-ins; then it stands in for nobody either, swept or not."""
        if shard.draining:
            return self.mode(shard) != "hold"
        return shard.node.state == "out" and self.on_shard_down == "rehash"

    def owner(self, key: bytes) -> Shard:
        """Who has a key by the ring, whoever is out or drains."""
        number = self.ring.locate(key)
        assert number is not None
        return self.shards[number]

    def home(self, key: bytes, undrained: str = "") -> Shard:
        """The shard that a key belongs to, whatever its state; none that drains, but for the one named."""
        drained = {
            number for number, each in enumerate(self.shards) if each.draining and each.name != undrained
        }
        owner = self.owner(key)
        if owner.draining and self.memcached:
            protocol = owner.protocol
            drained |= {other for other, each in enumerate(self.shards) if each.protocol != protocol}
        number = self.ring.locate(key, drained)
        assert number is not None
        return self.shards[number]

    def stand_in(self, key: bytes) -> Shard | None:
        """The shard that would hold a key if its home were out, past those that are; None: there is none."""
        home = self.home(key)
        number = self.ring.locate(key, self.no_stand_in(home))
        return None if number is None else self.shards[number]

    def no_stand_in(self, home: Shard) -> frozenset[int]:
        """Ring numbers of those that cannot hold its keys: itself, who is out or drains, another protocol."""
        return frozenset(
            number
            for number, shard in enumerate(self.shards)
            if shard.name == home.name
            or shard.node.state == "out"
            or shard.draining
            or shard.protocol != home.protocol
        )

    def shard(self, name: str) -> Shard:
        """Raises KeyError when there is none of that name."""
        for shard in self.shards:
            if shard.name == name:
                return shard
        raise KeyError(name)

    def with_draining(self, names: Collection[str]) -> Self:
        """The same, of whose shards exactly these drain. Raises ValueError when none is left for the keys.

        Where old values are removed, one that drained goes on until it has been brought back.
        """

        def placed(shard: Shard) -> Shard:
            returning = self.removes and shard.draining and shard.name not in names
            draining = returning or shard.name in names
            return msgspec.structs.replace(shard, draining=draining, returning=returning)

        shards = tuple(map(placed, self.shards))
        staying = {shard.protocol for shard in shards if not shard.draining}
        if stuck := [shard for shard in shards if shard.protocol not in staying]:
            named = ", ".join(shard.name for shard in stuck)
            raise ValueError(f"pool {self.name}: no shard would be left for its keys ({named})")
        return msgspec.structs.replace(self, shards=shards)

    def with_back(self, address: str) -> Self:
        """The same, where what was returning on this node drains no more."""
        shards = (
            msgspec.structs.replace(shard, draining=False, returning=False)
            if shard.returning and shard.node.address == address
            else shard
            for shard in self.shards
        )
        return msgspec.structs.replace(self, shards=tuple(shards))

    def following(self, old: Self, known: Collection[str]) -> Self:
        """The same, of whose shards those drain that did. known: addresses of nodes that there were before.

        A new node of a shard whose keys are elsewhere, or whose stand-ins are not swept, has to return first.
        """
        before = {shard.name: shard for shard in old.shards}

        def carried(shard: Shard) -> Shard:
            was, node = before.get(shard.name), shard.node
            if was is None:
                return shard
            if node.address not in known and self.removes:
                if was.node.state == "out" or was.node.reason == RETURNING:
                    node = Node(node.address, "out", "it has taken the place of one that was out")
                node = msgspec.structs.replace(node, swept=was.node.swept)
            return msgspec.structs.replace(shard, draining=was.draining, returning=was.returning, node=node)

        pool = msgspec.structs.replace(self, shards=tuple(map(carried, self.shards)))
        return pool.with_draining([each.name for each in pool.shards if each.draining and not each.returning])

    @classmethod
    def from_config(cls, name: str, config: "PoolConfig") -> Self:
        shards = tuple(
            Shard(
                shard_name,
                shard.weight,
                shard.protocol,
                Node(shard.address),
                tls=shard.tls,
                announce=shard.announce or "",
            )
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


def replaced(old: Pool, new: Pool) -> bool:
    """Whether keys are looked for with other nodes than before, of those that stay."""
    before = {shard.node.address: shard.name for shard in old.shards}
    return old.ring.fingerprint != new.ring.fingerprint or any(
        before.get(shard.node.address, shard.name) != shard.name for shard in new.shards
    )


def places(pool: Pool) -> Any:
    """Where its keys are: what is equal for two pools that look for every key at the same node."""
    there = {shard.name: (shard.node.address, shard.protocol, pool.elsewhere(shard)) for shard in pool.shards}
    return pool.ring.fingerprint, there


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
        back: bool = False,
    ) -> Self:
        """The next snapshot, with this node in this state wherever it serves; `self` if nothing changes.

        version: what the node says it runs; swept: see Node; None keeps what is known. back: its shards
        that drained and are returning have returned. Raises KeyError for an unknown address.
        """
        old = self.nodes[address]
        node = Node(
            address,
            state,
            reason,
            old.version if version is None else version,
            old.swept if swept is None else swept,
        )
        pools = tuple(pool.with_back(address) for pool in self.pools) if back else self.pools
        return self if node == old and pools == self.pools else self._next(pools, {address: node})

    def with_config(self, config: "Config") -> Self:
        """The next snapshot, of a changed configuration; `self` if nothing changes.

        A node that stays keeps its state, a shard that drains goes on draining. Raises ValueError as
        `from_config`, and when only shards that drain would stay.
        """
        before, known = {pool.name: pool for pool in self.pools}, self.nodes
        pools = tuple(
            pool.following(before[pool.name], known) if pool.name in before else pool
            for pool in self.from_config(config).pools
        )
        new = self._next(pools, known)
        return self if new.pools == self.pools else new

    def moves_keys(self, new: Self) -> bool:
        """Whether a key of a pool that stays is looked for at another node in the new one."""
        after = {pool.name: pool for pool in new.pools}
        return any(pool.name in after and places(pool) != places(after[pool.name]) for pool in self.pools)

    @property
    def draining(self) -> dict[str, tuple[str, ...]]:
        """By pool, the names of the shards that drain; pools where none does are left out."""
        found = {
            pool.name: tuple(shard.name for shard in pool.shards if shard.draining and not shard.returning)
            for pool in self.pools
        }
        return {name: names for name, names in found.items() if names}

    @property
    def away(self) -> dict[str, tuple[str, bool]]:
        """By address: nodes that are out, with the reason, or whose stand-ins are not swept (False)."""
        return {
            address: ("" if node.state not in ("out", "suspect") else node.reason or "out", node.swept)
            for address, node in self.nodes.items()
            if node.state == "out" or node.reason == RETURNING or not node.swept
        }

    def with_away(self, away: Mapping[str, tuple[str, bool]]) -> Self:
        """The next snapshot, where these nodes are so again, as far as they are in it."""
        made = self
        for address in away.keys() & self.nodes.keys():
            reason, swept = away[address]
            made = made.with_node_state(address, "out" if reason else "unknown", reason, swept=swept)
        return made

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

    def as_json(self, **more: str) -> bytes:
        """For PROXY TOPOLOGY and for workers: the records as they are, and each pool's ring fingerprint."""
        document: dict[str, Any] = more | msgspec.to_builtins(self)
        for shown, pool in zip(document["pools"], self.pools, strict=True):
            shown["fingerprint"] = pool.ring.fingerprint
        return msgspec.json.encode(document)

    def announced(self) -> Self:
        """As it is for programs that reach the nodes themselves: at the addresses announced to them."""
        replace = msgspec.structs.replace

        def shown(shard: Shard) -> Shard:
            scheme, mark, address = shard.announce.partition("://")
            if not mark:
                return shard
            return replace(
                shard, node=replace(shard.node, address=address), tls=scheme == "rediss", announce=""
            )

        pools = (replace(pool, shards=tuple(map(shown, pool.shards))) for pool in self.pools)
        return replace(self, pools=tuple(pools))

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """What `as_json` made. Raises msgspec.ValidationError for anything else."""
        return msgspec.json.decode(data, type=cls)


@functools.lru_cache(maxsize=64)
def _ring(
    shards: tuple[tuple[str, int], ...], distribution: str, virtual_nodes: int, hash: str, hash_tag: str
) -> Ring:
    return Ring(shards, distribution, virtual_nodes, hash, hash_tag)
