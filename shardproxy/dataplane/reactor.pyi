from collections.abc import Callable, Iterable, Mapping
from ssl import SSLContext
from typing import Any

from shardproxy.config import Limits
from shardproxy.core.acl import Users
from shardproxy.core.commands import CommandTable
from shardproxy.core.networks import Networks
from shardproxy.core.topology import Topology
from shardproxy.dataplane.calls import Call
from shardproxy.dataplane.client_handle import ClientHandle
from shardproxy.dataplane.links import Link

class Reactor:
    """One worker's engine: all its methods are called from the loop's thread."""

    def __init__(
        self,
        limits: Limits,
        dispatch: Callable[[Call], None],
        *,
        on_event: Callable[[str, dict[str, Any]], None],
        id_base: int = 0,
        page: memoryview | bytearray | None = None,
        stamps: memoryview | bytearray | None = None,
        misses: Callable[[str, list[bytes], int], bytes | None] | None = None,
        raised: Callable[[bytes, int, bytes], bytes] | None = None,
    ) -> None: ...
    def fileno(self) -> int:
        """The epoll descriptor, for the loop's add_reader(fileno(), tick)."""

    def tick(self) -> None:
        """Serve every socket that is ready; never blocks, never raises."""

    def cron(self) -> None:
        """What happens by the clock: call it ten times a second."""

    def listen(
        self,
        fd: int,
        *,
        protected: bool,
        tls: bool = False,
        allow: Networks | None = None,
        announcers: Networks | None = None,
    ) -> None:
        """Accept from a listening socket; of one that does so already, change the terms. Raises OSError.

        protected: only clients on this machine. allow: only of these addresses. announcers: connections come
        from these, each with a PROXY header, and what it says is the client's address. tls: see set_tls.
        """

    def unlisten(self, fd: int) -> None:
        """Take a listening socket out again; closing it is the caller's."""

    def set_tls(self, context: SSLContext | None, *, names_users: bool = False) -> None:
        """For clients that connect from now on; names_users: the name in a certificate logs in."""

    def set_topology(
        self,
        topology: Topology,
        credentials: Mapping[str, tuple[str, str]],
        tls: Mapping[str, tuple[SSLContext, str]] | None = None,
    ) -> None:
        """credentials: shard name -> (username or "", password), only of shards that have a login.

        tls: shard name -> (context, name that its certificate must have), only of shards that speak TLS.
        """

    def settled(self) -> bool:
        """Whether all that was in flight when the last topology was set is done, or past its deadline."""

    def evidence(self) -> list[tuple[str, int, int, int, int, bool, str]]:
        """Nodes with news since the last call: (address, ok, failed, slow, streak, refused, reason)."""

    def take_written(self, address: str) -> tuple[list[bytes], bool]:
        """Keys written or deleted on stand-ins while it is out, and whether there were more; forgotten."""

    def used_databases(self) -> list[int]:
        """Those that clients have used since the start."""

    def answered(self, address: str) -> bool:
        """Whether it owes no reply to what was sent before the last topology, given up or not."""

    def take_ghosts(self, address: str) -> list[str]:
        """Connections to it, lost with requests on them, in the words of CLIENT KILL; forgotten."""

    def connection_ids(self) -> dict[str, list[str]]:
        """The connections to each node that are up, in the words of CLIENT KILL there."""

    def placed(self) -> list[tuple[int, str]]:
        """(node number, shard name) in the order of the ring, but for those whose keys are elsewhere."""

    def speaks(self, node: int) -> int:
        """The newest protocol that it has agreed to, 2 or 3; 0: nobody has asked it for 3 yet."""

    def node_of_shard(self, name: str) -> int | None:
        """Of one that drains too; None: there is no such shard."""

    def shard_of(self, node: int) -> str:
        """The name of the shard whose node that is."""

    def node_of(self, key: bytes) -> int:
        """The number of the node that has a key now."""

    def placements(self) -> int:
        """Counts changes of where keys are."""

    def count_receivers(
        self, channels: Mapping[bytes, int], shards: Mapping[bytes, int], patterns: bool
    ) -> None:
        """PUBLISH (SPUBLISH) to these, or every PUBLISH, goes to its handler; kept, not copied."""

    def ask(
        self,
        node: int,
        request: bytes,
        done: Callable[[bytes], object],
        *,
        client: ClientHandle | None = None,
        proto: int = 2,
        db: int = 0,
        write: bool = True,
        frames: int = 1,
        keys: Iterable[bytes] = (),
        timeout: float = -1,
        meta: bool = False,
    ) -> None:
        """A request of a handler's own, on the client's own way to the node (client) or a shared upstream.

        done gets the reply's bytes, or an error line as a client would get it, after the tick.
        keys: those it writes. timeout: seconds; 0: none; below 0: as for a client's command.
        meta: it is of memcached's meta protocol, and its `frames` replies come as they are, one behind the
        other; a memcached node that is asked in RESP refuses it. ValueError: it is no memcached.
        """

    def memcached(self, node: int) -> tuple[int, float | None] | None:
        """Of a memcached node: the most bytes of an item, with key and header (0: not known yet); its clock.

        The clock: its time in whole seconds less ours (`time.time()`) when it was asked: its own may be up
        to one second more; None: not known yet. None for any other node.
        """

    def open_link(
        self,
        node: int,
        *,
        proto: int = 3,
        db: int = 0,
        setup: tuple[bytes, int] = (b"", 0),
        stream: bool = False,
        on_frame: Callable[[bytes], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> Link:
        """A connection of a handler's own. setup: what it says first, and how many replies that has.

        None of these may be an error. stream: every frame goes to on_frame, else pushes alone.
        ConnectionError when there are too many.
        """

    def set_commands(self, table: CommandTable) -> None: ...
    def set_users(self, users: Users) -> None:
        """Who may do what from now on; before the first call everybody may do everything.

        Clients whose user is gone are closed. A denial comes to `on_event` as "denied".
        """

    def logins(self, user: bytes) -> int:
        """Clients that have logged in as this user."""

    def teach(self, text: bytes, loaded: bool) -> bytes:
        """Keep a script's text, as SCRIPT LOAD's (loaded) or EVAL's; its SHA1, in hex."""

    def knows_script(self, sha: bytes, loaded: bool = False) -> bool:
        """Whether its text is kept; loaded: as one that SCRIPT LOAD brought, which therefore compiles."""

    def scripts(self) -> list[tuple[bytes, bool]]:
        """Every text that is kept, and whether SCRIPT LOAD brought it; those that go first come first."""

    def forget_scripts(self) -> None:
        """All texts, and what nodes know."""

    def share_scripts(self) -> None:
        """There are other workers: see take_taught."""

    def take_taught(self) -> list[bytes]:
        """Scripts that EVAL has brought since the last call; of too many at once only the first."""

    def flushed(self) -> None:
        """Every key is gone: no stale values, and what nodes that are out still have is old."""

    def sieve(self, node: int, frame: bytes, at: int = 0) -> tuple[int, bytes] | None:
        """Of an array of keys that a node lists, at frame[at], those that live there: how many, their frames.

        None: it is no such array.
        """
    def blocked(self) -> int:
        """Clients that wait for data, or for replicas."""

    def pause(self, everything: bool, seconds: float) -> None:
        """CLIENT PAUSE: clients' next commands, all or what may write, wait so long, or as before."""

    def unpause(self) -> None: ...
    def hold(self, seconds: float) -> None:
        """Before keys move: all clients' next commands wait so long at most; 0: no longer."""

    def monitor(self, on_command: Callable[[int, str, str, list[bytes]], None] | None) -> None:
        """MONITOR: gets (database, the client's address, name in the table, arguments) of each command."""

    def set_address(self, node: str, address: str) -> None:
        """What a node's host name stands for now, as IP:PORT; connections that are up stay."""

    def client(self, id: int) -> ClientHandle | None: ...
    def clients(self) -> list[ClientHandle]: ...
    def nodes(self) -> list[dict[str, Any]]:
        """What the engine knows of each node, in the order of the shards."""

    def counters(self) -> dict[str, int]:
        """Counter name -> value, see counters.TABLE."""

    def latency(self) -> dict[str, list[int]]:
        """ "read" and "write" -> how many requests fell into each bucket."""

    def set_max_clients(self, most: int) -> None:
        """Fewer than limits.maxclients, where there are not descriptors for so many."""

    def drain(self) -> None:
        """Accept no more; a client goes when everything that it has sent is answered."""

    def idle(self) -> bool:
        """Whether no client is left."""

    def close(self) -> None:
        """Close every connection; what is in flight is not answered."""
