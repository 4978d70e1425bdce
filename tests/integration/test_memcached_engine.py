"""Memcached nodes in the engine: what one command of the meta protocol does, as one Redis would answer it."""

import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from certs import Authority
from impostors import SomethingElse
from servers import MemcachedNode, ProxyProcess, Raw, RedisNode, pack, toml, until
from test_every_command import LINES, ROWS, words

from shardproxy.core.memcached import PROGRAMS

Nodes: TypeAlias = tuple[MemcachedNode, MemcachedNode, RedisNode]
EVERY_BYTE = bytes(range(256))
LIMIT = 1048576
HEADER = 56 + 1 + 2  # bytes of an item beside its key and its value


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with MemcachedNode() as one, MemcachedNode() as other, RedisNode() as redis:
        yield one, other, redis


@pytest.fixture(scope="module")
def mixed(nodes: Nodes) -> Iterator[ProxyProcess]:
    """Two memcacheds and a Redis on one ring."""
    one, other, redis = nodes
    with ProxyProcess(toml({"m": one.url, "n": other.url, "r": redis.address})) as proxy:
        yield proxy


@pytest.fixture
def raw(mixed: ProxyProcess, nodes: Nodes) -> Iterator[Raw]:
    one, other, redis = nodes
    with mixed.raw() as raw:
        yield raw
    for node in (one, other):
        node.say(b"flush_all\r\n", b"OK\r\n")
    with redis.raw() as direct:
        direct.ask("FLUSHALL")


def is_on(raw: Raw, shard: str, key: bytes) -> bool:
    return bool(json.loads(raw.value("PROXY", "LOCATE", key))["shard"] == shard)


def keys_of(raw: Raw, shard: str, count: int, form: bytes = b"key%d", size: int = 0) -> list[bytes]:
    """So many keys that live there; size: their bytes."""
    keys = ((form % number).rjust(size, b"x") for number in itertools.count())
    return list(itertools.islice((key for key in keys if is_on(raw, shard, key)), count))


@pytest.fixture
def key(raw: Raw) -> bytes:
    return keys_of(raw, "m", 1)[0]


def test_what_is_one_command_each(raw: Raw, key: bytes) -> None:
    for command, reply in (
        (("GET", key), b"$-1\r\n"),
        (("STRLEN", key), b":0\r\n"),
        (("EXISTS", key), b":0\r\n"),
        (("SET", key, "value", "XX"), b"$-1\r\n"),
        (("SET", key, "value", "NX"), b"+OK\r\n"),
        (("SET", key, "other", "nx"), b"$-1\r\n"),
        (("SETNX", key, "other"), b":0\r\n"),
        (("GET", key), b"$5\r\nvalue\r\n"),
        (("GETEX", key), b"$5\r\nvalue\r\n"),
        (("SET", key, "", "xX", "eX", "100"), b"+OK\r\n"),
        (("GET", key), b"$0\r\n\r\n"),
        (("STRLEN", key), b":0\r\n"),
        (("EXISTS", key, key), b":2\r\n"),
        (("TOUCH", key), b":1\r\n"),
        (("SETEX", key, "100", "12345"), b"+OK\r\n"),
        (("PSETEX", key, "100000", "123456"), b"+OK\r\n"),
        (("STRLEN", key), b":6\r\n"),
        (("DEL", key, key), b":1\r\n"),
        (("UNLINK", key), b":0\r\n"),
        (("SETNX", key, "value"), b":1\r\n"),
        (("MGET", key), b"*1\r\n$5\r\nvalue\r\n"),
        (("MSET", key, "1", key, "2"), b"+OK\r\n"),
        (("MGET", key, "nothing", key), b"*3\r\n$1\r\n2\r\n$-1\r\n$1\r\n2\r\n"),
    ):
        assert raw.ask(*command) == reply, command


def test_nil_of_resp3(raw: Raw, key: bytes) -> None:
    raw.ask("HELLO", "3")
    assert raw.ask("GET", key) == b"_\r\n"
    assert raw.ask("SET", key, "1", "XX") == b"_\r\n"
    assert raw.ask("MGET", key, "x", "y", "z") == b"*4\r\n" + b"_\r\n" * 4


def test_commands_over_a_mixed_ring(raw: Raw) -> None:
    keys = [b"key%d" % number for number in range(300)]
    assert all(any(is_on(raw, shard, key) for key in keys[:50]) for shard in "mnr")
    assert raw.ask("MSET", *(part for key in keys for part in (key, b"of " + key))) == b"+OK\r\n"
    assert raw.value("MGET", *keys, "none") == [f"of {key.decode()}" for key in keys] + [None]
    assert raw.value("EXISTS", *keys, *keys) == 600
    assert raw.value("DEL", *keys[:100], "none") == 100
    assert raw.value("TOUCH", *keys) == 200


def test_pipelines_keep_their_order(raw: Raw) -> None:
    keys = [*keys_of(raw, "m", 5), *keys_of(raw, "r", 5), *keys_of(raw, "n", 5)]
    sent, expected = b"", b""
    for turn in range(200):
        for number, key in enumerate(keys):
            value = b"%d-%d" % (turn, number)
            sent += pack("SET", key, value) + pack("GET", key) + pack("STRLEN", key)
            expected += b"+OK\r\n$%d\r\n%b\r\n:%d\r\n" % (len(value), value, len(value))
        sent += pack("MGET", *keys[::-1])
        values = [b"%d-%d" % (turn, number) for number in range(len(keys))][::-1]
        expected += b"*15\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(value), value) for value in values)
    raw.send(sent)
    got = b""
    while len(got) < len(expected):
        got += raw.socket.recv(1 << 16)
    assert got == expected


def test_keys_and_values_of_every_byte(raw: Raw, nodes: Nodes) -> None:
    for byte in range(256):
        for form in (b"%d" + bytes([byte]), bytes([byte]) + b"%d"):
            if byte == ord("%"):
                continue
            key = keys_of(raw, "m", 1, form)[0]
            value = EVERY_BYTE + key
            assert raw.ask("SET", key, value) == b"+OK\r\n"
            assert raw.ask("GET", key) == b"$%d\r\n%b\r\n" % (len(value), value)
            assert raw.ask("MGET", key, key) == b"*2\r\n" + b"$%d\r\n%b\r\n" % (len(value), value) * 2
            assert raw.ask("DEL", key) == b":1\r\n"
    assert nodes[0].stats()["curr_items"] == "0"


def test_the_limits_are_named(raw: Raw) -> None:
    for size, form in ((250, b"%d"), (186, b"%d ")):
        (key,), (longer,) = (keys_of(raw, "m", 1, form, size + more) for more in (0, 1))
        assert raw.ask("SET", key, "1") == b"+OK\r\n"
        for command in (("SET", longer, "1"), ("GET", longer), ("MGET", longer, key), ("DEL", key, longer)):
            assert raw.ask(*command).startswith(b"-ERR the key is too long for memcached shard 'm'"), command
        assert raw.ask("GET", key) == b"$1\r\n1\r\n"
    key = keys_of(raw, "m", 1)[0]
    most = LIMIT - HEADER - len(key)
    assert raw.ask("SET", key, b"x" * most) == b"+OK\r\n"
    assert raw.value("STRLEN", key) == most
    for command in (("SET", key, b"x" * (most + 1)), ("MSET", key, b"x" * (most + 1), "other", "1")):
        answer = raw.ask(*command)
        assert answer.startswith(b"-ERR the value is too large for memcached shard 'm'"), answer
        assert b"at most 1048576 bytes" in answer
    assert raw.value("STRLEN", key) == most  # what was there is there still
    assert raw.ask("GET", key) == b"$%d\r\n%b\r\n" % (most, b"x" * most)
    assert raw.ask("EXISTS", "other") == b":0\r\n"


def test_the_limit_of_an_item_is_the_nodes_own() -> None:
    with MemcachedNode("-I", "2m") as node, ProxyProcess(toml({"m": node.url})) as proxy, proxy.raw() as raw:
        most = 2 * LIMIT - HEADER - len("key")
        for command in (("SET", "key", "x" * most), ("GETSET", "key", "y" * most)):
            until(lambda command=command: raw.ask(*command)[:1] in b"+$")
        for command in (("SET", "key", "z" * (most + 1)), ("APPEND", "key", "z")):
            answer = raw.ask(*command)
            assert answer.startswith(b"-ERR the value is too large for memcached shard 'm'"), answer
            assert b"at most 2097152 bytes" in answer
        assert raw.value("STRLEN", "key") == most


def test_what_is_not_possible_is_said(raw: Raw, key: bytes) -> None:
    for command in (
        ("LPUSH", key, "1"), ("SADD", key, "1"), ("BLPOP", key, "0"), ("EVAL", "return 1", "1", key),
        ("HSET", key, "a", "b"), ("PUBLISH", key, "hi"), ("SUBSCRIBE", key), ("XREAD", "STREAMS", key, "0"),
        ("CLIENT", "TRACKING", "ON"),
    ):  # fmt: skip
        name = b"CLIENT TRACKING" if command[0] == "CLIENT" else str(command[0]).encode()
        assert raw.ask(*command).startswith(b"-ERR '%b' is not possible on a memcached shard ('m')" % name)
    assert raw.ask("WATCH", key).startswith(b"-ERR transactions are not possible on a memcached shard ('m')")
    assert raw.ask("MULTI") == b"+OK\r\n"
    assert raw.ask("SET", key, "1").startswith(b"-ERR transactions are not possible")
    assert raw.ask("EXEC").startswith(b"-EXECABORT")
    assert raw.ask("SELECT", "1") == b"-ERR DB index is out of range\r\n"
    assert raw.ask("SELECT", "0") == b"+OK\r\n"
    assert raw.ask("GET", key) == b"$-1\r\n"


def test_every_command_is_possible_or_refused_by_name() -> None:
    """What is refused, and what the proxy answers itself, asks the node nothing."""
    with (
        MemcachedNode() as node,
        ProxyProcess(toml({"m": node.url}, pool='health = { interval = "1h" }')) as proxy,
        proxy.raw() as raw,
    ):
        until(lambda: raw.ask("SET", "{every}s", "5") == b"+OK\r\n")

        def asked() -> dict[str, str]:
            return {name: value for name, value in node.stats().items() if name.startswith("cmd_")}

        for name, row in ROWS.items():
            before = asked()
            with proxy.raw() as own:
                own.socket.settimeout(10)
                reply = own.ask(*words(LINES[name]))
            refusal = b" not possible on a memcached shard ('m')"
            if name in PROGRAMS:
                assert refusal not in reply, name
                continue
            assert asked() == before, name
            if row.kind == "refused" or name.startswith("session."):
                assert reply.startswith((b"-ERR", b"-NOPERM")), (name, reply)
            elif row.has_keys and name not in ("keys", "scan"):
                said = (
                    b"transactions are"
                    if name == "watch"
                    else b"'%b' is" % name.replace("|", " ").upper().encode()
                )
                assert reply.startswith(b"-ERR " + said + refusal), (name, reply)
            elif refusal in reply:  # by its own name, or its container's
                assert reply.startswith(b"-ERR '%b" % name.partition("|")[0].upper().encode()), (name, reply)


def test_wait_is_refused_to_who_has_written_where_nothing_is_replicated(raw: Raw, key: bytes) -> None:
    other = keys_of(raw, "r", 1)[0]
    assert raw.ask("SET", other, "1") == b"+OK\r\n"
    assert raw.ask("WAIT", "0", "1") == b":0\r\n"
    assert raw.ask("INCR", key) == b":1\r\n"
    assert raw.ask("WAIT", "0", "1").startswith(b"-ERR 'WAIT' is not possible on a memcached shard ('m')")


def test_redis_shards_of_a_mixed_ring_can_all_they_could(raw: Raw) -> None:
    key = keys_of(raw, "r", 1)[0]
    assert raw.ask("RPUSH", key, "1") == b":1\r\n"
    assert raw.ask("EVAL", "return redis.call('LLEN', KEYS[1])", "1", key) == b":1\r\n"
    sha = raw.value("SCRIPT", "LOAD", "return 7")
    assert raw.ask("EVALSHA", sha, "0") == b":7\r\n"
    assert raw.ask("MULTI") == b"+OK\r\n"
    assert raw.ask("RPOP", key) == b"+QUEUED\r\n"
    assert raw.ask("PING") == b"+QUEUED\r\n"
    assert raw.ask("EXEC") == b"*2\r\n$1\r\n1\r\n+PONG\r\n"
    assert [raw.ask("MULTI"), raw.ask("LLEN", key), raw.ask("CLIENT", "GETNAME")][0] == b"+OK\r\n"
    assert raw.ask("EXEC") == b"*2\r\n:0\r\n$-1\r\n"  # some of it a handler's
    assert raw.value("CONFIG", "GET", "maxmemory") == ["maxmemory", "0"]
    with Raw(raw.socket.getpeername()) as other:
        assert other.ask("SUBSCRIBE", key).startswith(b"*3\r\n$9\r\nsubscribe")
        assert raw.ask("PUBLISH", key, "hi") == b":1\r\n"
        assert other.frame().endswith(b"hi\r\n")


def test_who_it_is_and_where(raw: Raw, key: bytes) -> None:
    assert '"protocol": "memcached"' in raw.value("PROXY", "LOCATE", key)
    assert '"shard": "n"' in raw.value("PROXY", "LOCATE", key).partition('"stand_in"')[2]
    until(lambda: '"version": "1.6' in raw.value("PROXY", "NODES"))
    assert raw.value("INFO").partition("redis_version:")[2].startswith("7.")


def test_times_to_live(raw: Raw, key: bytes, nodes: Nodes) -> None:
    """Seconds and one more, as the node counts: never less than asked for, at most two more."""
    day = 86400
    now = int(time.time())
    for command, least in (
        (("SET", key, "1", "EX", "100"), 100),
        (("SET", key, "1", "PX", "99001"), 100),
        (("SETEX", key, "100", "1"), 100),
        (("PSETEX", key, "99999", "1"), 100),
        (("SET", key, "1", "EXAT", f"{now + 100}"), 98),
        (("SET", key, "1", "PXAT", f"{now + 100}000"), 98),
        (("SET", key, "1", "EX", f"{30 * day - 1}"), 30 * day - 1),
        (("SET", key, "1", "EX", f"{30 * day}"), 30 * day),
        (("SET", key, "1", "EX", f"{60 * day}"), 60 * day),
    ):
        assert raw.ask(*command) == b"+OK\r\n"
        left = int(nodes[0].say(b"mg %b t\r\n" % key, b"\n").split(b" t")[1])
        assert least <= left <= least + 4, command
    assert raw.ask("SET", key, "1") == b"+OK\r\n"
    assert nodes[0].say(b"mg %b t\r\n" % key, b"\n") == b"HD t-1\r\n"
    assert raw.ask("SET", key, "1", "EXAT", "1000") == b"+OK\r\n"
    assert raw.ask("GET", key) == b"$-1\r\n"


def test_a_time_to_live_ends() -> None:
    with MemcachedNode() as node, ProxyProcess(toml({"m": node.url})) as proxy, proxy.raw() as raw:
        began = time.monotonic()
        assert raw.ask("SET", "key", "1", "PX", "1001") == b"+OK\r\n"
        until(lambda: raw.ask("GET", "key") == b"$-1\r\n")
        assert time.monotonic() - began > 1.0


def test_large_values_stream_through(raw: Raw) -> None:
    keys = keys_of(raw, "m", 4)
    values = [bytes([65 + number]) * 900_000 for number in range(4)]
    for key, value in zip(keys, values, strict=True):
        assert raw.ask("SET", key, value) == b"+OK\r\n"
    raw.send(b"".join(pack("GET", key) for key in keys) + pack("MGET", *keys))
    for value in values:
        assert raw.frame() == b"$900000\r\n%b\r\n" % value
    assert raw.frame() == b"*4\r\n" + b"".join(b"$900000\r\n%b\r\n" % value for value in values)


def test_a_memcached_that_is_full_says_so() -> None:
    with (
        MemcachedNode("-m", "2", "-M", "-o", "no_slab_reassign") as node,
        ProxyProcess(toml({"m": node.url})) as proxy,
        proxy.raw() as raw,
    ):
        answers = {raw.ask("SET", f"key{number}", b"x" * 100_000) for number in range(100)}
        assert b"+OK\r\n" in answers
        (full,) = answers - {b"+OK\r\n"}
        assert full.startswith(
            b"-OOM command not allowed when used memory > 'maxmemory': shard 'm' at 127.0.0.1"
        )
        assert raw.ask("MSET", *(part for n in range(100) for part in (f"key{n}", b"x" * 100_000))) == full
        assert raw.ask("PING") == b"+PONG\r\n"


def test_evictions_lose_values_and_nothing_else() -> None:
    with MemcachedNode("-m", "2") as node, ProxyProcess(toml({"m": node.url})) as proxy, proxy.raw() as raw:
        for number in range(400):
            assert raw.ask("SET", f"key{number}", b"%d" % number * 3000) == b"+OK\r\n"
        found = raw.value("MGET", *(f"key{number}" for number in range(400)))
        assert None in found
        for number, value in enumerate(found):
            assert value is None or value == str(number) * 3000


@pytest.fixture
def users() -> Iterator[Path]:
    """A file of logins; memcached reads it as nobody, which may not look into pytest's folders."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "users")
        path.write_text("user:hunter2\n")
        yield path


def test_a_password(tmp_path: Path, users: Path) -> None:
    for word, works in (("hunter2", True), ("wrong-word", False)):
        secret = tmp_path / word
        secret.write_text(word)
        with MemcachedNode("-Y", str(users)) as node:
            shard = f'primary = "{node.url}"\nusername = "user"\npassword_file = "{secret}"\n'
            config = f'listen = ["127.0.0.1:0"]\n[pool.main.shards.m]\n{shard}'
            with ProxyProcess(config) as proxy, proxy.raw() as raw:
                if works:
                    assert raw.ask("SET", "key", "1") == b"+OK\r\n"
                    until(lambda raw=raw: '"state": "up"' in raw.value("PROXY", "NODES"))
                else:
                    assert b"refuses the login" in raw.ask("SET", "key", "1")
                    until(lambda proxy=proxy: proxy.events("node_refuses"))
                assert word not in proxy.log_text()
    with MemcachedNode() as node:
        shard = f'primary = "{node.url}"\npassword_file = "{tmp_path / "hunter2"}"\n'
        with ProxyProcess(f'listen = ["127.0.0.1:0"]\n[pool.main.shards.m]\n{shard}') as proxy:
            with proxy.raw() as raw:
                assert b"it asks for no login" in raw.ask("SET", "key", "1")
            until(lambda: proxy.events("node_refuses"))
        assert node.stats()["cmd_set"] == "0"  # it has not been told the password


@pytest.mark.parametrize("version", ["1.5.6", "1.4.39", "0.9"])
def test_a_node_older_than_1_6_is_refused_with_that_reason(nodes: Nodes, version: str) -> None:
    """It has no meta protocol: out from the start, and its neighbours serve."""
    says = b"VERSION %b\r\nERROR\r\nSTAT item_size_max 1048576\r\nEND\r\n" % version.encode()
    reason = f"it is memcached {version}: a shard's must be 1.6 or newer, which speaks the meta protocol"
    with (
        SomethingElse(says) as old,
        ProxyProcess(toml({"old": f"memcached://{old.address}", "m": nodes[0].url})) as proxy,
        proxy.raw() as raw,
    ):
        (event,) = until(lambda: proxy.events("node_refuses"))
        assert (event["node"], event["reason"]) == (old.address, reason)
        key = keys_of(raw, "old", 1)[0]
        until(lambda: reason.removeprefix("it ").encode() in raw.ask("GET", key), "the reason")
        assert raw.ask("SET", key, "1").startswith(b"-SHARDDOWN shard 'old' at ")
        assert raw.ask("SET", keys_of(raw, "m", 1)[0], "1") == b"+OK\r\n"
        assert {"state": "up", "version": ""}.items() & json.loads(raw.value("PROXY", "NODES"))[
            0
        ].items() == {("version", "")}


class TlsMemcached(MemcachedNode):
    """One whose port speaks TLS, and nothing else."""

    def ready(self) -> bool:
        Raw(self.port).close()
        return True


def test_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    cert, key = authority.issue("node")
    for each in (*tmp_path.parents[:2], tmp_path, authority.folder):  # memcached reads them as nobody
        each.chmod(0o755)
    key.chmod(0o644)
    with TlsMemcached("-Z", "-o", f"ssl_chain_cert={cert},ssl_key={key}") as node:
        shards = {"m": node.url.replace("memcached:", "memcacheds:")}
        with ProxyProcess(toml(shards, pool=f'tls.ca = "{authority.ca}"')) as proxy, proxy.raw() as raw:
            value = EVERY_BYTE * 2000
            assert raw.ask("SET", "key", value) == b"+OK\r\n"
            assert raw.ask("GET", "key") == b"$%d\r\n%b\r\n" % (len(value), value)
            until(lambda: '"state": "up"' in raw.value("PROXY", "NODES"))
            until(lambda: '"version": "1.6' in raw.value("PROXY", "NODES"))
        with ProxyProcess(toml(shards)) as proxy, proxy.raw() as raw:
            assert b"TLS: " in raw.ask("SET", "key", value)
