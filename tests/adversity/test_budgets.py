"""Nothing grows without bound, and a slow or greedy client does not slow another.

Greedy clients take what they can while a well-behaved one does its work among them; the proxy's memory
stays under its budget (its own count, and the process's, with a generous margin for what is not buffers).
No test looks at a clock: that others are served is shown by their being done while the greedy ones are
still stuck.
"""

import contextlib
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from asking import counters, key_on
from faults import FakeNode, Talk
from servers import ROOT, ProxyProcess, Raw, RedisNode, pack, redis_nodes, shards_of, toml, until

MB = 1 << 20
BASE = 120 * MB  # of a proxy that does nothing, generously


def rss(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class Watch:
    """Looks at the proxy's memory all the time; `most` afterwards."""

    def __init__(self, proxy: ProxyProcess) -> None:
        self.proxy, self.raw = proxy, proxy.raw()
        self.most_rss = self.most_buffers = 0
        self.end = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while not self.end.wait(0.02):
                self.most_rss = max(self.most_rss, rss(self.proxy.pid))
                self.most_buffers = max(self.most_buffers, counters(self.raw)["buffer_bytes"])

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.thread.join(10)
        print(f"buffers {self.most_buffers // MB} MB, RSS {self.most_rss // MB} MB")
        self.raw.close()


def push_until_stuck(client: socket.socket, data: bytes, most: int) -> int:
    """Writes the same again and again until the proxy takes no more, or has closed; how many bytes went."""
    client.settimeout(0.5)
    sent, view = 0, memoryview(data)
    try:
        while sent < most:
            at = sent % len(data)
            sent += client.send(view[at : at + (1 << 16)])
    except (TimeoutError, OSError):
        pass
    return sent


def serve_well(proxy: ProxyProcess, count: int = 300) -> None:
    """An ordinary client's work, in its order."""
    with proxy.raw() as raw:
        for number in range(count):
            assert raw.ask("SET", f"well:{number}", f"value {number}") == b"+OK\r\n"
            assert raw.value("GET", f"well:{number}") == f"value {number}"


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(2) as nodes:
        yield nodes


# --- greedy clients ---


def test_a_client_that_never_reads_is_read_no_further(nodes: list[RedisNode]) -> None:
    """Its input is kept up to a quarter of `memory`, and it gets everything later."""
    with (
        ProxyProcess(toml(shards_of(nodes)) + '[limits]\nmemory = "64mb"') as proxy,
        Watch(proxy) as watch,
        proxy.raw() as greedy,
    ):
        greedy.ask("SET", "big", "x" * 10_000)
        sent = push_until_stuck(greedy.socket, pack("GET", "big"), 50 * MB)
        assert sent < 50 * MB
        serve_well(proxy)
        whole = sent // len(pack("GET", "big"))
        greedy.socket.settimeout(20)
        for _ in range(whole):
            assert len(greedy.frame()) == 10_010
        assert not proxy.events("client_closed")
    assert watch.most_buffers < 64 * MB


def test_a_pipeline_written_whole_before_a_reply_is_read(nodes: list[RedisNode]) -> None:
    """As redis-py's pipeline() does; both would wait for ever if the client were read no further."""
    with ProxyProcess(toml(shards_of(nodes))) as proxy, proxy.raw() as raw:
        raw.ask("SET", "k", "x" * 100)
        raw.socket.settimeout(60)
        raw.send(pack("GET", "k") * 300_000)
        reply = b"$100\r\n" + b"x" * 100 + b"\r\n"
        left = 300_000 * len(reply)
        while left:
            data = raw.socket.recv(1 << 20)
            assert data
            left -= len(data)


def test_over_the_hard_limit_a_client_is_closed_with_a_reason(nodes: list[RedisNode]) -> None:
    limits = '[limits]\nclient_output_soft = "64kb"\nclient_output_hard = "4mb"'
    with ProxyProcess(toml(shards_of(nodes), top="") + limits) as proxy, Watch(proxy) as watch:
        with proxy.raw() as greedy:
            greedy.ask("SET", "big", "x" * MB)
            greedy.send(pack("GET", "big") * 100)
            serve_well(proxy)
            until(lambda: proxy.events("client_closed"))
        [event] = proxy.events("client_closed")
        assert "client_output_hard" in event["reason"] and event["client"]
        with proxy.raw() as raw:
            assert counters(raw)["clients_killed"] == 1
    assert watch.most_buffers < 32 * MB


@pytest.mark.parametrize(
    "half", [b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$100\r\nabc", b"*2\r\n$3\r\nGE", b"GET ke"]
)
def test_a_thousand_half_commands(nodes: list[RedisNode], half: bytes) -> None:
    """They stall for ever; whoever finishes his sentence is served."""
    with ProxyProcess(toml(shards_of(nodes))) as proxy, contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(proxy.raw()) for _ in range(1000)]
        for client in crowd:
            client.send(half)
        serve_well(proxy, 100)
        with proxy.raw() as raw:
            assert counters(raw)["buffer_bytes"] < 8 * MB
            assert counters(raw)["clients"] == 1001
        rest = {b"*3": b"x" * 97 + b"\r\n", b"*2": b"T\r\n$3\r\nkey\r\n", b"GE": b"y\r\n"}[half[:2]]
        crowd[0].send(rest)
        assert crowd[0].frame()[:1] in (b"+", b"$")


def test_promises_are_not_memory(nodes: list[RedisNode]) -> None:
    """A thousand clients announce 512 MB each and send a little of it."""
    with ProxyProcess(toml(shards_of(nodes))) as proxy, contextlib.ExitStack() as stack:
        for _ in range(1000):
            client = stack.enter_context(proxy.raw())
            client.send(b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$536870912\r\n" + b"x" * 500)
        serve_well(proxy, 100)
        with proxy.raw() as raw:
            assert counters(raw)["buffer_bytes"] < 32 * MB
        assert rss(proxy.pid) < BASE + 32 * MB


def test_large_values_that_never_end_are_closed_at_the_memory_budget(nodes: list[RedisNode]) -> None:
    """Twenty clients send 8 of 10 MB and stop; the budget is 64 MB: the greediest go, others stay."""
    limits = '[limits]\nmemory = "64mb"'
    with (
        ProxyProcess(toml(shards_of(nodes)) + limits) as proxy,
        Watch(proxy) as watch,
        contextlib.ExitStack() as stack,
    ):
        crowd = [stack.enter_context(proxy.raw()) for _ in range(20)]
        command = pack("SET", "key", "x" * 10 * MB)[: 8 * MB]
        for client in crowd:
            with contextlib.suppress(OSError):
                client.send(command)
        serve_well(proxy, 100)
        until(lambda: proxy.events("client_closed"))
        assert all("memory budget" in event["reason"] for event in proxy.events("client_closed"))
        assert 5 <= len(proxy.events("client_closed")) < 20
    assert watch.most_buffers < 96 * MB
    assert watch.most_rss < BASE + 160 * MB


def test_pipelines_for_a_node_that_stands_still(nodes: list[RedisNode]) -> None:
    """A hundred clients pour large values at a stopped node: its queue is bounded, the others are served."""
    limits = '[limits]\nmemory = "64mb"'
    with RedisNode() as still:
        shards = {"still": still.address, "good": nodes[0].address}
        with (
            ProxyProcess(toml(shards, pool='timeout = "1m"') + limits) as proxy,
            Watch(proxy) as watch,
            proxy.raw() as raw,
            contextlib.ExitStack() as stack,
        ):
            key, good = key_on(raw, "still"), key_on(raw, "good")
            raw.ask("SET", key, "x")
            still.pause()
            data = pack("SET", key, "x" * MB)
            for _ in range(100):
                client = stack.enter_context(proxy.raw())
                push_until_stuck_briefly(client.socket, data, 4 * MB)
            for number in range(100):
                assert raw.ask("SET", good, number) == b"+OK\r\n"
            still.resume()
            until(lambda: raw.ask("GET", key)[:1] == b"$")
    assert watch.most_buffers < 128 * MB
    assert watch.most_rss < BASE + 256 * MB


def push_until_stuck_briefly(client: socket.socket, data: bytes, most: int) -> None:
    client.settimeout(0.05)
    with contextlib.suppress(TimeoutError, OSError):
        for at in range(0, most, 1 << 16):
            client.send(data[at % len(data) : at % len(data) + (1 << 16)])


def test_pipelines_for_a_node_that_does_not_accept_yet(nodes: list[RedisNode]) -> None:
    """The same while the connection is being made: what waits for it is bounded too."""

    async def never(talk: Talk, args: list[bytes]) -> None:
        raise AssertionError

    limits = '[limits]\nmemory = "64mb"\ndrain_timeout = "1s"'
    with FakeNode(never, greet={b"PING": b""}) as silent:
        shards = {"silent": silent.address, "good": nodes[0].address}
        pool = 'timeout = "1m"\nconnect_timeout = "1m"'
        with (
            ProxyProcess(toml(shards, pool=pool) + limits) as proxy,
            Watch(proxy) as watch,
            proxy.raw() as raw,
            contextlib.ExitStack() as stack,
        ):
            key, good = key_on(raw, "silent"), key_on(raw, "good")
            data = pack("SET", key, "x" * MB)
            for _ in range(100):
                client = stack.enter_context(proxy.raw())
                push_until_stuck_briefly(client.socket, data, 4 * MB)
            for number in range(100):
                assert raw.ask("SET", good, number) == b"+OK\r\n"
    assert watch.most_buffers < 128 * MB
    assert watch.most_rss < BASE + 256 * MB


def test_parts_that_wait_for_a_slow_one_are_somebodys(nodes: list[RedisNode]) -> None:
    """Of pipelined MGETs the large parts come and wait for a node that stands still: the client is closed."""
    limits = '[limits]\nclient_output_soft = "1mb"\nclient_output_hard = "16mb"\ndrain_timeout = "1s"'
    with RedisNode() as still:
        shards = {"still": still.address, "good": nodes[0].address}
        with ProxyProcess(toml(shards, pool='timeout = "1m"') + limits) as proxy, Watch(proxy) as watch:
            with proxy.raw() as raw, proxy.raw() as greedy:
                slow, large = key_on(raw, "still"), key_on(raw, "good")
                raw.ask("SET", large, "x" * MB)
                raw.ask("SET", slow, "x")
                still.pause()
                greedy.send(pack("MGET", slow, large) * 400)
                until(lambda: proxy.events("client_closed"))
                still.resume()
                assert raw.ask("STRLEN", large) == b":1048576\r\n"
            [event] = proxy.events("client_closed")
            assert "client_output_hard" in event["reason"]
    assert watch.most_buffers < 64 * MB


# --- large values ---


def test_a_large_value_there_and_back(nodes: list[RedisNode]) -> None:
    """64 MB; its reply streams: the proxy never holds more than a part of what a client does not take."""
    value = os.urandom(MB) * 64
    with ProxyProcess(toml(shards_of(nodes))) as proxy, Watch(proxy) as watch, proxy.raw() as raw:
        raw.socket.settimeout(30)
        assert raw.ask("SET", "large", value) == b"+OK\r\n"
        raw.send(pack("GET", "large") + pack("ECHO", "after"))
        got = bytearray()
        while len(got) < len(value) + 24:
            piece = raw.socket.recv(MB)
            assert piece
            got += piece
            if len(got) % (16 * MB) < len(piece):
                serve_well(proxy, 20)
        assert got.startswith(b"$67108864\r\n") and got[11 : 11 + len(value)] == value
        assert got.endswith(b"\r\n$5\r\nafter\r\n")
        raw.ask("DEL", "large")
    assert watch.most_rss < BASE + 256 * MB


def test_values_over_max_value_are_refused_before_they_come(nodes: list[RedisNode]) -> None:
    with ProxyProcess(toml(shards_of(nodes)) + '[limits]\nmax_value = "1mb"') as proxy:
        with proxy.raw() as raw:
            assert raw.ask("SET", "key", "x" * MB) == b"+OK\r\n"
            raw.send(b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$1048577\r\n")
            assert raw.frame() == b"-ERR Protocol error: invalid bulk length\r\n"
            assert raw.rest() == b""
        serve_well(proxy, 10)


def test_a_slow_reader_of_a_large_reply_gets_it_whole(nodes: list[RedisNode]) -> None:
    with ProxyProcess(toml(shards_of(nodes))) as proxy, proxy.raw() as raw:
        value = os.urandom(1000) * 4000
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        raw.ask("SET", "large", value)
        raw.send(pack("GET", "large"))
        serve_well(proxy, 50)
        got = b""
        while len(got) < len(value) + 12:
            got += raw.socket.recv(20_000)
        assert got == b"$4000000\r\n" + value + b"\r\n"


# --- half-closed clients ---


@pytest.mark.parametrize("count", [1, 100, 5000])
def test_a_half_closed_client_gets_all_its_replies(nodes: list[RedisNode], count: int) -> None:
    """As `printf ... | nc`: all is written, the sending side closed, then replies are read to the end."""
    with ProxyProcess(toml(shards_of(nodes))) as proxy:
        with proxy.raw() as raw:
            raw.ask("SET", "key", "x" * 2000)
        with proxy.raw() as raw:
            raw.send(b"".join(pack("ECHO", number) + pack("GET", "key") for number in range(count)))
            raw.socket.shutdown(socket.SHUT_WR)
            got = raw.rest()
        expected = b"".join(
            b"$%d\r\n%d\r\n$2000\r\n%b\r\n" % (len(str(number)), number, b"x" * 2000)
            for number in range(count)
        )
        assert got == expected
        with proxy.raw() as raw:
            until(lambda: counters(raw)["clients"] == 1)


def test_a_half_closed_client_in_mid_command(nodes: list[RedisNode]) -> None:
    with ProxyProcess(toml(shards_of(nodes))) as proxy, proxy.raw() as raw:
        raw.send(pack("ECHO", "whole") + b"*2\r\n$3\r\nGET\r\n$3\r\nke")
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.rest() == b"$5\r\nwhole\r\n"


# --- too many ---


def test_maxclients(nodes: list[RedisNode]) -> None:
    """Redis's own text, then the close; a place that is free again is given away."""
    with (
        ProxyProcess(toml(shards_of(nodes)) + "[limits]\nmaxclients = 10") as proxy,
        contextlib.ExitStack() as stack,
    ):
        crowd = [stack.enter_context(proxy.raw()) for _ in range(10)]
        for client in crowd:
            assert client.ask("PING") == b"+PONG\r\n"
        for _ in range(3):
            with proxy.raw() as extra:
                assert extra.rest() == b"-ERR max number of clients reached\r\n"
        crowd[0].close()
        until(lambda: _served(proxy))
        for client in crowd[1:]:
            assert client.ask("PING") == b"+PONG\r\n"


def test_clients_of_one_address(nodes: list[RedisNode]) -> None:
    with (
        ProxyProcess(toml(shards_of(nodes)) + "[limits]\nclients_per_address = 3") as proxy,
        contextlib.ExitStack() as stack,
    ):
        crowd = [stack.enter_context(proxy.raw()) for _ in range(3)]
        for client in crowd:
            assert client.ask("PING") == b"+PONG\r\n"
        with proxy.raw() as extra:
            assert extra.rest() == b"-ERR max number of clients of this address reached\r\n"
        crowd[0].close()
        until(lambda: _served(proxy))


def elsewhere(proxy: ProxyProcess) -> Raw:
    """A client of another address than all the others."""
    raw = proxy.raw()
    raw.socket.close()
    raw.socket = socket.create_connection(("127.0.0.1", proxy.port), 10, source_address=("127.0.0.2", 0))
    return raw


@pytest.mark.parametrize(
    ("limit", "first", "commands"),
    [
        ("address_requests = 10", lambda key: pack("GET", key) * 10, 10),
        ('address_bytes = "100kb"', lambda key: pack("SET", key, "x" * 200_000), 1),
    ],
    ids=["requests", "bytes"],
)
def test_an_address_that_has_as_much_in_flight_as_it_may_waits(
    nodes: list[RedisNode], limit: str, first: Callable[[str], bytes], commands: int
) -> None:
    """None of its clients is refused or closed, and others are served."""
    with (
        ProxyProcess(toml(shards_of(nodes), pool='timeout = "60s"') + f"[limits]\n{limit}") as proxy,
        proxy.raw() as one,
        proxy.raw() as two,
        proxy.raw() as three,
        elsewhere(proxy) as other,
    ):
        a, b = key_on(other, "a"), key_on(other, "b")
        other.ask("DEL", b)
        one.ask("SET", a, "1")
        nodes[0].pause()
        before = counters(other)
        one.send(first(a))
        until(lambda: counters(other)["forwarded"] == before["forwarded"] + commands)
        stalls = counters(other)["stalls"]
        two.send(pack("SET", b, "two") + pack("PING"))
        until(lambda: counters(other)["stalls"] == stalls + 1)
        three.send(pack("SET", b, "three"))
        for number in range(100):
            assert other.ask("SET", f"{{{b}}}other", number) == b"+OK\r\n"
        assert other.ask("GET", b) == b"$-1\r\n"
        # one that leaves while others wait is still owed what it asked for
        one.close()
        nodes[0].resume()
        assert two.frames(2) == [b"+OK\r\n", b"+PONG\r\n"]
        assert three.frame() == b"+OK\r\n"
        # in the order in which they came to wait
        assert other.value("GET", b) == "three"
        assert counters(other)["clients_refused"] == counters(other)["clients_killed"] == 0


def test_a_crowd_of_one_address_shares_what_it_may(nodes: list[RedisNode]) -> None:
    """Many times more than it may have in flight: everybody's turn comes, in everybody's order."""
    with (
        ProxyProcess(toml(shards_of(nodes)) + "[limits]\naddress_requests = 7") as proxy,
        contextlib.ExitStack() as stack,
    ):
        crowd = [stack.enter_context(proxy.raw()) for _ in range(40)]
        for number, client in enumerate(crowd):
            client.send(b"".join(pack("INCR", f"crowd:{number}:{turn % 3}") for turn in range(99)))
            client.send(pack("MGET", f"crowd:{number}:0", f"crowd:{number}:1", f"crowd:{number}:2"))
            if number % 4 == 0:
                client.close()
        for number, client in enumerate(crowd):
            if number % 4:
                assert client.frames(99) == [b":%d\r\n" % (turn // 3 + 1) for turn in range(99)]
                assert client.frame() == b"*3\r\n" + b"$2\r\n33\r\n" * 3


def _served(proxy: ProxyProcess) -> bool:
    with proxy.raw() as raw, contextlib.suppress(OSError, EOFError):
        return raw.ask("PING") == b"+PONG\r\n"
    return False


class FewDescriptors(ProxyProcess):
    """With a hard limit of descriptors, that it cannot raise."""

    def launch(self) -> "FewDescriptors":
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", 'ulimit -n 64; exec "$@"', "bash"]  # noqa: RUF005  # the next line is its "$@"
                + [sys.executable, "-m", "shardproxy", "serve", "-c", str(self.config_path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
        return self


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_out_of_descriptors_it_does_not_spin(nodes: list[RedisNode]) -> None:
    """Those who are in are served; those who are not wait or are told; it sleeps meanwhile, and recovers."""
    with FewDescriptors(toml(shards_of(nodes))) as proxy, contextlib.ExitStack() as stack:
        assert proxy.events("descriptors_limited")
        first = stack.enter_context(proxy.raw())
        assert first.ask("SET", "key", "value") == b"+OK\r\n"
        crowd = [stack.enter_context(proxy.raw()) for _ in range(70)]
        told = crowd[-1]
        told.socket.settimeout(20)
        assert told.rest() in (b"-ERR max number of clients reached\r\n", b"")
        used = cpu_seconds(proxy.pid)
        time.sleep(2)
        # a process that spins would have used two
        assert cpu_seconds(proxy.pid) - used < 1.0
        for _ in range(100):
            assert first.value("GET", "key") == "value"
        for client in crowd:
            client.close()
        until(lambda: _served(proxy))


def test_out_of_descriptors_the_proxy_has_its_own() -> None:
    """Clients take none of those that the nodes' connections and the handlers need."""
    with (
        RedisNode() as node,
        FewDescriptors(toml({"a": node.address})) as proxy,
        contextlib.ExitStack() as stack,
    ):
        first = stack.enter_context(proxy.raw())
        assert first.ask("SET", "key", "value") == b"+OK\r\n"
        crowd = [stack.enter_context(proxy.raw()) for _ in range(100)]
        crowd[-1].socket.settimeout(20)
        assert crowd[-1].rest() == b"-ERR max number of clients reached\r\n"
        assert counters(first)["clients"] < 64
        first.ask("HELLO", 3)
        assert first.ask("SET", "key", "value") == b"+OK\r\n"
        node.kill()
        node.start()
        until(lambda: first.ask("SET", "key", "value") == b"+OK\r\n", patience=10)
