"""The state machine of a node, by hand: a virtual clock, and what each rule is for."""

from itertools import pairwise

import pytest

from shardproxy.core.health import (
    QUICK,
    RARE,
    READ_ONLY,
    REFUSED_MOST,
    URGENT_GAP,
    Evidence,
    Health,
    Policy,
    Window,
    fail_open,
)

POLICY = Policy()


def health(policy: Policy = POLICY, deadline: float = 0.5) -> Health:
    return Health(policy, 0.0, 0.0, deadline)


def up(policy: Policy = POLICY, deadline: float = 0.5) -> Health:
    made = health(policy, deadline)
    made.probed(0.0, True, "", 0.0)
    assert made.state == "up"
    return made


def evidence(
    ok: int = 0, failed: int = 0, slow: int = 0, streak: int | None = None, refused: bool = False
) -> Evidence:
    return Evidence(ok, failed, slow, failed if streak is None else streak, refused, "too late")


def out(policy: Policy = POLICY) -> Health:
    made = up(policy)
    made.observe(10.0, evidence(refused=True), 0.0)
    assert made.state == "out"
    return made


def test_a_new_node_is_probed_at_once_and_is_unknown_until_then() -> None:
    made = health()
    assert (made.state, made.next_probe) == ("unknown", 0.0)
    made.probed(0.1, True, "", 0.5)
    assert (made.state, made.since) == ("up", 0.1)
    assert 0.1 + 0.8 * POLICY.interval <= made.next_probe <= 0.1 + POLICY.interval


@pytest.mark.parametrize("at_first", ["unknown", "up"])
def test_a_refused_probe_or_connection_puts_it_out_at_once(at_first: str) -> None:
    for by_probe in (True, False):
        made = up() if at_first == "up" else health()
        if by_probe:
            made.probed(1.0, False, "Connection refused", 0.0, refused=True)
        else:
            made.observe(1.0, Evidence(0, 0, 0, 0, True, "Connection refused"), 0.0)
        assert (made.state, made.reason, made.since) == ("out", "Connection refused", 1.0)


def test_one_failure_makes_an_urgent_probe_due_and_a_good_one_ends_the_doubt() -> None:
    made = up()
    made.observe(3.0, evidence(failed=1), 0.0)
    assert (made.state, made.urgent, made.next_probe) == ("up", True, 3.0)
    assert made.probe_timeout == pytest.approx(0.4)
    made.probed(3.1, True, "", 0.0)
    assert (made.state, made.urgent, made.probe_timeout) == ("up", False, POLICY.timeout)
    made.observe(3.11, evidence(failed=1), 0.0)
    assert made.next_probe == pytest.approx(3.1 + URGENT_GAP)


def test_a_failed_probe_after_a_failure_puts_it_out() -> None:
    made = up()
    made.observe(3.0, evidence(failed=1), 0.0)
    made.probed(3.4, False, "no answer", 0.0)
    assert (made.state, made.reason) == ("out", "too late; a probe: no answer")


def test_a_success_since_the_failure_takes_the_doubt_away() -> None:
    made = up()
    made.observe(3.0, evidence(failed=1), 0.0)
    made.observe(3.1, evidence(ok=5), 0.0)
    made.probed(3.4, False, "no answer", 0.0)
    assert made.state == "up"
    made.observe(4.0, evidence(ok=5, failed=2, streak=0), 0.0)
    assert not made.urgent


def test_probes_alone_put_it_out_after_so_many() -> None:
    made = up()
    for number in range(POLICY.failures):
        assert made.state == "up"
        made.probed(5.0 + number, False, "no answer", 0.0)
        assert made.next_probe <= 5.0 + number + QUICK
    assert (made.state, made.reason) == ("out", "3 probes in a row failed: no answer")


def test_so_many_failures_in_a_row_make_it_suspect_whoever_saw_them() -> None:
    made = up()
    for _ in range(POLICY.consecutive - 1):  # one each of several workers
        made.observe(3.0, evidence(failed=1), 0.0)
        assert made.state == "up"
    made.observe(3.0, evidence(failed=1), 0.0)
    assert made.state == "suspect"
    assert made.reason == "3 requests in a row failed: too late"
    made.probed(3.01, True, "", 0.0)
    assert (made.state, made.reason) == ("up", "")


def test_after_a_good_probe_failures_are_counted_anew() -> None:
    """The engine's streak goes on; what counts is what came since."""
    made = up()
    made.observe(3.0, evidence(failed=2), 0.0)
    made.probed(3.1, True, "", 0.0)
    made.observe(3.2, evidence(failed=1, streak=3), 0.0)
    assert made.state == "up"


@pytest.mark.parametrize("what", ["failed", "slow"])
def test_rates_count_when_there_are_enough(what: str) -> None:
    made = up()
    some = evidence(ok=5, failed=5, streak=0) if what == "failed" else evidence(ok=10, slow=5)
    made.observe(1.0, some, 0.0)
    assert made.state == "up"  # ten say nothing
    made.observe(2.0, some, 0.0)
    assert made.state == "suspect"
    assert made.reason.startswith("10 of 20 requests ")
    made.probed(2.1, True, "", 0.0)
    assert made.state == "up"
    made.observe(2.2, some, 0.0)
    assert made.state == "up"  # the window was emptied


def test_the_window_forgets() -> None:
    made = up()
    made.observe(0.0, evidence(ok=9, failed=9, streak=0), 0.0)
    made.observe(RARE * POLICY.window + 1.0, evidence(ok=1, failed=1, streak=0), 0.0)
    assert made.state == "up"
    window = Window(10.0, 20)
    for second in range(1000):
        total, _, _ = window.add(second / 10, evidence(ok=1000))
        assert total <= 100 * 1000
    assert total >= 90 * 1000


@pytest.mark.parametrize("what", ["failed", "slow"])
@pytest.mark.parametrize("rate", [1, 10, 1000, 100_000])
def test_rates_work_at_any_rate(what: str, rate: int) -> None:
    """Every other request is bad. They are told of ten times a second at most."""
    made, now, each = up(), 0.0, max(rate // 10, 1)
    for number in range(25 * min(rate, 10)):
        bad = each // 2 if each > 1 else number % 2
        made.observe(
            now, evidence(each - bad, bad, 0, 0) if what == "failed" else evidence(each, 0, bad), 0.0
        )
        now += max(0.1, 1 / rate)
        if made.state == "suspect":
            break
    assert made.state == "suspect"
    assert now <= (25.0 if rate == 1 else 2.5)


def test_what_went_well_last_is_not_held_against_it() -> None:
    made = up()
    made.observe(0.0, evidence(ok=5, failed=10, slow=5, streak=0), 0.0)
    made.observe(1.0, evidence(ok=5), 0.0)
    assert made.state == "up"


def test_rates_that_a_probe_has_refuted_rest_for_a_window() -> None:
    """Its PING is quick and its requests are slow: now and then it is suspect, not all the time."""
    made, now, suspected = up(), 1.0, 0
    while now < 100.0:
        made.observe(now, evidence(ok=1000, slow=1000), 0.0)
        if made.state == "suspect":
            suspected += 1
            made.probed(now + 0.01, True, "", 0.0)
        now += 0.1
    assert 9 <= suspected <= 11
    made.observe(now, evidence(failed=3), 0.0)
    assert made.state == "suspect", "what fails in a row does not rest"


def test_who_refuses_to_write_is_asked_for_its_role_until_a_probe_is_good() -> None:
    made = up()
    made.observe(1.0, evidence(failed=1), 0.0)
    assert not made.look_at_role
    made.observe(1.0, Evidence(5, 1, 0, 1, False, READ_ONLY), 0.0)
    assert made.look_at_role and made.urgent
    made.probed(1.1, False, "it is a replica", 0.0)
    assert (made.state, made.reason) == ("out", f"{READ_ONLY}; a probe: it is a replica")
    made.probed(2.0, True, "", 0.0)
    assert made.look_at_role, "it has to be a primary twice"
    made.probed(2.5, True, "", 0.0)
    made.admitted(2.5)
    assert not made.look_at_role
    made.observe(3.0, Evidence(0, 1, 0, 1, False, READ_ONLY), 0.0)
    made.probed(3.1, True, "", 0.0)
    assert not made.look_at_role


def test_a_probe_that_could_not_be_made_says_nothing_and_is_made_again_soon() -> None:
    made = up()
    for _ in range(10):
        made.not_probed(5.0, 1.0)
    assert (made.state, made.next_probe) == ("up", 5.0 + QUICK)


def test_a_new_configuration_counts_from_then_on() -> None:
    made = up()
    made.observe(1.0, evidence(ok=9, failed=9, streak=0), 0.0)
    made.follow(Policy(minimum=5, window=1.0), 0.3)
    assert made.probe_timeout == POLICY.timeout
    made.observe(2.0, evidence(ok=3, failed=3, streak=1), 0.0)
    assert made.state == "suspect"
    assert made.probe_timeout == pytest.approx(0.24)


def test_a_suspect_whose_probe_fails_is_out() -> None:
    made = up()
    made.observe(1.0, evidence(ok=40, slow=40), 0.0)
    assert made.state == "suspect"
    made.probed(1.4, False, "no answer", 0.0)
    assert made.state == "out"


def test_stopped_for_600_ms_ten_times_is_never_out() -> None:
    """With a deadline of 500 ms: the probe that the first late reply asks for is answered in time."""
    made, now = up(), 1.0
    for _ in range(10):
        made.observe(now + 0.5, evidence(failed=200), 0.0)
        assert made.state == "suspect"
        assert made.next_probe <= now + 0.5
        assert now + 0.5 + made.probe_timeout > now + 0.6
        made.probed(now + 0.6, True, "", 0.0)
        assert made.state == "up"
        now += 1.2


def test_hung_is_out_soon_after_the_first_deadline() -> None:
    made = up()
    made.observe(1.5, evidence(failed=1), 0.0)
    assert made.next_probe == 1.5
    made.probed(1.5 + made.probe_timeout, False, "no answer", 0.0)
    assert (made.state, made.since) == ("out", 1.9)


def test_only_good_probes_bring_it_back_and_somebody_admits_it() -> None:
    made = out()
    made.observe(11.0, evidence(ok=100), 0.0)
    assert made.state == "out" and not made.returning
    made.probed(11.0, True, "", 0.0)
    assert not made.returning and made.next_probe <= 11.0 + QUICK
    made.probed(11.5, False, "no", 0.0)
    made.probed(12.0, True, "", 0.0)
    assert not made.returning  # two in a row
    made.probed(12.5, True, "", 0.0)
    assert made.returning and made.state == "out"
    made.not_admitted(12.6, "its keys could not be removed")
    assert (made.returning, made.reason) == (False, "its keys could not be removed")
    made.probed(13.0, True, "", 0.0)
    made.probed(13.5, True, "", 0.0)
    made.admitted(13.6)
    assert (made.state, made.since, made.reason) == ("up", 13.6, "")


def test_a_refused_return_is_tried_later_each_time() -> None:
    made, now, waits = out(), 11.0, []
    for _ in range(12):
        for _ in range(made.policy.successes):
            made.probed(now, True, "", 1.0)
        assert made.returning
        made.not_admitted(now, "another proxy", 1.0)
        waits.append(made.next_probe - now)
        now = made.next_probe
    assert waits[:4] == [QUICK, 2 * QUICK, 4 * QUICK, 8 * QUICK]
    assert waits[-1] == REFUSED_MOST
    for _ in range(made.policy.successes):
        made.probed(now, True, "", 1.0)
    made.admitted(now)
    made.observe(now + 1.0, Evidence(0, 1, 0, 1, True, "refused"), 1.0)
    made.not_admitted(now + 1.0, "again", 1.0)
    assert made.next_probe == now + 1.0 + QUICK


def test_a_refused_connection_ends_a_return() -> None:
    made = out()
    made.probed(11.0, True, "", 0.0)
    made.probed(11.5, True, "", 0.0)
    assert made.returning
    made.observe(11.6, evidence(refused=True), 0.0)
    assert not made.returning


def test_trials_wait_longer_when_it_flaps_up_to_a_bound() -> None:
    made, now, waits = up(), 100.0, []
    for _ in range(6):
        made.observe(now, evidence(refused=True), 0.99)
        waits.append(made.trial_at - now)
        made.admitted(now + 1.0)
        now += 2.0
    assert [round(wait) for wait in waits] == [30, 60, 120, 239, 299, 299]
    made.observe(now + 1000.0, evidence(refused=True), 0.99)
    assert round(made.trial_at - now - 1000.0) == 30


def test_a_trial_that_fails_waits_as_long_again() -> None:
    made = up()
    for now in (100.0, 102.0, 104.0):
        made.observe(now, evidence(refused=True), 0.99)
        made.admitted(now + 1.0)
    made.observe(106.0, evidence(refused=True), 1.0)
    assert made.trial_at == 106.0 + 8 * POLICY.wait
    made.put_off_trial(400.0, 1.0)
    assert made.trial_at == 400.0 + 8 * POLICY.wait


def test_when_it_was_last_heard_of() -> None:
    made = up()
    made.observe(3.0, evidence(ok=1), 0.0)
    made.observe(4.0, evidence(refused=True), 0.0)
    made.probed(5.0, False, "no answer", 0.0)
    assert made.heard_at == 3.0
    made.observe(6.0, evidence(ok=1), 0.0)
    assert made.heard_at == 6.0, "out for us, and it answers"
    made.probed(7.0, True, "", 0.0)
    assert made.heard_at == 7.0


def test_while_it_is_out_probes_become_rarer() -> None:
    made, gaps, now = out(), [], 10.0
    for _ in range(20):
        gaps.append(made.next_probe - now)
        now = made.next_probe
        made.probed(now, False, "Connection refused", 0.5, refused=True)
    assert all(sooner <= later + 1e-9 for sooner, later in pairwise(gaps))
    assert gaps[0] <= QUICK and gaps[-1] == pytest.approx(0.9 * POLICY.interval)


def test_fail_open() -> None:
    nodes = {name: up() for name in "abcd"}
    nodes["a"].probed(1.0, False, "gone", 0.0, refused=True)
    nodes["b"].observe(1.0, evidence(failed=5), 0.0)
    assert nodes["b"].state == "suspect"
    assert fail_open(nodes, 0.5) == set()
    nodes["c"].probed(1.0, False, "gone", 0.0, refused=True)
    assert fail_open(nodes, 0.5) == {"a", "b", "c"}
    assert fail_open(nodes, 1.0) == set()
    assert fail_open({}, 0.5) == set()
