"""How a node is doing: one state machine a node, fed with evidence and probes; it decides, others act.

Owns: the states and what leads from one to another. Knows no socket, no clock and no chance: `now` is seconds
of a clock that never goes back, `jitter` a number from 0 up to 1. Rules: a failure makes a probe due at once;
evidence alone makes a node suspect, never out; out takes a failed probe as well, or a refused connection;
only probes bring a node back, and who runs them says when it is admitted.
"""

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from shardproxy.core.topology import State

REFUSED_MOST = 30.0  # seconds between tries to admit a node, at most
QUICK = 0.5  # seconds to the next probe when one has just said something new
URGENT_GAP = 0.1  # seconds between probes that failures ask for
URGENT_PART = 0.8  # of the deadline: an urgent probe has no longer
START_SPREAD = 0.1  # seconds over which the first probes are spread
BUCKETS = 10  # of the window; the oldest is dropped as a whole
RARE = 6  # windows: so far back looks who needs that for `minimum` requests
READ_ONLY = "it is read-only"  # the engine's words: the one failure of which a PING knows nothing


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What `[pool.NAME.health]` says, with the pool's own timeout. Times are seconds."""

    probe: str = "ping"
    interval: float = 5.0
    timeout: float = 2.0
    failures: int = 3
    successes: int = 2
    consecutive: int = 3
    failure_rate: float = 0.5
    slow_rate: float = 0.5
    slow_call: float = 0.5
    window: float = 10.0
    minimum: int = 20
    wait: float = 30.0
    wait_most: float = 300.0
    fail_open_ratio: float = 0.5
    max_memory_percent: float = 1.0


class Evidence(NamedTuple):
    """What one worker has seen of a node since it last told."""

    ok: int
    failed: int
    slow: int  # of those that were answered
    streak: int  # failures since the last success, also those told before
    refused: bool  # a connection was refused, or cannot be made at all
    reason: str  # of the last failure


class Window:
    """Counts over the last so many seconds, however many there are of them.

    minimum: while there are fewer it looks further back, so that it says something of who is asked rarely.
    """

    def __init__(self, seconds: float, minimum: int) -> None:
        self._width, self._minimum = seconds / BUCKETS, minimum
        self._buckets: deque[list[int]] = deque()  # [number, ok, failed, slow]

    def add(self, now: float, evidence: Evidence) -> tuple[int, int, int]:
        """Returns how many there were in all, failed, and slow."""
        number = int(now / self._width)
        while self._buckets and self._buckets[0][0] <= number - RARE * BUCKETS:
            self._buckets.popleft()
        if not self._buckets or self._buckets[-1][0] != number:
            self._buckets.append([number, 0, 0, 0])
        for at, count in enumerate((evidence.ok, evidence.failed, evidence.slow), 1):
            self._buckets[-1][at] += count
        total = all_failed = all_slow = 0
        for when, ok, failed, slow in reversed(self._buckets):
            if when <= number - BUCKETS and total >= self._minimum:
                break
            total, all_failed, all_slow = total + ok + failed, all_failed + failed, all_slow + slow
        return total, all_failed, all_slow

    def clear(self) -> None:
        self._buckets.clear()


class Health:
    """One node. `deadline`: seconds that the most impatient request to it has, or one try."""

    def __init__(self, policy: Policy, now: float, jitter: float, deadline: float) -> None:
        self.policy = policy
        self.deadline = deadline
        self.state: State = "unknown"
        self.reason = ""  # why it is in this state
        self.since = now
        self.next_probe = now + jitter * START_SPREAD
        self.trial_at = now  # for who has no probes: when a trial request may go to a node that is out
        self.heard_at = now  # when it last answered, requests or probes
        self._probed_at = now - URGENT_GAP
        self._window = Window(policy.window, policy.minimum)
        self._cleared_at = now - policy.window  # when a probe last refuted what was held against it
        self._streak = 0  # failures since the last success or good probe, over all workers
        self._doubt = ""  # why it is in doubt: a failure that neither success nor good probe has followed
        self.look_at_role = False  # probes are to, however deep they are: it has refused to write
        self._failures = self._successes = 0  # probes, in a row
        self._wait = policy.wait
        self._admitted_at: float | None = None
        self._refusals = 0  # in a row: it was well and could not be admitted

    def follow(self, policy: Policy, deadline: float) -> None:
        """The configuration may have changed."""
        if (policy.window, policy.minimum) != (self.policy.window, self.policy.minimum):
            self._window = Window(policy.window, policy.minimum)
        self.policy, self.deadline = policy, deadline

    @property
    def urgent(self) -> bool:
        """The next probe decides about requests that fail or wait now."""
        return self.state == "suspect" or bool(self._doubt)

    @property
    def probe_timeout(self) -> float:
        """For the next probe. An urgent one is over before those who wait for it have to give up."""
        timeout = self.policy.timeout
        return min(timeout, URGENT_PART * self.deadline) if self.urgent else timeout

    @property
    def returning(self) -> bool:
        """It is out, and well again: admit it when its keys may come back."""
        return self.state == "out" and self._successes >= self.policy.successes

    def observe(self, now: float, evidence: Evidence, jitter: float) -> None:
        """Passive evidence. What comes of a node that is out is about what was sent before."""
        if evidence.ok:
            self.heard_at = now
        if evidence.refused:
            self._go_out(now, evidence.reason, jitter)
        if self.state == "out":
            return
        if evidence.ok:
            self._streak = 0
            self._doubt = ""
        total, failed, slow = self._window.add(now, evidence)
        self.look_at_role |= evidence.failed > 0 and evidence.reason == READ_ONLY
        if evidence.streak:
            self._streak += min(evidence.streak, evidence.failed) if evidence.ok else evidence.failed
            self._doubt = evidence.reason or "requests fail"
        why = ""
        if self._streak >= self.policy.consecutive:
            why = f"{self._streak} requests in a row failed: {evidence.reason}"
        elif total >= self.policy.minimum and now >= self._cleared_at + self.policy.window:
            if evidence.failed and failed >= self.policy.failure_rate * total:
                why = f"{failed} of {total} requests failed: {evidence.reason}"
            elif evidence.slow and slow >= self.policy.slow_rate * total:
                why = f"{slow} of {total} requests took over {self.policy.slow_call:g} s"
        if why and self.state != "suspect":
            self._doubt = self._doubt or why
            self._become("suspect", now, why)
        if self.urgent:
            self.next_probe = min(self.next_probe, max(now, self._probed_at + URGENT_GAP))

    def probed(self, now: float, ok: bool, reason: str, jitter: float, refused: bool = False) -> None:
        """What an active probe found; refused: it could not connect at all."""
        self._probed_at = now
        if ok:
            self.heard_at = now
            self._failures = self._streak = 0
            self._doubt = ""
            self.look_at_role &= self.state == "out"
            if self.state == "out":
                self._successes += 1
                self._probe_in(QUICK, now, jitter)
                return
            if self.state != "up":
                if self.state == "suspect":
                    self._cleared_at = now
                self._window.clear()
                self._become("up", now, "")
            self._probe_in(self.policy.interval, now, jitter)
            return
        self._failures += 1
        self._successes = 0
        if self.state == "out":
            # a restart is found out soon, a loss is not asked after all the time
            self._probe_in(QUICK + (now - self.since) / 4, now, jitter)
        elif refused:
            self._go_out(now, reason, jitter)
        elif self._doubt:
            both = reason if reason == self._doubt else f"{self._doubt}; a probe: {reason}"
            self._go_out(now, both, jitter)
        elif self._failures >= self.policy.failures:
            self._go_out(now, f"{self._failures} probes in a row failed: {reason}", jitter)
        else:
            self._probe_in(QUICK, now, jitter)

    def not_probed(self, now: float, jitter: float) -> None:
        """We could not ask it, for a reason of our own."""
        self._probed_at = now
        self._probe_in(QUICK, now, jitter)

    def put_off_trial(self, now: float, jitter: float) -> None:
        """The next trial request to it is so much later."""
        self.trial_at = now + self._wait * (0.75 + 0.25 * jitter)

    def put_out(self, now: float, reason: str) -> None:
        """It was out before anybody asked it here: it has to return."""
        self.next_probe = now
        self._become("out", now, reason)

    def admitted(self, now: float) -> None:
        """Its keys have come back to it."""
        self._successes = self._refusals = 0
        self.look_at_role = False
        self._admitted_at = now
        self._become("up", now, "")

    def not_admitted(self, now: float, reason: str, jitter: float = 0.0) -> None:
        """What has to be done before could not be done: its probes begin again, later each time."""
        self._successes = 0
        self.reason = reason
        wait = min(QUICK * 2.0**self._refusals, REFUSED_MOST)
        self._refusals = min(self._refusals + 1, 16)
        self.next_probe = now + wait * (0.8 + 0.2 * jitter)

    def _go_out(self, now: float, reason: str, jitter: float) -> None:
        self._successes = 0
        if self.state == "out":
            return
        flaps = self._admitted_at is not None and now - self._admitted_at < self._wait
        self._wait = min(2 * self._wait, self.policy.wait_most) if flaps else self.policy.wait
        self._refusals = 0
        self.put_off_trial(now, jitter)
        self._streak = self._failures = 0
        self._doubt = ""
        self._window.clear()
        self._become("out", now, reason)
        self._probe_in(QUICK, now, jitter)

    def _become(self, state: "State", now: float, reason: str) -> None:
        self.state, self.since, self.reason = state, now, reason

    def _probe_in(self, seconds: float, now: float, jitter: float) -> None:
        self.next_probe = now + min(seconds, self.policy.interval) * (0.8 + 0.2 * jitter)


def fail_open(states: Mapping[str, Health], ratio: float) -> set[str]:
    """The nodes whose state is to be ignored: when so many look down, who looks is the likelier fault."""
    down = {address for address, health in states.items() if health.state in ("suspect", "out")}
    return down if len(down) > ratio * len(states) else set()
