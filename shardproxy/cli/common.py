"""What the commands share: the -c option, how errors end them, how tables look."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from shardproxy.config import Config, ConfigError

config_option = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(),
    default="shardproxy.toml",
    envvar="SHARDPROXY_CONFIG",
    show_default=True,
    show_envvar=True,
    metavar="FILE",
    help="The configuration.",
)


def fail(message: str, code: int = 1) -> NoReturn:
    """Ends the command: the message on stderr."""
    click.echo(f"shardproxy: {message}", err=True)
    raise SystemExit(code)


def load_config(path: str, *, secrets: bool = True) -> "Config":
    """The configuration; ends with exit code 2 and every mistake, a line each."""
    from shardproxy.config import ConfigError, load

    try:
        return load(path, secrets=secrets)
    except ConfigError as error:
        fail(mistakes_text(error), 2)


def mistakes_text(error: "ConfigError") -> str:
    count = len(error.mistakes)
    return "\n".join([f"{count} mistake{'s'[: count > 1]} in the configuration", str(error)])


def warn(config: "Config") -> None:
    for warning in config.warnings:
        click.echo(f"shardproxy: warning: {warning}", err=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout; nothing in it is taken as markup, and only a terminal's width cuts it."""
    console = plain_console()
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)


def plain_console() -> Any:
    """rich's console, showing text as it is."""
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        fail('this command needs the proxy\'s packages: pip install "shardproxy[proxy]"')
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 1000
    return console
