"""The admin port of a real proxy: health, readiness, metrics, the page, and that it harms nobody."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from fakes import CONFIG, FakeWatched
from prometheus_client.parser import text_string_to_metric_families
from servers import (
    PATIENCE,
    ProxyProcess,
    Raw,
    RedisNode,
    free_port,
    free_ports,
    redis_nodes,
    shards_of,
    toml,
    until,
)

from shardproxy.admin import server
from shardproxy.dataplane.counters import TABLE
from shardproxy.proxy import listeners

HERE = 'admin = "127.0.0.1:0"\nworkers = {}'
QUICK = 'timeout = "200ms"'


def get(proxy: ProxyProcess, path: str) -> tuple[int, str]:
    """Status and body."""
    address = proxy.events("admin_listening")[0]["address"]
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def nodes_of(raw: Raw) -> list[dict[str, Any]]:
    return list(json.loads(raw.value("PROXY", "NODES")))


def ready(proxy: ProxyProcess) -> tuple[int, dict[str, Any]]:
    status, body = get(proxy, "/readyz")
    return status, json.loads(body)


def metrics(proxy: ProxyProcess) -> dict[str, dict[str, float]]:
    """Name → shard, process or "" → value; of others the sum."""
    status, text = get(proxy, "/metrics")
    assert status == 200
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = sample.labels.get("shard") or sample.labels.get("process") or ""
            of_name = found.setdefault(sample.name, {})
            of_name[label] = of_name.get(label, 0) + sample.value
    return found


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def workers(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as three:
        yield three


@pytest.fixture
def proxy(nodes: list[RedisNode], workers: int) -> Iterator[ProxyProcess]:
    with ProxyProcess(toml(shards_of(nodes), top=HERE.format(workers), pool=QUICK)) as process:
        until(lambda: ready(process)[1]["status"] == "ready", "all workers there")
        with process.raw() as raw:  # a node that nobody has asked yet is no fault: "ready" alone is not "up"
            until(lambda: {node["state"] for node in nodes_of(raw)} == {"up"}, "all nodes up")
        yield process


def test_ready_then_degraded_then_unready_then_ready(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    assert ready(proxy)[0] == 200
    with proxy.raw() as client:

        def status() -> str:
            client.ask("MGET", *"abcdefgh")  # somebody has to notice
            code, told = ready(proxy)
            assert code == (503 if told["status"] == "unready" else 200)
            return str(told["status"])

        nodes[1].kill()
        until(lambda: status() == "degraded", "one shard down")
        until(lambda: [each["shard"] for each in ready(proxy)[1]["down"]] == ["b"])
        (down,) = ready(proxy)[1]["down"]
        assert (down["node"], down["pool"]) == (nodes[1].address, "main")
        assert down["state"] in ("suspect", "out")
        assert down["reason"]
        assert get(proxy, "/healthz")[0] == 200
        page = get(proxy, "/")[1]
        assert "degraded" in page and nodes[1].address in page
        nodes[0].kill()
        nodes[2].kill()
        until(lambda: status() == "unready", "no node left")
        assert ready(proxy)[1]["faults"] == ["no node reachable"]
        assert get(proxy, "/healthz")[0] == 200
        for node in nodes:
            node.start()
        until(lambda: status() == "ready", "all back", patience=60)


def test_all_nodes_hang_and_nobody_asks_anything(nodes: list[RedisNode], workers: int) -> None:
    """Their connections are still there, and that is all."""
    pool = QUICK + '\nhealth = { interval = "300ms", timeout = "300ms" }'
    with ProxyProcess(toml(shards_of(nodes), top=HERE.format(workers), pool=pool)) as proxy:
        with proxy.raw() as client:
            until(lambda: client.ask("MGET", *"abcdefgh").startswith(b"*"))
        until(lambda: ready(proxy)[1]["status"] == "ready")
        for node in nodes:
            node.pause()
        until(lambda: ready(proxy)[0] == 503)
        assert ready(proxy)[1]["faults"] == ["no node reachable"]
        for node in nodes:
            node.resume()
        until(lambda: ready(proxy)[1]["status"] == "ready")


@pytest.mark.parametrize("workers", [2], indirect=True)
def test_workers_that_all_hang_are_none(proxy: ProxyProcess) -> None:
    pids = [event["pid"] for event in proxy.events("worker_ready")]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    until(lambda: ready(proxy)[1]["faults"] == ["no live worker"])
    assert get(proxy, "/healthz")[0] == 200
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    until(lambda: ready(proxy)[1]["status"] == "ready")


def test_errors_and_requests_are_counted_by_command_class(proxy: ProxyProcess) -> None:
    with proxy.raw() as client:
        assert client.ask("LPUSH", "list", "x") == b":1\r\n"
        assert client.ask("INCR", "list").startswith(b"-WRONGTYPE")
        assert client.ask("GET", "list").startswith(b"-WRONGTYPE")
        assert client.ask("GET", "list").startswith(b"-WRONGTYPE")
        shard = json.loads(client.value("PROXY", "LOCATE", "list"))["shard"]

        def counted(name: str) -> dict[str, float]:
            found = (
                re.search(
                    rf'^shardproxy_node_{name}_total{{command_class="{kind}",.*shard="{shard}"}} (.*)$',
                    text,
                    re.M,
                )
                for kind in ("read", "write")
                for text in [get(proxy, "/metrics")[1]]
            )
            return dict(zip(("read", "write"), (float(each[1]) for each in found if each), strict=True))

        until(lambda: counted("errors") == {"read": 2, "write": 1})
        requests = counted("requests")
        assert requests["read"] == 2 and requests["write"] >= 2, "the proxy asks for itself, too"


def test_metrics_count_what_clients_did(proxy: ProxyProcess, workers: int) -> None:
    with proxy.raw() as client:
        for number in range(100):
            client.ask("SET", f"key:{number}", number)
            client.ask("GET", f"key:{number}")
        until(lambda: sum(metrics(proxy)["shardproxy_node_requests_total"].values()) >= 200)
        found = metrics(proxy)
    names = {f"shardproxy_{name}" + "_total" * (kind == "counter") for name, kind, _ in TABLE}
    assert not names - set(found)
    assert found["shardproxy_forwarded_total"][""] >= 200
    assert found["shardproxy_clients"][""] == 1
    assert set(found["shardproxy_node_requests_total"]) == {"a", "b", "c"}
    assert set(found["shardproxy_node_request_duration_seconds_count"]) == {"a", "b", "c"}
    processes = {"0"} if workers == 1 else {"0", "1", "supervisor"}
    assert set(found["shardproxy_process_resident_memory_bytes"]) == processes
    assert all(value > 1 << 20 for value in found["shardproxy_process_resident_memory_bytes"].values())
    assert "key:" not in get(proxy, "/metrics")[1] + get(proxy, "/")[1]


def test_proxy_nodes_tells_the_transitions(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    with proxy.raw() as client:
        nodes[2].kill()

        def last() -> Any:
            client.ask("MGET", *"abcdefgh")
            node = nodes_of(client)[2]
            return next((each for each in node["transitions"] if each["from"] == "up"), None)

        told = until(last)
    assert told["node"] == nodes[2].address
    assert told["to"] in ("suspect", "out")
    assert told["reason"] and told["time"] > 0


def test_draining_is_503_until_the_end(nodes: list[RedisNode], workers: int) -> None:
    config = toml(shards_of(nodes[:1]), top=HERE.format(workers), pool='timeout = "60s"')
    with ProxyProcess(config) as proxy, proxy.raw() as client:
        assert client.ask("SET", "k", "v") == b"+OK\r\n"
        nodes[0].pause()
        client.send(b"GET k\r\n")
        until(lambda: metrics(proxy)["shardproxy_node_in_flight"]["a"] == 1)
        proxy.signal(signal.SIGTERM)
        until(lambda: ready(proxy) and "draining" in ready(proxy)[1]["faults"])
        assert ready(proxy)[0] == 503
        assert get(proxy, "/healthz")[0] == 200
        nodes[0].resume()
        assert client.frame() == b"$1\r\nv\r\n"
        assert proxy.wait() == 0


@pytest.mark.parametrize("workers", [2], indirect=True)
def test_counters_outlive_a_worker(proxy: ProxyProcess) -> None:
    with proxy.raw() as client:
        for number in range(50):
            client.ask("SET", f"key:{number}", number)
    until(lambda: sum(metrics(proxy)["shardproxy_node_requests_total"].values()) >= 50)
    before = metrics(proxy)
    for event in proxy.events("worker_ready"):
        os.kill(event["pid"], signal.SIGKILL)
    until(lambda: len(proxy.events("worker_ready")) == 4, "both are replaced")
    until(lambda: ready(proxy)[1]["workers"] == 2)
    after = metrics(proxy)
    for name in ("shardproxy_node_requests_total", "shardproxy_node_request_duration_seconds_count"):
        for shard, value in before[name].items():
            assert after[name][shard] >= value, (name, shard)
    assert after["shardproxy_forwarded_total"][""] >= before["shardproxy_forwarded_total"][""]


def test_many_who_look_harm_no_client(proxy: ProxyProcess) -> None:
    stop = threading.Event()
    wrong: list[Any] = []

    def looks() -> None:
        while not stop.is_set():
            for path in ("/metrics", "/", "/readyz"):
                if (status := get(proxy, path)[0]) != 200:
                    wrong.append((path, status))

    threads = [threading.Thread(target=looks) for _ in range(4)]
    for thread in threads:
        thread.start()
    with proxy.raw() as client:
        for number in range(2000):
            client.send(b"SET k%d v\r\nGET k%d\r\n" % (number, number))
            if client.frames(2) != [b"+OK\r\n", b"$1\r\nv\r\n"]:
                wrong.append(number)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_strangers_on_the_port_harm_nobody(proxy: ProxyProcess) -> None:
    host, _, port = proxy.events("admin_listening")[0]["address"].rpartition(":")
    strangers = []
    for data in (
        b"",
        b"\x00" * 100_000,
        b"GET /" + b"a" * 1_000_000,
        b"*1\r\n$4\r\nPING\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ):
        stranger = socket.create_connection((host, int(port)), timeout=10)
        with contextlib.suppress(OSError):  # it was closed meanwhile, as it should
            stranger.sendall(data)
        strangers.append(stranger)
    assert get(proxy, "/healthz")[0] == 200
    with proxy.raw() as client:
        assert client.ask("PING") == b"+PONG\r\n"
    # connections that are left open do not hold up the end
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    for stranger in strangers:
        stranger.close()
    assert not proxy.events("admin_failed")
    assert "Traceback" not in proxy.log_text()


def test_connections_that_say_nothing_shut_nobody_out(nodes: list[RedisNode]) -> None:
    with ProxyProcess(toml(shards_of(nodes), top=HERE.format(1))) as proxy:
        host, _, port = proxy.events("admin_listening")[0]["address"].rpartition(":")
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(200)]
            for each in silent[: 200 - server.CONNECTIONS]:  # the oldest go, as far as there are too many
                each.settimeout(PATIENCE)
                with contextlib.suppress(ConnectionResetError):
                    assert each.recv(1) == b""
            assert get(proxy, "/healthz")[0] == 200  # the others are there
            with proxy.raw() as client:
                assert client.ask("PING") == b"+PONG\r\n"


@pytest.mark.parametrize("request_", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_connection_has_an_end(monkeypatch: pytest.MonkeyPatch, request_: bytes) -> None:
    monkeypatch.setattr(server, "LIFE", 0.2)
    watched = FakeWatched()
    watched.config = msgspec.structs.replace(CONFIG, admin="127.0.0.1:0")
    bound = listeners.bind("127.0.0.1:0")
    monkeypatch.setattr(server.listeners, "bind", lambda *args, **kwargs: bound)
    async with server.admin(watched):
        host, _, port = bound.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request_)
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
        assert (b" 200 OK" in answer) == request_.endswith(b"\r\n\r\n")
        writer.close()
    assert watched.logged == ["admin_listening"]


def _answers(proxy: ProxyProcess) -> bool:
    try:
        return get(proxy, "/healthz")[0] == 200
    except OSError:
        return False


def test_a_port_in_use_is_one_clear_error(workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = toml({"a": f"127.0.0.1:{free_port()}"}, top=f'admin = "{address}"\nworkers = {workers}')
        proxy = ProxyProcess(config).launch()
        assert proxy.wait() == 1
        (event,) = proxy.events("cannot_start")
        assert f"cannot listen on {address}: another program does" in event["reason"]
        assert 'admin = "HOST:PORT"' in event["reason"]
        assert "Traceback" not in proxy.log_text()
        assert not proxy.events("listening")
        proxy.stop()


def test_the_port_goes_to_the_successor(nodes: list[RedisNode], workers: int) -> None:
    port, admin = free_ports(2)
    config = toml(
        shards_of(nodes),
        listen=[f"127.0.0.1:{port}"],
        top=f'admin = "127.0.0.1:{admin}"\nworkers = {workers}',
    )
    with ProxyProcess(config) as old, old.raw() as client:
        assert client.ask("PING") == b"+PONG\r\n"
        until(lambda: _answers(old))
        with ProxyProcess(config, "--takeover") as new:
            until(lambda: new.events("admin_listening"), "the port of who went before")
            assert new.events("admin_waits")
            until(lambda: ready(new)[1]["status"] == "ready")
            assert client.ask("PING") == b"+PONG\r\n", "who was connected is served by the old one"
            client.close()
            assert old.wait() == 0


def test_without_the_option_nothing_listens(nodes: list[RedisNode]) -> None:
    with ProxyProcess(toml(shards_of(nodes))) as proxy:
        assert not proxy.events("admin_listening")
