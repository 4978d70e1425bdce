"""OpenTelemetry of the clients: a span and a duration a call, by the conventions; never a key or a value."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from redis.exceptions import ResponseError
from servers import RedisNode, free_port, shards_of, urls_of

from shardproxy import AsyncShardedRedis, ShardedRedis
from shardproxy.client.errors import ShardDownError
from shardproxy.client.telemetry import Telemetry

SECRET = "s3cret"  # in every key and value


class Seen:
    """What was exported."""

    def __init__(self) -> None:
        self._spans, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers, meters = TracerProvider(), MeterProvider([self._reader])
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.telemetry = Telemetry(tracers, meters)
        self.tracer = tracers.get_tracer("test")

    def spans(self) -> list[Any]:
        found = list(self._spans.get_finished_spans())
        self._spans.clear()
        assert SECRET not in repr([each.to_json() for each in found])
        return found

    def durations(self) -> list[Any]:
        data: Any = self._reader.get_metrics_data()
        found = data.resource_metrics[0].scope_metrics[0].metrics
        assert [(each.name, each.unit) for each in found] == [("db.client.operation.duration", "s")]
        assert SECRET not in repr(found)
        return list(found[0].data.data_points)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def client(nodes3: list[RedisNode], seen: Seen) -> Iterator[ShardedRedis]:
    with ShardedRedis(urls_of(nodes3), telemetry=seen.telemetry, db=1) as found:
        found.flushdb()
        seen.spans()
        yield found


def keys_of(client: Any) -> dict[str, str]:
    """One key of each shard."""
    return {client.locate(f"{SECRET}:{number}").shard: f"{SECRET}:{number}" for number in range(60)}


def wanted(operation: str, shard: str, address: str, **more: Any) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {
        "db.system.name": "redis",
        "db.operation.name": operation,
        "db.namespace": "1",
        "shardproxy.shard": shard,
        "server.address": host,
        "server.port": int(port),
        **more,
    }


def test_a_call(client: ShardedRedis, nodes3: list[RedisNode], seen: Seen) -> None:
    keys, addresses = keys_of(client), shards_of(nodes3)
    with seen.tracer.start_as_current_span("request") as above:
        assert client.set(keys["a"], SECRET) and client.get(keys["b"]) is None
    first, second, request = seen.spans()
    assert (first.name, first.kind, first.status.status_code) == ("SET", SpanKind.CLIENT, StatusCode.UNSET)
    assert first.attributes == wanted("SET", "a", addresses["a"])
    assert second.attributes == wanted("GET", "b", addresses["b"])
    assert first.parent.span_id == second.parent.span_id == above.get_span_context().span_id
    assert request.name == "request"
    found = {each.attributes["db.operation.name"]: each for each in seen.durations()}
    assert found["SET"].attributes == wanted("SET", "a", addresses["a"])
    assert found["SET"].count == 1 and 0 < found["SET"].sum < 10


def test_several_shards_pipelines_and_none(client: ShardedRedis, nodes3: list[RedisNode], seen: Seen) -> None:
    keys, addresses = keys_of(client), shards_of(nodes3)
    client.mget(*keys.values())
    client.dbsize()
    client.object("encoding", keys["a"])
    client.on_all("CONFIG GET", "maxmemory")
    split, everywhere, container, on_all = seen.spans()
    assert (split.name, set(split.attributes["shardproxy.shards"])) == ("MGET", set("abc"))
    assert "server.address" not in split.attributes
    assert everywhere.name == "DBSIZE" and "shardproxy.shards" not in everywhere.attributes
    assert container.attributes == wanted("OBJECT ENCODING", "a", addresses["a"])
    assert on_all.name == "CONFIG GET" and on_all.attributes["shardproxy.shards"] == tuple("abc")
    pipe = client.pipeline(transaction=False)
    assert pipe.get(keys["a"]).get(keys["b"]).execute() == [None, None]
    assert client.pipeline().set(keys["c"], SECRET).incr(f"{{{keys['c']}}}:n").execute() == [True, 1]
    assert client.pipeline().execute() == []
    with client.pipeline() as watching:
        watching.watch(keys["a"])
        watching.get(keys["a"])
        watching.multi()
        watching.set(keys["a"], SECRET)
        watching.execute()
    gets, transaction, watch, get, one = seen.spans()
    assert gets.name == "PIPELINE GET" and gets.attributes["shardproxy.shards"] == ("a", "b")
    assert transaction.attributes == wanted("MULTI", "c", addresses["c"]) | {"db.operation.batch.size": 2}
    assert (watch.name, get.name) == ("WATCH", "GET")
    assert one.attributes == wanted("MULTI SET", "a", addresses["a"])


def test_in_steps_over_several_shards(nodes3: list[RedisNode], seen: Seen) -> None:
    pool = {"cross_shard": "emulate"}
    with ShardedRedis(urls_of(nodes3), pool=pool, telemetry=seen.telemetry, db=1) as client:
        client.flushdb()
        assert client.sunion(list(keys_of(client).values())) == set()
    _, one = seen.spans()
    assert one.name == "SUNION" and "shardproxy.shard" not in one.attributes


def test_errors(client: ShardedRedis, nodes3: list[RedisNode], seen: Seen) -> None:
    keys = keys_of(client)
    client.set(keys["a"], SECRET)
    with pytest.raises(ResponseError):
        client.lpush(keys["a"], SECRET)
    with pytest.raises(ResponseError):
        client.execute_command(SECRET, SECRET)
    _, wrong_type, unknown = seen.spans()
    assert wrong_type.status.status_code == StatusCode.ERROR and not wrong_type.events
    assert wrong_type.status.description is None
    assert wrong_type.attributes["db.response.status_code"] == "WRONGTYPE"
    assert wrong_type.attributes["error.type"] == "ResponseError"
    assert unknown.name == "(unknown)" and unknown.attributes["db.response.status_code"] == "ERR"
    address = f"127.0.0.1:{free_port()}"
    with (
        ShardedRedis({"gone": f"redis://{address}"}, telemetry=seen.telemetry, db=1) as down,
        pytest.raises(ShardDownError),
    ):
        down.get(SECRET)
    (lost,) = seen.spans()
    assert lost.attributes == wanted("GET", "gone", address) | {"error.type": "ShardDownError"}
    assert "WRONGTYPE" in {each.attributes.get("db.response.status_code") for each in seen.durations()}


async def test_asyncio(nodes3: list[RedisNode], seen: Seen) -> None:
    async with AsyncShardedRedis(urls_of(nodes3), telemetry=seen.telemetry, db=1) as client:
        keys, addresses = keys_of(client), shards_of(nodes3)
        with seen.tracer.start_as_current_span("request") as above:
            await client.set(keys["a"], SECRET)
            pipe = client.pipeline(transaction=False)
            await pipe.get(keys["a"]).get(keys["b"]).execute()
            with pytest.raises(ResponseError):
                await client.lpush(keys["a"], SECRET)
        one, several, wrong, _ = seen.spans()
        assert one.attributes == wanted("SET", "a", addresses["a"])
        assert one.parent.span_id == above.get_span_context().span_id
        assert several.name == "PIPELINE GET" and several.attributes["db.operation.batch.size"] == 2
        assert wrong.attributes["error.type"] == "ResponseError"
        assert (await client.on_all("DBSIZE")).keys() == set("abc")
        assert [each.name for each in seen.spans()] == ["DBSIZE"]


def test_nothing_of_it_is_imported_unless_it_is_asked_for() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from shardproxy import AsyncShardedRedis, ShardedRedis\n"
        "ShardedRedis({'a': 'redis://h:1'}); AsyncShardedRedis({'a': 'redis://h:1'})\n"
        "assert 'shardproxy.client.telemetry' not in sys.modules\n"
        "ShardedRedis({'a': 'redis://h:1'}, telemetry=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'shardproxy[otel]'" in done.stderr.splitlines()[-1]
