"""The benchmark harness runs end to end and measures what it says. No figure is judged here."""

import json
import subprocess
import sys
from pathlib import Path

from servers import RedisNode

from tests.bench.load import Generators

ROOT = Path(__file__).resolve().parents[2]
PEERS = "twemproxy,shardproxy"  # twemproxy is in Debian; Envoy is a 100 MB wheel


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_measure_of_every_peer_is_taken(tmp_path: Path) -> None:
    samples, page = tmp_path / "samples.json", tmp_path / "page.md"
    page.write_text("before\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nafter\n")
    done = bench(
        "--quick", "--factor", "0.005", "--peers", PEERS, "--json", str(samples), "--markdown", str(page)
    )
    assert done.returncode == 0, done.stderr
    raw = json.loads(samples.read_text())
    assert len(raw["load"]) >= 14
    for title, peers in raw["load"].items():
        assert set(peers) == set(PEERS.split(",")), title
        for sample in (sample for samples in peers.values() for sample in samples):
            assert min(sample["cpu"], sample["rps"], sample["p50"], sample["p99"]) > 0, title
    for footprint in (*raw["memory"]["idle"].values(), *raw["memory"]["flood"].values()):
        assert 0 < footprint["before"] <= footprint["peak"]
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert all(title in text for title in raw["load"])


def test_requests_that_fell_due_while_the_generator_was_held_up_are_made(tmp_path: Path) -> None:
    """A window that is over before the generator's first look at the clock: what was due in it counts."""
    with RedisNode() as node, node.raw() as raw:
        raw.ask("SET", "k000000000000", "x")
        argv = [Generators(tmp_path).openloop, node.port, 2, 1_000_000, "1e-9", 0, "k", 1, 1]
        done = subprocess.run([str(part) for part in argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["counted"] == said["sent"] > 0


def test_an_unknown_peer_is_named() -> None:
    done = bench("--peers", "twemproxy,nosuch")
    assert done.returncode == 1
    assert "no peer is called nosuch" in done.stderr


def test_the_same_work_in_both_protocols_on_memcached_nodes() -> None:
    command = [sys.executable, "-m", "tests.bench.memcached", "--rounds", "1", "--factor", "0.01"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    measures = [line for line in done.stdout.splitlines() if "CPU" in line]
    assert len(measures) == 7 and all("twemproxy" not in line for line in measures), done.stdout
