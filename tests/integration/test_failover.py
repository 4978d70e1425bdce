"""A node of a cache pool goes and comes back, with one worker and with three: nothing old is read."""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from servers import ProxyProcess, Raw, RedisNode, redis_nodes, shards_of, toml, until

POOL = """kind = "cache"
on_shard_down = "rehash"
on_return = "invalidate"
timeout = "500ms"
health = { interval = "500ms" }"""


def node_of(raw: Raw, shard: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(raw.value("PROXY", "NODES"))
    return next(node for node in found if node["shard"] == shard)


def comes_to(raw: Raw, shard: str, state: str, swept: bool = True) -> None:
    """Waits until every worker that could answer says so."""
    until(
        lambda: (node_of(raw, shard)["state"], node_of(raw, shard)["swept"]) == (state, swept),
        f"{shard} to be {state}, swept: {swept}",
    )


def on(raw: Raw, shard: str, count: int) -> list[str]:
    names = (f"key:{number}" for number in range(10_000))
    homes = (key for key in names if json.loads(raw.value("PROXY", "LOCATE", key))["shard"] == shard)
    return [next(homes) for _ in range(count)]


@pytest.fixture
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as found:
        yield found


@pytest.fixture(params=[1, 3])
def proxy(request: pytest.FixtureRequest, nodes: list[RedisNode]) -> Iterator[ProxyProcess]:
    text = toml(shards_of(nodes), top=f"workers = {request.param}", pool=POOL)
    with ProxyProcess(text) as process:
        with process.raw() as raw:
            for shard in "abc":
                comes_to(raw, shard, "up")
        yield process


def values(node: RedisNode, keys: list[str]) -> list[str | None]:
    with node.raw() as raw:
        found: list[str | None] = raw.value("MGET", *keys)
        return found


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_it_goes_and_comes_back_twice(proxy: ProxyProcess, nodes: list[RedisNode], how: str) -> None:
    raws = [proxy.raw() for _ in range(6)]  # with three workers, of several
    raw = raws[0]
    keys = on(raw, "a", 12)
    other = on(raw, "b", 1)[0]
    try:
        for turn in range(2):
            for key in keys:
                assert raw.ask("SET", key, f"before {turn}") == b"+OK\r\n"
            if how == "killed":
                nodes[0].kill()
            else:
                nodes[0].pause()
            # what makes it known: a request that fails
            raws[1].ask("GET", keys[0])
            comes_to(raw, "a", "out")
            for number, key in enumerate(keys[:8]):
                assert raws[number % 6].ask("SET", key, f"meanwhile {turn}") == b"+OK\r\n"
            for number, key in enumerate(keys[:8]):
                assert raws[number % 6].value("GET", key) == f"meanwhile {turn}"
            assert raw.value("SET", other, "1") == "OK"
            if how == "killed":
                nodes[0].start()
            else:
                nodes[0].resume()
            comes_to(raw, "a", "up")
            for each in raws:
                found = each.value("MGET", *keys)
                # those that were not touched meanwhile are as they were, if the node still has them
                assert found == [None] * 8 + ([None] * 4 if how == "killed" else [f"before {turn}"] * 4)
            assert all(found is None for node in nodes[1:] for found in values(node, keys))
        assert len(proxy.events("node_returns")) == 2
        states = [event["state"] for event in proxy.events("node_state") if event["node"] == nodes[0].address]
        assert [state for state in states if state != "suspect"] == ["out", "up", "out", "up"]
    finally:
        for each in raws:
            each.close()


def test_what_is_in_another_database_comes_back_no_older(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    with proxy.raw() as raw:
        one, two = on(raw, "a", 2)
        raw.ask("SELECT", 5)
        for key in (one, two):
            assert raw.ask("SET", key, "before") == b"+OK\r\n"
        nodes[0].pause()
        raw.ask("GET", one)
        comes_to(raw, "a", "out")
        assert raw.ask("SET", one, "meanwhile") == b"+OK\r\n"
        nodes[0].resume()
        comes_to(raw, "a", "up")
        assert raw.value("MGET", one, two) == [None, "before"]


def test_a_second_outage_finds_nothing_of_the_first(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    with proxy.raw() as raw:
        keys = on(raw, "a", 5)
        nodes[0].kill()
        raw.ask("GET", keys[0])
        comes_to(raw, "a", "out")
        for key in keys:
            assert raw.ask("SET", key, "first outage") == b"+OK\r\n"
        nodes[0].start()
        comes_to(raw, "a", "up")
        for key in keys:
            assert raw.ask("SET", key, "between") == b"+OK\r\n"
        nodes[0].kill()
        raw.ask("GET", keys[0])
        comes_to(raw, "a", "out")
        assert raw.value("MGET", *keys) == [None] * 5


def test_stopped_for_a_moment_nothing_moves(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    """A late reply and a good probe: nobody is put out."""
    with proxy.raw() as raw:
        (key,) = on(raw, "a", 1)
        for _ in range(3):
            nodes[0].pause()
            assert raw.ask("GET", key).startswith(b"-TIMEOUT")
            nodes[0].resume()
            comes_to(raw, "a", "up")
            assert raw.ask("SET", key, "1") == b"+OK\r\n"
        states = [event["state"] for event in proxy.events("node_state") if event["node"] == nodes[0].address]
        assert "out" not in states


def test_a_worker_that_dies_takes_what_it_remembers_along(nodes: list[RedisNode]) -> None:
    """Nobody knows what it wrote elsewhere, as if it were too much to remember: the node is emptied."""
    with ProxyProcess(toml(shards_of(nodes), top="workers = 2", pool=POOL)) as proxy:
        raws = [proxy.raw() for _ in range(12)]
        try:
            keys = on(raws[0], "a", 24)
            for key in keys:
                raws[0].ask("SET", key, "before")
            nodes[0].pause()
            raws[0].ask("GET", keys[0])
            comes_to(raws[0], "a", "out")
            for raw, key in zip(raws, keys, strict=False):
                assert raw.ask("SET", key, "meanwhile") == b"+OK\r\n"
            victim = proxy.events("worker_ready")[0]["pid"]
            os.kill(victim, signal.SIGKILL)
            until(lambda: len(proxy.events("worker_ready")) == 3, "it to be replaced")
            nodes[0].resume()
            with proxy.raw() as raw:
                comes_to(raw, "a", "up")
                assert raw.value("MGET", *keys) == [None] * 24
            assert proxy.events("node_returns")[0]["flushed"]
            assert all(found is None for node in nodes for found in values(node, keys))
        finally:
            for raw in raws:
                raw.close()
