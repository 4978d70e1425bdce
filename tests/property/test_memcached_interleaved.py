"""A command of several steps on memcached is atomic: whatever another does between two of its steps.

Every program is stopped after each of its steps in turn, and another command runs there to its end. Both
replies and what is left must be those of a Redis that ran the two one after the other, in either order.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from servers import MemcachedNode, Raw, RedisNode
from stepper import Stepper

from shardproxy.core.memcached import Frames, encode, parse, start

START = [
    *(
        None,
        ("5", None),
        ("-1", None),
        ("9", 1000),
        ("10", 1000),
        ("-10", 1000),
        ("abc", None),
        ("1.5", 1000),
    ),
]

OURS = [
    line.split()
    for line in (
        *(
            "INCR k",
            "DECR k",
            "DECRBY k 6",
            "INCRBY k 100",
            "INCRBYFLOAT k 0.5",
            "APPEND k 7",
            "SETRANGE k 3 yz",
        ),
        *("GETDEL k", "GETSET k new", "SET k new KEEPTTL", "SET k new GET NX", "SET k new XX KEEPTTL"),
        *(
            "GETEX k EX 500",
            "GETEX k PERSIST",
            "PERSIST k",
            "EXPIRE k 500",
            "EXPIRE k 500 NX",
            "EXPIRE k 500 XX",
        ),
        *("EXPIRE k 2000 GT", "EXPIRE k 200 LT", "EXPIRE k -1 NX", "EXPIRE k 0"),
    )
]
THEIRS = [
    line.split()
    for line in (
        *("DEL k", "SET k 8", "SET k -3 EX 4000", "INCR k", "INCRBY k -20", "EXPIRE k 4000", "EXPIRE k -1"),
        *("PERSIST k", "APPEND k 0", "SETNX k 6"),
    )
]
LONGEST = 8  # steps; none has so many


class Outcome(NamedTuple):
    ours: bytes
    theirs: bytes
    value: bytes
    ttl: int  # hundreds of seconds


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Raw, Stepper, Stepper]]:
    with ExitStack() as stack:
        redis = stack.enter_context(stack.enter_context(RedisNode()).raw())
        port = stack.enter_context(MemcachedNode()).port
        yield redis, stack.enter_context(Stepper(port)), stack.enter_context(Stepper(port))


def begin(connection: Raw | Stepper, state: tuple[str, int | None] | None) -> None:
    connection.ask("DEL", "k")
    if state is not None:
        connection.ask("SET", "k", state[0], *(() if state[1] is None else ("EX", state[1])))


def left(connection: Raw | Stepper) -> tuple[bytes, int]:
    ttl = int(connection.ask("TTL", "k")[1:])
    return connection.ask("GET", "k"), ttl if ttl < 0 else round(ttl, -2)


def one_after_the_other(
    redis: Raw, state: tuple[str, int | None] | None, ours: Sequence[str], theirs: Sequence[str]
) -> list[Outcome]:
    found = []
    for swapped in (False, True):
        begin(redis, state)
        pair = (theirs, ours) if swapped else (ours, theirs)
        replies = [redis.ask(*each) for each in pair]
        mine, other = reversed(replies) if swapped else replies
        found.append(Outcome(mine, other, *left(redis)))
    return found


def in_between(
    mine: Stepper,
    other: Stepper,
    state: tuple[str, int | None] | None,
    ours: Sequence[str],
    theirs: Sequence[str],
    after: int,
) -> tuple[int, Outcome]:
    """The steps that ours took, and what came of it."""
    begin(mine, state)
    args = [each.encode() for each in ours]
    program, frames, steps, reply = start(ours[0].lower(), args, mine.node), Frames(), 0, b""
    try:
        step = next(program)
        while True:
            mine.socket.sendall(step.data)
            found: list[bytes] = []
            while len(found) < step.replies:
                found += frames.feed(mine.socket.recv(1 << 16))
            steps += 1
            if steps == after:
                reply = other.ask(*theirs)
            step = program.send([parse(each) for each in found])
    except StopIteration as done:
        answer = encode(done.value)
    return steps, Outcome(answer, reply or other.ask(*theirs), *left(mine))


@pytest.mark.parametrize("ours", OURS, ids=" ".join)
def test_one_of_the_two_orders(servers: tuple[Raw, Stepper, Stepper], ours: list[str]) -> None:
    redis, mine, other = servers
    most = 0
    for state, theirs in itertools.product(START, THEIRS):
        orders = one_after_the_other(redis, state, ours, theirs)
        for after in range(1, LONGEST):
            steps, outcome = in_between(mine, other, state, ours, theirs, after)
            assert outcome in orders, f"{ours} with {theirs} after step {after}, at first {state}: {orders}"
            most = max(most, steps)
            if after >= steps:
                break
    assert most > 1, "it has one step: nothing was tried"
