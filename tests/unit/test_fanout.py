"""What becomes of several shards' replies: one table of merges."""

from typing import Any

import pytest

from shardproxy.core.fanout import merge

NAMES = ["a", "b", "c"]
DOWN = b"-SHARDDOWN shard 'b' at 127.0.0.1:1: connection refused\r\n"
SPLIT = "SHARDDOWN shard 'b' at 127.0.0.1:1: connection refused [failed on: b; done on: a]"
UNFIT = b"-ERR a node's reply does not fit the command [failed on: a; done on: b]\r\n"


def ok(shard: int, reply: bytes) -> tuple[int, bytes, bool]:
    return shard, reply, True


def failed(shard: int, line: bytes = DOWN) -> tuple[int, bytes, bool]:
    return shard, line, False


# name: (how, owner of each key, replies, more arguments of merge, the client's reply)
CASES: dict[str, tuple[str, list[int], list[tuple[int, bytes, bool]], dict[str, Any], bytes]] = {
    "MGET in the order of the keys": (
        "array", [0, 1, 0, 1, 1],
        [ok(0, b"*2\r\n$1\r\nA\r\n$-1\r\n"), ok(2, b"*3\r\n$1\r\nB\r\n:7\r\n$2\r\nBB\r\n")],
        {}, b"*5\r\n$1\r\nA\r\n$1\r\nB\r\n$-1\r\n:7\r\n$2\r\nBB\r\n",
    ),
    "values that look like frames": (
        "array", [1, 0], [ok(0, b"*1\r\n$4\r\n*9\r\n\r\n"), ok(1, b"*1\r\n$5\r\n$1\r\na\r\n")],
        {}, b"*2\r\n$5\r\n$1\r\na\r\n$4\r\n*9\r\n\r\n",
    ),
    "nested frames and nulls of RESP3": (
        "array", [0, 1, 0], [ok(0, b"*2\r\n_\r\n%1\r\n+a\r\n*2\r\n:1\r\n:2\r\n"), ok(1, b"*1\r\n~0\r\n")],
        {"proto": 3}, b"*3\r\n_\r\n~0\r\n%1\r\n+a\r\n*2\r\n:1\r\n:2\r\n",
    ),
    "an attribute stays with its value": (
        "array", [1, 0], [ok(0, b"*1\r\n|1\r\n+k\r\n:1\r\n$1\r\nv\r\n"), ok(1, b"*1\r\n$1\r\nw\r\n")],
        {"proto": 3}, b"*2\r\n$1\r\nw\r\n|1\r\n+k\r\n:1\r\n$1\r\nv\r\n",
    ),
    "MGET with a part lost": (
        "array", [0, 1], [ok(0, b"*1\r\n$1\r\nA\r\n"), failed(1)], {}, b"-" + SPLIT.encode() + b"\r\n",
    ),
    "MGET with a part lost, nil": (
        "array", [0, 1, 1, 0], [ok(0, b"*2\r\n$1\r\nA\r\n:1\r\n"), failed(1)],
        {"nil": True}, b"*4\r\n$1\r\nA\r\n$-1\r\n$-1\r\n:1\r\n",
    ),
    "MGET with a part lost, nil, RESP3": (
        "array", [1, 0], [ok(0, b"*1\r\n$1\r\nA\r\n"), failed(1)],
        {"nil": True, "proto": 3}, b"*2\r\n_\r\n$1\r\nA\r\n",
    ),
    "MGET with all lost, nil": (
        "array", [0, 1], [failed(0), failed(1)], {"nil": True}, b"*2\r\n$-1\r\n$-1\r\n",
    ),
    "MGET, a node says no": (
        "array", [0, 1], [ok(0, b"*1\r\n$1\r\nA\r\n"), ok(2, b"-LOADING not yet\r\n")],
        {}, b"-LOADING not yet [failed on: c; done on: a]\r\n",
    ),
    "MGET, too few values": (
        "array", [0, 0, 1], [ok(0, b"*1\r\n$1\r\nA\r\n"), ok(1, b"*1\r\n$1\r\nB\r\n")],
        {}, UNFIT,
    ),
    "MGET, another type": (
        "array", [0, 1], [ok(0, b"$2\r\n*1\r\n"), ok(1, b"*1\r\n$1\r\nB\r\n")],
        {}, UNFIT,
    ),
    "DEL": ("sum", [], [ok(0, b":2\r\n"), ok(1, b":0\r\n"), ok(2, b":40\r\n")], {}, b":42\r\n"),
    "DEL with a part lost": ("sum", [], [ok(0, b":2\r\n"), failed(1)], {}, b"-" + SPLIT.encode() + b"\r\n"),
    "DEL with a part lost, nil": ("sum", [], [ok(0, b":2\r\n"), failed(1)], {"nil": True}, b":2\r\n"),
    "DEL with all lost, nil": (
        "sum", [], [failed(0), failed(1)], {"nil": True},
        b"-SHARDDOWN shard 'b' at 127.0.0.1:1: connection refused [failed on: a, b]\r\n",
    ),
    "DEL, no number": (
        "sum", [], [ok(0, b":x\r\n"), ok(1, b":1\r\n")], {}, UNFIT,
    ),
    "DEL, a line that ends in LF": (
        "sum", [], [ok(0, b":12\n"), ok(1, b":1\r\n")], {}, UNFIT,
    ),
    "DEL, below none": (
        "sum", [], [ok(0, b":-1\r\n"), ok(1, b":1\r\n")], {}, UNFIT,
    ),
    "MSET": ("ok", [], [ok(0, b"+OK\r\n"), ok(2, b"+OK\r\n")], {}, b"+OK\r\n"),
    "MSET with a part lost": ("ok", [], [ok(0, b"+OK\r\n"), failed(1)], {}, b"-" + SPLIT.encode() + b"\r\n"),
    "MSET with a part lost is an error even with nil": (
        "ok", [], [ok(0, b"+OK\r\n"), failed(1)], {"nil": True}, b"-" + SPLIT.encode() + b"\r\n",
    ),
    "MSET, a node is full": (
        "ok", [], [ok(0, b"-OOM command not allowed\r\n"), ok(1, b"+OK\r\n"), ok(2, b"-OOM other\r\n")],
        {}, b"-OOM command not allowed [failed on: a, c; done on: b]\r\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("how", "owner", "replies", "more", "expected"), CASES.values(), ids=CASES)
def test_merge(
    how: str, owner: list[int], replies: list[tuple[int, bytes, bool]], more: dict[str, Any], expected: bytes
) -> None:
    assert merge(how, owner, replies, NAMES, **more) == expected
