"""CLIENT UNBLOCK, WAIT with a real replica, keys that move under who waits, nodes lost in each state."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import ProxyProcess, Raw, RedisNode, redis_nodes, shards_of, toml, until


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(2) as nodes:
        yield nodes


def place(raw: Raw, key: str) -> str:
    found: str = json.loads(raw.value("PROXY", "LOCATE", key))["shard"]
    return found


def privates(raw: Raw) -> int:
    return sum(node["private"] for node in json.loads(raw.value("PROXY", "NODES")))


def blocked(raw: Raw, number: int) -> bool:
    return any(
        line.startswith(f"id={number} ") and " flags=b " in line
        for line in str(raw.value("CLIENT", "LIST")).splitlines()
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_unblock(nodes: list[RedisNode], workers: int) -> None:
    with ProxyProcess(toml(shards_of(nodes), top=f"workers = {workers}")) as proxy:
        crowd = [proxy.raw() for _ in range(4)]  # of both workers, most likely
        ids = [int(raw.value("CLIENT", "ID")) for raw in crowd]
        with proxy.raw() as other:
            for raw, number in zip(crowd, ids, strict=True):
                assert other.value("CLIENT", "UNBLOCK", number) == 0
                # at once: the node may not have heard of it
                raw.send(b"BLPOP q 0\r\nPING\r\n")
                until(lambda number=number: blocked(other, number), "it waits")
                assert other.value("CLIENT", "UNBLOCK", number) == 1
                assert raw.frames(2) == [b"*-1\r\n", b"+PONG\r\n"]
                raw.send(b"XREAD BLOCK 0 STREAMS q $\r\n")
                until(lambda number=number: blocked(other, number), "it waits")
                assert other.value("CLIENT", "UNBLOCK", number, "ERROR") == 1
                assert raw.frame() == b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"
                raw.send(b"WAIT 1 0\r\n")
                until(lambda number=number: blocked(other, number), "it waits")
                assert other.value("CLIENT", "UNBLOCK", number) == 1
                assert raw.frame() == b":0\r\n"
                assert other.value("CLIENT", "UNBLOCK", number) == 0
        for raw in crowd:
            raw.close()


def test_wait_counts_replicas_of_every_shard_written_to(nodes: list[RedisNode]) -> None:
    with ProxyProcess(toml(shards_of(nodes))) as proxy, proxy.raw() as raw:
        keys = {place(raw, f"k{i}"): f"k{i}" for i in range(50)}
        first, second = (keys[name] for name in sorted(keys))
        with RedisNode("--replicaof", "127.0.0.1", str(nodes[0].port)) as replica:
            replica_of = lambda: nodes[0].raw().value("INFO", "replication")  # noqa: E731
            until(lambda: "state=online" in replica_of(), "the replica follows")
            raw.ask("SET", first, 1)
            assert raw.value("WAIT", 1, 5000) == 1
            assert raw.value("WAIT", 2, 50) == 1
            replica.pause()
            raw.ask("SET", first, 2)
            start = time.monotonic()
            assert raw.value("WAIT", 1, 300) == 0
            assert time.monotonic() - start >= 0.3
            raw.send(b"WAIT 1 0\r\n")
            replica.resume()
            assert raw.frame() == b":1\r\n"
            # the other shard has none: the least counts
            raw.ask("SET", second, 1)
            assert raw.value("WAIT", 1, 20) == 0
            assert raw.value("WAIT", 0, 0) == 0


def test_wait_gives_back_its_connections_when_one_is_refused(nodes: list[RedisNode]) -> None:
    shards = {"a": f"127.0.0.1:{nodes[0].port}", "b": "NOBODY"}
    config = toml(shards).replace("redis://NOBODY", "unix:///nonexistent/redis.sock")
    with ProxyProcess(config) as proxy, proxy.raw() as raw:
        for _ in range(3):
            assert raw.ask("WAIT", 0, 1).startswith(b"-SHARDDOWN shard 'b'")
        until(lambda: privates(raw) <= 1, "the connections are given back")


def test_who_has_left_a_unix_socket_waits_for_nothing(nodes: list[RedisNode], tmp_path: Path) -> None:
    """What it had sent before is done, but nothing is taken for nobody."""
    path = str(tmp_path / "proxy.sock")
    config = toml(shards_of(nodes), listen=["127.0.0.1:0", f"unix://{path}"])
    with ProxyProcess(config) as proxy, proxy.raw() as raw:
        with socket.socket(socket.AF_UNIX) as leaver:
            leaver.connect(path)
            leaver.sendall(b"CLIENT REPLY OFF\r\nGET x\r\nRPUSH before 1\r\nBLPOP nothing 0\r\nGET x\r\n")
        until(lambda: raw.ask("LLEN", "before") == b":1\r\n", "what it had sent is done")
        until(lambda: len(str(raw.value("CLIENT", "LIST")).splitlines()) == 1, "it is gone")
        assert raw.ask("RPUSH", "nothing", "v") == b":1\r\n"
        assert raw.ask("LLEN", "nothing") == b":1\r\n"


def half_closed(proxy: ProxyProcess, sent: bytes) -> bytes:
    """All that is answered to who sends this, says that it will send no more, and reads."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(4096), b""))


def test_who_will_send_no_more_gets_what_was_there_and_waits_for_nothing(nodes: list[RedisNode]) -> None:
    with ProxyProcess(toml(shards_of(nodes))) as proxy, proxy.raw() as other:
        raw = b"RPUSH l 1 2\r\nBLPOP l 0\r\nWAIT 0 0\r\nBLPOP l 0\r\nPING\r\n"
        assert half_closed(proxy, raw) == (
            b":2\r\n*2\r\n$1\r\nl\r\n$1\r\n1\r\n:0\r\n*2\r\n$1\r\nl\r\n$1\r\n2\r\n+PONG\r\n"
        )
        assert half_closed(proxy, b"PING\r\nBLPOP l 0\r\nPING\r\n") == b"+PONG\r\n"
        until(lambda: len(str(other.value("CLIENT", "LIST")).splitlines()) == 1, "it is gone")
        assert other.ask("RPUSH", "l", "v") == b":1\r\n"
        assert other.ask("LLEN", "l") == b":1\r\n"


def test_wait_of_a_client_that_leaves_ends(nodes: list[RedisNode]) -> None:
    with ProxyProcess(toml(shards_of(nodes))) as proxy, proxy.raw() as other:
        with proxy.raw() as raw:
            raw.ask("SET", "a", 1)
            raw.send(b"WAIT 3 0\r\n")
            until(lambda: " cmd=wait " in str(other.value("CLIENT", "LIST")), "it waits")
        until(lambda: " cmd=wait " not in str(other.value("CLIENT", "LIST")), "it is gone")
        assert other.value("PING") == "PONG"


def move_keys(proxy: ProxyProcess, config: str) -> None:
    proxy.config_path.write_text(config)
    with proxy.raw() as raw:
        assert not raw.ask("PROXY", "RELOAD").startswith(b"-")


@pytest.mark.parametrize("end", ["data", "time", "unblock"])
def test_who_waits_for_a_key_that_moves_waits_on_where_it_is_now(nodes: list[RedisNode], end: str) -> None:
    """A reload swaps the nodes of two shards: nothing is noticed, and nothing popped twice or lost."""
    a, b = (node.address for node in nodes)
    for node in nodes:
        with node.raw() as direct:
            direct.ask("FLUSHALL")
    commands = [
        b"BLPOP %s 3\r\n", b"BLMOVE %s %s LEFT RIGHT 3\r\n", b"BLMPOP 3 1 %s LEFT\r\n",
        b"BZPOPMIN %s 3\r\n", b"XREAD BLOCK 3000 STREAMS %s $\r\n",
    ]  # fmt: skip
    with ProxyProcess(toml({"one": a, "two": b}, pool='kind = "cache"')) as proxy, proxy.raw() as other:
        crowd: list[Raw] = []
        keys: list[str] = []
        start = time.monotonic()
        for number, command in enumerate(commands):
            key = f"{{k{number}}}{number}"
            raw = proxy.raw()
            raw.send(command.replace(b"%s", key.encode()) + b"ECHO after\r\n")
            crowd.append(raw)
            keys.append(key)
        until(lambda: str(other.value("CLIENT", "LIST")).count(" flags=b ") == len(crowd), "all wait")
        until(lambda: sum(waiting_on(node) for node in nodes) == len(crowd), "all wait on the nodes")
        before = [waiting_on(node) for node in nodes]
        move_keys(proxy, toml({"one": b, "two": a}, pool='kind = "cache"'))
        until(lambda: [waiting_on(node) for node in nodes] == before[::-1], "all wait elsewhere")
        if end == "data":
            for command, key in zip(commands, keys, strict=True):
                if command.startswith(b"BZ"):
                    other.ask("ZADD", key, 1, "m")
                elif command.startswith(b"XR"):
                    other.ask("XADD", key, "*", "f", "v")
                else:
                    other.ask("RPUSH", key, "m")
            for raw in crowd:
                frame = raw.frame()
                assert b"m\r\n" in frame or b"v\r\n" in frame
        elif end == "time":
            assert [raw.frame() for raw in crowd] == [b"*-1\r\n"] * 5
            assert 2.5 < time.monotonic() - start < 20
        else:
            for raw in crowd:
                raw.close()
            until(lambda: sum(waiting_on(node) for node in nodes) == 0, "nobody waits")
            until(lambda: privates(other) <= 32, "few are kept")
            return
        for raw in crowd:
            assert raw.frame() == b"$5\r\nafter\r\n"
            raw.close()


def test_who_waits_on_a_shard_that_is_drained_waits_on_its_stand_in(nodes: list[RedisNode]) -> None:
    """And at home again when it is undrained; nothing is noticed."""
    with ProxyProcess(toml(shards_of(nodes), pool='kind = "cache"')) as proxy, proxy.raw() as other:
        first = min(shards_of(nodes))
        keys = [key for key in (f"drained{i}" for i in range(60)) if place(other, key) == first][:6]
        crowd = [proxy.raw() for _ in keys]
        for raw, key in zip(crowd, keys, strict=True):
            raw.send(f"BLPOP {key} 0\r\nECHO after\r\n".encode())
        until(lambda: [waiting_on(node) for node in nodes] == [6, 0], "all wait at home")
        assert not other.ask("PROXY", "DRAIN", first).startswith(b"-")
        until(lambda: [waiting_on(node) for node in nodes] == [0, 6], "all wait on the stand-in")
        for key in keys[:3]:
            other.ask("RPUSH", key, "there")
        assert [raw.frames(2)[0].split(b"\r\n")[4] for raw in crowd[:3]] == [b"there"] * 3
        assert not other.ask("PROXY", "UNDRAIN", first).startswith(b"-")
        until(lambda: [waiting_on(node) for node in nodes] == [3, 0], "the others wait at home again")
        for key in keys[3:]:
            other.ask("RPUSH", key, "home")
        assert [raw.frames(2)[0].split(b"\r\n")[4] for raw in crowd[3:]] == [b"home"] * 3
        for raw in crowd:
            raw.close()


def waiting_on(node: RedisNode) -> int:
    with node.raw() as direct:
        return int(str(direct.value("INFO", "clients")).partition("blocked_clients:")[2].split()[0])


def test_who_waits_on_a_node_that_goes_out_is_told_or_waits_elsewhere() -> None:
    """Of a cache pool. What may have popped something is not run again; what reads is."""
    with redis_nodes(3) as nodes:
        health = 'health = { interval = "200ms", timeout = "300ms", failures = 2, wait = "500ms" }'
        pool = f'kind = "cache"\non_shard_down = "rehash"\non_return = "keep"\n{health}'
        with ProxyProcess(toml(shards_of(nodes), pool=pool)) as proxy, proxy.raw() as other:
            shards = sorted(shards_of(nodes))
            key = next(f"k{i}" for i in range(50) if place(other, f"k{i}") == shards[0])
            with proxy.raw() as popping, proxy.raw() as reading:
                popping.send(f"BLPOP {key} 0\r\nPING\r\n".encode())
                reading.send(f"XREAD BLOCK 0 STREAMS {key} $\r\nPING\r\n".encode())
                until(lambda: waiting_on(nodes[0]) == 2, "both wait")
                nodes[0].pause()
                assert popping.frame().startswith(b"-UNBLOCKED force unblock")
                assert popping.frame() == b"+PONG\r\n"
                others = nodes[1:]
                until(
                    lambda: sum(waiting_on(node) for node in others) == 1, "the other waits on the stand-in"
                )
                other.ask("XADD", key, "*", "f", "v")
                assert b"$1\r\nv\r\n" in reading.frame()
                assert reading.frame() == b"+PONG\r\n"
                other.ask("DEL", key)
                # and home again, when it is back
                popping.send(f"BLPOP {key} 0\r\n".encode())
                until(lambda: sum(waiting_on(node) for node in others) == 1, "it waits on the stand-in")
                nodes[0].resume()
                until(
                    lambda: [waiting_on(node) for node in nodes] == [1, 0, 0], "it waits at home", patience=60
                )
                popping.socket.settimeout(20)
                other.ask("RPUSH", key, "x")
                assert popping.frame().endswith(b"$1\r\nx\r\n")


def test_many_who_wait_while_their_node_starts_again() -> None:
    with redis_nodes(1) as nodes, ProxyProcess(toml(shards_of(nodes))) as proxy, proxy.raw() as other:
        crowd = [proxy.raw() for _ in range(300)]
        for raw in crowd:
            raw.send(b"BLPOP q 0\r\nPING\r\n")
        until(lambda: waiting_on(nodes[0]) == 300, "all wait")
        nodes[0].kill()
        for raw in crowd:
            assert raw.frame().startswith(b"-UNKNOWN outcome")
            assert raw.frame() == b"+PONG\r\n"
        nodes[0].start()
        until(lambda: other.ask("PING") == b"+PONG\r\n" and privates(other) == 0, "nothing is left")
        until(lambda: other.ask("SET", "a", 1) == b"+OK\r\n", "it is back")
        for raw in crowd:
            raw.send(b"BLPOP q 0\r\n")
        until(lambda: waiting_on(nodes[0]) == 300, "all wait again")
        for number in range(300):
            other.ask("RPUSH", "q", number)
        assert sorted(int(raw.frame().split(b"\r\n")[4]) for raw in crowd) == list(range(300))
        for raw in crowd:
            raw.close()
        until(lambda: privates(other) <= 16, "few are kept")


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_node_that_is_lost_in_each_state(how: str) -> None:
    """WATCHing, waiting, before EXEC with and without handlers: errors that say so, nobody else's reply."""
    config = 'timeout = "300ms"'
    with redis_nodes(1) as nodes, ProxyProcess(toml(shards_of(nodes), pool=config)) as proxy:  # noqa: SIM117  # servers, then clients
        with proxy.raw() as watching, proxy.raw() as waiting, proxy.raw() as plain, proxy.raw() as mixed:
            watching.ask("WATCH", "a")
            waiting.send(b"BLPOP q 0\r\nECHO waiting\r\n")
            until(lambda: waiting_on(nodes[0]) == 1, "it waits")
            for raw, more in (plain, b""), (mixed, b"CLIENT GETNAME\r\n"):
                raw.send(b"MULTI\r\nINCR a\r\n" + more)
                raw.frames(2 + bool(more))
            if how == "pause":
                nodes[0].pause()
            else:
                nodes[0].kill()
            for raw in (plain, mixed):
                raw.send(b"EXEC\r\nECHO exec\r\n")
                assert raw.frame().startswith(
                    (b"-TIMEOUT", b"-UNKNOWN outcome", b"-SHARDDOWN", b"-EXECABORT")
                )
                assert raw.frame() == b"$4\r\nexec\r\n"
            watching.send(b"MULTI\r\nINCR a\r\nEXEC\r\nECHO watch\r\n")
            assert watching.frames(2) == [b"+OK\r\n", b"+QUEUED\r\n"]
            assert watching.frame().startswith((b"*-1", b"-TIMEOUT", b"-UNKNOWN", b"-SHARDDOWN"))
            assert watching.frame() == b"$5\r\nwatch\r\n"
            if how == "kill":
                assert waiting.frame().startswith(b"-UNKNOWN outcome")
                nodes[0].start()
            else:
                nodes[0].resume()
                with nodes[0].raw() as direct:
                    direct.ask("RPUSH", "q", "x")
                assert waiting.frame() == b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n"
            assert waiting.frame() == b"$7\r\nwaiting\r\n"
            until(lambda: plain.ask("SET", "b", 1) == b"+OK\r\n", "it is back")
            for raw in (plain, mixed, watching, waiting):
                raw.send(b"GET b\r\nWATCH b\r\nMULTI\r\nGET b\r\nCLIENT GETNAME\r\nEXEC\r\n")
                assert raw.frames(6)[-1] == b"*2\r\n$1\r\n1\r\n$-1\r\n"


@pytest.mark.parametrize("more", [b"", b"CLIENT GETNAME\r\n"])
def test_a_node_that_dies_in_the_middle_of_exec(more: bytes) -> None:
    """It may have run: that is what the client is told, and nothing of ours is done."""
    config = 'timeout = "30s"'
    with (
        RedisNode("--busy-reply-threshold", "100") as node,
        ProxyProcess(toml(shards_of([node]), pool=config)) as proxy,
        proxy.raw() as raw,
        proxy.raw() as other,
    ):
        raw.send(
            b"WATCH a\r\nMULTI\r\nEVAL 'while true do end' 1 a\r\nCLIENT SETNAME me\r\n" + more + b"EXEC\r\n"
        )
        raw.frames(4 + bool(more))
        with node.raw() as direct:
            until(lambda: direct.ask("PING").startswith(b"-BUSY"), "it runs")
        node.kill()
        assert raw.frame().startswith(b"-UNKNOWN outcome")
        assert raw.value("CLIENT", "GETNAME") in (None, "")
        node.start()
        until(lambda: other.ask("SET", "a", 1) == b"+OK\r\n", "it is back")
        assert raw.ask("GET", "a") == b"$1\r\n1\r\n"
        assert privates(raw) == 0
