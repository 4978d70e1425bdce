"""`[limits]` of shardproxy.toml: what clients may take."""

from __future__ import annotations  # made when they are asked for: most clients never do

from typing import Annotated, ClassVar

from msgspec import Meta

from shardproxy.config.tables import Record, Rule
from shardproxy.config.text import Count, Duration, Size, SizeOrNone, Timeout


class Limits(Record, frozen=True, kw_only=True):
    """Nothing grows without bound: what a client, and all of them, may take."""

    maxclients: Annotated[Count, "clients connected at once, over all workers"] = 10_000
    client_requests: Annotated[Count, "with so many requests in flight a client's next ones wait"] = 1024
    client_output_soft: Annotated[
        Size, "with so many request and reply bytes outstanding a client's next commands wait"
    ] = 1 << 20
    client_output_hard: Annotated[Size, "a client owed so many reply bytes is closed"] = 1 << 30
    client_subscriptions: Annotated[Count, "channels and patterns that one client may subscribe to"] = 100_000
    pubsub_output_soft: Annotated[
        Size, "a subscriber owed so many bytes for pubsub_output_time is closed"
    ] = 8 << 20
    pubsub_output_hard: Annotated[Size, "a subscriber owed so many bytes is closed at once"] = 32 << 20
    pubsub_output_time: Annotated[Timeout, "how long a subscriber may be over pubsub_output_soft"] = 60.0
    max_value: Annotated[Size, "one argument of a command"] = 512 << 20
    max_request: Annotated[Size, "a whole command"] = 1 << 30
    max_arguments: Annotated[Count, "arguments of one command"] = 1 << 20
    max_inline: Annotated[Size, "a command typed as a plain line"] = 64 << 10
    memory: Annotated[
        Size, "buffers of a process; beyond it, clients that hold much are paused, then closed"
    ] = 1 << 30
    scripts: Annotated[
        Size, "texts of scripts that a worker keeps, so that EVALSHA finds them on nodes that have lost them"
    ] = 16 << 20
    clients_per_address: Annotated[
        int, Meta(ge=0, le=10**9), "clients connected at once from one address, to a worker; 0: as maxclients"
    ] = 0
    address_requests: Annotated[
        int,
        Meta(ge=0, le=10**9),
        "with so many in flight of one address, to a worker, its clients' next requests wait; 0: any number",
    ] = 0
    address_bytes: Annotated[
        SizeOrNone, "the same for request and reply bytes outstanding; 0: any number"
    ] = 0
    handshakes: Annotated[
        Count, "clients of a worker in a TLS handshake or before their PROXY header; more wait to be accepted"
    ] = 256
    handshake_timeout: Annotated[Timeout, "for a client's PROXY header and TLS handshake"] = 10.0
    idle_timeout: Annotated[Duration, "a client silent for so long is closed; 0s: never"] = 0.0
    tcp_keepalive: Annotated[Duration, "TCP keepalive of clients and nodes; 0s: none"] = 300.0
    drain_timeout: Annotated[Duration, "how long a stop waits for requests in flight"] = 30.0

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            ("client_output_hard", "client_output_soft"),
            lambda it: it.client_output_hard < it.client_output_soft,
            "at least client_output_soft",
        ),
        Rule(
            ("pubsub_output_hard", "pubsub_output_soft"),
            lambda it: it.pubsub_output_hard < it.pubsub_output_soft,
            "at least pubsub_output_soft",
        ),
        Rule(("max_request", "max_value"), lambda it: it.max_request < it.max_value, "at least max_value"),
        Rule(("max_request", "max_inline"), lambda it: it.max_request < it.max_inline, "at least max_inline"),
    )
