"""`shardproxy commands`: what becomes of each command of Redis."""

import click

from shardproxy.cli.common import fail, print_table


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--reference", is_flag=True, help="Print the whole table as Markdown.")
def command(names: tuple[str, ...], reference: bool) -> None:
    """Show what becomes of each Redis command: works, split over shards, refused and why.

    Without NAME: all of them. A running proxy also knows what its nodes
    know: ask it with PROXY COMMANDS.

    \b
    Examples:
      shardproxy commands get mset
      shardproxy commands --reference > compatibility.md
    """
    from shardproxy.core.command_reference import lines
    from shardproxy.core.command_reference import reference as markdown
    from shardproxy.core.commands import builtin

    rows = builtin().rows()
    if reference:
        click.echo(markdown(rows), nl=False)
        return
    wanted = {name.upper() for name in names}
    shown = [line for line in lines(rows) if not wanted or line[0] in wanted or line[0].split()[0] in wanted]
    if unknown := wanted - {part for line in shown for part in (line[0], line[0].split()[0])}:
        fail(f"there is no command {', '.join(sorted(unknown))}")
    print_table(("command", "here", ""), shown)
