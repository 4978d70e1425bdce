"""ShardedRedis used by several at once: threads, forks, interruptions anywhere, other topologies meanwhile.

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
from asking import caught, keys_of
from redis.exceptions import RedisError
from servers import RedisNode, redis_nodes, until, urls_of

from shardproxy import ShardedRedis


@pytest.fixture(scope="module")
def steady() -> Iterator[list[RedisNode]]:
    """Nodes that stay well."""
    with redis_nodes(3) as found:
        yield found


def made(nodes: list[RedisNode], **pool: Any) -> ShardedRedis:
    health = {"wait": "100ms", "wait_most": "100ms", "interval": "200ms"}
    return ShardedRedis(urls_of(nodes), pool={"timeout": "500ms", "health": health} | pool)


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
