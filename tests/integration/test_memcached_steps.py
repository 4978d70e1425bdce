"""Commands of several steps on memcached shards, through proxies: counters that lose nothing, TTLs that hold,
nodes that are full, evict, or restart.

    SHARDPROXY_INCREMENTS=10000 pytest tests/integration/test_memcached_steps.py   50 clients, so often each
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import hiredis
import pytest
from servers import PATIENCE, MemcachedNode, ProxyProcess, Raw, RedisNode, pack, toml, until
from stepper import Stepper

LONG = os.environ.get("SHARDPROXY_INCREMENTS")
INCREMENTS = int(LONG or 12)
CLIENTS = 50
DEPTH = 4  # commands that a client has under way
PATIENT = 'timeout = "30s"'  # a busy machine is no node in trouble


class World:
    """Two memcached nodes and a Redis on one ring, behind two proxies, the first of two workers."""

    def __init__(self, stack: ExitStack) -> None:
        self.nodes = [stack.enter_context(MemcachedNode()) for _ in range(2)]
        self.redis = stack.enter_context(RedisNode())
        shards = {"m0": self.nodes[0].url, "m1": self.nodes[1].url, "r": self.redis.address}
        pool = f"memcached_keys = true\n{PATIENT}"
        self.proxies = [
            stack.enter_context(ProxyProcess(toml(shards, top=f"workers = {workers}", pool=pool)))
            for workers in (2, 1)
        ]

    def key(self, name: str, shard: str = "m0") -> str:
        """One of that shard."""
        with self.proxies[1].raw() as raw:
            tries = (f"{name}:{number}" for number in range(1000))
            return next(
                key for key in tries if json.loads(raw.value("PROXY", "LOCATE", key))["shard"] == shard
            )


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


# --- counters ---


def count(raw: Raw, request: bytes, times: int) -> list[bytes]:
    """So many of one request, some of them under way at once."""
    replies = []
    for at in range(times):
        raw.send(request)
        if at >= DEPTH:
            replies.append(raw.frame())
    return replies + raw.frames(min(times, DEPTH))


@pytest.mark.parametrize("first", ["0", "-300", "95"])
def test_counters_of_many_clients_lose_nothing(world: World, first: str) -> None:
    """From 0, over the sign, and down and up over a change of digits; each reply is given once."""
    key, replies = world.key(f"counter{first}"), list[bytes]()

    def client(number: int) -> None:
        by = 1 if first != "95" or number % 2 else -1
        with world.proxies[number % 2].raw() as raw:
            replies.extend(count(raw, pack("INCRBY", key, by), INCREMENTS))

    with world.proxies[0].raw() as raw:
        assert raw.ask("SET", key, first, "EX", 1000) == b"+OK\r\n"
        threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(replies) == CLIENTS * INCREMENTS
        assert {reply[:1] for reply in replies} == {b":"}, set(replies)
        by = 0 if first == "95" else CLIENTS * INCREMENTS
        assert raw.value("GET", key) == str(int(first) + by)
        assert 0 < raw.value("TTL", key) <= 1000
        if by:
            assert len(set(replies)) == len(replies)


@pytest.mark.parametrize("first", ["0", "-100"])
def test_commands_of_one_worker_take_turns(world: World, first: str) -> None:
    """Compare-and-swap is for those outside: each increment reads and writes once, and none starts over."""
    key, times = world.key(f"turns{first}"), 8
    with ExitStack() as stack:
        clients = [stack.enter_context(world.proxies[1].raw()) for _ in range(CLIENTS)]
        assert clients[0].ask("SET", key, first) == b"+OK\r\n"
        before = world.nodes[0].stats()
        for raw in clients:
            raw.send(pack("INCR", key) * times)
        replies = [reply for raw in clients for reply in raw.frames(times)]
        assert len(set(replies)) == len(replies) == CLIENTS * times
        after = world.nodes[0].stats()
        grown = {name: int(after[name]) - int(before[name]) for name in ("get_hits", "cas_badval")}
        assert grown == {"get_hits": CLIENTS * times, "cas_badval": 0}


def test_a_clients_commands_stay_in_order(world: World) -> None:
    """Of several steps, of one, and of another shard's between them, all sent at once."""
    one, other, third = world.key("order"), world.key("order", "m1"), world.key("order", "r")
    asked = []
    for at in range(30):
        asked += [("SET", one, -at), ("INCR", one), ("APPEND", other, "x"), ("GET", one), ("INCR", third)]
        asked += [("DECRBY", one, 5), ("GET", one), ("STRLEN", other), ("MGET", one, other, third)]
    expected: list[object] = []
    for at in range(30):
        expected += ["OK", 1 - at, at + 1, str(1 - at), at + 1, -at - 4, str(-at - 4), at + 1]
        expected += [[str(-at - 4), "x" * (at + 1), str(at + 1)]]
    with world.proxies[0].raw() as raw:
        raw.send(b"".join(pack(*each) for each in asked))
        reader = hiredis.Reader(encoding="utf-8")
        reader.feed(b"".join(raw.frames(len(asked))))
        assert [reader.gets() for _ in asked] == expected


# --- TTLs ---


def expires(stepper: Stepper, key: str) -> int:
    """When a key does, by the node's own clock, exactly."""
    while True:
        stepper.socket.sendall(f"mg {key} t\r\nstats\r\nmg {key} t\r\n".encode())
        found: list[bytes] = []
        while len(found) < 3:
            found += stepper.frames.feed(stepper.socket.recv(1 << 16))
        if found[0] == found[2]:
            clock = int(found[1].partition(b"STAT time ")[2].split()[0])
            return clock + int(found[0].split(b" t")[1])


REWRITES = {
    "incr": [("INCR",), ("INCRBY", -1)],
    "float": [("INCRBYFLOAT", "0.5")],
    "range": [("SETRANGE", 0, "1"), ("SETRANGE", 2, "abc")],
    "set": [("SET", "7", "KEEPTTL"), ("GETEX",)],
    "append": [("APPEND", "1"), ("SETRANGE", 0, "abc")],
}


def test_rewrites_move_no_ttl_by_a_second(world: World) -> None:
    """Hundreds of them, over several seconds of the node: not one is added."""
    with world.proxies[1].raw() as raw, Stepper(world.nodes[0].port) as stepper:
        keys = {name: world.key(f"rewritten:{name}") for name in REWRITES}
        for key in keys.values():
            raw.ask("SET", key, "-1000000", "EX", 1000)
        due = {key: expires(stepper, key) for key in keys.values()}
        requests = [
            pack(name, keys[kind], *args) for kind, commands in REWRITES.items() for name, *args in commands
        ]
        begun = int(world.nodes[0].stats()["time"])
        while int(world.nodes[0].stats()["time"]) < begun + 3:
            raw.send(b"".join(requests) * 3)
            assert not [reply for reply in raw.frames(3 * len(requests)) if reply[:1] == b"-"]
        assert {key: expires(stepper, key) for key in keys.values()} == due


def test_a_counter_that_is_counted_all_the_time_expires(world: World) -> None:
    """EXPIRE 3, and it begins at 1 again: one that memcached counts itself, and one that is rewritten."""
    keys = {world.key("mortal"): "1000", world.key("mortal", "m1"): "-1000000"}
    with ExitStack() as stack:
        clients = {
            key: stack.enter_context(proxy.raw()) for key, proxy in zip(keys, world.proxies, strict=True)
        }
        for key, first in keys.items():
            clients[key].ask("SET", key, first)
            assert clients[key].ask("EXPIRE", key, 3) == b":1\r\n"
        begun, gone, counted = time.monotonic(), dict[str, float](), 0
        while gone.keys() != keys.keys():
            assert time.monotonic() < begun + PATIENCE, "they do not expire"
            left = keys.keys() - gone.keys()
            for key in left:
                clients[key].send(pack("INCR", key) * 20)
            for key in left:
                if b":1\r\n" in clients[key].frames(20):
                    gone[key] = time.monotonic() - begun
                    assert clients[key].value("TTL", key) == -1
            counted += 20
        assert min(gone.values()) > 2
        if LONG:  # with the machine for itself
            assert max(gone.values()) <= 5, gone
            assert counted / max(gone.values()) >= 1000, "increments a second of each"


def test_a_ttl_that_memcached_cannot_keep_is_an_error(world: World) -> None:
    key = world.key("late")
    with world.proxies[0].raw() as raw:
        raw.ask("SET", key, "1")
        for args in (
            *(("SET", key, "2", "EX", 10**9), ("SETEX", key, 10**9, "2"), ("EXPIRE", key, 10**9)),
            *(
                ("GETEX", key, "EXAT", 2**31),
                ("PEXPIREAT", key, 2**31 * 1000),
                ("SET", key, 2, "EXAT", 2**33),
            ),
        ):
            assert raw.ask(*args).startswith(b"-ERR invalid expire time"), args
        assert (raw.value("GET", key), raw.value("TTL", key)) == ("1", -1)
        month = 30 * 24 * 3600
        for seconds in (month - 2, month - 1, month, month + 1, 2 * month):
            for args in (("SET", key, "1", "EX", seconds), ("EXPIRE", key, seconds)):
                raw.ask(*args)
                assert seconds - 10 <= raw.value("TTL", key) <= seconds + 2, args


# --- keys and values ---


def test_keys_of_every_byte(world: World) -> None:
    keys = [bytes([byte]) for byte in range(256)] + [bytes([byte, 65]) * 93 for byte in range(256)]
    with world.proxies[0].raw() as raw:
        for at, key in enumerate(keys):
            assert raw.ask("SET", key, at) == b"+OK\r\n"
        for at, key in enumerate(keys):
            assert raw.ask("INCR", key) == b":%d\r\n" % (at + 1)
            assert raw.ask("APPEND", key, "") == b":%d\r\n" % len(str(at + 1))
        assert raw.value("MGET", *keys) == [str(at + 1) for at in range(len(keys))]
        assert raw.value("DEL", *keys) == len(keys)


def test_keys_that_are_too_long_or_none(world: World) -> None:
    def of(tag: str, size: int, last: bytes = b"x") -> bytes:
        return b"{%b}" % tag.encode() + b"k" * (size - len(tag) - 3) + last

    tag = world.key("long")
    with world.proxies[0].raw() as raw:
        for size, last in ((250, b"x"), (186, b" ")):
            for args in ((b"SET", of(tag, size, last), 1), (b"INCR", of(tag, size, last))):
                assert raw.ask(*args)[:1] in b"+:"
            for args in ((b"SET", of(tag, size + 1, last), 1), (b"INCR", of(tag, size + 1, last))):
                refused = raw.ask(*args)
                assert refused.startswith(b"-ERR the key is too long for memcached shard 'm0' at ")
                assert b"250" in refused and b"186" in refused


def test_values_at_the_limit_and_past_it(world: World) -> None:
    key = world.key("size")
    most = 1048576 - 56 - len(key) - 3
    with world.proxies[0].raw() as raw, Stepper(world.nodes[0].port) as stepper:
        assert raw.ask("SET", key, "x" * most) == b"+OK\r\n"
        assert raw.value("STRLEN", key) == most
        for args in (
            *(("SET", key, "y" * (most + 1)), ("APPEND", key, "y"), ("SETRANGE", key, most, "y")),
            *(("GETSET", key, "y" * (most + 1)), ("SET", key, "y" * (most + 1), "KEEPTTL")),
        ):
            refused = raw.ask(*args)
            assert refused.startswith(b"-ERR the value is too large for memcached shard 'm0'"), args
            assert b"1048576" in refused
        assert raw.value("GETRANGE", key, 0, 9) == "x" * 10, "what was there is there"
        # flags of memcached's clients take their bytes as well
        stepper.socket.sendall(f"ms {key} {most - 4} F5\r\n".encode() + b"z" * (most - 4) + b"\r\n")
        assert stepper.socket.recv(100) == b"HD\r\n"
        assert raw.ask("APPEND", key, "y").startswith(b"-ERR the value is too large")
        assert raw.value("EXPIRE", key, 100) == 1
        assert raw.value("DEL", key) == 1


def test_flags_of_memcached_clients_are_kept(world: World) -> None:
    key = world.key("flags")
    kept = [
        *(("INCR",), ("DECRBY", 100), ("INCR",), ("DECRBY", 1), ("EXPIRE", 100), ("INCRBYFLOAT", "1.5")),
        *(("APPEND", "7"), ("SETRANGE", 1, "x"), ("PERSIST",), ("GETEX", "EX", 50), ("EXPIRE", 70, "GT")),
    ]
    with world.proxies[0].raw() as raw, Stepper(world.nodes[0].port) as stepper:
        stepper.socket.sendall(f"ms {key} 2 F4242\r\n10\r\n".encode())
        assert stepper.socket.recv(100) == b"HD\r\n"
        for command, *args in kept:
            assert raw.ask(command, key, *args)[:1] in b":$"
            stepper.socket.sendall(f"mg {key} f\r\n".encode())
            assert stepper.socket.recv(100) == b"HD f4242\r\n", command


# --- all keys ---


def test_keys_of_a_mixed_ring(world: World) -> None:
    with world.proxies[0].raw() as raw, world.proxies[1].raw() as other:
        assert raw.ask("FLUSHALL") == b"+OK\r\n"
        until(lambda: raw.value("DBSIZE") == 0)
        keys = {f"key:{at}" for at in range(3000)} | {"with space", "ü"}
        raw.send(b"".join(pack("SET", key, "1") for key in keys))
        raw.frames(len(keys))
        assert raw.value("DBSIZE") == len(keys)
        assert sorted(other.value("KEYS", "*")) == sorted(keys)
        assert sorted(other.value("KEYS", "*:1[07]")) == ["key:10", "key:17"]
        for options in ((), ("COUNT", 5), ("TYPE", "string", "COUNT", 2000), ("MATCH", "key:*7")):
            found, cursor = list[str](), "0"
            while True:
                cursor, page = other.value("SCAN", cursor, *options)
                found += page
                if cursor == "0":
                    break
            expected = {key for key in keys if key.startswith("key:") and key.endswith("7")}
            assert sorted(found) == sorted(expected if "MATCH" in options else keys), options
        assert other.value("SCAN", 0, "COUNT", 0).args == ("ERR syntax error",)
        assert b"not possible on a memcached shard" in other.ask("RANDOMKEY")
        for client in (raw, other) * 3:  # a node's crawler does one thing at a time: they wait for each other
            client.send(pack("KEYS", "*"))
        for client in (raw, other) * 3:
            assert client.frame().startswith(b"*%d\r\n" % len(keys))
        assert raw.ask("FLUSHALL") == b"+OK\r\n"
        until(lambda: other.value("DBSIZE") == 0)
        assert other.value("KEYS", "*") == []


def test_keys_are_not_listed_unless_the_pool_says_so() -> None:
    with MemcachedNode() as node, ProxyProcess(toml({"m": node.url})) as proxy, proxy.raw() as raw:
        for args in (("KEYS", "*"), ("SCAN", 0)):
            assert raw.ask(*args).startswith(b"-ERR memcached shard 'm' at 127.0.0.1:"), args
            assert b"memcached_keys = true" in raw.ask(*args)


def test_what_memcached_cannot_do_is_refused(world: World) -> None:
    key = world.key("refused")
    with world.proxies[0].raw() as raw:
        raw.ask("SET", key, "1")
        for args in (
            *(("LPUSH", key, 1), ("HSET", key, "a", 1), ("SETBIT", key, 1, 1), ("GETBIT", key, 1)),
            *(("DUMP", key), ("OBJECT", "FREQ", key), ("MSETNX", key, 1), ("EVAL", "return 1", 1, key)),
            *(("BLPOP", key, 1), ("RENAME", key, key), ("SUBSTR", key, 0, 1), ("XADD", key, "*", "a", "b")),
        ):
            name = args[0] if args[0] != "OBJECT" else "OBJECT FREQ"
            refused = raw.ask(*args)
            assert refused.startswith(b"-ERR '%b' is not possible on a memcached shard" % name.encode()), args
        assert raw.ask("SELECT", 1) == b"-ERR DB index is out of range\r\n"
        assert raw.value("GET", key) == "1"


# --- nodes in trouble ---


def test_a_node_that_is_full() -> None:
    """Without evictions: what has no room is refused, and nothing else is wrong."""
    with (
        MemcachedNode("-m", "2", "-M") as node,
        ProxyProcess(toml({"m": node.url}, pool=PATIENT)) as proxy,
        proxy.raw() as raw,
    ):
        full = b"-OOM command not allowed when used memory > 'maxmemory'"
        raw.ask("SET", "counter", "9")
        raw.ask("SET", "negative", "-1")
        for size in (100_000, 10_000, 1000, 100, 10, 0):
            for at in range(1000):
                raw.send(b"".join(pack("SET", f"{size}:{at}:{n}", "x" * size) for n in range(100)))
                replies = set(raw.frames(100))
                if replies != {b"+OK\r\n"}:
                    assert all(reply.startswith((full, b"+OK")) for reply in replies), replies
                    break
            else:
                pytest.fail("it never gets full")
        for args in (
            ("APPEND", "100:0:0", "y" * 1000),
            ("SETRANGE", "100:0:1", 1000, "y"),
            ("GETSET", "new", "1"),
        ):
            assert raw.ask(*args).startswith(full), args
        for args in (("INCR", "counter"), ("INCR", "negative"), ("EXPIRE", "10:0:0", 100)):
            assert raw.ask(*args).startswith((b":", full)), args
        assert raw.value("GET", "10:0:1") == "x" * 10
        assert raw.ask("FLUSHALL") == b"+OK\r\n"
        assert raw.ask("SET", "1000:0:0", "x" * 1000) == b"+OK\r\n"


def test_evictions_meanwhile() -> None:
    """Counters vanish and begin again; none is ever wrong."""
    with (
        MemcachedNode("-m", "2") as node,
        ProxyProcess(toml({"m": node.url}, pool=PATIENT)) as proxy,
        proxy.raw() as raw,
        proxy.raw() as filler,
    ):
        counts, restarts = dict[str, int](), 0
        for at in range(160):
            filler.send(pack("MSET", *(part for n in range(600) for part in (f"fill:{at}:{n}", "1"))))
            for key in (f"c{at % 60}", f"d{at % 7}"):
                by = -1 if key[0] == "d" else 1
                found = raw.value("INCRBY", key, by)
                assert found in (counts.get(key, 0) + by, by), (key, counts)
                restarts += found == by and key in counts
                counts[key] = found
            assert filler.frame() == b"+OK\r\n"
        assert int(node.stats()["evictions"]) > 0
        assert restarts, "none of the counters was evicted"


def test_a_node_that_stands_still() -> None:
    """Nobody who waits for his turn waits longer than a request may take, whoever is before him."""
    with (
        MemcachedNode() as node,
        ProxyProcess(toml({"m": node.url}, pool='timeout = "2s"')) as proxy,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(proxy.raw()) for _ in range(20)]
        assert [raw.value("INCR", "n") for raw in clients] == list(range(1, 21))
        node.pause()
        for raw in clients:
            raw.send(pack("INCR", "n"))
        replies = [raw.frame() for raw in clients]
        node.resume()
        assert all(reply.startswith((b"-TIMEOUT shard 'm'", b"-SHARDDOWN shard 'm'")) for reply in replies)
        assert all(b"has not run" in reply for reply in replies if b"-TIMEOUT" in reply), replies
        until(lambda: clients[0].ask("EXPIRE", "n", 100) == b":1\r\n")
        assert clients[0].value("INCR", "n") == 21


def test_a_node_that_restarts() -> None:
    """What was under way answers an error or a right value; then it begins empty."""
    with MemcachedNode() as node, ProxyProcess(toml({"m": node.url})) as proxy, proxy.raw() as raw:
        stop, wrong, seen = threading.Event(), list[bytes](), list[int]()

        def counting() -> None:
            with proxy.raw() as own:
                while not stop.is_set():
                    reply = own.ask("INCR", "n")
                    if reply[:1] == b":":
                        seen.append(int(reply[1:]))
                    elif not reply.startswith((b"-SHARDDOWN", b"-UNKNOWN", b"-TIMEOUT")):
                        wrong.append(reply)

        thread = threading.Thread(target=counting)
        thread.start()
        with contextlib.ExitStack() as ended:
            ended.callback(thread.join)
            ended.callback(stop.set)
            for _ in range(2):
                until(lambda: len(seen) > 20)
                node.kill()
                seen.clear()
                node.start()
                until(lambda: 1 in seen, "the counter to begin again")
        assert not wrong
        assert raw.ask("SET", "n", "-7") == b"+OK\r\n"
        assert raw.value("INCR", "n") == -6
