"""What handlers and admin see, without an engine: plain records with the attributes of its handles."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardproxy import config, handlers
from shardproxy.core import commands, reply
from shardproxy.core.acl import Users
from shardproxy.core.command_rows import Row
from shardproxy.core.logins import Failures
from shardproxy.core.topology import State, Topology
from shardproxy.dataplane.counters import BUCKET_COUNT, TABLE
from shardproxy.handlers.accesslog import AccessLog
from shardproxy.handlers.base import NodeInfo, Outcome, ProcessRecord
from shardproxy.handlers.client import record_of
from shardproxy.handlers.memcached import Turn
from shardproxy.handlers.subscriptions import Subscriptions
from shardproxy.handlers.topology import Watchers
from shardproxy.handlers.tracking import Trackers
from shardproxy.proxy.transitions import Transitions
from shardproxy.proxy.watched import WorkerRecord

TABLE_OF_COMMANDS = commands.builtin()
CONFIG = config.Config(
    pool={
        "main": config.PoolConfig(
            shards={
                name: config.ShardConfig(primary=f"redis://127.0.0.1:{port}")
                for name, port in (("a", 7001), ("b", 7002), ("c", 7003))
            }
        )
    }
)


@dataclass
class FakeClient:
    id: int = 1
    alive: bool = True
    proto: int = 2
    name: bytes = b""
    lib_name: bytes = b""
    lib_ver: bytes = b""
    db: int = 0
    addr: str = "127.0.0.1:50000"
    laddr: str = "127.0.0.1:6380"
    fd: int = 8
    age: float = 0.0
    idle: float = 0.0
    last_command: str = "NULL"
    query_buffer: int = 0
    output_bytes: int = 0
    pending: int = 0
    total_memory: int = 0
    in_multi: int = -1
    multi_memory: int = 0
    no_evict: bool = False
    no_touch: bool = False
    reply_mode: str = "on"
    total_commands: int = 0
    watched: int = 0
    waiting: bool = False
    monitors: bool = False
    leaving: bool = False
    subscriptions: tuple[int, int, int] = (0, 0, 0)
    tracked: tuple[str, int] = ("", -1)
    tracking: bool = False
    caching: int = 0
    user: bytes = b""
    failed: int = 0

    def when_gone(self, callback: Any) -> None:
        self.gone = callback

    def login(self, name: bytes) -> None:
        self.user = name

    def login_failed(self) -> None:
        self.failed += 1

    def close_after_reply(self, reason: str | None = None) -> None:
        self.leaving = True

    def reset(self) -> None:
        self.proto, self.name, self.no_evict, self.no_touch, self.reply_mode = 2, b"", False, False, "on"
        self.user = b""


@dataclass
class FakeCall:
    args: list[bytes]
    client: FakeClient
    row: Row
    replies: list[bytes] = field(default_factory=list)
    answered: dict[int, bytes] = field(default_factory=dict)
    in_exec: bool = False
    held: Any = None
    memcached: int = -1

    @property
    def proto(self) -> int:
        return self.client.proto

    @property
    def done(self) -> bool:
        return bool(self.replies)

    def reply(self, data: bytes) -> None:
        if self.done:
            raise RuntimeError("a call is answered once")
        self.replies.append(data)


@dataclass
class FakeServer:
    config: Any = CONFIG
    topology: Topology = field(default_factory=lambda: Topology.from_config(CONFIG))
    commands: Any = TABLE_OF_COMMANDS
    reactor: Any = None
    started: float = 0.0
    run_id: str = "0" * 40
    tcp_port: int = 6380
    pid: int = 4711
    node_info: dict[str, NodeInfo] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    counted: dict[str, int] = field(default_factory=dict)
    waits: dict[int, asyncio.Future[bool]] = field(default_factory=dict)
    turns: dict[tuple[int, bytes], Turn] = field(default_factory=dict)
    monitors: Any = None
    clients: list[Any] = field(default_factory=list)
    nodes: list[list[dict[str, Any]]] = field(default_factory=list)
    processes: list[ProcessRecord] = field(
        default_factory=lambda: [ProcessRecord(4711, 1 << 20, 2 << 20, 0.5, 0.25)]
    )
    counts: dict[str, int] = field(default_factory=lambda: {name: 0 for name, _, _ in TABLE})
    histograms: dict[str, list[int]] = field(
        default_factory=lambda: {"read": [0] * BUCKET_COUNT, "write": [0] * BUCKET_COUNT}
    )
    users: Users = field(default_factory=Users)
    access_log: AccessLog = field(default_factory=AccessLog)
    failures: Failures = field(default_factory=Failures)
    operated: list[tuple[Any, ...]] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    logged: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    slot: int = 0
    shared: bool = False

    def __post_init__(self) -> None:
        self.subscriptions = Subscriptions(self)
        self.trackers = Trackers(self)
        self.watchers = Watchers()

    def counters(self) -> Mapping[str, int]:
        return self.counts

    def latency(self) -> Mapping[str, Sequence[int]]:
        return self.histograms

    def process(self) -> ProcessRecord:
        return self.processes[0]

    async def everywhere(self, name: str, *args: Any) -> list[Any]:
        made = {"nodes": self.nodes, "process": self.processes}
        if name == "clients":
            return [list(map(record_of, self.clients))]
        if name in made:
            return list(made[name])
        return [await handlers.do_part(self, name, *args)]  # type: ignore[arg-type]  # a fake

    def tell_others(self, name: str, args: Sequence[Any]) -> None:
        pass

    async def operate(self, what: str, *args: Any) -> Outcome:
        self.operated.append((what, *args))
        return self.outcome

    def transitions_of(self, address: str) -> Sequence[Any]:
        return []

    def log(self, event: str, **fields: object) -> None:
        self.logged.append((event, fields))


NO_TIMES = [0] * BUCKET_COUNT


def node_record(address: str, requests: int = 0, up: int = 0, **more: Any) -> dict[str, Any]:
    """As Reactor.nodes()."""
    upstream = {
        "protocol": 2,
        "database": 7,
        "state": "up",
        "in_flight": 2,
        "queue_bytes": 100,
        "failures": 5,
    }
    return {
        "shard": "?",
        "address": address,
        "state": "up",
        "reason": "",
        "requests": requests,
        "errors": 1,
        "lost": 0,
        "upstreams": [upstream] * up,
        "latency": {"read": NO_TIMES, "write": NO_TIMES},
        "classes": {
            "read": {"requests": requests, "errors": 0},
            "write": {"requests": 0, "errors": 1},
        },
        **more,
    }


def worker(pid: int, *nodes: dict[str, Any]) -> WorkerRecord:
    return WorkerRecord(ProcessRecord(pid, 1 << 20, 2 << 20, 0.5, 0.25, 0.125), list(nodes))


class FakeWatched:
    """A watched.Watched whose parts are attributes."""

    def __init__(self) -> None:
        self.config: Any = CONFIG
        self.logged: list[str] = []
        self.topology = Topology.from_config(CONFIG)
        self.transitions = Transitions(self.log)
        self.started = 0.0
        self.addresses = ["127.0.0.1:6380"]
        self.listening, self.draining = True, False
        self.inherits, self.handed_over = False, asyncio.Event()
        self.mistaken: dict[str, int] = {}
        self.invalidated: dict[str, int] = {}
        self.silent: dict[str, float] = {}
        self.workers = {0: 100}
        self.parts = {
            0: worker(
                100,
                node_record("127.0.0.1:7001", 10, 1),
                node_record("127.0.0.1:7002", 20, 1),
                node_record("127.0.0.1:7003", 30, 1),
            )
        }
        self.count = {name: 0 for name, _, _ in TABLE}
        self.histograms = {"read": NO_TIMES, "write": NO_TIMES}
        self.asked = 0
        self.states(dict.fromkeys(self.topology.nodes, "up"))

    def states(self, states: dict[str, State], reason: str = "") -> None:
        for address, state in states.items():
            new = self.topology.with_node_state(address, state, reason)
            self.transitions.changed(self.topology, new)
            self.topology = new

    def counters(self) -> dict[str, int]:
        return self.count

    def latency(self) -> dict[str, list[int]]:
        return self.histograms

    async def all_workers(self) -> dict[int, WorkerRecord]:
        self.asked += 1
        return self.parts

    def supervisor(self) -> ProcessRecord | None:
        return None

    def log(self, event: str, **fields: object) -> None:
        self.logged.append(event)


def as_bytes(args: Sequence[str | bytes]) -> list[bytes]:
    return [arg if isinstance(arg, bytes) else arg.encode() for arg in args]


def call_of(client: FakeClient, *args: str | bytes) -> FakeCall:
    """A call as the engine would make it, of a command that the table knows."""
    parts = as_bytes(args)
    row = TABLE_OF_COMMANDS.row(parts[0], *parts[1:2]) or TABLE_OF_COMMANDS.row(parts[0])
    assert row is not None, f"no such command: {args[0]!r}"
    return FakeCall(parts, client, row)


async def ask(server: FakeServer, client: FakeClient, *args: str | bytes) -> bytes:
    """One command, all the way through dispatch; checks arity as the engine does before it."""
    call = call_of(client, *args)
    if len(call.args) < abs(call.row.arity) or 0 < call.row.arity != len(call.args):
        return reply.error(f"ERR wrong number of arguments for '{call.row.name}' command")
    handlers.dispatch(server, call)  # type: ignore[arg-type]  # fakes
    while server.tasks:
        await asyncio.gather(*server.tasks)
    assert len(call.replies) == 1, f"{args}: answered {len(call.replies)} times"
    return call.replies[0]
