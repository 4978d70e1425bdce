"""How the sync client asks its shards: one, several at once, all; and what it does when one fails.

    args ──▶ Router.plan ─┬─ one shard ─▶ ask: again while nothing has run, or it only reads
                          ├─ Split ─────▶ exchange: written to each shard, then read from each; merged
                          └─ Everywhere ▶ exchange, or any one of them

Replies are as the reader gives them; errors of nodes are returned, failures of shards raised. Rules: what may
have changed something and was not answered is never sent again (UnknownOutcomeError). A `Layout` is one
snapshot: router and shards, swapped together; who works with an old one finds its connections closed.
"""

import functools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis.utils
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shardproxy.client import errors
from shardproxy.client.connection import Connection, Shard
from shardproxy.client.errors import PartialError
from shardproxy.client.everywhere import Everywhere
from shardproxy.client.health import Nodes, Transition
from shardproxy.client.merging import Scans, of_all, of_parts
from shardproxy.client.routing import FOREVER, Plan, Router, Split
from shardproxy.client.settings import Settings
from shardproxy.core.commands import CommandTable, builtin, learn
from shardproxy.core.errors import NO_SHARDS
from shardproxy.core.topology import Pool, Topology
from shardproxy.core.topology import Shard as ShardRecord

TOKENS = 10.0  # retries that are free of the budget, at the beginning and after a quiet time
LOOKS = 3  # trials that a request makes or waits for, at most
HELD_FOR = 0.005  # seconds between looks at a trial that another thread makes
ASKED_EVERY = 0.05  # seconds between trials while proxies are waited for
RANDOM_TRIES = 16
SCRIPTS_MOST = 1024  # texts that are kept
DEFAULT_PROTOCOL = getattr(redis.utils, "DEFAULT_RESP_VERSION", 2)  # redis-py's, when nothing is said
SERVES, AGAIN = object(), object()  # see in_trouble


class Layout:
    """One snapshot's router, and its shards by their numbers."""

    __slots__ = ("commands", "router", "shards", "troubled")

    def __init__(self, router: Router, shards: list[Shard]) -> None:
        self.router, self.shards = router, shards
        self.commands = router.commands
        # Not every shard is simply asked: look before each request
        self.troubled = any(router.pool.mode(each) != "serve" for each in router.pool.shards)


class Batch:
    """Requests to one shard that are written together. replies: those that came, in order."""

    __slots__ = ("connection", "count", "data", "decode", "error", "replies", "sent", "shard", "writes")

    def __init__(self, shard: Shard, data: bytes, count: int, writes: bool, decode: bool = True) -> None:
        self.shard, self.data, self.count, self.writes, self.decode = shard, data, count, writes, decode
        self.connection: Connection | None = None
        self.replies: list[Any] = []
        self.error: Exception | None = None  # why there are no more replies
        self.sent = False  # something of it may have reached the node

    @property
    def again(self) -> bool:
        """It failed, and may be sent once more."""
        return self.error is not None and not (self.sent and self.writes)


class Asker:
    """Everything that a client shares between its threads."""

    def __init__(
        self,
        settings: Settings,
        on_transition: Callable[[Transition], None] | None = None,
        table: CommandTable | None = None,
    ) -> None:
        self.settings, self.coding = settings, settings.coding
        self.pack = self.coding.packer()
        self.table = table or _table()
        self.proto = 3 if str(settings.common.get("protocol") or DEFAULT_PROTOCOL) == "3" else 2
        self.scripts: dict[str, Any] = {}  # texts by SHA1: what a restarted node has to be taught again
        self._learned = False
        self._tokens, self._counted = TOKENS, 0
        self.scans = Scans()
        self._shards: dict[tuple[str, str], Shard] = {}
        retry = settings.common.get("retry")
        self._backoff = getattr(retry, "_backoff", None)
        self._retries = retry.get_retries() if retry is not None else None
        self.follower: Any = None  # a Follower, or the asyncio client's
        self.prober: Any = None  # a Prober, or the asyncio client's, if one is asked for
        self.layout: Layout
        self.nodes = Nodes(settings.pool, time.monotonic(), self._changed, on_transition)
        self._changed(settings.pool)

    # --- snapshots ---

    def _changed(self, pool: Pool) -> None:
        """Another snapshot: shards that stay keep their connections."""
        shards: dict[tuple[str, str], Shard] = {}
        for each in pool.shards:
            key = (each.name, each.node.address)
            known = self._shards.get(key)
            shards[key] = known or self._shard(each)
        gone = [shard for key, shard in self._shards.items() if key not in shards]
        self._shards = shards
        self.layout = Layout(Router(pool, self.table, self.coding), list(shards.values()))
        for shard in gone:
            shard.close()

    def _shard(self, shard: ShardRecord) -> Shard:
        memcached = None
        if shard.protocol == "memcached":
            from shardproxy.client.memcached import connect

            memcached = functools.partial(connect, table=self.table)
        made = Shard(shard.name, shard.node.address, self.reach(shard), self.coding, memcached)
        made.connecting = self.prober and self.prober.start
        return made

    def probe(self) -> None:
        """Nodes are probed from now on, whenever the client is in use."""
        from shardproxy.client.probing import Prober

        self.prober = Prober(self)
        for shard in self.layout.shards:
            shard.connecting = self.prober.start

    def apply(self, topology: Topology, followed: bool = False) -> None:
        self.nodes.apply(topology, self.settings.pool_name, time.monotonic(), followed)

    def reach(self, shard: ShardRecord) -> dict[str, Any]:
        """How its node is reached, as redis-py's settings."""
        found = self.settings.reach(shard.name, shard.node.address)
        return found | {"ssl": True} if shard.tls else found

    def follow(self, topology: Topology) -> None:
        """A snapshot that a proxy has told."""
        name = topology.pools[0].name
        self.settings = self.settings._replace(topology=topology, pool_name=name)
        self.apply(topology, followed=True)

    def look(self, doubt: bool = False) -> None:
        """Asks a proxy that is followed, if it is time. Raises ConnectionError until one has answered."""
        if self.follower is not None and (doubt or time.monotonic() >= self.follower.next):
            self.follower.look(doubt)

    def learn(self) -> bool:
        """Extends the command table by what the nodes know, once; whether that changed anything."""
        if self._learned:
            return False
        self._learned = True
        layout = self.layout
        batches = [Batch(shard, self.pack(("COMMAND",)), 1, False) for shard in layout.shards]
        self.exchange(batches)
        replies = [batch.replies[0] for batch in batches if batch.error is None]
        table = learn(self.table, [reply for reply in replies if isinstance(reply, list)])
        if table is self.table:
            return False
        self.table = table
        self._changed(self.nodes.pool)
        return True

    def close(self) -> None:
        if self.prober is not None:
            self.prober.stop()
        for shard in self._shards.values():
            shard.close()
        if self.follower is not None:
            self.follower.close()

    # --- one call ---

    def ask(self, args: Sequence[Any], decode: bool = True, tries: int = 0) -> Any:
        """The reply, an error of a node as an exception that is returned. Raises ShardError, PartialError."""
        started, looks = 0.0, 0
        self.look()
        while True:
            layout = self.layout
            plan = self.plan(args)
            if plan.split is not None:
                return self.split(layout, plan, plan.split, decode)
            if plan.everywhere is not None:
                return self.everywhere(layout, plan.everywhere, plan, args, decode)
            shard = layout.shards[plan.shard]
            if layout.troubled:
                looks += 1
                instead = self.in_trouble(layout, plan, looks <= LOOKS)
                if instead is AGAIN:
                    continue
                if instead is not SERVES:
                    return instead
            batch = Batch(shard, self.pack(args), 1, not plan.command.reads, decode)
            self.exchange([batch], plan.waits)
            if batch.error is None:
                return self._with_script(batch, plan)
            if not batch.again:
                raise batch.error
            now = time.monotonic()
            started, tries = started or now, tries + 1
            if not self.may_retry(tries, now - started):
                raise batch.error

    def recover(
        self, args: Sequence[Any], decode: bool, batch: Batch, connection: Connection, error: Exception
    ) -> Any:
        """As `ask`, after a first try of the caller's has failed."""
        batch.connection = connection
        self._lost(batch, error)
        if not batch.again or not self.may_retry(1, 0):
            assert batch.error is not None
            raise batch.error
        return self.ask(args, decode, 1)

    def plan(self, args: Sequence[Any]) -> Plan:
        """Raises redis-py's exception for what is refused."""
        try:
            return self.layout.router.plan(args)
        except ResponseError as error:
            if not str(error).startswith("unknown ") or not self.learn():
                raise
        return self.layout.router.plan(args)

    def may_retry(self, tries: int, elapsed: float) -> bool:
        """Whether something that has not run, or only reads, is sent once more; waits before, if asked to."""
        pool = self.nodes.pool
        retries = self._retries if self._retries is not None else pool.retries
        if (retries >= 0 and tries > retries) or elapsed > pool.timeout:
            return False
        self.look(doubt=True)
        answered = sum(shard.answered for shard in self.layout.shards)
        earned = max(answered - self._counted, 0) * pool.retry_budget
        self._counted, self._tokens = answered, min(self._tokens + earned, 10 * TOKENS)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        if self._backoff is not None and (wait := self._backoff.compute(tries)) > 0:
            time.sleep(wait)
        return True

    def _with_script(self, batch: Batch, plan: Plan) -> Any:
        """A script that its node has lost is loaded again; nothing of it has run."""
        reply = batch.replies[0]
        if plan.command.row.calls != "sha" or not isinstance(reply, Exception):
            return reply
        text = (
            self.script(plan.items[1]) if plan.items and str(reply).startswith("No matching script") else None
        )
        if text is None or plan.items is None:
            return reply
        data = self.pack(("SCRIPT LOAD", text)) + self.pack(plan.items)
        again = Batch(batch.shard, data, 2, True, batch.decode)
        self.exchange([again])
        if again.error is not None:
            raise again.error
        return again.replies[1]

    def script(self, sha: bytes) -> Any:
        """The text of a script, if it was registered or loaded by this client."""
        return self.scripts.get(sha.decode("latin-1").lower())

    def remember(self, sha: str, text: Any) -> None:
        while len(self.scripts) >= SCRIPTS_MOST:
            del self.scripts[next(iter(self.scripts))]
        self.scripts[sha] = text

    # --- several shards ---

    def exchange(self, batches: Sequence[Batch], waits: float | None = None) -> None:
        """Writes each batch to its shard, then reads their replies: in parallel, without threads.

        Nothing is raised for what fails: it is the batch's error. waits: see Plan.
        """
        try:
            for batch in batches:
                self._write(batch, waits)
            for batch in batches:
                if batch.connection is not None:
                    self._read(batch)
        except BaseException:  # interrupted: nobody may read what is still to come
            for batch in batches:
                if batch.connection is not None:
                    batch.connection.close()
            raise

    def exchange_on(self, batch: Batch, connection: Connection) -> None:
        """The same on a connection that the caller holds, and goes on holding; closed if it fails."""
        batch.connection = connection
        try:
            batch.sent = batch.count > 1
            connection.send(batch.data)
            batch.sent = True
            if batch.decode:
                connection.read_many(batch.count, batch.replies)
            else:
                batch.replies.append(connection.read(False))
        except (OSError, RedisError) as error:
            self._lost(batch, error)
        except BaseException:
            connection.close()
            raise

    def _write(self, batch: Batch, waits: float | None) -> None:
        shard = batch.shard
        try:
            connection = shard.take_fresh() if batch.writes else shard.take()
        except AuthenticationError as error:
            batch.error = error
            return
        except (RedisError, OSError) as error:
            self._failed(shard, error, connecting=True)
            batch.error = (
                errors.not_asked(shard.name, shard.address, self.nodes.pool.connect_timeout)
                if isinstance(error, (TimeoutError, RedisTimeoutError))
                else errors.down(shard.name, shard.address, _reason(error))
            )
            return
        batch.connection = connection
        try:
            if waits is not None:
                connection.wait_for(
                    None if waits == FOREVER or shard.timeout is None else waits + shard.timeout
                )
            # A command of which the end is missing does not run; of several, those before it may have
            batch.sent = batch.count > 1
            connection.send(batch.data)
            batch.sent = True
        except OSError as error:
            self._lost(batch, error)

    def _read(self, batch: Batch) -> None:
        connection, shard = batch.connection, batch.shard
        assert connection is not None
        try:
            if batch.decode:
                connection.read_many(batch.count, batch.replies)
            else:
                batch.replies.append(connection.read(False))
            connection.wait_for(shard.timeout)
        except (OSError, RedisError) as error:
            self._lost(batch, error)
            return
        batch.connection = None
        shard.give(connection)
        shard.answered += 1

    def _lost(self, batch: Batch, error: Exception) -> None:
        connection, batch.connection = batch.connection, None
        assert connection is not None
        connection.close()
        shard = batch.shard
        if isinstance(error, (TimeoutError, BlockingIOError)):
            batch.error = errors.timed_out(shard.name, shard.address, shard.timeout or 0, batch.writes)
        else:
            shard.drop_idle()
            batch.error = errors.lost(shard.name, shard.address, _reason(error), batch.writes)
            if connection.used and isinstance(error, ConnectionError):
                return  # it was closed while nobody used it; the next connection will tell how the node is
        self._failed(shard, error)

    def _failed(self, shard: Shard, error: Exception, connecting: bool = False) -> None:
        """Evidence against a node."""
        answered = shard.answered
        ok, shard.judged = answered - shard.judged, answered
        late = isinstance(error, (TimeoutError, BlockingIOError, RedisTimeoutError))
        refused = connecting and isinstance(error, RedisConnectionError) and not late
        reason = f"no answer within {shard.timeout or 0:g} s" if late else _reason(error)
        self.nodes.failed(shard.address, time.monotonic(), reason, refused, min(ok, 20))

    def split(self, layout: Layout, plan: Plan, split: Split, decode: bool) -> Any:
        """Each shard's part, merged. Raises PartialError."""
        if layout.troubled:
            replies = [self._caught(part, decode) for part in split.parts]
        else:
            writes = not plan.command.reads
            pack = self.pack
            batches = [
                Batch(layout.shards[number], pack(part), 1, writes, decode)
                for number, part in zip(split.shards, split.parts, strict=True)
            ]
            self.exchange(batches)
            replies = [
                batch.replies[0]
                if batch.error is None
                else self._caught(part, decode)
                if batch.again and self.may_retry(1, 0)
                else batch.error
                for batch, part in zip(batches, split.parts, strict=True)
            ]
        return of_parts(split, replies, self.nodes.pool.partial)

    def _caught(self, args: Sequence[Any], decode: bool) -> Any:
        """As `ask`, with what it raises as the reply."""
        try:
            return self.ask(args, decode)
        except RedisError as error:
            return error

    # --- no key ---

    def everywhere(
        self, layout: Layout, what: Everywhere, plan: Plan, args: Sequence[Any], decode: bool
    ) -> Any:
        if what.who == "any":
            return self._any(layout, self.pack(args), decode)
        if what.who == "scan":
            return self._scan(layout, args, plan.items or [])
        if what.who == "random":
            return self._random(layout, decode)
        found = of_all(what, self.all(args, decode, what.writes), self.nodes.pool.partial)
        if plan.command.name == "script|flush":
            self.scripts.clear()
        elif plan.command.name == "script|exists" and isinstance(found, list):
            # 1 when an EVALSHA would find it: it is loaded where it is called
            shas = (plan.items or [])[2:]
            return [
                int(there or self.script(sha) is not None) for there, sha in zip(found, shas, strict=True)
            ]
        return found

    def all(self, args: Sequence[Any], decode: bool = True, writes: bool = True) -> dict[str, Any]:
        """What each shard whose keys are with it answers; what fails is there as the exception."""
        self.look()
        layout, data = self.layout, self.pack(args)
        asked = [shard for at, shard in enumerate(layout.shards) if at not in layout.router.absent]
        if any(shard.memcached for shard in asked) and not all(shard.memcached for shard in asked):
            from shardproxy.core.memcached import PROGRAMS

            name = layout.router.command(args[0]).name  # what memcached cannot do, the others do
            asked = [shard for shard in asked if shard.memcached is None or name in PROGRAMS]
        batches = [Batch(shard, data, 1, writes, decode) for shard in asked]
        self.exchange(batches)
        return {batch.shard.name: batch.error or batch.replies[0] for batch in batches}

    def _any(self, layout: Layout, data: bytes, decode: bool) -> Any:
        error: Exception = errors.refusal(NO_SHARDS)
        pool = layout.router.pool
        ready = [at for at, each in enumerate(pool.shards) if pool.mode(each) == "serve"]
        for at in ready or range(len(layout.shards)):
            batch = Batch(layout.shards[at], data, 1, False, decode)
            self.exchange([batch])
            if batch.error is None:
                return batch.replies[0]
            error = batch.error
        raise error

    def _placed(self, layout: Layout) -> dict[str, Shard]:
        return {shard.name: shard for at, shard in enumerate(layout.shards) if at not in layout.router.absent}

    def _scan(self, layout: Layout, args: Sequence[Any], items: list[bytes]) -> Any:
        """SCAN cursor ...: one shard a call, the cursor says which comes next; as the proxy's."""
        shards = self._placed(layout)
        try:
            step = self.scans.step(items[1], shards)
        except ResponseError as error:
            return error
        if step is None:
            return [b"0", []]
        batch = Batch(shards[step.shard], self.pack((args[0], step.cursor, *args[2:])), 1, False)
        self.exchange([batch])
        if batch.error is not None and self.nodes.pool.partial == "error":
            raise batch.error
        return self.scans.reply(step, None if batch.error else batch.replies[0], shards)

    def _random(self, layout: Layout, decode: bool) -> Any:
        """RANDOMKEY, of a shard in proportion to its keys."""
        shards = self._placed(layout)
        sizes = {name: size for name, size in self.all(("DBSIZE",), writes=False).items() if name in shards}
        failed = {name: size for name, size in sizes.items() if isinstance(size, Exception)}
        if failed:
            raise PartialError({}, failed)
        for _ in range(RANDOM_TRIES):
            if not any(sizes.values()):
                break
            name = random.choices(list(sizes), list(sizes.values()))[0]
            batch = Batch(shards[name], self.pack(("RANDOMKEY",)), 1, False, decode)
            self.exchange([batch])
            if batch.error is not None:
                raise batch.error
            if batch.replies[0] is not None:
                return batch.replies[0]
            sizes[name] = 0
        return None

    # --- while not all is well ---

    def in_trouble(self, layout: Layout, plan: Plan, patient: bool) -> Any:
        """SERVES: its shard does; AGAIN: look again; else the reply instead. Raises ShardError.

        patient: it may wait for what a trial finds, or make one.
        """
        if patient and self.try_due():
            return AGAIN
        pool = layout.router.pool
        shard = pool.shards[plan.shard]
        mode = pool.mode(shard)
        if mode == "serve":
            return SERVES
        if patient and self.follower is not None and self.follower.look(doubt=True):
            return AGAIN
        if mode == "move":
            raise errors.refusal(errors.NO_PLACE)
        if mode == "hold" and patient:
            address, limit = shard.node.address, time.monotonic() + pool.timeout
            while pool is self.nodes.pool and time.monotonic() < limit:
                if self.nodes.claim_node(address):
                    self.trial(address)
                    if self.follower is None:
                        return AGAIN
                if self.follower is not None:  # who says what is out, and where its keys are then
                    self.follower.look(doubt=True)
                    time.sleep(ASKED_EVERY)
                time.sleep(HELD_FOR)
            if pool is not self.nodes.pool:
                return AGAIN
        return self._missing(shard, mode, plan)

    def _missing(self, shard: ShardRecord, mode: str, plan: Plan) -> Any:
        """What is answered for a shard that is down. Raises ShardError."""
        if mode == "miss" and plan.command.reads:
            from shardproxy.core import misses  # seldom needed, and slow to import

            frame = misses.reply(plan.command.name, plan.items or [], self.proto)
            if frame is not None:
                reader = self.coding.reader()
                reader.feed(frame)
                return reader.gets()
        raise errors.down(shard.name, shard.node.address, shard.node.reason or shard.node.state)

    def try_due(self) -> bool:
        """Makes a trial that is due; whether there was one."""
        now = time.monotonic()
        if now < self.nodes.trial_at or (address := self.nodes.claim(now)) is None:
            return False
        self.trial(address)
        return True

    def trial(self, address: str) -> None:
        """PINGs on a new connection, for a node that was claimed."""
        shard = next((each for each in self.layout.shards if each.address == address), None)
        reason, refused = "it is no shard's any more", False
        connection: Connection | None = None
        try:
            if shard is not None:
                connection = shard.connect()
                for _ in range(self.nodes.trials(address)):
                    connection.send(b"*1\r\n$4\r\nPING\r\n")
                    reply = connection.read()
                    if isinstance(reply, Exception):
                        raise reply
                if shard.idle:
                    connection.close()  # or a client that probes would gather them
                else:
                    shard.give(connection)
                reason = ""
        except (OSError, RedisError) as error:
            reason = _reason(error)
            late = isinstance(error, (TimeoutError, BlockingIOError, RedisTimeoutError))
            refused = connection is None and isinstance(error, RedisConnectionError) and not late
            reason = "a trial was not answered in time" if late else reason
        finally:
            if reason and connection is not None:
                connection.close()
            self.nodes.tried(address, time.monotonic(), not reason, reason, refused)


def _reason(error: Exception) -> str:
    """Why, in a few words: the system's own, without redis-py's address in it."""
    cause = error.__context__ if isinstance(error, RedisConnectionError) else error
    if isinstance(cause, OSError):
        return cause.strerror or str(cause) or type(cause).__name__
    return str(error)[:200] or type(error).__name__


_builtin: CommandTable | None = None


def _table() -> CommandTable:
    """The built-in table, made once a process."""
    global _builtin
    if _builtin is None:
        _builtin = builtin()
    return _builtin
