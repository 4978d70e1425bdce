"""`shardproxy serve`: the proxy."""

import click

from shardproxy.cli.common import config_option, fail, load_config, warn


@click.command()
@config_option
def command(path: str) -> None:
    """Run the proxy.

    SIGTERM or Ctrl-C stops it once the requests in flight are answered. It starts with nodes down: their
    keys answer errors until they come.

    \b
    Example:
      shardproxy config --defaults > shardproxy.toml
      shardproxy serve -c shardproxy.toml
    """
    config = load_config(path)
    warn(config)
    try:
        from shardproxy.proxy.server import run

        if config.admin:
            # here alone: who has no admin port pays nothing for an HTTP server
            from shardproxy.admin.server import admin
    except ModuleNotFoundError as error:
        fail(f'{error.name} is missing: pip install "shardproxy[proxy]"')
    raise SystemExit(run(config, admin) if config.admin else run(config))
