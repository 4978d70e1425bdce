"""How a node that was out comes back: the fenced sequence, and what is swept after it.

 1. our old connections to the node are killed there, since bytes in its socket buffers would run later;
    what the workers wrote or deleted elsewhere meanwhile is taken from them and deleted on the node, and
    its functions and scripts are made those of the others when these have changed;
 2. the fence: no worker has anything of its keys in flight, and all have said so;
 3. inside it the rest of 1; or the whole database goes, if nobody else has been using it;
 4. it is up, and its keys come back to it;
 5. what stand-ins keep of its keys is deleted; until then it is not `swept`.

A shard that drained returns in the same way. When keys are looked for elsewhere because weights or shards
have changed, every node that stays is looked through for what it does not serve any more.
Owns what is owed: keys taken and not yet deleted everywhere, and debts, what a node has to delete: at once,
or if it is out, before it comes back. Both are bounded; beyond that everything is looked through instead.
Anything that fails ends the return, and what is owed is kept. Nothing is removed on a pool with on_return =
"keep".
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Protocol

import hiredis

from shardproxy.core.topology import Pool, Shard, Topology
from shardproxy.proxy.certificates import Way
from shardproxy.proxy.memcached import MetaLine
from shardproxy.proxy.owing import Known, Owed, Taken
from shardproxy.proxy.probe import Line, NodeRefuses

HEARTBEATS = b"shardproxy:heartbeats"  # a sorted set on each node: run_id → when it last used the node
OURS = (HEARTBEATS, b"shardproxy:probe:")  # keys of these beginnings are no client's
KEPT = 86400  # seconds that heartbeats stay
USED = 2.5  # probe intervals: who uses a node says so at least once in these
BATCH = 1000  # keys in one UNLINK or SCAN
SETTLE_STEP = 0.02  # seconds between looks at what is unanswered
RETRY, RETRY_MOST = 0.5, 30.0  # seconds between tries to sweep a stand-in
GHOSTS = 1000  # connections to one node that are remembered, of workers that have died
KNOWN_BYTES = 32 << 10  # a key, and half a part, for the process that takes over


class Fleet(Protocol):
    """All workers: the supervisor's, or with one worker the Proxy itself."""

    topology: Topology

    @property
    def alone(self) -> bool:
        """There is one worker, which serves by a topology as soon as that is set."""

    def set_topology(self, topology: Topology) -> Awaitable[bool]:
        """Swaps it in before it returns. True: every live worker serves by it, and where it puts a shard into
        "hold" none has anything of its keys in flight elsewhere."""

    async def databases(self) -> set[int]:
        """Those that clients have used: no others are looked into, nor emptied."""

    async def take(self, address: str) -> list[Taken]:
        """From all workers; who cannot be asked stands there with `overflow`. Raises NodeRefuses: not now."""


def removes(pool: Pool) -> tuple[str, str, str]:
    """All that decides what is removed, and whether anything may be."""
    return pool.kind, pool.on_shard_down, pool.on_return


def misplaced(pool: Pool, shard: Shard, key: bytes, sweeping: str = "") -> bool:
    """Whether a shard has a key that is not, or no longer, its to serve.

    sweeping: another shard, whose keys nobody may serve for it, however it is doing now.
    """
    if key.startswith(OURS):
        return False
    if sweeping and pool.owner(key).name == sweeping:
        return True
    home = pool.home(key, shard.name)
    if home.name == shard.name:
        return False
    if home.node.state not in ("out", "suspect") or not pool.moves(home):
        return True
    stand_in = pool.stand_in(key)
    return stand_in is None or stand_in.name != shard.name


class Returns:
    """`way`: to a node, by its address."""

    def __init__(
        self, fleet: Fleet, way: Callable[[str], Way], run_id: str, log: Callable[..., None]
    ) -> None:
        self._fleet, self._way, self._run_id, self._log = fleet, way, run_id.encode(), log
        self.invalidated: Counter[str] = Counter()  # keys deleted of each node, for what they hold is old
        self._ghosts: dict[str, set[str]] = {}
        self._missed: dict[str, set[str]] = {}
        self._owed: dict[str, Owed] = {}  # of nodes that are out
        self._unswept: dict[str, Owed] = {}  # of nodes that are back
        self._debts: dict[str, Owed] = {}  # of each node
        self._used: set[int] = set()  # databases that clients of the process before have used

    def forget(self, address: str) -> None:
        """It has left the topology."""
        for each in (self._ghosts, self._missed, self._owed, self._unswept, self._debts, self.invalidated):
            each.pop(address, None)

    def move(self, old: str, new: str) -> None:
        """Another node has taken its place."""
        for owed in (self._owed, self._unswept):
            if old in owed:
                owed[new] = owed.pop(old)

    def lack(self, address: str) -> None:
        """Nobody knows what was written elsewhere: it was drained before we started."""
        pool, _ = self._place(address)
        self._owed.setdefault(address, Owed(pool.remember)).add((), pool.on_return == "invalidate")

    async def known(self) -> list[Known]:
        """All of it, in small parts, after the workers have told what they know."""
        for pool in self._fleet.topology.pools:
            for shard in pool.shards:
                away = pool.removes and pool.elsewhere(shard)
                if not away and shard.node.state in ("up", "unknown"):
                    continue
                try:
                    await self._collect(pool, shard.node.address)
                except NodeRefuses:
                    if away:
                        self.lack(shard.node.address)
        used = sorted(await self._fleet.databases() | self._used)
        found = [
            Known(
                "owed",
                address,
                ghosts=sorted(self._ghosts.get(address, ())),
                missed=sorted(self._missed.get(address, ())),
                databases=used,
            )
            for address in self._fleet.topology.nodes
        ]
        for kind, table in (("owed", self._owed), ("unswept", self._unswept), ("debts", self._debts)):
            for address, owed in table.items():
                keys = [key for key in owed.keys if len(key) <= KNOWN_BYTES]
                found.append(Known(kind, address, [], owed.everything or len(keys) < len(owed.keys)))
                while keys:
                    part, size = 0, 0
                    while part < len(keys) and (size := size + len(keys[part]) + 8) <= 2 * KNOWN_BYTES:
                        part += 1
                    found.append(Known(kind, address, keys[:part]))
                    keys = keys[part:]
        return found

    def inherit(self, known: Known) -> None:
        """What `known` of the process before has found, of a node that is ours as well."""
        pool, _ = self._place(known.address)
        table = {"owed": self._owed, "unswept": self._unswept, "debts": self._debts}[known.kind]
        table.setdefault(known.address, Owed(pool.remember)).add(known.keys, known.everything)
        self._ghosts.setdefault(known.address, set()).update(known.ghosts)
        self._missed.setdefault(known.address, set()).update(known.missed)
        self._used.update(known.databases)

    @property
    def in_debt(self) -> Collection[str]:
        return [address for address, debt in self._debts.items() if debt]

    def owe_all(self, address: str) -> None:
        """It may hold keys that are others' now."""
        pool, _ = self._place(address)
        self._debts.setdefault(address, Owed(pool.remember)).add((), everything=True)

    def _place(self, address: str) -> tuple[Pool, Shard]:
        for pool in self._fleet.topology.pools:
            for shard in pool.shards:
                if shard.node.address == address:
                    return pool, shard
        raise NodeRefuses("it has left the topology")

    def _line(self, address: str) -> Line:
        pool, _ = self._place(address)
        way = self._way(address)
        kind = MetaLine if way.memcached else Line
        return kind(address, way, pool.health.timeout)

    # --- the return ---

    async def bring_back(self, address: str, fence: Callable[[], Awaitable[bool]]) -> bool:
        """Everything that comes before the node is up again; True: then `sweep` it. Raises NodeRefuses.

        Nothing waits between its last look at what the node has to delete and its end.
        """
        pool, shard = self._place(address)
        started = time.monotonic()
        deleted: set[bytes] = set()  # over this very connection: to this life of the node
        async with self._line(address) as line:
            await self._collect(pool, address)
            await self._kill_ghosts(line, address)
            await self._make_up(line, pool, address)
            flush = self._flushes(pool, address)
            unused = flush and await self._unused(line, pool, address)
            unknown = any(guest.everything for guest in self._guests(pool, address))
            if not unused:
                await self._delete(line, pool, address, deleted)
                if unknown:
                    await self._look_through(line, address)
            fenced = time.monotonic()
            if not await fence():
                raise NodeRefuses("not every worker acknowledged that it leaves the node alone")
            if removes(self._place(address)[0]) != removes(pool):
                raise NodeRefuses("the policy of its pool has just changed")
            await self._collect(pool, address)
            await self._kill_ghosts(line, address)
            await self._make_up(line, pool, address)
            if self._flushes(pool, address) and not flush:
                raise NodeRefuses("more keys were written meanwhile than are remembered")
            guests = self._guests(pool, address)
            if not unused and (
                any(each.everything for each in guests) > unknown or self._must_look_through(address)
            ):
                # it can stand in again, which it could not when it was looked through
                raise NodeRefuses("what it has of others' keys is not known any more, since a moment ago")
            if unused:
                async for _ in self._databases(line):
                    (size,) = await line.ask(("DBSIZE",))
                    await call(line, ("FLUSHDB", "ASYNC"))
                    self.invalidated[address] += size if isinstance(size, int) else 0
            if pool.removes:
                await self._tell_use(line)
            while self._to_delete(pool, address, deleted):
                await self._delete(line, pool, address, deleted)
        self._debts.pop(address, None)
        unswept = self._unswept.setdefault(address, Owed(pool.remember))
        unswept.merge(self._owed.pop(address, Owed(0)))
        if flush:
            unswept.add((), everything=True)
        for guest in self._guests(pool, address):
            unswept.merge(guest)
        self._log(
            "node_returns",
            node=address,
            deleted=len(deleted),
            flushed=unused,
            seconds=round(time.monotonic() - started, 3),
            fenced=round(time.monotonic() - fenced, 3),
        )
        return pool.removes and bool(unswept) and (pool.on_shard_down == "rehash" or shard.draining)

    async def _collect(self, pool: Pool, address: str) -> None:
        """From the workers: of this node, and of others that are out, whose keys it may have stood in for."""
        away = [shard.node.address for shard in pool.shards if pool.elsewhere(shard)]
        for each in {address, *away} if pool.on_return == "invalidate" else {address}:
            await self._take(pool, each)

    async def _take(self, pool: Pool, address: str) -> bool:
        """What the workers know of one; whether it owes replies to what was sent before the last change."""
        owed, unanswered = self._owed.setdefault(address, Owed(pool.remember)), False
        for taken in await self._fleet.take(address):
            owed.add(map(bytes, taken.keys), taken.overflow and pool.on_return == "invalidate")
            self._ghosts.setdefault(address, set()).update(taken.ghosts)
            self._missed.setdefault(address, set()).update(taken.missed)
            unanswered |= taken.unanswered
        return unanswered

    async def _settle(self, line: Line, pool: Pool, address: str) -> None:
        """Before keys are deleted on a node that is up: what was sent there for them has run, or never will.

        A request that was given up may be on its way still, on a connection that is slower than this one.
        """
        limit = time.monotonic() + pool.health.timeout
        while await self._take(pool, address):
            if time.monotonic() > limit:
                raise NodeRefuses("it has not answered what was sent before its keys moved")
            await asyncio.sleep(SETTLE_STEP)
        await self._kill_ghosts(line, address)

    def _guests(self, pool: Pool, address: str) -> list[Owed]:
        """What is owed to others whose keys are elsewhere now, which it may have, and not the newest."""
        if pool.on_shard_down != "rehash":
            return []
        return [
            self._owed[other]
            for shard in pool.shards
            if (other := shard.node.address) != address and pool.elsewhere(shard) and other in self._owed
        ]

    def _flushes(self, pool: Pool, address: str) -> bool:
        return pool.on_return == "flush" or (
            pool.on_return == "invalidate" and self._owed[address].everything
        )

    async def _kill_ghosts(self, line: Line, address: str) -> None:
        ghosts = sorted(self._ghosts.get(address, ()))
        if not ghosts:
            return
        if remain := await line.kill(ghosts):
            self._log("connections_remain", node=address, connections=remain)
        if address in self._ghosts:
            self._ghosts[address].difference_update(ghosts)

    async def bury(self, address: str, ghosts: Sequence[str]) -> None:
        """What is on its way from a worker that has died must not run over what others send from now on.

        Tries until it is done; a node that is out is told when it returns.
        """
        known = self._ghosts.setdefault(address, set())
        known.update(ghosts[-GHOSTS:] if len(known) < GHOSTS else ())
        wait = RETRY
        while self._ghosts.get(address) and address in self._fleet.topology.nodes:
            if self._fleet.topology.nodes[address].state == "out":
                return
            try:
                async with self._line(address) as line:
                    await self._kill_ghosts(line, address)
            except NodeRefuses as failure:
                self._log("not_buried", node=address, reason=str(failure))
                await asyncio.sleep(wait)
                wait = min(2 * wait, RETRY_MOST)

    async def make_up(self, address: str) -> None:
        """Of a node that is up: what it had missed was told too late for its return."""
        with contextlib.suppress(NodeRefuses):  # then it is made up for when it returns the next time
            pool, _ = self._place(address)
            async with self._line(address) as line:
                await self._make_up(line, pool, address)

    async def _make_up(self, line: Line, pool: Pool, address: str) -> None:
        """For what it missed: its code is made that of the others."""
        missed = self._missed.get(address, set())
        if isinstance(line, MetaLine):
            missed.clear()  # it has no code
        if "scripts" in missed:
            await call(line, ("SCRIPT", "FLUSH"))
            missed.discard("scripts")
        there = [each for each in pool.shards if each.name not in pool.memcached and not each.draining]
        others = [each.node.address for each in there if each.node.state == "up"]
        for other in others if "functions" in missed else ():
            with contextlib.suppress(NodeRefuses):
                if other == address:
                    continue
                async with self._line(other) as source:
                    dump = await call(source, ("FUNCTION", "DUMP"))
                if isinstance(dump, bytes):
                    await call(line, ("FUNCTION", "RESTORE", dump, "FLUSH"))
                missed.discard("functions")
                return

    def _to_delete(self, pool: Pool, address: str, deleted: Collection[bytes]) -> list[bytes]:
        """Keys that are known: its own, those it stood in for, its debts."""
        if not pool.removes:
            return []
        sources = [self._owed[address], *self._guests(pool, address)]
        if address in self._debts:
            sources.append(self._debts[address])
        return [key for source in sources for key in source.keys if key not in deleted]

    def _must_look_through(self, address: str) -> bool:
        debt = self._debts.get(address)
        return debt is not None and debt.everything

    async def _delete(self, line: Line, pool: Pool, address: str, deleted: set[bytes]) -> None:
        keys = self._to_delete(pool, address, deleted)
        await self._unlink(line, address, keys)
        deleted.update(keys)
        if self._must_look_through(address):
            await self._pay(line, pool, address)

    async def _pay(self, line: Line, pool: Pool, address: str) -> None:
        debt = self._debts.pop(address)
        try:
            if debt.everything:
                await self._look_through(line, address)
            else:
                await self._unlink(line, address, debt.keys)
        except BaseException:
            self._debts.setdefault(address, Owed(pool.remember)).merge(debt)
            raise

    # --- who else uses the node ---

    async def _unused(self, line: Line, pool: Pool, address: str) -> bool:
        """Whether its database may be emptied: no other proxy has used it since it was out for us."""
        try:
            now, before = await self._others(line)
            if any(when > now - USED * pool.health.interval for when in before.values()):
                # fresh, but maybe from before the node was lost for them as well
                await asyncio.sleep(USED * pool.health.interval)
                _, after = await self._others(line)
                if any(when > before.get(who, 0.0) for who, when in after.items()):
                    raise ValueError("other proxies have been using it meanwhile")
        except ValueError as error:
            self._log("flush_refused", node=address, reason=str(error))
            return False
        return True

    async def _others(self, line: Line) -> tuple[float, dict[bytes, float]]:
        """The node's time, and when others have used it. Raises ValueError."""
        now, beats = await line.ask(("TIME",), ("ZRANGE", HEARTBEATS, 0, -1, "WITHSCORES"))
        if not isinstance(now, list) or not isinstance(beats, list):
            raise ValueError("it does not tell who else uses it")
        found = {who: float(when) for who, when in zip(beats[::2], beats[1::2], strict=True)}
        found.pop(self._run_id, None)
        return float(now[0]), found

    async def beat(self, address: str) -> None:
        """Says on the node that we use it."""
        with contextlib.suppress(NodeRefuses):
            async with self._line(address) as line:
                await self._tell_use(line)

    async def _tell_use(self, line: Line) -> None:
        (now,) = await line.ask(("TIME",))
        if isinstance(now, list):
            when = int(now[0])
            # errors are its own: with a key of another type there, nobody empties it
            await line.ask(
                ("ZADD", HEARTBEATS, when, self._run_id),
                ("ZREMRANGEBYSCORE", HEARTBEATS, "-inf", when - KEPT),
                ("EXPIRE", HEARTBEATS, KEPT),
            )

    # --- afterwards ---

    async def sweep(self, address: str) -> None:
        """Deletes what stand-ins keep of its keys; tries until it is done. What is out itself gets a debt."""
        pool, home = self._place(address)
        waiting = [shard.name for shard in pool.shards if shard.name != home.name]
        started, wait = time.monotonic(), RETRY
        while True:
            failed, reason = [], ""
            for name in waiting:
                try:
                    await self._sweep_one(address, name)
                except NodeRefuses as failure:
                    failed.append(name)
                    reason = str(failure)
            if not failed:
                break
            self._log("not_swept", node=address, shards=failed, reason=reason)
            await asyncio.sleep(wait)
            waiting, wait = failed, min(2 * wait, RETRY_MOST)
        self._unswept.pop(address, None)
        self._log("swept", node=address, seconds=round(time.monotonic() - started, 3))

    async def tidy(self, address: str) -> None:
        """Pays its debts, and tries until it is done; what is out or drains pays before it comes back."""
        wait = RETRY
        while address in self._debts and address in self._fleet.topology.nodes:
            pool, shard = self._place(address)
            if shard.node.state == "out" or shard.draining:
                return
            try:
                async with self._line(address) as line:
                    await self._settle(line, pool, address)
                    await self._pay(line, pool, address)
            except NodeRefuses as failure:
                self._log("not_tidied", node=address, reason=str(failure))
                await asyncio.sleep(wait)
                wait = min(2 * wait, RETRY_MOST)

    async def _sweep_one(self, address: str, name: str) -> None:
        pool, home = self._place(address)
        shard = next((shard for shard in pool.shards if shard.name == name), None)
        owed = self._unswept.get(address)
        if shard is None or owed is None or shard.protocol != home.protocol or not pool.removes:
            return
        where = shard.node.address
        if shard.node.state == "out":
            self._debts.setdefault(where, Owed(pool.remember)).merge(owed)
            return
        async with self._line(where) as line:
            await self._settle(line, pool, where)
            if owed.everything:
                await self._look_through(line, where, home.name)
            else:
                keys = [key for key in owed.keys if misplaced(pool, shard, key, home.name)]
                await self._unlink(line, where, keys)

    async def _look_through(self, line: Line, address: str, sweeping: str = "") -> None:
        """Deletes every key of a node that is not its to serve; sweeping: see misplaced."""
        async for _ in self._databases(line):
            cursor = b""
            while cursor != b"0":
                found = await call(line, ("SCAN", cursor or b"0", "COUNT", BATCH))
                assert isinstance(found, list)
                cursor, keys = found
                pool, shard = self._place(address)
                if pool.removes:  # else since a moment ago it does not
                    old = [key for key in keys if misplaced(pool, shard, key, sweeping)]
                    self.invalidated[address] += await unlink(line, old)

    async def _unlink(self, line: Line, address: str, keys: Collection[bytes]) -> None:
        """In every database: nobody remembers which one a key was written in."""
        if keys:
            async for _ in self._databases(line):
                self.invalidated[address] += await unlink(line, keys)

    async def _databases(self, line: Line) -> AsyncIterator[int]:
        """One after the other, each selected; then the first again."""
        used = {0} if isinstance(line, MetaLine) else await self._fleet.databases() | self._used
        for number in sorted(used):
            if used == {0} or await _selects(line, number):
                yield number
        if used != {0}:
            await call(line, ("SELECT", 0))


async def _selects(line: Line, number: int) -> bool:
    """False: it has no such database."""
    return bool((await line.ask(("SELECT", number)))[0] == b"OK")


async def call(line: Line, request: Sequence[str | bytes | int]) -> object:
    """One reply; an error is NodeRefuses too."""
    (reply,) = await line.ask(request)
    if isinstance(reply, hiredis.ReplyError):
        # only the code: the rest may quote a key
        raise NodeRefuses(f"it answers {request[0]!s} with {str(reply).split(' ')[0]}")
    return reply


async def unlink(line: Line, keys: Iterable[bytes]) -> int:
    """How many there were."""
    rest, deleted = iter(keys), 0
    while batch := list(islice(rest, BATCH)):
        answer = await call(line, ("UNLINK", *batch))
        deleted += answer if isinstance(answer, int) else 0
    return deleted
