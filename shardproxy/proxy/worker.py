"""A worker process: one `Proxy` under a supervisor. `python -m shardproxy.proxy.worker FD`

FD is its end of the channel. It is told everything else over it, first an `Order`; sockets and the counters'
memory are inherited. It ends when it is told to drain, on SIGTERM (as if told), and when the channel closes:
without a supervisor nobody would ever stop it. SIGINT and SIGHUP, which a terminal sends to all, are the
supervisor's.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shardproxy import handlers
from shardproxy.config import Config, Credentials
from shardproxy.core import errors
from shardproxy.core.acl import Users
from shardproxy.core.acl_rules import users_from_wire
from shardproxy.core.topology import Topology
from shardproxy.handlers.base import Outcome
from shardproxy.proxy.channel import Channel, ChannelClosed, PeerFailed
from shardproxy.proxy.listeners import Listener
from shardproxy.proxy.logs import Logger
from shardproxy.proxy.pages import CounterPages
from shardproxy.proxy.reload import OPERATE
from shardproxy.proxy.server import Proxy
from shardproxy.proxy.serving import loop_factory, settle
from shardproxy.proxy.team import Team
from shardproxy.proxy.transitions import Transition

ASK_OTHERS = 2.0  # seconds; the supervisor gives each of the others half of it


class Bound(msgspec.Struct, frozen=True):
    """A listener of the supervisor's: its address and the descriptors of this worker's sockets."""

    address: str
    path: str
    fds: list[int]


class Order(msgspec.Struct, frozen=True):
    """What a new worker is told."""

    config: Any  # config_to_wire's
    logins: list[list[str]]  # Credentials.to_wire's
    slot: int
    workers: int
    id_base: int
    run_id: str
    started: float
    pages_fd: int
    bound: list[Bound]
    topology: bytes
    users: list[Any]  # Users.to_wire's
    transitions: list[Transition] = []  # the latest


def config_to_wire(config: Config) -> Any:
    """With the passwords in it: it goes to a child of ours and nowhere else."""
    return msgspec.to_builtins(config, enc_hook=lambda secret: secret.reveal())


def config_from_wire(data: Any) -> Config:
    return msgspec.convert(data, Config, dec_hook=lambda kind, value: kind(value))


class Worker:
    """`peers` of its own proxy, and the one who answers the supervisor."""

    def __init__(self) -> None:
        self.channel = Channel(self._answer)
        self.proxy: Proxy | None = None
        self.pages: CounterPages | None = None
        self.stop = asyncio.Event()
        self.drained = asyncio.Event()

    async def run(self, sock: socket.socket) -> int:
        """Until it is over; the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop.set)
        await self.channel.open(sock)
        waits = [loop.create_task(event.wait()) for event in (self.stop, self.channel.closed)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        orphaned = self.channel.closed.is_set()
        if self.proxy is not None:
            if orphaned:
                self.proxy.log("supervisor_gone")
            await self.proxy.drain()
            self.drained.set()
            await asyncio.sleep(0)  # the answer to "drain" goes out
            await self.proxy.close()
        self.channel.close()
        for wait in waits:
            wait.cancel()
        return 1 if orphaned else 0

    async def _answer(self, name: str, body: Any) -> Any:
        """What the supervisor asks or tells."""
        if name == "start":
            order = msgspec.convert(body, Order)
            try:
                return self._start(order)
            except Exception as error:
                Logger(config_from_wire(order.config).log)("cannot_start", worker=order.slot, exc_info=error)
                raise
        if self.proxy is None:
            raise RuntimeError("not started")
        if name == "drain":
            self.stop.set()
            await self.drained.wait()
            return None
        if name == "linger":
            await self.proxy.linger()
            return None
        if name == "reload":
            config, topology, logins, users = body
            self.proxy.meet()
            try:
                return self._reconfigure(
                    config_from_wire(config),
                    Topology.from_json(topology),
                    Credentials.from_wire(logins),
                    users_from_wire(users),
                )
            finally:
                self.proxy.reactor.hold(0)
        if name == "hold":
            self.proxy.reactor.hold(body)
            return self.proxy.topology.generation
        if name == "topology":
            new = Topology.from_json(body)
            if new.generation > self.proxy.topology.generation:
                self.proxy.apply(new)
            await self.proxy.settled(new)
            return self.proxy.topology.generation
        if name == "take":
            return self.proxy.taken(body)
        part = await handlers.do_part(self.proxy, name, *(body or ()))
        return msgspec.to_builtins(part, builtin_types=(bytes,))

    def _reconfigure(self, config: Config, topology: Topology, credentials: Credentials, users: Users) -> int:
        """The generation that it has then."""
        assert self.proxy is not None
        if topology.generation > self.proxy.topology.generation:
            self.proxy.reconfigure(config, topology, credentials, users)
        elif config != self.proxy.config:
            self.proxy.reconfigure(config, self.proxy.topology, credentials, users)
        return self.proxy.topology.generation

    def _start(self, order: Order) -> int:
        for fd in (order.pages_fd, *(fd for bound in order.bound for fd in bound.fds)):
            os.set_inheritable(fd, False)
        self.pages = CounterPages(order.pages_fd, order.workers)
        bound = [
            Listener(each.address, [[socket.socket(fileno=fd) for fd in each.fds]], each.path)
            for each in order.bound
        ]
        self.proxy = Proxy(
            config_from_wire(order.config),
            team=Team(
                order.slot,
                order.workers,
                bound,
                order.id_base,
                self.pages.page(order.slot),
                self.pages.stamps,
                order.run_id,
                order.started,
                os.getppid(),
                self,
                Credentials.from_wire(order.logins),
                users_from_wire(order.users),
                order.transitions,
            ),
        )
        self.proxy.topology = Topology.from_json(order.topology)
        self.proxy.start()
        settle()
        return self.proxy.topology.generation

    # --- server.Peers ---

    async def ask(self, what: str, *args: Any) -> list[Any]:
        try:
            found: list[Any] = await self.channel.ask("others", [what, args], ASK_OTHERS)
        except (TimeoutError, ChannelClosed, PeerFailed):
            return []
        return found

    def tell(self, what: str, args: Sequence[Any]) -> None:
        with contextlib.suppress(ChannelClosed):
            self.channel.tell("tell others", [what, args])

    async def operate(self, what: str, *args: Any) -> Outcome:
        try:
            found = await self.channel.ask("operate", [what, *args], OPERATE)
        except (TimeoutError, ChannelClosed, PeerFailed):
            return Outcome(errors.NO_OWNER)
        return msgspec.convert(found, Outcome)

    def counters(self) -> Mapping[str, int]:
        assert self.pages is not None
        return self.pages.counters()

    def latency(self) -> Mapping[str, Sequence[int]]:
        assert self.pages is not None
        return self.pages.latency()

    def evidence(self, found: list[Any]) -> None:
        self.channel.tell("evidence", found)

    def connections(self, ghosts: Mapping[str, Sequence[str]], databases: Sequence[int]) -> None:
        self.channel.tell("connections", [ghosts, databases])

    def node_version(self, address: str, version: str) -> None:
        self.channel.tell("version", [address, version])


def main(fd: int) -> int:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(fd, False)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(Worker().run(socket.socket(fileno=fd)))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
