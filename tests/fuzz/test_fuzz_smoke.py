"""A little fuzzing with every test run, under AddressSanitizer and UBSan; tests/fuzz/run does it for long."""

import asyncio
import signal
import socket
import subprocess
import sys
from pathlib import Path

import engine
import failover
import pytest
from servers import toml

import build

INPUTS = 15000
FUZZ = f"""
import random, sys
sys.path.append({str(Path(__file__).parent)!r})
import fuzz_harness, mutations
rnd = random.Random(int(sys.argv[1]))
for number in range({INPUTS}):
    data = mutations.inputs(rnd)
    sys.stderr.write("\\r%d %r" % (number, data[:300]))
    fuzz_harness.run(data)
"""


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return build.build("asan")


def test_random_inputs_keep_the_properties_of_codec_merge_and_buffers(sanitized: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FUZZ, "1"], env=build.environment(sanitized), capture_output=True, check=False
    )
    said = run.stderr.rpartition(b"\r")[2].decode(errors="replace")
    assert run.returncode == 0, said
    assert said.startswith(f"{INPUTS - 1} "), "it did not come to the end"


def test_a_broken_property_is_noticed(sanitized: Path) -> None:
    """The sanitizer and the harness can fail: one reads beyond a buffer, the other checks."""
    code = "import ctypes, sys; ctypes.string_at(ctypes.create_string_buffer(8), 4096); sys.exit(0)"
    run = subprocess.run(
        [sys.executable, "-c", code], env=build.environment(sanitized), capture_output=True, check=False
    )
    assert run.returncode != 0
    assert b"AddressSanitizer" in run.stderr


def test_the_proxy_survives_hostile_clients_and_nodes(sanitized: Path) -> None:
    counts = asyncio.run(engine.fuzz("asan", seconds=600, rounds=len(engine.ROUNDS), seed=1))
    assert counts["rounds"] == len(engine.ROUNDS)
    assert counts["witnessed"] > 0


def test_it_ends_while_connections_of_one_node_are_being_made(sanitized: Path) -> None:
    """What is said of one that is closed looks at the others, which must be there still."""
    pool = 'timeout = "100ms"\nconnect_timeout = "60s"\nreset_after = "60s"\nhealth = { interval = "1h" }'
    with socket.create_server(("127.0.0.1", 0)) as silent:
        text = toml({"a": f"127.0.0.1:{silent.getsockname()[1]}"}, pool=pool)
        with engine.FuzzedProxy(text, "asan") as proxy, proxy.raw() as raw:
            for proto in (2, 3):
                raw.ask("HELLO", proto)
                assert raw.ask("GET", "key").startswith(b"-TIMEOUT")
            proxy.signal(signal.SIGTERM)
            assert proxy.wait() == 0, proxy.log_text()


def test_every_command_has_its_own_reply_while_the_topology_changes(sanitized: Path) -> None:
    done = failover.run("asan", seconds=12, seed=1)
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
