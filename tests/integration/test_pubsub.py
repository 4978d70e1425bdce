"""Pub/sub: the same programs on a plain Redis and through the proxy; subscribers when nodes change."""

import contextlib
import os
import re
import signal
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
                mine += raw.unasked(0.1)
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


# --- many, slow, large ---


def test_500_subscribers_are_one_to_the_node(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    settle(proxy)
    crowd = [proxy.raw() for _ in range(500)]
    try:
        for number, raw in enumerate(crowd):
            raw.send(pack("HELLO", 2 + number % 2) + pack("SUBSCRIBE", "crowd"))
        for raw in crowd:
            assert raw.frames(2)[1][1:] == b"3\r\n$9\r\nsubscribe\r\n$5\r\ncrowd\r\n:1\r\n"
        seen = []
        for node in nodes:
            with node.raw() as direct:
                seen.append(direct.value("PUBSUB", "NUMSUB", "crowd")[1])
        workers = 2 if "workers = 2" in proxy.config_path.read_text() else 1
        assert sum(seen) == workers
        with proxy.raw() as raw:
            assert raw.ask("PUBLISH", "crowd", "hello") == b":500\r\n"
            assert raw.value("PUBSUB", "NUMSUB", "crowd", "none") == ["crowd", 500, "none", 0]
        for raw in crowd:
            assert raw.frame()[1:] == b"3\r\n$7\r\nmessage\r\n$5\r\ncrowd\r\n$5\r\nhello\r\n"
    finally:
        for raw in crowd:
            raw.close()


def test_a_foreign_subscriber_counts(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    with contextlib.ExitStack() as stack:
        foreign = [stack.enter_context(node.raw()) for node in nodes]
        for raw in foreign:
            raw.ask("SUBSCRIBE", "abroad")
        mine = [stack.enter_context(proxy.raw()) for _ in range(5)]
        for raw in mine:
            raw.ask("SUBSCRIBE", "abroad")
        with proxy.raw() as raw:
            assert raw.ask("PUBLISH", "abroad", "x") == b":6\r\n"


def test_many_publish_in_a_pipeline(proxy: ProxyProcess) -> None:
    with proxy.raw() as one, proxy.raw() as other, proxy.raw() as publisher:
        for raw in (one, other):
            raw.ask("SUBSCRIBE", "much")
        count = 3000
        publisher.send(b"".join(pack("PUBLISH", "much", number) for number in range(count)))
        assert set(publisher.frames(count)) == {b":2\r\n"}
        for raw in (one, other):
            got = [int(frame.split(b"\r\n")[6]) for frame in raw.frames(count)]
            assert got == list(range(count))


@pytest.mark.parametrize(("subscribe", "publish"), [("", ""), ("P", ""), ("S", "S")])
def test_who_publishes_need_not_wait_for_the_confirmation(
    own: tuple[list[RedisNode], ProxyProcess], subscribe: str, publish: str
) -> None:
    """The first of a worker's subscriptions has to connect to the node, which takes longer than a PUBLISH."""
    _, proxy = own
    with proxy.raw() as subscriber, proxy.raw() as publisher:
        subscriber.ask("PING")
        publisher.ask("GET", "ch")
        words = [b"%d" % number for number in range(20)]
        subscriber.send(pack(f"{subscribe}SUBSCRIBE", "ch"))
        publisher.send(b"".join(pack(f"{publish}PUBLISH", "ch", word) for word in words))
        assert publisher.frames(20) == [b":1\r\n"] * 20
        frames = subscriber.frames(21)
        assert frames[0].endswith(b":1\r\n")
        assert [frame.split(b"\r\n")[-2] for frame in frames[1:]] == words


def test_a_slow_subscriber_is_closed_with_a_reason(nodes: list[RedisNode]) -> None:
    limits = (
        '[limits]\npubsub_output_soft = "256kb"\npubsub_output_hard = "1mb"\npubsub_output_time = "300ms"'
    )
    config = toml(shards_of(nodes)).replace("[pool.main]\n", limits + "\n[pool.main]\n", 1)
    with ProxyProcess(config) as proxy, proxy.raw() as publisher:
        value = b"x" * 100_000

        def owed() -> int:
            found = publisher.value("CLIENT", "LIST", "TYPE", "pubsub")
            return int(found.partition("omem=")[2].split()[0]) if "omem=" in found else -1

        for most, reason in ((1 << 30, "pubsub_output_hard"), (300_000, "pubsub_output_soft")):
            with proxy.raw() as slow:
                slow.ask("SUBSCRIBE", "flood")
                while 0 <= owed() < most:
                    publisher.ask("PUBLISH", "flood", value)
                until(lambda: owed() < 0, "it is closed")
                assert reason in proxy.events("client_closed")[-1]["reason"]
        assert publisher.ask("PUBLISH", "flood", "x") == b":0\r\n"


def test_no_message_is_inside_a_long_reply(proxy: ProxyProcess) -> None:
    value = bytes(range(256)) * 40960  # 10 MB
    with proxy.raw() as reader, proxy.raw() as publisher:
        reader.ask("HELLO", 3)
        reader.ask("SET", "long", value)
        reader.ask("SUBSCRIBE", "noise")
        stop = threading.Event()

        def publish() -> None:
            while not stop.is_set():
                publisher.ask("PUBLISH", "noise", "n" * 100)

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            for _ in range(5):
                reader.send(pack("GET", "long") + pack("GET", "none"))
                replies = []
                while len(replies) < 2:
                    if not (frame := reader.frame()).startswith(b">"):
                        replies.append(frame)
                    else:
                        assert (
                            frame == b">3\r\n$7\r\nmessage\r\n$5\r\nnoise\r\n$100\r\n" + b"n" * 100 + b"\r\n"
                        )
                assert replies == [b"$%d\r\n%b\r\n" % (len(value), value), b"_\r\n"]
        finally:
            stop.set()
            thread.join()


# --- all nodes ---


def test_the_last_confirmation_before_a_protocol_error(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw:
        raw.send(pack("SUBSCRIBE", "last") + pack("UNSUBSCRIBE", "last") + b"*x\r\n")
        assert raw.rest() == (
            b"*3\r\n$9\r\nsubscribe\r\n$4\r\nlast\r\n:1\r\n*3\r\n$11\r\nunsubscribe\r\n$4\r\nlast\r\n:0\r\n"
            b"-ERR Protocol error: invalid multibulk length\r\n"
        )


def test_keyspace_notifications_of_every_node(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    with proxy.raw() as one, proxy.raw() as other, proxy.raw() as writer:
        assert one.ask("SUBSCRIBE", "__keyevent@0__:set").endswith(b":1\r\n")
        assert other.ask("PSUBSCRIBE", "__keyspace@0__:key*").endswith(b":1\r\n")
        for number in range(30):
            writer.ask("SET", f"key{number}", 1)
        keys = sorted(frame.split(b"\r\n")[6] for frame in one.frames(30))
        assert keys == sorted(b"key%d" % number for number in range(30))
        assert len({frame.split(b"\r\n")[6] for frame in other.frames(30)}) == 30
        assert writer.value("PUBSUB", "NUMSUB", "__keyevent@0__:set") == ["__keyevent@0__:set", 1]


# --- changes ---


@pytest.fixture
def own() -> Iterator[tuple[list[RedisNode], ProxyProcess]]:
    """Nodes and a proxy for a test that breaks them."""
    with redis_nodes(3) as nodes, ProxyProcess(toml(shards_of(nodes))) as proxy:
        yield nodes, proxy


def hears(publisher: Raw, subscriber: Raw, channel: str, word: str) -> bool:
    """Whether a message arrives; what came before it is gone then."""
    if not publisher.ask("PUBLISH", channel, word).startswith(b":"):
        return False
    return any(word.encode() in frame for frame in subscriber.unasked(0.1))


def test_subscribers_outlive_a_node(own: tuple[list[RedisNode], ProxyProcess]) -> None:
    nodes, proxy = own
    channels = [f"c{number}" for number in range(12)]
    with proxy.raw() as subscriber, proxy.raw() as publisher:
        subscriber.send(pack("SUBSCRIBE", *channels) + pack("PSUBSCRIBE", "c1*"))
        subscriber.frames(13)
        for node in nodes:
            node.kill()
            time.sleep(0.1)
            node.start()
        for turn, channel in enumerate(channels):
            until(
                lambda channel=channel, turn=turn: hears(publisher, subscriber, channel, f"w{turn}"),
                f"{channel} is heard again",
            )
        assert subscriber.ask("UNSUBSCRIBE", "c1").endswith(b":12\r\n")


def test_subscribing_to_a_node_that_is_not_there(own: tuple[list[RedisNode], ProxyProcess]) -> None:
    nodes, proxy = own
    for node in nodes:
        node.kill()
    with proxy.raw() as raw:
        assert raw.ask("SUBSCRIBE", "c1").startswith((b"-SHARDDOWN shard '", b"-TIMEOUT shard '"))
        assert raw.ask("GET", "c1").startswith(b"-")  # not a subscriber's error
        assert b"only (P|S)" not in raw.ask("GET", "c1")
        for node in nodes:
            node.start()
        until(lambda: raw.ask("SUBSCRIBE", "c1").endswith(b":1\r\n"), "it can be subscribed to")


def test_subscribers_move_with_the_ring(own: tuple[list[RedisNode], ProxyProcess]) -> None:
    nodes, proxy = own
    channels = [f"c{number}" for number in range(12)]
    with proxy.raw() as subscriber, proxy.raw() as publisher, redis_nodes(1) as more:
        subscriber.send(pack("SUBSCRIBE", *channels) + pack("PSUBSCRIBE", "*"))
        subscriber.frames(13)
        for nodes_then in (nodes + more, [*nodes[:2], *more], nodes):
            proxy.config_path.write_text(toml(shards_of(nodes_then)))
            assert not publisher.ask("PROXY", "RELOAD").startswith(b"-")
            for channel in channels:
                until(
                    lambda channel=channel: hears(publisher, subscriber, channel, "word"),
                    f"{channel} is heard",
                )
        for channel in channels:
            publisher.ask("PUBLISH", channel, "once")
        assert (
            len(subscriber.unasked(0.1)) == 24
        )  # each by its name and by the pattern: no name is on two nodes
        seen = 0
        for node in nodes:
            with node.raw() as direct:
                seen += len(direct.value("PUBSUB", "CHANNELS"))
        assert seen == 12


def test_nothing_is_left_behind(own: tuple[list[RedisNode], ProxyProcess]) -> None:
    nodes, proxy = own
    for _ in range(3):
        crowd = [proxy.raw() for _ in range(30)]
        for number, raw in enumerate(crowd):
            raw.send(pack("SUBSCRIBE", f"c{number}", "all") + pack("PSUBSCRIBE", "p*"))
        for raw in crowd:
            raw.close()  # some before, some after it is confirmed
    for node in nodes:
        with node.raw() as direct:
            until(lambda direct=direct: direct.ask("PUBSUB", "CHANNELS") == b"*0\r\n", "no channel is left")
            until(lambda direct=direct: direct.ask("PUBSUB", "NUMPAT") == b":0\r\n", "no pattern is left")
            until(
                lambda direct=direct: "cmd=subscribe" not in direct.value("CLIENT", "LIST"),
                "no connection is",
            )


def test_workers_that_come_and_go(nodes: list[RedisNode]) -> None:
    """The dead one's subscribers are not counted any more; its successor knows of the others'."""
    with ProxyProcess(toml(shards_of(nodes), top="workers = 2")) as proxy:
        crowd = [proxy.raw() for _ in range(20)]
        for raw in crowd:
            raw.ask("SUBSCRIBE", "all")
        victim = proxy.events("worker_ready")[0]["pid"]
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(proxy.events("worker_ready")) == 3, "a new worker")
        gone = 0
        for raw in crowd:
            try:
                gone += not raw.ask("PING")
            except (EOFError, ConnectionError):
                gone += 1
        assert 0 < gone < 20
        publishers = [proxy.raw() for _ in range(12)]  # some in each worker
        for raw in publishers:
            until(
                lambda raw=raw: raw.ask("PUBLISH", "all", "x") == b":%d\r\n" % (20 - gone), "the right count"
            )
        for raw in crowd + publishers:
            raw.close()


def test_a_client_has_so_many_subscriptions(nodes: list[RedisNode]) -> None:
    config = toml(shards_of(nodes)).replace(
        "[pool.main]\n", "[limits]\nclient_subscriptions = 3\n[pool.main]\n", 1
    )
    with ProxyProcess(config) as proxy, proxy.raw() as raw:
        raw.send(pack("HELLO", 3) + pack("SUBSCRIBE", "a", "b"))
        raw.frames(3)
        assert raw.ask("PSUBSCRIBE", "a", "b").startswith(b"-ERR more subscriptions than")
        assert raw.ask("PSUBSCRIBE", "a").endswith(b":3\r\n")


# --- clients ---


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py(own: tuple[list[RedisNode], ProxyProcess], protocol: int) -> None:
    _, proxy = own
    client = redis_py.Redis(
        port=proxy.port, protocol=protocol, health_check_interval=1, decode_responses=True
    )
    with client, client.pubsub() as pubsub:
        pubsub.subscribe("one", "two")
        pubsub.psubscribe("t*")
        assert [pubsub.get_message(timeout=5)["type"] for _ in range(3)] == [
            "subscribe",
            "subscribe",
            "psubscribe",
        ]
        assert client.publish("two", "hello") == 2
        assert {pubsub.get_message(timeout=5)["type"] for _ in range(2)} == {"message", "pmessage"}
        time.sleep(1.2)
        pubsub.get_message(timeout=0.1)  # its health check
        client.publish("one", "still")
        assert until(lambda: pubsub.get_message(timeout=0.1))["data"] == "still"
        # its own reconnect
        ids = [each["id"] for each in client.client_list() if each["flags"] == "P"]
        assert len(ids) == 1
        pubsub.connection.disconnect()

        def heard() -> bool:
            client.publish("one", "again")
            return bool((pubsub.get_message(timeout=0.1) or {}).get("data") == "again")

        until(heard, "it has connected and subscribed again")


def test_transactions_publish_where_their_keys_are(own: tuple[list[RedisNode], ProxyProcess]) -> None:
    _, proxy = own
    client = redis_py.Redis(port=proxy.port, decode_responses=True)
    with client, client.pubsub() as pubsub:
        pubsub.subscribe("task-1")
        pubsub.get_message(timeout=5)
        with client.pipeline() as pipe:  # as Celery's result backend does
            assert pipe.set("task-1", "done").publish("task-1", "done").execute() == [True, 1]
        assert until(lambda: pubsub.get_message(timeout=0.1))["data"] == "done"
        with client.pipeline() as pipe:  # nor need the channel be on the shard of the keys
            for number in range(10):
                pipe.set("key", number).publish("task-1", number).publish(f"other-{number}", "x")
            assert pipe.execute() == [True, 1, 0] * 10
        assert [until(lambda: pubsub.get_message(timeout=0.1))["data"] for _ in range(10)] == list(
            "0123456789"
        )
        with client.pipeline() as pipe:  # what is not run is not published
            pipe.watch("key")
            client.set("key", "changed")
            pipe.multi()
            pipe.set("key", "mine").publish("task-1", "never")
            with pytest.raises(redis_py.WatchError):
                pipe.execute()
        assert pubsub.get_message(timeout=0.2) is None


def test_subscribing_in_a_transaction(own: tuple[list[RedisNode], ProxyProcess], redis: RedisNode) -> None:
    _, proxy = own
    program = pack("HELLO", 3) + pack("MULTI") + pack("SUBSCRIBE", "a", "b") + pack("PING") + pack("EXEC")
    for port in (redis.port, proxy.port):
        with Raw(port) as raw:
            raw.send(program + pack("PUBLISH", "a", "x"))
            raw.frame()
            found = raw.frames(4)
            # as Redis, whose array has one element and two frames
            assert found[-1].startswith(b"*2\r\n>3\r\n$9\r\nsubscribe"), (port, found)
