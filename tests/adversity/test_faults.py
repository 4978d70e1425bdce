"""The network with faults does what toxiproxy's words say: by direction, on open connections, at run time.

What it says of time is tested by order and by count: whose reply comes first, how many pieces arrive.
"""

import contextlib
from collections.abc import Iterator

import pytest
from faults import FakeNode
from servers import Raw, pack
from toxics import Bandwidth, FaultProxy, Latency, LimitData, ResetPeer, Slicer, SlowClose, Timeout, Toxic

VALUE = b"0123456789" * 30


@contextlib.contextmanager
def network(*toxics: Toxic) -> Iterator[tuple[FaultProxy, Raw, FakeNode]]:
    """A node that knows `key`, a network before it, and a connection through that."""
    with FakeNode() as node:
        node.data[b"key"] = VALUE
        with FaultProxy(node.port, *toxics) as faulty, Raw(faulty.port) as raw:
            yield faulty, raw, node


def reply() -> bytes:
    return b"$%d\r\n%b\r\n" % (len(VALUE), VALUE)


def silent(raw: Raw, seconds: float = 0.15) -> bool:
    """Nothing comes for so long."""
    raw.socket.settimeout(seconds)
    try:
        return not raw.frame()
    except TimeoutError:
        return True
    finally:
        raw.socket.settimeout(10)


def pieces(raw: Raw, size: int) -> int:
    """In how many reads so many bytes come."""
    count, got = 0, b""
    while len(got) < size:
        got += raw.socket.recv(1 << 16)
        count += 1
    assert got == reply()
    return count


def test_without_toxics_it_is_not_there() -> None:
    with network() as (_, raw, node):
        assert raw.ask("GET", "key") == reply()
        assert node.seen == [[b"GET", b"key"]]


@pytest.mark.parametrize("upstream", [False, True])
def test_latency_in_each_direction(upstream: bool) -> None:
    """What is late, and taken away at run time: the reply of a minute's latency would not be waited for."""
    with network() as (faulty, raw, node):
        assert raw.ask("GET", "key") == reply()
        late = Latency(0.8)
        faulty.add(late.upstream() if upstream else late)
        raw.send(pack("GET", "key"))
        assert silent(raw)
        assert (len(node.seen) == 1) is upstream  # which way it is late
        assert raw.frame() == reply()
        never = faulty.add(Latency(60))
        faulty.remove(late)
        faulty.remove(never)
        assert raw.ask("GET", "key") == reply()


def test_latency_does_not_add_up_over_a_pipeline() -> None:
    """Everything is as late as itself, not as all before it: 20 requests are not 20 times as late."""
    with network(Latency(1.0)) as (_, raw, node):
        for _ in range(20):
            raw.send(pack("GET", "key"))
        assert raw.frames(20) == [reply()] * 20
        assert len(node.seen) == 20


def test_bandwidth_cuts_a_reply_into_what_passes() -> None:
    with network(Bandwidth(2000)) as (_, raw, _):
        raw.send(pack("GET", "key"))
        assert pieces(raw, len(reply())) >= 3  # 100 bytes at a time


def test_slicer() -> None:
    with network(Slicer(10, 0.005)) as (faulty, raw, _):
        raw.send(pack("GET", "key"))
        assert pieces(raw, len(reply())) > 5
        faulty.toxics = [Slicer(2, 0.001).upstream()]
        raw.send(pack("GET", "key"))
        assert raw.frame() == reply()


def test_slow_close_keeps_the_connection_after_the_server_has_left() -> None:
    with network(SlowClose(0.4)) as (_, raw, node):
        assert raw.ask("GET", "key") == reply()
        node.cut()
        node.refuse()
        assert silent(raw)
        assert raw.rest() == b""


def test_timeout_swallows_then_closes() -> None:
    with network(Timeout(0.3)) as (_, raw, node):
        raw.send(pack("GET", "key"))
        assert silent(raw)
        assert raw.rest() == b""
        assert len(node.seen) == 1


@pytest.mark.parametrize("upstream", [False, True])
def test_timeout_zero_swallows_until_it_is_taken_away(upstream: bool) -> None:
    with network() as (faulty, raw, node):
        toxic = faulty.add(Timeout().upstream() if upstream else Timeout())
        raw.send(pack("GET", "key"))
        assert silent(raw, 0.3)
        assert len(node.seen) == (0 if upstream else 1)
        faulty.remove(toxic)
        assert raw.rest() == b""  # what was swallowed is lost, and so is the connection
        with Raw(faulty.port) as again:
            assert again.ask("GET", "key") == reply()


def test_reset_peer() -> None:
    with network(ResetPeer()) as (_, raw, _), pytest.raises(ConnectionResetError):
        raw.ask("GET", "key")


def test_limit_data_closes_after_so_many_bytes_of_its_direction() -> None:
    with network(LimitData(100)) as (_, raw, _):
        raw.send(pack("GET", "key") * 5)
        assert raw.rest() == reply()[:100]
    with network(LimitData(len(pack("GET", "key")) * 2).upstream()) as (_, raw, node):
        raw.send(pack("GET", "key") * 5)
        assert set(raw.rest()) <= set(reply())
        assert len(node.seen) <= 2


def test_toxics_are_a_chain() -> None:
    with network(Slicer(10, 0.002), LimitData(150)) as (_, raw, _):
        raw.send(pack("GET", "key"))
        assert raw.rest() == reply()[:150]


def test_refuse_accept_and_cut() -> None:
    with network() as (faulty, raw, _):
        assert raw.ask("GET", "key") == reply()
        faulty.cut()
        with pytest.raises((ConnectionResetError, EOFError)):
            raw.ask("GET", "key")
        with Raw(faulty.port) as again:
            assert again.ask("GET", "key") == reply()
        faulty.refuse()
        with pytest.raises(ConnectionRefusedError):
            Raw(faulty.port)
        faulty.accept()
        with Raw(faulty.port) as again:
            assert again.ask("GET", "key") == reply()
