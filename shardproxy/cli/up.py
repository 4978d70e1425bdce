"""`shardproxy up`: Redis nodes and a proxy before them, to try it; nothing else needed."""

import contextlib
import errno
from typing import TYPE_CHECKING

import click

from shardproxy.cli.common import fail, plain_console, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardproxy.config import Config
    from shardproxy.proxy.embedded import EmbeddedNode

HOST = "127.0.0.1"


@click.command()
@click.option(
    "--nodes", default=3, show_default=True, type=click.IntRange(1, 64), help="How many Redis nodes."
)
@click.option(
    "--port",
    default=6380,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Of the proxy; 0: a free one.",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Keep the nodes' data here. Without it nothing is kept.",
)
def command(nodes: int, port: int, data: str | None) -> None:
    """Start Redis nodes and a proxy on this machine, to try it.

    The nodes take free ports, the proxy takes --port. Ctrl-C stops everything and leaves nothing behind.

    \b
    Example:
      shardproxy up
      redis-cli -p 6380 set greeting hello       in another terminal
    """
    import asyncio

    check_port(port)
    plain_console()  # what is missing is said now, not when everything runs
    from shardproxy.proxy.embedded import EmbeddedError
    from shardproxy.proxy.listeners import StartError
    from shardproxy.proxy.serving import loop_factory

    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(until_stopped(nodes, port, data))
    except (EmbeddedError, StartError) as error:
        fail(str(error))
    click.echo("Stopped; the nodes are gone.", err=True)


def check_port(port: int) -> None:
    """Fails when the port cannot be had. Asked here, as the proxy's own listener may share a port."""
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
            fail(f"port {port} {why}; choose another (0 takes a free one): shardproxy up --port 0")


async def until_stopped(count: int, port: int, data: str | None) -> None:
    """Runs it until the first SIGINT, SIGTERM or SIGHUP, at whatever stage that comes; then tidies up."""
    import asyncio
    import signal

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running = asyncio.create_task(run(count, port, data))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopping}, return_when="FIRST_COMPLETED")
    stopping.cancel()
    running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        return


async def run(count: int, port: int, data: str | None) -> None:
    from shardproxy.proxy.embedded import EmbeddedNodes
    from shardproxy.proxy.server import Proxy

    async with (
        EmbeddedNodes(count, data, on_death=tell_death) as embedded,
        Proxy(config_of(embedded.nodes, port)) as proxy,
    ):
        with contextlib.suppress(OSError, SystemExit):  # nobody reads it: rich raises SystemExit then
            tell_start(proxy.addresses[0], embedded.nodes, data)
        await proxy.serve_forever()


def config_of(nodes: "Sequence[EmbeddedNode]", port: int) -> "Config":
    """A cache pool of these nodes."""
    from shardproxy.config import Config, Limits, Log, PoolConfig, ShardConfig

    return Config(
        listen=(f"{HOST}:{port}",),
        log=Log(level="warning"),
        limits=Limits(drain_timeout=2.0),
        pool={
            "main": PoolConfig(
                kind="cache",
                on_shard_down="rehash",
                on_return="invalidate",
                shards={node.name: ShardConfig(primary=f"redis://{node.address}") for node in nodes},
            )
        },
    )


def tell_start(address: str, nodes: "Sequence[EmbeddedNode]", data: str | None) -> None:
    """Where to connect, which nodes run, what to type next."""
    console = plain_console()
    port = address.rpartition(":")[2]
    kept = f"The data is kept in {data}." if data else "Nothing is kept (--data DIR keeps it)."
    console.print(f"shardproxy listens on {address}, before {len(nodes)} Redis nodes:\n", style="bold")
    print_table(("node", "address", "pid"), [(node.name, node.address, node.pid) for node in nodes])
    console.print(
        "\nType in another terminal, or use any Redis client:\n"
        f"  redis-cli -p {port} set greeting hello\n"
        f"  redis-cli -p {port} get greeting\n"
        f"  redis-cli -p {port} proxy locate greeting\n\n"
        f"Ctrl-C stops the proxy and the nodes. {kept}"
    )


def tell_death(node: "EmbeddedNode", status: int) -> None:
    from shardproxy.proxy.embedded import exit_text

    with contextlib.suppress(OSError):
        click.echo(
            f"shardproxy: {node.name} ({node.address}, pid {node.pid}) died: {exit_text(status)}. "
            f"It said last: {node.last_line}. Its keys answer errors; the others are served.",
            err=True,
        )
