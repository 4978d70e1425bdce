"""core/logins: how long the answer to a wrong password waits."""

from shardproxy.core import logins
from shardproxy.core.logins import Failures


def test_each_failure_doubles_the_wait_of_its_address() -> None:
    failures = Failures()
    waits = [failures.failed("10.0.0.1", 1.0 + number) for number in range(12)]
    assert waits[:3] == [logins.FIRST, 2 * logins.FIRST, 4 * logins.FIRST]
    assert waits[-1] == logins.MOST and waits == sorted(waits)
    assert failures.failed("10.0.0.2", 13.0) == logins.FIRST


def test_it_is_forgotten() -> None:
    failures = Failures()
    for _ in range(5):
        failures.failed("a", 10.0)
    assert failures.failed("a", 10.0 + logins.FORGET) == logins.FIRST


def test_memory_is_bounded_and_the_latest_are_kept() -> None:
    failures = Failures()
    for number in range(logins.ADDRESSES + 100):
        failures.failed(str(number), 0.0)
    assert len(failures) == logins.ADDRESSES
    assert failures.failed("0", 1.0) == logins.FIRST
    assert failures.failed(str(logins.ADDRESSES + 99), 1.0) == 2 * logins.FIRST
    for _ in range(10_000):
        failures.failed("same", 2.0)
    assert failures.failed("same", 2.0) == logins.MOST
