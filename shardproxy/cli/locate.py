"""`shardproxy locate`: where keys live."""

import os

import click

from shardproxy.cli.common import config_option, load_config, print_table


@click.command()
@config_option
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
def command(path: str, keys: tuple[str, ...]) -> None:
    """Show the shard that each KEY lives on, and its stand-in.

    The stand-in is where the key would go if that shard were out. No node
    is asked: placement follows from the configuration alone.

    \b
    Example:
      shardproxy locate -c shardproxy.toml greeting user:{42}:name
    """
    from shardproxy.core.topology import Topology

    config = load_config(path, secrets=False)
    pool = Topology.from_config(config).pools[0]
    rows = []
    for key in map(os.fsencode, keys):
        home, other = pool.home(key), pool.stand_in(key)
        rows.append((visible(key), home.name, home.node.address, other.name if other else "nowhere"))
    print_table(("key", "shard", "node", "if that is out"), rows)


def visible(key: bytes) -> str:
    """A key as text, with escapes for what is not: keys may be any bytes."""
    text = key.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
