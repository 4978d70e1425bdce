"""What a pubsub of the asyncio client has subscribed to on one shard, and the task that keeps it so."""

import asyncio
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from shardproxy.client.aio_connection import Connection, Lost
from shardproxy.client.aio_shard import AsyncShard
from shardproxy.client.wire import pack

if TYPE_CHECKING:
    from shardproxy.client.aio_pubsub import AsyncShardedPubSub

AGAIN, AGAIN_MOST = 0.05, 2.0  # seconds until a lost connection is made again


class Kind(NamedTuple):
    """One of the three ways to subscribe."""

    name: str
    subscribe: str
    unsubscribe: str
    message: str


KINDS = (
    Kind("channels", "subscribe", "unsubscribe", "message"),
    Kind("patterns", "psubscribe", "punsubscribe", "pmessage"),
    Kind("shard_channels", "ssubscribe", "sunsubscribe", "smessage"),
)


class Part:
    """What is subscribed to on one shard, and the task that keeps it so."""

    def __init__(self, owner: "AsyncShardedPubSub", shard: AsyncShard) -> None:
        self.owner, self.shard = owner, shard
        self.wanted: dict[str, set[bytes]] = {kind.name: set() for kind in KINDS}
        self.connection: Connection | None = None
        self._tried: asyncio.Future[Lost | None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.get_running_loop().create_task(self._keep())

    @property
    def idle(self) -> bool:
        return not any(self.wanted.values())

    def want(self, kind: Kind, names: Collection[bytes]) -> None:
        new = set(names) - self.wanted[kind.name]
        self.wanted[kind.name] |= new
        if new and self.connection is not None:
            self.connection.tell(pack((kind.subscribe.upper(), *new)))

    def leave(self, kind: Kind, names: Iterable[bytes]) -> None:
        gone = self.wanted[kind.name] & set(names)
        self.wanted[kind.name] -= gone
        if gone and self.connection is not None:
            self.connection.tell(pack((kind.unsubscribe.upper(), *gone)))

    async def tried(self) -> Lost | None:
        """Once the first connection is there, or why it is not."""
        return await asyncio.shield(self._tried)

    async def _keep(self) -> None:
        wait, told = AGAIN, False
        while True:
            lost: asyncio.Event = asyncio.Event()
            try:
                connection = await self.shard.listening(self._hear)
            except Lost as why:
                self._report(why)
            else:
                wait = AGAIN
                connection.ended = lost.set
                self.connection = connection
                for kind in KINDS:
                    if names := self.wanted[kind.name]:
                        connection.tell(pack((kind.subscribe.upper(), *names)))
                        if told:  # as redis-py: once more
                            self.owner.again(kind, names)
                told = True
                if not self._tried.done():
                    self._tried.set_result(None)
                self.owner.hold(connection)
                await lost.wait()
                self.connection = None
                if not connection.disconnected:
                    self._report(Lost(connection.lost or "", True))
            await asyncio.sleep(wait)
            wait = min(2 * wait, AGAIN_MOST)

    def _report(self, why: Lost) -> None:
        if not self._tried.done():
            self._tried.set_result(why)
        else:
            self.owner.failed(self, why)

    def _hear(self, frame: Any) -> None:
        self.owner.heard(frame)

    def close(self) -> None:
        self.task.cancel()
        if self.connection is not None:
            self.connection.close("not subscribed any more")
