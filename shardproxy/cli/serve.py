"""`shardproxy serve`: the proxy."""

from typing import TYPE_CHECKING

import click

from shardproxy.cli.common import config_option, fail, mistakes_text, warn

if TYPE_CHECKING:
    from shardproxy.config import Config


@click.command()
@config_option
@click.option("--takeover", is_flag=True, help="Take the sockets of the one that runs, which then ends.")
def command(path: str, takeover: bool) -> None:
    """Run the proxy.

    SIGTERM or Ctrl-C stops it once the requests in flight are answered. It starts with nodes down: their
    keys answer errors until they come. It follows its file: what can change while it runs does, at a change
    of the file, SIGHUP or PROXY RELOAD.

    \b
    Example:
      shardproxy config --defaults > shardproxy.toml
      shardproxy serve -c shardproxy.toml
      shardproxy serve -c shardproxy.toml --takeover   # a new version goes on for the one that runs
    """
    try:
        from shardproxy.proxy.serving import run
    except ModuleNotFoundError as error:
        fail(f'{error.name} is missing: pip install "shardproxy[proxy]"')
    config = load_good(path)
    warn(config)
    if not config.admin:
        raise SystemExit(run(config, path, takeover=takeover))
    try:
        # here alone: who has no admin port pays nothing for an HTTP server
        from shardproxy.admin.server import admin
    except ModuleNotFoundError as error:
        fail(f'{error.name} is missing: pip install "shardproxy[proxy]"')
    raise SystemExit(run(config, path, takeover=takeover, around=admin))


def load_good(path: str) -> "Config":
    """The configuration; when it is broken the last good one, if it is kept: loudly. Else exit code 2."""
    from shardproxy.config import ConfigError, load
    from shardproxy.proxy import state

    try:
        return load(path)
    except ConfigError as error:
        broken = error
    kept, found = None, ""
    try:
        kept = state.last_good(path)
    except (state.StateError, ConfigError) as error:
        found = f"\nand the last good configuration cannot be used:\n{error}"
    if kept is None:
        fail(mistakes_text(broken) + found, 2)
    click.echo(
        f"shardproxy: warning: {mistakes_text(broken)}\n"
        f"shardproxy: warning: STARTING WITH THE LAST GOOD CONFIGURATION, kept in {kept.state}; "
        "the file is followed, and taken once it is good",
        err=True,
    )
    return kept
