"""core/memcached without a server: requests and replies as bytes, scans, programs that get odd replies."""

import random
from collections.abc import Sequence

import pytest

from shardproxy.core.memcached import (
    Ask,
    Failure,
    Frames,
    Node,
    Reply,
    Status,
    Value,
    encode,
    expiry,
    numbers,
    parse,
    start,
    wire,
)
from shardproxy.core.memcached.items import TRIES
from shardproxy.core.memcached.listing import PAGE_LEAST, Page, Wanted
from shardproxy.core.memcached.wire import OfNode, Refused

NOW = 1_800_000_000.0
NODE = Node(lambda: NOW, shard="a", address="h:11211")


def ended(program: str, *replies: Sequence[bytes], node: Node = NODE) -> tuple[list[bytes], Value]:
    """What a command asks and returns, when it is answered so."""
    args = [part.encode() for part in program.split()]
    running, asked = start(program.split()[0].lower(), args, node), []
    try:
        step: Ask = next(running)
        for frames in replies:
            asked.append(step.data)
            step = running.send([parse(frame) for frame in frames])
    except StopIteration as done:
        value: Value = done.value
        return asked, value
    raise AssertionError(f"it asks more: {step}")


# --- bytes ---

STREAM = [
    *(b"HD\r\n", b"VA 5 c1 f0\r\nHD\r\nx\r\n", b"EN\r\n", b"VA 0\r\n\r\n", b"NS\r\n"),
    *(b"STAT a 1\r\nSTAT b 2 3\r\nEND\r\n", b"SERVER_ERROR out of memory storing object\r\n"),
    *(b"MN\r\n", b"OK\r\n", b"HD c17 t-1\r\n", b"END\r\n"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_frames_are_cut_wherever_reads_end(size: int) -> None:
    data, frames = b"".join(STREAM), Frames()
    found = [frame for at in range(0, len(data), size) for frame in frames.feed(data[at : at + size])]
    assert found == STREAM


def test_replies_are_parsed() -> None:
    assert parse(STREAM[1]) == Reply("VA", b"HD\r\nx", {"c": b"1", "f": b"0"})
    assert parse(STREAM[5]) == Reply("STAT", None, {"a": b"1", "b": b"2 3"})
    assert parse(STREAM[6]) == Reply("SERVER_ERROR", b"out of memory storing object")
    assert parse(b"nonsense\r\n").code == "nonsense"


@pytest.mark.parametrize("line", ["VA", "VA x", "VA -1", "VA "])
def test_a_value_without_its_size_is_no_reply(line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}$"):
        parse(line.encode() + b"\r\n")


@pytest.mark.parametrize("key", [b"a", b"\x80\xff", b"x" * 250])
def test_keys_of_text_go_as_they_are(key: bytes) -> None:
    assert wire.command(b"mg", key, b" v") == b"mg " + key + b" v\r\n"


@pytest.mark.parametrize("byte", [*range(33), 127])
def test_other_keys_go_as_base64(byte: int) -> None:
    sent = wire.store(bytes([65, byte]), b"value")
    assert sent.startswith(b"ms Q") and sent.endswith(b"= 5 b\r\nvalue\r\n")
    assert sent.count(b"\r\n") == 2


@pytest.mark.parametrize("key", [b"", b"x" * 251, b" " * 187, b"x" * 249 + b"\n"])
def test_keys_that_memcached_cannot_have(key: bytes) -> None:
    with pytest.raises(OfNode):
        wire.command(b"mg", key)


def test_a_line_of_a_dump() -> None:
    assert wire.dumped(b"key=a%20b%0D exp=-1 la=1 cas=5 fetch=no cls=1 size=61\r\n") == (b"a b\r", -1)
    assert wire.dumped(b"END\r\n") is None
    assert wire.dumped(b"BUSY currently processing crawler request\r\n") is None


# --- numbers ---


@pytest.mark.parametrize(
    "text", [b"", b"-", b"-0", b"00", b"01", b"+1", b" 1", b"1 ", b"1\n", b"1.0", b"9" * 19]
)
def test_what_is_no_integer_to_redis(text: bytes) -> None:
    assert numbers.integer(text) is None


@pytest.mark.parametrize("value", [0, 1, -1, numbers.MOST, numbers.LEAST])
def test_integers(value: int) -> None:
    assert numbers.integer(b"%d" % value) == value


@pytest.mark.parametrize(
    ("text", "written"),
    [
        *[(b"0.1", b"0.1"), (b"3.0e3", b"3000"), (b"-0", b"0"), (b"0x1p-2", b"0.25"), (b"1e-30", b"0")],
        *[(b"-1e-30", b"0"), (b"3.14159265358979323846", b"3.14159265358979324"), (b".5", b"0.5")],
    ],
)
def test_long_doubles(text: bytes, written: bytes) -> None:
    value = numbers.long_double(text)
    assert value is not None
    assert numbers.written(value) == written


# --- times ---


@pytest.mark.parametrize(
    ("left", "token"),
    [
        *[(1, b"2"), (999, b"2"), (1000, b"3"), (1001, b"3"), (10_000, b"12"), (0, b"-1"), (-5, b"-1")],
        *[((expiry.RELATIVE_MOST - 2) * 1000, b"2592000"), (expiry.RELATIVE_MOST * 1000, b"1802592003")],
    ],
)
def test_a_time_gets_two_seconds_more(left: int, token: bytes) -> None:
    assert expiry.token(NODE, left) == token


@pytest.mark.parametrize("left", [100, 999, 1000, 1500, 60_000, 59_001, 3_600_000])
def test_no_key_goes_too_early_nor_too_late(left: int) -> None:
    """By a model of memcached's clock: looked at once a second, `phase` behind the edge of a second."""
    phases = [0, 1, 250, 500, 998, 999]  # ms
    for phase in phases:
        for since in (0, 1, 500, 999):  # it was set so long after such a look
            for later in phases:  # where the looks are when it expires: the timer drifts, forwards
                drifted = later - phase if later >= phase else later + 1000 - phase
                if drifted > max(left // 1000, 1) + 1:
                    continue
                ends = (
                    int(expiry.token(NODE, left)) * 1000 + later - phase
                )  # since the look before it was set
                lives = ends - since
                assert lives <= left + 2000 + drifted
                assert lives >= (left if left % 1000 == 0 else left // 1000 * 1000)


def test_a_time_over_a_month_is_the_nodes_own_time() -> None:
    slow = Node(lambda: NOW, offset=-500.0)
    assert int(expiry.token(slow, 3_000_000_000)) == 1_800_000_000 - 500 + 1 + 3_000_002


def test_a_time_that_memcached_cannot_keep() -> None:
    _, value = ended("SET k v EX 1000000000")
    assert value == Failure(
        "ERR invalid expire time for memcached shard 'a' at h:11211: it keeps none after 2038-01-19"
    )


# --- programs ---


def test_a_counter_is_counted_by_the_node_where_it_can() -> None:
    asked, value = ended("INCR k", [b"VA 1 c7 f0 t-1 s1\r\n9\r\n"], [b"HD\r\n"])
    assert (asked, value) == ([b"mg k v c f t s h\r\n", b"ma k C7 MI D1\r\n"], 10)


@pytest.mark.parametrize(
    "command",
    [
        *(
            "INCR k",
            "INCRBYFLOAT k 1",
            "APPEND k v",
            "SETRANGE k 0 v",
            "GETDEL k",
            "GETSET k v",
            "GETEX k PERSIST",
        ),
        *("SET k v KEEPTTL", "SET k v NX GET", "EXPIRE k 5", "EXPIRE k -1 NX", "PERSIST k"),
    ],
)
def test_who_compares_and_swaps_reads_under_the_nodes_lock(command: str) -> None:
    """See items.read: else value and CAS may be of two different moments."""
    asked, _ = ended(command, [b"SERVER_ERROR stop\r\n"])
    assert b" c" in asked[0] and b" h" in asked[0]


def test_a_counter_that_gets_shorter_is_written_again_with_its_flags() -> None:
    asked, value = ended("DECR k", [b"VA 2 c7 f3 t-1 s2\r\n10\r\n"], [b"HD\r\n"])
    assert (asked[1], value) == (b"ms k 1 MS F3 C7\r\n9\r\n", 9)


def test_a_rewrite_expires_at_the_second_at_which_it_would_have() -> None:
    """And is not written while a second of the node goes by."""
    clock = b"STAT pid 1\r\nSTAT time %d\r\nEND\r\n"
    asked, value = ended(
        "DECR k",
        [b"VA 2 c7 f0 t50 s2\r\n10\r\n"],
        [b"HD c7 t50\r\n", clock % 1_800_000_000, b"HD c7 t49\r\n"],
        [b"HD c7 t49\r\n", clock % 1_800_000_001, b"HD c7 t49\r\n"],
        [b"HD\r\n"],
    )
    assert asked[1] == b"mg k c t h\r\nstats\r\nmg k c t h\r\n"
    assert (asked[3], value) == (b"ms k 1 MS T1800000050 C7\r\n9\r\n", 9)


def test_who_loses_starts_over() -> None:
    read = b"VA 1 c%d f0 t-1 s1\r\n%d\r\n"
    asked, value = ended(
        "INCR k", [read % (1, 1)], [b"EX\r\n"], [read % (2, 5)], [b"NF\r\n"], [b"EN\r\n"], [b"HD\r\n"]
    )
    assert (asked[-1], value) == (b"ms k 1 ME\r\n1\r\n", 1)


def test_who_loses_always_says_so_and_stops() -> None:
    replies = [[b"VA 1 c1 f0 t-1 s1\r\n1\r\n"], [b"EX\r\n"]] * TRIES
    assert ended("INCR k", *replies)[1] == Failure(
        "TRYAGAIN others change this key on memcached shard 'a' at h:11211 all the time: nothing was changed"
    )


def test_an_append_that_the_node_has_no_memory_for() -> None:
    found = [b"HD c1 f0 s1\r\n"]
    _, value = ended("APPEND k v", found, [b"NS\r\n"], found)
    assert value == Failure(
        "OOM command not allowed when used memory > 'maxmemory': memcached shard 'a' at h:11211 is full"
    )


@pytest.mark.parametrize(
    "command", ["GET k", "INCR k", "TTL k", "DEL k", "SET k v", "DBSIZE", "FLUSHALL", "TYPE k"]
)
@pytest.mark.parametrize(
    "said",
    [
        *(b"SERVER_ERROR busy {}\r\n", b"CLIENT_ERROR x\r\n", b"ERROR\r\n", b"?\r\n"),
    ],
)
def test_what_no_node_should_answer_is_an_error(command: str, said: bytes) -> None:
    _, value = ended(command, [said])
    assert isinstance(value, Failure)
    assert value.text.startswith("ERR memcached shard 'a' at h:11211 answers ")


def test_a_value_that_is_too_large_is_not_even_sent() -> None:
    small = NODE._replace(limit=100)
    most = 100 - 56 - 1 - 1 - 2
    assert ended("SET k " + "x" * most, [b"HD\r\n"], node=small)[1] == Status("OK")
    asked, value = ended("SET k " + "x" * (most + 1), node=small)
    assert not asked and isinstance(value, Failure) and "at most 100 bytes" in value.text


def test_what_is_not_possible() -> None:
    _, value = ended("LPUSH k v")
    assert isinstance(value, Failure)
    assert value.text.startswith("ERR 'LPUSH' is not possible on a memcached shard ('a')")


@pytest.mark.parametrize(
    ("value", "resp2", "resp3"),
    [
        *[(None, b"$-1\r\n", b"_\r\n"), (5, b":5\r\n", b":5\r\n"), (Status("OK"), b"+OK\r\n", b"+OK\r\n")],
        *[([b"a", None], b"*2\r\n$1\r\na\r\n$-1\r\n", b"*2\r\n$1\r\na\r\n_\r\n")],
        *[(Failure("ERR no"), b"-ERR no\r\n", b"-ERR no\r\n")],
    ],
)
def test_replies_as_resp(value: Value, resp2: bytes, resp3: bytes) -> None:
    assert (encode(value, 2), encode(value, 3)) == (resp2, resp3)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("TTL k", [[b"HD tx\r\n"]]),
        ("INCR k", [[b"VA 1 cx t s9x\r\n5\r\n"]]),
        ("DBSIZE", [[b"STAT curr_items many\r\nEND\r\n"]]),
        (
            "DECR k",
            [[b"VA 2 c7 t50\r\n10\r\n"], [b"HD c7 t50\r\n", b"STAT time x\r\nEND\r\n", b"HD c7 t50\r\n"]],
        ),
    ],
)
def test_numbers_that_are_none_are_an_error(command: str, said: list[list[bytes]]) -> None:
    _, value = ended(command, *said)
    assert isinstance(value, Failure)
    assert value.text.startswith("ERR memcached shard 'a' at h:11211 ")


def test_a_line_of_a_listing_that_is_none() -> None:
    assert wire.dumped(b"key=a exp=soon\r\n") is None


# --- scans ---


@pytest.mark.parametrize("size", [0, 1, PAGE_LEAST, 5000])
def test_a_scan_finds_every_key_once_in_pages_of_some_size(size: int) -> None:
    keys = [b"key:%d" % at for at in range(size)]
    rng, cursor, found, pages = random.Random(size), 0, list[bytes](), 0
    while True:
        page = Page(cursor, Wanted())
        for key in rng.sample(keys, len(keys)):
            page.add(key)
        cursor, got = page.done()
        assert len(got) <= PAGE_LEAST
        found += got
        pages += 1
        if cursor == 0:
            break
    assert sorted(found) == sorted(keys)
    assert pages <= size // PAGE_LEAST + 2


@pytest.mark.parametrize("options", [[b"COUNT", b"0"], [b"MATCH"], [b"XX", b"1"], [b"COUNT", b"1", b"TYPE"]])
def test_options_of_scan_that_are_wrong(options: list[bytes]) -> None:
    with pytest.raises(Refused, match="syntax error"):
        Wanted.read(options)
