"""Keys that come back to a node because shards, weights or addresses change find no old values there.

In a cache pool with `on_return`: drained and put back, a weight changed and changed back, another node in the
place of one that is out. With "keep" the old values do come back: these steps can fail.
"""

import json
import os
import re

import pytest
from asking import key_on, node_of, shard_of
from servers import ProxyProcess, Raw, RedisNode, redis_nodes, shards_of, toml, until
from test_returning_nodes import becomes

HEALTH = 'timeout = "300ms"\nhealth = { interval = "200ms", timeout = "200ms", failures = 2 }'

KEYS = [f"key{number}" for number in range(60)]


def cache(on_return: str, on_shard_down: str = "rehash") -> str:
    return f'kind = "cache"\non_shard_down = "{on_shard_down}"\non_return = "{on_return}"\n{HEALTH}'


def all_up(raw: Raw, shards: str = "abc") -> None:
    for shard in shards:
        becomes(raw, shard, "up")


def undrained(raw: Raw, shard: str) -> None:
    """Put back, and all of it done."""

    def done() -> bool:
        found = json.loads(raw.value("PROXY", "TOPOLOGY"))["pools"][0]["shards"]
        it = next(each for each in found if each["name"] == shard)
        return not it["draining"] and it["node"]["state"] == "up" and it["node"]["swept"]

    assert json.loads(raw.value("PROXY", "UNDRAIN", shard))["draining"] == []
    until(done, f"{shard} to be put back")


def reload(proxy: ProxyProcess, raw: Raw, text: str) -> None:
    beside = proxy.config_path.with_suffix(".new")
    beside.write_text(text)
    beside.chmod(0o600)
    os.replace(beside, proxy.config_path)
    assert isinstance(raw.value("PROXY", "RELOAD"), str), raw.value("PROXY", "RELOAD")


def write(raw: Raw, value: str, keys: list[str] = KEYS) -> None:
    assert all(raw.ask("SET", key, value) == b"+OK\r\n" for key in keys)


def values(raw: Raw, keys: list[str] = KEYS) -> set[str | None]:
    return {raw.value("GET", key) for key in keys}


@pytest.mark.parametrize(
    ("on_return", "on_shard_down", "workers"),
    [("invalidate", "rehash", 2), ("invalidate", "error", 1), ("flush", "miss", 1), ("keep", "rehash", 1)],
)
def test_a_shard_that_drained_and_is_put_back(on_return: str, on_shard_down: str, workers: int) -> None:
    """Twice: what stand-ins keep of the first time must not be seen the second time either."""
    with redis_nodes(3) as nodes:
        config = toml(shards_of(nodes), top=f"workers = {workers}", pool=cache(on_return, on_shard_down))
        with ProxyProcess(config) as proxy, proxy.raw() as raw, proxy.raw() as other:
            all_up(raw)
            mine = [key for key in KEYS if shard_of(raw, key) == "a"]
            untouched, written = mine[:2], mine[2:]
            write(raw, "first", mine)
            raw.ask("PROXY", "DRAIN", "a")
            assert values(raw, mine) == {None}
            write(other, "second", written)
            assert values(raw, written) == {"second"}
            undrained(raw, "a")
            assert shard_of(raw, mine[0]) == "a"
            for client in (raw, other):
                assert values(client, written) == ({"first"} if on_return == "keep" else {None})
                assert values(client, untouched) == ({None} if on_return == "flush" else {"first"})
            write(raw, "third", written)
            raw.ask("PROXY", "DRAIN", "a")
            assert values(raw, written) == ({"second"} if on_return == "keep" else {None})
            undrained(raw, "a")
            assert values(raw, written) == ({None} if on_return == "flush" else {"third"})
            assert not proxy.events("keeper_failed") and "Traceback" not in proxy.log_text()


def test_what_drains_and_is_lost_is_put_back_when_it_is_well() -> None:
    with redis_nodes(3) as nodes:
        config = toml(shards_of(nodes), pool=cache("invalidate", "error"))
        with ProxyProcess(config) as proxy, proxy.raw() as raw:
            all_up(raw)
            key = key_on(raw, "a")
            write(raw, "first", [key])
            raw.ask("PROXY", "DRAIN", "a")
            write(raw, "second", [key])
            nodes[0].pause()
            until(lambda: node_of(raw, "a")["state"] == "out")
            nodes[0].resume()
            becomes(raw, "a", "up")
            assert values(raw, [key]) == {"second"}  # it drains on
            nodes[0].pause()
            until(lambda: node_of(raw, "a")["state"] == "out")
            raw.ask("PROXY", "UNDRAIN", "a")
            assert values(raw, [key]) == {"second"}
            nodes[0].resume()
            undrained(raw, "a")
            assert shard_of(raw, key) == "a"
            assert values(raw, [key]) == {None}


def test_drained_before_the_start_nobody_knows_what_was_written(tmp_path: str) -> None:
    with redis_nodes(2) as nodes:
        config = toml(shards_of(nodes), top=f'state = "{tmp_path}/state"', pool=cache("invalidate"))
        with ProxyProcess(config) as proxy, proxy.raw() as raw:
            all_up(raw, "ab")
            key = key_on(raw, "a")
            write(raw, "first", [key])
            until(lambda: os.path.exists(f"{tmp_path}/state"))
            raw.ask("PROXY", "DRAIN", "a")
            write(raw, "second", [key])
        with ProxyProcess(config) as proxy, proxy.raw() as raw:
            all_up(raw, "ab")
            assert values(raw, [key]) == {"second"}
            undrained(raw, "a")
            assert values(raw, [key]) == {None}
            raw.ask("PROXY", "DRAIN", "a")
            assert values(raw, [key]) == {None}


CHANGES = {
    "weight": lambda text: re.sub(r'a = "(.*)"', r'a = { primary = "\1", weight = 3 }', text),
    "virtual_nodes": lambda text: text.replace("[pool.main]\n", "[pool.main]\nvirtual_nodes = 40\n"),
    "removed": lambda text: re.sub('c = ".*"\n', "", text),
    "exchanged": lambda text: re.sub('a = (".*")\nb = (".*")', r"a = \2\nb = \1", text),
}


@pytest.mark.parametrize(
    ("what", "on_return"),
    [*((what, "invalidate") for what in CHANGES), ("weight", "flush"), ("weight", "keep")],
)
def test_what_is_changed_and_changed_back(what: str, on_return: str) -> None:
    """At once, too: a change waits until what the one before has left is gone."""
    with redis_nodes(3) as nodes:
        config = toml(shards_of(nodes), pool=cache(on_return))
        with ProxyProcess(config) as proxy, proxy.raw() as raw:
            all_up(raw)
            write(raw, "first")
            before = {key: (at := json.loads(raw.value("PROXY", "LOCATE", key)))["address"] for key in KEYS}
            assert at
            reload(proxy, raw, CHANGES[what](config))
            moved = [
                key
                for key in KEYS
                if json.loads(raw.value("PROXY", "LOCATE", key))["address"] != before[key]
                and not (what == "removed" and before[key] == nodes[2].address)
            ]
            if what != "removed":  # those of the node that is gone are its own
                assert moved
            write(raw, "second")
            reload(proxy, raw, config)
            old = {"first"} if on_return == "keep" else {None}
            assert values(raw, moved) == (old if moved else set())
            until(lambda: on_return == "keep" or len(proxy.events("tidied")) == 2)
            assert "Traceback" not in proxy.log_text()


def test_a_node_that_is_out_is_looked_through_when_it_returns() -> None:
    """b's keys become c's while b is out, and b's again."""
    with redis_nodes(3) as nodes:
        config = toml(shards_of(nodes), pool=cache("invalidate"))
        heavy = re.sub(r'c = "(.*)"', r'c = { primary = "\1", weight = 20 }', config)
        with ProxyProcess(config) as proxy, proxy.raw() as raw:
            all_up(raw)
            write(raw, "first")
            mine = [key for key in KEYS if shard_of(raw, key) == "b"]
            nodes[1].pause()
            until(lambda: node_of(raw, "b")["state"] == "out")
            reload(proxy, raw, heavy)
            moved = [key for key in mine if shard_of(raw, key) == "c"]
            assert moved
            write(raw, "second", moved)
            nodes[1].resume()
            all_up(raw)
            reload(proxy, raw, config)
            assert {shard_of(raw, key) for key in moved} == {"b"}
            assert values(raw, moved) == {None}


@pytest.mark.parametrize(("on_return", "workers"), [("invalidate", 2), ("flush", 1), ("keep", 1)])
def test_another_node_in_the_place_of_one_that_is_out(on_return: str, workers: int) -> None:
    """It may hold what was there before: a replica that was promoted, or a copy."""
    with redis_nodes(3) as nodes, RedisNode() as copy:
        config = toml(shards_of(nodes), top=f"workers = {workers}", pool=cache(on_return))
        with ProxyProcess(config) as proxy, proxy.raw() as raw, proxy.raw() as other:
            all_up(raw)
            mine = [key for key in KEYS if shard_of(raw, key) == "a"]
            untouched, written = mine[:2], mine[2:]
            write(raw, "first", mine)
            with copy.raw() as direct:
                write(direct, "first", mine)
            nodes[0].kill()
            until(lambda: node_of(raw, "a")["state"] == "out")
            write(other, "second", written)
            reload(proxy, raw, config.replace(nodes[0].address, copy.address))
            becomes(raw, "a", "up")
            for client in (raw, other):
                assert values(client, written) == ({"first"} if on_return == "keep" else {None})
                assert values(client, untouched) == ({None} if on_return == "flush" else {"first"})
            write(raw, "third", written)
            copy.pause()
            until(lambda: node_of(raw, "a")["state"] == "out")
            assert values(other, written) == ({"second"} if on_return == "keep" else {None})
            copy.resume()
