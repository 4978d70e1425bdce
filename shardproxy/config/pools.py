"""`[pool.NAME]` of shardproxy.toml: shards, placement, and what becomes of keys when nodes fail."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, field

from shardproxy.config import text
from shardproxy.config.tables import Record, Rule
from shardproxy.config.text import Count, Duration, Fraction, Password, Size, Timeout
from shardproxy.config.tls import NodeTlsConfig

MAX_POINTS = 1 << 20
ENV = "the environment variable that holds the password"
FILE = "the file that holds the password"
INLINE = "the password itself, only in a file that others cannot read"


class ShardConfig(Record, frozen=True, kw_only=True):
    """One position on the ring, and the node that holds its keys."""

    primary: Annotated[text.NodeUrl, "the node's address"]
    weight: Annotated[int, Meta(ge=1, le=65535), "its part of the keys, relative to the others'"] = 1
    announce: Annotated[
        text.NodeUrl | None,
        "where clients that follow PROXY TOPOLOGY reach the node; none: at `primary`, as the proxy does",
    ] = None
    username: Annotated[text.Username | None, "who to log in as; none: as the pool says"] = None
    password_env: Annotated[text.Variable | None, ENV] = None
    password_file: Annotated[text.FilePath | None, FILE] = None
    password: Annotated[Password | None, INLINE] = None

    short: ClassVar[str] = "primary"
    not_yet: ClassVar[Mapping[str, str]] = {"replicas": "replicas", "tls": "TLS other than its pool's"}
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ("password", "password_env", "password_file"),
            lambda it: " and ".join(passwords_of(it)) if len(passwords_of(it)) > 1 else "",
            "one of them",
        ),
    )

    @classmethod
    def prepare(cls, table: Any) -> Any:
        """A shard may be its address alone, and an address may bring its login along."""
        table = {"primary": table} if isinstance(table, str) else table
        if not isinstance(table, dict) or not isinstance(table.get("primary"), str):
            return table
        url, username, password = text.split_login(table["primary"])
        login = {"username": username} if username else {}
        return login | table | {"primary": url} | ({"password": password} if password else {})

    @property
    def address(self) -> str:
        """The address alone: "HOST:PORT", or "/PATH" of a unix socket."""
        return text.address_of(self.primary)

    @property
    def announced(self) -> str:
        """The address that others are told."""
        return text.address_of(self.announce or self.primary)

    @property
    def protocol(self) -> str:
        return "memcached" if self.primary.startswith("memcached") else "redis"

    @property
    def tls(self) -> bool:
        return self.primary.startswith(("rediss://", "memcacheds://"))


class HealthConfig(Record, frozen=True, kw_only=True):
    """How it is found out that a node fails, and that it is well again."""

    probe: Annotated[
        Literal["ping", "write", "deep"],
        "ping; write: a key is set, read and deleted; deep: and role, replication, memory, clients are right",
    ] = "ping"
    interval: Annotated[Timeout, "from one probe of a node to the next"] = 5.0
    timeout: Annotated[Timeout, "for a probe"] = 2.0
    failures: Annotated[Count, "so many probes in a row fail: the node is out"] = 3
    successes: Annotated[Count, "so many probes in a row succeed: the node is back"] = 2
    consecutive: Annotated[Count, "so many requests in a row fail: the node is suspect"] = 3
    failure_rate: Annotated[Fraction, "suspect: the part of requests in `window` that failed"] = 0.5
    slow_rate: Annotated[Fraction, "suspect: the part of requests in `window` that took over slow_call"] = 0.5
    slow_call: Annotated[Duration, "a request that takes longer is slow; 0s: half of the pool's timeout"] = (
        0.0
    )
    window: Annotated[Timeout, "what the rates are taken over"] = 10.0
    minimum: Annotated[
        Count, "with fewer requests rates say nothing; until there are so many, up to 6 windows count"
    ] = 20
    wait: Annotated[
        Timeout,
        "clients of the library: a node that is out gets no trial request for so long; longer when it flaps",
    ] = 30.0
    wait_most: Annotated[Timeout, "the longest that `wait` grows to"] = 300.0
    fail_open_ratio: Annotated[
        Fraction,
        "when more than this part of the nodes looks down, the fault is likely ours: none is put out",
    ] = 0.5
    max_memory_percent: Annotated[
        Fraction,
        "deep: used memory, as a part of maxmemory, up to which a node is well; 1.0: or which evicts",
    ] = 1.0

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(("wait_most", "wait"), lambda it: it.wait_most < it.wait, "at least wait"),
    )


class TimeoutsConfig(Record, frozen=True, kw_only=True):
    """How long a request may take in all, where its class is not as the others."""

    read: Annotated[Duration, "for commands that only read; 0s: as the pool's timeout"] = 0.0
    write: Annotated[Duration, "for the others, and transactions; 0s: as the pool's timeout"] = 0.0
    script: Annotated[Duration, "for EVAL, EVALSHA, FCALL and theirs; 0s: as the pool's timeout"] = 0.0


class PoolConfig(Record, frozen=True, kw_only=True):
    """The shards of one ring, and what becomes of their keys when nodes fail."""

    kind: Annotated[
        Literal["durable", "cache"], "durable: nothing moves or goes silently; cache: content may be lost"
    ] = "durable"
    on_shard_down: Annotated[
        Literal["error", "miss", "rehash"],
        "what the keys of a shard that is down get; all but error: cache only",
    ] = "error"
    on_return: Annotated[
        Literal["keep", "invalidate", "flush"],
        "what becomes of a returning node's content; all but keep: cache only",
    ] = "keep"
    distribution: Annotated[
        Literal["ring", "ketama", "modula", "ch3"],
        "how keys are placed; ketama, modula: as twemproxy does; ch3: as mcrouter does",
    ] = "ring"
    hash: Annotated[
        text.KeyHash, "how keys are hashed; auto: xxh64 on a ring, ch3 for ch3, else fnv1a_64"
    ] = "auto"
    hash_tag: Annotated[
        text.HashTag, 'what of a key is between these is hashed alone; auto: "{}" on a ring, else none'
    ] = "auto"
    virtual_nodes: Annotated[int, Meta(ge=1, le=65535), "points on the ring of a shard of weight 1"] = 160
    partial: Annotated[
        Literal["error", "nil"], "when one of several shards fails a command: an error, or nil for its keys"
    ] = "error"
    cross_shard: Annotated[
        Literal["refuse", "emulate"],
        "RENAME, SUNION and their like over several shards: an error, or in steps that are not atomic",
    ] = "refuse"
    memcached_keys: Annotated[
        bool,
        "SCAN and KEYS on memcached shards too: a snapshot, whose every page looks through the whole node",
    ] = False
    timeout: Annotated[Timeout, "for a request in all"] = 1.0
    timeouts: TimeoutsConfig = TimeoutsConfig()
    attempt_timeout: Annotated[Duration, "for one try of a request; 0s: as timeout"] = 0.0
    connect_timeout: Annotated[Timeout, "for connecting to a node and logging in"] = 1.0
    reset_after: Annotated[
        Duration,
        "a connection that owes replies and brings nothing for so long is reset; 0s: five times timeout",
    ] = 0.0
    retries: Annotated[int, Meta(ge=0, le=10), "how often a request is sent again that may be"] = 2
    retry_budget: Annotated[Fraction, "retries, as a part of all requests"] = 0.1
    remember: Annotated[
        Size, "invalidate: keys of one shard written elsewhere while it is out; beyond it, as flush"
    ] = 16 << 20
    stale_while_down: Annotated[
        Duration, "while its shard is down, a key's last value read may be so old; 0s: never served"
    ] = 0.0
    stale_memory: Annotated[Size, "the values kept for that, of a process"] = 64 << 20
    resolve_every: Annotated[Timeout, "how often host names of nodes are looked up again"] = 30.0
    health: HealthConfig = HealthConfig()
    tls: NodeTlsConfig = NodeTlsConfig()
    connections_per_node: Annotated[
        int, Meta(ge=1, le=16), "connections of a worker to a node, for each protocol version"
    ] = 1
    username: Annotated[text.Username | None, "who to log in as; none: Redis's default user"] = None
    password_env: Annotated[text.Variable | None, ENV] = None
    password_file: Annotated[text.FilePath | None, FILE] = None
    password: Annotated[Password | None, INLINE] = None
    shards: Annotated[
        dict[str, ShardConfig],
        Meta(
            extra={
                "name": text.matching(r"""[^\s"'\\\x00-\x1f\x7f]{1,128}""", "1 to 128 characters, no spaces")
            }
        ),
        "stable name = address, or a table; the name is what is hashed",
    ] = field(default_factory=dict)

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(("shards",), lambda it: "" if it.shards else "no shard", "at least one, NAME = " + text.NODE),
        Rule(("shards",), lambda it: _twice(it), "a node of its own for every shard"),
        Rule(
            ("on_shard_down", "kind"),
            lambda it: it.kind == "durable" and it.on_shard_down != "error",
            '"error", the only one for a durable pool; or kind = "cache"',
        ),
        Rule(
            ("on_return", "kind"),
            lambda it: it.kind == "durable" and it.on_return != "keep",
            '"keep", the only one for a durable pool; or kind = "cache"',
        ),
        Rule(
            ("hash", "distribution"),
            lambda it: it.distribution == "ring" and it.hash != "xxh64",
            '"xxh64", the only one for a ring',
        ),
        Rule(
            ("hash", "distribution"),
            lambda it: it.distribution != "ring" and (it.hash == "ch3") != (it.distribution == "ch3"),
            '"ch3" for ch3, and for nothing else',
        ),
        Rule(
            ("virtual_nodes", "distribution"),
            lambda it: it.distribution != "ring" and it.virtual_nodes != 160,
            "160: ketama and modula place keys as twemproxy does, ch3 as mcrouter does",
        ),
        Rule(
            ("virtual_nodes", "shards"),
            lambda it: f"{it.points} points" if it.points > MAX_POINTS else "",
            f"at most {MAX_POINTS} points: fewer virtual_nodes, or smaller weights",
        ),
        Rule(
            ("stale_while_down", "kind"),
            lambda it: it.stale_while_down and it.kind == "durable",
            'none for a durable pool; or kind = "cache"',
        ),
        Rule(
            ("stale_while_down", "on_shard_down"),
            lambda it: it.stale_while_down and it.on_shard_down == "rehash",
            'none: with "rehash" another shard answers',
        ),
        Rule(
            ("stale_while_down", "shards"),
            lambda it: (
                f"{it.stale_while_down:g} s, with memcached shards"
                if it.stale_while_down and it.speaks_meta
                else ""
            ),
            "none where shards are memcacheds, whose values are not kept",
        ),
        Rule(("attempt_timeout", "timeout"), lambda it: it.attempt_timeout > it.timeout, "at most timeout"),
        Rule(("reset_after", "timeout"), lambda it: it.reset_after < it.timeout, "at least timeout"),
        *ShardConfig.rules,
    )

    def __post_init__(self) -> None:
        """What "auto" and 0s stand for, so that the other layers need not know."""
        ring = self.distribution == "ring"
        for key, unset, value in (
            ("hash", "auto", {"ring": "xxh64", "ch3": "ch3"}.get(self.distribution, "fnv1a_64")),
            ("hash_tag", "auto", "{}" if ring else ""),
            ("attempt_timeout", 0.0, self.timeout),
            ("reset_after", 0.0, 5 * self.timeout),
        ):
            if getattr(self, key) == unset:
                msgspec.structs.force_setattr(self, key, value)
        times = {key: getattr(self.timeouts, key) or self.timeout for key in self.timeouts.__struct_fields__}
        msgspec.structs.force_setattr(self, "timeouts", TimeoutsConfig(**times))

    @property
    def speaks_meta(self) -> bool:
        """Some of its shards are memcacheds."""
        return any(shard.protocol == "memcached" for shard in self.shards.values())

    @property
    def points(self) -> int:
        """How many points its ring has, at most."""
        weights = sum(shard.weight for shard in self.shards.values())
        return {"ring": self.virtual_nodes * weights, "ketama": 160 * len(self.shards)}.get(
            self.distribution, weights
        )


def passwords_of(login: Any) -> list[str]:
    """Which of the ways to give a password are used."""
    return [key for key in ("password", "password_env", "password_file") if getattr(login, key) is not None]


def _twice(pool: PoolConfig) -> str:
    """A node that two shards name, to us or to others: their parts of the keys would be one."""
    for key in ("address", "announced"):
        seen: dict[str, str] = {}
        for name, shard in pool.shards.items():
            if (first := seen.setdefault(getattr(shard, key), name)) != name:
                return f"{getattr(shard, key)} in both {first} and {name}"
    return ""
