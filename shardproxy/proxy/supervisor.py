"""Several workers, and the process that starts, watches, replaces and stops them.

The supervisor owns what outlives a worker: the listening sockets (one SO_REUSEPORT socket a slot, so no
accept queue is lost with a worker), the counters' memory, the topology and its generation. It serves no
client itself. Rules: workers are spawned, never forked, and inherit exactly the descriptors they are passed;
one that dies is replaced, later each time if it dies young; client ids never come twice, since every spawn
counts from a base of its own; when the supervisor is gone its channels close, and the workers end.
"""

import asyncio
import contextlib
import math
import os
import random
import secrets
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

import shardproxy
from shardproxy.config import Config, Credentials, read_users
from shardproxy.core.acl import Users
from shardproxy.core.topology import Topology
from shardproxy.handlers.base import ProcessRecord
from shardproxy.proxy import listeners, start_errors
from shardproxy.proxy.certificates import Ways
from shardproxy.proxy.channel import Channel, ChannelClosed, PeerFailed
from shardproxy.proxy.keeper import Keeper
from shardproxy.proxy.listeners import StartError
from shardproxy.proxy.logs import Logger
from shardproxy.proxy.owing import Taken
from shardproxy.proxy.pages import CounterPages
from shardproxy.proxy.probe import NodeRefuses
from shardproxy.proxy.reload import Reloader
from shardproxy.proxy.serving import live, serve
from shardproxy.proxy.takeover import Sockets
from shardproxy.proxy.transitions import Transitions, hook_of, password_variables
from shardproxy.proxy.usage import LoopLag, process_record
from shardproxy.proxy.watched import Around, WorkerRecord
from shardproxy.proxy.worker import ASK_OTHERS, Bound, Order, config_to_wire

START_LIMIT = 60.0  # seconds a worker has until it is ready
STOP_GRACE = 5.0  # beyond drain_timeout, until it is killed
YOUNG = 5.0  # a worker that dies before is replaced later each time
BACKOFF_FIRST, BACKOFF_MOST = 0.1, 30.0
ACKNOWLEDGE = 1.0  # seconds beyond a pool's timeout that workers have to take a topology over
IDS = 1 << 32  # client ids of one spawn
HOLD_MOST = 5.0  # seconds that workers are waited for before keys move
STARTING_STEP = 0.01  # seconds between two looks at workers that are just starting
PULSE = 0.5  # seconds between two looks at how late our own loop is


def exit_text(status: int) -> str:
    """How a process ended: "exit code 1", "killed by SIGKILL"."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def backoff(deaths: int) -> float:
    """Seconds to wait after so many young deaths in a row; before the jitter."""
    return min(BACKOFF_FIRST * 2.0 ** (deaths - 1), BACKOFF_MOST) if deaths else 0.0


class Slot:
    """The place of one worker, whoever holds it now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: Process | None = None
        self.channel: Channel | None = None
        self.ready = asyncio.Event()
        self.deaths = 0  # in a row, of young workers
        self.connections: dict[str, list[str]] = {}  # its connections, by node, in the words of CLIENT KILL

    @property
    def alive(self) -> bool:
        """It has a process, whether that serves already or not."""
        return self.process is not None and self.process.returncode is None


class Supervisor:
    """`start`, then `stop`; in between it looks after itself."""

    def __init__(self, config: Config, workers: int, file: str = "", taken: Sockets | None = None) -> None:
        self.config = config
        self.log = Logger(config.log)
        hidden = password_variables(config)
        self.transitions = Transitions(self.log, hook_of(config, hidden), hidden=hidden)
        self.credentials, self.users = Credentials.read(config), read_users(config)
        self._lag = LoopLag(PULSE)
        # cleared: keys are about to move, and no worker begins with where they were
        self._steady = asyncio.Event()
        self._steady.set()
        self.topology = Topology.from_config(config)
        self.slots = [Slot(number) for number in range(workers)]
        self.run_id, self.started = secrets.token_hex(20), time.time()
        self.spawns = 0
        self.stopping = False
        inherits = taken is not None and taken.knows
        self.keeper = Keeper(self, self.run_id, self.log, inherits=inherits)
        self._databases = {0}  # that clients have used, as far as the workers have told
        self._forgotten: set[str] = (
            set()
        )  # nodes whose keys were elsewhere when a worker died, which knew them
        self._tasks: set[asyncio.Task[Any]] = set()
        self.bound: list[listeners.Listener] = []
        self.reloader = Reloader(self, self.credentials, self.users, file)
        self._taken = taken
        self.inherits, self.handed_over = taken is not None, asyncio.Event()
        self.pages = CounterPages.create(workers)

    @property
    def addresses(self) -> list[str]:
        return [listener.address for listener in self.bound]

    # --- start and stop ---

    async def start(self) -> bool:
        """True, when every worker serves. Raises StartError, ConfigError."""
        ways = Ways.read(self.config, self.credentials)
        listeners.raise_descriptors(self.config.limits.maxclients)
        taken = self._taken
        given = taken.listeners if taken else ()
        self.bound = listeners.bind_all(self.config.listen, len(self.slots), given)
        self.reloader.restore(*(taken.drained, taken.away) if taken else ())
        self.keeper.follow(ways)
        watches = [self._keep(self._run_slot(slot)) for slot in self.slots]
        self._keep(self._pulse())
        ready = self._keep(self._all_ready())
        await asyncio.wait((ready, *watches), return_when=asyncio.FIRST_COMPLETED)
        for watch in watches:
            if watch.done():
                watch.result()  # raises what happened to it
        self._keep(self.reloader.run())
        return True

    async def _all_ready(self) -> None:
        for slot in self.slots:
            await slot.ready.wait()

    async def linger(self) -> None:
        """The workers take no more clients and serve those they have, for drain_timeout at most."""
        self.stopping = True
        self._close_listeners()
        await self.broadcast("linger", timeout=self.config.limits.drain_timeout + STOP_GRACE)

    async def drain(self) -> bool:
        """Every worker finishes what is in flight and ends; False when one had to be killed."""
        self.stopping = True
        self._close_listeners()
        limit = self.config.limits.drain_timeout + STOP_GRACE
        serving = [slot.process for slot in self.slots if slot.process and slot.ready.is_set()]
        await self.broadcast("drain", timeout=limit)
        try:
            async with asyncio.timeout(STOP_GRACE):
                codes = await asyncio.gather(*(process.wait() for process in serving))
        except TimeoutError:
            return False
        return not any(codes)

    async def close(self) -> None:
        """Kills what still runs."""
        self.stopping = True
        self._close_listeners()
        for slot in self.slots:
            if slot.process and slot.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    slot.process.kill()
                await slot.process.wait()
        await self.keeper.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.transitions.close()

    def _close_listeners(self) -> None:
        for listener in self.bound:
            listener.close()
        self.bound = []

    def _keep(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- workers ---

    async def _run_slot(self, slot: Slot) -> None:
        """One worker after another, until the end. Raises StartError when the first is never ready."""
        while not self.stopping:
            born = time.monotonic()
            try:
                how = await self._run_worker(slot)
            except OSError as error:  # no process, no descriptors: as if it had died
                how = error.strerror or str(error)
            was_ready = slot.ready.is_set()
            slot.ready.clear()
            await self.broadcast("subscribed", [slot.number, None], but=slot)
            self.pages.retire(slot.number)
            self._forgotten |= {
                shard.node.address
                for pool in self.topology.pools
                for shard in pool.shards
                if pool.elsewhere(shard)
            }
            if self.stopping:
                return
            self.keeper.bury(slot.connections)
            slot.connections = {}
            if not was_ready and self.spawns <= len(self.slots):
                raise StartError(start_errors.worker_gave_up(slot.number, how))
            slot.deaths = slot.deaths + 1 if time.monotonic() - born < YOUNG else 0
            wait = backoff(slot.deaths) * random.uniform(0.5, 1.0)
            self.log("worker_died", worker=slot.number, how=how, replaced_in=round(wait, 3))
            await asyncio.sleep(wait)

    async def _run_worker(self, slot: Slot) -> str:
        """One worker's whole life; returns how it ended."""
        ours, theirs = socket.socketpair()
        id_base, self.spawns = self.spawns * IDS, self.spawns + 1
        bound = [
            Bound(each.address, each.path, [sock.fileno() for sock in each.sockets[slot.number]])
            for each in self.bound
        ]
        with theirs:
            process = slot.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "shardproxy.proxy.worker", str(theirs.fileno())),
                stdin=DEVNULL,
                pass_fds=(theirs.fileno(), self.pages.fd, *(fd for each in bound for fd in each.fds)),
                env=_environment(),
            )
        slot.channel = await Channel(lambda name, body: self._answer(slot, name, body)).open(ours)
        await self._steady.wait()
        order = Order(
            config=config_to_wire(self.config),
            logins=self.credentials.to_wire(),
            slot=slot.number,
            workers=len(self.slots),
            id_base=id_base,
            run_id=self.run_id,
            started=self.started,
            pages_fd=self.pages.fd,
            bound=bound,
            topology=self.topology.as_json(),
            users=self.users.to_wire(),
            transitions=self.transitions.kept(),
        )
        try:
            await slot.channel.ask("start", msgspec.to_builtins(order, builtin_types=(bytes,)), START_LIMIT)
            slot.ready.set()
            # it may have changed while the worker was starting
            slot.channel.tell("reload", self._whole())
            self.log("worker_ready", worker=slot.number, pid=process.pid)
        except (TimeoutError, ChannelClosed, PeerFailed) as error:
            if not isinstance(error, ChannelClosed):
                self.log("worker_silent", worker=slot.number, why=str(error) or type(error).__name__)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        status = await process.wait()
        slot.channel.close()
        return exit_text(status)

    # --- talking to workers ---

    async def broadcast(
        self, name: str, body: Any = None, timeout: float = 1.0, but: Slot | None = None
    ) -> dict[int, Any]:
        """Replies by slot, of those who gave one in time."""
        asked = [slot for slot in self.slots if slot.channel and slot.ready.is_set() and slot is not but]
        replies = await asyncio.gather(
            *(slot.channel.ask(name, body, timeout) for slot in asked if slot.channel), return_exceptions=True
        )
        found = {}
        for slot, reply in zip(asked, replies, strict=True):
            if not isinstance(reply, BaseException):
                found[slot.number] = reply
            elif not isinstance(reply, ChannelClosed):
                self.log("worker_silent", worker=slot.number, asked=name, why=type(reply).__name__)
        return found

    async def _answer(self, slot: Slot, name: str, body: Any) -> Any:
        """What a worker asks or tells."""
        if name == "others":
            what, args = body
            return list((await self.broadcast(what, args, timeout=ASK_OTHERS / 2, but=slot)).values())
        if name == "tell others":
            what, args = body
            for other in self.slots:
                if other.channel and other.ready.is_set() and other is not slot:
                    other.channel.tell(what, args)
            return None
        if name == "evidence":
            self.keeper.observe(body)
            return None
        if name == "connections":
            slot.connections, databases = body
            self._databases.update(databases)
            return None
        if name == "version":
            address, version = body
            node = self.topology.nodes.get(address)
            if node is not None and node.version != version:
                self.set_topology(self.topology.with_node_state(address, node.state, node.reason, version))
            return None
        if name == "operate":
            return msgspec.to_builtins(await self.reloader.operate(*body))
        raise ValueError(name)

    # --- the topology (returns.Fleet, reload.Owner) ---

    def _whole(self) -> list[Any]:
        return [
            config_to_wire(self.config),
            self.topology.as_json(),
            self.credentials.to_wire(),
            self.users.to_wire(),
        ]

    alone = False  # as a Fleet

    async def hold(self) -> None:
        """In two steps: one that stands still is found out, and logged, before anybody has to wait for it."""
        await self._starting()
        self._steady.clear()
        if not await self._send("hold", 0.0, self.topology, HOLD_MOST):
            await self._send("hold", 2 * HOLD_MOST, self.topology, HOLD_MOST)

    def release(self) -> None:
        self._steady.set()
        self._keep(self._send("hold", 0.0, self.topology))

    async def _starting(self) -> None:
        """Waits for those who are: they will serve by the topology that they were given."""
        limit = time.monotonic() + HOLD_MOST
        while any(slot.alive and not slot.ready.is_set() for slot in self.slots):
            if time.monotonic() > limit:
                return
            await asyncio.sleep(STARTING_STEP)

    async def adopt(
        self, config: Config, topology: Topology, credentials: Credentials, users: Users
    ) -> list[str]:
        """A changed configuration and what belongs to it, for all workers, in one message."""
        ways = Ways.read(config, credentials)
        self.transitions.hide(config)
        self.transitions.changed(self.topology, topology)
        self.config, self.topology, self.credentials, self.users = config, topology, credentials, users
        told = self._keep(self._send("reload", self._whole(), topology))
        self._steady.set()
        self.keeper.follow(ways)  # what comes of it is told after that
        return [f"worker {number}" for number in await told]

    def set_topology(self, topology: Topology) -> asyncio.Task[bool]:
        """The next snapshot, for all workers; who does not acknowledge its generation is named in the log."""
        if topology.generation > self.topology.generation:
            self.transitions.changed(self.topology, topology)
            self.topology = topology
        return self._keep(self._send_topology(topology))

    async def _send_topology(self, topology: Topology) -> bool:
        return not await self._send("topology", topology.as_json(), topology)

    async def _send(self, name: str, body: Any, topology: Topology, most: float = math.inf) -> list[int]:
        """The workers that have not acknowledged the topology that this brings them."""
        living = {slot.number: slot.ready.is_set() for slot in self.slots if slot.alive}
        patience = ACKNOWLEDGE + max(pool.longest for pool in topology.pools)
        acks = await self.broadcast(name, body, timeout=min(patience, most))
        behind = [number for number in living if acks.get(number, -1) < topology.generation]
        if silent := [number for number in behind if living[number] and self.slots[number].alive]:
            self.log("worker_silent", workers=silent, generation=topology.generation)
        return behind

    async def databases(self) -> set[int]:
        for used in (await self.broadcast("databases")).values():
            self._databases.update(used)
        return self._databases

    async def take(self, address: str) -> list[Taken]:
        living = [slot for slot in self.slots if slot.alive]
        if not all(slot.ready.is_set() for slot in living):
            raise NodeRefuses("a worker is just starting")
        forgotten = address in self._forgotten
        self._forgotten.discard(address)
        found = [Taken(*each) for each in (await self.broadcast("take", address)).values()]
        if forgotten or len(found) < len(living):
            found.append(Taken([], [], True))
        return found

    # --- what is seen from outside (watched.Watched) ---

    @property
    def listening(self) -> bool:
        return bool(self.bound) and not self.stopping

    @property
    def draining(self) -> bool:
        return self.stopping

    @property
    def mistaken(self) -> Mapping[str, int]:
        return self.keeper.mistaken

    @property
    def invalidated(self) -> Mapping[str, int]:
        return self.keeper.invalidated

    @property
    def silent(self) -> Mapping[str, float]:
        return self.keeper.silent

    @property
    def workers(self) -> Mapping[int, int]:
        return {slot.number: slot.process.pid for slot in self.slots if slot.process and slot.ready.is_set()}

    def counters(self) -> Mapping[str, int]:
        return self.pages.counters()

    def latency(self) -> Mapping[str, Sequence[int]]:
        return self.pages.latency()

    async def all_workers(self) -> dict[int, WorkerRecord]:
        parts = await self.broadcast("worker")
        return {number: msgspec.convert(part, WorkerRecord) for number, part in parts.items()}

    def supervisor(self) -> ProcessRecord:
        return process_record(self._lag)

    async def _pulse(self) -> None:
        while True:
            self._lag.note(time.monotonic())
            await asyncio.sleep(PULSE)


def _environment() -> dict[str, str]:
    """Ours, and a way to find the very package that this process runs."""
    root = str(Path(shardproxy.__file__).parent.parent)
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


def worker_count(config: Config) -> int:
    """workers = 0: one for each core that this process may use."""
    return config.workers or len(os.sched_getaffinity(0))


async def supervise(
    config: Config, file: str = "", taken: Sockets | None = None, around: Around = nullcontext
) -> int:
    """Workers until a signal. Returns the exit code."""
    count = worker_count(config)
    if count == 1:
        return await serve(config, file, taken, around)
    supervisor = Supervisor(config, count, file, taken)
    return await live(supervisor, supervisor.start, taken, around, workers=count)
