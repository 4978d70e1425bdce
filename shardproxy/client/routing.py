"""Where a command goes: the core's command table and ring, asked once a name and once a key. Pure.

    router = Router(pool, table, Coding())
    command = router.command("GET")             # cached by name, as it is written
    router.place(command, ("GET", "user:1"))    # a shard's number, the fast path
    router.plan(("MGET", "a", "b"))             # Plan: one shard, Split, Everywhere; redis-py's exception

A Router is made for one snapshot of a pool and never changes: while a shard's keys are with stand-ins there
is another. It refuses with the proxy's own words, and knows nothing of connections.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from shardproxy.client import errors, everywhere
from shardproxy.client.everywhere import Everywhere
from shardproxy.client.wire import Coding
from shardproxy.core.command_rows import Row
from shardproxy.core.commands import CommandTable
from shardproxy.core.errors import not_supported, unknown_subcommand, wrong_arity
from shardproxy.core.shares import share, spread
from shardproxy.core.topology import Pool

Args: TypeAlias = Sequence[Any]
Way = Literal["key", "keys", "split", "channel", "everywhere", "container", "refused"]
MALFORMED, PATTERN, WOULD_BLOCK = -1, -2, -3  # of CommandTable.check
ACROSS = -2  # in place of a shard's number: its keys are on several, and the pool says "emulate"
NAMES_MOST = 4096  # spellings of commands' names that are remembered
FOREVER: Final = float("inf")
# Where a blocking command says how long it waits, and in which unit
TIMEOUTS = {"blmpop": (1, 1.0), "bzmpop": (1, 1.0)}
# What a node would do to the connection, which others use, too: refused also where there is one shard
TO_CONNECTIONS = frozenset((
    *("auth", "hello", "select", "reset", "quit", "monitor", "wait", "script|debug"),
    *("subscribe", "psubscribe", "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe"),
    *("client|reply", "client|tracking", "client|caching"),
))  # fmt: skip
PROXYS = ("proxy", "session.")  # commands that only a proxy knows


class Command:
    """What is known of a command by its name alone."""

    __slots__ = ("blocks", "everywhere", "key_at", "limit", "name", "nodes", "reads", "row", "way", "words")

    def __init__(self, row: Row, words: tuple[bytes, ...]) -> None:
        self.row, self.words, self.name = row, words, row.name
        self.reads = "readonly" in row.flags
        self.blocks = "blocking" in row.flags
        self.everywhere = everywhere.TABLE.get(row.name)
        self.way: Way = _way(row, self.everywhere)
        self.limit: float | None = None  # seconds for a try, where its class's are not the pool's
        # It concerns a node by itself: INFO, CLIENT LIST. Where there is one shard it is asked
        self.nodes = (
            row.kind == "local" and row.name not in TO_CONNECTIONS and not row.name.startswith(PROXYS)
        )
        # Where its only key stands, in arguments whose first is the whole name; 0: it has to be looked for
        self.key_at = row.key_range[0] - len(words) + 1 if self.way == "key" else 0


def _way(row: Row, found: Everywhere | None) -> Way:
    if found is not None:
        return "everywhere"
    if row.kind == "fanout":
        return "split"
    if row.kind != "forward":
        return "container" if row.subcommands else "refused"
    if row.channel:
        return "channel"
    return "key" if row.one_key and not row.walk and "blocking" not in row.flags else "keys"


class Split(NamedTuple):
    """A command over several shards: `parts[n]` are the arguments for shard number `shards[n]`."""

    merge: str  # array, sum, ok
    homes: list[int]  # of each key, in the order of the arguments
    keys: Sequence[Any]  # as they were given
    shards: list[int]
    parts: list[list[Any]]

    def merged(self, replies: Sequence[Any]) -> Any:
        """The whole reply, of the parts' in the order of `shards`; none of them is an error."""
        if self.merge == "sum":
            return sum(replies)
        if self.merge == "ok":
            return replies[0]
        return spread(self.homes, dict(zip(self.shards, replies, strict=True)))

    def partial(self, replies: Sequence[Any]) -> errors.PartialError:
        """When some of the replies are exceptions."""
        results: dict[Any, Any] = {}
        failed: dict[Any, Exception] = {}
        numbers = {shard: number for number, shard in enumerate(self.shards)}
        values = [
            iter(reply) if self.merge == "array" and not isinstance(reply, Exception) else None
            for reply in replies
        ]
        for key, home in zip(self.keys, self.homes, strict=True):
            reply, value = replies[numbers[home]], values[numbers[home]]
            if isinstance(reply, Exception):
                failed[key] = reply
            else:
                results[key] = reply if value is None else next(value)
        return errors.PartialError(results, failed)


class Plan(NamedTuple):
    """What becomes of one call: exactly one of shard, split and everywhere says where it goes; or across."""

    command: Command
    items: list[bytes] | None = None  # its arguments as bytes, one word each; None: a Split's were not needed
    shard: int = -1
    split: Split | None = None
    everywhere: Everywhere | None = None
    waits: float | None = None  # seconds that the node may wait for data; FOREVER

    @property
    def across(self) -> bool:
        """Its keys are on several shards: to be done in steps."""
        return self.shard == ACROSS


class Router:
    """Of one snapshot. Raises what redis-py would of the proxy's answer (errors.refusal)."""

    def __init__(self, pool: Pool, table: CommandTable, coding: Coding, limits: bool = False) -> None:
        """limits: the pool's `timeouts` hold for the classes of commands."""
        self._limits = limits
        self.pool, self.table, self.coding = pool, table, coding
        self.names = tuple(shard.name for shard in pool.shards)
        self.encode: Callable[[Any], Any] = coding.encoder.encode
        ring = pool.ring
        self.absent = frozenset(at for at, shard in enumerate(pool.shards) if pool.elsewhere(shard))
        self._moved = frozenset(at for at in self.absent if pool.mode(pool.shards[at]) == "move")
        self._not_for = {home: self._no_stand_in(home) for home in self._moved}
        self._ring_locate = ring.locate
        # The number of the shard that has a key (bytes) now
        self.locate: Callable[[bytes], int] = self._locate if self._moved else ring.locate  # type: ignore[assignment]
        self.commands: dict[Any, Command] = {}  # by name as it is written
        self._plain = coding.encoding.lower().replace("-", "") == "utf8" and coding.errors == "strict"
        # Keys are where the ring has them, and text is UTF-8: what is compiled may look for them
        self.shares = self._plain and not self._moved

    def _no_stand_in(self, home: int) -> Collection[int]:
        protocol = self.pool.shards[home].protocol
        other = {at for at, shard in enumerate(self.pool.shards) if shard.protocol != protocol}
        return self.absent | other

    def _locate(self, key: bytes) -> int:
        home = self._ring_locate(key)
        assert home is not None
        if home in self._moved:
            stand_in = self._ring_locate(key, self._not_for[home])
            return home if stand_in is None else stand_in
        return home

    def key(self, key: Any) -> bytes:
        """A key as its bytes."""
        if type(key) is bytes:
            return key
        if type(key) is str and self._plain:
            return key.encode()
        return bytes(self.encode(key))

    def command(self, name: Any) -> Command:
        """By the first argument of a call, which may hold several words."""
        found = self.commands.get(name)
        if found is None:
            found = self._find(name)
            if len(self.commands) < NAMES_MOST:
                self.commands[name] = found
        return found

    def _find(self, name: Any) -> Command:
        words = tuple((name.encode() if isinstance(name, str) else bytes(name)).split())
        row = self.table.row(*words[:2]) if words else None
        if row is None:
            container = self.table.row(words[0]) if words else None
            if container is not None:
                raise errors.refusal(unknown_subcommand(container.name, words[1]))
            text = words[0].decode(errors="replace")[:128] if words else ""
            raise errors.refusal(errors.UNKNOWN_COMMAND.format(text))
        found = Command(row, words)
        found.limit = self.limit_of(found)
        if found.limit is not None:
            found.key_at = 0  # no business of those who just ask
        return found

    def limit_of(self, command: Command | None) -> float | None:
        """Seconds for a try of this, or of a transaction (None), where they are not the pool's."""
        pool, times = self.pool, self.pool.timeouts
        if not self._limits:
            return None
        reads = command is not None and command.reads
        time = times.script if command is not None and command.row.calls else (
            times.read if reads else times.write
        )  # fmt: skip
        if time == pool.timeout:
            return None
        return min(time, pool.attempt_timeout) if reads or time < pool.timeout else time

    def place(self, command: Command, args: Args) -> int:
        """Of a command with `key_at`: its shard's number. IndexError when the key is missing."""
        key = args[command.key_at]
        return self.locate(key if type(key) is bytes else self.key(key))

    def plan(self, args: Args) -> Plan:
        """Where a call goes, whatever it is. Raises its refusal."""
        command = self.command(args[0])
        if command.way == "split" and self.shares and (found := self._share(command, args)) is not None:
            return found
        if command.way == "container" and len(args) > 1 and len(command.words) == 1:
            sub = args[1].encode().split() if isinstance(args[1], str) else self.key(args[1]).split()
            command = self.command(b" ".join((command.words[0], sub[0] if sub else b"")))
            items = [*self.command(args[0]).words, *map(self.key, args[1:])]
        else:
            items = [*command.words, *map(self.key, args[1:])]
        row = command.row
        if (row.arity > 0 and len(items) != row.arity) or len(items) < -row.arity:
            raise errors.refusal(wrong_arity(row.name))
        if command.way == "everywhere":
            return Plan(command, items, everywhere=command.everywhere)
        if command.way == "split":
            return self._split(command, args, items)
        if command.way in ("refused", "container"):
            if command.nodes and len(self.names) == 1:
                return Plan(command, items, 0)
            raise errors.refusal(self._why(row))
        return Plan(command, items, self._shard_of(command, items), waits=_waits(command, items))

    def _shard_of(self, command: Command, items: list[bytes]) -> int:
        row = command.row
        if command.way == "channel":
            return self.locate(items[1])
        status = self.table.check(items)
        if status == PATTERN and len(self.names) > 1:
            raise errors.refusal(errors.PATTERN.format(row.name.upper()))
        if status == MALFORMED:
            first = row.key_range[0]
            return self.locate(items[first]) if 0 < first < len(items) else self.anywhere
        if status == 0 and row.calls:
            return self.locate(_script_name(row, items))
        found = self.table.keys_of(items)
        if not found:
            raise errors.refusal(errors.NO_KEY.format(row.name.upper().replace("|", " ")))
        homes = {self.locate(items[at]) for at in found}
        if len(homes) > 1:
            if row.across and self.pool.cross_shard == "emulate":
                return ACROSS
            raise errors.refusal(errors.CROSS_SHARD)
        return homes.pop()

    @property
    def anywhere(self) -> int:
        """The first shard whose keys are with it."""
        return next((at for at in range(len(self.names)) if at not in self.absent), 0)

    def _share(self, command: Command, args: Args) -> Plan | None:
        """As _split, compiled; None when it is for that: an odd key, or all on one shard."""
        step = command.row.key_range[2]
        found = share(self.pool.ring, args[1:], step, command.words[0])
        if found is None or len(found[1]) < 2:
            return None
        homes, parts = found
        return Plan(
            command, split=Split(command.row.merge, homes, args[1::step], list(parts), list(parts.values()))
        )

    def _split(self, command: Command, args: Args, items: list[bytes]) -> Plan:
        """MGET, MSET, DEL and their like: all but the name are keys, or keys and values in turn."""
        row = command.row
        step = row.key_range[2]
        if step > 1 and (len(items) - 1) % step:
            raise errors.refusal(wrong_arity(row.name))
        homes: list[int] = list(map(self.locate, items[1::step]))
        shards = sorted(set(homes))
        if len(shards) == 1:
            return Plan(command, items, shards[0])
        parts: dict[int, list[Any]] = {shard: [items[0]] for shard in shards}
        if step == 1:
            add = {shard: part.append for shard, part in parts.items()}
            for home, key in zip(homes, items[1:], strict=True):
                add[home](key)
        else:
            for number, home in enumerate(homes):
                parts[home] += items[1 + number * step : 1 + (number + 1) * step]
        return Plan(
            command, items, split=Split(row.merge, homes, args[1::step], shards, list(parts.values()))
        )

    def in_multi(self, command: Command) -> bool:
        """Whether it may stand between MULTI and EXEC."""
        return command.row.in_multi or (command.nodes and len(self.names) == 1)

    def _why(self, row: Row) -> str:
        if row.kind == "multi":
            return not_supported(row.name, "use pipeline(), or transaction()")
        return not_supported(
            row.name, row.why or "the client's connections are shared: on_shard(name) has one shard's alone"
        )


def _script_name(row: Row, items: Sequence[bytes]) -> bytes:
    """A script without keys runs where a key of its SHA1's name would live, as with the proxy."""
    if row.calls == "text":
        return hashlib.sha1(items[1]).hexdigest().encode()
    return items[1].lower() if row.calls == "sha" else items[1]


def _waits(command: Command, items: Sequence[bytes]) -> float | None:
    """How long the node may wait for data; None: it does not."""
    if not command.blocks:
        return None
    try:
        if command.row.walk:
            lowered = list(map(bytes.lower, items))
            if b"block" not in lowered:
                return None
            seconds = int(items[lowered.index(b"block") + 1]) / 1000
        else:
            at, unit = TIMEOUTS.get(command.name, (-1, 1.0))
            seconds = float(items[at]) * unit
    except (ValueError, IndexError):
        return 0.0  # the node says what is wrong with it
    return seconds if seconds > 0 else FOREVER
