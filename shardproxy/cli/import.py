"""`shardproxy import`: the configuration of another proxy as shardproxy.toml."""

import os
from pathlib import Path

import click

from shardproxy.cli.common import fail


@click.command()
@click.argument("file", type=click.Path())
@click.option("--pool", "name", metavar="NAME", help="Of several pools, this one.")
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Write a file a pool there, DIR/NAME.toml.",
)
def command(file: str, name: str | None, folder: str | None) -> None:
    """Print FILE, twemproxy's or mcrouter's configuration, as shardproxy.toml.

    Every key stays where twemproxy has it. Comments say what means something
    else here, and name what is not carried over. A shardproxy serves one
    pool: of several, choose with --pool, or write them all with -o.

    \b
    Examples:
      shardproxy import nutcracker.yml > shardproxy.toml
      shardproxy import nutcracker.yml -o /etc/shardproxy
      shardproxy import mcrouter.json --pool A
    """
    from shardproxy.config import ConfigError
    from shardproxy.config.imports.drafts import drafts, written

    try:
        found = drafts(file, Path(file).read_bytes())
        if name is not None:
            found = [each for each in found if each.name == name] or fail(
                f"{file} has no pool {name}; it has {', '.join(each.name for each in found)}", 2
            )
        texts = [(each, written(each)) for each in found]
    except OSError as error:
        fail(f"{file}: {error.strerror}", 2)
    except ModuleNotFoundError:
        fail('nutcracker.yml needs PyYAML: pip install "shardproxy[proxy]"')
    except ConfigError as error:
        fail(f"{file} cannot be carried over\n{error}", 2)
    if folder is None and len(texts) > 1:
        names = ", ".join(draft.name for draft, _ in texts)
        fail(
            f"{file} has {len(texts)} pools ({names}), and a shardproxy serves one: --pool NAME prints one, "
            "-o DIR writes a file for each",
            2,
        )
    for draft, content in texts:
        if folder is None:
            click.echo(content, nl=False)
        else:
            write(Path(folder, f"{draft.plain_name}.toml"), content)
        for lost in draft.lost:
            click.echo(f"shardproxy: {draft.name}: not carried over: {lost}", err=True)


def write(path: Path, content: str) -> None:
    """A new file; one that is there stays as it is."""
    try:
        os.makedirs(path.parent, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    click.echo(f"{path}", err=True)
