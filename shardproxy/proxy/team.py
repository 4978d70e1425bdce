"""What a worker under a supervisor is given, and who the others are to it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from shardproxy.config import Credentials
from shardproxy.core.acl import Users
from shardproxy.handlers.base import Outcome
from shardproxy.proxy.listeners import Listener
from shardproxy.proxy.transitions import Transition


class Peers(Protocol):
    """The other workers."""

    async def ask(self, what: str, *args: Any) -> list[Any]:
        """What each of them answers as its part of that name; who does not in time is left out."""

    def tell(self, what: str, args: Sequence[Any]) -> None:
        """All of them, without an answer."""

    def counters(self) -> Mapping[str, int]:
        """Over all workers, this one too."""

    def latency(self) -> Mapping[str, Sequence[int]]:
        """As counters."""

    def evidence(self, found: list[Any]) -> None:
        """What this one's engine has seen of the nodes, for the Keeper."""

    def connections(self, ghosts: Mapping[str, Sequence[str]], databases: Sequence[int]) -> None:
        """This one's connections, by node, and the databases that its clients have used: it may die.

        ghosts: in the words of CLIENT KILL; requests may be on them.
        """

    async def operate(self, what: str, *args: Any) -> Outcome:
        """Has the supervisor change what concerns all."""

    def node_version(self, address: str, version: str) -> None:
        """Has the supervisor make a new topology of it."""


class Team(NamedTuple):
    """What a worker under a supervisor is given."""

    slot: int
    workers: int
    bound: Sequence[Listener]  # with this worker's sockets only
    id_base: int
    page: memoryview  # for the reactor's counters
    stamps: memoryview  # all workers' times of writes
    run_id: str
    started: float
    pid: int  # the supervisor's
    peers: Peers
    credentials: Credentials
    users: Users
    transitions: Sequence[Transition] = ()  # the latest
