"""TLS of clients: `python -m tests.bench.tls`. CPU of the proxy for a request, at depths 1, 16 and 64.

Every proxy ends TLS 1.3 with the same certificate and talks plain RESP to the same nodes. Rounds alternate,
and what counts is the ratio within a run; connections and handshakes are in the CPU, and few.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any, cast

from tests.bench.peers import Envoy, HAProxy, Nodes, Peer, Shardproxy
from tests.bench.processes import BenchError, need

KEYS = 1000


def certificate(home: Path) -> tuple[Path, Path]:
    cert, key = home / "cert.pem", home / "key.pem"
    subprocess.run(
        [need("openssl", "apt install openssl"), "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=bench",
         "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    (home / "both.pem").write_bytes(cert.read_bytes() + key.read_bytes())
    return cert, key


class TlsShardproxy(Shardproxy):
    files: tuple[Path, Path]

    def argv(self) -> list[str]:
        made = super().argv()
        path = Path(made[-1])
        text = path.read_text().replace('listen = ["', 'listen = ["tls://')
        path.write_text(f'{text}\n[tls]\ncert = "{self.files[0]}"\nkey = "{self.files[1]}"\n')
        return made


class TlsEnvoy(Envoy):
    files: tuple[Path, Path]

    def bootstrap(self) -> dict[str, object]:
        made = super().bootstrap()
        resources = cast(dict[str, Any], made["static_resources"])
        cert, key = ({"filename": str(path)} for path in self.files)
        resources["listeners"][0]["filter_chains"][0]["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                    "tls_certificates": [{"certificate_chain": cert, "private_key": key}],
                },
            },
        }
        return made


class TlsHAProxy(HAProxy):
    files: tuple[Path, Path]

    def argv(self) -> list[str]:
        made = super().argv()
        path = Path(made[-1])
        both = self.files[0].with_name("both.pem")
        bind = f"bind 127.0.0.1:{self.port}"
        path.write_text(path.read_text().replace(bind, f"{bind} ssl crt {both}"))
        return made


PEERS: dict[str, type[Peer]] = {"shardproxy": TlsShardproxy, "envoy": TlsEnvoy, "haproxy": TlsHAProxy}


def sample(peer: Peer, verb: str, depth: int, requests: int, ca: Path) -> tuple[float, float]:
    """CPU microseconds a request, and requests a second."""
    command = [verb, "tls:__rand_int__", *(["x" * 64] if verb == "SET" else [])]
    before = peer.cpu_seconds()
    done = subprocess.run(
        [need("redis-benchmark", "apt install redis-tools"), "-h", "127.0.0.1", "-p", str(peer.port), "--tls",
         "--cacert", ca, "-c", "50", "-n", str(requests), "-P", str(depth), "-r", str(KEYS), "-e", "--csv",
         *command],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(done.stderr or done.stdout)
    cpu = (peer.cpu_seconds() - before) / requests * 1e6
    line = next(line for line in done.stdout.splitlines() if line.startswith(f'"{verb}'))
    return cpu, float(line.split('","')[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", default="shardproxy,envoy,haproxy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests")
    options = parser.parse_args()
    names = options.peers.split(",")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        files = certificate(home)
        nodes = Nodes(home)
        peers: dict[str, Peer] = {}
        try:
            for name in names:
                PEERS[name].files = files  # type: ignore[attr-defined]  # each of them has it
                peers[name] = PEERS[name](home, nodes)
                peers[name].start()
            print(
                f"{'CPU us a request':22}"
                + "".join(f"{name:>12}" for name in names)
                + "   ratio to the first"
            )
            for verb in ("SET", "GET"):
                for depth, requests in ((1, 30_000), (16, 200_000), (64, 300_000)):
                    found: dict[str, list[float]] = {name: [] for name in names}
                    for _ in range(options.rounds):
                        for name in names:
                            cpu, _ = sample(peers[name], verb, depth, int(requests * options.scale), files[0])
                            found[name].append(cpu)
                    middle = {name: statistics.median(each) for name, each in found.items()}
                    ratios = " ".join(f"{middle[name] / middle[names[0]]:.2f}" for name in names)
                    print(
                        f"{verb + f', depth {depth}':22}"
                        + "".join(f"{middle[name]:12.2f}" for name in names)
                        + f"   {ratios}",
                        flush=True,
                    )
        finally:
            for peer in peers.values():
                peer.stop()
            nodes.stop()


if __name__ == "__main__":
    main()
