"""What the clients of this worker have subscribed to, by name.

        client ──SUBSCRIBE──▶ Subscriptions ──SUBSCRIBE──▶ Listener, one a node ──▶ node
        client ◀───push────── by name  ◀───────message──── its stream ◀────────────

A name lives on the node that a key of that name would live on; patterns, and channels of keyspace
notifications, on every node. Rules: one upstream subscription a name and node, however many clients. A
subscription begins and ends where the node says so, in the order of its messages: so each SUBSCRIBE and
UNSUBSCRIBE goes to the node, or a PING in its place, and is answered when that is.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from shardproxy.core import errors, glob, reply
from shardproxy.core.acl import DEFAULT
from shardproxy.handlers.asking import pack
from shardproxy.handlers.node_listeners import CHANNEL, PATTERN, PING, SUBSCRIBE, UNSUBSCRIBE, Listener
from shardproxy.handlers.receivers import Receivers

if TYPE_CHECKING:
    from shardproxy.core.acl import Users
    from shardproxy.dataplane.client_handle import ClientHandle
    from shardproxy.handlers.base import Server

NOTIFICATIONS = (b"__keyspace@", b"__keyevent@")
BEAT = 5.0  # seconds between two looks at whether the connections are alive


class Subscription:
    """A name that clients of this worker listen to, or are about to, or have just ceased to."""

    __slots__ = ("clients", "kind", "name", "nodes", "wanted")

    def __init__(self, kind: int, name: bytes) -> None:
        self.kind, self.name = kind, name
        self.clients: dict[int, ClientHandle] = {}  # who gets its messages
        self.wanted = 0  # clients that do, but for those that cease to, and those that are about to
        self.nodes: frozenset[int] = frozenset()


class Subscriber:
    """A client and the names that it has been told it listens to."""

    __slots__ = ("client", "names")

    def __init__(self, client: "ClientHandle") -> None:
        self.client = client
        self.names: tuple[dict[bytes, Subscription], ...] = ({}, {}, {})

    @property
    def counts(self) -> tuple[int, int, int]:
        channels, patterns, shards = map(len, self.names)
        return channels, patterns, shards


class Subscriptions:
    """All of one worker's."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.names: tuple[dict[bytes, Subscription], ...] = ({}, {}, {})
        self.subscribers: dict[int, Subscriber] = {}
        self.listeners: dict[int, Listener] = {}
        self.receivers = Receivers(server)
        self.beating: asyncio.TimerHandle | None = None

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    # --- where a name lives ---

    def live(self) -> frozenset[int]:
        """The numbers of the nodes that are not out, nor memcacheds: on the others nobody can publish."""
        pool = self.server.topology.pools[0]
        out = {shard.name for shard in pool.shards if shard.node.state == "out"} | pool.memcached
        return frozenset(number for number, shard in self.server.reactor.placed() if shard not in out)

    def impossible(self, kind: int, names: list[bytes]) -> str:
        """The memcached shard where nobody can subscribe to one of these; empty: there is none."""
        pool = self.server.topology.pools[0]
        if not pool.memcached:
            return ""
        if kind == PATTERN:
            return "" if len(pool.memcached) < len(pool.shards) else pool.shards[0].name
        homes = (self.server.reactor.shard_of(self.server.reactor.node_of(name)) for name in names)
        return next((shard for shard in homes if shard in pool.memcached), "")

    def homes(self, kind: int, name: bytes, live: frozenset[int]) -> frozenset[int]:
        """The nodes of a name."""
        if kind == PATTERN or (kind == CHANNEL and name.startswith(NOTIFICATIONS)):
            return live
        return live & {self.server.reactor.node_of(name)}

    def follow(self) -> None:
        """The topology has changed: names move with it. Two nodes may have one: a message is on one."""
        live = self.live()
        for subscription in list(self.each()):
            before = subscription.nodes
            subscription.nodes = self.homes(subscription.kind, subscription.name, live)
            if subscription.wanted:
                self.say(subscription, SUBSCRIBE, subscription.nodes - before)
                self.say(subscription, UNSUBSCRIBE, before - subscription.nodes)
        self.tidy()

    def each(self) -> Iterator[Subscription]:
        for names in self.names:
            yield from names.values()

    def tidy(self) -> None:
        """Listeners that nobody needs go."""
        needed = frozenset().union(*(each.nodes for each in self.each())) if self.listeners else ()
        for number in [number for number in self.listeners if number not in needed]:
            self.listeners.pop(number).close()
        if not self.listeners and self.beating is not None:
            self.beating.cancel()
            self.beating = None

    def listener(self, number: int) -> Listener:
        found = self.listeners.get(number)
        if found is None:
            found = self.listeners[number] = Listener(self, number)
            if self.beating is None:
                self.beating = asyncio.get_running_loop().call_later(BEAT, self.beat)
        return found

    def beat(self) -> None:
        patience = max(BEAT, self.server.topology.pools[0].timeout)
        for each in list(self.listeners.values()):
            each.beat(patience)
        self.tidy()
        if not self.listeners:
            return
        self.beating = asyncio.get_running_loop().call_later(BEAT, self.beat)

    def request(self, subscription: Subscription, verbs: tuple[bytes, ...] | None) -> bytes:
        """verbs: SUBSCRIBE or UNSUBSCRIBE; None: PING, which is answered in order with its messages."""
        return pack(verbs[subscription.kind], subscription.name) if verbs else PING

    def say(self, subscription: Subscription, verbs: tuple[bytes, ...], nodes: Iterable[int]) -> None:
        for number in nodes:
            self.listener(number).say(self.request(subscription, verbs))

    def asked(self, number: int, request: bytes) -> asyncio.Future[bytes | None]:
        """As Done gets it. What is asked is in its place at once."""
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

        def done(error: bytes | None) -> None:
            if not future.done():  # else who asked has given up
                future.set_result(error)

        self.listener(number).say(request, done=done)
        return future

    async def said(self, subscription: Subscription, verbs: tuple[bytes, ...] | None) -> bytes:
        """When every node has said so; an error line when one of them refuses."""
        while True:
            nodes = subscription.nodes
            request = self.request(subscription, verbs)
            found = await asyncio.gather(*(self.asked(number, request) for number in nodes))
            if subscription.nodes == nodes and None not in found:
                return next(filter(None, found), b"")
            if not subscription.nodes:
                return self.down(self.server.reactor.node_of(subscription.name), 0.0)

    # --- what clients want ---

    def room_for(self, client: "ClientHandle", count: int) -> bool:
        return sum(self.of(client).counts) + count <= self.server.config.limits.client_subscriptions

    def enlist(self, client: "ClientHandle", kind: int, names: list[bytes]) -> list[Subscription]:
        """Those that it has not: what is published from now on is for it, too. `subscribe` follows."""
        mine, live, new = self.of(client), self.live(), []
        for name in dict.fromkeys(names):
            if name not in mine.names[kind]:
                subscription = self.names[kind].get(name)
                if subscription is None:
                    subscription = self.names[kind][name] = Subscription(kind, name)
                if not subscription.wanted:
                    subscription.nodes = self.homes(kind, name, live)
                subscription.wanted += 1
                self.receivers.expect(kind, name, 1)
                new.append(subscription)
        return new

    async def subscribe(self, client: "ClientHandle", new: list[Subscription]) -> bytes:
        """An error line; nothing: the client may be told, and gets what comes from now on."""
        mine = self.of(client)
        try:
            error = await self.confirmed(new)
            if error or not client.alive:
                self.drop(new)
                return error
            for subscription in new:
                mine.names[subscription.kind][subscription.name] = subscription
                subscription.clients[client.id] = client
                self.count(subscription)
            client.subscriptions = mine.counts
            await self.receivers.told()
        finally:
            for subscription in new:
                self.receivers.expect(subscription.kind, subscription.name, -1)
        return b""

    async def confirmed(self, subscriptions: list[Subscription]) -> bytes:
        timeout = self.server.topology.pools[0].timeout
        lonely = next((each for each in subscriptions if not each.nodes), None)
        if lonely is not None:
            return self.down(self.server.reactor.node_of(lonely.name), timeout)
        try:
            async with asyncio.timeout(timeout or None):
                found = await asyncio.gather(*(self.said(each, SUBSCRIBE) for each in subscriptions))
        except TimeoutError:
            silent = {number for each in subscriptions for number in each.nodes}
            silent = silent or {self.server.reactor.node_of(subscriptions[0].name)}  # all went out meanwhile
            behind = [each for each in silent if each in self.listeners and self.listeners[each].waiting]
            return self.down(min(behind, default=min(silent)), timeout)
        return next(filter(None, found), b"")

    def down(self, number: int, timeout: float) -> bytes:
        """The error line for a node that does not confirm."""
        shard = next((shard for node, shard in self.server.reactor.placed() if node == number), "?")
        node = next((s.node for s in self.server.topology.pools[0].shards if s.name == shard), None)
        address, reason = (node.address, node.reason) if node else ("?", "")
        why = self.listeners[number].why if number in self.listeners else reason or "it is out"
        return reply.error(errors.not_subscribed(shard, address, why, timeout))

    async def unsubscribe(self, client: "ClientHandle", kind: int, names: Iterable[bytes]) -> None:
        """Its messages end here: those that the node has sent before it says so are the client's still."""
        mine = self.of(client)
        old = [found for name in names if (found := mine.names[kind].get(name)) is not None]
        waits = []
        for subscription in old:
            subscription.wanted -= 1
            waits.append(self.said(subscription, None if subscription.wanted else UNSUBSCRIBE))
        with contextlib.suppress(TimeoutError):  # it is not there: no more messages come
            async with asyncio.timeout(self.server.topology.pools[0].timeout or None):
                await asyncio.gather(*waits)
        for subscription in old:
            if mine.names[kind].pop(subscription.name, None) is None:
                continue  # the client has left meanwhile
            subscription.clients.pop(client.id, None)
            self.forget(subscription)
        client.subscriptions = mine.counts
        if not any(mine.counts):
            self.subscribers.pop(client.id, None)
        await self.receivers.told()

    async def fence(self, client: "ClientHandle") -> None:
        """When it has got all that the nodes have sent it by now."""
        names = [each for names in self.of(client).names for each in names.values()]
        nodes = frozenset[int]().union(*(each.nodes for each in names))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.server.topology.pools[0].timeout or None):
                await asyncio.gather(*(self.asked(number, PING) for number in nodes))

    def leave(self, client_id: int) -> None:
        """It has left, or was reset."""
        mine = self.subscribers.pop(client_id, None)
        for names in mine.names if mine else ():
            for subscription in names.values():
                if subscription.clients.pop(client_id, None) is not None:
                    self.drop([subscription])
            names.clear()

    def drop(self, subscriptions: list[Subscription]) -> None:
        for subscription in subscriptions:
            subscription.wanted -= 1
            if not subscription.wanted:
                self.say(subscription, UNSUBSCRIBE, subscription.nodes)
            self.forget(subscription)

    def count(self, subscription: Subscription) -> None:
        self.receivers.count(subscription.kind, subscription.name, len(subscription.clients))

    def forget(self, subscription: Subscription) -> None:
        self.count(subscription)
        names = self.names[subscription.kind]
        if not subscription.wanted and names.get(subscription.name) is subscription:
            del names[subscription.name]

    def of(self, client: "ClientHandle") -> Subscriber:
        mine = self.subscribers.get(client.id)
        if mine is None:
            mine = self.subscribers[client.id] = Subscriber(client)
            client.when_gone(self.leave)
        return mine

    def permit(self, users: "Users") -> None:
        """Users have changed: who listens to what its user may not hear any more is closed, as Redis does."""
        for mine in list(self.subscribers.values()):
            user = users.get(mine.client.user.decode(errors="surrogateescape") or DEFAULT)
            selectors = (user.root, *user.selectors) if user is not None else ()
            if any(selector.all_channels for selector in selectors):
                continue
            allowed = [text.encode(errors="surrogateescape") for each in selectors for text in each.channels]
            channels, patterns, shards = mine.names
            heard = all(any(glob.matches(each, name) for each in allowed) for name in (*channels, *shards))
            if not heard or not patterns.keys() <= set(allowed):
                mine.client.kill("its user may not listen to its channels any more")

    # --- messages ---

    def message(self, kind: int, frame: bytes, at: int) -> None:
        """To everybody who listens. at: where the length of the name is."""
        end = frame.index(b"\r\n", at)
        start = end + 2
        subscription = self.names[kind].get(frame[start : start + int(frame[at:end])])
        if subscription is not None:
            pushed = b">" + frame[1:]
            for client in subscription.clients.values():
                client.push(frame, pushed)

    def close(self) -> None:
        for names in self.names:
            names.clear()
        self.tidy()
