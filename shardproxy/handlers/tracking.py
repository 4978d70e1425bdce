"""CLIENT TRACKING: a client is told when what it has read changes. Options, texts and replies are Redis
7.0's.

While a client tracks, all its upstreams are its own, and the first thing that one says is CLIENT TRACKING
ON: so the nodes remember what it reads, and its upstreams' pushes go to it (dataplane/private). Rules:
whatever loses a node's memory (a connection, a rehash, a reload) tells the client to forget everything.
With BCAST it has an upstream to every node at once; else to those that it reads from. REDIRECT sends a
RESP3 client's pushes to the other one, in whichever worker that is; a RESP2 client's upstreams have no
pushes, so the node redirects to a connection of ours.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from shardproxy.core import errors, reply
from shardproxy.handlers.asking import ask_apart, ask_link, is_error, pack
from shardproxy.handlers.base import Server, handles, part
from shardproxy.handlers.client import all_clients
from shardproxy.handlers.connection import integer_in

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call
    from shardproxy.dataplane.client_handle import ClientHandle
    from shardproxy.dataplane.links import Link

TEND = 0.5  # seconds between looks at what is not connected
YES, NO = 1, 2  # ClientHandle.caching
INVALIDATE = b">2\r\n$10\r\ninvalidate\r\n"
MESSAGE = b"*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n"


class Options(msgspec.Struct, frozen=True):
    bcast: bool = False
    optin: bool = False
    optout: bool = False
    noloop: bool = False
    redirect: int = 0
    prefixes: tuple[bytes, ...] = ()

    def request(self, redirect: int = 0) -> bytes:
        """What a node is told. redirect: a client id there."""
        words = [name.upper() for name in ("bcast", "optin", "optout", "noloop") if getattr(self, name)]
        prefixes = [word for prefix in self.prefixes for word in (b"PREFIX", prefix)] if self.bcast else []
        to: list[bytes | str | int] = ["REDIRECT", redirect] if redirect else []
        return pack("CLIENT", "TRACKING", "ON", *to, *words, *prefixes)


class Tracker:
    """A client that tracks."""

    def __init__(self, home: "Trackers", client: "ClientHandle", options: Options) -> None:
        self.home, self.client, self.options = home, client, options
        self.broken = False  # whom it redirects to has left
        self.links: dict[int, Link] = {}  # a RESP2 client's: where the nodes send its invalidations
        self.setups: dict[int, tuple[bytes, int]] = {}

    async def start(self) -> bytes:
        """An error line, or nothing."""
        if self.client.proto == 3 or self.options.redirect:
            error = await self.home.refused()
            if error or self.home.of(self.client) is not self:
                return error
        if self.client.proto == 2 and self.options.redirect:
            error = await self.connect()
            if error or self.home.of(self.client) is not self:
                return error
        self.begin()
        if self.options.bcast and self.client.tracking:
            async with asyncio.timeout(self.home.server.topology.pools[0].timeout or None):
                while not self.client.track_everywhere():
                    await asyncio.sleep(0.002)
        return b""

    def begin(self) -> None:
        """From the next command on."""
        if self.client.proto == 3:
            self.setups[-1] = self.options.request(), 1
        if self.client.proto == 3 or self.options.redirect:  # else Redis, too, has no way to tell it anything
            self.client.track(self.setups, self.deliver if self.options.redirect else None)
        flags = "t" + ("R" if self.broken else "") + ("B" if self.options.bcast else "")
        self.client.tracked = flags, self.options.redirect

    async def connect(self) -> bytes:
        """The node's invalidations come on a connection of their own, one a node."""
        for number in self.home.nodes():
            if self.home.of(self.client) is not self:
                return b""  # stopped meanwhile: nobody would close what is opened now
            if number in self.links:
                continue
            try:
                link = self.home.server.reactor.open_link(
                    number,
                    proto=3,
                    on_frame=self.deliver,
                    on_lost=lambda why, n=number: self.lost(n),  # type: ignore[misc]
                )
            except ConnectionError as error:
                return reply.error(str(error))
            self.links[number] = link
            answer = await ask_link(link, "PING")
            if is_error(answer):
                self.links.pop(number, None)
                link.close()
                return answer
            self.setups[number] = self.options.request(link.node_client_id), 1
        return b""

    def proto_changed(self) -> None:
        """The nodes must be told in another way now; what they know is lost."""
        self.stop()
        self.setups.clear()
        self.begin()
        self.home.keep(self.start_again())

    async def start_again(self) -> None:
        """What cannot be connected in time is connected later: Trackers.tend."""
        with contextlib.suppress(TimeoutError):
            await self.start()

    def lost(self, number: int) -> None:
        self.links.pop(number, None)
        self.setups.pop(number, None)
        self.client.track_again(number)

    def stop(self) -> None:
        self.client.track(None)
        self.client.tracked = "", -1
        for link in self.links.values():
            link.close()
        self.links.clear()

    def deliver(self, frame: bytes) -> None:
        """To whom it redirects to."""
        home = self.home
        if not home.push(self.options.redirect, frame):
            home.keep(self.deliver_elsewhere(frame))

    async def deliver_elsewhere(self, frame: bytes) -> None:
        server = self.home.server
        if True in await server.everywhere("invalidate", self.options.redirect, frame):
            return
        self.broken = True
        to = reply.integer(self.options.redirect)
        self.client.push(b"", reply.push([reply.bulk("tracking-redir-broken"), to], 3))


class Trackers:
    """All of one worker's."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.trackers: dict[int, Tracker] = {}
        self.placements = 0
        self.tending: asyncio.TimerHandle | None = None

    def nodes(self) -> set[int]:
        pool = self.server.topology.pools[0]
        out = {shard.name for shard in pool.shards if shard.node.state == "out"}
        return {number for number, shard in self.server.reactor.placed() if shard not in out}

    async def refused(self) -> bytes:
        """Invalidations are pushes, which RESP2 has not: an error line when a node speaks nothing else."""
        reactor, timeout = self.server.reactor, self.server.topology.pools[0].timeout
        for number, shard in reactor.placed():
            if not reactor.speaks(number):
                await ask_apart(self.server, number, "PING", proto=3, timeout=timeout)
            if reactor.speaks(number) == 2:
                return reply.error(errors.tracking_needs_resp3(shard))
        return b""

    def of(self, client: "ClientHandle") -> Tracker | None:
        return self.trackers.get(client.id)

    async def on(self, client: "ClientHandle", options: Options) -> bytes:
        before = self.trackers.get(client.id)
        if before is None:
            client.when_gone(self.off)
        elif before.options == options and not before.broken:
            return b""
        else:
            client.invalidate()
            before.stop()
        tracker = self.trackers[client.id] = Tracker(self, client, options)
        try:
            error = await tracker.start()
        except TimeoutError:
            error = reply.error(errors.TRACKING_INCOMPLETE)
        if error or not client.alive:
            self.off(client.id)
        elif self.tending is None:
            self.tend()
        return error

    def off(self, client_id: int) -> None:
        tracker = self.trackers.pop(client_id, None)
        if tracker is not None:
            tracker.stop()

    def follow(self) -> None:
        """The topology has changed: a key that was read may be elsewhere now, and change there unseen."""
        placements = self.server.reactor.placements()
        if placements != self.placements:
            self.placements = placements
            for tracker in self.trackers.values():
                tracker.client.invalidate()

    def tend(self) -> None:
        """What is lost is connected again, where nobody asks for it."""
        self.tending = None
        for tracker in self.trackers.values():
            if tracker.options.bcast:
                tracker.client.track_everywhere()
            if (
                tracker.links.keys() != self.nodes()
                and tracker.client.proto == 2
                and tracker.options.redirect
            ):
                self.keep(tracker.connect())
        if self.trackers:
            self.tending = asyncio.get_running_loop().call_later(TEND, self.tend)

    def keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.server.tasks.add(task)
        task.add_done_callback(self.server.tasks.discard)

    def push(self, client_id: int, frame: bytes) -> bool:
        """An invalidation for a client of this worker; False: it is not here."""
        client = self.server.reactor.client(client_id)
        if client is None:
            return False
        if client.proto == 3 and frame.startswith(b">"):
            client.push(b"", frame)
        elif any(client.subscriptions) and frame.startswith(INVALIDATE):
            what = frame.removeprefix(INVALIDATE)
            client.push(MESSAGE + (b"$-1\r\n" if what == b"_\r\n" else what))
        return True

    def close(self) -> None:
        if self.tending is not None:
            self.tending.cancel()
        for client_id in list(self.trackers):
            self.off(client_id)


@part("invalidate")
def invalidate(server: Server, client_id: int, frame: bytes) -> bool:
    return server.trackers.push(client_id, frame)


# --- the commands ---


@handles("client|tracking")
async def tracking(server: Server, call: "Call") -> bytes:
    """CLIENT TRACKING ON|OFF [REDIRECT id] [PREFIX prefix ...] [BCAST] [OPTIN] [OPTOUT] [NOLOOP]"""
    client = call.client
    options = await options_of(server, call.args[3:])
    if isinstance(options, str):
        return reply.error(options)
    switch = call.args[2].lower()
    if switch == b"off":
        server.trackers.off(client.id)
        return reply.OK
    if switch != b"on":
        return reply.error(errors.SYNTAX)
    if memcached := server.topology.pools[0].memcached:
        return reply.error(errors.not_on_memcached(call.row.name, min(memcached)))
    before = server.trackers.of(client)
    if error := incompatible(options, before.options if before else None):
        return reply.error(error)
    if options.bcast:
        known = before.options.prefixes if before else ()
        prefixes = (*known, *(options.prefixes or ((b"",) if b"" not in known else ())))
        options = msgspec.structs.replace(options, prefixes=prefixes)
    return await server.trackers.on(client, options) or reply.OK


async def options_of(server: Server, args: list[bytes]) -> Options | str:
    found: dict[str, Any] = {}
    prefixes: list[bytes] = []
    words = iter(args)
    for word in words:
        name = word.lower().decode(errors="replace")
        if name in ("bcast", "optin", "optout", "noloop"):
            found[name] = True
        elif name == "prefix" and (prefix := next(words, None)) is not None:
            prefixes.append(prefix)
        elif name == "redirect" and (text := next(words, None)) is not None:
            if found.get("redirect"):
                return errors.ONE_REDIRECT
            number = integer_in(text)
            if number is None:
                return errors.NOT_AN_INTEGER
            if number not in {record.id for record in await all_clients(server)}:
                return errors.NO_REDIRECT
            found["redirect"] = number
        else:
            return errors.SYNTAX
    return Options(**found, prefixes=tuple(prefixes))


def incompatible(new: Options, old: Options | None) -> str:
    """In Redis's order and words."""
    if new.prefixes and not new.bcast:
        return errors.PREFIX_WITHOUT_BCAST
    if old is not None and old.bcast != new.bcast:
        return errors.SWITCHED_BCAST
    if new.bcast and (new.optin or new.optout):
        return errors.BCAST_WITH_OPT
    if new.optin and new.optout:
        return errors.BOTH_OPTS
    if old is not None and ((new.optin and old.optout) or (new.optout and old.optin)):
        return errors.SWITCHED_OPT
    for number, prefix in enumerate(new.prefixes):
        for known in old.prefixes if old else ():
            if overlap(prefix, known):
                return errors.prefix_overlaps(prefix, "an existing", known)
        for other in new.prefixes[number + 1 :]:
            if overlap(prefix, other):
                return errors.prefix_overlaps(prefix, "another provided", other)
    return ""


def overlap(one: bytes, other: bytes) -> bool:
    return one.startswith(other) or other.startswith(one)


@handles("client|caching")
def caching(server: Server, call: "Call") -> bytes:
    """CLIENT CACHING YES|NO"""
    tracker = server.trackers.of(call.client)
    options = tracker.options if tracker else Options()
    if tracker is None:
        return reply.error(errors.CACHING_WITHOUT_OPT)
    answer = call.args[2].lower()
    if answer == b"yes":
        if not options.optin:
            return reply.error(errors.CACHING_YES)
        call.client.caching = YES
    elif answer == b"no":
        if not options.optout:
            return reply.error(errors.CACHING_NO)
        call.client.caching = NO
    else:
        return reply.error(errors.SYNTAX)
    return reply.OK


@handles("client|getredir")
def getredir(server: Server, call: "Call") -> bytes:
    tracker = server.trackers.of(call.client)
    return reply.integer(tracker.options.redirect if tracker else -1)


@handles("client|trackinginfo")
def trackinginfo(server: Server, call: "Call") -> bytes:
    tracker = server.trackers.of(call.client)
    options = tracker.options if tracker else Options()
    flags = ["on" if tracker else "off"]
    flags += [name for name in ("bcast", "optin", "optout") if getattr(options, name)]
    flags += {YES: ["caching-yes"], NO: ["caching-no"]}.get(call.client.caching, [])
    flags += ["noloop"] if options.noloop else []
    flags += ["broken_redirect"] if tracker and tracker.broken else []
    return reply.mapping(
        [
            (reply.bulk("flags"), reply.set_(map(reply.bulk, flags), call.proto)),
            (reply.bulk("redirect"), reply.integer(options.redirect if tracker else -1)),
            (reply.bulk("prefixes"), reply.bulks(sorted(options.prefixes))),
        ],
        call.proto,
    )
