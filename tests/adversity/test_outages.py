"""One of three nodes is killed, hangs, stumbles: how many errors clients see, what moves and what does not.

Counts are asserted, never times. What a returning node means is in test_returning_nodes.
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest
from asking import counters, node_of, shard_of
from servers import MemcachedNode, ProxyProcess, Raw, RedisNode, pack, toml, until

REHASH = 'kind = "cache"\non_shard_down = "rehash"\non_return = "invalidate"'
HEALTH = 'timeout = "500ms"\nhealth = { interval = "1s" }'
KEYS = [f"key:{number}" for number in range(600)]


@dataclass
class Stage:
    nodes: Mapping[str, RedisNode | MemcachedNode]
    proxy: ProxyProcess
    raw: Raw
    homes: dict[str, str]  # key → shard

    def keys_of(self, shard: str) -> list[str]:
        return [key for key, home in self.homes.items() if home == shard]

    def written(self) -> bool:
        """Whether all keys could be; on a machine with other work a deadline may pass."""
        self.raw.send(b"".join(pack("SET", key, f"of {key}") for key in KEYS))
        return set(self.raw.frames(len(KEYS))) == {b"+OK\r\n"}

    def becomes(self, shard: str, state: str) -> None:
        until(lambda: node_of(self.raw, shard)["state"] == state, f"{shard} to be {state}")

    def states(self, shard: str) -> list[str]:
        """Those that it has been in, after the first "up"."""
        address = self.nodes[shard].address
        states = [event["state"] for event in self.proxy.events("node_state") if event["node"] == address]
        return states[1:]

    def read(self, *keys: str) -> list[bytes]:
        """Errors among what a client that only reads is told, key by key."""
        replies = [self.raw.ask("GET", key) for key in keys]
        return [reply for reply in replies if reply.startswith(b"-")]


@pytest.fixture(params=[1, 2], ids=["1 worker", "2 workers"])
def workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def policy() -> str:
    return REHASH


@pytest.fixture
def kinds() -> Sequence[type[RedisNode | MemcachedNode]]:
    """Of a, b and c; test_memcached_outages has others."""
    return [RedisNode] * 3


@pytest.fixture
def stage(workers: int, policy: str, kinds: Sequence[type[RedisNode | MemcachedNode]]) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        nodes = {shard: stack.enter_context(kind()) for shard, kind in zip("abc", kinds, strict=True)}
        shards = {shard: node.url for shard, node in nodes.items()}
        config = toml(shards, top=f"workers = {workers}", pool=f"{policy}\n{HEALTH}")
        with ProxyProcess(config) as proxy, proxy.raw() as raw:
            places = json.loads(raw.value("PROXY", "LOCATE", *KEYS))
            homes = {key: str(place["shard"]) for key, place in zip(KEYS, places, strict=True)}
            made = Stage(nodes, proxy, raw, homes)
            for shard in "abc":
                made.becomes(shard, "up")
            until(made.written, "all keys to be written")
            yield made


# --- rehash ---


def test_killed_a_client_that_only_reads_sees_no_error(stage: Stage) -> None:
    assert not stage.read(*KEYS)
    stage.nodes["a"].kill()
    assert not stage.read(*KEYS, *KEYS)
    stage.becomes("a", "out")
    assert not stage.read(*KEYS)
    stage.nodes["a"].start()
    for _ in range(3):
        assert not stage.read(*KEYS)
    stage.becomes("a", "up")
    assert not stage.read(*KEYS)


def test_killed_in_the_middle_of_a_pipeline_of_reads(stage: Stage) -> None:
    """What was in flight is sent again, elsewhere, and every reply is still its own key's."""
    others = [key for key in KEYS if stage.homes[key] != "a"]
    for key in others:
        stage.raw.ask("SET", key, key)
    for _ in range(5):
        stage.nodes["a"].pause()
        stage.raw.send(b"".join(pack("GET", key) for key in KEYS))
        stage.nodes["a"].kill()
        for key, reply in zip(KEYS, stage.raw.frames(len(KEYS)), strict=True):
            if stage.homes[key] == "a":
                assert reply in (b"$-1\r\n", f"${len(key) + 3}\r\nof {key}\r\n".encode()), reply
            else:
                assert reply == f"${len(key)}\r\n{key}\r\n".encode()
        stage.nodes["a"].start()
        stage.becomes("a", "up")


def test_killed_where_the_others_have_had_little_to_do() -> None:
    """How few requests they have answered says nothing of how many they can: none is OVERLOADED."""
    with contextlib.ExitStack() as stack:
        nodes = {shard: stack.enter_context(RedisNode()) for shard in "abc"}
        config = toml({shard: node.url for shard, node in nodes.items()}, pool=f'{REHASH}\ntimeout = "3s"')
        with ProxyProcess(config) as proxy, proxy.raw() as raw:
            mine = [key for key in KEYS if shard_of(raw, key) == "a"]
            for shard in "abc":
                until(lambda shard=shard: node_of(raw, shard)["state"] == "up")
            nodes["a"].pause()
            raw.send(b"".join(pack("GET", key) for key in mine))
            time.sleep(1)  # they are late, by a quarter of the deadline
            nodes["a"].kill()
            assert raw.frames(len(mine)) == [b"$-1\r\n"] * len(mine)


def test_hung_two_errors_at_most(stage: Stage) -> None:
    stage.nodes["a"].pause()
    assert len(stage.read(*KEYS, *KEYS)) <= 2
    stage.becomes("a", "out")
    assert not stage.read(*KEYS)
    stage.nodes["a"].resume()
    stage.becomes("a", "up")
    assert not stage.read(*KEYS)


def test_stopped_for_a_moment_ten_times_nothing_moves(stage: Stage) -> None:
    """Longer than the deadline: replies are late, no verdict falls, and no key is read elsewhere."""
    key = stage.keys_of("a")[0]
    crowd = [stage.proxy.raw() for _ in range(20)]
    for _ in range(10):
        stage.nodes["a"].pause()
        for client in crowd:
            client.send(pack("GET", key))
        late = crowd[0].frame()
        stage.nodes["a"].resume()
        assert late.startswith(b"-TIMEOUT"), late
        for client in crowd[1:]:
            client.frame()
        until(lambda: stage.raw.ask("GET", key) == f"${len(key) + 3}\r\nof {key}\r\n".encode())
        stage.becomes("a", "up")
    for client in crowd:
        client.close()
    assert "out" not in stage.states("a")
    assert counters(stage.raw)["rehashed"] == 0
    assert not stage.read(*KEYS)


def test_only_the_keys_of_the_node_move_and_they_spread(stage: Stage) -> None:
    """Every key of the node goes where `PROXY LOCATE` says; about as many to each stand-in."""
    moved = stage.keys_of("a")
    stage.nodes["a"].kill()
    assert not stage.read(*moved)
    stage.becomes("a", "out")
    for key in KEYS:
        assert stage.raw.ask("SET", key, "meanwhile") == b"+OK\r\n"
    held = Counter[str]()
    for shard in "bc":
        there = stage.nodes[shard].keys("key:")
        assert there >= set(stage.keys_of(shard))  # which are where they were
        held[shard] = len(there & set(moved))
        assert there == set(stage.keys_of(shard)) | (there & set(moved))
    assert held.total() == len(moved)
    assert min(held.values()) > len(moved) / 5, held  # 160 virtual nodes: neither gets nearly all


def test_a_write_that_may_have_run_is_not_sent_again(stage: Stage) -> None:
    """Doubled increments would show on the stand-in or, when the node wakes, on the node."""
    keys = stage.keys_of("a")[:40]
    for key in keys:
        stage.raw.ask("DEL", key)
    stage.nodes["a"].pause()
    stage.raw.send(b"".join(pack("INCR", key) for key in keys))
    replies = stage.raw.frames(len(keys))
    assert all(reply.startswith((b"-TIMEOUT", b"-UNKNOWN", b":1\r\n")) for reply in replies), replies
    stage.becomes("a", "out")
    unclear = {key for key, reply in zip(keys, replies, strict=True) if not reply.startswith(b":")}
    assert unclear
    for key in unclear:
        assert stage.raw.value("GET", key) is None
    stage.nodes["a"].resume()
    stage.becomes("a", "up")
    assert {stage.raw.value("GET", key) for key in unclear} <= {None, "1"}


def test_two_of_three_out_the_third_holds_all(stage: Stage) -> None:
    """One after the other; the second finds keys of the first there, which go on."""
    stage.nodes["a"].kill()
    assert not stage.read(*KEYS)
    stage.becomes("a", "out")
    before = stage.states("b")
    assert "out" not in before
    for key in KEYS:
        assert stage.raw.ask("SET", key, "1") == b"+OK\r\n"
    stage.nodes["a"].start()
    stage.becomes("a", "up")
    stage.nodes["b"].kill()
    assert not stage.read(*KEYS)
    stage.becomes("b", "out")
    assert not stage.read(*KEYS)


# --- error, miss ---


@pytest.mark.parametrize("policy", ["", 'kind = "cache"\non_shard_down = "error"'])
@pytest.mark.parametrize("how", ["killed", "hung"])
def test_error_its_keys_are_refused_and_nothing_moves(stage: Stage, how: str) -> None:
    node, mine = stage.nodes["a"], stage.keys_of("a")
    node.kill() if how == "killed" else node.pause()
    until(lambda: stage.raw.ask("GET", mine[0]).startswith(b"-SHARDDOWN shard 'a' at "))
    stage.becomes("a", "out")
    for key in KEYS:
        for reply in (stage.raw.ask("GET", key), stage.raw.ask("SET", key, f"of {key}")):
            assert reply.startswith(b"-SHARDDOWN shard 'a' at ") is (stage.homes[key] == "a"), reply
    for shard in "bc":
        assert stage.nodes[shard].keys("key:") == set(stage.keys_of(shard))
    node.start() if how == "killed" else node.resume()
    stage.becomes("a", "up")
    found = stage.raw.value("GET", mine[0])
    assert found == (None if how == "killed" else f"of {mine[0]}")  # nothing is removed when it returns


@pytest.mark.parametrize("policy", ['kind = "cache"\non_shard_down = "miss"'])
def test_miss_reads_find_nothing_and_writes_are_refused(stage: Stage) -> None:
    mine = stage.keys_of("a")
    stage.nodes["a"].kill()
    until(lambda: stage.raw.ask("GET", mine[0]) == b"$-1\r\n")
    stage.becomes("a", "out")
    for key in KEYS[:200]:
        down = stage.homes[key] == "a"
        assert stage.raw.value("GET", key) == (None if down else f"of {key}")
        assert stage.raw.ask("SET", key, f"of {key}").startswith(b"-SHARDDOWN shard 'a'" if down else b"+OK")
    assert stage.raw.value("EXISTS", *mine[:3]) == 0
    assert stage.raw.value("MGET", mine[0], stage.keys_of("b")[0]) == [None, f"of {stage.keys_of('b')[0]}"]
    assert counters(stage.raw)["rehashed"] == 0
