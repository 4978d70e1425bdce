"""The codec: one table of cases for replies and one for requests, fed whole, bytewise, with more behind."""

from collections.abc import Iterator
from itertools import chain

import pytest
from resp_cases import BULK, COMMANDS, ERRORS, FRAMES, LONG, MULTIBULK, NOT_FRAMES, PING, STRICTER

from shardproxy.core.buffers import total_bytes
from shardproxy.core.resp import ProtocolError, RequestParser, Scanner


def split_in_two(data: bytes, at: int) -> Iterator[bytes]:
    yield data[:at]
    yield data[at:]


def bytewise(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def scan(pieces: Iterator[bytes]) -> list[bytes]:
    scanner = Scanner()
    return [frame for piece in pieces for frame in scanner.feed(piece)]


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_frame_is_found_however_it_comes(frame: bytes) -> None:
    assert scan(iter([frame])) == [frame]
    assert scan(bytewise(frame)) == [frame]
    assert scan(iter([frame + b"$3\r\nab"])) == [frame]
    assert scan(iter([frame * 3])) == [frame] * 3
    for at in range(1, min(len(frame), 60)):
        assert scan(split_in_two(frame, at)) == [frame]


def test_all_frames_after_each_other() -> None:
    assert scan(iter([b"".join(FRAMES.values())])) == [*FRAMES.values()]
    assert scan(bytewise(b"".join(FRAMES.values()))) == [*FRAMES.values()]


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_part_of_a_frame_is_no_frame(frame: bytes) -> None:
    for at in range(1, min(len(frame), 60)):
        assert scan(iter([frame[:at]])) == []
        assert scan(iter([frame[:-at]])) == []


@pytest.mark.parametrize("garbage", NOT_FRAMES.values(), ids=NOT_FRAMES)
def test_what_is_not_resp_is_refused_however_it_comes(garbage: bytes) -> None:
    for pieces in (
        iter([garbage]),
        bytewise(garbage),
        iter([b"+OK\r\n" + garbage]),
        iter([garbage + b"+OK\r\n"]),
    ):
        with pytest.raises(ProtocolError, match="not RESP"):
            scan(pieces)


def parse(pieces: Iterator[bytes], parser: RequestParser | None = None) -> list[list[bytes]]:
    parser = parser or RequestParser()
    return [command for piece in pieces for command in parser.feed(piece)]


@pytest.mark.parametrize(("data", "commands"), COMMANDS.values(), ids=COMMANDS)
def test_commands_are_found_however_they_come(data: bytes, commands: list[list[bytes]]) -> None:
    assert parse(iter([data])) == commands
    assert parse(bytewise(data)) == commands
    assert parse(iter([data + PING])) == [*commands, [b"PING"]]
    assert parse(iter([data + b"*2\r\n$4\r\nEC"])) == commands
    for at in range(1, min(len(data), 60)):
        assert parse(split_in_two(data, at)) == commands
        assert parse(split_in_two(data, len(data) - at)) == commands


def test_all_commands_after_each_other() -> None:
    data, commands = zip(*COMMANDS.values(), strict=True)
    assert parse(iter([b"".join(data)])) == [*chain.from_iterable(commands)]
    assert parse(bytewise(b"".join(data))) == [*chain.from_iterable(commands)]


@pytest.mark.parametrize(("data", "error"), [*ERRORS.values(), *STRICTER.values()], ids=[*ERRORS, *STRICTER])
def test_malformed_requests_are_refused_however_they_come(data: bytes, error: str) -> None:
    for pieces in (iter([data]), bytewise(data), iter([PING + data]), iter([data + PING])):
        with pytest.raises(ProtocolError) as refused:
            parse(pieces)
        assert str(refused.value) == error


@pytest.mark.parametrize("data", [PING[:at] for at in range(1, len(PING))] + [b"PING", b"PING\r", b"'"])
def test_part_of_a_command_is_no_command(data: bytes) -> None:
    assert parse(iter([data])) == []


# --- limits: before anything is taken ---


def arguments(count: int, size: int = 1) -> bytes:
    return b"*%d\r\n" % count + b"$%d\r\n%b\r\n" % (size, b"a" * size) * count


@pytest.mark.parametrize(
    ("limit", "most", "beyond", "error"),
    [
        ("max_arguments", arguments(10), b"*11\r\n", MULTIBULK),
        ("max_value", arguments(1, 10), b"*1\r\n$11\r\n", BULK),
        ("max_inline", b"0123456789\n", b"0123456789a", LONG),
        ("max_request", arguments(1), arguments(3), "Protocol error: the request is larger than max_request"),
    ],
)  # fmt: skip
def test_limits_are_exact(limit: str, most: bytes, beyond: bytes, error: str) -> None:
    assert len(parse(iter([most]), RequestParser(**{limit: 10}))) == 1
    with pytest.raises(ProtocolError) as refused:
        parse(iter([beyond]), RequestParser(**{limit: 10}))
    assert str(refused.value) == error


def resident() -> int:
    """Bytes that this process has reserved, plus those that it has touched."""
    with open("/proc/self/status") as status:
        return sum(int(line.split()[1]) << 10 for line in status if line.startswith(("VmData:", "VmRSS:")))


@pytest.mark.parametrize(
    "promise",
    [
        b"*1048576\r\n",
        b"*1\r\n$536870912\r\n",
        b"*1048576\r\n$536870912\r\n",
        b"*1024\r\n$1\r\na\r\n$536870912\r\nb",
    ],
)
def test_what_is_promised_takes_no_memory(promise: bytes) -> None:
    parsers = [RequestParser() for _ in range(200)]
    before, buffers = resident(), total_bytes()
    assert [parser.feed(promise) for parser in parsers] == [[]] * 200
    assert resident() - before < 200 * 65_536
    assert total_bytes() == buffers


def test_what_a_reply_promises_takes_no_memory() -> None:
    scanners = [Scanner() for _ in range(200)]
    before = resident()
    for scanner in scanners:
        assert scanner.feed(b"*1048576\r\n*1048576\r\n$536870912\r\nx") == []
    assert resident() - before < 200 * 65_536
