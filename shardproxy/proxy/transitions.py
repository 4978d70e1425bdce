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
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from itertools import chain
from typing import Any, Protocol, TypeAlias, get_args

import msgspec

from shardproxy.config import Config
from shardproxy.core.topology import State, Topology

KEPT = 100  # the latest, for those who look
KEPT_OF_ONE = 10  # of each node, whatever happens to the others
QUEUED = 100  # for the hook
HOOK_LIMIT = 10.0  # seconds; then a program is killed, and a step of a URL given up
HOOK_THREAD = "on_transition"
URL_LIMIT = 30.0  # for all of its steps
THREADS = 10  # at once, of URLs that have been given up and still dribble


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
        self.latest: deque[Transition] = deque(maxlen=KEPT)
        self._of: dict[str, deque[Transition]] = {}  # by address, the latest of each
        self.counts: Counter[tuple[str, State]] = Counter()  # by address and new state
        self._log, self._tell = log, tell
        self._queue: deque[Transition] = deque()
        self._left_out = 0
        self._telling: asyncio.Task[None] | None = None
        for transition in latest:
            self._keep(transition)

    def _keep(self, transition: Transition) -> None:
        self.latest.append(transition)
        self._of.setdefault(transition.node, deque(maxlen=KEPT_OF_ONE)).append(transition)

    def changed(self, old: Topology, new: Topology) -> None:
        """From the loop's thread; returns at once."""
        for transition in changes(old, new, time.time()):
            self._keep(transition)
            self.counts[transition.node, transition.new] += 1
            if self._tell is not None:
                self._queue.append(transition)
        for address in old.nodes.keys() - new.nodes.keys():
            self._of.pop(address, None)
            for state in get_args(State):
                self.counts.pop((address, state), None)
        while len(self._queue) > QUEUED:
            self._queue.popleft()
            self._left_out += 1
        if self._queue and (self._telling is None or self._telling.done()):
            self._telling = asyncio.get_running_loop().create_task(self._tell_all())

    def hide(self, config: Config) -> None:
        """Passwords that a new configuration names; those of the old ones stay hidden."""
        self._hidden |= password_variables(config)

    def of(self, address: str) -> list[Transition]:
        """The latest of one node, the newest first."""
        return list(reversed(self._of.get(address, ())))

    def kept(self) -> list[Transition]:
        """The latest of each node, the oldest first: for who begins with them."""
        return sorted(chain.from_iterable(self._of.values()), key=lambda each: (each.time, each.generation))

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


def password_variables(config: object) -> set[str]:
    """Of a configuration or a part of it: the variables that any option `..._env` names."""
    found: set[str] = set()
    parts = config
    if isinstance(config, msgspec.Struct):
        parts = {name: getattr(config, name) for name in config.__struct_fields__}
    for name, value in parts.items() if isinstance(parts, Mapping) else ():
        if isinstance(value, str):
            found |= {value} if name.endswith("_env") else set()
        else:
            found |= password_variables(value)
    return found


def hook_of(config: Config, hidden: Collection[str]) -> Tell | None:
    """What `on_transition` asks for. hidden: variables that a program does not get, as they are then."""
    where = config.on_transition
    if where is None:
        return None
    if where.startswith("/"):
        return lambda data: run(where, data, {k: v for k, v in os.environ.items() if k not in hidden})
    return lambda data: post_in_time(where, data)


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

    threading.Thread(target=body, name=HOOK_THREAD, daemon=True).start()
    await done


async def post_in_time(url: str, data: bytes, limit: float = URL_LIMIT) -> None:
    """`post`, but no longer than that: who answers a byte now and then never ends. Raises HookFailed."""
    if sum(thread.name == HOOK_THREAD for thread in threading.enumerate()) >= THREADS:
        raise HookFailed("too many before it have not ended")
    try:
        async with asyncio.timeout(limit):
            await in_thread(post, url, data)
    except TimeoutError:
        raise HookFailed(f"no answer in {limit:g} s") from None


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
