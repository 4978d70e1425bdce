"""Active probes, for a client that was asked to have them: nodes are looked at though no call meets them.

    ShardedRedis({...}, probe=True)     a thread, from the first connection until close(), and one a probe
    AsyncShardedRedis({...}, probe=True)     a task, from the first call until aclose()

When a node is due, `Nodes` says (the core's schedule: `health.interval`, sooner in doubt); how it is tried,
the client: PINGs on a new connection. Off by default: two hundred processes need not all ask. A client that
follows proxies has none: they probe. Rules: a node that hangs delays no other's probe; a client that nobody
holds any more is not kept by its thread; a child after a fork begins with a thread of its own, at its first
connection.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from shardproxy.client.health import Nodes

log = logging.getLogger("shardproxy.client")
_here = threading.local()  # .probes: this is a thread of a Prober's
STOPS_WITHIN = 5.0  # seconds that close() waits for a probe that is on its way


class Prober:
    """A thread that sees when probes are due; each has a thread of its own. asker: an Asker."""

    def __init__(self, asker: Any) -> None:
        self._stop: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None
        self._probes: list[threading.Thread] = []
        self._pid = 0
        self._lock = threading.Lock()
        self._asker = weakref.ref(asker, lambda _: self._forgotten())
        asker.nodes.probes = True

    def start(self) -> None:
        """If it does not run: at each new connection, for who connects is in use."""
        if getattr(_here, "probes", False):
            return  # it is a probe that connects, maybe the last one
        if self._pid == os.getpid():
            if self._thread is not None:
                return
        else:
            self._lock, self._thread = threading.Lock(), None
        with self._lock:
            if self._thread is not None or (asker := self._asker()) is None:
                return
            wake, ended = threading.Event(), threading.Event()

            def stop() -> None:
                ended.set()
                wake.set()

            self._stop, self._pid = stop, os.getpid()
            asker.nodes.wake = wake.set
            self._probes = []
            self._thread = threading.Thread(
                target=_probe,
                args=(self._asker, wake, ended, self._probes),
                name="shardproxy-probes",
                daemon=True,
            )
            self._thread.start()

    def _forgotten(self) -> None:
        if self._pid == os.getpid():
            self._stop()

    def stop(self) -> None:
        """Its threads have ended when this returns, unless a probe takes too long or it is this thread."""
        thread, self._thread = self._thread, None
        if thread is None or self._pid != os.getpid():
            return
        self._stop()
        limit = time.monotonic() + STOPS_WITHIN
        for each in (thread, *self._probes):
            if each is not threading.current_thread():
                each.join(max(limit - time.monotonic(), 0.0))


def _probe(
    reference: Callable[[], Any],
    wake: threading.Event,
    ended: threading.Event,
    probes: list[threading.Thread],
) -> None:
    _here.probes = True
    while True:
        wake.clear()  # before the looks at what it may have been for
        asker = reference()
        if asker is None or ended.is_set():
            return
        now = time.monotonic()
        probes[:] = [each for each in probes if each.is_alive()]
        while (address := asker.nodes.claim(now, probing=True)) is not None:
            probe = threading.Thread(
                target=_try, args=(asker, address), name=f"shardproxy-probe-{address}", daemon=True
            )
            try:
                probe.start()
            except RuntimeError:  # there are too many threads
                _try(asker, address)
            else:
                probes.append(probe)
        wait = asker.nodes.probe_at - now
        del asker  # not to be kept while nothing happens
        wake.wait(None if wait == float("inf") else max(wait, 0.0))


def _try(asker: Any, address: str) -> None:
    _here.probes = True
    try:
        asker.trial(address)
    except Exception:  # of who is told of transitions
        log.exception("a probe of %s failed", address)


class AsyncProber:
    """A task that asks all nodes that are due. begin(address): makes a trial, as a task of its own."""

    def __init__(self, nodes: Nodes, begin: Callable[[str], None]) -> None:
        self._nodes, self._begin = nodes, begin
        self._task: asyncio.Task[None] | None = None
        nodes.probes = True

    def start(self) -> None:
        """In the running loop; once is enough."""
        if self._task is None:
            wake = asyncio.Event()
            self._nodes.wake = wake.set
            self._task = asyncio.get_running_loop().create_task(self._probe(wake))

    async def _probe(self, wake: asyncio.Event) -> None:
        while True:
            wake.clear()
            now = time.monotonic()
            while (address := self._nodes.claim(now, probing=True)) is not None:
                self._begin(address)
            wait = self._nodes.probe_at - now
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wait == float("inf") else max(wait, 0.0)):
                    await wake.wait()

    def stop(self) -> "list[asyncio.Task[None]]":
        """The task that has to be cancelled, if there is one."""
        task, self._task = self._task, None
        return [task] if task is not None else []

    def forget(self) -> None:
        """Its loop is not there any more."""
        self._task = None
