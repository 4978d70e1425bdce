"""TLS of clients: through real clients, and by those who do it wrong."""

import contextlib
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from certs import Authority, RawTls
from servers import ProxyProcess, Raw, RedisNode, free_port, pack, program, shards_of, toml, until

BIG = bytes(range(256)) * 20000  # 5 MB


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def config(
    nodes: Sequence[RedisNode], cert: Path, key: Path, *more: str, listen: Sequence[str] = (), top: str = ""
) -> str:
    lines = ["[tls]", f'cert = "{cert}"', f'key = "{key}"', *more]
    return (
        toml(shards_of(nodes), listen or ["127.0.0.1:0", "tls://127.0.0.1:0"], top) + "\n".join(lines) + "\n"
    )


def tls_port(process: ProxyProcess) -> int:
    return int(next(each for each in process.addresses if "tls://" in each).rpartition(":")[2])


def counter(process: ProxyProcess, name: str) -> int:
    with process.raw() as raw:
        return int(redis_counters(raw)[name])


def redis_counters(raw: Raw) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads(raw.value("PROXY", "INFO"))["counters"]
    return found


def reasons(process: ProxyProcess) -> list[str]:
    return [event["reason"] for event in process.events("client_closed")]


@pytest.fixture(scope="module")
def encrypted(nodes3: list[RedisNode], authority: Authority) -> Iterator[ProxyProcess]:
    """A plain and a TLS address; clients may show a certificate."""
    more = [f'ca = "{authority.ca}"', 'verify = "optional"', "user_from_cert = true"]
    other = authority.issue("other", names=("DNS:other.test",))
    more += ['[tls.sni."other.test"]', f'cert = "{other[0]}"', f'key = "{other[1]}"']
    more += ["[users]", 'alice = "on ~alice:* +@all"', 'bob = "off ~* +@all"']
    with ProxyProcess(config(nodes3, *authority.issue("proxy"), *more)) as process:
        yield process


@pytest.fixture
def raw(encrypted: ProxyProcess, authority: Authority) -> Iterator[RawTls]:
    with RawTls(tls_port(encrypted), authority.context()) as made:
        yield made


def test_redis_cli(encrypted: ProxyProcess, authority: Authority) -> None:
    def cli(*args: str) -> str:
        base = [program("redis-cli", "redis-tools"), "-p", str(tls_port(encrypted)), "--tls"]
        return subprocess.run(
            [*base, "--cacert", str(authority.ca), *args], capture_output=True, text=True, timeout=20
        ).stdout

    assert cli("SET", "from-cli", "1") == "OK\n"
    assert cli("-3", "GET", "from-cli") == '"1"\n' or cli("-3", "GET", "from-cli") == "1\n"


def test_redis_py_and_big_values(encrypted: ProxyProcess, authority: Authority) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with redis_py.Redis(
            "localhost",
            tls_port(encrypted),
            ssl=True,
            ssl_ca_certs=str(authority.ca),
            ssl_min_version=version,
        ) as client:
            assert client.set("big", BIG)
            assert client.get("big") == BIG
            pipe = client.pipeline(transaction=False)
            for number in range(2000):
                pipe.set(f"key:{number}", "x" * (number * 7 % 3000))
                pipe.get(f"key:{number}")
            found = pipe.execute()
            assert [len(each) for each in found[1::2]] == [number * 7 % 3000 for number in range(2000)]


def test_old_version_is_refused(encrypted: ProxyProcess, authority: Authority) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.ca)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        RawTls(tls_port(encrypted), context)
    until(lambda: any("unsupported protocol" in each for each in reasons(encrypted)), "the reason in the log")


def test_sni_chooses_the_certificate(encrypted: ProxyProcess, authority: Authority) -> None:
    for name, subject in (("other.test", "other"), ("localhost", "proxy")):
        with RawTls(tls_port(encrypted), authority.context(), name) as raw:
            assert dict(each[0] for each in raw.socket.getpeercert()["subject"])["commonName"] == subject
            assert raw.ask("PING") == b"+PONG\r\n"


def test_one_byte_at_a_time(raw: RawTls) -> None:
    for byte in pack("SET", "slow", "value") + pack("GET", "slow"):
        raw.send(bytes([byte]))
    assert raw.frames(2) == [b"+OK\r\n", b"$5\r\nvalue\r\n"]


@pytest.mark.parametrize("seed", range(6))
def test_random_splits_of_the_ciphertext(encrypted: ProxyProcess, authority: Authority, seed: int) -> None:
    """Records arrive in pieces of any size, also along with the end of the handshake."""
    chance = random.Random(seed)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = authority.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with Raw(tls_port(encrypted)) as raw:
        shake_hands(session, raw, incoming, outgoing)
        wanted = b""
        for number in range(300):
            value = b"%d" % number * chance.randrange(1, 400)
            session.write(pack("SET", f"split:{number}", value) + pack("GET", f"split:{number}"))
            wanted += b"+OK\r\n$%d\r\n%b\r\n" % (len(value), value)
        sender = threading.Thread(target=_in_pieces, args=(raw.socket, outgoing.read(), chance))
        sender.start()
        found = b""
        while len(found) < len(wanted):
            try:
                data = session.read(1 << 16)
                assert data, "the proxy says goodbye"
                found += data
            except ssl.SSLWantReadError:
                incoming.write(some(raw))
        sender.join()
    assert found == wanted


def some(raw: Raw) -> bytes:
    """What has come; an error when nothing more will."""
    data = raw.socket.recv(1 << 16)
    assert data, "the proxy has closed the connection"
    return data


def shake_hands(session: ssl.SSLObject, raw: Raw, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
    """By hand: what ends it stays in `outgoing`, to go along with what comes next."""
    while True:
        with contextlib.suppress(ssl.SSLWantReadError):
            session.do_handshake()
            return
        raw.send(outgoing.read())
        incoming.write(some(raw))


def _in_pieces(sock: socket.socket, data: bytes, chance: random.Random) -> None:
    at = 0
    while at < len(data):
        size = chance.choice((1, 2, 4, 5, 6, 100, 5000, 40000))
        sock.sendall(data[at : at + size])
        at += size


def test_a_command_in_the_flight_of_the_handshake(encrypted: ProxyProcess, authority: Authority) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = authority.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with Raw(tls_port(encrypted)) as raw:
        with contextlib.suppress(ssl.SSLWantReadError):
            session.do_handshake()
        raw.send(outgoing.read())
        while True:
            incoming.write(some(raw))
            with contextlib.suppress(ssl.SSLWantReadError):
                session.do_handshake()
                break
        session.write(pack("ECHO", "at once"))
        raw.send(outgoing.read())
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                assert session.read(100) == b"$7\r\nat once\r\n"
                break
            incoming.write(some(raw))


def test_half_closed_and_closed_without_a_word(encrypted: ProxyProcess, authority: Authority) -> None:
    """What was asked before close_notify is answered; the end of the TCP stream alone is an end too."""
    with RawTls(tls_port(encrypted), authority.context()) as raw:
        raw.send(pack("ECHO", "last"))
        plain = socket.socket(fileno=os.dup(raw.socket.fileno()))
        plain.shutdown(socket.SHUT_WR)
        assert raw.frame() == b"$4\r\nlast\r\n"
        assert raw.socket.recv(10) == b""  # its close_notify, or this would raise
        plain.close()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = authority.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with Raw(tls_port(encrypted)) as raw:
        shake_hands(session, raw, incoming, outgoing)
        session.write(pack("ECHO", "last"))
        with contextlib.suppress(ssl.SSLWantReadError):
            session.unwrap()
        raw.send(outgoing.read())  # and the connection stays open
        found = b""
        while data := raw.socket.recv(1 << 16):
            incoming.write(data)
        while b"last" not in found:
            found += session.read(100)
        with pytest.raises(ssl.SSLZeroReturnError):
            session.read(100)


def test_quit_says_goodbye(raw: RawTls) -> None:
    raw.send(pack("QUIT") + pack("PING"))
    assert raw.rest() == b"+OK\r\n"


def test_a_slow_reader_holds_up_only_itself(encrypted: ProxyProcess, authority: Authority) -> None:
    with RawTls(tls_port(encrypted), authority.context()) as raw:
        assert raw.ask("SET", "big", BIG) == b"+OK\r\n"
        raw.send(pack("GET", "big") * 8)  # 40 MB of replies, of which none is read
        with RawTls(tls_port(encrypted), authority.context()) as other:
            for _ in range(50):
                assert other.ask("PING") == b"+PONG\r\n"
        for _ in range(8):
            assert raw.frame() == b"$%d\r\n%b\r\n" % (len(BIG), BIG)
        assert raw.ask("PING") == b"+PONG\r\n"


# --- who may come in ---


def test_the_name_in_the_certificate(encrypted: ProxyProcess, authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("alice", names=())
    with RawTls(tls_port(encrypted), authority.context(cert, key)) as raw:
        assert raw.value("ACL", "WHOAMI") == "alice"
        assert str(raw.value("SET", "other", 1)).startswith("NOPERM")
        assert raw.ask("SET", "alice:1", 1) == b"+OK\r\n"
    for name in ("bob", "carol"):  # one is off, the other nobody
        with RawTls(tls_port(encrypted), authority.context(*authority.issue(name))) as raw:
            assert raw.value("ACL", "WHOAMI") == "default", name
    stranger = Authority(tmp_path / "stranger", "nobody's CA")
    context = authority.context(*stranger.issue("alice"))
    with (
        pytest.raises((ssl.SSLError, ConnectionError, EOFError)),
        RawTls(tls_port(encrypted), context) as raw,
    ):
        raw.ask("PING")
    until(
        lambda: any(
            "unable to get local issuer" in each or "self-signed" in each for each in reasons(encrypted)
        ),
        "its reason",
    )


def test_a_certificate_that_is_required(nodes3: list[RedisNode], authority: Authority) -> None:
    more = [f'ca = "{authority.ca}"', 'verify = "required"', 'minimum = "1.3"']
    with ProxyProcess(config(nodes3, *authority.issue("strict"), *more)) as process:
        port = tls_port(process)
        with (
            pytest.raises((ssl.SSLError, ConnectionError, EOFError)),
            RawTls(port, authority.context()) as raw,
        ):
            raw.ask("PING")
        expired = authority.context(*authority.issue("late", days=-1))
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)), RawTls(port, expired) as raw:
            raw.ask("PING")
        until(lambda: any("certificate has expired" in each for each in reasons(process)), "the reason")
        assert any("peer did not return a certificate" in each for each in reasons(process))
        cert, key = authority.issue("bob")
        with redis_py.Redis(
            "localhost",
            port,
            ssl=True,
            ssl_ca_certs=str(authority.ca),
            ssl_certfile=str(cert),
            ssl_keyfile=str(key),
        ) as client:
            assert client.ping()
        assert counter(process, "tls_failures") == 2


def test_plaintext_on_the_tls_port_and_tls_on_the_plain_one(
    encrypted: ProxyProcess, authority: Authority
) -> None:
    failures = counter(encrypted, "tls_failures")
    with Raw(tls_port(encrypted)) as raw:
        raw.send(pack("PING"))
        assert raw.rest() == b"-ERR Protocol error: this port speaks TLS, and what came is plaintext\r\n"
    assert counter(encrypted, "tls_failures") == failures + 1
    assert "what it sent is plaintext, on a TLS port" in reasons(encrypted)
    with pytest.raises(ssl.SSLError):
        RawTls(encrypted.port, authority.context())
    text = "Protocol error: this is a TLS handshake, and here is a port without TLS"
    until(lambda: text in [each["reason"] for each in encrypted.events("protocol_error")], "the reason")
    with Raw(encrypted.port) as raw:
        raw.send(b"\x16\x03\x01\x02\0\x01\n\xfc\n")
        assert raw.rest() == b"-ERR %b\r\n" % text.encode()


def test_what_is_not_tls_ends_only_itself(encrypted: ProxyProcess, raw: RawTls) -> None:
    chance = random.Random(3)
    for number in range(60):
        with Raw(tls_port(encrypted)) as stranger, contextlib.suppress(OSError):
            stranger.send(b"\x16\x03\x01" + chance.randbytes(number * 5))
            if number % 2:
                stranger.socket.shutdown(socket.SHUT_WR)
                stranger.rest()
    for _ in range(20):
        assert raw.ask("PING") == b"+PONG\r\n"


def test_broken_records_end_the_connection(encrypted: ProxyProcess, authority: Authority) -> None:
    with RawTls(tls_port(encrypted), authority.context()) as raw:
        assert raw.ask("PING") == b"+PONG\r\n"
        plain = socket.socket(fileno=os.dup(raw.socket.fileno()))
        plain.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32)
        with pytest.raises(ssl.SSLError):
            raw.socket.recv(100)
        plain.close()
    until(lambda: any("bad record mac" in each for each in reasons(encrypted)), "the reason")


# --- handshakes ---


def test_slow_handshakes_hold_up_nobody(nodes3: list[RedisNode], authority: Authority) -> None:
    cert, key = authority.issue("narrow")
    more = ["[limits]", "handshakes = 4", 'handshake_timeout = "1500ms"']
    with ProxyProcess(config(nodes3, cert, key, *more)) as process, contextlib.ExitStack() as held:
        port = tls_port(process)
        slow = [held.enter_context(Raw(port)) for _ in range(6)]
        for each in slow:
            each.send(b"\x16\x03\x01")
        time.sleep(1.2)  # after a second a slow one gives way
        for _ in range(3):
            with RawTls(port, authority.context()) as raw:
                assert raw.ask("PING") == b"+PONG\r\n"
        with process.raw() as raw:
            assert raw.ask("PING") == b"+PONG\r\n"
        for each in slow:
            assert each.rest() == b""
        assert any("takes long, and others wait" in each for each in reasons(process))
        assert any("was not done in time" in each for each in reasons(process))
        assert counter(process, "opening") == 0


def test_a_handshake_byte_by_byte(encrypted: ProxyProcess, authority: Authority) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = authority.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with Raw(tls_port(encrypted)) as raw:
        done = False
        while not done:
            try:
                session.do_handshake()
                session.write(pack("PING"))
                done = True
            except ssl.SSLWantReadError:
                pass
            for byte in outgoing.read():
                raw.send(bytes([byte]))
            if not done:
                incoming.write(some(raw))
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                assert session.read(100) == b"+PONG\r\n"
                break
            incoming.write(some(raw))


def test_many_at_once(encrypted: ProxyProcess, authority: Authority) -> None:
    wrong: list[BaseException] = []
    context = authority.context()

    def one() -> None:
        try:
            with RawTls(tls_port(encrypted), context, timeout=30) as raw:
                assert raw.ask("PING") == b"+PONG\r\n"
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=one) for _ in range(300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- change ---


def test_certificates_are_read_again_under_load(nodes3: list[RedisNode], authority: Authority) -> None:
    cert, key = authority.issue("first", file="changing")
    stop, wrong = threading.Event(), []
    with ProxyProcess(config(nodes3, cert, key)) as process:
        port = tls_port(process)

        def load() -> None:
            try:
                while not stop.is_set():
                    with RawTls(port, authority.context()) as raw:
                        for number in range(20):
                            assert raw.ask("SET", "k", number) == b"+OK\r\n"
            except BaseException as error:
                wrong.append(error)

        def subject() -> str:
            with RawTls(port, authority.context()) as raw:
                return dict(each[0] for each in raw.socket.getpeercert()["subject"])["commonName"]

        thread = threading.Thread(target=load)
        thread.start()
        try:
            with RawTls(port, authority.context()) as old:
                assert subject() == "first"
                fresh = authority.issue("second")
                shutil.copy(fresh[0], cert)  # and for a moment the key is another's
                until(lambda: process.events("reload_refused"), "the mismatch to be refused")
                assert "which is not the key of" in process.events("reload_refused")[0]["mistakes"][0]
                assert subject() == "first"
                shutil.copy(fresh[1], key)
                until(lambda: subject() == "second", "the new certificate")
                late = authority.issue("late", days=-1)
                for source, target in zip(late, (cert, key), strict=True):
                    shutil.copy(source, target)
                process.signal(signal.SIGHUP)
                until(
                    lambda: any("expired on" in str(each) for each in process.events("reload_refused")),
                    "refusal",
                )
                assert subject() == "second"
                assert old.ask("PING") == b"+PONG\r\n"
        finally:
            stop.set()
            thread.join()
        assert not wrong


def test_workers_and_takeover(nodes3: list[RedisNode], authority: Authority) -> None:
    port = free_port()
    listen = [f"tls://127.0.0.1:{port}"]
    text = config(nodes3, *authority.issue("team"), listen=listen, top="workers = 2")
    with ProxyProcess(text) as old, RawTls(port, authority.context()) as raw:
        assert raw.ask("SET", "k", "v") == b"+OK\r\n"
        with ProxyProcess(text, "--takeover") as new:
            assert new.addresses == listen
            until(lambda: old.events("handed_over"), "the old one to hand over")
            assert raw.ask("GET", "k") == b"$1\r\nv\r\n"
            for _ in range(10):
                with RawTls(port, authority.context()) as other:
                    assert other.ask("GET", "k") == b"$1\r\nv\r\n"
            raw.close()
            assert old.wait() == 0
