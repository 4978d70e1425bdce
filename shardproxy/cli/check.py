"""`shardproxy check`: is the configuration right, and is every node what it says?"""

import click

from shardproxy.cli.common import config_option, fail, load_config, print_table, warn


@click.command()
@config_option
def command(path: str) -> None:
    """Validate the configuration, then try every node.

    Connects to each node as the proxy would and asks whether it is a Redis that can serve: version, role,
    password, TLS. Reads certificates and keys. Writes nothing. Exit code: 0 all well, 1 a node or a
    certificate is not, 2 the configuration is wrong.

    \b
    Example:
      shardproxy check -c shardproxy.toml
    """
    import asyncio
    import datetime

    from shardproxy.config import ConfigError
    from shardproxy.proxy.certificates import Ways, lasting
    from shardproxy.proxy.examine import examine

    config = load_config(path)
    warn(config)
    try:
        ways = Ways.read(config, file=path)
    except ConfigError as error:
        fail(str(error), code=2)
    times = list(lasting(config, datetime.datetime.now(datetime.UTC)))
    for where, what, now in times:
        if not now:
            click.echo(f"warning: {where}: {what}", err=True)
    found = asyncio.run(examine(config, ways))
    print_table(
        ("shard", "node", "version", "role", "answers in", "state"),
        (
            (
                each.shard,
                each.address,
                each.version or "-",
                each.role or "-",
                f"{each.seconds * 1000:.1f} ms" if each.version else "-",
                f"{len(each.faults)} fault{'s'[: len(each.faults) > 1]}" if each.faults else "ok",
            )
            for each in found
        ),
    )
    faults = [f"{where}: {what}" for where, what, now in times if now]
    faults += [f"{each.shard} ({each.address}): {fault}" for each in found for fault in each.faults]
    if faults:
        fail("\n".join([f"{len(faults)} fault{'s'[: len(faults) > 1]}", *faults]))
