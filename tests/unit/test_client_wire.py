"""client/wire: a command's bytes, and what becomes of replies, as with redis-py."""

from typing import Any

import pytest
from redis.exceptions import DataError, NoScriptError, ResponseError
from servers import pack as plain

from shardproxy.client.wire import NOTHING, Coding, Push, pack


@pytest.mark.parametrize(
    ("args", "sent"),
    [
        (("GET", "x"), (b"GET", b"x")),
        ((b"GET", b"\0\xff"), (b"GET", b"\0\xff")),
        (("CONFIG GET", "max*"), (b"CONFIG", b"GET", b"max*")),
        ((b"CONFIG GET", "max*"), (b"CONFIG", b"GET", b"max*")),
        (["SET", "ü", 1, 2.5], (b"SET", "ü".encode(), b"1", b"2.5")),
        (("SET", memoryview(b"k"), bytearray(b"v")), (b"SET", b"k", b"v")),
        (("SET", "k", ""), (b"SET", b"k", b"")),
    ],
)
def test_packed_as_redis_py_does(args: Any, sent: tuple[bytes, ...]) -> None:
    assert pack(args) == Coding().packer()(args) == plain(*sent)


@pytest.mark.parametrize("value", [None, True, [], {}, object()])
def test_what_is_no_argument(value: Any) -> None:
    with pytest.raises(DataError):
        pack(("SET", "k", value))


def test_another_encoding() -> None:
    coding = Coding("latin-1", "strict", True)
    assert coding.packer()(("SET", "ü", "é")) == plain(b"SET", b"\xfc", b"\xe9")
    reader = coding.reader()
    reader.feed(b"$1\r\n\xfc\r\n")
    assert reader.gets() == "ü"


def test_replies() -> None:
    reader = Coding().reader()
    assert reader.gets() is NOTHING
    reader.feed(b"$3\r\nab")
    assert reader.gets() is NOTHING
    reader.feed(b"c\r\n-NOSCRIPT No matching script\r\n-WRONGTYPE no\r\n>2\r\n+a\r\n+b\r\n:7\r\n")
    assert reader.gets() == b"abc"
    assert isinstance(reader.gets(), NoScriptError)
    assert isinstance(reader.gets(), ResponseError)
    assert isinstance(reader.gets(), Push)
    assert reader.gets() == 7
