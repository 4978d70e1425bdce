"""Following running proxies: which one is asked, when, and what comes of the answers. Pure: it asks nobody.

    from_url("shardproxy://app:secret@a:6380,b:6380")

One proxy is asked for as long as it answers, then the next one in turn. Rules: the last good snapshot is
kept while none answers; an older snapshot of the same run never replaces a newer one (workers may lag); a
ring that is not what the proxy says, or not what the proxy before it said, is warned of. `now` is seconds
of a clock that never goes back, `jitter` a number from 0 up to 1.
"""

from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from shardproxy.config.text import HOST_PORT, read_admin
from shardproxy.core.topology import Topology

SCHEMES = {"shardproxy": False, "shardproxys": True}
PORT = 6380
POLL = 5.0  # seconds between two questions of a client that asks when it is used
SOONEST = 0.25  # seconds between two questions, when calls fail
AGAIN, AGAIN_MOST = 0.1, 5.0  # seconds until the proxies are asked again when none of them has answered
WATCH = 20_000  # ms that a proxy is asked to wait for a change
ASK = 2.0  # seconds for an answer
WANTED = "shardproxy://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]"


class Proxies(NamedTuple):
    """What the URL says. The login is for the proxies; nodes may have another."""

    addresses: tuple[str, ...]  # "HOST:PORT"
    username: str = ""
    password: str = ""
    tls: bool = False

    def __repr__(self) -> str:
        return f"Proxies({', '.join(self.addresses)})"


def read_url(url: str) -> Proxies:
    """Raises ValueError, which never shows the URL: there may be a password in it."""
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in SCHEMES:
        raise ValueError(f"a URL of proxies is {WANTED}; shardproxys:// for TLS")
    login, _, hosts = rest.rpartition("@")
    username, _, password = login.partition(":")
    found = []
    for host in hosts.rstrip("/").split(","):
        with_port = host if ":" in host.rpartition("]")[2] else f"{host}:{PORT}"
        try:
            found.append(read_admin(with_port))
        except ValueError:
            raise ValueError(f"a URL of proxies is {WANTED}, each {HOST_PORT}") from None
    return Proxies(tuple(dict.fromkeys(found)), unquote(username), unquote(password), SCHEMES[scheme])


class _Said(msgspec.Struct):
    """What a snapshot says beside itself."""

    class _Pool(msgspec.Struct):
        fingerprint: str

    generation: int
    pools: list[_Pool]
    run_id: str = ""


class Heard(NamedTuple):
    topology: Topology | None = None  # a newer one, to go by from now on
    warnings: tuple[str, ...] = ()


class Following:
    """first: which of the proxies is asked first; clients that begin elsewhere share the work."""

    def __init__(self, proxies: Proxies, first: int = 0, poll: float = POLL) -> None:
        self.proxies, self.poll = proxies, poll
        self.topology: Topology | None = None
        self.reason = "none has been asked"  # why the last one that failed did
        self._at = first % len(proxies.addresses)
        self._failed = 0  # in a row, over all proxies
        self._run_id = ""
        self._fingerprints: list[str] = []
        self._told_by = ""  # the proxy that said these
        self._next = self._soonest = 0.0

    @property
    def proxy(self) -> str:
        """The address to ask."""
        return self.proxies.addresses[self._at]

    @property
    def next(self) -> float:
        """When it is to be asked again, if nothing fails."""
        return self._next

    @property
    def generation(self) -> int:
        """Of what is known, for WATCH."""
        return self.topology.generation if self.topology else 0

    def wanted(self, now: float, doubt: bool = False) -> bool:
        """Whether to ask in line with a call; doubt: a call has just failed."""
        return now >= (self._soonest if doubt else self._next)

    def asking(self, now: float) -> None:
        """Somebody does: nobody else need, unless it takes too long."""
        self._next = self._soonest = now + ASK

    def heard(self, now: float, jitter: float, answer: Any) -> Heard:
        """What a proxy has answered. Raises ValueError for what is no snapshot: to be told to `failed`."""
        try:
            if not isinstance(answer, (bytes, str)):
                raise ValueError("no JSON")
            data = answer.encode() if isinstance(answer, str) else answer
            said, topology = msgspec.json.decode(data, type=_Said), Topology.from_json(data)
            mine = [pool.ring.fingerprint for pool in topology.pools]
        except ValueError as error:
            raise ValueError(f"it does not tell a topology: {error}") from None
        self._failed = 0
        self._next, self._soonest = now + self.poll * (0.75 + 0.5 * jitter), now + SOONEST
        theirs = [pool.fingerprint for pool in said.pools]
        same_run = self.topology is not None and said.run_id == self._run_id
        if same_run and topology.generation <= self.generation:
            return Heard()
        warnings = tuple(self._differences(mine, theirs))
        self._run_id, self._fingerprints, self._told_by = said.run_id, theirs, self.proxy
        self.topology = topology
        return Heard(topology, warnings)

    def _differences(self, mine: list[str], theirs: list[str]) -> Any:
        if mine != theirs:
            yield (
                f"the ring of the proxy at {self.proxy} is not what this version makes of the same shards "
                f"({', '.join(theirs)}; here {', '.join(mine)}): keys would be looked for on other shards"
            )
        if self._fingerprints and self._told_by != self.proxy and theirs != self._fingerprints:
            yield (
                f"the ring of the proxy at {self.proxy} ({', '.join(theirs)}) is not that of the one at "
                f"{self._told_by} ({', '.join(self._fingerprints)}): they are configured differently, or one "
                "has changed since"
            )

    def failed(self, now: float, jitter: float, reason: str) -> float:
        """The proxy did not answer: the next one is to be asked, in so many seconds."""
        self.reason = f"{self.proxy}: {reason}"
        self._at = (self._at + 1) % len(self.proxies.addresses)
        self._failed += 1
        rounds, rest = divmod(self._failed, len(self.proxies.addresses))
        wait = 0.0 if rest else min(AGAIN * 2.0 ** min(rounds - 1, 10), AGAIN_MOST) * (0.5 + 0.5 * jitter)
        self._next = self._soonest = now + wait
        return wait

    @property
    def all_failed(self) -> bool:
        """Every one of them has failed since one last answered."""
        return self._failed >= len(self.proxies.addresses)
