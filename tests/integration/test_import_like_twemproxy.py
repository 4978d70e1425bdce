"""`shardproxy import` against Debian's `nutcracker`: both take and refuse the same files."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from shardproxy.config import ConfigError
from shardproxy.config.imports.drafts import drafts
from shardproxy.config.imports.nutcracker import HASHES

BEGIN = "main:\n  listen: 127.0.0.1:22121\n"
SERVERS = "  servers:\n    - 127.0.0.1:6379:1\n"
# What a pool says, and whether twemproxy takes it
SAID = [
    ("", True),
    *((f"  hash: {name}\n", True) for name in HASHES),
    ("  hash: sha1\n", False),
    *((f"  distribution: {name}\n", True) for name in ("ketama", "modula", "random")),
    ("  distribution: ring\n", False),
    ('  hash_tag: "{}"\n', True),
    ('  hash_tag: "{"\n', False),
    ("  timeout: 400\n  backlog: 1024\n  client_connections: 5\n", True),
    ("  timeout: -1\n", False),
    ("  timeout: 0x10\n", False),
    ("  timeout: '400'\n", True),
    ("  redis: true\n  redis_auth: secret\n  redis_db: 3\n", True),
    ("  redis: yes\n", False),
    ("  redis: True\n", False),
    ("  preconnect: true\n  tcpkeepalive: false\n  auto_eject_hosts: true\n", True),
    ("  server_connections: 4\n  server_retry_timeout: 2000\n  server_failure_limit: 1\n", True),
    ("  server_connections: 0\n", False),
    ("  redis: true\n  redis: true\n", False),
    ("nonsense", False),
]
SERVER = [
    ("127.0.0.1:6379:1", True),
    ("127.0.0.1:6379:1 name", True),
    ("host.example:6379:100 name-1:x", True),
    ("::1:6379:1", True),
    ("/tmp/redis.sock:1", True),
    ("/tmp/redis.sock:1 name", True),
    ("127.0.0.1:6379", False),
    ("127.0.0.1:6379:0", False),
    ("127.0.0.1:6379:-1", False),
    ("127.0.0.1:6379:x", False),
    ("127.0.0.1:0:1", False),
    ("127.0.0.1:65536:1", False),
    ("127.0.0.1:6379:1  name", False),
    ("name", False),
]


def taken_by_twemproxy(file: Path) -> bool:
    program = shutil.which("nutcracker") or shutil.which("/usr/sbin/nutcracker")
    if program is None:
        pytest.fail("twemproxy is missing: apt-get install nutcracker")
    done = subprocess.run([program, "-t", "-c", file], capture_output=True, text=True, timeout=20)
    assert "syntax is" in done.stderr, done.stderr
    return done.returncode == 0


def taken_here(file: Path) -> bool:
    try:
        return bool(drafts(file.name, file.read_bytes()))
    except ConfigError:
        return False


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        *((BEGIN + said + SERVERS, taken) for said, taken in SAID),
        *((f"{BEGIN}  servers:\n    - {each}\n", taken) for each, taken in SERVER),
        (BEGIN, False),
        ("main:\n" + SERVERS, False),
        (f"{BEGIN}{SERVERS}    - 127.0.0.1:6379:2\n", False),  # the weight is no part of a name
        (f"{BEGIN}{SERVERS}    - 127.0.0.1:6380:1\n", True),
        (f"{BEGIN}  servers:\n    - 127.0.0.1:1:1 a\n    - 127.0.0.1:2:1 a\n", False),
        ("main:\n  listen: /tmp/main.sock\n" + SERVERS, True),
        ("main:\n  listen: /tmp/main.sock 0666\n" + SERVERS, True),
        ("main:\n  listen: /tmp/main.sock 7777\n" + SERVERS, False),
        ("main:\n  listen: 127.0.0.1\n" + SERVERS, False),
        ("main:\n  listen: 127.0.0.1:0\n" + SERVERS, False),
        (f"{BEGIN}{SERVERS}other:\n  listen: 127.0.0.1:22122\n{SERVERS}", True),
        (f"{BEGIN}{SERVERS}other:\n  listen: 127.0.0.1:22121\n{SERVERS}", False),
        (f"{BEGIN}{SERVERS}{BEGIN.replace('22121', '22122')}{SERVERS}", False),
        ("", False),
    ],
)
def test_the_same_files_are_taken(tmp_path: Path, text: str, taken: bool) -> None:
    (file := tmp_path / "nutcracker.yml").write_text(text)
    assert (taken_by_twemproxy(file), taken_here(file)) == (taken, taken)


def test_no_file_makes_it_fall(tmp_path: Path) -> None:
    """Changed at random: drafts, or mistakes in words. SHARDPROXY_IMPORT_FILES is how many."""
    whole = BEGIN + "".join(said for said, taken in SAID if taken) + SERVERS
    json = (
        '{ "pools": { "A": { "servers": ["a:1", "b:2"], "hash": "Crc32" } }, /* x */ "route": "PoolRoute|A" }'
    )
    rng = random.Random("import")
    count = int(os.environ.get("SHARDPROXY_IMPORT_FILES", "400"))
    for number in range(count):
        text = bytearray((json if number % 3 == 0 else whole).encode())
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(text))
            text[at : at + rng.randint(0, 3)] = rng.choice(
                [b"", b"\n", b"{", b'"', b"- ", b"\xff", b": ", b"[", b"\x00"]
            )
        try:
            drafts("file", bytes(text))
        except ConfigError as error:
            assert error.mistakes
