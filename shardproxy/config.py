"""shardproxy.toml ↔ typed records. The records are the one table: types, defaults, bounds and help.

Rules: all mistakes at once, each with file, key, what was found and what is allowed; a secret is in no repr,
no message and no schema default; the records hold plain units (bytes, seconds) whatever the file writes.
"""

import difflib
import os
import re
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import msgspec
from msgspec import Meta

from shardproxy import config_text as text

YEAR = 365 * 86400
KEY_HASHES = Literal[
    "auto", "xxh64", "one_at_a_time", "md5", "crc16", "crc32", "crc32a", "fnv1_64", "fnv1a_64", "fnv1_32",
    "fnv1a_32", "hsieh", "murmur", "jenkins",
]  # fmt: skip


class Secret:
    """A password that shows itself only when asked to."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


def read_secret(value: object) -> Secret:
    if not isinstance(value, str) or not value:
        raise ValueError("a password in quotes, not empty")
    return Secret(value)


def named(pattern: str, allowed: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(allowed)
        return value

    return read


read_tag = named(r"auto|\S\S|", 'two characters such as "{}", "" for none, or "auto"')
read_word = named(r"(?s).+", "text, not empty")
STRING = {"type": "string"}
Count = Annotated[int, Meta(ge=1, le=1 << 31)]
Size = Annotated[
    int,
    Meta(
        ge=1,
        le=1 << 40,
        extra={"read": text.read_size, "write": text.write_size, "allowed": text.SIZE},
        extra_json_schema={"type": ["string", "integer"]},
    ),
]
Duration = Annotated[
    float,
    Meta(
        ge=0,
        le=YEAR,
        extra={"read": text.read_duration, "write": text.write_duration, "allowed": text.DURATION},
        extra_json_schema=STRING,
    ),
]
Listen = Annotated[str, Meta(extra={"read": text.read_listen})]
Password = Annotated[Secret | None, Meta(extra={"read": read_secret})]
Word = Annotated[str, Meta(extra={"read": read_word})]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file. `not_yet`: keys of the design that are refused by name until they are built."""

    not_yet: ClassVar[Mapping[str, str]] = {}


class Log(Record):
    format: Annotated[
        Literal["auto", "human", "json"], Meta(description="auto: human on a terminal, JSON elsewhere")
    ] = "auto"
    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="the least that is logged")
    ] = "info"


class Limits(Record):
    maxclients: Annotated[Count, Meta(description="clients connected at once, over all workers")] = 10_000
    client_requests: Annotated[
        Count, Meta(description="requests in flight of one client before it is read no further")
    ] = 1024
    client_output_soft: Annotated[
        Size, Meta(description="reply bytes outstanding before a client is read no further")
    ] = 1 << 20
    client_output_hard: Annotated[
        Size, Meta(description="reply bytes outstanding beyond which a client is closed")
    ] = 1 << 30
    max_value: Annotated[Size, Meta(description="one argument of a command")] = 512 << 20
    max_request: Annotated[Size, Meta(description="a whole command")] = 1 << 30
    max_arguments: Annotated[Count, Meta(description="arguments of one command")] = 1 << 20
    max_inline: Annotated[Size, Meta(description="a command typed as a plain line")] = 64 << 10
    memory: Annotated[
        Size,
        Meta(
            description="all buffers of a process: beyond it, clients that hold much are paused, then closed"
        ),
    ] = 1 << 30
    idle_timeout: Annotated[
        Duration, Meta(description="clients silent for so long are closed; 0s: never")
    ] = 0.0
    tcp_keepalive: Annotated[
        Duration, Meta(description="between TCP keepalive probes, clients and nodes; 0s: none")
    ] = 300.0
    drain_timeout: Annotated[Duration, Meta(description="how long a stop waits for requests in flight")] = (
        30.0
    )


class ShardConfig(Record):
    not_yet: ClassVar[Mapping[str, str]] = {"replicas": "replicas", "tls": "TLS to nodes"}

    primary: Annotated[str, Meta(description="the node's address", extra={"read": text.read_node})]
    weight: Annotated[
        int, Meta(ge=1, le=65535, description="its part of the keys, relative to the others'")
    ] = 1
    username: Annotated[Word | None, Meta(description="who to log in as; none: Redis's default user")] = None
    password: Annotated[Password, Meta(description="only in a file that others cannot read")] = None
    password_env: Annotated[
        Word | None, Meta(description="the environment variable that holds the password")
    ] = None
    password_file: Annotated[Word | None, Meta(description="the file that holds the password")] = None

    @property
    def address(self) -> str:
        """ "HOST:PORT", or "/PATH" of a unix socket."""
        return text.address_of(self.primary)

    @property
    def protocol(self) -> str:
        return "redis"


class PoolConfig(Record):
    kind: Annotated[
        Literal["durable", "cache"],
        Meta(description="durable: nothing moves or goes silently; cache: content may be lost"),
    ] = "durable"
    on_shard_down: Annotated[
        Literal["error", "miss", "rehash"],
        Meta(description="what its keys get meanwhile; miss, rehash: cache only"),
    ] = "error"
    on_return: Annotated[
        Literal["keep", "invalidate", "flush"],
        Meta(description="what a node's content is worth when it returns; invalidate, flush: cache only"),
    ] = "keep"
    distribution: Annotated[
        Literal["ring", "ketama", "modula"],
        Meta(description="how keys are placed; ketama, modula: as twemproxy does"),
    ] = "ring"
    hash: Annotated[
        KEY_HASHES, Meta(description="of keys; auto: xxh64 on a ring, else twemproxy's own default fnv1a_64")
    ] = "auto"
    hash_tag: Annotated[
        str,
        Meta(
            description='the part of a key between these two is hashed alone; auto: "{}" on a ring, else none',
            extra={"read": read_tag},
        ),
    ] = "auto"
    virtual_nodes: Annotated[
        int, Meta(ge=1, le=65535, description="points on the ring for a shard of weight 1")
    ] = 160
    partial: Annotated[
        Literal["error", "nil"],
        Meta(description="when part of a command over several shards fails: one error, or nil for its keys"),
    ] = "error"
    timeout: Annotated[Duration, Meta(description="for a request in all")] = 1.0
    attempt_timeout: Annotated[Duration, Meta(description="for one try; 0s: as timeout")] = 0.0
    connect_timeout: Annotated[Duration, Meta(description="for connecting to a node and logging in")] = 1.0
    reset_after: Annotated[
        Duration,
        Meta(description="a connection to a node with requests waiting and no progress for so long is reset"),
    ] = 5.0
    connections_per_node: Annotated[
        int,
        Meta(ge=1, le=64, description="shared connections a worker has to each node, per protocol version"),
    ] = 1
    username: Annotated[
        Word | None, Meta(description="who to log in as at every shard that says nothing else")
    ] = None
    password: Annotated[Password, Meta(description="only in a file that others cannot read")] = None
    password_env: Annotated[
        Word | None, Meta(description="the environment variable that holds the password")
    ] = None
    password_file: Annotated[Word | None, Meta(description="the file that holds the password")] = None
    shards: Annotated[
        dict[str, ShardConfig], Meta(description="stable name → address; the name is what is hashed")
    ] = {}

    def __post_init__(self) -> None:
        ring = self.distribution == "ring"
        if self.hash == "auto":
            msgspec.structs.force_setattr(self, "hash", "xxh64" if ring else "fnv1a_64")
        if self.hash_tag == "auto":
            msgspec.structs.force_setattr(self, "hash_tag", "{}" if ring else "")
        if not self.attempt_timeout:
            msgspec.structs.force_setattr(self, "attempt_timeout", self.timeout)


class Config(Record):
    not_yet: ClassVar[Mapping[str, str]] = {"tls": "TLS", "users": "users", "route": "routing over pools"}

    listen: Annotated[
        tuple[Listen, ...], Meta(description="where clients connect: HOST:PORT, or unix:///PATH")
    ] = ("127.0.0.1:6380",)
    admin: Annotated[Listen | None, Meta(description="health, metrics, the page: shows, never acts")] = None
    workers: Annotated[int, Meta(ge=0, le=1024, description="processes; 0: one a core")] = 1
    protected_mode: Annotated[
        bool, Meta(description="serve only this machine, as Redis does while it has no users")
    ] = True
    log: Log = Log()
    limits: Limits = Limits()
    pool: dict[str, PoolConfig] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is accepted but does not act as a reader of the file would expect."""
        return ()


class Mistake(NamedTuple):
    where: str  # "FILE: pool.main.timeout"
    found: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}; expected {self.allowed}"


class ConfigError(Exception):
    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = mistakes


class Credentials:
    """(username or "", password) by pool and shard; apart from the records, so that nothing prints them."""

    def __init__(self, logins: Mapping[tuple[str, str], tuple[str, str]] | None = None) -> None:
        self._logins = dict(logins or {})

    def of(self, pool: str, shard: str) -> tuple[str, str] | None:
        return self._logins.get((pool, shard))

    def __repr__(self) -> str:
        return f"Credentials({len(self._logins)} logins)"

    @classmethod
    def read(cls, config: Config, environ: Mapping[str, str] = os.environ) -> "Credentials":
        """Raises ConfigError when a variable is unset or a file unreadable."""
        return cls()


def load(source: str | Path | bytes) -> Config:
    """The configuration in a file (or in these bytes). Raises ConfigError with every mistake."""
    data = (
        tomllib.loads(source.decode())
        if isinstance(source, bytes)
        else tomllib.loads(Path(source).read_text())
    )
    return typing.cast(Config, _read_record(Config, data))


def _read_record(record: type[Record], table: Any) -> Record:
    if record is ShardConfig and isinstance(table, str):
        table = {"primary": table}
    hints = typing.get_type_hints(record, include_extras=True)
    return record(**{key: _read(hints[key], value) for key, value in table.items()})


def _read(hint: Any, value: Any) -> Any:
    base = hint.__origin__ if hasattr(hint, "__metadata__") else hint
    if isinstance(base, type) and issubclass(base, Record):
        return _read_record(base, value)
    if typing.get_origin(base) is dict:
        return {name: _read_record(typing.get_args(base)[1], item) for name, item in value.items()}
    if typing.get_origin(base) is tuple:
        return tuple(value)
    for meta in getattr(hint, "__metadata__", ()):
        if meta.extra:
            return meta.extra["read"](value)
    return value
