"""The admin's view, metrics and page of a fake proxy: what is ready, what sums come to, what is escaped."""

import asyncio
import re
from typing import Any

import msgspec
import pytest
from fakes import CONFIG, NO_TIMES, FakeWatched, node_record, worker
from prometheus_client.parser import text_string_to_metric_families

from shardproxy.admin import metrics, view
from shardproxy.admin.page import page, size, span
from shardproxy.admin.view import Totals, Watch, ready_json
from shardproxy.core.topology import State, Topology
from shardproxy.dataplane.counters import TABLE, bucket
from shardproxy.proxy.watched import WorkerRecord

A, B, C = "127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"


async def look(watched: FakeWatched) -> view.View:
    return await Watch(watched).look()


def ready(seen: view.View) -> dict[str, Any]:
    return msgspec.json.decode(ready_json(seen), type=dict[str, Any])


# --- readiness


async def test_ready_when_all_is_well() -> None:
    seen = await look(FakeWatched())
    assert seen.status == "ready"
    assert ready(seen) == {
        "status": "ready", "faults": [], "down": [], "shards": 3, "workers": 1, "generation": 3,
    }  # fmt: skip


@pytest.mark.parametrize("state", ["suspect", "out"])
async def test_a_shard_that_is_down_degrades_and_is_named(state: State) -> None:
    watched = FakeWatched()
    watched.states({B: state}, "Connection refused")
    seen = await look(watched)
    assert seen.status == "degraded"
    assert not seen.faults
    assert ready(seen)["down"] == [
        {"pool": "main", "shard": "b", "node": B, "state": state, "reason": "Connection refused"}
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"draining": True, "listening": False}, "draining"),
        ({"listening": False}, "not listening"),
        ({"parts": {}}, "no live worker"),
    ],
)
async def test_its_own_faults_make_it_unready(change: dict[str, Any], fault: str) -> None:
    watched = FakeWatched()
    for name, value in change.items():
        setattr(watched, name, value)
    seen = await look(watched)
    assert seen.status == "unready"
    assert seen.faults == [fault]


@pytest.mark.parametrize("state", ["suspect", "out", "unknown"])
async def test_no_node_at_all_makes_it_unready(state: State) -> None:
    watched = FakeWatched()
    watched.states({A: state, B: state, C: state}, "gone")
    watched.parts = {0: worker(100, *(node_record(address) for address in (A, B, C)))}
    assert (await look(watched)).faults == ["no node reachable"]


async def test_failing_open_is_degraded_but_ready_while_something_is_connected() -> None:
    watched = FakeWatched()
    watched.states({A: "unknown", B: "unknown", C: "unknown"}, "fail open: 3 of 3 look down")
    seen = await look(watched)
    assert seen.status == "degraded"
    assert [node["shard"] for node in ready(seen)["down"]] == ["a", "b", "c"]
    health = CONFIG.pool["main"].health
    watched.silent = dict.fromkeys((A, B, C), health.interval + health.timeout + 0.1)
    assert (await look(watched)).faults == ["no node reachable"], "connected, but nobody has heard of them"
    watched.silent[B] = 0.3
    assert (await look(watched)).status == "degraded"


async def test_nodes_that_nobody_has_asked_yet_are_not_down() -> None:
    watched = FakeWatched()
    watched.topology = Topology.from_config(CONFIG)
    assert (await look(watched)).status == "ready"  # its upstreams are up
    watched.parts = {0: worker(100, node_record(A))}
    seen = await look(watched)
    assert seen.faults == ["no node reachable"]
    assert not any(node.down for node in seen.nodes)


# --- many who look


async def test_workers_are_asked_once_for_many_who_look() -> None:
    watched = FakeWatched()
    watch = Watch(watched)
    seen = await asyncio.gather(*(watch.look() for _ in range(50)))
    assert watched.asked == 1
    assert all(each is seen[0] for each in seen)


# --- sums


def test_totals_never_go_down() -> None:
    totals = Totals()

    def requests(live: dict[int, int], parts: dict[int, WorkerRecord]) -> int:
        return totals.update(live, parts)[A]["requests"]  # type: ignore[no-any-return]

    first, second = worker(1, node_record(A, 10)), worker(2, node_record(A, 5))
    assert requests({0: 1, 1: 2}, {0: first, 1: second}) == 15
    assert requests({0: 1, 1: 2}, {0: first}) == 15, "the second did not answer in time"
    assert requests({0: 1}, {0: worker(1, node_record(A, 12))}) == 17, "it is dead"
    assert requests({0: 1}, {0: worker(1, node_record(A, 13))}) == 18
    assert requests({0: 1, 1: 3}, {0: first, 1: worker(3, node_record(A, 1))}) == 16
    totals.forget_but([B])
    assert requests({0: 1, 1: 3}, {}) == 11


async def test_a_node_is_the_sum_of_what_workers_see() -> None:
    watched = FakeWatched()
    slow = [*NO_TIMES[:-1], 7]
    one = node_record(A, 3, 2, latency={"read": slow, "write": NO_TIMES}, held=4)
    watched.parts = {0: worker(1, one), 1: worker(2, node_record(A, 4, 1, held=1))}
    watched.workers = {0: 1, 1: 2}
    node = (await look(watched)).nodes[0]
    assert node.counted == {"requests": 7, "errors": 2, "lost": 0}
    assert node.now == {"upstreams": 3, "in_flight": 6, "queue_bytes": 300, "held": 5}
    assert node.latency["read"][-1] == 7
    assert node.classes == {"read": {"requests": 7, "errors": 0}, "write": {"requests": 0, "errors": 2}}


async def test_imbalance_is_relative_to_weight() -> None:
    nodes = (await look(FakeWatched())).nodes  # 10, 20, 30 requests
    assert view.imbalance(nodes, {}) == pytest.approx(1.5)
    assert view.imbalance(nodes, {A: 0, B: 10, C: 20}) == pytest.approx(1.0)
    assert view.imbalance(nodes, {A: 10, B: 20, C: 30}) == 1.0
    heavy = msgspec.structs.replace(nodes[2].shard, weight=3)
    assert view.imbalance([*nodes[:2], nodes[2]._replace(shard=heavy)], {}) == pytest.approx(20 * 5 / 60)


# --- metrics


async def samples(watched: FakeWatched) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Name → labels → value, as a Prometheus server reads them; every family comes once."""
    text = (await metrics.render(await look(watched))).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in families:
        assert family.documentation, family.name
        for sample in family.samples:
            of_name = found.setdefault(sample.name, {})
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in of_name
            of_name[labels] = sample.value
    return found


async def test_every_counter_of_the_engine_is_a_metric() -> None:
    watched = FakeWatched()
    watched.count = {name: number for number, (name, _, _) in enumerate(TABLE, 1)}
    found = await samples(watched)
    for number, (name, kind, _) in enumerate(TABLE, 1):
        full = f"shardproxy_{name}" + ("_total" if kind == "counter" else "")
        assert found[full] == {(): number}


async def test_metrics_of_a_node() -> None:
    watched = FakeWatched()
    watched.states({B: "suspect"}, "slow")
    watched.states({B: "up"})
    watched.mistaken[B] = 1
    watched.invalidated[B] = 4
    watched.parts[0].nodes[1]["held"] = 3
    found = await samples(watched)
    b = (("node", B), ("pool", "main"), ("shard", "b"))
    assert found["shardproxy_node_requests_total"][("command_class", "read"), *b] == 20
    assert found["shardproxy_node_requests_total"][("command_class", "write"), *b] == 0
    assert found["shardproxy_node_errors_total"][("command_class", "write"), *b] == 1
    assert found["shardproxy_node_invalidated_total"][b] == 4
    assert found["shardproxy_node_in_flight"][b] == 2
    assert found["shardproxy_node_queue_bytes"][b] == 100
    assert found["shardproxy_node_held"][b] == 3, "what the engine tells anew shows by itself"
    states = {dict(labels)["state"]: value for labels, value in found["shardproxy_node_state"].items()
              if dict(labels)["shard"] == "b"}  # fmt: skip
    assert states == {"unknown": 0, "up": 1, "suspect": 0, "out": 0}
    assert found["shardproxy_node_transitions_total"][(*b, ("state", "up"))] == 2
    assert found["shardproxy_node_transitions_total"][(*b, ("state", "suspect"))] == 1
    assert found["shardproxy_node_false_positives_total"][b] == 1
    assert found["shardproxy_shard_imbalance"] == {(("pool", "main"),): 1.5}
    assert found["shardproxy_process_loop_lag_seconds"] == {(("process", "0"),): 0.125}
    assert found["shardproxy_process_cpu_seconds_total"] == {(("process", "0"),): 0.75}


async def test_histograms_hold_every_request_in_its_bucket() -> None:
    watched = FakeWatched()
    times = [1, 63, 64, 1000, 1024, 900_000, 10**9]  # us
    buckets = NO_TIMES.copy()
    for us in times:
        buckets[bucket(us)] += 1
    watched.histograms = {"read": buckets, "write": NO_TIMES}
    found = await samples(watched)
    shown = {
        float(dict(labels)["le"]): value
        for labels, value in found["shardproxy_request_duration_seconds_bucket"].items()
        if dict(labels)["command_class"] == "read"
    }
    for limit, count in shown.items():
        assert count == sum(us / 1e6 < limit for us in times), limit
    assert found["shardproxy_request_duration_seconds_count"][(("command_class", "read"),)] == len(times)
    watched.histograms = {"read": [5, *NO_TIMES[1:-20], 5, *NO_TIMES[:19]], "write": NO_TIMES}
    assert (await samples(watched))["shardproxy_request_duration_seconds_sum"][
        (("command_class", "read"),)
    ] > 0


async def test_a_histogram_in_pieces_is_one_family(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = await samples(FakeWatched())
    for piece in (1, 2, 5, 6):
        monkeypatch.setattr(metrics, "PIECE", piece)
        found = await samples(FakeWatched())  # which counts the families
        assert len(found["shardproxy_node_request_duration_seconds_count"]) == 6
        assert found.keys() == whole.keys()


async def test_labels_and_reasons_of_any_kind_are_escaped() -> None:
    watched = FakeWatched()
    nasty = '<script>alert("1")</script>\n\\'
    pool = watched.topology.pools[0]
    replace = msgspec.structs.replace
    shards = (replace(pool.shards[0], name=nasty), *pool.shards[1:])
    watched.topology = replace(watched.topology, pools=(replace(pool, shards=shards),))
    watched.states({A: "out"}, nasty)
    found = await samples(watched)
    labels = (("command_class", "read"), ("node", A), ("pool", "main"), ("shard", nasty))
    assert found["shardproxy_node_requests_total"][labels] == 10
    text = page(await look(watched))
    assert "<script" not in text
    assert "&lt;script&gt;" in text


# --- the page


async def test_the_page_shows_nodes_reasons_transitions_clients_and_counters() -> None:
    watched = FakeWatched()
    watched.count |= {"clients": 12345, "timeouts": 77}
    watched.states({C: "out"}, "no reply to 3 probes")
    text = page(await look(watched))
    for part in (A, B, C, "no reply to 3 probes", "12,345 clients", ">77<", 'class="s out"', "degraded",
                 "127.0.0.1:6380", 'http-equiv="refresh"'):  # fmt: skip
        assert part in text, part
    assert not re.search(r"(src|href)=.?(https?:)?//|@import|url\(", text), "something from elsewhere"
    assert "<script" not in text and "<form" not in text


async def test_the_page_names_what_drains() -> None:
    watched = FakeWatched()
    assert "draining" not in page(await look(watched))
    watched.topology = watched.topology.with_draining({"main": ["a"]})
    assert page(await look(watched)).count("</span> draining</td>") == 1


def test_sizes_and_spans() -> None:
    assert [size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30)] == ["0 B", "1023 B", "2 KB", "5 MB", "3.0 GB"]
    assert [span(n) for n in (0, 61, 3600, 90061)] == ["0 s", "1 min 1 s", "1 h", "1 d 1 h"]
