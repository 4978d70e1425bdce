"""`[sessions]` of shardproxy.toml: the proxy's own session store, for programs in any language.

Off unless it names a pool and secrets. A secret is in no repr and no output, as a password.
"""

from __future__ import annotations  # made when they are asked for: most clients never do

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from msgspec import Meta, field

from shardproxy.config import text
from shardproxy.config.tables import Reader, Record, Rule
from shardproxy.config.text import Password, Timeout

if TYPE_CHECKING:
    from shardproxy.config import Config
    from shardproxy.core.sessions.records import Timeouts

WAYS = ("secrets", "secrets_env", "secrets_file")
LEAST_SECRET = 16  # bytes
NEEDED = "secrets_env or secrets_file: secrets of 16 bytes or more, the newest first"


class ClassConfig(Record, frozen=True, kw_only=True):
    """The timeouts of one class of sessions; what is not said is as in the class anonymous."""

    idle: Annotated[Timeout, "without a request"] = 1800.0
    absolute: Annotated[Timeout, "in all"] = 28800.0
    renewal: Annotated[Timeout, "until the next id"] = 900.0
    persistent: Annotated[bool, "its cookie outlives the browser"] = False


class SessionsConfig(Record, frozen=True, kw_only=True):
    """The commands SESSION.*: docs/sessions.md. Off unless a pool and secrets are named."""

    pool: Annotated[str | None, Meta(examples=["main"]), "the durable pool that holds them; none: off"] = None
    secrets_env: Annotated[
        text.Variable | None,
        Meta(examples=["SESSION_SECRETS"]),
        "the environment variable that holds them, the newest first, spaces between",
    ] = None
    secrets_file: Annotated[
        text.FilePath | None,
        Meta(examples=["/run/secrets/sessions"]),
        "the file that holds them, one a line, the newest first",
    ] = None
    secrets: Annotated[tuple[Password, ...], "they themselves, only in a file that others cannot read"] = ()
    prefix: Annotated[
        str, Meta(extra=text.matching(r"[^{}\s]{0,64}", "no braces, no spaces")), "before all their keys"
    ] = ""
    encrypt: Annotated[bool, "fields are stored under AES-GCM; needs the package `cryptography`"] = False
    grace: Annotated[Timeout, "how long an old id works after its successor was first seen"] = 10.0
    max_sessions: Annotated[int, Meta(ge=0, le=10**6), "of one user; 0: any number"] = 0
    when_full: Annotated[
        Literal["oldest", "reject"], "of a user who has so many: what would expire first ends, or a refusal"
    ] = "oldest"
    allow_flush: Annotated[bool, "FLUSHALL and FLUSHDB work, and log everybody out"] = False
    classes: Annotated[
        dict[str, ClassConfig],
        Meta(extra={"name": text.matching(r"[a-z_]{1,32}", "lower-case letters and _")}),
        "timeouts by class, over the defaults of anonymous, signed_in and remember_me",
    ] = field(default_factory=dict)

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            WAYS,
            lambda it: " and ".join(given(it)) if len(given(it)) > 1 else "",
            "one of them",
        ),
        Rule(
            ("pool", *WAYS), lambda it: "a pool and no secrets" if it.pool and not given(it) else "", NEEDED
        ),
    )


def given(sessions: SessionsConfig) -> list[str]:
    """Which of the ways to give secrets are used."""
    return [key for key in WAYS if getattr(sessions, key)]


SESSIONS_RULES = (
    Rule(
        ("sessions", "pool"),
        lambda it: it.sessions.pool if it.sessions.pool and it.sessions.pool not in it.pool else "",
        "the name of a pool",
    ),
    Rule(
        ("sessions", "pool"),
        lambda it: _unfit(it),
        'a pool of kind "durable", of Redis nodes alone: sessions do not move, and are not lost silently',
    ),
)


def _unfit(config: Config) -> str:
    pool = config.pool.get(config.sessions.pool or "")
    if pool is None:
        return ""
    if pool.kind != "durable":
        return f'{config.sessions.pool}, a pool of kind "{pool.kind}"'
    others = [name for name, shard in pool.shards.items() if shard.protocol != "redis"]
    return f"{config.sessions.pool} with the shard {others[0]}, which is no Redis" if others else ""


def read_secrets(config: Config, reader: Reader, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The secrets, the newest first; none when sessions are off. Mistakes go to the reader."""
    it = config.sessions
    if it.pool is None:
        return ()
    where, found = "sessions.secrets", tuple(secret.reveal() for secret in it.secrets)
    if it.secrets_env:
        where, found = "sessions.secrets_env", tuple(environ.get(it.secrets_env, "").split())
    elif it.secrets_file:
        where = "sessions.secrets_file"
        try:
            lines = Path(it.secrets_file).read_text().splitlines()
        except (OSError, ValueError) as error:
            reader.mistake(
                where,
                f"{it.secrets_file}, which cannot be read ({getattr(error, 'strerror', 'not text')})",
                "a file with a secret a line",
            )
            return ()
        found = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not found:
        reader.mistake(where, "no secret", NEEDED)
    elif short := [number for number, each in enumerate(found, 1) if len(each.encode()) < LEAST_SECRET]:
        reader.mistake(where, f"number {short[0]} of less than {LEAST_SECRET} bytes", NEEDED)
    return found


def timeouts_of(config: SessionsConfig) -> dict[str, Timeouts]:
    """Of each class that it names, as core/sessions has them."""
    from shardproxy.core.sessions.records import Timeouts  # of no use to who only reads a configuration

    return {
        name: Timeouts(each.idle, each.absolute, each.renewal, each.persistent)
        for name, each in config.classes.items()
    }
