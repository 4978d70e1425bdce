"""Several workers under a supervisor: unique ids, merged figures, replacement, drain, no orphans."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import ProxyProcess, Raw, RedisNode, shards_of, toml, until

from shardproxy.proxy.supervisor import backoff, exit_text


@pytest.fixture
def three(nodes3: list[RedisNode]) -> Iterator[ProxyProcess]:
    with ProxyProcess(toml(shards_of(nodes3), top="workers = 3")) as process:
        yield process


def workers_of(pid: int) -> set[int]:
    """The processes whose parent is this one."""
    found = set()
    for each in Path("/proc").glob("[0-9]*"):
        try:
            fields = (each / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(each.name))
    return found


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def spread(process: ProxyProcess, count: int = 24) -> list[Raw]:
    """Connections, of which each worker has some: the kernel spreads them by a hash of their ports."""
    return [process.raw() for _ in range(count)]


def worker_of(raw: Raw) -> int:
    """Ids count from a base of each spawn."""
    return int(raw.value("CLIENT", "ID")) >> 32


def test_ids_are_unique_and_client_list_shows_all(three: ProxyProcess) -> None:
    raws = spread(three)
    try:
        ids = [raw.value("CLIENT", "ID") for raw in raws]
        assert len(set(ids)) == len(ids)
        assert {number >> 32 for number in ids} == {0, 1, 2}
        for raw in raws[:3]:
            listed = [int(line.split()[0][3:]) for line in raw.value("CLIENT", "LIST").splitlines()]
            assert listed == sorted(ids)
        one = raws[0].value("CLIENT", "LIST", "ID", ids[-1], ids[0])
        assert [int(line.split()[0][3:]) for line in one.splitlines()] == sorted([ids[0], ids[-1]])
    finally:
        for raw in raws:
            raw.close()


def test_every_worker_shows_the_merged_figures(three: ProxyProcess) -> None:
    raws = spread(three)
    try:
        for number, raw in enumerate(raws):
            assert raw.ask("SET", f"merged:{number}", number) == b"+OK\r\n"
        for raw in raws:
            found = json.loads(raw.value("PROXY", "INFO"))
            assert found["workers"] == 3
            assert found["process_id"] == three.pid
            assert found["counters"]["clients"] == len(raws)
            assert found["counters"]["forwarded"] == len(raws)
            assert found["latency_us"]["write"]["count"] == len(raws)
        run_ids = {json.loads(raw.value("PROXY", "INFO"))["run_id"] for raw in raws}
        assert len(run_ids) == 1
        info = raws[0].value("INFO")
        assert f"connected_clients:{len(raws)}\r\n" in info
        assert "maxclients:10000\r\n" in info
        nodes = json.loads(raws[0].value("PROXY", "NODES"))
        assert sum(node["requests"] for node in nodes) == len(raws)
    finally:
        for raw in raws:
            raw.close()


def test_workers_agree_on_the_topology(three: ProxyProcess) -> None:
    raws = spread(three)

    def shown() -> set[tuple[int, bool]]:
        """What the workers say: the generation, and whether every node is up and has said what it is."""
        found = [json.loads(raw.value("PROXY", "TOPOLOGY")) for raw in raws]
        return {
            (
                each["generation"],
                all(s["node"]["state"] == "up" and s["node"]["version"] for s in each["pools"][0]["shards"]),
            )
            for each in found
        }

    try:
        assert {worker_of(raw) for raw in raws} == {0, 1, 2}
        until(lambda: [up for _, up in shown()] == [True], "all workers to have seen three nodes come up")
    finally:
        for raw in raws:
            raw.close()


def test_a_worker_that_dies_is_replaced_and_the_others_do_not_notice(three: ProxyProcess) -> None:
    raws = spread(three)
    try:
        before = workers_of(three.pid)
        assert len(before) == 3
        counted = json.loads(raws[0].value("PROXY", "INFO"))["counters"]
        victim = next(event["pid"] for event in three.events("worker_ready") if event["worker"] == 1)
        os.kill(victim, signal.SIGKILL)
        event = until(lambda: three.events("worker_died"), "its death to be logged")[0]
        assert event["worker"] == 1
        assert event["how"] == "killed by SIGKILL"
        until(lambda: len(three.events("worker_ready")) == 4, "it to be replaced")
        assert len(workers_of(three.pid) - before) == 1
        survivors = [raw for raw in raws if worker_before(raw) != 1]
        assert survivors
        for raw in survivors:
            assert raw.ask("PING") == b"+PONG\r\n"
        # what it has counted stays counted; the clients that it had are gone
        after = json.loads(survivors[0].value("PROXY", "INFO"))["counters"]
        assert after["clients_accepted"] >= counted["clients_accepted"]
        assert after["commands"] >= counted["commands"]
        assert after["clients"] == len(survivors)
        # the port was open all the while, and the new one's ids are new
        more = spread(three)
        assert {worker_of(raw) for raw in more} == {0, 2, 3}
        for raw in more:
            raw.close()
    finally:
        for raw in raws:
            raw.close()


def worker_before(raw: Raw) -> int:
    """Which worker a connection has, or had: 1 when it is gone."""
    try:
        return worker_of(raw)
    except (EOFError, OSError):
        return 1


def test_sigterm_drains_all_of_them(nodes3: list[RedisNode]) -> None:
    with (
        RedisNode() as node,
        ProxyProcess(toml({"a": node.address}, top="workers = 2", pool='timeout = "30s"')) as process,
    ):
        raws = spread(process, 12)
        assert {worker_of(raw) for raw in raws} == {0, 1}
        for raw in raws:
            raw.ask("SET", "k", "v")
        pids = workers_of(process.pid)
        node.pause()
        for raw in raws:
            raw.send(b"GET k\r\n")
        with process.raw() as watcher:
            until(lambda: _in_flight(watcher) == len(raws), "the requests to be in flight")
        process.signal(signal.SIGTERM)
        until(lambda: process.events("draining"), "the drain")
        node.resume()
        assert [raw.rest() for raw in raws] == [b"$1\r\nv\r\n"] * len(raws)
        assert process.wait() == 0
        assert not [pid for pid in pids if alive(pid)]


def _in_flight(raw: Raw) -> int:
    return sum(node["in_flight"] for node in json.loads(raw.value("PROXY", "NODES")))


def test_the_workers_end_with_their_supervisor(nodes3: list[RedisNode]) -> None:
    with ProxyProcess(toml(shards_of(nodes3), top="workers = 2")) as process:
        pids = workers_of(process.pid)
        assert len(pids) == 2
        process.signal(signal.SIGKILL)
        process.wait()
        until(lambda: not [pid for pid in pids if alive(pid)], "the workers to end")


def test_a_unix_socket_is_shared(nodes3: list[RedisNode], tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    listen = ["127.0.0.1:0", f"unix://{path}"]
    with ProxyProcess(toml(shards_of(nodes3), listen=listen, top="workers = 2")) as process:
        raws = [Raw(str(path)) for _ in range(8)]
        for raw in raws:
            assert raw.ask("PING") == b"+PONG\r\n"
            raw.close()
        process.stop()
    assert not path.exists()


def test_a_worker_told_to_stop_by_itself_is_replaced(three: ProxyProcess) -> None:
    victim = three.events("worker_ready")[0]["pid"]
    os.kill(victim, signal.SIGTERM)
    event = until(lambda: three.events("worker_died"), "its end to be logged")[0]
    assert event["how"] == "exit code 0"
    until(lambda: len(three.events("worker_ready")) == 4, "it to be replaced")


def test_nothing_secret_is_in_the_process_list(nodes3: list[RedisNode]) -> None:
    with RedisNode("--requirepass", "hunter2") as node:
        text = toml({"a": node.address}, top="workers = 2", pool='password = "hunter2"')
        process = ProxyProcess(text)
        process.config_path.chmod(0o600)
        with process, process.raw() as raw:
            assert raw.ask("SET", "k", "v") == b"+OK\r\n"
            for pid in workers_of(process.pid) | {process.pid}:
                assert b"hunter2" not in Path(f"/proc/{pid}/cmdline").read_bytes()
                assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
            assert "hunter2" not in process.log_text()


def test_backoff_grows_to_a_limit() -> None:
    waits = [backoff(deaths) for deaths in range(12)]
    assert waits[0] == 0
    assert waits == sorted(waits)
    assert waits[-1] == 30


def test_ends_are_put_in_words() -> None:
    assert exit_text(0) == "exit code 0"
    assert exit_text(-9) == "killed by SIGKILL"
    assert exit_text(-200) == "killed by signal 200"
