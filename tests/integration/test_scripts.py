"""Scripts and functions: on every node, after losses and flushes, in every worker, within their bound."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator

import pytest
import redis
from redis.exceptions import NoScriptError
from servers import ProxyProcess, Raw, RedisNode, redis_nodes, shards_of, toml, until

SET = "return redis.call('SET', KEYS[1], ARGV[1])"
OTHER_LIBRARY = (
    "#!lua name=other\nredis.register_function('get', function(k) return redis.call('GET', k[1]) end)"
)
LIBRARY = (
    "#!lua name=lib\nredis.register_function('put', function(k, a) return redis.call('SET', k[1], a[1]) end)"
)


def sha(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as nodes:
        yield nodes


@pytest.fixture
def proxy(nodes: list[RedisNode]) -> Iterator[ProxyProcess]:
    with ProxyProcess(toml(shards_of(nodes))) as proxy:
        with proxy.raw() as raw:
            assert raw.ask("SCRIPT", "FLUSH") == b"+OK\r\n"
            assert raw.ask("FUNCTION", "FLUSH") == b"+OK\r\n"
        yield proxy


def on_nodes(nodes: list[RedisNode], *command: str) -> list[object]:
    found = []
    for node in nodes:
        with Raw(node.port) as raw:
            found.append(raw.value(*command))
    return found


def everywhere(raw: Raw, text: str = SET, keys: int = 20) -> set[bytes]:
    """What EVALSHA says on keys of all shards, sent in one pipeline."""
    for number in range(keys):
        raw.send(
            b"*5\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n$3\r\nk%02d\r\n$1\r\n1\r\n"
            % (sha(text).encode(), number)
        )
    return set(raw.frames(keys))


def sent(raw: Raw) -> int:
    return int(json.loads(raw.value("PROXY", "INFO"))["counters"]["scripts_sent"])


def test_script_load_is_on_every_node(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    with proxy.raw() as raw:
        assert raw.value("EVALSHA", sha(SET), 1, "k", 1).args[0].startswith("NOSCRIPT")
        assert raw.value("SCRIPT", "EXISTS", sha(SET)) == [0]
        assert raw.value("SCRIPT", "LOAD", SET) == sha(SET)
        assert on_nodes(nodes, "SCRIPT", "EXISTS", sha(SET)) == [[1]] * 3
        assert raw.value("SCRIPT", "EXISTS", sha(SET), "0" * 40, sha(SET).upper()) == [1, 0, 1]
        assert everywhere(raw) == {b"+OK\r\n"}
        assert raw.value("EVALSHA", sha(SET).upper(), 1, "k", 2) == "OK"
        assert raw.value("SCRIPT", "LOAD", "return (").args[0].startswith("ERR Error compiling script")
        assert raw.ask("SCRIPT", "FLUSH") == b"+OK\r\n"
        assert raw.value("EVALSHA", sha(SET), 1, "k", 1).args[0].startswith("NOSCRIPT")
        assert on_nodes(nodes, "SCRIPT", "EXISTS", sha(SET)) == [[0]] * 3


def test_what_does_not_compile_does_not_exist(proxy: ProxyProcess) -> None:
    """The proxy keeps the text that an EVAL brings before anybody has compiled it."""
    with proxy.raw() as raw:
        raw.ask("EVAL", "nonsense(", 0)
        raw.ask("EVAL", "return 71", 0)
        assert raw.value("SCRIPT", "EXISTS", sha("nonsense("), sha("return 71")) == [0, 1]
        assert raw.value("EVALSHA", sha("nonsense("), 0).args[0].startswith("NOSCRIPT")


def test_a_known_script_is_sent_once_a_connection(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw:
        raw.ask("SCRIPT", "LOAD", SET)
        before = sent(raw)
        for _ in range(5):
            assert everywhere(raw) == {b"+OK\r\n"}
        assert sent(raw) == before + 3


def test_what_eval_brought_is_found_elsewhere(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw:
        assert raw.value("EVAL", SET, 1, "k", 1) == "OK"
        assert everywhere(raw) == {b"+OK\r\n"}


def test_after_a_flush_on_the_nodes_one_answer_says_noscript(
    proxy: ProxyProcess, nodes: list[RedisNode]
) -> None:
    with proxy.raw() as raw:
        raw.ask("SCRIPT", "LOAD", SET)
        assert everywhere(raw) == {b"+OK\r\n"}
        on_nodes(nodes, "SCRIPT", "FLUSH")
        for _ in range(2):
            for number in range(20):
                raw.ask("EVALSHA", sha(SET), 1, f"k{number}", 1)
        assert everywhere(raw) == {b"+OK\r\n"}
        on_nodes(nodes, "SCRIPT", "FLUSH")
        for number in range(20):  # the same, seen in a transaction
            raw.ask("MULTI")
            raw.ask("EVALSHA", sha(SET), 1, f"k{number:02}", 1)
            raw.ask("EXEC")
        assert everywhere(raw) == {b"+OK\r\n"}


def test_a_node_that_has_restarted_is_sent_it_again() -> None:
    with redis_nodes(2) as nodes, ProxyProcess(toml(shards_of(nodes))) as proxy, proxy.raw() as raw:
        raw.ask("SCRIPT", "LOAD", SET)
        assert everywhere(raw) == {b"+OK\r\n"}
        for _ in range(2):
            nodes[0].kill()
            nodes[0].start()
            until(
                lambda: (
                    not any(frame.startswith((b"-SHARD", b"-UNKNOWN", b"-TIME")) for frame in everywhere(raw))
                )
            )
            assert everywhere(raw) == {b"+OK\r\n"}


def test_what_waits_for_a_node_that_restarts_is_not_noscript() -> None:
    """Requests that were queued for the lost connection, known there, go out on one that knows nothing."""
    pool = 'timeout = "20s"\nkind = "cache"\non_shard_down = "rehash"\n'
    pool += 'health = { interval = "200ms", failures = 1000 }'
    with (
        redis_nodes(1) as nodes,
        ProxyProcess(toml(shards_of(nodes), pool=pool)) as proxy,
        proxy.raw() as raw,
    ):
        raw.ask("SCRIPT", "LOAD", "return 1")
        assert everywhere(raw, "return 1") == {b":1\r\n"}
        nodes[0].kill()
        answers: list[set[bytes]] = []
        thread = threading.Thread(target=lambda: answers.append(everywhere(raw, "return 1")))
        thread.start()
        nodes[0].start()
        thread.join()
        assert not any(frame.startswith(b"-NOSCRIPT") for frame in answers[0]), answers


@pytest.mark.parametrize("proto", [2, 3])
def test_in_transactions(proxy: ProxyProcess, proto: int) -> None:
    with proxy.raw() as raw:
        raw.ask("HELLO", proto)
        raw.ask("SCRIPT", "LOAD", SET)
        for watched in (False, True):
            if watched:
                raw.ask("WATCH", "{t}w")
            raw.send(b"MULTI\r\n")
            for number in range(3):
                raw.send(b"EVALSHA %b 1 {t}%d v\r\nGET {t}%d\r\n" % (sha(SET).encode(), number, number))
            raw.send(b"EVALSHA %b 0\r\nEXEC\r\n" % sha("return 7").encode())
            frames = raw.frames(9)
            assert frames[:8] == [b"+OK\r\n"] + [b"+QUEUED\r\n"] * 7
            assert frames[8].startswith(b"*7\r\n" + b"+OK\r\n$1\r\nv\r\n" * 3)
            raw.ask("EVAL", "return 7", 0)
        assert frames[8].endswith(b":7\r\n")
        raw.send(b"MULTI\r\nEVAL 'return 7' 0\r\nEVALSHA %b 0\r\nEXEC\r\n" % sha("return 7").encode())
        assert raw.frames(4)[3] == b"*2\r\n:7\r\n:7\r\n"


def test_in_a_transaction_with_commands_that_are_answered_here(
    proxy: ProxyProcess, nodes: list[RedisNode]
) -> None:
    with proxy.raw() as raw:
        raw.ask("SCRIPT", "LOAD", SET)
        on_nodes(nodes, "SCRIPT", "FLUSH")
        for words in (["MULTI"], ["SELECT", "0"], ["EVALSHA", sha(SET), "1", "k", "v"]):
            raw.ask(*words)
        assert raw.ask("EXEC") == b"*2\r\n+OK\r\n+OK\r\n"


def test_a_transaction_that_falls_due_when_half_of_its_script_is_written() -> None:
    """The connection goes on: nobody gets a reply that is another's."""
    text = "--" + "x" * (12 << 20) + "\nreturn 1"  # more than the sockets take
    with (
        redis_nodes(2) as nodes,
        ProxyProcess(toml(shards_of(nodes), pool="timeout = '500ms'")) as proxy,
        proxy.raw() as raw,
        proxy.raw() as other,
    ):
        at = next(k for k in "abcdefghijklm" if json.loads(raw.value("PROXY", "LOCATE", k))["shard"] == "a")
        keys = [f"{{{at}}}{i}" for i in range(10)]
        for i, key in enumerate(keys):
            other.ask("SET", key, i)
        raw.ask("SCRIPT", "LOAD", text)
        nodes[0].pause()
        try:
            for words in (["MULTI"], ["EVALSHA", sha(text), "1", at], ["SET", at, "v"]):
                raw.ask(*words)
            assert raw.ask("EXEC").startswith(b"-TIMEOUT ")
            assert not other.ask("PROXY", "DRAIN", "b", "FORCE").startswith(b"-")  # another topology
        finally:
            nodes[0].resume()
        assert [other.value("GET", key) for key in keys] == [str(i) for i in range(10)]


def test_without_keys_a_script_has_one_shard(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    texts = [f"return {number}" for number in range(40)]
    with proxy.raw() as raw:
        for number, text in enumerate(texts):
            assert raw.value("EVAL", text, 0) == number
        per_node = on_nodes(nodes, "SCRIPT", "EXISTS", *map(sha, texts))
        assert all(sum(column) == 1 for column in zip(*per_node, strict=True))
        assert all(any(row) for row in per_node)
        for number, text in enumerate(texts):
            assert raw.value("EVALSHA", sha(text), 0) == number
            assert raw.value("EVALSHA_RO", sha(text).upper(), 0) == number
            assert raw.value("EVAL_RO", text, 0) == number
        assert raw.value("EVALSHA", "short", 0).args[0].startswith("NOSCRIPT")


def test_order_in_a_pipeline(proxy: ProxyProcess) -> None:
    add = "return redis.call('APPEND', KEYS[1], ARGV[1])"
    with proxy.raw() as raw:
        raw.ask("SCRIPT", "LOAD", add)
        for turn in range(10):
            key = b"order%d" % turn
            raw.send(
                b"SET %b a\r\nEVALSHA %b 1 %b b\r\nAPPEND %b c\r\nGET %b\r\n"
                % (key, sha(add).encode(), key, key, key)
            )
            assert raw.frames(4) == [b"+OK\r\n", b":2\r\n", b":3\r\n", b"$3\r\nabc\r\n"]


def test_ten_thousand_scripts_against_the_bound(nodes: list[RedisNode]) -> None:
    top = '[limits]\nscripts = "256kb"'
    text = toml(shards_of(nodes)).replace("[pool.main]", top + "\n[pool.main]", 1)
    with ProxyProcess(text) as proxy, proxy.raw() as raw:
        raw.ask("SCRIPT", "FLUSH")
        assert raw.value("SCRIPT", "LOAD", SET) == sha(SET)
        assert (
            raw.value("SCRIPT", "LOAD", "--" + "x" * 300_000 + "\nreturn 1") is not None
        )  # too large to keep
        for first in range(0, 10_000, 500):
            for number in range(first, first + 500):
                body = b"return %d" % number
                raw.send(b"*3\r\n$4\r\nEVAL\r\n$%d\r\n%b\r\n$1\r\n0\r\n" % (len(body), body))
            assert raw.frames(500) == [b":%d\r\n" % number for number in range(first, first + 500)]
        assert 100_000 < json.loads(raw.value("PROXY", "INFO"))["counters"]["script_bytes"] <= 256 * 1024
        on_nodes(nodes, "SCRIPT", "FLUSH")
        assert raw.value("EVALSHA", sha("return 9999"), 0) == 9999
        assert raw.value("EVALSHA", sha("return 0"), 0).args[0].startswith("NOSCRIPT")
        assert everywhere(raw) == {b"+OK\r\n"}  # SCRIPT LOAD's outlives what EVAL brings
        raw.ask("SCRIPT", "FLUSH")
        assert json.loads(raw.value("PROXY", "INFO"))["counters"]["script_bytes"] == 0


def test_a_script_that_runs_is_killed(nodes: list[RedisNode]) -> None:
    with (
        ProxyProcess(toml(shards_of(nodes), pool='timeouts = { script = "60s" }')) as proxy,
        proxy.raw() as raw,
        proxy.raw() as other,
    ):
        on_nodes(nodes, "CONFIG", "SET", "busy-reply-threshold", "50")
        try:
            raw.send(b"EVAL 'while true do end' 0\r\n")
            until(lambda: other.ask("SCRIPT", "KILL") == b"+OK\r\n")
            assert b"Script killed by user" in raw.frame()
            until(lambda: other.ask("SCRIPT", "KILL").startswith(b"-NOTBUSY"))
        finally:
            on_nodes(nodes, "CONFIG", "SET", "busy-reply-threshold", "5000")


# --- workers ---


def test_workers_share_scripts() -> None:
    with redis_nodes(2) as nodes, ProxyProcess(toml(shards_of(nodes), top="workers = 2")) as proxy:
        raws = [proxy.raw() for _ in range(24)]
        by_worker = {int(raw.value("CLIENT", "ID")) >> 32: raw for raw in raws}
        assert len(by_worker) == 2
        one, two = by_worker.values()
        assert one.value("SCRIPT", "LOAD", SET) == sha(SET)
        on_nodes(nodes, "SCRIPT", "FLUSH")
        assert everywhere(two) == {b"+OK\r\n"}  # it was never told; the nodes are by the proxy
        one.ask("EVAL", "return 5", 0)
        until(lambda: two.ask("SCRIPT", "EXISTS", sha("return 5")) == b"*1\r\n:1\r\n")
        on_nodes(nodes, "SCRIPT", "FLUSH")
        assert two.value("EVALSHA", sha("return 5"), 0) == 5
        # a new worker knows what the others do
        process = next(n for n in proxy.events("worker_ready") if n["worker"] == 0)["pid"]
        import os
        import signal

        os.kill(process, signal.SIGKILL)
        until(lambda: len(list(proxy.events("worker_ready"))) == 3)
        on_nodes(nodes, "SCRIPT", "FLUSH")
        fresh = [proxy.raw() for _ in range(24)]
        try:
            newest = max(fresh, key=lambda raw: int(raw.value("CLIENT", "ID")))
            until(lambda: newest.ask("SCRIPT", "EXISTS", sha(SET)) == b"*1\r\n:1\r\n")
            assert everywhere(newest) == {b"+OK\r\n"}
            assert newest.ask("SCRIPT", "FLUSH") == b"+OK\r\n"
            for raw in fresh:
                assert raw.value("EVALSHA", sha(SET), 1, "k", 1).args[0].startswith("NOSCRIPT")
        finally:
            for raw in [*raws, *fresh]:
                raw.close()


# --- functions ---


def test_functions_are_on_every_node(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    with proxy.raw() as raw:
        assert raw.value("FUNCTION", "LOAD", LIBRARY) == "lib"
        assert raw.value("FUNCTION", "LOAD", LIBRARY).args[0].startswith("ERR Library 'lib' already exists")
        assert {raw.value("FCALL", "put", 1, f"k{number}", 1) for number in range(20)} == {"OK"}
        assert len(raw.value("FUNCTION", "LIST")) == 1
        payload = raw.ask("FUNCTION", "DUMP")
        assert raw.ask("FUNCTION", "DELETE", "lib") == b"+OK\r\n"
        assert on_nodes(nodes, "FUNCTION", "LIST") == [[]] * 3
        body = payload.partition(b"\r\n")[2][:-2]
        assert raw.ask("FUNCTION", "RESTORE", body) == b"+OK\r\n"
        assert raw.value("FCALL", "put", 1, "k", 1) == "OK"
        # a node that has lost its own
        with Raw(nodes[1].port) as there:
            there.ask("FUNCTION", "FLUSH")
        assert b"was done, but not on shard 'b'" in raw.ask("FUNCTION", "DELETE", "lib")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_deleted_while_a_node_was_away_is_not_there_when_it_is_back(workers: int) -> None:
    pool = 'kind = "cache"\non_shard_down = "rehash"\ntimeout = "500ms"\nhealth = { interval = "300ms" }'
    with (
        redis_nodes(2) as nodes,
        ProxyProcess(toml(shards_of(nodes), top=f"workers = {workers}", pool=pool)) as proxy,
        proxy.raw() as raw,
    ):

        def state() -> str:
            return str(json.loads(raw.value("PROXY", "NODES"))[0]["state"])

        for turn in ("another", "none"):
            until(lambda: state() == "up")
            assert raw.value("FUNCTION", "LOAD", "REPLACE", LIBRARY) == "lib"
            raw.ask("SCRIPT", "LOAD", SET)
            assert on_nodes(nodes, "SCRIPT", "EXISTS", sha(SET)) == [[1]] * 2
            nodes[0].pause()
            until(lambda: everywhere(raw) and state() == "out")
            if turn == "another":
                assert raw.value("FUNCTION", "LOAD", OTHER_LIBRARY) == "other"
                assert raw.ask("FUNCTION", "DELETE", "lib") == b"+OK\r\n"
            else:
                assert raw.ask("FUNCTION", "FLUSH") == b"+OK\r\n"
            assert raw.ask("SCRIPT", "FLUSH") == b"+OK\r\n"
            nodes[0].resume()
            until(lambda: state() == "up")
            one, two = on_nodes(nodes, "FUNCTION", "LIST")
            assert one == two and len(one) == (turn == "another")
            assert on_nodes(nodes, "SCRIPT", "EXISTS", sha(SET)) == [[0]] * 2


def test_a_node_without_functions_is_given_the_others() -> None:
    with redis_nodes(2) as nodes, ProxyProcess(toml(shards_of(nodes))) as proxy, proxy.raw() as raw:
        raw.ask("FUNCTION", "LOAD", LIBRARY)
        nodes[1].kill()
        nodes[1].start()
        until(lambda: on_nodes(nodes[1:], "FUNCTION", "LIST") != [[]])
        # its shard is served again only when probes say so
        until(lambda: {raw.ask("FCALL", "put", 1, f"k{number}", 1) for number in range(20)} == {b"+OK\r\n"})


# --- redis-py ---


def test_redis_py_scripts_and_locks(proxy: ProxyProcess) -> None:
    client = redis.Redis(port=proxy.port, decode_responses=True)
    script = client.register_script("return ARGV[1] .. KEYS[1]")
    assert [script(keys=[f"k{number}"], args=["x"]) for number in range(5)] == [
        f"xk{number}" for number in range(5)
    ]
    with client.pipeline() as pipe:
        script(keys=["{t}a"], args=["y"], client=pipe)
        pipe.set("{t}b", 1)
        assert pipe.execute() == ["y{t}a", True]
    assert client.script_exists(script.sha) == [True]
    with pytest.raises(NoScriptError):
        client.evalsha("0" * 40, 0)
    held = client.lock("lock", timeout=5)
    assert held.acquire()
    assert not client.lock("lock", timeout=5).acquire(blocking=False)
    assert held.extend(3)
    held.release()
    with client.lock("lock", timeout=5, blocking_timeout=2):
        assert client.exists("lock") == 1
    began = time.monotonic()
    counted = []

    def work() -> None:
        for _ in range(10):
            with client.lock("shared", timeout=10, sleep=0.005):
                counted.append(int(client.incr("n")))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == sorted(counted) == list(range(1, 31)), time.monotonic() - began
    client.close()
