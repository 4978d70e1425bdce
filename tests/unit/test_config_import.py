"""`shardproxy import`: nutcracker.yml and mcrouter's JSON → shardproxy.toml; never a traceback."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shardproxy import config
from shardproxy.cli import main
from shardproxy.config import Config, ConfigError
from shardproxy.config.imports.drafts import drafts, written
from shardproxy.config.users import guarded

EVERYTHING = """
alpha:
  listen: 0.0.0.0:22121
  hash: md5
  hash_tag: "{}"
  distribution: modula
  auto_eject_hosts: true
  timeout: 400
  backlog: 1024
  preconnect: true
  redis: true
  redis_auth: s3cret word
  redis_db: 3
  server_connections: 40
  client_connections: 500
  tcpkeepalive: true
  server_retry_timeout: 600000
  server_failure_limit: 7
  servers:
   - 127.0.0.1:6379:1 one
   - redis.example:6380:2
   - ::1:11211:3
   - /tmp/redis.sock:4
"""
LEAST = """
beta:
  listen: 127.0.0.1:22122
  redis: true
  servers: ["127.0.0.1:6390:1"]
"""
SOCKET = """
gamma pool:
  listen: /var/run/nutcracker.sock 0666
  redis: true
  distribution: random
  tcpkeepalive: false
  mirror_to: "elsewhere\\nkind = 'cache'"
  servers:
   - 127.0.0.1:6379:1
"""


def imported(text: str, file: str = "nutcracker.yml") -> list[Config]:
    return [config.load(written(draft).encode(), secrets=False) for draft in drafts(file, text.encode())]


def mistakes(text: str, file: str = "nutcracker.yml") -> str:
    with pytest.raises(ConfigError) as caught:
        imported(text, file)
    return str(caught.value)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["import", *arguments])
    assert not result.exception or isinstance(result.exception, SystemExit)
    return result


def test_everything_of_twemproxy() -> None:
    (made,) = imported(EVERYTHING)
    pool = made.pool["alpha"]
    assert made.listen == ("0.0.0.0:22121",) and made.limits.maxclients == 500
    assert made.limits.tcp_keepalive == 300
    assert (pool.kind, pool.on_shard_down, pool.on_return) == ("cache", "rehash", "invalidate")
    assert (pool.distribution, pool.hash, pool.hash_tag) == ("modula", "md5", "{}")
    assert (pool.timeout, pool.connect_timeout, pool.connections_per_node) == (0.4, 0.4, 16)
    assert (pool.health.consecutive, pool.health.wait, pool.health.wait_most) == (7, 600, 600)
    assert [(name, each.primary, each.weight) for name, each in pool.shards.items()] == [
        ("one", "redis://127.0.0.1:6379", 1),
        ("redis.example:6380", "redis://redis.example:6380", 2),
        ("::1", "redis://[::1]:11211", 3),
        ("/tmp/redis.sock:", "unix:///tmp/redis.sock", 4),
    ]


def test_what_twemproxy_does_where_its_file_says_nothing() -> None:
    (made,) = imported(LEAST)
    pool = made.pool["beta"]
    assert (pool.kind, pool.on_shard_down, pool.distribution, pool.hash) == (
        "durable", "error", "ketama", "fnv1a_64",
    )  # fmt: skip
    assert pool.hash_tag == "" and list(pool.shards) == ["127.0.0.1:6390"]


def test_a_password_is_a_variable_for_nodes_and_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    (draft,) = drafts("nutcracker.yml", EVERYTHING.encode())
    text = written(draft)
    assert "s3cret" not in text + repr(draft)
    monkeypatch.setenv("SHARDPROXY_ALPHA_PASSWORD", "s3cret word")
    made = config.load(text.encode())
    assert config.Credentials.read(made).of("alpha", "one") == ("", "s3cret word")
    assert guarded(made)


def test_who_reaches_twemproxy_is_served_here_too() -> None:
    (made,) = imported(LEAST.replace("127.0.0.1:22122", "10.0.0.9:22122"))
    assert not made.protected_mode
    assert imported(LEAST)[0].protected_mode


def test_what_is_lost_is_named() -> None:
    (draft,) = drafts("nutcracker.yml", EVERYTHING.encode())
    text = written(draft).partition("listen =")[0].replace("\n# ", " ")
    for said in ("backlog: 1024", "preconnect: true", "SELECT 3"):
        assert said in text and any(said in lost for lost in draft.lost)


def test_names_and_values_stay_in_their_comments() -> None:
    (made,) = imported(SOCKET)
    pool = made.pool["gamma-pool"]
    assert made.listen == ("unix:///var/run/nutcracker.sock?mode=0666",)
    assert pool.kind == "durable" and pool.distribution == "ketama" and made.limits.tcp_keepalive == 0
    (draft,) = drafts("nutcracker.yml", SOCKET.encode())
    assert any("mirror_to" in lost for lost in draft.lost) and any("random" in lost for lost in draft.lost)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "nutcracker.yml"),
        ("alpha", "pools by name"),
        ("- alpha", "pools by name"),
        ("alpha: 1", "settings of pool alpha"),
        ("alpha:\n  listen: [", "no YAML"),
        ("\tx", "line 1: found no YAML"),
        ("a: &x\n  b: *x", "a table"),
        ("{} ", "no pool"),
        ("alpha: {}\nalpha: {}", "line 2: found alpha again"),
        ("alpha: {}\n--- \nbeta: {}", "no YAML"),
        ("? [a]\n: b", "a key that is no name"),
        ("alpha: {}", "alpha.listen: found"),
        ("alpha: {}", "alpha.servers: found"),
        (LEAST + "  timeout: -1", "beta.timeout"),
        (LEAST + "  timeout: 1s", "a whole number"),
        (LEAST + "  hash: xxh64", "one_at_a_time"),
        (LEAST + "  distribution: [ketama]", "one value"),
        (LEAST + "  auto_eject_hosts: yes", "true or false"),
        (LEAST + "  hash_tag: x", "two characters"),
        (LEAST + "  hash_tag: 'ää'", "hash_tag"),
        (LEAST.replace('"127.0.0.1:6390:1"', '"127.0.0.1:6390"'), "servers[0]"),
        (LEAST.replace('"127.0.0.1:6390:1"', '"127.0.0.1:6390:0"'), "servers[0]"),
        (LEAST.replace('"127.0.0.1:6390:1"', '"127.0.0.1:0:1"'), "servers[0]"),
        (LEAST.replace('"127.0.0.1:6390:1"', '"a:1:1 x y"'), "servers[0]"),
        (LEAST.replace('["127.0.0.1:6390:1"]', "a:1:1"), "a list of servers"),
        (LEAST.replace('"127.0.0.1:6390:1"', '"a:1:1 x", "b:1:1 x"'), "two servers named x"),
        (LEAST.replace('"127.0.0.1:6390:1"', '"a:1:1 x", "a:1:1 y"'), "a node of its own"),
        (LEAST.replace('"127.0.0.1:6390:1"', '"a:1:70000"'), "weight"),
        ("a: " + "[" * 5000, "no YAML"),
    ],
)
def test_what_is_no_nutcracker_yml(text: str, named: str) -> None:
    assert named in mistakes(text)


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(ConfigError, match="UTF-8"):
        drafts("nutcracker.yml", b"alpha:\n  listen: \xff")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    (file := tmp_path / "two.yml").write_text(LEAST + SOCKET)
    return file


def test_one_pool_is_printed_and_several_are_not_dropped(two: Path, tmp_path: Path) -> None:
    result = run(str(two))
    assert result.exit_code == 2 and not result.stdout
    assert "2 pools (beta, gamma pool)" in result.stderr and "--pool" in result.stderr
    one = run(str(two), "--pool", "beta")
    assert one.exit_code == 0 and config.load(one.stdout.encode()).pool["beta"]
    assert run(str(two), "--pool", "delta").exit_code == 2
    folder = tmp_path / "made"
    result = run(str(two), "-o", str(folder))
    assert result.exit_code == 0 and {path.name for path in folder.iterdir()} == {
        "beta.toml",
        "gamma-pool.toml",
    }
    assert "gamma pool: not carried over: mirror_to" in result.stderr
    for path in folder.iterdir():
        assert config.load(path).pool
    again = run(str(two), "-o", str(folder))
    assert again.exit_code == 1 and "exists" in again.stderr


def test_pools_whose_files_would_be_one() -> None:
    text = SOCKET.replace("gamma pool", "a b") + LEAST.replace("beta", "a-b")
    assert "differ in letters or digits" in mistakes(text)


@pytest.mark.parametrize("file", ["missing.yml", "."])
def test_no_file(file: str) -> None:
    result = run(file)
    assert result.exit_code == 2 and file in result.stderr


def test_a_mistake_is_an_exit_code_of_two(tmp_path: Path) -> None:
    (file := tmp_path / "n.yml").write_text("alpha: {}")
    result = run(str(file))
    assert result.exit_code == 2 and result.stderr.count("\n") == 3 and not result.stdout


def test_without_pyyaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file := tmp_path / "n.yml").write_text(LEAST)
    monkeypatch.setitem(sys.modules, "yaml", None)
    result = run(str(file))
    assert result.exit_code == 1 and "shardproxy[proxy]" in result.stderr
