"""Keys that a change of shards moves: no worker uses their old place when another uses the new."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from servers import ProxyProcess, Raw, RedisNode, pack, redis_nodes, toml, until
from test_workers_adversity import one_on_each, worker_of

KEYS = [f"key:{number}" for number in range(60)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as nodes:
        yield nodes


class Team:
    """Two workers, a client on each, and one on the first that operates."""

    def __init__(self, nodes: list[RedisNode], timeout: str, stack: contextlib.ExitStack) -> None:
        for node in nodes:
            with node.raw() as raw:
                raw.ask("FLUSHALL")
        self.nodes, self.pool = nodes, f'kind = "cache"\ntimeout = "{timeout}"'
        self.proxy = stack.enter_context(ProxyProcess(self.text([0, 1])))
        crowd, self.pids = one_on_each(self.proxy)
        self.serving, self.lagging = (stack.enter_context(crowd[number]) for number in (0, 1))
        self.operator = stack.enter_context(until(self._another))
        self.write(self.serving, "old")

    def _another(self) -> Raw | None:
        raw = self.proxy.raw()
        if worker_of(raw) == 0:
            return raw
        raw.close()
        return None

    def text(self, places: list[int]) -> str:
        shards = {name: self.nodes[place].address for name, place in zip("abc", places, strict=False)}
        return toml(shards, top="workers = 2", pool=self.pool)

    def reload(self, *places: int) -> None:
        self.proxy.config_path.write_text(self.text(list(places)))
        self.operator.send(pack("PROXY", "RELOAD"))

    def answer(self) -> Any:
        """Of the change that was sent."""
        return json.loads(self.operator.frame().split(b"\r\n", 1)[1])

    def generation(self, raw: Raw | None = None) -> int:
        """Of the first worker, or whom this client is with."""
        return int(json.loads((raw or self.serving).value("PROXY", "TOPOLOGY"))["generation"])

    def write(self, raw: Raw, value: str) -> None:
        raw.send(writing(value))
        assert raw.frame() == b"+OK\r\n"

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        os.kill(self.pids[1], signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pids[1], signal.SIGCONT)


def writing(value: str) -> bytes:
    return pack("MSET", *(part for key in KEYS for part in (key, value)))


CHANGES: dict[str, Callable[[Team], None]] = {
    "a shard more": lambda team: team.reload(0, 1, 2),
    "other addresses": lambda team: team.reload(1, 0),
    "drained": lambda team: team.operator.send(pack("PROXY", "DRAIN", "a")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_worker_that_lags_behind(nodes: list[RedisNode], change: str) -> None:
    with contextlib.ExitStack() as stack:
        team = Team(nodes, "10s", stack)
        assert set(team.lagging.value("MGET", *KEYS)) == {"old"}
        generation = team.generation()
        with team.stopped():
            CHANGES[change](team)
            for _ in range(15):  # that it does not come is right: somebody has to stop waiting
                if team.generation() > generation:
                    break
                time.sleep(0.02)
            team.write(team.serving, "new")
            team.lagging.send(pack("MGET", *KEYS) + writing("newer"))
        assert b"old" not in team.lagging.frame()
        assert team.lagging.frame() == b"+OK\r\n"
        assert team.answer()["not_acknowledged"] == []
        assert team.generation() > generation
        for raw in (team.serving, team.lagging):
            assert set(raw.value("MGET", *KEYS)) <= {"newer", None}


def test_a_worker_that_stands_still_holds_nobody_up(nodes: list[RedisNode]) -> None:
    """It is waited for within limits, while all others serve, and named."""
    with contextlib.ExitStack() as stack:
        team = Team(nodes, "300ms", stack)
        generation = team.generation()
        with team.stopped():
            team.reload(0, 1, 2)
            longest, served, start = 0.0, 0, time.monotonic()
            while team.generation() == generation:
                before = time.monotonic()
                assert team.serving.ask("SET", "key", "value") == b"+OK\r\n"
                longest, served = max(longest, time.monotonic() - before), served + 1
                assert time.monotonic() < start + 60
            assert team.answer()["not_acknowledged"] == ["worker 1"]
        assert served > 10, longest
        assert [1] in [event.get("workers") for event in team.proxy.events("worker_silent")]
        until(lambda: team.generation(team.lagging) > generation, "it to catch up")
