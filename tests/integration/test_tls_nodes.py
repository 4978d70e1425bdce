"""TLS to nodes: requests, probes, learning and `check`, and every way in which a certificate can be wrong."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
from certs import Authority, RawTls
from servers import ROOT, ProxyProcess, Raw, RedisNode, free_port, pack, until

BIG = bytes(range(256)) * 10000


class TlsNode(RedisNode):
    """A redis-server whose port speaks TLS, and nothing else."""

    def __init__(self, authority: Authority, cert: tuple[Path, Path], *options: str) -> None:
        tls_port = free_port()
        files = ["--tls-cert-file", cert[0], "--tls-key-file", cert[1], "--tls-ca-cert-file", authority.ca]
        super().__init__(
            "--port", "0", "--tls-port", str(tls_port), *map(str, files), *options, port=tls_port
        )
        self.authority, self.shown = authority, authority.issue("direct")

    def ready(self) -> bool:
        with self.raw() as raw:
            return raw.ask("PING")[:1] in b"+-"

    def raw(self) -> Raw:
        context = self.authority.context(*self.shown)
        context.check_hostname = False
        context.verify_mode = 0  # type: ignore[assignment]  # it may be as wrong as the test wants
        return RawTls(self.port, context, timeout=1)

    def __enter__(self) -> Self:
        return self.start()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def node(authority: Authority) -> Iterator[TlsNode]:
    with TlsNode(authority, authority.issue("node")) as made:
        yield made


def config(shards: Sequence[str], *tls: str, top: str = "", pool: str = "") -> str:
    lines = [
        "listen = ['127.0.0.1:0']",
        top,
        "[pool.main]",
        pool,
        "[pool.main.tls]",
        *tls,
        "[pool.main.shards]",
    ]
    return "\n".join([*lines, *(f'{chr(97 + number)} = "{url}"' for number, url in enumerate(shards))]) + "\n"


def shows(authority: Authority, cert: tuple[Path, Path]) -> list[str]:
    return [f'ca = "{authority.ca}"', f'cert = "{cert[0]}"', f'key = "{cert[1]}"']


@pytest.fixture(scope="module")
def ours(authority: Authority) -> tuple[Path, Path]:
    return authority.issue("shardproxy")


@contextmanager
def refused(text: str) -> Iterator[tuple[ProxyProcess, str]]:
    """The proxy, and what a GET answers when the node has been tried."""
    with ProxyProcess(text) as process, process.raw() as raw:
        until(lambda: process.events("node_refuses"), "the node to be asked")
        yield process, raw.ask("GET", "k").decode()


def test_requests_probes_and_big_values(
    authority: Authority, node: TlsNode, ours: tuple[Path, Path], redis: RedisNode
) -> None:
    """One shard with TLS, one without; by name, though the engine knows its IP."""
    shards = [f"rediss://localhost:{node.port}", f"redis://{redis.address}"]
    text = config(
        shards,
        *shows(authority, ours),
        pool='connections_per_node = 2\nhealth = {probe = "deep", interval = "200ms"}',
    )
    with ProxyProcess(text) as process, process.raw() as raw:
        for number in range(60):
            assert raw.ask("SET", f"k{number}", BIG if number % 20 == 0 else number) == b"+OK\r\n"
        asked = b"".join(pack("GET", f"k{number}") for number in range(60))
        raw.send(asked)
        for number in range(60):
            value = BIG if number % 20 == 0 else b"%d" % number
            assert raw.frame() == b"$%d\r\n%b\r\n" % (len(value), value)
        assert raw.ask("MGET", "k1", "k2", "k3", "k4") == b"*4\r\n" + b"".join(
            b"$1\r\n%d\r\n" % n for n in (1, 2, 3, 4)
        )
        until(
            lambda: {each["state"] for each in json.loads(raw.value("PROXY", "NODES"))} == {"up"},
            "both to be up",
        )
        with node.raw() as direct:
            assert int(direct.value("DBSIZE")) > 10
    assert not process.events("node_refuses") if process.folder.exists() else True


def test_a_node_that_restarts(authority: Authority, ours: tuple[Path, Path]) -> None:
    with TlsNode(authority, authority.issue("again")) as mine:
        text = config([f"rediss://127.0.0.1:{mine.port}"], *shows(authority, ours))
        with ProxyProcess(text) as process, process.raw() as raw:
            assert raw.ask("SET", "k", "v") == b"+OK\r\n"
            mine.kill()
            until(lambda: raw.ask("GET", "k").startswith(b"-SHARDDOWN"), "it to be missed")
            mine.start()
            until(lambda: raw.ask("GET", "k") == b"$-1\r\n", "it to be back")


@pytest.mark.parametrize("workers", [2])
def test_under_a_supervisor(
    authority: Authority, node: TlsNode, ours: tuple[Path, Path], workers: int
) -> None:
    text = config([f"rediss://127.0.0.1:{node.port}"], *shows(authority, ours), top=f"workers = {workers}")
    with ProxyProcess(text) as process, process.raw() as raw:
        assert raw.ask("SET", "k", "v") == b"+OK\r\n"
        until(lambda: json.loads(raw.value("PROXY", "NODES"))[0]["state"] == "up", "the supervisor's probe")


def test_wrong_host(authority: Authority, ours: tuple[Path, Path]) -> None:
    with TlsNode(authority, authority.issue("elsewhere", names=("DNS:elsewhere.test",))) as mine:
        url = f"rediss://127.0.0.1:{mine.port}"
        with refused(config([url], *shows(authority, ours))) as (_, answer):
            assert answer.startswith("-SHARDDOWN")
            assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in answer
        for lax in ('server_name = "elsewhere.test"', 'verify = "ca"'):
            with ProxyProcess(config([url], *shows(authority, ours), lax)) as process, process.raw() as raw:
                assert raw.ask("GET", "k") == b"$-1\r\n", lax


def test_wrong_ca_and_expired(authority: Authority, ours: tuple[Path, Path], tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger", "nobody's CA")
    with TlsNode(authority, authority.issue("late", days=-1)) as late:
        with refused(config([f"rediss://localhost:{late.port}"], *shows(authority, ours))) as (_, answer):
            assert "certificate has expired" in answer
        trusting = [f'ca = "{stranger.ca}"', *shows(authority, ours)[1:]]
        with refused(config([f"rediss://localhost:{late.port}"], *trusting)) as (process, answer):
            assert "self-signed certificate in certificate chain" in answer
            assert "self-signed certificate" in process.events("node_refuses")[0]["reason"]
        lax = config([f"rediss://localhost:{late.port}"], 'verify = "none"', *shows(authority, ours)[1:])
        with ProxyProcess(lax) as process, process.raw() as raw:
            assert raw.ask("GET", "k") == b"$-1\r\n"


def test_the_node_wants_a_certificate_that_we_have_not(authority: Authority, node: TlsNode) -> None:
    with refused(config([f"rediss://localhost:{node.port}"], f'ca = "{authority.ca}"')) as (_, answer):
        assert answer.startswith("-SHARDDOWN")
        assert "certificate required" in answer or "closed the connection" in answer


def test_tls_to_a_plain_node_and_plaintext_to_a_tls_node(
    authority: Authority, node: TlsNode, redis: RedisNode
) -> None:
    with refused(config([f"rediss://{redis.address}"], f'ca = "{authority.ca}"')) as (_, answer):
        assert answer.startswith("-SHARDDOWN")
    with refused(config([f"redis://127.0.0.1:{node.port}"])) as (_, answer):
        assert answer.startswith("-SHARDDOWN")


# --- check ---


def check(text: str, folder: Path) -> tuple[int, str]:
    path = folder / "shardproxy.toml"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "shardproxy", "check", "-c", str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return done.returncode, done.stdout + done.stderr


def test_check(authority: Authority, node: TlsNode, ours: tuple[Path, Path], tmp_path: Path) -> None:
    url = f"rediss://localhost:{node.port}"
    assert check(config([url], *shows(authority, ours)), tmp_path)[0] == 0
    code, text = check(config([url], 'verify = "full"', *shows(authority, ours)[1:]), tmp_path)
    assert code == 1 and "no connection: TLS: self-signed certificate in certificate chain" in text
    late = authority.issue("late-client", days=-1)
    code, text = check(config([url], *shows(authority, late)), tmp_path)
    assert code == 1 and f"{late[0]}: its certificate expired on" in text
    soon = authority.issue("soon", days=3)
    code, text = check(config([url], *shows(authority, soon)), tmp_path)
    assert code == 0 and f"warning: {soon[0]}: its certificate expires on" in text
    code, text = check(config([url], *shows(authority, (ours[0], late[1]))), tmp_path)
    assert code == 2 and f"{late[1]}, which is not the key of {ours[0]}" in text
    code, text = check(config([url], f'ca = "{tmp_path}/none.pem"'), tmp_path)
    assert code == 2 and "none.pem, which cannot be read (No such file or directory)" in text
    locked = authority.issue("locked", password="sesame")
    code, text = check(config([url], *shows(authority, locked)), tmp_path)
    assert code == 2 and f"{locked[1]}, which has a password" in text
    secret = tmp_path / "secret"
    for password, wanted in (("open", 2), ("sesame", 0)):
        secret.write_text(password + "\n")
        code, text = check(
            config([url], *shows(authority, locked), f'key_password_file = "{secret}"'), tmp_path
        )
        assert code == wanted, text
        assert password not in text.replace("does not open", "").replace("popen-", "")
