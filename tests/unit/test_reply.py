"""core/reply: the frames, byte for byte. tests/integration/test_handlers_like_redis.py asks Redis itself."""

import pytest

from shardproxy.core import reply

CASES = [
    (reply.simple("OK"), b"+OK\r\n"),
    (reply.simple("a\r\nb"), b"+a  b\r\n"),
    (reply.error("ERR no"), b"-ERR no\r\n"),
    (reply.error("ERR a\r\nb\n\n"), b"-ERR a  b\r\n"),
    (reply.error(b"ERR \xff"), b"-ERR \xff\r\n"),
    (reply.error("ERR \udcff"), b"-ERR \xff\r\n"),
    (reply.integer(-3), b":-3\r\n"),
    (reply.bulk("é"), b"$2\r\n\xc3\xa9\r\n"),
    (reply.bulk(b""), b"$0\r\n\r\n"),
    (reply.bulk(None), b"$-1\r\n"),
    (reply.bulk(None, 3), b"_\r\n"),
    (reply.null(), b"$-1\r\n"),
    (reply.null(3), b"_\r\n"),
    (reply.null_array(), b"*-1\r\n"),
    (reply.null_array(3), b"_\r\n"),
    (reply.array([]), b"*0\r\n"),
    (reply.array([b":1\r\n", b":2\r\n"], 3), b"*2\r\n:1\r\n:2\r\n"),
    (reply.bulks(["a", None], 3), b"*2\r\n$1\r\na\r\n_\r\n"),
    (reply.simples(["a", "b"]), b"*2\r\n+a\r\n+b\r\n"),
    (reply.mapping([(b"+a\r\n", b":1\r\n")]), b"*2\r\n+a\r\n:1\r\n"),
    (reply.mapping([(b"+a\r\n", b":1\r\n")], 3), b"%1\r\n+a\r\n:1\r\n"),
    (reply.mapping([], 3), b"%0\r\n"),
    (reply.set_([b"+a\r\n"]), b"*1\r\n+a\r\n"),
    (reply.set_([b"+a\r\n"], 3), b"~1\r\n+a\r\n"),
    (reply.push([b"+a\r\n"]), b"*1\r\n+a\r\n"),
    (reply.push([b"+a\r\n"], 3), b">1\r\n+a\r\n"),
    (reply.double(0.5), b"$3\r\n0.5\r\n"),
    (reply.double(0.5, 3), b",0.5\r\n"),
    (reply.double(3.0, 3), b",3\r\n"),
    (reply.double(0.1, 3), b",0.10000000000000001\r\n"),
    (reply.double(float("inf")), b"$3\r\ninf\r\n"),
    (reply.double(float("-inf"), 3), b",-inf\r\n"),
    (reply.double(float("nan"), 3), b",nan\r\n"),
    (reply.boolean(True), b":1\r\n"),
    (reply.boolean(False, 3), b"#f\r\n"),
    (reply.verbatim("a\nb"), b"$3\r\na\nb\r\n"),
    (reply.verbatim("a\nb", 3), b"=7\r\ntxt:a\nb\r\n"),
    (reply.big_number(1 << 70), b"$22\r\n1180591620717411303424\r\n"),
    (reply.big_number(1 << 70, 3), b"(1180591620717411303424\r\n"),
]


@pytest.mark.parametrize(("made", "expected"), CASES, ids=[repr(expected) for _, expected in CASES])
def test_frame(made: bytes, expected: bytes) -> None:
    assert made == expected
