"""`shardproxy config`: what can be configured, and what a file comes to."""

import click

from shardproxy.cli.common import config_option, load_config


@click.command()
@config_option
@click.option("--defaults", is_flag=True, help="Print a complete commented file: every option, its default.")
@click.option("--schema", is_flag=True, help="Print the JSON schema of the file, for editors.")
@click.option("--reference", is_flag=True, help="Print every option, as Markdown.")
def command(path: str, defaults: bool, schema: bool, reference: bool) -> None:
    """Print a configuration: what a file comes to, or every option.

    Without an option: FILE with every default filled in, passwords left out.

    \b
    Examples:
      shardproxy config --defaults > shardproxy.toml
      shardproxy config -c shardproxy.toml
    """
    from shardproxy.config import pages

    if defaults:
        text = pages.default_text()
    elif schema:
        import msgspec

        text = msgspec.json.format(msgspec.json.encode(pages.schema()), indent=2).decode() + "\n"
    elif reference:
        text = pages.reference()
    else:
        text = pages.effective_text(load_config(path, secrets=False))
    click.echo(text, nl=False)
