"""info.py and proxy.py: the figures, and that what reads a Redis's INFO can read ours."""

import json
from typing import Any

import pytest
from fakes import CONFIG, FakeClient, FakeServer, ask

from shardproxy.core.topology import Topology
from shardproxy.dataplane.counters import BUCKET_COUNT, bucket, bucket_start
from shardproxy.handlers.base import NodeInfo, ProcessRecord
from shardproxy.handlers.info import human, keyspace, maxmemory_policy, saving
from shardproxy.handlers.proxy import percentiles


def body(frame: bytes) -> str:
    return frame.partition(b"\r\n")[2][:-2].decode()


async def info(server: FakeServer, *sections: str) -> dict[str, str]:
    text = body(await ask(server, FakeClient(), "INFO", *sections))
    return dict(line.split(":", 1) for line in text.split("\r\n") if line and not line.startswith("#"))


async def show(server: FakeServer, *args: str | bytes) -> Any:
    return json.loads(body(await ask(server, FakeClient(), "PROXY", *args)))


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.00K"),
        (1397192, "1.33M"),
        (25276502016, "23.54G"),
        (1 << 60, "1048576.00T"),
    ],
)
def test_sizes_for_people_are_written_as_redis_does(size: int, text: str) -> None:
    assert human(size) == text


async def test_info_has_what_job_queues_look_at() -> None:
    server = FakeServer(
        node_info={"a": NodeInfo("7.0.15", "noeviction"), "b": NodeInfo("6.2.1", "allkeys-lru")}
    )
    server.counts |= {"clients": 3, "commands": 17, "clients_accepted": 5}
    found = await info(server)
    assert found["redis_version"] == "6.2.1"
    assert found["redis_mode"] == "standalone"
    assert found["role"] == "master"
    assert found["maxmemory_policy"] == "allkeys-lru"
    assert found["loading"] == "0"
    assert (found["connected_clients"], found["total_commands_processed"]) == ("3", "17")
    assert (found["process_id"], found["tcp_port"], found["run_id"]) == ("4711", "6380", "0" * 40)


async def test_config_resetstat_has_info_count_anew() -> None:
    server = FakeServer()
    server.counts |= {"clients": 3, "commands": 17, "error_replies": 4}
    await server.everywhere("reset statistics")
    server.counts |= {"clients": 3, "commands": 20, "error_replies": 4}
    found = await info(server)
    assert (found["connected_clients"], found["total_commands_processed"]) == ("3", "3")
    assert found["total_error_replies"] == "0"


def test_saving_is_over_when_it_is_on_all_nodes() -> None:
    done = "# Persistence\r\nloading:0\r\nrdb_bgsave_in_progress:0\r\nrdb_last_save_time:100\r\n"
    busy = "rdb_bgsave_in_progress:1\r\nrdb_last_save_time:90\r\nrdb_last_bgsave_status:err\r\n"
    assert dict(saving([done, busy])) == {
        "rdb_bgsave_in_progress": 1,
        "rdb_last_save_time": 90,
        "rdb_last_bgsave_status": "err",
    }
    assert dict(saving([done, done])) == {"rdb_bgsave_in_progress": 0, "rdb_last_save_time": 100}
    assert dict(saving([])) == {}


def test_keys_are_summed() -> None:
    texts = ["# Keyspace\r\ndb0:keys=5,expires=1,avg_ttl=100\r\n", "db0:keys=2,expires=3,avg_ttl=20\r\n"]
    texts += ["", "db3:keys=1,expires=0,avg_ttl=0,subexpiry=0\r\n"]
    assert dict(keyspace(texts)) == {
        "db0": "keys=7,expires=4,avg_ttl=40",
        "db3": "keys=1,expires=0,avg_ttl=0",
    }


async def test_info_adds_its_workers_up() -> None:
    processes = [ProcessRecord(pid, 1 << 20, 2 << 20, 1.0, 0.5) for pid in (1, 2, 3)]
    found = await info(FakeServer(processes=processes))
    assert found["used_memory"] == str(3 << 20)
    assert found["used_memory_peak_human"] == "6.00M"
    assert found["used_cpu_user"] == "3.000000"


async def test_info_takes_sections() -> None:
    server, client = FakeServer(), FakeClient()
    text = body(await ask(server, client, "INFO", "CPU", "replication", "nonsense"))
    assert [line for line in text.split("\r\n") if line.startswith("#")] == ["# Replication", "# CPU"]
    assert await ask(server, client, "INFO", "nonsense") == b"$0\r\n\r\n"
    assert body(await ask(server, client, "INFO", "everything")).count("# ") == 8
    client.proto = 3
    assert (await ask(server, client, "INFO", "server")).startswith(b"=")


def test_the_policy_is_of_the_node_that_may_evict() -> None:
    assert maxmemory_policy(FakeServer()) == "noeviction"
    infos = {"a": NodeInfo("7", "noeviction"), "b": NodeInfo("7", "volatile-ttl")}
    assert maxmemory_policy(FakeServer(node_info=infos)) == "volatile-ttl"


def test_percentiles_are_the_upper_bounds_of_their_buckets() -> None:
    histogram = [0] * BUCKET_COUNT
    assert percentiles(histogram) == {"count": 0, "p50": 0, "p90": 0, "p99": 0, "p999": 0}
    for us in [10] * 98 + [1000, 5000]:
        histogram[bucket(us)] += 1
    found = percentiles(histogram)
    assert found["count"] == 100
    assert 10 < found["p50"] <= 12
    assert 1000 < found["p99"] <= 1250
    assert 5000 < found["p999"] <= 6250
    assert found["p50"] == bucket_start(bucket(10) + 1)


async def test_locate_says_home_and_stand_in() -> None:
    server = FakeServer()
    pool = server.topology.pools[0]
    found = await show(server, "LOCATE", "greeting")
    assert found["shard"] == pool.home(b"greeting").name
    stand_in = pool.stand_in(b"greeting")
    assert stand_in is not None
    assert found["stand_in"]["shard"] == stand_in.name
    assert found["address"] == pool.home(b"greeting").node.address
    assert (
        int(found["point"], 16) >= int(found["hash"], 16)
        or int(found["point"], 16) == pool.ring.points()[0][0]
    )
    assert [each["key"] for each in await show(server, "LOCATE", "a", b"\xff")] == ["a", "\\xff"]


async def test_locate_shows_the_state_and_skips_what_is_out() -> None:
    topology = Topology.from_config(CONFIG)
    home, other = topology.pools[0].home(b"k"), topology.pools[0].stand_in(b"k")
    assert other is not None
    topology = topology.with_node_state(home.node.address, "suspect", "no answer")
    topology = topology.with_node_state(other.node.address, "out", "gone")
    found = await show(FakeServer(topology=topology), "LOCATE", "k")
    assert (found["state"], found["reason"]) == ("suspect", "no answer")
    assert found["stand_in"]["shard"] not in (home.name, other.name)


async def test_nodes_adds_up_what_the_workers_see() -> None:
    def seen(requests: int) -> dict[str, Any]:
        histogram = [0] * BUCKET_COUNT
        histogram[bucket(100)] = requests
        return {
            "address": "127.0.0.1:7002", "requests": requests, "errors": 1, "lost": 0, "private": 1,
            "upstreams": [{"protocol": 2, "state": "up", "in_flight": 2, "queue_bytes": 7, "failures": 0}],
            "latency": {"read": histogram, "write": [0] * BUCKET_COUNT},
        }  # fmt: skip

    server = FakeServer(
        nodes=[[seen(3)], [seen(4)]], node_info={"127.0.0.1:7002": NodeInfo("7.0.15", "noeviction")}
    )
    nodes = await show(server, "NODES")
    assert [node["shard"] for node in nodes] == ["a", "b", "c"]
    node = nodes[1]
    assert (node["requests"], node["errors"], node["upstreams"], node["in_flight"]) == (7, 2, 2, 4)
    assert node["latency_us"]["read"]["count"] == 7
    assert node["version"] == "7.0.15"
    assert nodes[0]["upstreams"] == 0


async def test_proxy_info_shows_ring_and_counters() -> None:
    server = FakeServer()
    server.counts["commands"] = 42
    found = await show(server, "INFO")
    assert found["counters"]["commands"] == 42
    assert found["generation"] == server.topology.generation
    assert found["pools"]["main"]["fingerprint"] == server.topology.pools[0].ring.fingerprint
    assert found["latency_us"].keys() == {"read", "write"}
    assert await ask(server, FakeClient(), "PROXY", "INFO", "x") == b"-ERR syntax error\r\n"


async def test_proxy_commands_says_why() -> None:
    server = FakeServer()
    rows = {row["name"]: row for row in await show(server, "COMMANDS")}
    assert rows["get"]["kind"] == "forward"
    assert rows["mget"]["merge"] == "array"
    assert rows["migrate"]["kind"] == "refused"
    assert rows["migrate"]["why"]
    assert [row["name"] for row in await show(server, "COMMANDS", "GET", "nope")] == ["get"]


async def test_topology_and_help() -> None:
    server = FakeServer()
    found = await show(server, "TOPOLOGY")
    assert [shard["name"] for shard in found["pools"][0]["shards"]] == ["a", "b", "c"]
    assert "password" not in json.dumps(found)
    text = await ask(server, FakeClient(), "PROXY", "HELP")
    for command in ("INFO", "NODES", "LOCATE", "COMMANDS", "TOPOLOGY"):
        assert b"+" + command.encode() in text
