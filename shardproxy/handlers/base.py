"""Handlers: one function a command that is answered here, found by the command's name in the table.

Owns the registry, the guard and what a handler may ask of the proxy around it (`Server`). A handler takes
(server, call) and returns the reply's bytes; None: it has called `call.reply` itself, or will. An `async`
handler runs as a task and its slot waits. Rules: whatever happens in a handler, its slot is filled, once; an
exception is logged without the arguments (they may be keys, values or secrets) and answers an internal error.
The engine checks arity by the table before it calls: a handler looks only at what the table cannot say.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import msgspec

from shardproxy.core import errors, reply

if TYPE_CHECKING:
    from shardproxy.config import Config
    from shardproxy.core.acl import Users
    from shardproxy.core.commands import CommandTable
    from shardproxy.core.logins import Failures
    from shardproxy.core.topology import Topology
    from shardproxy.dataplane.calls import Call
    from shardproxy.dataplane.reactor import Reactor
    from shardproxy.handlers.accesslog import AccessLog
    from shardproxy.handlers.memcached import Turn
    from shardproxy.handlers.monitor import Monitors
    from shardproxy.handlers.subscriptions import Subscriptions
    from shardproxy.handlers.topology import Watchers
    from shardproxy.handlers.tracking import Trackers

T = TypeVar("T")
Answer: TypeAlias = "bytes | Coroutine[Any, Any, bytes | None] | None"
Handler: TypeAlias = "Callable[[Server, Call], Answer]"


class NodeInfo(msgspec.Struct, frozen=True):
    """What a node has told of itself; empty texts: nothing yet."""

    version: str = ""
    maxmemory_policy: str = ""
    error: str = ""  # why it could not be asked
    databases: int = 0  # how many it has; 0: it does not say
    protocol: str = "redis"  # or "memcached"


class ProcessRecord(msgspec.Struct, frozen=True):
    """What a worker's process has used. Bytes, seconds."""

    pid: int
    rss: int
    peak_rss: int
    cpu_user: float
    cpu_system: float
    loop_lag: float = 0.0  # the longest its loop was late in the last seconds
    blocked: int = 0  # clients that wait for data, or for replicas


class Outcome(msgspec.Struct, frozen=True):
    """What came of a change that somebody asked for."""

    error: str = ""  # it was refused
    answer: dict[str, Any] = {}


class BadReply(Exception):
    """A node answered what the command never answers; str(): what, for the client."""


class Server(Protocol):
    """The proxy, as far as handlers may know it."""

    config: "Config"
    topology: "Topology"
    commands: "CommandTable"
    reactor: "Reactor"
    missed: dict[str, set[str]]  # by shard: changes of "functions", "scripts" while its node was away
    counted: dict[str, int]  # the counters at the last CONFIG RESETSTAT, from which INFO counts
    started: float  # seconds since 1970
    run_id: str  # 40 hex digits, the same in all workers
    tcp_port: int  # the first one that was bound; 0: none
    pid: int  # the supervisor's, if there is one
    slot: int  # which of the workers this is
    shared: bool  # there are other workers
    subscriptions: "Subscriptions"
    trackers: "Trackers"
    users: "Users"  # limits are this worker's part
    access_log: "AccessLog"  # this worker's
    failures: "Failures"  # logins that failed, this worker's
    monitors: "Monitors"
    watchers: "Watchers"
    waits: dict[int, asyncio.Future[bool]]  # by client: of handlers that wait; its result: with an error
    turns: "dict[tuple[int, bytes], Turn]"  # by memcached node and key
    tasks: set[asyncio.Task[None]]  # handlers that are not done; cancelled when the server closes

    @property
    def node_info(self) -> Mapping[str, NodeInfo]:
        """By address."""

    def counters(self) -> Mapping[str, int]:
        """Over all workers."""

    def latency(self) -> Mapping[str, Sequence[int]]:
        """Histograms of reads and writes over all workers."""

    def process(self) -> ProcessRecord:
        """This worker's."""

    async def everywhere(self, name: str, *args: Any) -> list[Any]:
        """What each worker's `part` of that name returns, this one's first; of those that answer in time."""

    def tell_others(self, name: str, args: Sequence[Any]) -> None:
        """The same without an answer, and not here."""

    async def operate(self, what: str, *args: Any) -> Outcome:
        """Changes the proxy, for all workers; what: a name of `Reloader.operate`'s."""

    def transitions_of(self, address: str) -> Sequence[Any]:
        """The latest of one node, the newest first; records for JSON."""

    def log(self, event: str, **fields: object) -> None:
        """An error that an operator should see."""


_HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Registers a function for these commands, written as in the table: "ping", "client|setname"."""

    def register(handler: Handler) -> Handler:
        for name in names:
            if name in _HANDLERS:
                raise ValueError(f"{name!r} has a handler already")
            _HANDLERS[name] = handler
        return handler

    return register


_MEMCACHED: list[Handler] = []


def on_memcached(handler: Handler) -> Handler:
    """Registers the function for all commands on memcached nodes that the engine does not translate."""
    _MEMCACHED[:] = [handler]
    return handler


_PARTS: dict[str, Callable[..., Any]] = {}


def part(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers what each worker does on `Server.everywhere(name, ...)`: it takes (server, ...)."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in _PARTS:
            raise ValueError(f"part {name!r} is there already")
        _PARTS[name] = function
        return function

    return register


async def do_part(server: "Server", name: str, *args: Any) -> Any:
    done = _PARTS[name](server, *args)
    return await done if asyncio.iscoroutine(done) else done


async def gather(server: "Server", name: str, kind: type[T]) -> list[T]:
    """`everywhere`, of parts that return a record of this kind."""
    return [msgspec.convert(each, kind) for each in await server.everywhere(name)]


def handled() -> frozenset[str]:
    """Every command that has a handler."""
    return frozenset(_HANDLERS)


def dispatch(server: Server, call: "Call") -> None:
    """Answers a call, now or in a task."""
    handler = _HANDLERS.get(call.row.name, _no_handler) if call.memcached < 0 else _MEMCACHED[0]
    try:
        answer = handler(server, call)
    except Exception as error:
        _failed(server, call, error)
        return
    if asyncio.iscoroutine(answer):
        task = asyncio.get_running_loop().create_task(_finish(server, call, answer))
        server.tasks.add(task)
        task.add_done_callback(server.tasks.discard)
    elif answer is not None:
        call.reply(answer)


def _no_handler(server: Server, call: "Call") -> bytes:
    """A container without this subcommand; anything else in the table without a handler is our mistake."""
    if call.row.subcommands and len(call.args) > 1:
        return reply.error(errors.unknown_subcommand(call.row.name, call.args[1]))
    return reply.error(errors.not_supported(call.row.name, call.row.why))


async def _finish(server: Server, call: "Call", answer: Coroutine[Any, Any, bytes | None]) -> None:
    try:
        data = await answer
    except BadReply as error:
        call.reply(reply.error(str(error)))
    except Exception as error:
        _failed(server, call, error)
    except asyncio.CancelledError:
        _failed(server, call, None)
        raise
    else:
        if data is not None:
            call.reply(data)


def _failed(server: Server, call: "Call", error: Exception | None) -> None:
    if error is not None:
        server.log("handler_failed", command=call.row.name, error=type(error).__name__, exc_info=error)
    if not call.done:
        call.reply(reply.error(errors.INTERNAL))
