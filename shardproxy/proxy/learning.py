"""What a worker learns of the nodes: it asks each what it is, until it says so, and again after it was lost.

Versions go to whoever owns the topology, commands that only a node knows into the worker's table, and a node
that has come back without its functions gets them (from the first worker alone).
"""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from shardproxy.core import commands
from shardproxy.handlers import scripts
from shardproxy.handlers.base import BadReply, NodeInfo
from shardproxy.proxy import memcached, probe

if TYPE_CHECKING:
    from shardproxy.proxy.certificates import Ways
    from shardproxy.proxy.server import Proxy

ASK_FIRST, ASK_MOST = 0.5, 30.0  # seconds between tries to ask a node that refuses


class Learner:
    """Of one worker: a task for each node."""

    def __init__(self, proxy: "Proxy") -> None:
        self.info: dict[str, NodeInfo] = {}
        self._proxy = proxy
        self._ways: Ways
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: dict[str, asyncio.Event] = {}
        self._commands: dict[str, list[Any]] = {}  # by address: its reply to COMMAND

    def follow(self, addresses: Iterable[str], ways: "Ways") -> None:
        """These are the nodes now, and so they are reached."""
        self._ways, now = ways, set(addresses)
        for gone in self._tasks.keys() - now:
            self._tasks.pop(gone).cancel()
            for known in (self.info, self._commands, self._again):
                known.pop(gone, None)
        for address in now - self._tasks.keys():
            self._again[address] = asyncio.Event()
            self._tasks[address] = self._proxy.keep(self._learn(address))

    def ask_again(self, address: str) -> None:
        """The node was lost, or has come back: it may be another one now."""
        if again := self._again.get(address):
            again.set()

    async def _learn(self, address: str) -> None:
        again = self._again[address]
        wait: float | None = 0.0
        while True:
            again.clear()
            pool = self._proxy.topology.pools[0]
            shard = next(shard.name for shard in pool.shards if shard.node.address == address)
            way = self._ways.of(pool.name, shard)
            try:
                ask = memcached.ask if way.memcached else probe.ask
                told = await ask(address, way, pool.connect_timeout)
            except probe.NodeRefuses as refusal:
                self._refused(address, str(refusal))
                wait = min(max(ASK_FIRST, 2 * (wait or 0.0)), ASK_MOST)
            else:
                self._learnt(address, told, "memcached" if way.memcached else "redis")
                wait = None
                if not way.memcached and self._proxy.slot == 0:
                    await self._give_functions(address, shard)
            with contextlib.suppress(TimeoutError):
                # not wait_for: until Python 3.12 that loses a cancellation that comes with the event
                async with asyncio.timeout(wait):
                    await again.wait()
                # a node that has just come back or gone has other things to do
                await asyncio.sleep(ASK_FIRST)

    async def _give_functions(self, address: str, shard: str) -> None:
        try:
            given = await scripts.give_functions(self._proxy, shard)
        except BadReply as error:
            self._refused(address, str(error))
            return
        if given:
            self._proxy.log("functions_given", node=address)

    def _refused(self, address: str, reason: str) -> None:
        known = self.info.get(address, NodeInfo())
        self.info[address] = msgspec.structs.replace(known, error=reason)
        if known.error != reason:
            self._proxy.log("node_refuses", node=address, reason=reason)

    def _learnt(self, address: str, told: probe.Told, protocol: str) -> None:
        self.info[address] = NodeInfo(told.version, told.maxmemory_policy, "", told.databases, protocol)
        self._proxy.tell_version(address, told.version)
        if told.commands and told.commands != self._commands.get(address):
            self._commands[address] = told.commands
            known = commands.learn(self._proxy.commands, list(self._commands.values()))
            self._proxy.set_commands(known)
            self._proxy.log("node_learnt", node=address, version=told.version, commands=len(known.rows()))
