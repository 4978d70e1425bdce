"""shardproxy.toml as a whole. The records are the one table of options: types, defaults, bounds and help.

A secret is in no repr, no message and no output; records hold plain units (bytes, seconds) whatever the
file writes.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from shardproxy.config import text
from shardproxy.config.limits import Limits
from shardproxy.config.pools import PoolConfig
from shardproxy.config.sessions import SESSIONS_RULES, SessionsConfig
from shardproxy.config.tables import Record, Rule
from shardproxy.config.tls import TlsConfig
from shardproxy.config.users import NAME, USER_RULES, UserConfig, guarded


class Log(Record, frozen=True, kw_only=True):
    """What is logged, and how."""

    format: Annotated[Literal["auto", "human", "json"], "auto: human on a terminal, JSON elsewhere"] = "auto"
    level: Annotated[Literal["debug", "info", "warning", "error"], "the least that is logged"] = "info"


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
        text.FilePath | None,
        Meta(examples=["/var/lib/shardproxy/state"]),
        "where the last good configuration is kept, for a start when the file is broken",
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
        text.FilePath | None,
        Meta(examples=["/etc/shardproxy/users.acl"]),
        "users as in Redis's ACL file (user NAME RULES...), instead of [users]",
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
