"""`shardproxy import` of pools of memcached: twemproxy's and mcrouter's; where keys go, and what is lost."""

import zlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from shardproxy import config
from shardproxy.cli import main
from shardproxy.config import Config, ConfigError
from shardproxy.config.imports.drafts import Draft, drafts, written
from shardproxy.core.topology import Topology

# The pools of twemproxy's own conf/ folder, by what they say
NUTCRACKER = """
alpha:
  listen: 127.0.0.1:22121
  hash: fnv1a_64
  distribution: ketama
  timeout: 2000
  auto_eject_hosts: false
  server_failure_limit: 1
  servers:
    - 127.0.0.1:11211:1
    - 10.0.0.2:11212:3 tom
"""
MCROUTER = r"""
// pools of two kinds
{
  "pools": {
    "A": { /* the old ones */
      "servers": [ "10.0.0.1:11211", "[::1]:5000", "cache.example:11212:ascii", "10.0.0.4:11211", ],
      "server_timeout": 300, "keep_routing_prefix": false, // "not a setting": 1
    },
    "B": { "servers": ["10.0.0.5:11211", "10.0.0.6:11211", "10.0.0.7:11211"], "connect_timeout": 50 },
    "spare // not a comment": { "servers": ["10.0.0.8:11211"] },
  },
  "route": {
    "type": "PrefixSelectorRoute",
    "policies": {
      "a": { "type": "PoolRoute", "pool": "A", "hash": "Crc32", "rates": { "gets_rate": 10 } },
      "b": { "type": "FailoverRoute", "children": [
        { "type": "HashRoute", "children": "Pool|B", "hash_func": "WeightedCh3", "weights": [1.0, 0.333, 0] },
        "PoolRoute|A"
      ] }
    },
    "wildcard": "NullRoute"
  }
}
"""


def made(text: str, file: str = "mcrouter.json") -> dict[str, tuple[Draft, Config]]:
    found = drafts(file, text.encode())
    return {draft.name: (draft, config.load(written(draft).encode(), secrets=False)) for draft in found}


def said(draft: Draft) -> str:
    return "\n".join(draft.lost)


def test_a_pool_of_twemproxy() -> None:
    ((draft, config),) = made(NUTCRACKER, "nutcracker.yml").values()
    pool = config.pool["alpha"]
    assert (pool.kind, pool.on_shard_down, pool.distribution, pool.hash) == (
        "cache",
        "error",
        "ketama",
        "fnv1a_64",
    )
    assert [(name, each.primary, each.weight) for name, each in pool.shards.items()] == [
        ("127.0.0.1", "memcached://127.0.0.1:11211", 1),  # as libmemcached has it, without the port
        ("tom", "memcached://10.0.0.2:11212", 3),
    ]
    assert {each.protocol for each in pool.shards.values()} == {"memcached"}
    assert "speak memcached's protocol" in said(draft)


def test_keys_stay_where_mcrouter_has_them_by_crc32() -> None:
    _, config = made(MCROUTER)["A"]
    pool = Topology.from_config(config).pools[0]
    addresses = ["10.0.0.1:11211", "[::1]:5000", "cache.example:11212", "10.0.0.4:11211"]
    for number in range(500):
        key = b"key:%d" % number
        assert pool.home(key).node.address == addresses[(zlib.crc32(key) & 0x7FFFFFFF) % 4]


@pytest.mark.parametrize(
    "hashed", ["", ', "hash": "ch3"', ', "hash": {"hash_func": "WeightedCh3", "weights": [1.0, 1.0, 1.0]}']
)
def test_keys_stay_where_mcrouter_has_them_by_ch3(hashed: str) -> None:
    text = f'{{"pools": {{"A": {{"servers": ["a:1", "b:1", "c:1"]{hashed}}}}}, "route": "PoolRoute|A"}}'
    draft, config = made(text)["A"]
    pool = Topology.from_config(config).pools[0]
    # as mcrouter's own tests count them
    homes = [pool.home(b"%d" % number).node.address for number in range(1000)]
    assert [homes.count(address) for address in ("a:1", "b:1", "c:1")] == [307, 342, 351]
    assert "KEYS MOVE" not in written(draft) and len(draft.lost) == 2


@pytest.mark.parametrize(
    "hashed",
    [
        '"Rendezvous"',
        '{"hash_func": "Ch3", "salt": "x"}',
        '"Crc32"',
        '{"hash_func": "WeightedCh3", "weights": [1, 0.5, 1]}',
    ],
)
def test_hashes_that_are_not_spoken_here(hashed: str) -> None:
    route = f'{{"type": "PoolRoute", "pool": "A", "hash": {hashed}}}'
    text = f'{{"pools": {{"A": {{"servers": ["a:1", "b:1", "c:1"]}}}}, "route": {route}}}'
    draft, config = made(text)["A"]
    assert "KEYS MOVE" in written(draft) and config.pool["A"].distribution == "ring"


def test_more_than_nine_servers_keep_their_order() -> None:
    servers = ", ".join(f'"10.0.0.{number}:11211"' for number in range(16))
    text = f'{{"pools": {{"A": {{"servers": [{servers}], "hash": "crc32"}}}}, "route": "PoolRoute|A"}}'
    pool = Topology.from_config(made(text)["A"][1]).pools[0]
    for number in range(500):
        key = b"key:%d" % number
        assert pool.home(key).node.address == f"10.0.0.{zlib.crc32(key) % 16}:11211"


def test_weights_and_times_of_mcrouter() -> None:
    pools = made(MCROUTER)
    pool = pools["A"][1].pool["A"]
    assert (pool.kind, pool.on_shard_down, pool.timeout, pool.connect_timeout) == ("cache", "miss", 0.3, 0.3)
    pool = pools["B"][1].pool["B"]
    assert (pool.distribution, pool.timeout, pool.connect_timeout) == ("ring", 1.0, 0.05)
    assert {name: each.weight for name, each in pool.shards.items()} == {"10.0.0.5": 100, "10.0.0.6": 33}
    assert pool.points == 2 * 133


def test_what_of_mcrouter_is_lost() -> None:
    pools = made(MCROUTER)
    first, second = said(pools["A"][0]), said(pools["B"][0])
    spare = said(pools["spare // not a comment"][0])
    for lost in ("keep_routing_prefix", "rates", "PrefixSelectorRoute", "FailoverRoute", "routing prefixes"):
        assert lost in first
    assert "10.0.0.7:11211: its weight is 0" in second and "FailoverRoute" in second
    assert "no route" in spare
    assert "KEYS MOVE: mcrouter's WeightedCh3" in written(pools["B"][0])
    assert "KEYS MOVE" not in written(pools["A"][0])


def test_one_route_to_one_pool_loses_little() -> None:
    text = '{"pools": {"A": {"servers": ["a:1", "b:1"]}}, "route": "PoolRoute|A"}'
    draft, _ = made(text)["A"]
    assert len(draft.lost) == 2 and "KEYS MOVE" not in written(draft)


ONE = '{"pools": {"A": {"servers": ["a:1"]%s}}}'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "line 1: found no JSON"),
        ("{\n\n'a': 1}", "line 3: found no JSON"),
        ("// a\n/* b\n */ {,1}", "line 3: found no JSON"),
        ("//", "no JSON"),
        ("/* never closed {}", "no JSON"),
        ('{"pools": []}', "pools by name"),
        ('{"pools": {}}', "no pool"),
        ("{}", "no pool"),
        ('{"pools": {"A": {}}}', "pools.A.servers"),
        ('{"pools": {"A": {"inherit": "@import(x)"}}}', "nothing is inherited"),
        ('{"pools": {"A": {"servers": "@import(x)"}}}', "pools.A.servers"),
        ('{"pools": {"A": {"servers": ["%host%:1"]}}}'.replace("%host%", "a b"), "servers[0]"),
        ('{"pools": {"A": {"servers": [1]}}}', "servers[0]"),
        ('{"pools": {"A": {"servers": ["a:0"]}}}', "servers[0]"),
        ('{"pools": {"A": {"servers": ["a:1", "a:1"]}}}', "a:1 twice"),
        ('{"pools": {"A": {"servers": ["a:1:caret"]}}}', "servers[0]"),
        ('{"pools": {"A": {"servers": ["a:1"]}, "A": {}}}', "twice in a table"),
        ('{"macros": {}, "pools": {"A": {"servers": ["a:1"]}}}', "macros"),
        (ONE % ', "protocol": "caret"', "ascii"),
        (ONE % ', "server_timeout": "1"', "milliseconds"),
        (ONE % ', "server_timeout": 0', "milliseconds"),
        (ONE % ', "connect_timeout": true', "milliseconds"),
        ('{"pools": ' + "[" * 5000, "nested too deeply"),
        ('{"pools": {"A": {"servers": ["a:1"]}}, "route": ' + '{"a":' * 400 + "1" + "}" * 401, ""),
    ],
)
def test_what_is_no_configuration_of_mcrouter(text: str, named: str) -> None:
    try:
        made(text)
    except ConfigError as error:
        assert named in str(error) and "mcrouter.json" in str(error)
    else:
        assert not named, "it was taken"


@pytest.mark.parametrize(
    "weights", ['"x"', "[1]", "[true, 1]", "[-1, 1]", "[NaN, 1]", "[Infinity, 1]", "[0, 0]", "[1e300, 1]"]
)
def test_weights_that_are_none_are_passed_over(weights: str) -> None:
    text = f'{{"pools": {{"A": {{"servers": ["a:1", "b:1"], "hash_weights": {weights}}}}}}}'
    pool = made(text)["A"][1].pool["A"]
    assert {each.weight for each in pool.shards.values()} == {1}


def test_the_command_line(tmp_path: Path) -> None:
    (file := tmp_path / "mcrouter.json").write_text(MCROUTER)
    result = CliRunner().invoke(main, ["import", str(file), "-o", str(tmp_path / "made")])
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        "A.toml",
        "B.toml",
        "spare----not-a-comment.toml",
    }


def test_a_memcached_behind_a_unix_socket() -> None:
    text = NUTCRACKER.replace("10.0.0.2:11212:3 tom", "/run/memcached.sock:1")
    shard = made(text, "nutcracker.yml")["alpha"][1].pool["alpha"].shards["/run/memcached.sock:"]
    assert (shard.protocol, shard.address) == ("memcached", "/run/memcached.sock")
