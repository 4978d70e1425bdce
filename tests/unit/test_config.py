"""shardproxy.toml: what it comes to, and every mistake in it at once. Secrets: test_config_secrets.py."""

import json
import tomllib
import typing
from pathlib import Path

import pytest
from configs import SHARD, mistakes

from shardproxy import config
from shardproxy.config import Config, ConfigError, Limits, PoolConfig, ShardConfig, load, pages, tables
from shardproxy.config import text as written_as

RECORDS = (
    *(Config, config.Log, Limits, PoolConfig, config.TimeoutsConfig, config.HealthConfig, ShardConfig),
    config.UserConfig,
)

# --- values, as people write them


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1b", 1), ("0", 0), ("10", 10), (4096, 4096), ("64kb", 65536), ("64 KB", 65536), ("64k", 65536),
        ("1MiB", 1 << 20), ("1.5gb", 3 << 29), (" 2tb ", 2 << 40),
    ],
)  # fmt: skip
def test_sizes(written: object, size: int) -> None:
    assert written_as.read_size(written) == size


@pytest.mark.parametrize(
    "written", ["", "mb", "-1mb", "1 mbit", "1e3", "٣mb", True, 1.5, [], "9" * 400 + ".5"]
)
def test_no_sizes(written: object) -> None:
    with pytest.raises(ValueError, match="a size such as"):
        written_as.read_size(written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("250us", 0.00025), ("500ms", 0.5), ("1s", 1.0), ("1.5S", 1.5), ("2m", 120.0), ("1m30s", 90.0),
        ("1h 30m", 5400.0), ("1d", 86400.0), ("0s", 0.0), (0, 0.0),
    ],
)  # fmt: skip
def test_durations(written: object, seconds: float) -> None:
    assert written_as.read_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize("written", ["", "s", "1", 1, 1.0, False, "-1s", "1s x", "1 year", "\u0661s", None])
def test_no_durations(written: object) -> None:
    with pytest.raises(ValueError, match="a duration such as"):
        written_as.read_duration(written)


@pytest.mark.parametrize("size", [1, 1023, 1024, 1 << 20, 3 << 29, (1 << 30) + 1, 1 << 40])
def test_sizes_survive_being_written(size: int) -> None:
    assert written_as.read_size(written_as.write_size(size)) == size


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 0.0005, 0.25, 1.0, 1.5, 90.0, 300.0, 86400.0, 3661.25])
def test_durations_survive_being_written(seconds: float) -> None:
    assert written_as.read_duration(written_as.write_duration(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("written", "url", "address"),
    [
        ("redis://h:1", "redis://h:1", "h:1"),
        ("redis://h", "redis://h:6379", "h:6379"),
        ("redis://h:1/0", "redis://h:1", "h:1"),
        ("redis://[::1]", "redis://[::1]:6379", "[::1]:6379"),
        ("redis://[fe80::1%eth0]:7", "redis://[fe80::1%eth0]:7", "[fe80::1%eth0]:7"),
        ("unix:///run/a.sock", "unix:///run/a.sock", "/run/a.sock"),
    ],
)
def test_node_addresses(written: str, url: str, address: str) -> None:
    shard = load(f'[pool.main.shards]\na = "{written}"'.encode()).pool["main"].shards["a"]
    assert (shard.primary, shard.address, shard.protocol) == (url, address, "redis")


# --- what a file comes to


def test_a_file_of_one_shard_has_every_default() -> None:
    made = load(SHARD.encode())
    assert made == Config(
        pool={"main": PoolConfig(shards={"a": ShardConfig(primary="redis://127.0.0.1:7001")})}
    )
    assert made.limits.client_output_soft == 1 << 20
    assert made.pool["main"].timeout == 1.0
    assert made.warnings == ()


def test_the_example_of_the_design() -> None:
    made = load(b"""
        listen  = ["127.0.0.1:6380", "unix:///run/shardproxy.sock"]
        admin   = "127.0.0.1:9380"
        workers = 0
        [pool.main]
        kind          = "cache"
        on_shard_down = "rehash"
        on_return     = "invalidate"
        distribution  = "ring"
        virtual_nodes = 160
        timeout       = "1s"
        [pool.main.shards]
        a = "redis://127.0.0.1:7001"
        b = { primary = "redis://127.0.0.1:7002", weight = 2 }
        c = "redis://127.0.0.1:7003"
    """)
    pool = made.pool["main"]
    assert made.listen == ("127.0.0.1:6380", "unix:///run/shardproxy.sock")
    assert (pool.kind, pool.on_shard_down, pool.on_return) == ("cache", "rehash", "invalidate")
    assert list(pool.shards) == ["a", "b", "c"]
    assert pool.shards["b"].weight == 2
    assert made.admin == "127.0.0.1:9380"
    assert made.warnings == ()


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        ("", ("xxh64", "{}")),
        ('distribution = "ketama"', ("fnv1a_64", "")),
        ('distribution = "modula"\nhash = "md5"\nhash_tag = "()"', ("md5", "()")),
        ('hash_tag = ""', ("xxh64", "")),
    ],
)
def test_auto_is_resolved(pool: str, expected: tuple[str, str]) -> None:
    made = load(f"[pool.main]\n{pool}\n{SHARD}".encode()).pool["main"]
    assert (made.hash, made.hash_tag) == expected


def test_timeouts_follow_timeout() -> None:
    made = load(f'[pool.main]\ntimeout = "200ms"\n{SHARD}'.encode()).pool["main"]
    assert (made.attempt_timeout, made.reset_after) == (0.2, 1.0)
    assert (made.timeouts.read, made.timeouts.write, made.timeouts.script) == (0.2, 0.2, 0.2)
    one = load(f'[pool.main]\ntimeout = "200ms"\ntimeouts = {{ script = "5s" }}\n{SHARD}'.encode()).pool[
        "main"
    ]
    assert (one.timeouts.read, one.timeouts.script) == (0.2, 5.0)


@pytest.mark.parametrize(
    ("listen", "protected", "words"),
    [
        ("0.0.0.0:6380", True, "turns away clients of other machines"),
        ("[::]:6380", False, "who reaches it may read and change everything"),
    ],
)
def test_listening_to_the_world_is_warned_of(listen: str, protected: bool, words: str) -> None:
    (warning,) = Config(listen=(listen,), protected_mode=protected).warnings
    assert listen in warning
    assert words in warning


# --- mistakes


def test_all_mistakes_at_once() -> None:
    found = mistakes("""
        workers = true
        adminn = "x"
        [limits]
        memory = "lots"
        [pool.main]
        kind = "durabel"
        timeout = 5
        [pool.main.shards]
        a = "redis://h:1/3"
        b = { primary = "redis://h:2", weight = 0 }
    """)
    assert [each.partition(": ")[0] for each in found] == [
        "workers",
        "adminn",
        "limits.memory",
        "pool.main.kind",
        "pool.main.timeout",
        "pool.main.shards.a.primary",
        "pool.main.shards.b.weight",
    ]
    assert found[2] == 'limits.memory: found "lots"; expected a size such as "64kb", "1.5mb" or 4096 (bytes)'
    assert found[3] == (
        'pool.main.kind: found "durabel"; expected one of "durable", "cache" (did you mean durable?)'
    )


def test_a_mistake_names_its_file(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(SHARD + "[limits]\nmaxclients = 0\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value) == (
        f"{file}: limits.maxclients: found 0; expected a whole number, from 1 to 1000000000"
    )


POOL = "[pool.main]\n{}\n" + SHARD
TOP = "{}\n" + SHARD
NODES = "[pool.main.shards]\n{}"
MISTAKES = [
    # unknown keys, and keys in the wrong place
    (TOP, 'listn = ["h:1"]', "listn: found an unknown key; ", "(did you mean listen?)"),
    (TOP, 'timeout = "1s"', "timeout: found an unknown key; ", "(it belongs in [pool.NAME])"),
    (POOL, 'memory = "1gb"', "pool.main.memory: ", "(it belongs in [limits])"),
    (POOL, "x1 = 1", "pool.main.x1: found an unknown key; expected one of kind, ", "shards"),
    # designed, not built
    (TOP, "tls = { cert = '/c' }", "tls.cert: found no key", "the certificate's private key"),
    (TOP, "tls = { verify = 'required' }", "tls.verify: found no ca", "the CAs of clients' certificates"),
    (TOP, "tls = { user_from_cert = true }", "tls.user_from_cert", "only a certificate that was verified"),
    (TOP, 'listen = ["tls://0.0.0.0:6390"]', "listen: found tls://0.0.0.0:6390", "cert and key in [tls]"),
    (TOP, 'listen = ["unix:///s?mode=888"]', "listen[0]: found", "?mode=0660"),
    (TOP, 'listen = ["proxy+redis:6379"]', "listen[0]: found", "tls://HOST:PORT"),
    (TOP, 'allow = ["10.0.0/8"]', 'allow[0]: found "10.0.0/8"', "a network such as"),
    (
        NODES,
        'a = { primary = "redis://h:1", replicas = ["x"] }',
        "pool.main.shards.a.replicas",
        "not supported",
    ),
    (TOP, '[pool.b.shards]\nx = "redis://h:1"', "pool: found 2 pools", "several are not supported yet"),
    # types and bounds
    (TOP, 'listen = "h:1"', "listen: ", "a list of"),
    (TOP, 'listen = ["h:1", 2]', "listen[1]: found 2", "unix:///PATH"),
    (TOP, 'listen = ["h:99999"]', "listen[0]: ", "unix:///PATH"),
    (TOP, "listen = []", "listen: found no address", "at least one"),
    (TOP, 'listen = ["h:1", "h:1"]', "listen: found h:1", "each address once"),
    (TOP, 'admin = "unix:///x"', "admin: ", "HOST:PORT"),
    (TOP, "workers = -1", "workers: found -1", "from 0 to 1024"),
    (TOP, "protected_mode = 1", "protected_mode: found 1", "true or false"),
    (TOP, "limits = 3", "limits: found 3", "a table"),
    (TOP, "limits = { max_value = 99999999999999999999999 }", "limits.max_value", 'to "1tb"'),
    (TOP, 'log = { level = "loud" }', "log.level", '"debug", "info", "warning", "error"'),
    (POOL, 'timeout = "0s"', "pool.main.timeout", 'from "1ms"'),
    (POOL, 'timeout = "400d"', "pool.main.timeout", 'to "365d"'),
    (POOL, 'hash_tag = "{"', "pool.main.hash_tag", "two characters"),
    (POOL, "connections_per_node = 0", "pool.main.connections_per_node", "from 1 to 16"),
    (NODES, "a = 7", "pool.main.shards.a: found 7", "redis://HOST:PORT"),
    (NODES, "a = {}", "pool.main.shards.a.primary: found nothing", "redis://HOST:PORT"),
    (NODES, 'a = "h:1"', 'pool.main.shards.a.primary: found "h:1"', "redis://HOST:PORT"),
    (NODES, '"a b" = "redis://h:1"', 'pool.main.shards."a b"', "no spaces"),
    ("{}", "", "pool: found no pool", "[pool.main.shards]"),
    ("{}", "[pool.main]", "pool.main.shards: found no shard", "at least one"),
    ("{}", "pool = 3", "pool: found 3", "a table"),
    ("{}", '[pool."a b".shards]\na = "redis://h:1"', 'pool."a b"', "letters, digits"),
    # contradictions
    (POOL, 'on_shard_down = "rehash"', "pool.main.on_shard_down", 'kind = "cache"'),
    (POOL, 'on_shard_down = "miss"', "pool.main.on_shard_down", 'kind = "cache"'),
    (POOL, 'on_return = "flush"', "pool.main.on_return", 'kind = "cache"'),
    (
        "{}",
        '[pool.main]\nkind = "cache"\nstale_while_down = "5s"\n[pool.main.shards]\na = "memcached://h:11211"',
        "pool.main.stale_while_down",
        "whose values are not kept",
    ),
    (POOL, 'hash = "md5"', "pool.main.hash", "the only one for a ring"),
    (POOL, 'distribution = "ketama"\nvirtual_nodes = 40', "pool.main.virtual_nodes", "as twemproxy does"),
    (POOL, 'attempt_timeout = "2s"', "pool.main.attempt_timeout", "at most timeout"),
    (POOL, 'reset_after = "10ms"', "pool.main.reset_after", "at least timeout"),
    (
        TOP,
        'limits = { client_output_soft = "2gb" }',
        "limits.client_output_hard",
        "at least client_output_soft",
    ),
    (TOP, 'limits = { max_value = "2gb" }', "limits.max_request", "at least max_value"),
    (
        NODES,
        'a = "redis://h:1"\nb = "redis://h:1/0"',
        "pool.main.shards: found h:1 in both a and b",
        "its own",
    ),
    (
        NODES,
        'a = { primary = "redis://h:1", weight = 65535 }',
        "pool.main.virtual_nodes",
        "fewer virtual_nodes",
    ),
    # logins
    (
        NODES,
        'a = { primary = "redis://h:1", password_env = "HOME", password_file = "/x" }',
        "shards.a.",
        "one of",
    ),
    (
        NODES,
        'a = { primary = "redis://:p@h:1", password_env = "HOME" }',
        "pool.main.shards.a.password",
        "one of",
    ),
    (NODES, 'a = { primary = "redis://h:1", username = "u" }', "pool.main.shards.a.username", "password_env"),
    (
        NODES,
        'a = { primary = "redis://h:1", password_env = "NO_SUCH" }',
        "a.password_env",
        "NO_SUCH, which is not",
    ),
    (
        NODES,
        'a = { primary = "redis://h:1", password_file = "/no/such" }',
        "a.password_file",
        "cannot be read",
    ),
    (
        NODES,
        'a = { primary = "redis://h:1", password_file = "secret" }',
        "a.password_file",
        "an absolute path",
    ),
    # no TOML
    ("{}", "a = ", "configuration: found no TOML", "--defaults"),
    ("{}", "a = " + "[" * 100_000, "configuration: found no TOML", "nested too deeply"),
    ("{}", "a = " + "9" * 5000, "configuration: found no TOML", "--defaults"),
]


@pytest.mark.parametrize(
    ("around", "text", "start", "words"), MISTAKES, ids=[each[1][:40] for each in MISTAKES]
)
def test_one_mistake(around: str, text: str, start: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(around.replace("{}", text, 1).encode())
    (found,) = map(str, caught.value.mistakes)
    assert start in found
    assert words in found


def test_no_rule_is_applied_to_what_is_already_wrong() -> None:
    assert len(mistakes(f'[pool.main]\nkind = "cach"\non_shard_down = "rehash"\n{SHARD}')) == 1


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: None, "No such file"),
        (Path.mkdir, "Is a directory"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "codec can't decode"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, make: typing.Callable[[Path], object], found: str) -> None:
    make(file := tmp_path / "x.toml")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: found ")
    assert found in str(caught.value)


def test_a_byte_order_mark_is_no_mistake() -> None:
    assert load(b"\xef\xbb\xbf" + SHARD.encode()).pool


# --- what is printed


def test_the_default_text_parses_to_the_defaults() -> None:
    text = pages.default_text()
    assert load(text.encode()) == pages.SAMPLE
    assert tomllib.loads(text)["pool"]["main"]["hash"] == "auto"


@pytest.mark.parametrize("record", RECORDS)
def test_every_option_has_help_and_is_in_the_default_text(record: type[tables.Record]) -> None:
    text = pages.default_text()
    for key, option in tables.options(record).items():
        if tables.inner(option) is None:
            assert option.help, key
            assert option.allowed, key
            assert f"{key} = " in text
            assert f"# {option.help}" in text


def test_the_effective_text_parses_to_the_same() -> None:
    text = """
        listen = ["[::1]:0", "unix:///run/a b.sock"]
        [limits]
        idle_timeout = "1m30s"
        memory = "1.5gb"
        [pool.main]
        distribution = "ketama"
        timeout = "1500us"
        password_env = "HOME"
        [pool.main.shards]
        "127.0.0.1:11211" = { primary = "redis://h:1", weight = 3, username = "é" }
        b = "redis://h:2"
    """
    made = load(text.encode())
    assert load(pages.effective_text(made).encode()) == made


def test_the_schema_names_every_option() -> None:
    made = json.loads(json.dumps(pages.schema()))
    for record in RECORDS:
        properties = made["$defs"][record.__name__]["properties"]
        assert list(properties) == list(tables.options(record))
        for key, option in tables.options(record).items():
            assert properties[key].get("description", "") == option.help


def test_the_documentation_names_every_option() -> None:
    page = Path(__file__, "../../../docs/configuration.md").resolve().read_text()
    start, end = "<!-- shardproxy config --reference -->\n", "<!-- end -->"
    shown = page.partition(start)[2].partition(end)[0]
    assert shown.strip() == pages.reference().strip(), "paste what `shardproxy config --reference` prints"


def test_the_key_hashes_are_those_that_there_are() -> None:
    from shardproxy.core.hashing import KEY_HASHES

    assert set(typing.get_args(written_as.KeyHash)) == {"auto", "ch3", *KEY_HASHES}


def test_what_the_limits_allow_makes_a_ring() -> None:
    from shardproxy.core.topology import Topology

    text = (
        '[pool.main]\nvirtual_nodes = 65535\n[pool.main.shards]\na = "redis://h:1"\n"b:/é-1" = "redis://h:2"'
    )
    assert len(Topology.from_config(load(text.encode())).pools[0].ring.points()) == 2 * 65535
