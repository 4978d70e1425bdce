"""OpenTelemetry for the clients, if it is asked for: a span and a duration for each call and each pipeline.

    ShardedRedis({...}, telemetry=True)     the process's own providers
    ShardedRedis({...}, telemetry=Telemetry(tracer_provider=..., meter_provider=...))

Wants opentelemetry-api (pip install 'shardproxy[otel]'); without `telemetry` nothing of it is imported, and a
call costs what it did. Names are those of OpenTelemetry's conventions for databases, and of ours
`shardproxy.shard`, for several of them `shardproxy.shards`. Rules: no key, no value, no text of an error.
"""

import contextlib
import functools
import inspect
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

try:
    from opentelemetry import context, metrics, trace
except ImportError:
    raise ImportError("telemetry needs opentelemetry-api: pip install 'shardproxy[otel]'") from None
from redis.exceptions import RedisError, ResponseError

from shardproxy import __version__
from shardproxy.client.asking import Asker
from shardproxy.client.connection import Shard
from shardproxy.client.errors import ShardError

NAME = "shardproxy.client"
BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)  # seconds
UNKNOWN = "(unknown)"  # a name that is no command: whatever it is, it is not shown
_CODE = re.compile(r"[A-Z]{2,24}(?= |$)")  # what an error of Redis begins with
Attributes = dict[str, Any]


class Telemetry:
    """Providers: OpenTelemetry's; None: those of the process, which do nothing until they are set up."""

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(NAME, __version__, tracer_provider)
        meter = metrics.get_meter(NAME, __version__, meter_provider)
        self._duration = meter.create_histogram(
            "db.client.operation.duration",
            unit="s",
            description="Duration of database client operations.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )

    def follow(self, client: Any) -> None:
        """From now on; client: one of the two, nobody uses it yet."""
        asker, pipeline = client.asker, client.pipeline

        def one(args: Sequence[Any]) -> tuple[str, Attributes]:
            operation, shards = of_call(asker, args)
            return operation, about(asker, operation, shards)

        def every(args: Sequence[Any]) -> tuple[str, Attributes]:
            operation, _ = of_call(asker, args)
            return operation, about(asker, operation, asker.layout.shards)

        def watched_pipeline(*args: Any, **options: Any) -> Any:
            pipe = pipeline(*args, **options)
            vars(pipe).update(
                execute=self._watched(pipe.execute, lambda _: of_pipeline(asker, pipe)),
                immediate_execute_command=self._watched(pipe.immediate_execute_command, one),
            )
            return pipe

        vars(client).update(
            execute_command=self._watched(client.execute_command, one),
            on_all=self._watched(client.on_all, every),
            pipeline=watched_pipeline,
        )

    def _watched(
        self, call: Callable[..., Any], what: Callable[[Sequence[Any]], tuple[str, Attributes] | None]
    ) -> Callable[..., Any]:
        """The same call, seen; what(args): its name and attributes, or None for what asks nobody."""

        @functools.wraps(call)
        def watched(*args: Any, **options: Any) -> Any:
            if (found := what(args)) is None:
                return call(*args, **options)
            with _Seen(self._tracer, self._duration, *found):
                return call(*args, **options)

        @functools.wraps(call)
        async def watched_async(*args: Any, **options: Any) -> Any:
            if (found := what(args)) is None:
                return await call(*args, **options)
            with _Seen(self._tracer, self._duration, *found):
                return await call(*args, **options)

        return watched_async if inspect.iscoroutinefunction(call) else watched


class _Seen:
    """One call: a span that is the current one meanwhile, and its duration."""

    def __init__(
        self, tracer: trace.Tracer, duration: metrics.Histogram, name: str, attributes: Attributes
    ) -> None:
        self._tracer, self._duration = tracer, duration
        self._name, self._attributes = name, attributes

    def __enter__(self) -> None:
        self._span = self._tracer.start_span(
            self._name, kind=trace.SpanKind.CLIENT, attributes=self._attributes
        )
        self._token = context.attach(trace.set_span_in_context(self._span))
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        took = time.perf_counter() - self._began
        context.detach(self._token)
        attributes = self._attributes
        if error is not None:
            more = of_error(error)
            self._span.set_attributes(more)
            self._span.set_status(trace.StatusCode.ERROR)
            attributes = attributes | more
        self._span.end()
        # one series a shard, not one a combination of shards
        few = {key: value for key, value in attributes.items() if key not in SPAN_ONLY}
        self._duration.record(took, few)


SPAN_ONLY = frozenset(("db.operation.batch.size", "shardproxy.shards"))


def of_error(error: BaseException) -> Attributes:
    """error.type: the class of exception; which shard it was, if it says so."""
    found: Attributes = {"error.type": type(error).__name__}
    if isinstance(error, ResponseError):
        code = _CODE.match(str(error))
        found["db.response.status_code"] = code[0] if code else "ERR"
    if isinstance(error, ShardError) and error.shard:
        found |= {"shardproxy.shard": error.shard} | of_address(error.address)
    return found


def of_address(address: str) -> Attributes:
    """ "HOST:PORT", or "/PATH" of a unix socket."""
    if address.startswith("/"):
        return {"server.address": address}
    host, _, port = address.rpartition(":")
    return {"server.address": host.strip("[]"), "server.port": int(port)}


def about(asker: Asker, operation: str, shards: Iterable[Shard]) -> Attributes:
    """What is said of an operation on these shards before it has begun."""
    found: Attributes = {"db.system.name": "redis", "db.operation.name": operation}
    known, settings = list(shards), asker.settings
    login = settings.logins.get(known[0].name, {}) if known else {}
    found["db.namespace"] = str(settings.common.get("db") or login.get("db") or 0)
    if any(shard.memcached is not None for shard in known):
        found["db.system.name"] = "memcached"
    if len(known) == 1:
        found |= {"shardproxy.shard": known[0].name} | of_address(known[0].address)
    elif known:
        found["shardproxy.shards"] = [shard.name for shard in known]
    return found


def of_call(asker: Asker, args: Sequence[Any]) -> tuple[str, list[Shard]]:
    """The command's name, and the shards that it is for; none when it is refused, or none is known yet."""
    layout = asker.layout
    router = layout.router
    try:
        plan = router.plan(args)
    except (RedisError, ValueError, IndexError, AttributeError):
        return _named(asker, args), []
    operation = plan.command.name.upper().replace("|", " ")
    if _awaits_proxies(asker) or plan.everywhere is not None or plan.across:
        return operation, []
    numbers = plan.split.shards if plan.split is not None else [plan.shard]
    return operation, [layout.shards[number] for number in numbers]


def of_pipeline(asker: Asker, pipe: Any) -> tuple[str, Attributes] | None:
    """Of what it has gathered: "PIPELINE GET", or "MULTI" of several commands."""
    calls = pipe.command_stack
    if not calls and not pipe.watching:
        return None
    found = {_named(asker, args) for args, _ in calls}
    kind = "MULTI" if pipe.transaction or pipe.explicit_transaction else "PIPELINE"
    operation = f"{kind} {found.pop()}" if len(found) == 1 else kind
    attributes = about(asker, operation, () if _awaits_proxies(asker) else _shards_of(asker, calls))
    if len(calls) > 1:
        attributes["db.operation.batch.size"] = len(calls)
    return operation, attributes


def _shards_of(asker: Asker, calls: Iterable[tuple[Sequence[Any], Mapping[str, Any]]]) -> list[Shard]:
    """Of the commands whose keys are simply found: in the order that they have in the pool."""
    layout, numbers = asker.layout, set[int]()
    router = layout.router
    for args, _ in calls:
        with contextlib.suppress(RedisError, ValueError, IndexError, AttributeError):
            if (at := router.command(args[0]).key_at) > 0:
                numbers.add(router.locate(router.key(args[at])))
    return [layout.shards[number] for number in sorted(numbers)]


def _named(asker: Asker, args: Sequence[Any]) -> str:
    try:
        return asker.layout.router.command(args[0]).name.upper().replace("|", " ")
    except (RedisError, ValueError, IndexError):
        return UNKNOWN


def _awaits_proxies(asker: Any) -> bool:
    """No proxy has told the topology yet."""
    follower = getattr(asker, "follower", None) or getattr(asker, "watcher", None)
    return follower is not None and follower.following.topology is None
