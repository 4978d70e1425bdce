"""`shardproxy completion`: what makes TAB complete its commands and options."""

import os

import click

from shardproxy.cli.common import fail

SHELLS = {
    "bash": 'add to ~/.bashrc:\neval "$(shardproxy completion bash)"',
    "zsh": 'add to ~/.zshrc, after compinit:\neval "$(shardproxy completion zsh)"',
    "fish": "run once:\nshardproxy completion fish > ~/.config/fish/completions/shardproxy.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)), required=False)
def command(shell: str | None) -> None:
    """Print the completion script of a shell: bash, zsh or fish.

    Without SHELL: how to install it in yours.

    \b
    Examples:
      eval "$(shardproxy completion bash)"
      shardproxy completion fish > ~/.config/fish/completions/shardproxy.fish
    """
    from click.shell_completion import get_completion_class

    from shardproxy.cli import main

    if shell is None:
        mine = os.path.basename(os.environ.get("SHELL", ""))
        known = {mine: SHELLS[mine]} if mine in SHELLS else SHELLS
        click.echo("\n".join(f"# {name}: {how}" for name, how in known.items()))
        return
    kind = get_completion_class(shell)
    if kind is None:
        fail(f"click cannot complete in {shell}")
    click.echo(kind(main, {}, "shardproxy", "_SHARDPROXY_COMPLETE").source())
