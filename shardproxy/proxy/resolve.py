"""What the host names of nodes stand for: asked now and again, never holding up the loop.

The engine knows only numbers; a node called by name is unresolved in it until it is told. Rules: a name is
looked up when it is new, every `resolve_every`, and when a connection to its node is lost; one lookup of a
name at a time; an address that is still among the answers stays, whatever their order; a failed lookup
changes nothing.
"""

import asyncio
import ipaddress
import random
import socket
from collections.abc import Callable, Iterable

RUSH = 0.5  # seconds between two lookups of a name, at least


def split(address: str) -> tuple[str, int] | None:
    """Host name and port of a node's address; None: it needs no lookup."""
    if address.startswith("/"):
        return None
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host, int(port)
    return None


def numeric(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def choose(found: Iterable[str], known: str | None) -> str | None:
    """The address to use of those that a name has now, all IP:PORT.

    Answers come in any order, and all workers have to take the same: of the family that comes first, which is
    the one that this machine reaches best, the least.
    """
    found = list(found)
    if not found or known in found:
        return known if found else None
    return min(each for each in found if each.startswith("[") == found[0].startswith("["))


class Resolver:
    """`tell(node, address)` is called with each new answer."""

    def __init__(self, tell: Callable[[str, str], None], changed: Callable[[str, str], None]) -> None:
        self._tell, self._changed = tell, changed
        self._every = 30.0
        self._known: dict[str, str] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wake: dict[str, asyncio.Event] = {}

    def watch(self, addresses: Iterable[str], every: float) -> None:
        """From now on these."""
        self._every = every
        names = {address for address in addresses if split(address)}
        for gone in self._tasks.keys() - names:
            self._tasks.pop(gone).cancel()
            self._known.pop(gone, None)
            del self._wake[gone]
        for address in names:
            if address in self._tasks:
                self._wake[address].set()  # `every` may have changed
                continue
            self._wake[address] = asyncio.Event()
            self._tasks[address] = asyncio.get_running_loop().create_task(self._follow(address))

    def tell_again(self) -> None:
        """What is known: the engine may just have met a node."""
        for address, known in self._known.items():
            self._tell(address, known)

    def lost(self, address: str) -> None:
        """A connection to it was: its name may stand for something else now."""
        if wake := self._wake.get(address):
            wake.set()

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def _follow(self, address: str) -> None:
        wake = self._wake[address]
        while True:
            wake.clear()
            await self._look_up(address)
            await asyncio.sleep(min(RUSH, self._every))
            pause = self._every * random.uniform(0.9, 1.1) if address in self._known else RUSH
            try:
                async with asyncio.timeout(pause):
                    await wake.wait()
            except TimeoutError:
                continue

    async def _look_up(self, address: str) -> None:
        parts = split(address)
        assert parts is not None
        host, port = parts
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        known = self._known.get(address)
        chosen = choose((numeric(str(where[0]), port) for _, _, _, _, where in found), known)
        if chosen and chosen != known:
            self._known[address] = chosen
            self._tell(address, chosen)
            if known:
                self._changed(address, chosen)
