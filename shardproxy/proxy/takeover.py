"""An upgrade without a refused connection: `serve --takeover` is given the listening sockets of who runs.

    the one that runs (Door)                             the new one (take_over)
      listens on an abstract unix socket,    ◀──────────   connects, says which format it speaks
      named by the first address of `listen`
      sends what is bound, with descriptors  ──────────▶   starts its workers on them; both accept
      accepts no more, serves whom it has    ◀──────────   "ready"
      until they leave, drains, ends         ──────────▶   "leaving": files of unix sockets are its own now,
                                                           and what is known of nodes that are out; at its
                                                           end once more: what its last clients have written

An abstract name belongs to the network namespace, as ports do: there is no file to protect or to clean up.
Each side asks the kernel who the other is (SO_PEERCRED) and talks to its own user and root only. No socket is
closed between the two, so nobody who waits in an accept queue is turned away. What goes wrong before "ready"
changes nothing for the one that runs.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from shardproxy.config import Config
from shardproxy.core import hashing
from shardproxy.proxy import start_errors
from shardproxy.proxy.listeners import Listener, StartError
from shardproxy.proxy.owing import Known
from shardproxy.proxy.reload import Owner

T = TypeVar("T")
FORMAT = 1
BATCH = 200  # descriptors in a message; the kernel takes 253
MOST = 1 << 20  # bytes of a message
PATIENCE = 10.0  # seconds for a message
START_LIMIT = 120.0  # seconds that the new one has until it is ready
READY, LEAVING = b"ready", b"leaving"
TELL = 10.0  # seconds to tell what is known of nodes
ALL_TOLD = Known("", "")


class Hello(msgspec.Struct, frozen=True):
    format: int
    pid: int


class Given(msgspec.Struct, frozen=True):
    """A listener: by slot, the positions of its sockets among the descriptors."""

    address: str
    path: str
    inode: int
    sockets: list[list[int]]


class Offer(msgspec.Struct, frozen=True):
    """What comes before the descriptors; the first of them is the door itself."""

    format: int
    pid: int
    descriptors: int
    listeners: list[Given]
    drained: dict[str, list[str]]
    refused: str = ""
    away: dict[str, tuple[str, bool]] = {}  # Topology.away
    knows: bool = False  # it tells what is known of them after "leaving"


def door_name(listen: Sequence[str]) -> bytes | None:
    """Where the one that listens here is to be found; None: with port 0 there is no telling."""
    address = listen[0]
    if not address.startswith("unix:") and address.endswith(":0"):
        return None
    name = f"shardproxy {address}".encode()
    if len(name) > 100:
        name = b"shardproxy %016x" % hashing.xxh64(name)
    return b"\0" + name


def deal(sockets: Sequence[Sequence[T]], slots: int) -> list[list[T]]:
    """Sockets by slot → by so many slots: none is left out, and where there are too few they are shared."""
    dealt: list[list[T]] = [[] for _ in range(slots)]
    for number in range(max(len(sockets), slots)):
        for each in sockets[number % len(sockets)]:
            if each not in dealt[number % slots]:
                dealt[number % slots].append(each)
    return dealt


def peer_uid(sock: socket.socket) -> int:
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", found)[1]
    return uid


def trusted(sock: socket.socket) -> bool:
    return peer_uid(sock) in (os.geteuid(), 0)


# --- the one that runs ---


class Door:
    """Lets another process take over; the owner's `handed_over` is set once it has."""

    def __init__(self, owner: Owner, door: socket.socket | None = None) -> None:
        self._owner, self._door = owner, door
        self._task: asyncio.Task[None] | None = None
        self._successor: socket.socket | None = None

    def open(self) -> None:
        """Without a door there is no takeover, and nothing else is wrong."""
        if self._door is None:
            name = door_name(self._owner.config.listen)
            if name is None:
                return
            self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                self._door.bind(name)
                self._door.listen(1)
            except OSError as error:
                self._owner.log("no_takeover", reason=error.strerror)
                self._door.close()
                self._door = None
                return
        self._door.setblocking(False)
        asyncio.get_running_loop().add_reader(self._door.fileno(), self._knock)

    def shut(self) -> None:
        """Nobody comes in any more."""
        if self._door is not None:
            asyncio.get_running_loop().remove_reader(self._door.fileno())
            self._door.close()
            self._door = None

    def close(self) -> None:
        self.shut()
        if self._task is not None:
            self._task.cancel()
        if self._successor is not None:
            self._successor.close()
            self._successor = None

    async def tell(self) -> None:
        """The successor learns what we know of nodes; whether it hears or not, it serves."""
        loop, keeper = asyncio.get_running_loop(), self._owner.keeper
        if keeper is None or self._successor is None:
            return
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(TELL):
                for part in (*await keeper.bequeath(), ALL_TOLD):
                    await loop.sock_sendall(self._successor, msgspec.msgpack.encode(part))

    def _knock(self) -> None:
        assert self._door is not None
        try:
            visitor, _ = self._door.accept()
        except OSError:
            return
        if not trusted(visitor) or (self._task is not None and not self._task.done()):
            visitor.close()
            return
        visitor.setblocking(False)
        self._task = asyncio.get_running_loop().create_task(self._serve(visitor))

    async def _serve(self, visitor: socket.socket) -> None:
        loop, log = asyncio.get_running_loop(), self._owner.log
        with contextlib.ExitStack() as stack:
            stack.enter_context(visitor)
            try:
                async with asyncio.timeout(PATIENCE):
                    hello = msgspec.json.decode(await loop.sock_recv(visitor, MOST), type=Hello)
                self._give(visitor, hello)
                async with asyncio.timeout(START_LIMIT):
                    word = await loop.sock_recv(visitor, MOST)
            except (OSError, TimeoutError, msgspec.DecodeError) as error:
                log("takeover_failed", reason=type(error).__name__)
                return
            if word != READY:
                log("takeover_failed", reason="the new process ended before it was ready")
                return
            for listener in self._owner.bound:
                listener.inode = 0
            with contextlib.suppress(OSError):  # whether it hears or not, it serves
                visitor.send(LEAVING)
            stack.pop_all()
        self._successor = visitor
        await self.tell()
        log("handed_over", to=hello.pid)
        self._owner.handed_over.set()

    def _give(self, visitor: socket.socket, hello: Hello) -> None:
        assert self._door is not None
        numbers = {self._door.fileno(): 0}
        given = [
            Given(
                each.address,
                each.path,
                each.inode,
                [[numbers.setdefault(sock.fileno(), len(numbers)) for sock in slot] for slot in each.sockets],
            )
            for each in self._owner.bound
        ]
        refused = "" if hello.format == FORMAT else f"it speaks format {FORMAT}, not {hello.format}"
        drained = {pool: list(names) for pool, names in self._owner.topology.draining.items()}
        away = self._owner.topology.away
        offer = Offer(FORMAT, os.getpid(), len(numbers), given, drained, refused, away, True)
        visitor.send(msgspec.json.encode(offer))
        descriptors = [] if refused else list(numbers)
        for start in range(0, len(descriptors), BATCH):
            socket.send_fds(visitor, [b"+"], descriptors[start : start + BATCH])


async def until_over(owner: Owner, stop: asyncio.Event, taken: "Sockets | None") -> None:
    """Until `stop`, or until another process has taken over and our clients have left; SIGHUP reloads."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, owner.reloader.hangup)
    if taken is not None:
        await asyncio.to_thread(taken.confirm)
        owner.log("took_over", pid=taken.pid, addresses=[each.address for each in taken.listeners])
        learning = asyncio.create_task(taken.learn(owner))
    door = Door(owner, taken.door if taken else None)
    door.open()
    try:
        await _first_of(stop.wait(), owner.handed_over.wait())
        door.shut()
        if not stop.is_set():
            await _first_of(stop.wait(), owner.linger())
        if owner.handed_over.is_set():
            await door.tell()
    finally:
        door.close()
        if taken is not None:
            learning.cancel()


async def _first_of(*waits: object) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- the new one ---


class Sockets:
    """What was given: listeners for our slots. Nothing of it is ours until `confirm`."""

    def __init__(
        self, visitor: socket.socket, door: socket.socket, listeners: Sequence[Listener], offer: Offer
    ) -> None:
        self._visitor, self.door, self.listeners = visitor, door, listeners
        self.pid, self.drained = offer.pid, offer.drained
        self.away, self.knows = (offer.away, True) if offer.knows else ({}, False)
        self._inodes = {given.path: given.inode for given in offer.listeners if given.path}

    def confirm(self) -> None:
        """We serve: the other may go. Blocks until it says so; one that is gone by now does as well."""
        with contextlib.suppress(OSError):
            self._visitor.send(READY)
            self._visitor.recv(MOST)
        for listener in self.listeners:
            listener.inode = self._inodes.get(listener.path, 0)

    async def learn(self, owner: Owner) -> None:
        """What the other knows of nodes, now and at its end."""
        loop, keeper = asyncio.get_running_loop(), owner.keeper
        assert keeper is not None
        self._visitor.setblocking(False)
        with self._visitor, contextlib.suppress(OSError, msgspec.DecodeError):
            while self.knows and (data := await loop.sock_recv(self._visitor, MOST)):
                known = msgspec.msgpack.decode(data, type=Known)
                if known.address:
                    keeper.inherit(known)
                else:
                    keeper.all_told(True)
        keeper.all_told(False)  # unless it was


def take_over(config: Config, slots: int) -> Sockets:
    """The sockets of the one that runs, as far as `listen` names their addresses. Raises StartError."""
    name = door_name(config.listen)
    if name is None:
        raise StartError(start_errors.no_fixed_address(config.listen[0]))
    visitor = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    visitor.settimeout(PATIENCE)
    received: list[socket.socket] = []
    try:
        try:
            visitor.connect(name)
        except ConnectionRefusedError:
            raise StartError(start_errors.nobody_to_take_over(config.listen[0])) from None
        if not trusted(visitor):
            raise StartError(start_errors.takeover_failed("it belongs to another user"))
        visitor.send(msgspec.json.encode(Hello(FORMAT, os.getpid())))
        offer = _receive(visitor, received)
    except (OSError, msgspec.DecodeError) as error:
        visitor.close()
        _close(received)
        if isinstance(error, StartError):
            raise
        gone = isinstance(error, ConnectionResetError | BrokenPipeError)
        why = start_errors.CLOSED if gone else str(error) or type(error).__name__
        raise StartError(start_errors.takeover_failed(why)) from None
    listeners, used = [], {0}
    for given in offer.listeners:
        if given.address in config.listen:
            dealt = deal(given.sockets, slots)
            used.update(number for slot in dealt for number in slot)
            sockets = [[received[number] for number in slot] for slot in dealt]
            listeners.append(Listener(given.address, sockets, given.path))
    _close([sock for number, sock in enumerate(received) if number not in used])
    return Sockets(visitor, received[0], listeners, offer)


def _receive(visitor: socket.socket, received: list[socket.socket]) -> Offer:
    """The offer and, into `received`, its sockets."""
    data = visitor.recv(MOST)
    if not data:
        raise StartError(start_errors.takeover_failed(start_errors.CLOSED))
    offer = msgspec.json.decode(data, type=Offer)
    if offer.refused:
        raise StartError(start_errors.takeover_failed(offer.refused))
    while len(received) < offer.descriptors:
        data, descriptors, _, _ = socket.recv_fds(visitor, 16, BATCH + 50)
        received += [socket.socket(fileno=fd) for fd in descriptors]
        if not data:
            raise StartError(start_errors.takeover_failed("it ended meanwhile"))
    for sock in received:
        os.set_inheritable(sock.fileno(), False)
        sock.setblocking(False)
    return offer


def _close(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
