"""What no order of evidence and probes may do to a node's state; nodes that stop and go under any load."""

from collections.abc import Sequence
from itertools import product
from typing import TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from shardproxy.core.health import URGENT_GAP, Evidence, Health, Policy, fail_open

Event: TypeAlias = (
    Evidence | tuple[bool, bool] | None
)  # (ok, refused) of a probe; None: admit it, if it returns

counts = st.integers(0, 30)
evidences = st.builds(
    Evidence, counts, counts, counts, st.integers(0, 40), st.just(False) | st.booleans(), st.just("why")
)
probes = st.tuples(st.booleans(), st.booleans())
steps = st.lists(st.tuples(st.floats(0.001, 3.0), st.floats(0, 0.999), evidences | probes | st.none()))
policies = st.builds(
    Policy,
    failures=st.integers(1, 4),
    successes=st.integers(1, 4),
    consecutive=st.integers(1, 5),
    minimum=st.integers(1, 40),
    interval=st.floats(0.05, 10),
    timeout=st.floats(0.05, 3),
    wait=st.floats(1, 10),
    wait_most=st.floats(10, 50),
)


@given(policies, steps)
def test_no_order_of_events_breaks_the_rules(policy: Policy, steps: list[tuple[float, float, Event]]) -> None:
    follow_rules(policy, steps)


def test_nor_does_any_short_one() -> None:
    """All of them, of so many steps."""
    events: list[Event] = [
        (True, False),
        (False, False),
        (False, True),
        None,
        Evidence(1, 0, 0, 0, False, "why"),
        Evidence(0, 1, 0, 1, False, "why"),
        Evidence(9, 9, 0, 1, False, "why"),
        Evidence(9, 0, 9, 0, False, "why"),
        Evidence(0, 1, 0, 1, True, "why"),
    ]
    policy = Policy(failures=2, consecutive=2, minimum=10, window=2.0)
    for sequence in product(events, repeat=5):
        follow_rules(policy, [(1.0, 0.5, event) for event in sequence])


def follow_rules(policy: Policy, steps: Sequence[tuple[float, float, Event]]) -> None:
    now = 0.0
    health = Health(policy, now, 0.0, 0.5)
    good = bad = 0  # probes in a row
    for passed, jitter, event in steps:
        now += passed
        before, was_urgent = health.state, health.urgent
        if isinstance(event, Evidence):
            health.observe(now, event, jitter)
            if health.state != before:
                # without a probe: suspect, and out only when a connection was refused
                assert health.state == "suspect" or (health.state == "out" and event.refused)
            if event.refused:
                assert health.state == "out"
                good = bad = 0
            elif event.streak and before != "out":
                assert health.urgent and health.next_probe <= now + URGENT_GAP
            elif event.ok and before == "up" and health.state == "up":
                assert not health.urgent
        elif event is not None:
            ok, refused = event
            health.probed(now, ok, "why", jitter, refused and not ok)
            good, bad = (good + 1, 0) if ok else (0, bad + 1)
            if before == "out":
                assert health.state == "out"
                assert health.returning == (good >= policy.successes)
            elif ok:
                assert health.state == "up" and not health.urgent
            elif health.state == "out":
                assert refused or was_urgent or bad >= policy.failures
                good = bad = 0
            else:
                assert not refused and bad < policy.failures
            assert now < health.next_probe <= now + policy.interval
        elif health.returning:
            health.admitted(now)
            assert health.state == "up"
            good = bad = 0
        if before == "out" and health.state != "out":
            assert event is None  # only whoever admits it
        if health.state == "out":
            assert health.trial_at - health.since <= policy.wait_most
            assert health.reason == "why" or "why" in health.reason
        assert 0 < health.probe_timeout <= policy.timeout
        assert (health.state in ("unknown", "up")) == (not health.reason)


class Node:
    """A node that answers except while it is stopped, asked `rate` times a second with a deadline.

    Its health is fed as the Keeper would: evidence every 0.1 s and at the first failure, probes when due.
    """

    STEP = 0.01

    def __init__(self, rate: float, deadline: float, stops: list[tuple[float, float]], jitter: float) -> None:
        self.health = Health(Policy(), 0.0, jitter, deadline)
        self.rate, self.deadline, self.stops, self.jitter = rate, deadline, stops, jitter
        self.asked = self.streak = 0
        self.states: list[tuple[float, str]] = []

    def answers_by(self, now: float) -> float:
        """When what is asked now is answered."""
        return next((end for start, end in self.stops if start <= now < end), now)

    def run(self, seconds: float) -> None:
        waiting: list[tuple[float, float]] = []  # (answered at, failed at)
        probe: tuple[float, float, bool] | None = None  # (answered at, failed at, urgent)
        sent = ok = failed = 0
        for number in range(int(seconds / self.STEP)):
            now = number * self.STEP
            due = int(now * self.rate)
            # of what is asked in one step one request stands for all: they share their fate
            if (weight := due - sent) and self.health.state not in ("suspect", "out"):
                answered = self.answers_by(now)
                waiting += [(answered, now + self.deadline)] * min(weight, 3)
            sent = due
            done = [each for each in waiting if min(each) <= now]
            waiting = [each for each in waiting if min(each) > now]
            for answered, fails in done:
                if answered <= fails:
                    ok, self.streak = ok + 1, 0
                else:
                    failed, self.streak = failed + 1, self.streak + 1
            if failed or (ok and number % 10 == 0):
                self.health.observe(now, Evidence(ok, failed, 0, self.streak, False, "late"), self.jitter)
                ok = failed = 0
            if probe and self.health.urgent and not probe[2]:
                probe = None  # the Keeper begins anew, with less patience
            if probe is None and now >= self.health.next_probe:
                probe = (self.answers_by(now), now + self.health.probe_timeout, self.health.urgent)
            if probe and min(probe[:2]) <= now:
                self.health.probed(now, probe[0] <= probe[1], "no answer", self.jitter)
                probe = None
            if self.health.returning:
                self.health.admitted(now)
            if not self.states or self.states[-1][1] != self.health.state:
                self.states.append((now, self.health.state))


rates = st.sampled_from([1.0, 3.0, 10.0, 100.0, 100_000.0])


@given(rates, st.floats(0, 0.9), st.floats(0, 0.999))
def test_stopped_for_600_ms_ten_times_is_never_out(rate: float, phase: float, jitter: float) -> None:
    stops = [(2.0 + phase + 3 * n, 2.6 + phase + 3 * n) for n in range(10)]
    node = Node(rate, 0.5, stops, jitter)
    node.run(35.0)
    assert "out" not in {state for _, state in node.states}
    assert node.health.state == "up"


@given(rates, st.floats(0, 0.9), st.floats(0, 0.999))
def test_hung_is_out_half_a_second_after_the_first_deadline(rate: float, phase: float, jitter: float) -> None:
    hang = 2.0 + phase
    node = Node(rate, 0.5, [(hang, 20.0)], jitter)
    node.run(30.0)
    at = next(now for now, state in node.states if state == "out")
    first = hang + 1 / rate  # at the latest something is asked then
    assert at <= first + 0.5 + 0.4 + 0.1 + 5 * node.STEP
    assert node.states[-1][1] == "up" and node.states[-1][0] >= 20.0


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 2), max_size=8), st.floats(0, 1))
def test_fail_open_ignores_all_that_look_down_or_none(kinds: dict[str, int], ratio: float) -> None:
    nodes = {}
    for name, kind in kinds.items():
        nodes[name] = health = Health(Policy(), 0.0, 0.0, 0.5)
        health.probed(0.0, kind != 2, "gone", 0.0, refused=kind == 2)
        if kind == 1:
            health.observe(0.1, Evidence(0, 3, 0, 3, False, "late"), 0.0)
    down = {name for name, kind in kinds.items() if kind}
    assert fail_open(nodes, ratio) == (down if len(down) > ratio * len(nodes) else set())
