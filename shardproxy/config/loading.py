"""A file → `Config`: all its mistakes at once, each with file, key, what was found and what is allowed."""

import codecs
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, Self

from shardproxy.config import tables
from shardproxy.config.records import Config
from shardproxy.config.secrets import Credentials, read_session_secrets, read_users
from shardproxy.config.tables import ConfigError, Reader


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
                # asked of the open file, not of the name; on Windows these bits say nothing
                readable = sys.platform != "win32" and bool(os.fstat(file.fileno()).st_mode & 0o044)
                return cls(reader.file, file.read(), readable)
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
        data = tomllib.loads(content.removeprefix(codecs.BOM_UTF8).decode())
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
