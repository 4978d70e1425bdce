"""Every interleaving of requests on a session store that hypothesis can think of; see sessions_machine.

SESSIONS_EXAMPLES: how many (default 40); SESSIONS_SHRINK: a failure is made small, which takes minutes. What
is proved: no resurrection, no lost field, no record without TTL, no index entry that outlives its record, and
that a script and its model say the same.
"""

import os
from typing import Any

import redis as redis_py
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from servers import RedisNode
from sessions_machine import World

EXAMPLES = int(os.environ.get("SESSIONS_EXAMPLES", "40"))
PHASES = [Phase.generate] + [Phase.shrink] * ("SESSIONS_SHRINK" in os.environ)
STEPS = int(os.environ.get("SESSIONS_STEPS", "40"))
pick = st.integers(0, 1000)
USERS = st.sampled_from(["alice", "bob"])
WHAT = st.sampled_from(
    ["save"] * 8 + ["renew"] * 4 + ["optimistic"] * 3 + ["login", "login", "destroy", "revoke", "revoke_all"]
)
CHANGES = st.one_of(
    st.tuples(st.just("set"), st.sampled_from(["n", "s"]), st.integers(0, 30)),
    st.tuples(st.just("set"), st.just("l"), st.lists(st.integers(0, 3), max_size=2)),
    st.tuples(st.just("del"), st.sampled_from(["n", "s", "l"]), st.none()),
    st.tuples(st.just("incr"), st.just("n"), st.integers(-2, 2)),
    st.tuples(st.just("append"), st.just("l"), st.integers(0, 3)),
    st.tuples(st.just("inside"), st.just("l"), st.integers(0, 3)),
)


def machine(client: Any, **options: Any) -> type[RuleBasedStateMachine]:
    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            client.config_set("maxmemory", 0)
            self.world = World(client, **options)

        def idle(self) -> list[Any]:
            return [each for each in self.world.requests.values() if each.plan is None]

        def busy(self) -> list[Any]:
            return [each for each in self.world.requests.values() if each.plan is not None]

        @initialize(user=st.sampled_from([None, "alice"]), visitors=st.integers(1, 3), fields=st.booleans())
        def a_session_that_several_use(self, user: str | None, visitors: int, fields: bool) -> None:
            first = self.world.arrive(None, None)
            if fields:
                self.world.change(first, "set", "n", 1)
                self.world.change(first, "append", "l", 0)
                self.world.begin(first, "save")
                self.world.finish(first)
            if user is not None:
                self.world.begin(first, "login", user)
                self.world.finish(first)
            if first.lineage:
                for _ in range(visitors):
                    self.world.arrive(first.lineage.cookies[-1], first.lineage)

        @rule(which=pick, old=st.sampled_from([1, 1, 1, 2, 3]))
        def somebody_comes(self, which: int, old: int) -> None:
            known = [each for each in self.world.lineages if each.cookies]
            if which % 10 == 9 or not known or len(self.world.requests) > 8:
                if len(self.world.requests) < 9:
                    self.world.arrive(None, None)
                return
            lineage = known[-1 - which % len(known)]
            self.world.arrive(lineage.cookies[-min(old, len(lineage.cookies))], lineage)

        @precondition(lambda self: self.idle())
        @rule(
            which=pick,
            changes=st.lists(CHANGES, min_size=1, max_size=3),
            what=WHAT,
            user=USERS,
            at_once=st.booleans(),
        )
        def work(
            self, which: int, changes: list[tuple[str, str, Any]], what: str, user: str, at_once: bool
        ) -> None:
            request = self.idle()[which % len(self.idle())]
            for change in changes:
                self.world.change(request, *change)
            self.world.begin(request, what, user)
            if at_once:
                self.world.finish(request)

        @precondition(lambda self: self.busy())
        @rule(which=pick, how=st.sampled_from(["step"] * 5 + ["finish"] * 3 + ["lose", "crash"]))
        def go_on(self, which: int, how: str) -> None:
            request = self.busy()[which % len(self.busy())]
            if how == "finish":
                self.world.finish(request)
            elif how == "crash":
                self.world.crash(request)
            else:
                self.world.step(request, lose=how == "lose")

        @rule(
            what=st.sampled_from(
                [3] * 8 + [107] * 8 + [613, 901, 901, 901, 1613] + ["full", "room", "room"] + ["empty"]
            )
        )
        def meanwhile(self, what: int | str) -> None:
            if isinstance(what, int):
                self.world.both.age(what)
                self.world.clock += what
            elif what == "empty":
                self.world.both.empty()
                for lineage in self.world.lineages:
                    lineage.alive = False
            else:
                client.config_set("maxmemory", 1 if what == "full" else 0)
                self.world.full = what == "full"

        @invariant()
        def all_is_well(self) -> None:
            self.world.both.compare()

        def teardown(self) -> None:
            client.config_set("maxmemory", 0)

    return Machine


def check(client: Any, examples: int = EXAMPLES, **options: Any) -> None:
    run_state_machine_as_test(
        machine(client, **options),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            phases=PHASES,
            report_multiple_bugs=False,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_every_interleaving() -> None:
    with RedisNode() as node, redis_py.Redis(port=node.port) as client:
        check(client)


def test_every_interleaving_encrypted() -> None:
    """Encrypted fields cannot be counted in by a script: version checks and retries instead."""
    with RedisNode() as node, redis_py.Redis(port=node.port) as client:
        check(client, EXAMPLES // 2, encrypt=True, compress_over=None)


def test_every_interleaving_with_few_sessions_a_user() -> None:
    with RedisNode() as node, redis_py.Redis(port=node.port) as client:
        check(client, EXAMPLES // 2, max_sessions=2, format="msgpack")
