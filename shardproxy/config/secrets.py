"""What a configuration names and does not hold: passwords of nodes and users, secrets of sessions.

They come from variables and files, are kept apart from the records, and are read again at every reload.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from shardproxy.config import tables
from shardproxy.config.pools import PoolConfig, ShardConfig, passwords_of
from shardproxy.config.records import Config
from shardproxy.config.sessions import read_secrets
from shardproxy.config.tables import ConfigError, Reader
from shardproxy.config.users import UserConfig, read_acl_file, users_of
from shardproxy.core.acl import Users


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
                    if passwords_of(shard)
                    else _read_password(pool, above, reader, environ)
                )
                if password:
                    logins[pool_name, name] = (username, password)
                elif username and not passwords_of(shard) and not passwords_of(pool):
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
