from typing import Any

import msgspec
import pytest

from shardproxy.config import HealthConfig, TimeoutsConfig
from shardproxy.core.topology import Node, Shard, Topology


class ShardConfig(msgspec.Struct):
    """The part of config.ShardConfig that a topology is made of."""

    address: str
    weight: int = 1
    protocol: str = "redis"
    tls: bool = False
    announce: str | None = None
    password: str = "hunter2"


class PoolConfig(msgspec.Struct):
    shards: dict[str, ShardConfig]
    kind: str = "durable"
    on_shard_down: str = "error"
    on_return: str = "keep"
    distribution: str = "ring"
    hash: str = "xxh64"
    hash_tag: str = "{}"
    virtual_nodes: int = 160
    partial: str = "error"
    cross_shard: str = "refuse"
    timeout: float = 1.0
    timeouts: TimeoutsConfig = TimeoutsConfig(read=0.5, write=1.0, script=5.0)
    attempt_timeout: float = 0.5
    connect_timeout: float = 0.25
    reset_after: float = 5.0
    connections_per_node: int = 1
    retries: int = 2
    retry_budget: float = 0.1
    remember: int = 1 << 20
    stale_while_down: float = 0.0
    stale_memory: int = 1 << 20
    resolve_every: float = 30.0
    health: HealthConfig = HealthConfig()
    password: str = "hunter2"


class Config(msgspec.Struct):
    pool: dict[str, PoolConfig]


def topology(generation: int = 0, **pools: PoolConfig) -> Topology:
    return Topology.from_config(Config(pools), generation)  # type: ignore[arg-type]  # the part that is read


def three(**options: Any) -> PoolConfig:
    addresses = {"a": "127.0.0.1:7001", "b": "[::1]:7002", "c": "/run/c.sock"}
    return PoolConfig({name: ShardConfig(address) for name, address in addresses.items()}, **options)


def test_built_from_configuration() -> None:
    made = topology(7, main=three(kind="cache", timeout=0.2), other=PoolConfig({"x": ShardConfig("h:1", 3)}))
    assert made.generation == 7
    assert [pool.name for pool in made.pools] == ["main", "other"]
    main = made.pool("main")
    assert (main.kind, main.timeout, main.attempt_timeout, main.connect_timeout) == ("cache", 0.2, 0.5, 0.25)
    assert main.shards[1] == Shard("b", 1, "redis", Node("[::1]:7002", "unknown", "", ""))
    assert made.pool("other").shards[0].weight == 3
    assert main.ring.names == ("a", "b", "c")
    assert main.longest == 5.0
    assert (
        main.shortest == 0.2
        and topology(main=three(timeout=1.0, attempt_timeout=0.3)).pool("main").shortest == 0.3
    )
    with pytest.raises(KeyError, match="none"):
        made.pool("none")


def test_a_pool_that_makes_no_ring_is_named() -> None:
    with pytest.raises(ValueError, match="pool main: a ring of 0 shards"):
        topology(main=PoolConfig({}))
    with pytest.raises(ValueError, match="pool main: distribution ring hashes keys with xxh64, not 'md5'"):
        topology(main=three(hash="md5"))


def test_a_node_state_is_a_new_snapshot_wherever_the_node_serves() -> None:
    old = topology(main=three(), again=PoolConfig({"z": ShardConfig("127.0.0.1:7001")}))
    new = old.with_node_state("127.0.0.1:7001", "out", "connection refused", "7.0.15")
    node = Node("127.0.0.1:7001", "out", "connection refused", "7.0.15")
    assert new.generation == 1 and old.generation == 0
    assert (
        new.nodes["127.0.0.1:7001"]
        == new.pool("main").shards[0].node
        == new.pool("again").shards[0].node
        == node
    )
    assert old.nodes["127.0.0.1:7001"].state == "unknown"
    assert new.pool("main").shards[1:] == old.pool("main").shards[1:]
    assert new.pool("main").ring is old.pool("main").ring
    assert new.with_node_state("127.0.0.1:7001", "up").nodes["127.0.0.1:7001"].version == "7.0.15"
    assert new.with_node_state("127.0.0.1:7001", "out", "connection refused") is new
    with pytest.raises(KeyError, match="nowhere:1"):
        new.with_node_state("nowhere:1", "up")


def test_a_new_configuration_keeps_what_is_known_of_nodes_that_stay() -> None:
    old = topology(main=three()).with_node_state("/run/c.sock", "up", version="7.0.15")
    config = three()
    config.shards = {"c": config.shards["c"], "d": ShardConfig("127.0.0.1:7004", 2)}
    new = old.with_config(Config({"main": config}))  # type: ignore[arg-type]  # the part that is read
    assert new.generation == 2
    assert [shard.name for shard in new.pool("main").shards] == ["c", "d"]
    assert new.nodes["/run/c.sock"] == Node("/run/c.sock", "up", "", "7.0.15")
    assert new.nodes["127.0.0.1:7004"].state == "unknown"
    assert new.with_config(Config({"main": config})) is new  # type: ignore[arg-type]  # the part that is read


def test_homes_and_stand_ins() -> None:
    made = topology(main=three())
    pool = made.pool("main")
    key = next(key for key in (b"%d" % i for i in range(100)) if pool.home(key).name == "a")
    first = pool.stand_in(key)
    assert first is not None and first.name in ("b", "c")
    without = made.with_node_state(first.node.address, "out").pool("main")
    second = without.stand_in(key)
    assert second is not None and {first.name, second.name} == {"b", "c"}
    assert without.home(key).name == "a"
    suspect = made.with_node_state(first.node.address, "suspect").pool("main")
    assert (stand_in := suspect.stand_in(key)) is not None and stand_in.name == first.name
    assert topology(main=PoolConfig({"only": ShardConfig("h:1")})).pool("main").stand_in(b"x") is None


def test_a_stand_in_speaks_the_protocol_of_the_home() -> None:
    config = three()
    config.shards["b"].protocol = "memcached"
    pool = topology(main=config).pool("main")
    for key in (b"%d" % i for i in range(200)):
        stand_in = pool.stand_in(key)
        assert (stand_in and stand_in.name) == {"a": "c", "b": None, "c": "a"}[pool.home(key).name]


def test_a_shard_that_drains_leaves_its_keys_to_its_like() -> None:
    config = three()
    config.shards["a"].protocol = config.shards["b"].protocol = "memcached"
    made = topology(main=config)
    before, after = made.pool("main"), made.with_draining({"main": ["a"]}).pool("main")
    for key in (b"%d" % i for i in range(200)):
        home = before.home(key).name
        assert after.home(key).name == ("b" if home == "a" else home)
    for names in (["c"], ["a", "b"]):
        with pytest.raises(ValueError, match=rf"no shard would be left for its keys \({', '.join(names)}\)"):
            made.with_draining({"main": names})


def test_json_there_and_back_with_fingerprints_and_no_credentials() -> None:
    made = topology(3, main=three(), old=three(distribution="ketama", hash="md5", hash_tag=""))
    data = made.as_json()
    assert Topology.from_json(data) == made
    assert b"hunter2" not in data
    shown = msgspec.json.decode(data)
    assert shown["generation"] == 3
    assert shown["pools"][0]["fingerprint"] == made.pools[0].ring.fingerprint
    assert shown["pools"][0]["shards"][1]["node"] == {
        "address": "[::1]:7002",
        "state": "unknown",
        "reason": "",
        "version": "",
        "swept": True,
    }
    with pytest.raises(msgspec.ValidationError):
        Topology.from_json(data.replace(b'"unknown"', b'"sleepy"'))


def test_who_follows_is_told_the_announced_address() -> None:
    config = three()
    config.shards["a"].announce = "rediss://cache-a.example:7443"
    config.shards["c"] = ShardConfig("10.0.0.3:7003", tls=True, announce="unix:///run/near.sock")
    made = topology(main=config).with_node_state("10.0.0.3:7003", "out", "gone")
    assert Topology.from_json(made.as_json()) == made
    told = [(shard.node.address, shard.tls, shard.announce) for shard in made.announced().pools[0].shards]
    assert told == [
        ("cache-a.example:7443", True, ""),
        ("[::1]:7002", False, ""),
        ("/run/near.sock", False, ""),
    ]
    assert made.announced().pools[0].shards[2].node.reason == "gone"
    assert made.announced().pools[0].ring is made.pools[0].ring
    assert made.announced().generation == made.generation


def test_snapshots_do_not_change() -> None:
    made = topology(main=three())
    for record, field in (
        (made, "generation"),
        (made.pools[0], "kind"),
        (made.nodes["/run/c.sock"], "state"),
    ):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(record, field, "x")
