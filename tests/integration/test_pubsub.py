"""Pub/sub: the same programs on a plain Redis and through the proxy; what becomes of subscribers when nodes change."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import pytest
import redis as redis_py
from servers import ProxyProcess, Raw, RedisNode, pack, redis_nodes, shards_of, toml, until

NAMES = [b"news", b"sport", b"{t}a", b"{t}b", b"n*"]
PATTERNS = [b"n*", b"*", b"[ns]*", b"{t}?"]


MESSAGE = re.compile(rb"[*>][34]\r\n\$[78]\r\n[ps]?message\r\n")


def unasked(raw: Raw, patience: float = 0.1) -> list[bytes]:
    """What comes until nothing does for a moment."""
    found = []
    raw.socket.settimeout(patience)
    try:
        while True:
            found.append(raw.frame())
    except TimeoutError:
        return found
    finally:
        raw.socket.settimeout(10)


# --- as Redis does ---


class Program:
    """Clients that subscribe, publish, unsubscribe; one command after another."""

    def __init__(self, seed: int) -> None:
        dice = Random(seed)
        self.protocols = [dice.choice([2, 3]) for _ in range(3)]
        self.steps = [self.step(dice) for _ in range(60)]

    def step(self, dice: Random) -> tuple[int, list[bytes]]:
        names = dice.sample(NAMES, dice.choice([1, 1, 2, 3]))
        patterns = dice.sample(PATTERNS, dice.choice([1, 1, 2]))
        commands: list[list[bytes]] = [
            [b"SUBSCRIBE", *names], [b"SSUBSCRIBE", *names[:1]], [b"PSUBSCRIBE", *patterns],
            [b"UNSUBSCRIBE", *names], [b"SUNSUBSCRIBE", *names], [b"PUNSUBSCRIBE", *patterns],
            [b"UNSUBSCRIBE"], [b"PUNSUBSCRIBE"], [b"SUNSUBSCRIBE"],
            *[[b"PUBLISH", name, b"%d" % dice.randrange(1000)] for name in names * 4],
            *[[b"SPUBLISH", name, b"%d" % dice.randrange(1000)] for name in names],
            [b"PUBSUB", b"CHANNELS"], [b"PUBSUB", b"CHANNELS", b"n*"], [b"PUBSUB", b"NUMSUB", *names],
            [b"PUBSUB", b"NUMPAT"], [b"PUBSUB", b"SHARDCHANNELS"], [b"PUBSUB", b"SHARDNUMSUB", *names],
            [b"PING"], [b"PING", b"x"], [b"GET", b"x"], [b"RESET"], [b"HELLO", b"3"], [b"HELLO", b"2"],
            [b"PUBSUB", b"NUMSUB"], [b"PUBSUB", b"CHANNELS", b"a", b"b"],
            [b"SUBSCRIBE"], [b"PUBSUB"], [b"PUBSUB", b"NUMPAT", b"x"], [b"QUITX"], [b"CLIENT", b"NOSUCH"],
        ]  # fmt: skip
        return dice.randrange(4), dice.choice(commands)

    def run(self, port: int) -> list[Any]:
        found: list[Any] = []
        clients = [Raw(port) for _ in range(4)]  # the last one only publishes and asks
        got: list[list[bytes]] = [[] for _ in clients]  # messages, which come when they come
        try:
            for raw, proto in zip(clients, self.protocols, strict=False):
                raw.ask("HELLO", proto)
            for who, args in self.steps:
                if who == 3 and b"SUBSCRIBE" in args[0]:
                    args = [b"PUBLISH", args[-1], b"0"]
                # the PING shows where the replies end, and that what came before is here
                clients[who].send(pack(*args) + pack("PING", "end"))
                frames: list[bytes] = []
                while not (frames and b"$3\r\nend\r\n" in frames[-1]):
                    frame = clients[who].frame()
                    (got[who] if MESSAGE.match(frame) else frames).append(frame)
                found.append((who, args, sorted(shown(args, frame) for frame in frames)))
            for raw, mine in zip(clients, got, strict=True):
                mine += unasked(raw)
                # one that was on its way at a HELLO may be of the protocol before or after
                found.append(sorted(frame[1:] for frame in mine))
        finally:
            for raw in clients:
                raw.close()
        return found


def shown(args: Sequence[bytes], frame: bytes) -> bytes:
    """Without what differs: a client's id, the order of a set."""
    if args[0] == b"HELLO":
        return re.sub(rb"\$2\r\nid\r\n:\d+", b"id", frame)
    if args[:2] in ([b"PUBSUB", b"CHANNELS"], [b"PUBSUB", b"SHARDCHANNELS"]) and frame.startswith(b"*"):
        return b"|".join(sorted(frame.split(b"\r\n")))
    if args[0].endswith(b"UNSUBSCRIBE") and len(args) == 1:  # which one comes first is chance
        return re.sub(rb":\d+\r\n$", b":N\r\n", frame)
    return frame


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3, "--notify-keyspace-events", "KEA") as nodes:
        yield nodes


@pytest.fixture(scope="module", params=[(1, 1), (3, 1), (3, 2)], ids=["1 node", "3 nodes", "2 workers"])
def proxy(nodes: list[RedisNode], request: pytest.FixtureRequest) -> Iterator[ProxyProcess]:
    count, workers = request.param
    with ProxyProcess(toml(shards_of(nodes[:count]), top=f"workers = {workers}")) as proxy:
        yield proxy


@pytest.mark.parametrize("seed", range(12))
def test_as_one_redis(proxy: ProxyProcess, redis: RedisNode, seed: int) -> None:
    program = Program(seed)
    settle(proxy)
    for number, (one, other) in enumerate(zip(program.run(redis.port), program.run(proxy.port), strict=True)):
        assert other == one, number
    assert "handler_failed" not in proxy.log_text()


def settle(proxy: ProxyProcess) -> None:
    """What clients before have left behind is gone, in every worker."""
    with proxy.raw() as raw:
        until(lambda: raw.ask("PUBSUB", "CHANNELS") == b"*0\r\n" and raw.ask("PUBSUB", "NUMPAT") == b":0\r\n")
        until(lambda: raw.ask("PUBSUB", "SHARDCHANNELS") == b"*0\r\n")
