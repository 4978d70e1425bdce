"""Bytes and what is in them: the tables that tests of the codec share, with and without a live Redis."""

# --- replies: the frames that Scanner cuts ---

FRAMES = {
    "simple": b"+OK\r\n",
    "empty simple": b"+\r\n",
    "simple with CRs": b"+\r\ra\r\r\n",
    "error": b"-ERR no such thing\r\n",
    "integer": b":-42\r\n",
    "bulk": b"$5\r\nhello\r\n",
    "empty bulk": b"$0\r\n\r\n",
    "bulk of line ends": b"$6\r\n\r\n\r\n$1\r\n",
    "null bulk": b"$-1\r\n",
    "null array": b"*-1\r\n",
    "empty array": b"*0\r\n",
    "array": b"*3\r\n:1\r\n$1\r\na\r\n$-1\r\n",
    "nested": b"*2\r\n*2\r\n+a\r\n*0\r\n*1\r\n*1\r\n:1\r\n",
    "null": b"_\r\n",
    "true": b"#t\r\n",
    "double": b",inf\r\n",
    "big number": b"(3492890328409238509324850943850943825024385\r\n",
    "bulk error": b"!5\r\nERR x\r\n",
    "verbatim": b"=8\r\ntxt:some\r\n",
    "map": b"%2\r\n+a\r\n:1\r\n+b\r\n*2\r\n:1\r\n:2\r\n",
    "set": b"~2\r\n+a\r\n+b\r\n",
    "push": b">3\r\n+message\r\n+channel\r\n$2\r\nhi\r\n",
    "attribute and what it describes": b"|1\r\n+ttl\r\n:3600\r\n$1\r\nv\r\n",
    "attribute within an array": b"*2\r\n|1\r\n+a\r\n+b\r\n:1\r\n:2\r\n",
    "attribute of an aggregate": b"|2\r\n+a\r\n:1\r\n+b\r\n%0\r\n*1\r\n_\r\n",
    "deep": b"*1\r\n" * 10_000 + b"+x\r\n",
    "large bulk": b"$100000\r\n" + b"x" * 100_000 + b"\r\n",
    "long line": b"+" + b"x" * 70_000 + b"\r\n",
    "18 digits": b":999999999999999999\r\n",
}

NOT_FRAMES = {
    "unknown type": b"X\r\n",
    "blank line": b"\r\n\r\n",
    "line that ends in LF": b"+OK\n",
    "empty line that ends in LF": b":\n",
    "CR before, not at the end": b"-a\rb\n",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n",
    "binary": bytes(range(128, 192)),
    "length that is no number": b"$abc\r\n",
    "no length": b"$\r\n",
    "length with a sign": b"$+5\r\nhello\r\n",
    "length below -1": b"$-2\r\n",
    "count below -1": b"*-2\r\n",
    "count with spaces": b"* 1\r\n",
    "length without CR": b"$5\nhello\r\n",
    "header that never ends": b"$" + b"1" * 40,
    "bulk without CRLF": b"$5\r\nhelloXX",
    "bulk that ends in LF": b"$5\r\nhello\n",
    "bulk that ends in CR CR": b"$5\r\nhello\r\r",
    "count beyond any memory": b"*1099511627777\r\n",
    "counts that add up beyond any memory": b"%1099511627776\r\n",
    "length beyond any memory": b"$1099511627777\r\n",
    "19 digits": b"*1000000000000000000\r\n",
    "streamed aggregate": b"*?\r\n",
    "streamed string": b"$?\r\n;0\r\n",
}

# --- requests: the commands that RequestParser cuts ---

PING = b"*1\r\n$4\r\nPING\r\n"

COMMANDS: dict[str, tuple[bytes, list[list[bytes]]]] = {
    "one argument": (PING, [[b"PING"]]),
    "several": (b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2\r\nvv\r\n", [[b"SET", b"k", b"vv"]]),
    "pipelined": (PING * 3, [[b"PING"]] * 3),
    "empty argument": (b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n", [[b"ECHO", b""]]),
    "empty name": (b"*1\r\n$0\r\n\r\n", [[b""]]),
    "binary": (b"*2\r\n$4\r\nECHO\r\n$6\r\n\x00\r\n$1\r\r\n", [[b"ECHO", b"\x00\r\n$1\r"]]),
    "no arguments": (b"*0\r\n" + PING, [[b"PING"]]),
    "fewer than none": (b"*-1\r\n*-10\r\n" + PING, [[b"PING"]]),
    "2000 arguments": (b"*2000\r\n" + b"$1\r\na\r\n" * 2000, [[b"a"] * 2000]),
    "large argument": (b"*1\r\n$90000\r\n" + b"x" * 90_000 + b"\r\n", [[b"x" * 90_000]]),
    "inline": (b"SET k v\r\n", [[b"SET", b"k", b"v"]]),
    "inline, LF alone": (b"PING\n", [[b"PING"]]),
    "inline, blanks": (b"  \t SET  k\t\tv  \r\n", [[b"SET", b"k", b"v"]]),
    "inline between": (PING + b"PING\r\n" + PING, [[b"PING"]] * 3),
    "blank lines": (b"\r\n\n \r\n" + PING, [[b"PING"]]),
    "double quotes": (b'ECHO "a b\\"\\\\\\q"\r\n', [[b"ECHO", b'a b"\\q']]),
    "escapes": (b'ECHO "\\x00\\n\\r\\t\\b\\a\\xfF\\x4g"\r\n', [[b"ECHO", b"\x00\n\r\t\b\a\xffx4g"]]),
    "single quotes": (b"ECHO 'a \"b\\' \\n'\r\n", [[b"ECHO", b"a \"b' \\n"]]),
    "quotes in a word": (b"ECHO a\"b c\"\r\n", [[b"ECHO", b"ab c"]]),
    "empty quotes": (b"ECHO \"\" ''\r\n", [[b"ECHO", b"", b""]]),
    "a backslash outside quotes": (b"ECHO a\\nb\\\r\n", [[b"ECHO", b"a\\nb\\"]]),
    "vertical tab in a word": (b"ECHO a\vb\fc\r\n", [[b"ECHO", b"a\vb\fc"]]),
    "quotes before CR": (b"ECHO 'a'\r\n", [[b"ECHO", b"a"]]),
    "a header read as a line": (b"$4\r\nPING\r\n", [[b"$4"], [b"PING"]]),
}  # fmt: skip

MULTIBULK, BULK = "Protocol error: invalid multibulk length", "Protocol error: invalid bulk length"
QUOTES, LONG = "Protocol error: unbalanced quotes in request", "Protocol error: too big inline request"

# Errors and texts are Redis's: tests/fuzz/test_requests_like_redis.py asks a live one the same
ERRORS: dict[str, tuple[bytes, str]] = {
    "no count": (b"*\r\n", MULTIBULK),
    "count that is no number": (b"*abc\r\n", MULTIBULK),
    "count with a plus": (b"*+1\r\n" + PING[4:], MULTIBULK),
    "count with a zero before": (b"*01\r\n" + PING[4:], MULTIBULK),
    "count of minus zero": (b"*-0\r\n", MULTIBULK),
    "count with blanks": (b"* 1\r\n" + PING[4:], MULTIBULK),
    "count without CR": (b"*1\n" + PING[4:], MULTIBULK),
    "count beyond int": (b"*2147483648\r\n", MULTIBULK),
    "count of 20 digits": (b"*99999999999999999999\r\n", MULTIBULK),
    "no dollar": (b"*1\r\nPING\r\n", "Protocol error: expected '$', got 'P'"),
    "an array within": (b"*1\r\n*1\r\n", "Protocol error: expected '$', got '*'"),
    "a line end": (b"*1\r\n\r\n", "Protocol error: expected '$', got ' '"),
    "no length": (b"*1\r\n$\r\n", BULK),
    "length that is no number": (b"*1\r\n$abc\r\n", BULK),
    "length with a plus": (b"*1\r\n$+4\r\nPING\r\n", BULK),
    "length with a zero before": (b"*1\r\n$04\r\nPING\r\n", BULK),
    "length of minus zero": (b"*1\r\n$-0\r\n\r\n", BULK),
    "length below none": (b"*1\r\n$-1\r\n", BULK),
    "length without CR": (b"*1\r\n$4\nPING\r\n", BULK),
    "length beyond 512 MB": (b"*1\r\n$536870913\r\n", BULK),
    "length of 20 digits": (b"*1\r\n$99999999999999999999\r\n", BULK),
    "second argument": (b"*2\r\n$4\r\nECHO\r\n:1\r\n", "Protocol error: expected '$', got ':'"),
    "open double quotes": (b'ECHO "a\r\n', QUOTES),
    "open single quotes": (b"ECHO 'a\r\n", QUOTES),
    "open after a backslash": (b'ECHO "a\\"\r\n', QUOTES),
    "quotes and a word": (b"ECHO 'a'b\r\n", QUOTES),
    "line without an end": (b"x" * 65_537, LONG),
}

# What Redis does not mind, minds later or says otherwise: it has no shared upstream behind it
STRICTER: dict[str, tuple[bytes, str]] = {
    "more arguments than max_arguments": (b"*1048577\r\n", MULTIBULK),
    "bulk without CRLF": (b"*1\r\n$4\r\nPINGXX", "Protocol error: a bulk string does not end with CRLF"),
    "bulk that ends in LF": (b"*1\r\n$4\r\nPING\n\n", "Protocol error: a bulk string does not end with CRLF"),
    "count without an end": (b"*" + b"1" * 40, "Protocol error: too big mbulk count string"),
    "length without an end": (b"*1\r\n$" + b"1" * 40, "Protocol error: too big bulk count string"),
    "no dollar but a NUL": (b"*1\r\n\x00", "Protocol error: expected '$', got '?'"),
    "no dollar but a high byte": (b"*1\r\n\xff", "Protocol error: expected '$', got '\ufffd'"),
    "long line with its end": (b"ECHO " + b"y" * 65_536 + b"\r\n", LONG),
}
