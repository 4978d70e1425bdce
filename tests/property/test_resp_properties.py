"""Whatever is sent, and however it is cut: frames and commands are the same, and no byte is lost."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from shardproxy.core.resp import ProtocolError, RequestParser, Scanner


def bulk(mark: bytes, body: bytes) -> bytes:
    return b"%b%d\r\n%b\r\n" % (mark, len(body), body)


line = st.binary(max_size=20).map(lambda text: text.replace(b"\n", b"").replace(b"\r", b""))
scalars = st.one_of(
    st.builds(
        lambda mark, text: mark + text + b"\r\n", st.sampled_from([*map(bytes, zip(b"+-:_,#("))]), line
    ),
    st.builds(bulk, st.sampled_from([b"$", b"!", b"="]), st.binary(max_size=50)),
    st.sampled_from([b"$-1\r\n", b"*-1\r\n"]),
)


def aggregates(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    def of(mark: bytes, parts: list[bytes]) -> bytes:
        pairs = mark in b"%|"
        count = len(parts) // 2 if pairs else len(parts)
        body = b"".join(parts[: 2 * count] if pairs else parts)
        return b"%b%d\r\n%b" % (mark, count, body) + (b":1\r\n" if mark == b"|" else b"")

    return st.builds(of, st.sampled_from([b"*", b"~", b">", b"%", b"|"]), st.lists(inner, max_size=5))


frames = st.recursive(scalars, aggregates, max_leaves=12)
commands = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=6), max_size=6)
cuts = st.lists(st.integers(0, 10_000), max_size=12)


def pieces(data: bytes, where: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(each % (len(data) + 1) for each in where)})
    return [data[start:stop] for start, stop in pairwise(at)]


def encode(args: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(args) + b"".join(bulk(b"$", arg) for arg in args)


@given(st.lists(frames, max_size=6), cuts)
def test_frames_come_out_as_they_went_in(sent: list[bytes], where: list[int]) -> None:
    scanner = Scanner()
    assert [frame for piece in pieces(b"".join(sent), where) for frame in scanner.feed(piece)] == sent


@given(commands, cuts)
def test_commands_come_out_as_they_went_in(sent: list[list[bytes]], where: list[int]) -> None:
    parser = RequestParser()
    data = b"".join(map(encode, sent))
    assert [command for piece in pieces(data, where) for command in parser.feed(piece)] == sent


def told(reader: Scanner | RequestParser, parts: list[bytes]) -> tuple[list[object], str | None]:
    """All that it gives, a byte at a time within each part, and why it stopped."""
    found: list[object] = []
    try:
        for part in parts:
            found += reader.feed(part)
    except ProtocolError as error:
        return found, str(error)
    return found, None


WORDS = (
    *(
        "*",
        "$",
        "+",
        ":",
        "%",
        "|",
        ">",
        "0",
        "1",
        "2",
        "10",
        "-1",
        "01",
        "'",
        '"',
        " ",
        "\n",
        "\r\n",
        "\x00",
    ),
    *("\\x41", "*2\r\n", "*1\r\n$4\r\nPING\r\n", "$3\r\nGET\r\n", "|1\r\n+a\r\n:1\r\n", "$-1\r\n"),
)
words = st.sampled_from([word.encode() for word in WORDS])
garbage = st.one_of(st.binary(max_size=80), st.lists(words, max_size=25).map(b"".join))


@given(garbage)
def test_garbage_gives_the_same_commands_however_it_is_cut(data: bytes) -> None:
    bytewise = told(RequestParser(), [data[at : at + 1] for at in range(len(data))])
    whole = told(RequestParser(), [data])
    assert whole[1] == bytewise[1]
    if whole[1] is None:  # an error takes with it what the same feed had found before
        assert whole[0] == bytewise[0]


@given(garbage)
def test_garbage_gives_the_same_frames_however_it_is_cut(data: bytes) -> None:
    bytewise = told(Scanner(), [data[at : at + 1] for at in range(len(data))])
    whole = told(Scanner(), [data])
    assert (whole[1] is None) == (bytewise[1] is None)
    if whole[1] is None:
        assert whole[0] == bytewise[0]
    assert data.startswith(b"".join(bytewise[0]))  # type: ignore[arg-type]  # a scanner gives bytes


@given(garbage)
def test_what_is_taken_is_what_redis_takes(data: bytes) -> None:
    """A request goes to a shared upstream as it came, so nothing may pass that Redis would hang up on."""
    found, error = told(RequestParser(), [data])
    if error is None and data.startswith(b"*") and b"\n*" not in data and found:
        encoded = b"".join(encode(command) for command in found)  # type: ignore[arg-type]  # lists of arguments
        assert data.startswith(encoded) or not data.startswith(encoded[:2])
