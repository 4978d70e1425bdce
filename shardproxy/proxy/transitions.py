"""Changes of nodes' states: the latest ones, counts of all, and who else is told (`on_transition`).

Owns what `PROXY NODES`, the admin page and the metrics show of them. The hook is a URL (POST of JSON) or a
program (JSON on stdin). Rules: it never holds up the proxy: one is told at a time, in order, QUEUED wait at
most and then the oldest are left out; what it is told holds no secret, nor does the program's environment;
a hook that fails is logged without its URL, whose path is often a secret, and is not tried again.
"""

import asyncio
import contextlib
import os
import signal
import threading
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Protocol, TypeAlias

import msgspec

from shardproxy.config import Config
from shardproxy.core.topology import State, Topology

KEPT = 100  # the latest, for those who look
QUEUED = 100  # for the hook
HOOK_LIMIT = 10.0  # seconds; then a program is killed, and a URL given up


Tell: TypeAlias = Callable[[bytes], Awaitable[None]]


class Transition(msgspec.Struct, frozen=True, rename={"old": "from", "new": "to"}):
    """A node's change from one state to another."""

    time: float  # seconds since 1970
    pool: str
    shard: str
    node: str
    old: State
    new: State
    reason: str
    generation: int  # of the topology that has it first


def changes(old: Topology, new: Topology, now: float) -> list[Transition]:
    """What happened to the nodes between two snapshots; a node that has come with the new one was unknown."""
    before = old.nodes
    found = []
    for pool in new.pools:
        for shard in pool.shards:
            node, was = shard.node, before.get(shard.node.address)
            state: State = was.state if was else "unknown"
            if state != node.state:
                found.append(
                    Transition(
                        now,
                        pool.name,
                        shard.name,
                        node.address,
                        state,
                        node.state,
                        node.reason,
                        new.generation,
                    )
                )
    return found


class Log(Protocol):
    def __call__(self, event: str, **fields: object) -> None: ...


class Transitions:
    """`changed` takes them in, at any time; `close` ends the telling, with what is not told yet."""

    def __init__(
        self,
        log: Log,
        tell: Tell | None = None,
        latest: Iterable[Transition] = (),
        hidden: set[str] | None = None,
    ) -> None:
        """tell: a hook's; latest: what had been before, of a worker that is younger than its proxy.

        hidden: the variables that the hook must not see; `hide` adds to them.
        """
        self._hidden = set() if hidden is None else hidden
        self.latest: deque[Transition] = deque(latest, KEPT)
        self.counts: Counter[tuple[str, State]] = Counter()  # by address and new state
        self._log, self._tell = log, tell
        self._queue: deque[Transition] = deque()
        self._left_out = 0
        self._telling: asyncio.Task[None] | None = None

    def changed(self, old: Topology, new: Topology) -> None:
        """From the loop's thread; returns at once."""
        for transition in changes(old, new, time.time()):
            self.latest.append(transition)
            self.counts[transition.node, transition.new] += 1
            if self._tell is not None:
                self._queue.append(transition)
        while len(self._queue) > QUEUED:
            self._queue.popleft()
            self._left_out += 1
        if self._queue and (self._telling is None or self._telling.done()):
            self._telling = asyncio.get_running_loop().create_task(self._tell_all())

    def hide(self, config: Config) -> None:
        """Passwords that a new configuration names; those of the old ones stay hidden."""
        self._hidden |= password_variables(config)

    def of(self, address: str, most: int = 10) -> list[Transition]:
        """The latest of one node, the newest first."""
        return [each for each in reversed(self.latest) if each.node == address][:most]

    async def _tell_all(self) -> None:
        assert self._tell is not None
        while self._queue:
            transition = self._queue.popleft()
            try:
                await self._tell(msgspec.json.encode(transition))
            except HookFailed as failure:
                self._log("on_transition_failed", node=transition.node, why=str(failure))
            except Exception as error:
                self._log("on_transition_failed", node=transition.node, exc_info=error)
            if self._left_out:
                self._log("on_transition_behind", left_out=self._left_out)
                self._left_out = 0

    async def close(self) -> None:
        self._queue.clear()
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)


# --- hooks ---


class HookFailed(Exception):
    """The text says how; it holds no URL."""


def password_variables(config: Config) -> set[str]:
    pools = config.pool.values()
    named = {pool.password_env for pool in pools}
    named |= {shard.password_env for pool in pools for shard in pool.shards.values()}
    return {name for name in named if name}


def hook_of(config: Config, hidden: Collection[str]) -> Tell | None:
    """What `on_transition` asks for. hidden: variables that a program does not get, as they are then."""
    where = config.on_transition
    if where is None:
        return None
    if where.startswith("/"):
        return lambda data: run(where, data, {k: v for k, v in os.environ.items() if k not in hidden})
    return lambda data: in_thread(post, where, data)


async def run(path: str, data: bytes, environment: dict[str, str], limit: float = HOOK_LIMIT) -> None:
    """A program, with data on its stdin; it and its children are killed after `limit`. Raises HookFailed."""
    try:
        process = await asyncio.create_subprocess_exec(
            path, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, env=environment, start_new_session=True
        )
    except OSError as error:
        raise HookFailed(error.strerror or type(error).__name__) from None
    try:
        async with asyncio.timeout(limit):
            await process.communicate(data)
    except TimeoutError:
        raise HookFailed(f"killed after {limit:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        raise HookFailed(f"exit status {process.returncode}")


async def in_thread(work: Callable[..., None], *args: Any) -> None:
    """As asyncio.to_thread, but the end of the program does not wait for the thread."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: Exception | None) -> None:
        if not done.done():
            done.set_exception(error) if error else done.set_result(None)

    def body() -> None:
        error = None
        try:
            work(*args)
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=body, name="on_transition", daemon=True).start()
    await done


def post(url: str, data: bytes, limit: float = HOOK_LIMIT) -> None:
    """Blocks. Raises HookFailed unless the answer is a success."""
    # here alone: they bring the whole of http and email along
    from urllib.error import HTTPError, URLError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class NoRedirect(HTTPRedirectHandler):
        """A POST that is redirected would become a GET."""

        def redirect_request(self, *args: Any, **kwargs: Any) -> None:
            return None

    try:
        request = Request(url, data, {"Content-Type": "application/json"}, method="POST")
        with build_opener(NoRedirect).open(request, timeout=limit):
            return
    except HTTPError as error:
        error.close()
        raise HookFailed(f"HTTP status {error.code}") from None
    except URLError as error:
        why = error.reason
        raise HookFailed((isinstance(why, OSError) and why.strerror) or type(why).__name__) from None
    except Exception as error:
        # http.client's and urllib's own quote the URL
        raise HookFailed(type(error).__name__) from None
