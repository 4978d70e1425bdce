"""shardproxy.toml ↔ typed records. The records are the one table: types, defaults, bounds and help.

Rules: all mistakes at once, each with file, key, what was found and what is allowed; a secret is in no repr,
no message and no output; the records hold plain units (bytes, seconds) whatever the file writes.
"""

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import msgspec
from msgspec import Meta, field

from shardproxy import config_tables as tables
from shardproxy import config_text as text
from shardproxy.config_sessions import SESSIONS_RULES, ClassConfig, SessionsConfig, read_secrets
from shardproxy.config_tables import ConfigError, Mistake, Reader, Record, Rule
from shardproxy.config_text import Count, Duration, Fraction, Password, Secret, Size, SizeOrNone, Timeout
from shardproxy.config_users import NAME, USER_RULES, UserConfig, guarded, read_acl_file, users_of
from shardproxy.core.acl import Users

__all__ = [
    "Config", "ConfigError", "Credentials", "KeyConfig", "Limits", "Log", "Mistake", "NodeTlsConfig",
    "PoolConfig", "Secret", "SessionsConfig",
    "ShardConfig", "Source", "TlsConfig", "UserConfig", "default_text",
    "effective_text", "load", "read_session_secrets", "read_users", "reference", "schema",
]  # fmt: skip

MAX_POINTS = 1 << 20
ENV = "the environment variable that holds the password"
FILE = "the file that holds the password"
KEY_ENV = "the environment variable that holds the key's password"
KEY_FILE = "the file that holds the key's password"
INLINE = "the password itself, only in a file that others cannot read"


class Log(Record, frozen=True, kw_only=True):
    """What is logged, and how."""

    format: Annotated[Literal["auto", "human", "json"], "auto: human on a terminal, JSON elsewhere"] = "auto"
    level: Annotated[Literal["debug", "info", "warning", "error"], "the least that is logged"] = "info"


class Limits(Record, frozen=True, kw_only=True):
    """Nothing grows without bound: what a client, and all of them, may take."""

    maxclients: Annotated[Count, "clients connected at once, over all workers"] = 10_000
    client_requests: Annotated[Count, "with so many requests in flight a client's next ones wait"] = 1024
    client_output_soft: Annotated[
        Size, "with so many request and reply bytes outstanding a client's next commands wait"
    ] = 1 << 20
    client_output_hard: Annotated[Size, "a client owed so many reply bytes is closed"] = 1 << 30
    client_subscriptions: Annotated[Count, "channels and patterns that one client may subscribe to"] = 100_000
    pubsub_output_soft: Annotated[
        Size, "a subscriber owed so many bytes for pubsub_output_time is closed"
    ] = 8 << 20
    pubsub_output_hard: Annotated[Size, "a subscriber owed so many bytes is closed at once"] = 32 << 20
    pubsub_output_time: Annotated[Timeout, "how long a subscriber may be over pubsub_output_soft"] = 60.0
    max_value: Annotated[Size, "one argument of a command"] = 512 << 20
    max_request: Annotated[Size, "a whole command"] = 1 << 30
    max_arguments: Annotated[Count, "arguments of one command"] = 1 << 20
    max_inline: Annotated[Size, "a command typed as a plain line"] = 64 << 10
    memory: Annotated[
        Size, "buffers of a process; beyond it, clients that hold much are paused, then closed"
    ] = 1 << 30
    scripts: Annotated[
        Size, "texts of scripts that a worker keeps, so that EVALSHA finds them on nodes that have lost them"
    ] = 16 << 20
    clients_per_address: Annotated[
        int, Meta(ge=0, le=10**9), "clients connected at once from one address, to a worker; 0: as maxclients"
    ] = 0
    address_requests: Annotated[
        int,
        Meta(ge=0, le=10**9),
        "with so many in flight of one address, to a worker, its clients' next requests wait; 0: any number",
    ] = 0
    address_bytes: Annotated[
        SizeOrNone, "the same for request and reply bytes outstanding; 0: any number"
    ] = 0
    handshakes: Annotated[
        Count, "clients of a worker in a TLS handshake or before their PROXY header; more wait to be accepted"
    ] = 256
    handshake_timeout: Annotated[Timeout, "for a client's PROXY header and TLS handshake"] = 10.0
    idle_timeout: Annotated[Duration, "a client silent for so long is closed; 0s: never"] = 0.0
    tcp_keepalive: Annotated[Duration, "TCP keepalive of clients and nodes; 0s: none"] = 300.0
    drain_timeout: Annotated[Duration, "how long a stop waits for requests in flight"] = 30.0

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ("client_output_hard", "client_output_soft"),
            lambda it: it.client_output_hard < it.client_output_soft,
            "at least client_output_soft",
        ),
        Rule(
            ("pubsub_output_hard", "pubsub_output_soft"),
            lambda it: it.pubsub_output_hard < it.pubsub_output_soft,
            "at least pubsub_output_soft",
        ),
        Rule(("max_request", "max_value"), lambda it: it.max_request < it.max_value, "at least max_value"),
        Rule(("max_request", "max_inline"), lambda it: it.max_request < it.max_inline, "at least max_inline"),
    )


class KeyConfig(Record, frozen=True, kw_only=True):
    """A certificate for clients that ask for this host name."""

    cert: Annotated[text.PemPath, "PEM: the certificate, and those between it and its CA"]
    key: Annotated[text.PemPath, "PEM: its private key"]
    key_password_env: Annotated[text.Variable | None, KEY_ENV] = None
    key_password_file: Annotated[text.FilePath | None, KEY_FILE] = None


class TlsConfig(Record, frozen=True, kw_only=True):
    """TLS of clients, on the addresses in `listen` that begin with tls://."""

    cert: Annotated[text.PemPath | None, "PEM: the certificate, and those between it and its CA"] = None
    key: Annotated[text.PemPath | None, "PEM: its private key"] = None
    key_password_env: Annotated[text.Variable | None, KEY_ENV] = None
    key_password_file: Annotated[text.FilePath | None, KEY_FILE] = None
    ca: Annotated[text.PemPath | None, "PEM: the CAs that clients' certificates may be from"] = None
    verify: Annotated[
        Literal["none", "optional", "required"], "whether clients must show a certificate of `ca`"
    ] = "none"
    user_from_cert: Annotated[bool, "the name in a client's certificate is the user it is logged in as"] = (
        False
    )
    minimum: Annotated[Literal["1.2", "1.3"], "the oldest version of TLS that is spoken"] = "1.2"
    ciphers: Annotated[text.Ciphers | None, "for TLS 1.2, as OpenSSL lists them; none: Python's choice"] = (
        None
    )
    sni: Annotated[
        dict[str, KeyConfig],
        Meta(extra={"name": text.matching(r"[A-Za-z0-9_.-]{1,253}", "a host name")}),
        "other certificates, by the host name that a client asks for",
    ] = field(default_factory=dict)

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ("cert", "key"),
            lambda it: it.cert and not it.key and "no key",
            "key, with the certificate's private key",
        ),
        Rule(
            ("key", "cert"),
            lambda it: it.key and not it.cert and "no cert",
            "cert, with the key's certificate",
        ),
        Rule(
            ("verify", "ca"),
            lambda it: it.verify != "none" and not it.ca and "no ca",
            "ca, with the CAs of clients' certificates",
        ),
        Rule(
            ("user_from_cert", "verify"),
            lambda it: it.user_from_cert and it.verify == "none",
            '"optional" or "required": only a certificate that was verified names a user',
        ),
    )


class NodeTlsConfig(Record, frozen=True, kw_only=True):
    """TLS to the nodes whose addresses begin with rediss://."""

    ca: Annotated[text.PemPath | None, "PEM: the CAs of the nodes' certificates; none: the system's"] = None
    cert: Annotated[text.PemPath | None, "PEM: the certificate that we show"] = None
    key: Annotated[text.PemPath | None, "PEM: its private key"] = None
    key_password_env: Annotated[text.Variable | None, KEY_ENV] = None
    key_password_file: Annotated[text.FilePath | None, KEY_FILE] = None
    verify: Annotated[
        Literal["full", "ca", "none"], "of nodes' certificates: CA and name; the CA alone; nothing"
    ] = "full"
    server_name: Annotated[
        text.ServerName | None,
        "the name that is asked for and must be in the certificate; none: the address's host",
    ] = None
    minimum: Annotated[Literal["1.2", "1.3"], "the oldest version of TLS that is spoken"] = "1.2"
    ciphers: Annotated[text.Ciphers | None, "for TLS 1.2, as OpenSSL lists them; none: Python's choice"] = (
        None
    )

    rules: ClassVar[tuple[Rule, ...]] = TlsConfig.rules[:2]


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
            lambda it: " and ".join(_passwords(it)) if len(_passwords(it)) > 1 else "",
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
    minimum: Annotated[Count, "with fewer requests in `window` rates say nothing"] = 20
    wait: Annotated[
        Timeout, "a node that is out gets no trial requests for so long; longer when it flaps"
    ] = 30.0
    wait_most: Annotated[Timeout, "the longest that `wait` grows to"] = 300.0
    fail_open_ratio: Annotated[
        Fraction,
        "when more than this part of the nodes looks down, the fault is likely ours: none is put out",
    ] = 0.5
    max_memory_percent: Annotated[
        Fraction, "deep: used memory, as a part of maxmemory, below which a node is well"
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
    def points(self) -> int:
        """How many points its ring has, at most."""
        weights = sum(shard.weight for shard in self.shards.values())
        return {"ring": self.virtual_nodes * weights, "ketama": 160 * len(self.shards)}.get(
            self.distribution, weights
        )


class Config(Record, frozen=True, kw_only=True):
    """Where clients connect, and how many processes serve them."""

    listen: Annotated[tuple[text.Listen, ...], "where clients connect"] = ("127.0.0.1:6380",)
    admin: Annotated[text.Admin | None, "health, metrics, the page: shows, never acts"] = None
    workers: Annotated[int, Meta(ge=0, le=1024), "processes; 0: one a core"] = 1
    on_transition: Annotated[
        text.Hook | None,
        "told of every change of a node's state: a URL (POST, JSON) or a program (JSON on stdin)",
    ] = None
    state: Annotated[
        text.FilePath | None, "where the last good configuration is kept, for a start when the file is broken"
    ] = None
    protected_mode: Annotated[bool, "serve only clients of this machine, as long as nobody has to log in"] = (
        True
    )
    allow: Annotated[tuple[text.Network, ...], "addresses of clients that may connect; empty: all"] = ()
    proxy_protocol_from: Annotated[
        tuple[text.Network, ...],
        "load balancers whose PROXY header is believed, on proxy:// and proxy+ addresses",
    ] = ("127.0.0.0/8", "::1/128")
    acl_file: Annotated[
        text.FilePath | None, "users as in Redis's ACL file (user NAME RULES...), instead of [users]"
    ] = None
    user_scripts: Annotated[
        Literal["refuse", "trust"],
        "scripts of users who may not do everything; trust: nodes run them without these users' rules",
    ] = "refuse"
    log: Log = Log()
    limits: Limits = Limits()
    tls: TlsConfig = TlsConfig()
    pool: Annotated[
        dict[str, PoolConfig],
        Meta(extra={"name": text.matching(r"[A-Za-z0-9_-]{1,64}", "letters, digits, - and _, at most 64")}),
    ] = field(default_factory=dict)
    users: Annotated[
        dict[str, UserConfig],
        Meta(extra={"name": NAME}),
        "name = rules, or a table; `default` is who has not logged in",
    ] = field(default_factory=dict)

    sessions: SessionsConfig = SessionsConfig()

    not_yet: ClassVar[Mapping[str, str]] = {"route": "several pools"}
    rules: ClassVar[tuple[Rule, ...]] = (
        *USER_RULES,
        *SESSIONS_RULES,
        Rule(("listen",), lambda it: "" if it.listen else "no address", "at least one, " + text.LISTEN),
        Rule(
            ("listen",),
            lambda it: next((a for a in it.listen if it.listen.count(a) > 1 and not a.endswith(":0")), ""),
            "each address once",
        ),
        Rule(
            ("listen", "tls"),
            lambda it: next((a for a in it.listen if text.door(a).tls), "") if not it.tls.cert else "",
            "cert and key in [tls]",
        ),
        Rule(
            ("pool",), lambda it: "" if it.pool else "no pool", "one, with its shards in [pool.main.shards]"
        ),
        Rule(
            ("pool",),
            lambda it: f"{len(it.pool)} pools" if len(it.pool) > 1 else "",
            "one: several are not supported yet",
        ),
    )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is accepted but does not do what a reader of the file may expect."""
        return tuple(_warnings(self))


def _passwords(login: Any) -> list[str]:
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


def _warnings(config: Config) -> Iterator[str]:
    if config.admin and not text.is_local(config.admin):
        yield f"admin on {config.admin}: it has no login; who reaches it sees nodes, counters and load"
    for address in (each for each in config.listen if not text.is_local(each) and not guarded(config)):
        yield f"listen on {address}: " + (
            "protected_mode turns away clients of other machines; on a network you trust, set it to false"
            if config.protected_mode
            else "protected_mode is off: who reaches it may read and change everything"
        )
    for name, pool in config.pool.items():
        if pool.on_shard_down == "rehash" and pool.on_return == "keep":
            yield (
                f'pool.{name}.on_return = "keep" with on_shard_down = "rehash": values that were changed '
                "while a node was out are served in their old form when it returns"
            )


class Credentials:
    """(username or "", password) by pool and shard; apart from the records, so that nothing prints them."""

    def __init__(self, logins: Mapping[tuple[str, str], tuple[str, str]] | None = None) -> None:
        self._logins = dict(logins or {})

    def of(self, pool: str, shard: str) -> tuple[str, str] | None:
        return self._logins.get((pool, shard))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Credentials) and other._logins == self._logins

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Credentials({len(self._logins)} logins)"

    def to_wire(self) -> list[list[str]]:
        """In clear, for a child of ours and nobody else."""
        return [[*where, *login] for where, login in self._logins.items()]

    @classmethod
    def from_wire(cls, rows: Sequence[Sequence[str]]) -> "Credentials":
        return cls({(pool, shard): (username, password) for pool, shard, username, password in rows})

    @classmethod
    def read(
        cls, config: Config, environ: Mapping[str, str] = os.environ, file: str = "configuration"
    ) -> "Credentials":
        """What the configuration names; a shard's own login goes before its pool's.

        Raises ConfigError for a variable that is not set and a file that cannot be read.
        """
        reader, logins = Reader(file, Config), {}
        for pool_name, pool in config.pool.items():
            above = f"pool.{pool_name}"
            for name, shard in pool.shards.items():
                where = tables.join(f"{above}.shards", name)
                username = shard.username or pool.username or ""
                password = (
                    _read_password(shard, where, reader, environ)
                    if _passwords(shard)
                    else _read_password(pool, above, reader, environ)
                )
                if password:
                    logins[pool_name, name] = (username, password)
                elif username and not _passwords(shard) and not _passwords(pool):
                    reader.mistake(f"{where}.username", "no password for it", "password_env or password_file")
        if reader.mistakes:
            raise ConfigError(list(dict.fromkeys(reader.mistakes)))
        return cls(logins)


def read_users(
    config: Config,
    environ: Mapping[str, str] = os.environ,
    file: str = "configuration",
    secrets: bool = True,
) -> Users:
    """Who may log in. Raises ConfigError: rules are wrong, a password or a file cannot be read.

    `secrets=False`: rules are checked, passwords and the file are left alone.
    """
    reader, passwords = Reader(file, Config), {}
    for name, user in config.users.items() if secrets else ():
        passwords[name] = _read_password(user, tables.join("users", name), reader, environ)
    users = users_of(config, passwords, reader)
    if config.acl_file and secrets:
        users = read_acl_file(config, reader)
    if reader.mistakes:
        raise ConfigError(reader.mistakes)
    return users


def read_session_secrets(
    config: Config, environ: Mapping[str, str] = os.environ, file: str = "configuration"
) -> tuple[str, ...]:
    """The secrets of [sessions], the newest first. Raises ConfigError: there are none, or too short ones."""
    reader = Reader(file, Config)
    found = read_secrets(config, reader, environ)
    if reader.mistakes:
        raise ConfigError(reader.mistakes)
    return found


def _read_password(
    login: PoolConfig | ShardConfig | UserConfig, where: str, reader: Reader, environ: Mapping[str, str]
) -> str:
    if variable := login.password_env:
        if not environ.get(variable):
            reader.mistake(f"{where}.password_env", f"{variable}, which is not set", "a variable that is set")
        return environ.get(variable, "")
    if path := login.password_file:
        try:
            password, reason = Path(path).read_text().removesuffix("\n"), "is empty"
        except (OSError, ValueError) as error:
            password, reason = "", f"cannot be read ({getattr(error, 'strerror', 'not text')})"
        if not password:
            reader.mistake(f"{where}.password_file", f"{path}, which {reason}", "a file with a password")
        return password
    return login.password.reveal() if login.password else ""


class Source(NamedTuple):
    """The text of a configuration, and what is said of it in a mistake."""

    file: str
    content: bytes
    readable: bool = False  # by group or others: then no password may be in it

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Raises ConfigError."""
        reader = Reader(os.fspath(path), Config)
        try:
            with open(path, "rb") as file:
                # asked of the open file, not of the name
                return cls(reader.file, file.read(), bool(os.fstat(file.fileno()).st_mode & 0o044))
        except OSError as error:
            wanted = "a file; `shardproxy config --defaults` prints one"
            reader.mistake("", error.strerror or str(error), wanted)
            raise ConfigError(reader.mistakes) from None


def load(source: str | os.PathLike[str] | bytes | Source, *, secrets: bool = True) -> Config:
    """The configuration in a file, or in these bytes. Raises ConfigError with every mistake in it.

    `secrets=False` leaves alone the variables and files that hold passwords: to look at a configuration
    where it will not run.
    """
    if isinstance(source, bytes):
        source = Source("configuration", source)
    elif not isinstance(source, Source):
        source = Source.read(source)
    file, content, readable = source
    reader = Reader(file, Config)
    try:
        data = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        reader.mistake("", f"no TOML: {reason}", "TOML; `shardproxy config --defaults` prints some")
        raise ConfigError(reader.mistakes) from None
    config: Config = reader.record(Config, data)
    for where in _inline_passwords(config) if readable else ():
        reader.mistake(
            where, "a password in a file that others can read", f"password_env, or chmod 600 {file}"
        )
    reads: list[Callable[..., object]] = [partial(read_users, secrets=secrets)]
    for read in [*reads, Credentials.read, read_session_secrets] if secrets else reads:
        try:
            read(config, file=file)
        except ConfigError as error:
            reader.mistakes += error.mistakes
    if reader.mistakes:
        raise ConfigError(reader.mistakes)
    return config


def _inline_passwords(config: Config) -> Iterator[str]:
    if config.sessions.secrets:
        yield "sessions.secrets"
    for name, user in config.users.items():
        if user.password:
            yield tables.join("users", name) + ".password"
        if user.acl.plain:
            yield tables.join("users", name) + ".acl"
    for pool_name, pool in config.pool.items():
        if pool.password:
            yield f"pool.{pool_name}.password"
        for name, shard in pool.shards.items():
            if shard.password:
                yield tables.join(f"pool.{pool_name}.shards", name) + ".password"


def sample() -> Config:
    """The defaults, and three shards."""
    shards = {name: ShardConfig(primary=f"redis://127.0.0.1:700{port}") for port, name in enumerate("abc", 1)}
    return Config(pool={"main": PoolConfig(shards=shards)})


def default_text() -> str:
    """A complete commented file: every option with its help and default, and three shards."""
    return "# shardproxy.toml: every option, with its default. Keep what you change.\n\n" + tables.toml(
        sample(), commented=True
    )


def effective_text(config: Config) -> str:
    """What a file comes to, with every default filled in; passwords left out."""
    return tables.toml(config)


def reference() -> str:
    """Every option, as Markdown tables."""
    return tables.markdown(Config)


def schema() -> dict[str, Any]:
    """The JSON schema of shardproxy.toml, for editors."""
    made: dict[str, Any] = msgspec.json.schema(Config, schema_hook=lambda _: {"type": "string"})
    tls_records = (TlsConfig, KeyConfig, NodeTlsConfig)
    pool_records = (PoolConfig, TimeoutsConfig, HealthConfig, ShardConfig)
    for record in (Config, Log, Limits, *tls_records, *pool_records, UserConfig, SessionsConfig, ClassConfig):
        for key, option in tables.options(record).items():
            if option.help:
                made["$defs"][record.__name__]["properties"][key]["description"] = option.help
    shards = made["$defs"]["PoolConfig"]["properties"]["shards"]
    shards["additionalProperties"] = {"anyOf": [{"type": "string"}, shards["additionalProperties"]]}
    users = made["$defs"]["Config"]["properties"]["users"]
    users["additionalProperties"] = {"anyOf": [{"type": "string"}, users["additionalProperties"]]}
    return made
