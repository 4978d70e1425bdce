"""The command table against a real Redis 7.0: facts, keys, and what we say is malformed.

The server is the oracle. Facts: its COMMAND. Keys: COMMAND GETKEYSANDFLAGS for generated arguments, and,
where that itself guesses (options that look like keywords), the command's effect when it runs.
"""

import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hiredis
import pytest

from shardproxy.core.command_rows import Row
from shardproxy.core.commands import CommandTable, builtin, learn

TABLE = builtin()
ROWS = [row for row in TABLE.records if not row.name.startswith(("proxy", "session."))]
OF_REDIS_7_0 = [row for row in ROWS if row.since != "7.2.0"]
KEYED = [row for row in OF_REDIS_7_0 if row.has_keys]


class Server:
    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [
                "redis-server",
                "--port",
                "0",
                "--unixsocket",
                str(path / "s"),
                "--save",
                "",
                "--dir",
                str(path),
            ],
            stdout=subprocess.DEVNULL,
        )
        self._socket = socket.socket(socket.AF_UNIX)
        self._reader = hiredis.Reader()
        for _ in range(500):
            try:
                self._socket.connect(str(path / "s"))
                break
            except OSError:
                time.sleep(0.02)

    def run(self, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        """Replies to a pipeline, error replies as hiredis.ReplyError."""
        replies: list[Any] = []
        for start in range(0, len(commands), 500):
            chunk = commands[start : start + 500]
            packed = [hiredis.pack_command(tuple(c)) for c in chunk]  # type: ignore[arg-type]  # its stub: 1-tuples
            self._socket.sendall(b"".join(packed))
            wanted = len(replies) + len(chunk)
            while len(replies) < wanted:
                reply = self._reader.gets()
                if reply is False:
                    data = self._socket.recv(1 << 20)
                    assert data, "the server closed the connection"
                    self._reader.feed(data)
                else:
                    replies.append(reply)
        return replies

    def one(self, *args: bytes) -> Any:
        return self.run([args])[0]

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if shutil.which("redis-server") is None:
        pytest.fail("redis-server is missing: apt-get install redis-server")
    server = Server(tmp_path_factory.mktemp("redis"))
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def entries(server: Server) -> dict[str, list[Any]]:
    """COMMAND's entries by name, subcommands too."""
    version = dict(
        line.split(b":", 1) for line in server.one(b"INFO", b"server").splitlines() if b":" in line
    )
    if not version[b"redis_version"].startswith(b"7.0."):
        pytest.skip(f"the table's facts are Redis 7.0's; this server is {version[b'redis_version'].decode()}")
    tops = server.one(b"COMMAND")
    return {entry[0].decode(): entry for top in tops for entry in (top, *top[9])}


def plain(value: Any) -> Any:
    """Nested reply as str and int; a key spec's notes, which we do not keep, left out."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        if value[:1] == [b"notes"]:
            value = value[2:]
        return [plain(item) for item in value]
    return value


def test_the_same_commands(entries: dict[str, list[Any]]) -> None:
    assert {row.name for row in OF_REDIS_7_0} == set(entries)


def test_every_fact(entries: dict[str, list[Any]]) -> None:
    different = []
    for row in OF_REDIS_7_0:
        ours, theirs = row.info(), plain(entries[row.name])
        if ours[:9] != theirs[:9]:
            different.append((ours[:9], theirs[:9]))
        new = {"client|setinfo", "client|no-touch", "waitaof"}
        assert {sub[0] for sub in ours[9]} - new == {sub[0] for sub in theirs[9]}
    assert different == []


def test_group_and_since(server: Server, entries: dict[str, list[Any]]) -> None:
    docs = pairs(server.one(b"COMMAND", b"DOCS"))
    for row in OF_REDIS_7_0:
        doc = pairs(docs[row.name.partition("|")[0]])
        if "|" in row.name:
            doc = pairs(pairs(doc["subcommands"])[row.name])
        assert (row.group, row.since) == (doc["group"].decode(), doc["since"].decode()), row.name


def pairs(flat: list[Any]) -> dict[str, Any]:
    return {key.decode(): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


# --- keys ---

WORDS = [
    b"a",
    b"b",
    b"c",
    b"key",
    b"",
    b"0",
    b"1",
    b"2",
    b"3",
    b"01",
    b"-1",
    b"99999999999",
    b"x\0y",
    b"\xff",
]


def random_args(row: Row, rng: random.Random) -> list[bytes]:
    """A list of arguments around the arity; numbers where the number of keys stands, mostly right ones."""
    size = abs(row.arity)
    size += rng.choice([0, 0, 1, 2, 3, 5]) if row.arity < 0 else 0
    if rng.random() < 0.05:
        size = max(1, size + rng.choice([-1, 1]))
    args = [*row.name.encode().split(b"|")]
    args += [rng.choice(WORDS) for _ in range(size - len(args))]
    for spec in row.key_specs:
        at = spec.index + spec.count
        if spec.find == "keynum" and at < len(args) and rng.random() < 0.8:
            args[at] = b"%d" % rng.randint(1, max(1, len(args) - at - 1))
    args[0] = bytes(rng.choice((c, c ^ 0x20)) if chr(c).isalpha() else c for c in args[0])
    return args


def walked_args(row: Row, rng: random.Random) -> list[bytes]:
    """Valid arguments for the commands whose options are walked."""

    def some(*options: list[bytes], most: int = 3) -> list[bytes]:
        chosen = [rng.choice(options) for _ in range(rng.randint(0, most))]
        return [rng.choice((word, word.upper())) if word.isalpha() else word for o in chosen for word in o]

    name = row.name.encode()
    keys = [b"k%d" % i for i in range(rng.randint(1, 4))]
    if name in (b"sort", b"sort_ro"):
        store: list[list[bytes]] = [[b"store", b"d%d" % rng.randint(0, 3)]] if name == b"sort" else []
        return [
            name,
            b"k",
            *some([b"by", b"nosort"], [b"limit", b"0", b"1"], [b"get", b"#"], [b"alpha"], *store),
        ]
    if name == b"xread":
        return [name, *some([b"count", b"1"], [b"block", b"1"]), b"Streams", *keys, *[b"0"] * len(keys)]
    if name == b"xreadgroup":
        options = some([b"count", b"1"], [b"noack"], [b"block", b"1"])
        return [name, b"GROUP", b"g", b"c", *options, b"STREAMS", *keys, *[b">"] * len(keys)]
    if name == b"migrate":
        options = some([b"copy"], [b"replace"], [b"auth", b"keys"], [b"auth2", b"keys", b"auth"])
        if rng.random() < 0.5:
            return [name, b"h", b"1", b"k", b"0", b"1", *options]
        return [name, b"h", b"1", b"", b"0", b"1", *options, b"KEYS", *keys]
    head = [name, b"k", *([b"1", b"2"] if name == b"georadius" else [b"member"]), b"3", b"m"]
    options = some([b"count", b"1"], [b"asc"], [b"withdist"])
    target = rng.choice([[], [b"store", b"d"], [b"STOREDIST", b"d"], [b"store", b"d", b"storedist", b"e"]])
    return [*head, *options, *target]


def generated(rows: Sequence[Row], rng: random.Random, count: int) -> list[list[bytes]]:
    return [
        walked_args(row, rng) if row.walk else random_args(row, rng) for row in rows for _ in range(count)
    ]


def getkeys_is_wrong(args: Sequence[bytes]) -> bool:
    """Where COMMAND GETKEYS says something else than the command itself when it runs, as we do."""
    row = TABLE.row(*args[:2])
    assert row is not None
    if row.name in ("mset", "msetnx"):
        return len(args) % 2 == 0  # a last key without a value: counted, yet an error when run
    if row.name == "pfmerge":
        return len(args) == 2  # no sources: "invalid", yet it runs
    counts = [spec.index + spec.count for spec in row.key_specs if spec.find == "keynum"]
    return any(at < len(args) and args[at] == b"01" for at in counts)  # counted, yet an error when run


def test_keys_agree_with_getkeys(server: Server) -> None:
    lists = [args for args in generated(KEYED, random.Random(7), 60) if not getkeys_is_wrong(args)]
    lists += [[name] for name in (b"nosuch", b"ping", b"config", b"", b"config|get", b"get\0")]
    theirs = server.run(
        [[b"COMMAND", b"GETKEYSANDFLAGS", *args, *[b"a"] * (2 - len(args))] for args in lists]
    )
    different = []
    agreed = 0
    for args, reply in zip(lists, theirs, strict=True):
        args = [*args, *[b"a"] * (2 - len(args))]
        ours: Any
        try:
            found = TABLE.keys_and_flags_of(args)
            # The order of keys differs only for two STOREs; it means nothing
            ours = sorted((args[position], sorted(flags)) for position, flags in found)
            agreed += bool(found)
        except ValueError as error:
            ours = "ERR " + str(error)
        if isinstance(reply, Exception):
            expected: Any = str(reply)
        else:
            expected = sorted((key, sorted(flag.decode() for flag in flags)) for key, flags in reply)
        if ours != expected:
            different.append((args, ours, expected))
    assert different == []
    assert agreed > len(lists) / 2  # most of what was generated is valid, or little was tested


def test_every_keyed_command_was_generated_with_keys() -> None:
    rng = random.Random(7)
    for row in KEYED:
        lists = [walked_args(row, rng) if row.walk else random_args(row, rng) for _ in range(60)]
        assert any(count_keys(args) for args in lists), row.name


def count_keys(args: Sequence[bytes]) -> int:
    try:
        return len(TABLE.keys_of(args))
    except ValueError:
        return 0


def test_what_is_called_malformed_is_refused_and_touches_nothing(server: Server) -> None:
    """The engine sends it to any node for the error text: so the node must answer one, and change nothing."""
    rng = random.Random(11)
    routed = [row for row in KEYED if row.kind in ("forward", "fanout")]
    lists = generated(routed, rng, 60)
    names = [row.name.encode().split(b"|") for row in routed if row.movable or row.key_range[2] > 1]
    words = [*WORDS, b"streams", b"store", b"count", b"block", b"group", b"noack", b"keys", b"left", b"min"]
    lists += [
        [*name, *(rng.choice(words) for _ in range(rng.randint(2, 9)))] for name in names for _ in range(150)
    ]
    malformed = [args for args in lists if verdict(args) == -1]
    assert len(malformed) > 1000
    assert server.one(b"FLUSHALL") == b"OK"
    replies = server.run(malformed)
    accepted = [(args, r) for args, r in zip(malformed, replies, strict=True) if not isinstance(r, Exception)]
    assert accepted == []
    assert server.one(b"DBSIZE") == 0


def verdict(args: Sequence[bytes]) -> int:
    try:
        return TABLE.check(args)
    except ValueError:
        return 0  # arity: the engine answers that itself


def test_stores_go_only_to_keys_that_were_found(server: Server) -> None:
    """GETKEYS guesses where options may be values; what a command writes does not."""
    rng = random.Random(13)
    options = [
        b"store",
        b"storedist",
        b"count",
        b"asc",
        b"1",
        b"any",
        b"withdist",
        b"get",
        b"#",
        b"by",
        b"limit",
        b"alpha",
    ]
    stored = 0
    for _ in range(3000):
        tail = [rng.choice(options) for _ in range(rng.randint(2, 6))]
        head = rng.choice(
            [
                [b"SORT", b"nums"],
                [b"GEORADIUS", b"geo", b"0", b"0", b"9", b"km"],
                [b"GEORADIUSBYMEMBER", b"geo", b"m", b"9", b"km"],
            ]
        )
        args = [*head, *tail]
        setup = [[b"FLUSHALL"], [b"RPUSH", b"nums", b"1", b"2"], [b"GEOADD", b"geo", b"0", b"0", b"m"]]
        *_, reply, keys = server.run([*setup, args, [b"KEYS", b"*"]])
        if not isinstance(reply, Exception):
            new = set(keys) - {b"nums", b"geo"}
            stored += bool(new)
            assert new <= {args[position] for position in TABLE.keys_of(args)}, args
    assert stored > 50


def test_streams_that_are_read_are_keys_that_were_found(server: Server) -> None:
    rng = random.Random(17)
    options = [[b"COUNT", b"1"], [b"GROUP", b"streams", b"streams"], [b"NOACK"], [b"GROUP", b"g", b"count"]]
    keys = [b"streams", b"a", b"count", b"group"]
    read = 0
    for _ in range(1500):
        chosen = rng.sample(options, rng.randint(0, 3))
        names = rng.sample(keys, rng.randint(1, 3))
        group = any(option[0] == b"GROUP" for option in chosen)
        ids = [b">" if group else b"0"] * len(names)
        head = b"XREADGROUP" if group else b"XREAD"
        args = [head, *(word for option in chosen for word in option), b"STREAMS", *names, *ids]
        setup: list[list[bytes]] = [[b"FLUSHALL"]]
        for key in keys:
            setup += [[b"XADD", key, b"*", b"f", b"v"]]
            setup += [[b"XGROUP", b"CREATE", key, name, b"0"] for name in (b"streams", b"g")]
        reply = server.run([*setup, args])[-1]
        if not isinstance(reply, Exception):
            read += 1
            assert [stream for stream, _ in reply] == [args[at] for at in TABLE.keys_of(args)], args
    assert read > 500


# --- learning ---


def test_a_real_reply_adds_nothing(server: Server, entries: dict[str, list[Any]]) -> None:
    assert learn(TABLE, [server.one(b"COMMAND")]) is TABLE


def test_learning_all_of_it_anew_agrees_with_the_built_in_decisions(server: Server) -> None:
    """Had we no rows at all, learning would forward only what our own table forwards or splits too."""
    learned = learn(CommandTable([]), [server.one(b"COMMAND")])
    ours = {row.name: row for row in TABLE.records}
    forwarded = [row for row in learned.records if row.kind == "forward"]
    assert len(forwarded) > 140
    for row in forwarded:
        own = ours[row.name]
        # These two have keys and no unsafe flag; what they do to other databases is known to us only
        assert own.kind in ("forward", "fanout") or own.name in ("move", "restore-asking")
        assert own.key_specs == row.key_specs
    scripts = {"eval", "eval_ro", "evalsha", "evalsha_ro", "fcall", "fcall_ro"}
    missed = {row.name for row in ours.values() if row.kind in ("forward", "fanout")} - {
        row.name for row in forwarded
    }
    missed -= {row.name for row in ours.values() if row.channel}
    blocking = {row.name for row in ours.values() if "blocking" in row.flags and row.has_keys}
    assert missed == scripts | blocking | {"sort", "sort_ro"}
