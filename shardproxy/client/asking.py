"""How the sync client asks its shards: one, several at once, all; and what it does when one fails.

    args ──▶ Router.plan ─┬─ one shard ─▶ ask: again while nothing has run, or it only reads
                          ├─ Split ─────▶ exchange: written to each shard, then read from each; merged
                          └─ a program ─▶ exchange, as often as it wants something (steps, across)

Replies are as the reader gives them; errors of nodes are returned, failures of shards raised. Rules: what may
have changed something and was not answered is never sent again (UnknownOutcomeError).
"""

import functools
import time
from collections.abc import Sequence
from typing import Any

from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shardproxy.client import errors, steps
from shardproxy.client.base import AGAIN, SERVES, BaseAsker, Batch, Layout
from shardproxy.client.connection import Connection, Shard
from shardproxy.client.merging import of_parts
from shardproxy.client.routing import FOREVER, Plan, Split
from shardproxy.client.steps import Program, Step
from shardproxy.core.commands import learn
from shardproxy.core.topology import Shard as ShardRecord

LOOKS = 3  # trials that a request makes or waits for, at most
HELD_FOR = 0.005  # seconds between looks at a trial that another thread makes
ASKED_EVERY = 0.05  # seconds between trials while proxies are waited for
AT_ONCE = 1e-3  # seconds for what should be there
LATE = (TimeoutError, BlockingIOError, RedisTimeoutError)


class Asker(BaseAsker):
    """Everything that a client shares between its threads."""

    follower: Any = None  # a Follower
    prober: Any = None  # a Prober, if one is asked for

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

    def _gone(self, shard: Shard) -> None:
        shard.close()

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
            layout, plan = self.planned(args)
            if plan.split is not None:
                return self.split(layout, plan, plan.split, decode)
            if plan.everywhere is not None or plan.across:
                return self.run(layout, self.program(layout, plan, args, decode))
            if layout.troubled:
                looks += 1
                instead = self.in_trouble(layout, plan, looks <= LOOKS)
                if instead is AGAIN:
                    continue
                if instead is not SERVES:
                    return instead
            batch = self.batch(layout, plan, args, decode)
            self.exchange([batch])
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

    def planned(self, args: Sequence[Any]) -> tuple[Layout, Plan]:
        """As `plan`; what is unknown is looked for on the nodes, once."""
        try:
            return self.plan(args)
        except ResponseError as error:
            if not str(error).startswith("unknown ") or not self.learn():
                raise
        return self.plan(args)

    def may_retry(self, tries: int, elapsed: float) -> bool:
        """Whether something that has not run, or only reads, is sent once more; waits before, if asked to."""
        if not self.allows(tries, elapsed):
            return False
        self.look(doubt=True)
        if self._backoff is not None and (wait := self._backoff.compute(tries)) > 0:
            time.sleep(wait)
        return True

    def _with_script(self, batch: Batch, plan: Plan) -> Any:
        """A script that its node has lost is loaded again; nothing of it has run."""
        again = self.taught(batch, plan)
        if again is None:
            return batch.replies[0]
        self.exchange([again])
        if again.error is not None:
            raise again.error
        return again.replies[1]

    # --- several shards ---

    def exchange(self, batches: Sequence[Batch]) -> None:
        """Writes each batch to its shard, then reads their replies: in parallel, without threads.

        Nothing is raised for what fails: it is the batch's error.
        """
        late = False
        try:
            for batch in batches:
                self._write(batch)
            for batch in batches:
                if batch.connection is not None:
                    late = self._read(batch, late) or late
        except BaseException:  # interrupted: nobody may read what is still to come
            for batch in batches:
                if batch.connection is not None:
                    batch.connection.close()
            raise

    def exchange_on(self, batch: Batch, connection: Connection) -> None:
        """The same on a connection that the caller holds, and goes on holding; closed if it fails."""
        batch.connection = connection
        try:
            if batch.limit is not None:
                connection.wait_for(batch.limit)
            batch.sent = batch.count > 1
            connection.send(batch.data)
            batch.sent = True
            if batch.decode:
                connection.read_many(batch.count, batch.replies)
            else:
                batch.replies.append(connection.read(False))
            connection.wait_for(batch.shard.timeout)
        except (OSError, RedisError) as error:
            self._lost(batch, error)
        except BaseException:
            connection.close()
            raise

    def _write(self, batch: Batch) -> None:
        shard = batch.shard
        try:
            connection = shard.take()
        except AuthenticationError as error:
            batch.error = error
            return
        except (RedisError, OSError) as error:
            self._failed(shard, error, connecting=True)
            batch.error = (
                errors.not_asked(shard.name, shard.address, self.nodes.pool.connect_timeout)
                if isinstance(error, LATE)
                else errors.down(shard.name, shard.address, _reason(error))
            )
            return
        batch.connection = connection
        try:
            if batch.limit is not None:
                connection.wait_for(None if batch.limit == FOREVER else batch.limit)
            # A command of which the end is missing does not run; of several, those before it may have
            batch.sent = batch.count > 1
            connection.send(batch.data)
            batch.sent = True
        except OSError as error:
            self._lost(batch, error)

    def _read(self, batch: Batch, late: bool) -> bool:
        """late: another shard's time is over, and this one has had as much. Whether it was late, too."""
        connection, shard = batch.connection, batch.shard
        started = time.monotonic()
        try:
            if late:
                connection.wait_for(AT_ONCE)
            if batch.decode:
                connection.read_many(batch.count, batch.replies)
            else:
                batch.replies.append(connection.read(False))
            connection.wait_for(shard.timeout)
        except (OSError, RedisError) as error:
            self._lost(batch, error)
            return isinstance(error, LATE)
        batch.connection = None
        shard.give(connection)
        shard.answered += 1
        if time.monotonic() - started > self.slow_call and batch.count == 1 and batch.limit is None:
            self.slow(shard)
        return False

    def _lost(self, batch: Batch, error: Exception) -> None:
        connection, batch.connection = batch.connection, None
        assert connection is not None
        connection.close()
        shard = batch.shard
        if isinstance(error, LATE):
            limit = batch.limit or shard.timeout or 0
            batch.error = errors.timed_out(shard.name, shard.address, limit, batch.writes)
        else:
            shard.drop_idle()
            batch.error = errors.lost(shard.name, shard.address, _reason(error), batch.writes)
            if connection.used and isinstance(error, ConnectionError):
                return  # it was closed while nobody used it; the next connection will tell how the node is
        self._failed(shard, error)

    def slow(self, shard: Shard) -> None:
        """Evidence, too: it took longer than `slow_call`."""
        answered = shard.answered
        ok, shard.judged = answered - shard.judged, answered
        self.nodes.slow(shard.address, time.monotonic(), min(ok, 20))

    def _failed(self, shard: Shard, error: Exception, connecting: bool = False) -> None:
        """Evidence against a node."""
        answered = shard.answered
        ok, shard.judged = answered - shard.judged, answered
        late = isinstance(error, LATE)
        refused = connecting and isinstance(error, RedisConnectionError) and not late
        reason = f"no answer within {shard.timeout or 0:g} s" if late else _reason(error)
        self.nodes.failed(shard.address, time.monotonic(), reason, refused, min(ok, 20))

    def split(self, layout: Layout, plan: Plan, split: Split, decode: bool) -> Any:
        """Each shard's part, merged. Raises PartialError."""
        if layout.troubled:
            replies = [self._caught(part, decode) for part in split.parts]
        else:
            batches = self.batches(layout, plan, decode)
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

    # --- several times ---

    def run(self, layout: Layout, program: Program) -> Any:
        """What it comes to. Raises what it raises."""
        answers: Any = None
        while True:
            try:
                asked = program.send(answers)
            except StopIteration as done:
                return done.value
            answers = self._answers(layout, asked)

    def _answers(self, layout: Layout, asked: Sequence[Step]) -> list[Any]:
        if any(step.at < 0 for step in asked) and layout.troubled:
            return [self._caught(step.args, step.decode) for step in asked]
        batches = [self.batch_of(layout, step) for step in asked]
        self.exchange(batches)
        return [batch.error or batch.replies[0] for batch in batches]

    def all(self, args: Sequence[Any]) -> dict[str, Any]:
        """What each shard whose keys are with it answers; what fails is there as the exception."""
        self.look()
        layout = self.layout
        found: dict[str, Any] = self.run(layout, steps.of_each(layout.router, args))
        return found

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
            late = isinstance(error, LATE)
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
