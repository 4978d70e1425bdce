"""The process of `shardproxy serve`: its loop, its signals, its beginning and end. `run` is all to call.

A SIGTERM or SIGINT drains, a second one ends at once; SIGHUP loads the configuration again. With more workers
than one the process is a supervisor (`proxy/supervisor`), else it is the worker.
"""

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any, Protocol

from shardproxy import __version__
from shardproxy.config import Config
from shardproxy.proxy.listeners import StartError
from shardproxy.proxy.logs import Logger
from shardproxy.proxy.reload import Owner
from shardproxy.proxy.server import Proxy
from shardproxy.proxy.takeover import Sockets, take_over, until_over
from shardproxy.proxy.watched import Around, Watched


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


class Signals:
    """SIGTERM and SIGINT: the first asks for a drain, the second for an end at once."""

    def __init__(self) -> None:
        self._count = 0
        self.first, self.second = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._hit)
        # until there is something to load again: by default it ends the process
        loop.add_signal_handler(signal.SIGHUP, lambda: None)

    def _hit(self) -> None:
        self._count += 1
        (self.first if self._count == 1 else self.second).set()

    async def unless_first(self, work: Coroutine[Any, Any, bool]) -> bool:
        """What `work` returns; False when a signal came first, which cancels it."""
        return await _unless(self.first, work)

    async def unless_second(self, work: Coroutine[Any, Any, bool]) -> bool:
        """The same, of a second signal."""
        return await _unless(self.second, work)


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, bool]) -> bool:
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if working.done():
        return working.result()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return False


class Lived(Owner, Watched, Protocol):
    """What a process of `serve` is there for: the only worker, or the supervisor of many."""

    log: Logger

    async def drain(self) -> bool:
        """Takes no more clients and finishes what is in flight; False when that took too long."""

    async def close(self) -> None: ...


async def live(
    owner: Lived,
    begin: Callable[[], Coroutine[Any, Any, bool]],
    taken: Sockets | None,
    around: Around,
    **told: object,
) -> int:
    """Its whole life, until a signal. Returns the exit code. told: more for the log, when it listens."""
    signals = Signals()
    async with around(owner):
        try:
            if not await signals.unless_first(begin()):
                return 1
            owner.log("listening", addresses=owner.addresses, pid=os.getpid(), **told, version=__version__)
            await until_over(owner, signals.first, taken)
            owner.log("draining")
            clean = await signals.unless_second(owner.drain())
        finally:
            await owner.close()
    owner.log("stopped", clean=clean)
    return 0 if clean else 1


async def serve(
    config: Config, file: str = "", taken: Sockets | None = None, around: Around = nullcontext
) -> int:
    """One worker in this process, until a signal. Returns the exit code."""
    proxy = Proxy(config, file=file, taken=taken)

    async def begin() -> bool:
        proxy.start()
        settle()
        return True

    return await live(proxy, begin, taken, around)


def settle() -> None:
    """What there is at the start is there for good: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()


def run(config: Config, file: str = "", *, takeover: bool = False, around: Around = nullcontext) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code.

    file: where the configuration is from; it is loaded again when it changes. takeover: goes on for the one
    that runs, with its sockets. around: runs around the proxy, for its life.
    """
    main: Callable[[Config, str, Sockets | None, Around], Coroutine[Any, Any, int]] = serve
    workers = 1
    if config.workers != 1:
        from shardproxy.proxy.supervisor import supervise, worker_count

        main, workers = supervise, worker_count(config)
    try:
        taken = take_over(config, workers) if takeover else None
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(main(config, file, taken, around))
    except StartError as error:
        Logger(config.log)("cannot_start", reason=str(error))
        return 1
