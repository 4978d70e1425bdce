"""memcached's replies cut into frames, whole, bytewise, with more behind; how its commands name a key."""

import base64
from collections.abc import Iterable

import pytest

from shardproxy.core.memcached_wire import ProtocolError, Scanner, encode_key

FRAMES = {
    "done": b"HD\r\n",
    "done, with flags": b"HD s5 t-1 c12\r\n",
    "not there": b"EN\r\n",
    "not found": b"NF\r\n",
    "not stored": b"NS\r\n",
    "exists": b"EX\r\n",
    "no operation": b"MN\r\n",
    "debug": b"ME key exp=-1 la=3 cas=2 fetch=no cls=1 size=63\r\n",
    "value": b"VA 5\r\nhello\r\n",
    "empty value": b"VA 0\r\n\r\n",
    "value with flags": b"VA 2 f0 kYSBi b\r\nzz\r\n",
    "value that looks like replies": b"VA 11\r\nEN\r\nVA 5\r\nx\r\n",
    "value of every byte": b"VA 256\r\n" + bytes(range(256)) + b"\r\n",
    "large value": b"VA 100000\r\n" + b"x" * 100_000 + b"\r\n",
    "stats": b"STAT pid 1\r\nSTAT version 1.6.18\r\nEND\r\n",
    "no stats": b"END\r\n",
    "stat without value": b"STAT domain_socket \r\nEND\r\n",
    "line of metadump": b"key=a%20b exp=-1 la=1 cas=4 fetch=yes cls=1 size=64\n",
    "version": b"VERSION 1.6.18\r\n",
    "error": b"ERROR\r\n",
    "client error": b"CLIENT_ERROR bad data chunk\r\n",
    "server error": b"SERVER_ERROR object too large for cache\r\n",
    "stored": b"STORED\r\n",
    "OK": b"OK\r\n",
    "busy": b"BUSY currently processing crawler request\r\n",
}
NOT_FRAMES = {
    "RESP": b"-ERR unknown command\r\n",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "blank line": b"\r\n",
    "longer word": b"HDX\r\n",
    "lower case": b"hd\r\n",
    "number": b"12\r\n",
    "value without a size": b"VA\x20\r\n",
    "value of no size": b"VA x\r\n",
    "negative size": b"VA -1\r\n",
    "size beyond any item": b"VA 99999999999\r\n",
    "size beyond any number": b"VA 9999999999999999999\r\n",
    "value without its end": b"VA 2\r\nabcd",
    "value that ends in LF": b"VA 2\r\nab\n\n",
    "something within stats": b"STAT pid 1\r\nHD\r\n",
    "value within stats": b"STAT pid 1\r\nVA 1\r\na\r\n",
    "endless line": b"HD " + b"x" * 5000,
    "endless word": b"X" * 40,
    "binary": bytes(range(128, 192)),
    "classic value": b"VALUE a 0 3\r\nabc\r\nEND\r\n",
}


def scan(pieces: Iterable[bytes]) -> list[bytes]:
    scanner = Scanner()
    return [frame for piece in pieces for frame in scanner.feed(piece)]


def bytewise(data: bytes) -> Iterable[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_frame_is_found_however_it_comes(frame: bytes) -> None:
    assert scan([frame]) == [frame]
    if len(frame) < 1000:
        assert scan(bytewise(frame)) == [frame]
    assert scan([frame + b"VA 3\r\nab"]) == [frame]
    assert scan([frame * 3]) == [frame] * 3
    for at in range(1, min(len(frame), 60)):
        assert scan([frame[:at], frame[at:]]) == [frame]
        assert scan([frame[:at]]) == scan([frame[:-at]]) == []


def test_all_frames_after_each_other() -> None:
    together = b"".join(FRAMES.values())
    assert scan([together]) == [*FRAMES.values()]
    for size in (7, 1000):
        pieces = (together[at : at + size] for at in range(0, len(together), size))
        assert scan(pieces) == [*FRAMES.values()]


@pytest.mark.parametrize("garbage", NOT_FRAMES.values(), ids=NOT_FRAMES)
def test_what_is_not_memcacheds_is_refused_however_it_comes(garbage: bytes) -> None:
    for pieces in ([garbage], bytewise(garbage), [b"HD\r\n" + garbage], [garbage + b"HD\r\n"]):
        with pytest.raises(ProtocolError):
            scan(pieces)


def test_a_text_key_goes_as_it_is() -> None:
    for key in (b"a", b"x" * 250, "schlüssel".encode(), b"\xff\x80", b"{tag}:1"):
        assert encode_key(key) == (key, False)


def test_any_other_key_goes_as_base64() -> None:
    for byte in (*range(33), 127):
        for key in (bytes([byte]), b"ab" + bytes([byte]), bytes([byte]) * 186):
            assert encode_key(key) == (base64.b64encode(key), True)
    every = bytes(range(186))
    for size in range(1, 187):
        assert encode_key(every[:size]) == (base64.b64encode(every[:size]), True)


def test_a_key_that_memcached_cannot_have() -> None:
    for key in (b"", b"x" * 251, b" " * 187, b"x" * 249 + b" ", b"\0" + b"x" * 186):
        assert encode_key(key) is None
