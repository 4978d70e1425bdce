"""Changes while it runs: the configuration loaded again, shards drained and put back.

Owns what is common to the supervisor and the only worker, who own configuration and topology: one change at a
time; a configuration is swapped in whole or refused with all its mistakes; what only a restart changes is
named and left as it is; the last good one is kept at `state`. The file is looked at every second. Users that
ACL SETUSER and DELUSER change are in memory alone, until a configuration is loaded or ACL SAVE writes them.
"""

import asyncio
import contextlib
import datetime
import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from shardproxy.config import (
    Config,
    ConfigError,
    Credentials,
    Source,
    load,
    read_session_secrets,
    read_users,
)
from shardproxy.config.tables import differences
from shardproxy.core import acl, acl_rules, errors
from shardproxy.core.topology import Pool, Topology, replaced
from shardproxy.handlers.base import Outcome
from shardproxy.proxy import state
from shardproxy.proxy.certificates import Ways, files, lasting
from shardproxy.proxy.keeper import Keeper
from shardproxy.proxy.listeners import Listener
from shardproxy.proxy.logs import Logger

WATCH = 1.0  # seconds between two looks at the file
SETTLED = 0.2  # a file that changed must not change again for so long: it may be half written
OPERATE = 30.0  # seconds that a worker waits for the outcome; a change may wait for another
TIDY = 20.0  # seconds that a change waits for what the one before has left on the nodes
RULES_MOST = 8 << 20  # bytes of all users' rules, which every worker is sent at each change
FILE_CHANGED = "the file changed"
# tables and options that change without a restart
RUNNING = (
    "pool", "state", "users", "acl_file", "user_scripts", "tls", "allow", "proxy_protocol_from", "sessions",
)  # fmt: skip


class Owner(Protocol):
    """Who owns configuration and topology."""

    config: Config
    topology: Topology
    log: Logger
    bound: list[Listener]
    reloader: "Reloader"
    handed_over: asyncio.Event

    async def hold(self) -> None:
        """Before keys move: no worker takes a command until it has adopted what comes next, or `release`."""

    def release(self) -> None:
        """It does not come."""

    async def adopt(
        self, config: Config, topology: Topology, credentials: Credentials, users: acl.Users
    ) -> list[str]:
        """Swaps them in everywhere, its own before it first waits; returns who has not acknowledged."""

    @property
    def keeper(self) -> Keeper | None:
        """None: a worker, which owns nothing."""

    async def linger(self) -> None:
        """Accepts no more, and serves whom it has until they leave, drain_timeout at most."""


class Change(NamedTuple):
    """What a new configuration comes to for one that runs."""

    config: Config  # what will run
    changed: list[str]
    restart: list[str]  # only a restart changes these


def change(running: Config, new: Config) -> Change:
    """Takes from the new one what can change while it runs."""
    found = [(each.where.split(".")[0] in RUNNING, str(each)) for each in differences(running, new)]
    return Change(
        msgspec.structs.replace(running, **{key: getattr(new, key) for key in RUNNING}),
        [text for runs, text in found if runs],
        [text for runs, text in found if not runs],
    )


def moved(old: Topology, new: Topology) -> list[str]:
    """Warnings: durable pools whose keys are looked for elsewhere from now on."""
    before = {pool.name: pool.ring.fingerprint for pool in old.pools}
    return [
        f"pool {pool.name} is durable and its ring changed: keys that belong elsewhere now are not copied"
        for pool in new.pools
        if pool.kind == "durable" and before.get(pool.name) not in (None, pool.ring.fingerprint)
    ]


def needs_tidying(old: Topology, new: Topology) -> bool:
    """Whether keys move between nodes of a pool where none must find what it had of them before."""
    before = {pool.name: pool for pool in old.pools}
    return any(
        pool.removes and pool.name in before and replaced(before[pool.name], pool) for pool in new.pools
    )


Stat = tuple[int, ...]


def _digest(secrets: Sequence[str]) -> bytes:
    return hashlib.blake2b("\n".join(secrets).encode()).digest()


def look(path: str) -> Stat:
    """What changes with a file. Raises OSError."""
    return _stat(os.stat(path))


def _stat(found: os.stat_result) -> Stat:
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


class Reloader:
    """`restore` before the owner starts, `run` while it serves; `operate` whenever somebody asks."""

    def __init__(self, owner: Owner, credentials: Credentials, users: acl.Users, file: str = "") -> None:
        self._owner, self._file = owner, os.path.abspath(file) if file else ""
        self._ways = Ways.read(owner.config, credentials)
        self._users = users
        self._secrets = b""
        with contextlib.suppress(ConfigError):
            self._secrets = _digest(read_session_secrets(owner.config))
        self._saved: dict[Stat, Stat] = {}  # the acl_file as we wrote it -> as it was taken for before
        self._content: bytes | None = None  # of the file, as it was when it was last good
        self._one = asyncio.Lock()
        self._hangups: set[asyncio.Task[Outcome]] = set()

    # --- start ---

    def restore(
        self, drained: Mapping[str, Any] | None = None, away: Mapping[str, tuple[str, bool]] | None = None
    ) -> None:
        """Shards that were drained are so again (these, else the state file's), and nodes that were out."""
        owner = self._owner
        owner.topology = owner.topology.with_away(away or {})
        if drained is None and owner.config.state:
            try:
                kept = state.read(owner.config.state)
                drained = kept.drained if kept else None
            except state.StateError as error:
                owner.log("state_refused", reason=str(error))
        if not drained:
            return
        try:
            owner.topology = owner.topology.with_draining(drained)
            owner.log("shards_drained", shards=owner.topology.draining)
        except ValueError as error:
            owner.log("not_drained", reason=str(error))

    async def run(self) -> None:
        """Keeps the state of the start, then looks at the file, for ever."""
        seen = self._look()
        async with self._one:
            await self._first()
        while self._file:
            await asyncio.sleep(WATCH)
            now = self._look()
            if now in (seen, None):
                continue
            await asyncio.sleep(SETTLED)
            if self._look() == now:
                outcome = await self.operate("reload", FILE_CHANGED)
                if outcome.error != errors.NOT_TIDIED:  # else the same again, in a moment
                    seen = now

    async def _first(self) -> None:
        """The file is worth keeping only if it is what runs: we may have been started without it."""
        if not self._file:
            return
        try:
            source = await asyncio.to_thread(Source.read, self._file)
            loaded = await asyncio.to_thread(load, source)
        except ConfigError:
            return
        if loaded == self._owner.config:
            self._content = source.content
            await self._keep_state()

    def _look(self) -> tuple[Stat, ...] | None:
        """What changes with the file and those it names; None: it, or the users', is away."""
        config, seen = self._owner.config, []
        others = config.sessions.secrets_file, *files(config)
        for path in filter(None, (self._file, config.acl_file, *others)):
            try:
                found = look(path)
            except OSError:
                if path in (self._file, config.acl_file):
                    return None
                continue
            seen.append(self._saved.get(found, found))
        return tuple(seen)

    # --- changes ---

    def hangup(self) -> None:
        """SIGHUP."""
        task = asyncio.get_running_loop().create_task(self.operate("reload", "SIGHUP"))
        self._hangups.add(task)
        task.add_done_callback(self._hangups.discard)

    async def operate(self, what: str, *args: Any) -> Outcome:
        """One change, after those before it. what: "reload", "setuser"... as below, with its arguments."""
        changes: dict[str, Callable[..., Awaitable[Outcome]]]
        changes = {"reload": self._reload, "drain": self._drain, "undrain": self._undrain}
        changes |= {"setuser": self._setuser, "deluser": self._deluser, "saveusers": self._saveusers}
        async with self._one:
            if self._owner.handed_over.is_set():
                return Outcome(errors.HANDED_OVER)
            try:
                return await changes[what](*args)
            except Exception as error:
                self._owner.log("change_failed", change=what, exc_info=error)
                return Outcome(errors.INTERNAL)

    async def _reload(self, why: str = "PROXY RELOAD") -> Outcome:
        owner = self._owner
        if not self._file:
            return Outcome(errors.NO_FILE)
        try:
            source = await asyncio.to_thread(Source.read, self._file)
            new = await asyncio.to_thread(load, source)
            config, changed, restart = change(owner.config, new)
            ways = await asyncio.to_thread(Ways.read, config, file=self._file)
            users = await asyncio.to_thread(read_users, new, file=self._file)
            secrets = _digest(await asyncio.to_thread(read_session_secrets, new, file=self._file))
            self._refuse_expired(ways, config)
            untidy = needs_tidying(owner.topology, owner.topology.with_config(config))
            if untidy and owner.keeper and not await owner.keeper.tidied(TIDY):
                owner.log("reload_refused", why=why, mistakes=[errors.NOT_TIDIED])
                return Outcome(errors.NOT_TIDIED)
            topology = owner.topology.with_config(config)
        except (ConfigError, ValueError) as error:
            mistakes = list(map(str, error.mistakes)) if isinstance(error, ConfigError) else [str(error)]
            owner.log("reload_refused", why=why, generation=owner.topology.generation, mistakes=mistakes)
            return Outcome(errors.not_reloaded(owner.topology.generation, mistakes))
        if ways.credentials != self._ways.credentials:
            changed.append("the passwords of nodes")
        if ways.fingerprint != self._ways.fingerprint:
            changed.append("certificates, keys or CAs")
        if users != self._users and not any(text.startswith(("users", "acl_file")) for text in changed):
            changed.append("users")
        if secrets != self._secrets and not any(text.startswith("sessions") for text in changed):
            changed.append("the secrets of sessions")
        self._content, self._ways, self._users, self._secrets = source.content, ways, users, secrets
        warnings = [*moved(owner.topology, topology), *new.warnings] if changed else []
        late: list[str] = []
        if changed:
            topology, late = await self._adopt(lambda old: old.with_config(config), config)
        found = {"changed": changed, "needs_restart": restart, "warnings": warnings, "not_acknowledged": late}
        told = {key: value for key, value in found.items() if value}
        if told or why != FILE_CHANGED:
            owner.log("reloaded", why=why, generation=topology.generation, **told)
        await self._keep_state()
        return Outcome(answer={"generation": topology.generation} | found)

    async def _adopt(
        self, derive: Callable[[Topology], Topology], config: Config
    ) -> tuple[Topology, list[str]]:
        """Swaps in what is derived of the newest topology; that, and who is late.

        While keys move nobody asks for any: one worker would use their old place, and another the new.
        """
        owner = self._owner
        try:
            if owner.topology.moves_keys(derive(owner.topology)):
                await owner.hold()
            topology = derive(owner.topology)
            topology = topology.again() if topology is owner.topology else topology
            late = await owner.adopt(config, topology, self._ways.credentials, self._users)
            return topology, late
        except BaseException:
            owner.release()
            raise

    def _refuse_expired(self, ways: Ways, config: Config) -> None:
        """A certificate that is over does not take the place of another; raises ValueError."""
        if ways.fingerprint != self._ways.fingerprint:
            today = datetime.datetime.now(datetime.UTC)
            over = [f"{path}: {what}" for path, what, now in lasting(config, today) if now]
            if over:
                raise ValueError("; ".join(over))

    async def _drain(self, name: str, force: bool) -> Outcome:
        pool = self._owner.topology.pools[0]
        if pool.kind == "durable" and not force and any(shard.name == name for shard in pool.shards):
            return Outcome(errors.drain_durable(name, pool.name))
        return await self._place(pool, name, lambda drained: drained | {name})

    async def _undrain(self, name: str) -> Outcome:
        return await self._place(self._owner.topology.pools[0], name, lambda drained: drained - {name})

    async def _place(self, pool: Pool, name: str, pick: Any) -> Outcome:
        """Takes a shard off the ring or puts it back."""
        owner, known = self._owner, [shard.name for shard in pool.shards]
        if name not in known:
            return Outcome(errors.no_such_shard(name, known))
        drained = owner.topology.draining
        wanted = {**drained, pool.name: pick(frozenset(drained.get(pool.name, ())))}
        try:
            topology = owner.topology.with_draining(wanted)
        except ValueError as error:
            return Outcome(errors.not_drained(str(error)))
        late: list[str] = []
        if topology is not owner.topology:
            topology, late = await self._adopt(lambda old: old.with_draining(wanted), owner.config)
            owner.log("shards_drained", shards=topology.draining, generation=topology.generation)
            await self._keep_state()
        return Outcome(
            answer={
                "generation": topology.generation,
                "draining": list(topology.draining.get(pool.name, ())),
                "not_acknowledged": late,
            }
        )

    # --- users (ACL SETUSER, DELUSER, SAVE): their rules are in no log and no error ---

    async def _setuser(self, by: str, name: bytes, rules: Sequence[bytes]) -> Outcome:
        called = name.decode(errors="surrogateescape")
        known = self._users.get(called)
        if known is None and not acl_rules.is_name(called):
            return Outcome(errors.ACL_NAME)
        words = [rule.decode(errors="surrogateescape") for rule in rules]
        try:
            changed = acl_rules.modify(known or acl.User(called), words)
        except acl_rules.Refused as refused:
            if refused.unmatched:
                return Outcome(errors.acl_unmatched(refused.found))
            return Outcome(errors.acl_setuser(refused.found, refused.redis))
        users = self._users.with_changes([changed])
        if sum(map(len, users.to_wire()[0])) > RULES_MOST:
            return Outcome(errors.ACL_TOO_MANY)
        return await self._adopt_users(users, by, [called])

    async def _deluser(self, by: str, names: Sequence[bytes]) -> Outcome:
        called = dict.fromkeys(name.decode(errors="surrogateescape") for name in names)
        if acl.DEFAULT in called:
            return Outcome(errors.ACL_DEFAULT_STAYS)
        gone = [name for name in called if self._users.get(name)]
        return await self._adopt_users(self._users.with_changes(gone=gone), by, gone)

    async def _adopt_users(self, users: acl.Users, by: str, changed: list[str]) -> Outcome:
        """In every worker, or the outcome names those who have not said so."""
        answer = {"changed": len(changed)}
        if not changed:
            return Outcome(answer=answer)
        owner = self._owner
        late = await owner.adopt(owner.config, owner.topology.again(), self._ways.credentials, users)
        self._users = users
        owner.log("users_changed", by=by, users=changed, **({"not_acknowledged": late} if late else {}))
        return Outcome(errors.users_late(late) if late else "", answer)

    async def _saveusers(self, by: str) -> Outcome:
        path = self._owner.config.acl_file
        if not path:
            return Outcome(errors.ACL_NO_FILE)
        lines = [user.describe().encode(errors="surrogateescape") + b"\n" for user in self._users.listed()]
        try:
            before = await asyncio.to_thread(look, path)
        except OSError:
            before = ()
        try:
            made = await asyncio.to_thread(state.replace, os.path.realpath(path), b"".join(lines))
        except state.StateError as error:
            self._owner.log("users_not_saved", by=by, reason=str(error))
            return Outcome(errors.ACL_NOT_SAVED)
        # what we wrote is no change to be loaded: users may be changed again before the file is looked at
        self._saved = {_stat(made): self._saved.get(before, before)}
        self._owner.log("users_saved", by=by, users=len(lines))
        return Outcome()

    # --- the last good one ---

    async def _keep_state(self) -> None:
        path = self._owner.config.state
        if path and self._content is not None:
            try:
                await asyncio.to_thread(state.keep, path, self._content, self._owner.topology.draining)
            except state.StateError as error:
                self._owner.log("state_refused", reason=str(error))
