"""INFO: this proxy, in the words of Redis's INFO, so that whatever reads a Redis's can read it.

Only true figures: a field that Redis has and we do not know is left out. Job queues look at redis_version
(the lowest of the nodes), redis_mode, role and maxmemory_policy. No node is asked, so that what looks often
gets its answer at once; but for INFO persistence and INFO keyspace alone: by the first, scripts wait until
all nodes have saved.
"""

import asyncio
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from shardproxy import __version__
from shardproxy.core import reply
from shardproxy.handlers.asking import ask, is_error, redis_places, value_of
from shardproxy.handlers.base import ProcessRecord, Server, gather, handles, part
from shardproxy.handlers.connection import lowest_version

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call

Fields: TypeAlias = Iterator[tuple[str, object]]
NO_EVICTION = "noeviction"


def human(size: int) -> str:
    """As Redis: 1.33M."""
    power = min(max(size.bit_length() - 1, 0) // 10, 4)
    return f"{size / 1024**power:.2f}{'BKMGT'[power]}" if power else f"{size}B"


def maxmemory_policy(server: Server) -> str:
    """What holds for all nodes: if one of them may evict keys, it is that one's."""
    policies = sorted({info.maxmemory_policy for info in server.node_info.values()} - {"", NO_EVICTION})
    return policies[0] if policies else NO_EVICTION


def _server(server: Server, processes: Sequence[ProcessRecord]) -> Fields:
    now = time.time()
    uptime = int(now - server.started)
    system = platform.uname()
    yield "redis_version", lowest_version(server)
    yield "redis_mode", "standalone"
    yield "shardproxy_version", __version__
    yield "os", f"{system.system} {system.release} {system.machine}"
    yield "arch_bits", 64
    yield "multiplexing_api", "epoll"
    yield "process_id", server.pid
    yield "process_supervised", "no"
    yield "run_id", server.run_id
    yield "tcp_port", server.tcp_port
    yield "server_time_usec", int(now * 1_000_000)
    yield "uptime_in_seconds", uptime
    yield "uptime_in_days", uptime // 86400
    yield "hz", 10
    yield "configured_hz", 10
    yield "workers", len(processes)


def _clients(server: Server, processes: Sequence[ProcessRecord]) -> Fields:
    yield "connected_clients", server.counters()["clients"]
    yield "cluster_connections", 0
    yield "maxclients", server.config.limits.maxclients
    yield "blocked_clients", sum(process.blocked for process in processes)
    yield "tracking_clients", 0


def _memory(server: Server, processes: Sequence[ProcessRecord]) -> Fields:
    used = sum(process.rss for process in processes)
    peak = sum(process.peak_rss for process in processes)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name, size in (("", used), ("_rss", used), ("_peak", peak)):
        yield f"used_memory{name}", size
        yield f"used_memory{name}_human", human(size)
    yield "used_memory_buffers", server.counters()["buffer_bytes"]
    yield "total_system_memory", total
    yield "total_system_memory_human", human(total)
    yield "maxmemory", 0
    yield "maxmemory_human", "0B"
    yield "maxmemory_policy", maxmemory_policy(server)


def _persistence(server: Server, processes: Sequence[ProcessRecord]) -> Fields:
    yield "loading", 0
    yield "async_loading", 0


# What nodes say of saving → what of all of them
SAVING: dict[str, Callable[[Sequence[int]], int]] = {
    "rdb_changes_since_last_save": sum,
    "rdb_bgsave_in_progress": max,
    "rdb_last_save_time": min,
    "aof_enabled": min,
    "aof_rewrite_in_progress": max,
    "aof_rewrite_scheduled": max,
}
DATABASE = re.compile(r"^db(\d+):keys=(\d+),expires=(\d+),avg_ttl=(\d+)", re.M)
SAVED = ("rdb_last_bgsave_status", "aof_last_bgrewrite_status", "aof_last_write_status")  # "ok" or "err"


def saving(texts: Sequence[str]) -> Fields:
    """What several nodes say in INFO persistence, as one."""
    nodes = [dict(line.split(":", 1) for line in text.splitlines() if ":" in line) for text in texts]
    for name, merge in SAVING.items():
        if numbers := [int(node[name]) for node in nodes if node.get(name, "").isdigit()]:
            yield name, merge(numbers)
    for name in SAVED:
        if words := {node[name] for node in nodes if name in node}:
            yield name, "ok" if words == {"ok"} else "err"


def keyspace(texts: Sequence[str]) -> Fields:
    """What several nodes say in INFO keyspace, as one: sums, and the mean of all that expire."""
    found: dict[str, list[int]] = {}
    for db, *numbers in DATABASE.findall("\n".join(texts)):
        keys, expires, ttl = map(int, numbers)
        sums = found.setdefault(db, [0, 0, 0])
        found[db] = [sums[0] + keys, sums[1] + expires, sums[2] + ttl * expires]
    for db in sorted(found, key=int):
        keys, expires, ttl = found[db]
        yield f"db{db}", f"keys={keys},expires={expires},avg_ttl={ttl // max(1, expires)}"


OF_NODES = {"persistence": saving, "keyspace": keyspace}


async def _of_nodes(server: Server, section: str) -> Fields:
    """Of those that answer."""
    frames = await asyncio.gather(
        *(ask(server, node, "INFO", section, write=False) for node, _ in redis_places(server))
    )
    texts = [value_of(frame, bytes).decode(errors="replace") for frame in frames if not is_error(frame)]
    return OF_NODES[section](texts)


# INFO's name of a counter → ours
STATS = {
    "total_connections_received": "clients_accepted",
    "total_commands_processed": "commands",
    "total_net_input_bytes": "client_bytes_in",
    "total_net_output_bytes": "client_bytes_out",
    "rejected_connections": "clients_refused",
    "total_error_replies": "error_replies",
}


def _stats(server: Server, processes: Sequence[ProcessRecord]) -> Fields:
    counters = server.counters()
    for name, ours in STATS.items():
        yield name, max(0, counters[ours] - server.counted.get(ours, 0))


@part("reset statistics")
def reset(server: Server) -> None:
    server.counted.update(server.counters())


def _replication(server: Server, processes: Sequence[ProcessRecord]) -> Fields:
    yield "role", "master"
    yield "connected_slaves", 0


def _cpu(server: Server, processes: Sequence[ProcessRecord]) -> Fields:
    yield "used_cpu_sys", f"{sum(process.cpu_system for process in processes):.6f}"
    yield "used_cpu_user", f"{sum(process.cpu_user for process in processes):.6f}"


def _cluster(server: Server, processes: Sequence[ProcessRecord]) -> Fields:
    yield "cluster_enabled", 0


SECTIONS = {
    "server": _server,
    "clients": _clients,
    "memory": _memory,
    "persistence": _persistence,
    "stats": _stats,
    "replication": _replication,
    "cpu": _cpu,
    "cluster": _cluster,
}
ALL = frozenset({"default", "all", "everything"})


@part("process")
def process(server: Server) -> ProcessRecord:
    return server.process()


@handles("info")
async def info(server: Server, call: "Call") -> bytes:
    """INFO [section ...]"""
    asked = {name.decode(errors="replace").lower() for name in call.args[1:]} or ALL
    processes = await gather(server, "process", ProcessRecord)
    text = "\r\n".join(
        "".join([f"# {name.upper() if name == 'cpu' else name.title()}\r\n"]
                + [f"{key}:{value}\r\n" for key, value in fields(server, processes)])
        for name, fields in SECTIONS.items()
        if asked & ALL or name in asked
    )  # fmt: skip
    if len(asked) == 1 and asked <= OF_NODES.keys():
        text = (text or "# Keyspace\r\n") + "".join(
            f"{key}:{value}\r\n" for key, value in await _of_nodes(server, *asked)
        )
    return reply.verbatim(text, call.proto)
