"""What a node has to delete: keys that are not its to serve, and what is remembered of them."""

import pytest

from shardproxy.config import Config, PoolConfig, ShardConfig
from shardproxy.core.topology import Topology
from shardproxy.proxy.owing import Owed
from shardproxy.proxy.returns import misplaced

A, B, C = (f"127.0.0.1:{port}" for port in (7001, 7002, 7003))
SHARDS = {
    name: ShardConfig(primary=f"redis://{address}") for name, address in zip("abc", (A, B, C), strict=True)
}
TOPOLOGY = Topology.from_config(
    Config(
        pool={"main": PoolConfig(kind="cache", on_shard_down="rehash", on_return="invalidate", shards=SHARDS)}
    )
)


def test_what_is_owed_is_bounded() -> None:
    owed = Owed(1000)
    assert not owed
    owed.add([b"one", b"two", b"one"])
    assert owed and owed.keys == {b"one", b"two"}
    owed.add(b"key %d" % number for number in range(100))
    assert owed.everything and not owed.keys
    other = Owed(1000)
    other.merge(owed)
    assert other.everything


def test_misplaced_keys() -> None:
    pool = TOPOLOGY.pools[0]
    keys = [b"key %d" % number for number in range(300)]
    for shard in pool.shards:
        for key in keys:
            assert misplaced(pool, shard, key) == (pool.home(key).name != shard.name)
        # of all that begins like ours only what is ours is left alone
        for ours in (b"shardproxy:heartbeats", b"shardproxy:probe:1:2"):
            assert not misplaced(pool, shard, ours)
        for key in (b"shardproxy:", b"shardproxy:mine", b"shardproxy:heart", b"shardproxy:prob"):
            assert misplaced(pool, shard, key) == (pool.home(key).name != shard.name)
    for state in ("out", "suspect"):
        pool = TOPOLOGY.with_node_state(A, state).pools[0]  # type: ignore[arg-type]
        for key in keys:
            places = [shard.name for shard in pool.shards if not misplaced(pool, shard, key)]
            if (home := pool.home(key)).name == "a":
                stand_in = pool.stand_in(key)
                assert stand_in is not None and set(places) == {"a", stand_in.name}
            else:
                assert places == [home.name]


@pytest.mark.parametrize("state", ["up", "suspect", "out"])
def test_what_stand_ins_keep_of_one_that_is_being_swept_is_misplaced_however_it_is_doing(state: str) -> None:
    pool = TOPOLOGY.with_node_state(A, state, swept=False).pools[0]  # type: ignore[arg-type]
    drained = pool.with_draining(["a"])
    for key in (b"key %d" % number for number in range(300)):
        if pool.owner(key).name != "a":
            continue
        for shard in pool.shards:
            assert misplaced(pool, shard, key) == (shard.name != "a")
            assert misplaced(pool, shard, key, "a") or shard.name == "a"
        for shard in drained.shards[1:]:
            assert misplaced(drained, shard, key, "a")


def test_guests_of_one_that_is_out_again_and_not_swept_are_with_nobody() -> None:
    """a is out; b, which stood in for it, has been out as well, and c then: what c keeps is old."""
    topology = TOPOLOGY.with_node_state(A, "out")
    pool = topology.with_node_state(B, "out", swept=False).pools[0]
    a, b, c = pool.shards
    assert (pool.mode(a), pool.mode(b), pool.mode(c)) == ("miss", "miss", "serve")
    for key in (b"key %d" % number for number in range(100)):
        assert misplaced(pool, c, key) == (pool.owner(key).name != "c")
    swept = topology.with_node_state(B, "out", swept=True).pools[0]
    assert [swept.mode(shard) for shard in swept.shards] == ["move", "move", "serve"]
