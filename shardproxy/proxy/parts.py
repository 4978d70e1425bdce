"""What a worker answers to those who ask all of them, besides the parts of handlers."""

from typing import TYPE_CHECKING

from shardproxy.handlers.base import part
from shardproxy.proxy.watched import WorkerRecord

if TYPE_CHECKING:
    from shardproxy.proxy.server import Proxy


@part("databases")
def databases(proxy: "Proxy") -> list[int]:
    """Those that clients of this worker have used."""
    return proxy.reactor.used_databases()


@part("worker")
def worker(proxy: "Proxy") -> WorkerRecord:
    return WorkerRecord(proxy.process(), proxy.reactor.nodes())
