"""The `shardproxy` command: one click command a file.

Rules: a file imports what is heavy inside its function, so that --help answers at once; 2 is the exit code
of a bad configuration or command line, 1 of whatever else failed; errors go to stderr and say what to do.
"""

from importlib import import_module

import click

from shardproxy import __version__

COMMANDS = ("up", "serve", "check", "locate", "commands", "config", "import", "sessions", "completion")


class Commands(click.Group):
    """The commands, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"shardproxy.cli.{cmd_name}").command
        return command


EPILOG = """\b
Examples:
  shardproxy up                            three Redis nodes and a proxy, to try it
  redis-cli -p 6380 set greeting hello     any Redis client, any language
  shardproxy config --defaults             a complete configuration to start from
  shardproxy check -c shardproxy.toml      are all nodes there?
  shardproxy serve -c shardproxy.toml      the proxy
"""


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="shardproxy %(version)s")
def main() -> None:
    """Many cache servers behind one door.

    Clients connect to shardproxy as if it were one Redis; it places every key on one shard of a consistent
    hash ring of Redis and Memcached nodes.
    """
