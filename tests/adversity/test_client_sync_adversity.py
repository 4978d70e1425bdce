"""ShardedRedis when things go wrong: threads, forks, interruptions, nodes that die or hang, other topologies.

The rule that every test here is about: a call gets its own reply or an error, never another call's.
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from asking import keys_of
from redis.exceptions import RedisError
from servers import RedisNode, redis_nodes, until, urls_of

from shardproxy import PartialError, ShardedRedis
from shardproxy.client.errors import (
    ShardDownError,
    ShardTimeoutError,
    UnknownOutcomeError,
    UnknownOutcomeTimeoutError,
)
from shardproxy.client.health import Transition

SOON = {"wait": "100ms", "wait_most": "100ms", "interval": "200ms"}


@pytest.fixture(scope="module")
def steady() -> Iterator[list[RedisNode]]:
    """Nodes that stay well."""
    with redis_nodes(3) as found:
        yield found


@pytest.fixture
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as found:
        yield found


def made(nodes: list[RedisNode], on_transition: Any = None, **pool: Any) -> ShardedRedis:
    return ShardedRedis(
        urls_of(nodes), pool={"timeout": "500ms", "health": SOON} | pool, on_transition=on_transition
    )


def use(client: ShardedRedis, who: str, rounds: int) -> None:
    """Everything that a client does, each reply looked at."""
    chance = random.Random(who)
    for number in range(rounds):
        keys = [f"{who}:{chance.randrange(50)}" for _ in range(chance.randrange(1, 20))]
        wanted = {key: f"{key}={number}" for key in keys}
        what = chance.randrange(4)
        if what == 0:
            client.mset(wanted)
        elif what == 1:
            for key, value in wanted.items():
                client.set(key, value)
        else:
            pipe = client.pipeline(transaction=False)
            for key, value in wanted.items():
                pipe.set(key, value).get(key)
            replies = pipe.execute()
            assert replies[1::2] == [value.encode() for value in wanted.values()]
        assert client.mget(keys) == [wanted[key].encode() for key in keys]
        key = keys[0]
        assert client.get(key) == wanted[key].encode()
        tagged = f"{{{key}}}"
        assert client.pipeline().set(f"{tagged}n", number).incr(f"{tagged}n").execute() == [True, number + 1]


def in_threads(count: int, what: Any) -> None:
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            what(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_threads_share_a_client(steady: list[RedisNode]) -> None:
    with made(steady) as client:
        in_threads(6, lambda number: use(client, f"thread {number}", 40))
        assert all(len(shard.idle) <= 6 for shard in client.asker.layout.shards)


def in_child(what: Any) -> int:
    """The child's process id; it exits with 0 when `what` has not raised."""
    pid = os.fork()
    if pid == 0:
        try:
            what()
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"in a child: {error!r}\n")
            os._exit(1)
    return pid


def test_processes_share_a_client_after_a_fork(steady: list[RedisNode]) -> None:
    with made(steady) as client:
        use(client, "before", 5)
        children = [in_child(lambda number=number: use(client, f"child {number}", 30)) for number in range(3)]
        use(client, "parent", 30)
        in_threads(4, lambda number: use(client, f"parent {number}", 10))
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]


def test_a_fork_while_another_thread_holds_everything(steady: list[RedisNode]) -> None:
    """Locks are not inherited as they were held, and connections in use are the parent's alone."""
    with made(steady) as client:
        use(client, "before", 5)
        lock = client.asker.nodes._lock
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with lock:
                held.set()
                done.wait(20)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()

        def child() -> None:
            client.asker.nodes.failed(client.asker.layout.shards[0].address, time.monotonic(), "made up")
            use(client, "child", 10)

        pid = in_child(child)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        done.set()
        thread.join()


def test_a_fork_while_keys_are_watched(steady: list[RedisNode]) -> None:
    """The connection that watches is the parent's: a child does not say a word on it, nor ends it."""
    with made(steady) as client:
        client.set("{w}a", "before")
        with client.pipeline() as pipe:
            pipe.watch("{w}a")

            def child() -> None:
                with pytest.raises(redis.WatchError, match="forked"):
                    pipe.get("{w}a")
                with pytest.raises(redis.WatchError), client.pipeline() as other:
                    other._held, other.watching = pipe._held or (None, None, -1), True
                    other.multi()
                    other.get("{w}a").execute()
                pipe.reset()
                use(client, "child", 3)

            pid = in_child(child)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert pipe.get("{w}a") == b"before"
            pipe.multi()
            assert pipe.set("{w}a", "after").get("{w}a").execute() == [True, b"after"]


def test_a_topology_that_changes_while_keys_are_watched(steady: list[RedisNode]) -> None:
    """EXEC does not go to where the keys were: who watches begins again."""
    with made(steady) as client, made(steady[:2]) as smaller:
        key = keys_of(client, "c", 1)[0]
        seen: list[str] = []

        def change(pipe: Any) -> None:
            seen.append(client.locate(key).shard)
            client.apply(smaller.topology)
            pipe.multi()
            pipe.set(key, len(seen))

        assert client.transaction(change, key) == [True]
        assert len(seen) == 2 and seen[0] == "c" and seen[1] != "c"
        assert client.get(key) == b"2"


def test_times_of_each_class(nodes: list[RedisNode]) -> None:
    """timeouts.read, .write and .script: for one try, also in pipelines and transactions."""
    times = {"read": "150ms", "write": "10s", "script": "10s"}
    with made(nodes[:1], timeout="1s", timeouts=times, retries=0) as client:
        client.mset({"a": 1, "b": 2})
        nodes[0].pause()
        with pytest.raises(ShardTimeoutError, match="within 150 ms"):
            client.get("a")
        nodes[0].resume()
        until(lambda: caught(client, "a") == b"1")
        slow = threading.Timer(1.5, nodes[0].resume)
        for call in (
            lambda: client.set("a", 2),
            lambda: client.pipeline().set("a", 2).execute(),
            lambda: client.pipeline(transaction=False).eval("return 1", 1, "a").execute(),
        ):
            nodes[0].pause()
            slow = threading.Timer(1.5, nodes[0].resume)
            slow.start()
            assert call() in (True, [True], [1])
            slow.join()
    with made(nodes[:1], timeout="10s", timeouts=times, retries=0) as client:
        client = ShardedRedis(urls_of(nodes[:1]), pool={"timeouts": times}, socket_timeout=10)
        assert client.asker.layout.router.command("GET").limit is None  # who says it says it for all


def test_slow_calls_are_evidence(nodes: list[RedisNode]) -> None:
    seen: list[Transition] = []
    policy = SOON | {"slow_call": "1ms", "minimum": 5}
    with made(nodes, seen.append, timeout="5s", health=policy) as client:
        for _ in range(3):
            client.blpop("waiting", 0.01)  # it was asked to: nothing to be held against its node
        assert seen == []
        until(lambda: client.eval("for i = 1, 1e6 do end", 1, "k") or seen)
        assert seen[0].new == "suspect" and "took over" in seen[0].reason
        assert client.get("k") is None  # after a trial: it is well
        assert [each.new for each in seen] == ["suspect", "up"]


class Interrupted(BaseException):
    pass


def test_interrupted_at_any_moment(steady: list[RedisNode]) -> None:
    """An exception out of nowhere, as of Ctrl-C: what comes later is still everybody's own."""
    chance = random.Random(1)

    def interrupt(number: int, frame: Any) -> None:
        at = frame
        while at is not None:  # out of what the interpreter calls by itself nothing comes: a little later
            if at.f_code.co_name in ("_remove", "__del__"):
                signal.setitimer(signal.ITIMER_REAL, 1e-4)
                return
            at = at.f_back
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    interruptions = 0
    try:
        with made(steady) as client:
            limit = time.monotonic() + 30
            while interruptions < 60 and time.monotonic() < limit:
                try:
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 4e-3))
                    use(client, "interrupted", 1000)
                except Interrupted:
                    interruptions += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                use(client, "afterwards", 1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interruptions == 60


def watched(client: ShardedRedis) -> Any:
    with client.pipeline() as pipe:
        pipe.watch("{w}a")
        pipe.get("{w}a")
        pipe.multi()
        pipe.set("{w}a", 1).get("{w}a")
        return pipe.execute()


MANY = [f"o:{number}" for number in range(9)]
OPERATIONS: dict[str, Any] = {
    "get": lambda it: it.get("o:get"),
    "set": lambda it: it.set("o:set", "mine"),
    "mget": lambda it: it.mget(MANY),
    "mset": lambda it: it.mset(dict.fromkeys(MANY, "mine")),
    "blpop": lambda it: it.blpop("o:nothing", timeout=0.001),
    "dbsize": lambda it: it.dbsize(),
    "randomkey": lambda it: it.randomkey(),
    "across": lambda it: it.sunion(MANY[:3]) if it.delete(*MANY[:3]) else it.pfcount(*MANY[:3]),
    "pipeline": lambda it: it.pipeline(transaction=False).set("o:p", 1).mget(MANY[:4]).get("o:q").execute(),
    "transaction": lambda it: it.pipeline().set("{o}p", 1).get("{o}p").execute(),
    "watch": watched,
    "script": lambda it: it.register_script("return ARGV[1]")(keys=["o:s"], args=["mine"]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_interrupted_at_every_line(steady: list[RedisNode], name: str) -> None:
    """As Ctrl-C, or MemoryError, in each line of the client that is run on the way: nothing is left."""
    line = lines = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal lines
        if "/shardproxy/client/" not in frame.f_code.co_filename or frame.f_code.co_name == "__del__":
            return None
        if event == "line":
            lines += 1
            if lines == line:
                raise Interrupted
        return trace

    wanted = {f"v:{number}": f"={number}".encode() for number in range(6)}
    with made(steady, cross_shard="emulate", timeout="5s") as client:
        client.mset(wanted)
        before = sys.gettrace()
        while lines == line:  # it was interrupted, or has not begun
            line, lines = line + 1, 0
            sys.settrace(trace)
            try:
                OPERATIONS[name](client)
            except Interrupted:
                pass
            finally:
                sys.settrace(before)
            assert client.mget(list(wanted)) == list(wanted.values())
            assert client.get("v:3") == b"=3"
        assert line > 10


def test_late_replies_are_nobodys(nodes: list[RedisNode]) -> None:
    with made(nodes, timeout="150ms", retries=0) as client:
        first, second = keys_of(client, "b", 2)
        client.mset({first: "one", second: "two"})
        node = nodes[1]
        node.pause()
        with pytest.raises(ShardTimeoutError, match=r"shard 'b' at .* did not answer within 150 ms"):
            client.get(first)
        with pytest.raises(redis.TimeoutError, match="has not run"):  # no connection, so nothing was sent
            client.set(first, "not written")
        node.resume()
        assert client.get(first) == b"one"
        node.pause()
        with pytest.raises(UnknownOutcomeTimeoutError, match="may still run"):
            client.incr("{" + second + "}n")
        node.resume()
        assert client.get(second) == b"two" and client.get(first) == b"one"
        assert until(lambda: client.get("{" + second + "}n")) == b"1"  # it has run, once


def test_a_pipeline_whose_node_dies(nodes: list[RedisNode]) -> None:
    with made(nodes) as client:
        mine, others = keys_of(client, "b"), keys_of(client, "a")
        client.mset({key: f"={key}" for key in mine + others})
        nodes[1].pause()
        timer = threading.Timer(0.1, nodes[1].kill)
        timer.start()
        pipe = client.pipeline(transaction=False)
        for key, other in zip(mine, others, strict=True):
            pipe.append(key, "!").get(other).get(key)
        results = pipe.execute(raise_on_error=False)
        timer.join()
        assert results[1::3] == [f"={key}".encode() for key in others]
        assert all(isinstance(each, UnknownOutcomeError) for each in results[0::3] + results[2::3])
        with pytest.raises(PartialError) as caught:
            client.mget(mine + others)
        assert caught.value.results == {key: f"={key}".encode() for key in others}
        assert caught.value.errors.keys() == set(mine)
        assert "shard 'b'" in str(caught.value)


def test_reads_of_a_pipeline_are_sent_again(nodes: list[RedisNode]) -> None:
    """Connections that the node has closed meanwhile: reads notice nothing, writes look before."""
    with made(nodes) as client:
        keys = keys_of(client, "a")
        client.mset(dict.fromkeys(keys, "x"))
        for _ in range(3):
            for node in nodes:
                with redis.Redis(port=node.port) as alone:
                    alone.client_kill_filter(_type="normal", skipme=True)
            assert client.pipeline(transaction=False).get(keys[0]).get(keys[1]).execute() == [b"x", b"x"]
            for node in nodes:
                with redis.Redis(port=node.port) as alone:
                    alone.client_kill_filter(_type="normal", skipme=True)
            assert client.get(keys[0]) == b"x"
            for node in nodes:
                with redis.Redis(port=node.port) as alone:
                    alone.client_kill_filter(_type="normal", skipme=True)
            assert client.set(keys[0], "x") is True and client.mset(dict.fromkeys(keys, "x")) is True
        assert {shard.node.state for shard in client.topology.pools[0].shards} == {"unknown"}


def test_a_durable_pool_says_which_shard_is_down(nodes: list[RedisNode]) -> None:
    seen: list[Transition] = []
    with made(nodes, seen.append) as client:
        mine, others = keys_of(client, "c"), keys_of(client, "a")
        client.mset(dict.fromkeys(mine + others, "x"))
        nodes[2].kill()
        for _ in range(5):
            with pytest.raises(redis.ConnectionError, match=r"SHARDDOWN shard 'c' at .* is down: .*refused"):
                client.set(mine[0], "y")
            assert client.get(others[0]) == b"x"
        assert client.locate(mine[0]).shard == "c" and client.locate(mine[0]).state == "out"
        assert [(each.shards, each.new) for each in seen] == [(("c",), "out")]
        nodes[2].start()
        until(lambda: caught(client, mine[0]) is None)  # its content is lost: it keeps nothing on disk
        assert client.locate(mine[0]).state == "up" and [each.new for each in seen] == ["out", "up"]


def caught(client: ShardedRedis, key: str) -> Any:
    try:
        return client.get(key)
    except RedisError as error:
        return error


def test_a_cache_pool_goes_on_with_stand_ins(nodes: list[RedisNode]) -> None:
    with made(nodes, kind="cache", on_shard_down="rehash") as client:
        mine = keys_of(client, "b")
        client.mset(dict.fromkeys(mine, "x"))
        nodes[1].kill()
        assert client.mset(dict.fromkeys(mine, "y")) is True
        assert client.mget(mine) == [b"y"] * len(mine)
        assert client.pipeline(transaction=False).get(mine[0]).set(mine[1], "z").execute() == [b"y", True]
        assert {client.locate(key).shard for key in mine} <= {"a", "c"}
        assert {client.locate(key).home for key in mine} == {"b"}
        assert client.dbsize() == len(mine)
        nodes[1].start()
        until(lambda: client.get(mine[0]) is None)  # it is back, empty
        assert client.locate(mine[0]).shard == "b"


def test_a_cache_pool_that_misses(nodes: list[RedisNode]) -> None:
    with made(nodes, kind="cache", on_shard_down="miss") as client:
        mine, others = keys_of(client, "b"), keys_of(client, "a")
        client.mset(dict.fromkeys(mine + others, "x"))
        nodes[1].kill()
        with pytest.raises(ShardDownError):
            client.set(mine[0], "y")
        assert client.get(mine[0]) is None and client.hgetall(mine[0]) == {} and client.exists(mine[0]) == 0
        assert client.mget(mine[0], others[0], mine[1]) == [None, b"x", None]
        assert client.pipeline(transaction=False).get(mine[0]).get(others[0]).execute() == [None, b"x"]


def test_a_node_that_hangs_is_found_out(nodes: list[RedisNode]) -> None:
    with made(nodes, timeout="100ms", kind="cache", on_shard_down="rehash", retries=0) as client:
        mine = keys_of(client, "b")
        client.mset(dict.fromkeys(mine, "x"))
        nodes[1].pause()
        until(lambda: caught(client, mine[0]) is None)
        assert client.locate(mine[0]).state == "out" and client.locate(mine[0]).shard != "b"
        nodes[1].resume()
        until(lambda: caught(client, mine[0]) == b"x")


def test_partial_nil(nodes: list[RedisNode]) -> None:
    with made(nodes, partial="nil") as client:
        mine, others = keys_of(client, "b", 3), keys_of(client, "a", 3)
        client.mset(dict.fromkeys(mine + others, "x"))
        nodes[1].kill()
        assert client.mget([mine[0], others[0], mine[1]]) == [None, b"x", None]
        assert client.exists(*mine, *others) == 3
        with pytest.raises(PartialError):
            client.mset(dict.fromkeys(mine + others, "y"))


def test_it_starts_with_nodes_down(nodes: list[RedisNode]) -> None:
    nodes[0].kill()
    with made(nodes) as client:
        assert client.set(keys_of(client, "b")[0], 1) is True
        with pytest.raises(ShardDownError):
            client.set(keys_of(client, "a")[0], 1)
        assert client.ping() is True
    for node in nodes[1:]:
        node.kill()
    with made(nodes) as client:
        for _ in range(3):
            with pytest.raises(redis.ConnectionError):
                client.ping()
            with pytest.raises(redis.ConnectionError):
                client.set("x", 1)
        nodes[0].start()
        until(lambda: caught(client, keys_of(client, "a")[0]) is None)


def heard(messages: Any, count: int) -> list[bytes]:
    found: list[bytes] = []

    def enough() -> bool:
        message = messages.get_message(True, 0.1)
        if message:
            found.append(message["data"])
        return len(found) >= count

    until(enough)
    return sorted(found)


def test_subscriptions_move_with_their_shards(steady: list[RedisNode]) -> None:
    """Every channel is heard once wherever it is, and its confirmations were told once."""
    whole, part = made(steady), made(steady[:2])
    smaller, larger = part.topology, whole.topology
    channels = [f"moving {number}" for number in range(12)]
    wanted = sorted(channel.encode() for channel in channels)
    with whole, part, whole.pubsub() as messages:
        messages.subscribe(*channels)
        told = until(lambda: [messages.get_message(timeout=0.1) for _ in channels])
        assert sorted(each["data"] for each in told) == list(range(1, 13))
        messages.psubscribe("by pattern:*")
        assert until(lambda: messages.get_message(timeout=0.1))["data"] == 13
        for topology in (smaller, larger, smaller):
            whole.apply(topology)
            assert messages.get_message(timeout=0.05) is None
            until(lambda: all(count for _, count in whole.pubsub_numsub(*channels)) or messages.get_message())
            for channel in channels:
                assert whole.publish(channel, channel) == 1
            assert whole.publish("by pattern:a", "pattern") == 1
            assert heard(messages, 13) == [*wanted, b"pattern"]
        pid = in_child(lambda: childs_messages(whole, messages, channels[0]))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert heard(messages, 1) == [b"of the child"]


def childs_messages(client: ShardedRedis, messages: Any, channel: str) -> None:
    messages.get_message(timeout=0.05)
    until(lambda: client.publish(channel, "of the child") == 2 or messages.get_message(True, 0.1))
    assert heard(messages, 1) == [b"of the child"]


def test_topologies_change_under_pipelines(steady: list[RedisNode]) -> None:
    """Keys move between shards all the time: a read may find nothing, but never what is another's."""
    whole, part = made(steady), made(steady[:2])
    topologies, stop = (whole.topology, part.topology), threading.Event()

    def change() -> None:
        while not stop.is_set():
            for topology in topologies:
                whole.apply(topology)
                time.sleep(0.001)

    def read(number: int) -> None:
        for turn in range(150):
            keys = [f"moving {number}:{turn % 7}:{at}" for at in range(20)]
            pipe = whole.pipeline(transaction=False)
            for key in keys:
                pipe.set(key, key).get(key)
            results = pipe.execute(raise_on_error=False)
            for key, reply in zip(keys, results[1::2], strict=True):
                assert reply in (None, key.encode()) or isinstance(reply, RedisError)
            for key, value in zip(keys, whole.mget(keys), strict=True):
                assert value in (None, key.encode())
            assert caught(whole, keys[0]) in (None, keys[0].encode())

    changer = threading.Thread(target=change)
    changer.start()
    try:
        in_threads(3, read)
    finally:
        stop.set()
        changer.join()
    whole.close()
    part.close()
