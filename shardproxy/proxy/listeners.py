"""Listening sockets: binding what the configuration names, and saying clearly why that cannot be.

Owns the sockets' lifetime and the files of unix sockets. Accepting is the reactor's. With several workers
every worker slot has a TCP socket of its own on the same port (SO_REUSEPORT), so the kernel spreads the
clients; a unix socket is shared by all.
"""

import contextlib
import errno
import os
import resource
import socket
import stat
from collections.abc import Iterable, Sequence

from shardproxy.config.text import Door, door
from shardproxy.proxy import start_errors

BACKLOG = 4096  # as far as net.core.somaxconn allows
SPARE_DESCRIPTORS = 1024  # beside those of clients: nodes, listeners, log, handlers


class StartError(OSError):
    """The proxy cannot start; the text says why and what to do."""


class Listener:
    """One address of the configuration, bound: a socket for each worker slot."""

    def __init__(
        self, address: str, sockets: Sequence[Sequence[socket.socket]], path: str = "", inode: int = 0
    ) -> None:
        self.address = address  # port 0 resolved
        self.sockets = sockets  # by slot; of a unix socket, the same for all
        self.path = path  # of a unix socket; its file goes with the listener if the inode is given
        self.inode = inode

    @property
    def port(self) -> int:
        """0 for a unix socket."""
        return 0 if self.path else int(self.address.rpartition(":")[2])

    def close(self) -> None:
        for sockets in self.sockets:
            for each in sockets:
                each.close()
        # Ours only: another program may have taken the name over
        with contextlib.suppress(OSError):
            if self.inode and os.stat(self.path).st_ino == self.inode:
                os.unlink(self.path)


def bind_all(addresses: Iterable[str], slots: int = 1, taken: Iterable[Listener] = ()) -> list[Listener]:
    """Every address, or none; taken: those that are bound already. Raises StartError."""
    bound: list[Listener] = []
    there = {listener.address: listener for listener in taken}
    try:
        for address in addresses:
            bound.append(there.get(address) or bind(address, slots))
    except BaseException:
        for listener in bound:
            listener.close()
        raise
    return bound


def bind(address: str, slots: int = 1, option: str = 'listen = ["HOST:PORT"]') -> Listener:
    """address: as in `listen`; port 0 for any free one. Raises StartError.

    option: where the address stands in the configuration, for the message.
    """
    try:
        it = door(address)
        if it.address.startswith("/"):
            return _bind_unix(address, it, slots)
        return _bind_tcp(address.removesuffix(it.address), it.address, slots)
    except StartError:
        raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(start_errors.port_in_use(address, option)) from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise StartError(start_errors.not_permitted(address)) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise StartError(
                start_errors.cannot_listen(address, "no interface of this machine has that address")
            ) from None
        raise StartError(start_errors.cannot_listen(address, error.strerror or str(error))) from None


def _bind_tcp(scheme: str, address: str, slots: int) -> Listener:
    host, _, text = address.rpartition(":")
    port = int(text)
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[list[socket.socket]] = [[] for _ in range(slots)]
    try:
        for family, where in dict.fromkeys((family, where) for family, _, _, _, where in found):
            # Whoever sets SO_REUSEPORT shares a port with anybody of the same user who does too: so the first
            # try is without, and finds out whether the port is taken
            first = _listen(family, (where[0], port, *where[2:]), shared=False)
            port = first.getsockname()[1]
            if slots == 1:
                sockets[0].append(first)
                continue
            first.close()
            for each in sockets:
                each.append(_listen(family, (where[0], port, *where[2:]), shared=True))
    except BaseException:
        for each in sockets:
            for opened in each:
                opened.close()
        raise
    return Listener(f"{scheme}{host}:{port}", sockets)


def _listen(family: int, where: tuple[object, ...], *, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setblocking(False)
        made.bind(where)
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def _bind_unix(address: str, it: Door, slots: int) -> Listener:
    path = it.address
    _remove_stale(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.bind(path)
        if it.mode is not None:
            os.chmod(path, it.mode)  # before anybody can connect
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return Listener(address, [[made]] * slots, path, os.stat(path).st_ino)


def _remove_stale(path: str) -> None:
    """Removes the file of a socket that nobody listens on any more."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(start_errors.not_a_socket(f"unix://{path}"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except TimeoutError:
            pass  # somebody listens, and is slow
    raise StartError(start_errors.socket_in_use(f"unix://{path}"))


def raise_descriptors(clients: int) -> int:
    """Asks for enough descriptors for so many clients; returns how many there are now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft if soft != resource.RLIM_INFINITY else wanted
