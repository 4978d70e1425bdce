"""What concerns all keys, and all nodes: SCAN, KEYS, FLUSHALL, what administrators ask, PROXY NODE."""

import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from servers import ProxyProcess, Raw, RedisNode, redis_nodes, shards_of, toml, until


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as nodes:
        yield nodes


@pytest.fixture
def proxy(nodes: list[RedisNode]) -> Iterator[ProxyProcess]:
    with ProxyProcess(toml(shards_of(nodes))) as proxy:
        with proxy.raw() as raw:
            assert raw.ask("FLUSHALL") == b"+OK\r\n"
        yield proxy


@pytest.fixture
def pair() -> Iterator[tuple[Raw, Raw]]:
    """A proxy before one node, and a plain Redis."""
    with (
        redis_nodes(2) as (one, plain),
        ProxyProcess(toml(shards_of([one]))) as proxy,
        proxy.raw() as left,
        Raw(plain.port) as right,
    ):
        yield left, right


def scanned(raw: Raw, *options: str | int) -> list[str]:
    found: list[str] = []
    cursor = "0"
    for _ in range(100_000):
        cursor, page = raw.value("SCAN", cursor, *options)
        assert 0 <= int(cursor) < 1 << 63
        found += page
        if cursor == "0":
            return found
    raise AssertionError("SCAN has no end")


def fill(raw: Raw, keys: list[str]) -> None:
    for some in itertools.batched(keys, 100) if hasattr(itertools, "batched") else [keys]:
        raw.ask("MSET", *itertools.chain.from_iterable((key, "v") for key in some))


# --- all keys ---


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize("db", [0, 5])
def test_scan_keys_and_dbsize_see_what_was_set(proxy: ProxyProcess, proto: int, db: int) -> None:
    keys = [f"k{number}" for number in range(700)]
    with proxy.raw() as raw:
        raw.ask("HELLO", proto)
        raw.ask("SELECT", db)
        fill(raw, keys)
        raw.ask("LPUSH", "list", 1)
        assert sorted(scanned(raw)) == sorted(raw.value("KEYS", "*")) == sorted([*keys, "list"])
        assert raw.value("DBSIZE") == 701
        assert sorted(scanned(raw, "MATCH", "k6*", "COUNT", 500)) == sorted(raw.value("KEYS", "k6*"))
        assert scanned(raw, "TYPE", "list", "COUNT", 50) == ["list"]
        drawn = {raw.value("RANDOMKEY") for _ in range(60)}
        assert drawn <= {*keys, "list"}
        assert len(drawn) > 20
        raw.ask("SELECT", 15 - db)
        assert scanned(raw) == raw.value("KEYS", "*") == []
        assert raw.value("RANDOMKEY") is None


def test_scan_misses_nothing_while_keys_come_and_go(proxy: ProxyProcess) -> None:
    keys = [f"stay{number}" for number in range(500)]
    with proxy.raw() as raw, proxy.raw() as other:
        fill(raw, keys)
        for turn in range(3):
            cursor, found, step = "0", set(), 0
            while True:
                cursor, page = raw.value("SCAN", cursor, "COUNT", 20)
                found.update(page)
                step += 1
                fill(other, [f"come{turn}:{step}:{number}" for number in range(50)])
                other.ask("DEL", *[f"come{turn}:{step - 1}:{number}" for number in range(50)])
                if cursor == "0":
                    break
            assert set(keys) <= found


def test_scan_while_a_shard_is_added(nodes: list[RedisNode]) -> None:
    keys = [f"k{number}" for number in range(600)]
    with ProxyProcess(toml(shards_of(nodes[:2]))) as proxy, proxy.raw() as raw:
        raw.ask("FLUSHALL")
        with Raw(nodes[2].port) as third:
            third.ask("FLUSHALL")
        fill(raw, keys)
        cursor, page = raw.value("SCAN", 0, "COUNT", 50)
        found = set(page)
        proxy.config_path.write_text(toml(shards_of(nodes)))
        assert "error" not in str(raw.value("PROXY", "RELOAD"))
        fresh = [key for key in keys if raw.value("GET", key) is None]  # are on the new shard now
        assert 50 < len(fresh) < 400
        fill(raw, fresh)
        while cursor != "0":
            cursor, page = raw.value("SCAN", cursor, "COUNT", 50)
            found.update(page)
        assert found == set(keys)
        # the old places of keys that have moved are not shown, nor twice
        assert sorted(scanned(raw)) == sorted(raw.value("KEYS", "*")) == sorted(keys)


def test_a_node_that_is_down(nodes: list[RedisNode]) -> None:
    with RedisNode() as extra:
        text = toml(shards_of([nodes[0], extra]), pool='partial = "nil"')
        with (
            ProxyProcess(text) as lenient,
            ProxyProcess(toml(shards_of([nodes[0], extra]))) as strict,
            lenient.raw() as raw,
            strict.raw() as severe,
        ):
            raw.ask("FLUSHALL")
            keys = [f"k{number}" for number in range(100)]
            fill(raw, keys)
            extra.kill()
            until(lambda: severe.ask("KEYS", "*").startswith(b"-SHARDDOWN"))
            here = set(until(lambda: raw.value("KEYS", "*")))
            assert 0 < len(here) < 100
            assert set(scanned(raw)) == here
            assert raw.value("DBSIZE") == len(here)
            assert raw.value("RANDOMKEY") in here
            with pytest.raises(TypeError):
                scanned(severe)  # it gets an error
            for change in ("FLUSHALL", "FLUSHDB"):
                answer = str(raw.value(change))
                assert "shard 'b'" in answer, answer


def test_a_node_that_is_out_of_a_cache_comes_back_empty(nodes: list[RedisNode]) -> None:
    pool = (
        'kind = "cache"\non_shard_down = "rehash"\non_return = "invalidate"\ntimeout = "500ms"\n'
        'health = { interval = "200ms", timeout = "200ms", wait = "200ms", fail_open_ratio = 1.0 }'
    )
    with (
        RedisNode() as extra,
        ProxyProcess(toml(shards_of([nodes[0], extra]), pool=pool)) as proxy,
        proxy.raw() as raw,
    ):
        raw.ask("FLUSHALL")
        keys = [f"k{number}" for number in range(100)]
        fill(raw, keys)
        extra.pause()
        until(lambda: raw.ask("FLUSHALL") == b"+OK\r\n" and len(raw.value("KEYS", "*")) == 0)
        fill(raw, keys[:10])
        assert sorted(scanned(raw)) == sorted(raw.value("KEYS", "*")) == sorted(keys[:10])
        extra.resume()

        def back() -> bool:
            with Raw(extra.port) as there:
                return bool(there.value("EXISTS", *keys) == 0)

        until(back, "what was flushed while it was out to be gone")


def test_flushes_and_swapdb(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    with proxy.raw() as raw:
        for db in (0, 1):
            raw.ask("SELECT", db)
            fill(raw, [f"db{db}:{number}" for number in range(60)])
        assert raw.ask("SWAPDB", 0, 1) == b"+OK\r\n", proxy.log_text()
        assert all(key.startswith("db0") for key in raw.value("KEYS", "*"))
        assert raw.ask("SWAPDB", 0, 99) == b"-ERR DB index is out of range\r\n"
        assert raw.value("MOVE", "db0:7", 9) == 1
        raw.ask("SELECT", 9)
        assert raw.value("KEYS", "*") == ["db0:7"]
        raw.ask("SELECT", 1)
        assert raw.ask("FLUSHDB", "ASYNC") == b"+OK\r\n"
        assert raw.value("DBSIZE") == 0
        raw.ask("SELECT", 0)
        assert raw.value("DBSIZE") == 60
        assert raw.ask("FLUSHALL", "NEVER") == b"-ERR syntax error\r\n"
        assert raw.ask("FLUSHALL", "SYNC") == b"+OK\r\n"
        assert raw.value("DBSIZE") == 0


def transacted(raw: Raw, *commands: str) -> list[Any]:
    raw.ask("MULTI")
    for command in commands:
        assert raw.ask(*command.split()) == b"+QUEUED\r\n"
    found: list[Any] = raw.value("EXEC")
    return found


def test_swapdb_in_a_transaction_swaps_where_it_stands_and_on_all_nodes_or_none() -> None:
    with redis_nodes(2) as nodes, ProxyProcess(toml(shards_of(nodes))) as proxy, proxy.raw() as raw:
        fill(raw, [f"key:{number}" for number in range(20)])
        one = "key:0"
        assert transacted(raw, f"SET {one} new", "SWAPDB 0 1", f"GET {one}") == ["OK", "OK", None]
        assert raw.value("DBSIZE") == 0
        raw.ask("SELECT", 1)
        assert raw.value("DBSIZE") == 20
        home = json.loads(raw.value("PROXY", "LOCATE", one))["shard"]
        nodes["ba".index(home)].kill()
        found = transacted(raw, f"GET {one}", "SWAPDB 0 1")
        assert found[0] == "new"
        assert "SHARDDOWN" in str(found[1])
        assert raw.value("GET", one) == "new"


def test_scan_refuses_what_redis_refuses(pair: tuple[Raw, Raw]) -> None:
    ours, theirs = pair
    for arguments in (
        ["x"], ["-1"], ["1.5"], [""], ["0", "COUNT", "0"], ["0", "COUNT", "x"], ["0", "MATCH"],
        ["0", "FOO", "1"],
        ["0", "TYPE", "nothing"], ["0", "COUNT", "10", "MATCH", "x*", "TYPE", "string"],
        ["99999999999999999999999"],
    ):  # fmt: skip
        assert ours.ask("SCAN", *arguments) == theirs.ask("SCAN", *arguments), arguments


def test_order_in_a_pipeline(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw:
        for turn in range(20):
            raw.send(
                b"SET a 1\r\nSET b 2\r\nSET c 3\r\nDBSIZE\r\nFLUSHALL\r\nDBSIZE\r\n"
                b"SET d 4\r\nKEYS *\r\nSCAN 0\r\nDEL d\r\nDBSIZE\r\n"
            )
            frames = raw.frames(11)
            assert [frames[3], *frames[4:8]] == [
                b":3\r\n", b"+OK\r\n", b":0\r\n", b"+OK\r\n", b"*1\r\n$1\r\nd\r\n",
            ], turn  # fmt: skip
            assert frames[9:] == [b":1\r\n", b":0\r\n"]


def test_in_a_transaction_what_looks_at_all_keys_sees_what_is_before_it(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw:
        raw.ask("FLUSHALL")
        for first, then, found in (("SET", "DEL", b"$3\r\nkey\r\n"), ("DEL", "SET", b"$-1\r\n")):
            lines = ["SET key 1" if each == "SET" else "DEL key" for each in (first, then)]
            raw.send("MULTI\r\n{}\r\nRANDOMKEY\r\nDBSIZE\r\n{}\r\nDBSIZE\r\nEXEC\r\n".format(*lines).encode())
            sizes = (b":1\r\n", b":0\r\n") if first == "SET" else (b":0\r\n", b":1\r\n")
            said = raw.frames(7)[-1]
            assert found + sizes[0] in said and said.endswith(sizes[1]), (first, said)


def test_dbsize_in_a_transaction_counts_without_heartbeats(nodes: list[RedisNode]) -> None:
    """The number that the run has brought is no answer to how many heartbeats there are."""
    pool = 'kind = "cache"\non_shard_down = "rehash"\non_return = "flush"'
    with ProxyProcess(toml(shards_of(nodes), pool=pool)) as proxy, proxy.raw() as raw:
        raw.ask("FLUSHALL")
        raw.send(b"MULTI\r\nSET a 1\r\nSET {a}b 1\r\nDBSIZE\r\nEXEC\r\nDBSIZE\r\n")
        assert raw.frames(6)[4:] == [b"*3\r\n+OK\r\n+OK\r\n:2\r\n", b":2\r\n"]


# --- all nodes ---

ALIKE = """
CONFIG GET hz | CONFIG GET nothing* | CONFIG GET | CONFIG SET hz 20 | CONFIG GET hz maxmemory |
CONFIG SET hz x | CONFIG SET nothing 1 | CONFIG RESETSTAT | CONFIG FOO | CONFIG | SLOWLOG LEN |
SLOWLOG GET x | SLOWLOG RESET | LATENCY LATEST | LATENCY RESET | LATENCY HISTORY command |
LATENCY FOO | MEMORY PURGE | MEMORY DOCTOR | MODULE LIST | OBJECT HELP | MEMORY HELP | CONFIG HELP |
SCRIPT HELP | FUNCTION HELP | XINFO HELP | XGROUP HELP | SLOWLOG HELP | LATENCY HELP | DEBUG SLEEP 0
| DEBUG DIGEST | DEBUG JMAP | ROLE | SCRIPT KILL | FUNCTION KILL | SCRIPT EXISTS | SCRIPT EXISTS abc
| SCRIPT FLUSH NOW | SCRIPT FLUSH ASYNC SYNC | SCRIPT FLUSH | SCRIPT LOAD | SCRIPT DEBUG NO |
SCRIPT DEBUG X | SCRIPT FOO | FUNCTION LIST | FUNCTION STATS | FUNCTION DELETE nolib |
FUNCTION FLUSH X | FUNCTION FLUSH | FUNCTION DUMP | FUNCTION RESTORE x | FUNCTION LOAD x | SAVE |
KEYS | KEYS * | RANDOMKEY | DBSIZE | SWAPDB 0 x | SWAPDB 1 2 | MOVE nokey 1 | MOVE nokey 0 |
MOVE nokey 77 | FLUSHDB | EVAL | EVAL return 0 | EVAL return -1 | EVAL return x | EVAL return 2 a |
EVALSHA abc 0 | EVALSHA abc 1 k | FCALL nofun 0 | FCALL nofun 1 k
"""


@pytest.mark.parametrize("proto", [2, 3])
def test_one_node_answers_as_it_would_itself(pair: tuple[Raw, Raw], proto: int) -> None:
    ours, theirs = pair
    ours.ask("HELLO", proto)
    theirs.ask("HELLO", proto)
    for line in map(str.strip, ALIKE.split("|")):
        mine, its = ours.ask(*line.split()), theirs.ask(*line.split())
        if line in ("ROLE",):
            mine, its = mine[:6], its[:6]
        if line.startswith("CONFIG GET"):
            mine, its = sorted(str(ours.value(*line.split()))), sorted(str(theirs.value(*line.split())))
        assert mine == its, line


def test_merges(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    with proxy.raw() as raw:
        raw.ask("HELLO", 3)
        assert raw.ask("CONFIG", "SET", "slowlog-log-slower-than", 0) == b"+OK\r\n"
        for node in nodes:
            with Raw(node.port) as there:
                assert there.value("CONFIG", "GET", "slowlog-log-slower-than")[1] == "0"
        raw.ask("SLOWLOG", "RESET")
        for number in range(30):
            raw.ask("SET", f"k{number}", number)
        entries = raw.value("SLOWLOG", "GET", 12)
        assert len(entries) == 12
        assert [entry[1] for entry in entries] == sorted((entry[1] for entry in entries), reverse=True)
        assert raw.value("SLOWLOG", "LEN") > 30
        assert raw.ask("CONFIG", "SET", "slowlog-log-slower-than", 10000) == b"+OK\r\n"
        stats = raw.value("MEMORY", "STATS")
        sizes = 0
        for node in nodes:
            with Raw(node.port) as there:
                there.ask("HELLO", 3)
                sizes += there.value("MEMORY", "STATS")["keys.count"]
        assert stats["keys.count"] == sizes == 30
        assert raw.value("LATENCY", "HISTOGRAM", "set")["set"]["calls"] >= 30
        assert raw.value("MEMORY", "DOCTOR").count("# shard ") == 3
        assert raw.value("CONFIG", "GET", "port") == {"port": str(proxy.port)}
        assert raw.value("CONFIG", "GET", "maxclients") == {"maxclients": "10000"}
        assert raw.value("CONFIG", "GET", "requirepass") == {"requirepass": ""}
        assert b"the proxy's own" in raw.ask("CONFIG", "SET", "maxclients", 5)
        before = raw.value("LASTSAVE")
        assert raw.ask("SAVE") == b"+OK\r\n"
        assert raw.value("LASTSAVE") >= before
        # as the shards' digests are of disjoint keys, it is that of all keys on one Redis
        with redis_nodes(1) as (plain,), Raw(plain.port) as other:
            for number in range(30):
                other.ask("SET", f"k{number}", number)
            assert raw.ask("DEBUG", "DIGEST") == other.ask("DEBUG", "DIGEST")
        assert b"refcount" in raw.ask("DEBUG", "OBJECT", "k1")
        assert raw.ask("DEBUG", "SEGFAULT").startswith(b"-ERR DEBUG SEGFAULT is not passed")


def test_what_takes_longer_than_the_timeout(nodes: list[RedisNode]) -> None:
    pool = 'timeouts = { write = "200ms" }'
    with ProxyProcess(toml(shards_of(nodes), pool=pool)) as proxy, proxy.raw() as raw:
        assert raw.ask("DEBUG", "SLEEP", "0.5") == b"+OK\r\n"
        assert raw.ask("PROXY", "NODE", "a", "DEBUG", "SLEEP", "0.5") == b"+OK\r\n"


def test_proxy_node(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    with proxy.raw() as raw:
        raw.ask("SELECT", 3)
        for node, name in zip(nodes, "abc", strict=True):
            assert raw.value("PROXY", "NODE", name, "CONFIG", "GET", "port") == ["port", str(node.port)]
            assert raw.ask("PROXY", "NODE", name, "SET", "mine", name) == b"+OK\r\n"
            with Raw(node.port) as there:
                there.ask("SELECT", 3)
                assert there.value("GET", "mine") == name
        raw.ask("HELLO", 3)
        assert raw.ask("PROXY", "NODE", "a", "CONFIG", "GET", "hz").startswith(b"%1\r\n")
        assert raw.ask("PROXY", "NODE", "a", "BLPOP", "nothing", 0).startswith(b"-ERR ")
        assert raw.ask("PROXY", "NODE", "a", "XREAD", "BLOCK", 0, "STREAMS", "nothing", "$").startswith(
            b"-ERR "
        )
        assert raw.ask("PROXY", "NODE", "a", "XREAD", "STREAMS", "nothing", "0") == b"_\r\n"
        assert b"there are a, b, c" in raw.ask("PROXY", "NODE", "z", "PING")
        for command in (
            "SUBSCRIBE x",
            "MULTI",
            "MONITOR",
            "SELECT 1",
            "HELLO 2",
            "CLIENT REPLY OFF",
            "WATCH k",
        ):
            assert b"PROXY NODE cannot run" in raw.ask("PROXY", "NODE", "a", *command.split())
        assert raw.ask("PROXY", "NODE", "a") == b"-ERR wrong number of arguments for 'proxy|node' command\r\n"
        assert raw.ask("PING") == b"+PONG\r\n"


def test_redis_py(proxy: ProxyProcess) -> None:
    client = redis.Redis(port=proxy.port, decode_responses=True)
    client.mset({f"k{number}": number for number in range(300)})
    assert sorted(client.scan_iter(match="k1*")) == sorted(client.keys("k1*"))
    assert len(list(client.scan_iter(count=100))) == client.dbsize() == 300
    assert client.exists(client.randomkey())
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert client.slowlog_get() is not None
    assert client.flushdb()
    assert client.dbsize() == 0
    client.close()


def test_several_clients_scan_at_once(proxy: ProxyProcess) -> None:
    keys = sorted(f"k{number}" for number in range(400))
    with proxy.raw() as raw:
        fill(raw, keys)
    found: list[list[str]] = []

    def one() -> None:
        with proxy.raw() as mine:
            found.append(sorted(set(scanned(mine, "COUNT", 7))))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [keys] * 4
