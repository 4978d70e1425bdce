"""`shardproxy sessions`: what an operator may do with the sessions of [sessions]. Never what is in them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from shardproxy.cli.common import config_option, load_config, print_table

if TYPE_CHECKING:
    from shardproxy.sessions import SessionInfo, SessionStore

COLUMNS = ("handle", "class", "created", "last seen", "expires", "device")


@click.group("sessions")
def command() -> None:
    """List and end the sessions of web applications.

    The configuration's [sessions] says where they are, and the secrets. A
    session goes by its public handle; nobody can log in with that.

    \b
    Example:
      shardproxy sessions list -c shardproxy.toml anna
    """


@contextmanager
def _store(path: str) -> "Iterator[SessionStore]":
    """Over the nodes themselves: no proxy need run."""
    from shardproxy.client.sync import ShardedRedis
    from shardproxy.config import read_session_secrets
    from shardproxy.config.sessions import timeouts_of
    from shardproxy.core.sessions.errors import SessionError
    from shardproxy.sessions import SessionStore

    config = load_config(path)
    it = config.sessions
    if it.pool is None:
        raise click.ClickException(f"{path}: [sessions] names no pool: there are no sessions")
    with ShardedRedis.from_config(config, pool=it.pool) as client:
        try:
            secrets, classes = read_session_secrets(config), timeouts_of(it)
            yield SessionStore(client, secrets, classes=classes, prefix=it.prefix, encrypt=it.encrypt)
        except SessionError as error:
            raise click.ClickException(str(error)) from None
        except ValueError as error:
            raise click.UsageError(f"{error}: `shardproxy sessions list USER` shows them") from None


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _device(value: Any) -> str:
    text = str(value)
    return "".join(each if each.isprintable() else " " for each in text)[:60]


def _print(found: "list[SessionInfo]") -> None:
    if not found:
        raise click.ClickException("no session")
    print_table(
        COLUMNS,
        [
            (
                each.handle, each.kind, _when(each.created_at), _when(each.last_seen_at),
                _when(each.expires_at), ", ".join(f"{k}: {_device(v)}" for k, v in each.device.items()),
            )
            for each in found
        ],
    )  # fmt: skip


@command.command("list")
@config_option
@click.argument("user")
def list_(path: str, user: str) -> None:
    """Show the sessions of USER."""
    with _store(path) as store:
        _print(store.list_sessions(user))


@command.command()
@config_option
@click.argument("handle")
def show(path: str, handle: str) -> None:
    """Show one session, by its HANDLE."""
    with _store(path) as store:
        found = store.find(handle)
        _print([found] if found else [])


@command.command()
@config_option
@click.argument("handle", required=False)
@click.option("--user", help="All sessions of this user, instead of one by its handle.")
def revoke(path: str, handle: str | None, user: str | None) -> None:
    """End the session HANDLE at once, or all of a user."""
    if (handle is None) == (user is None):
        raise click.UsageError("a HANDLE, or --user USER")
    with _store(path) as store:
        ended = store.revoke_all(user) if user is not None else int(store.revoke(str(handle)))
    if not ended:
        raise click.ClickException("no session")
    click.echo(f"{ended} session{'s'[: ended > 1]} ended")
