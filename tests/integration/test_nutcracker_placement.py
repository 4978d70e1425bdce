"""ketama and modula place every key where Debian's `nutcracker` (twemproxy) does, and libmemcached.

The nodes are neither Redis nor memcached: each answers every GET with its own number, so that it tells where
its key went. twemproxy listens on a unix socket; nodes on loopback addresses, or unix sockets.
"""

import asyncio
import contextlib
import itertools
import json
import random
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import hiredis
import pylibmc
import pytest
from servers import free_port

from shardproxy.core.hashing import KEY_HASHES
from shardproxy.core.ring import Ring, twemproxy_name

KEYS = 2000


class Server(NamedTuple):
    alias: str | None
    host: str
    port: int | None
    weight: int

    @property
    def line(self) -> str:
        where = self.host if self.port is None else f"{self.host}:{self.port}"
        return f"{where}:{self.weight}" + (f" {self.alias}" if self.alias else "")

    @property
    def name(self) -> str:
        return twemproxy_name(self.alias, self.host, self.port or 0)


class Node(asyncio.Protocol):
    """Speaks what it is spoken to: RESP, or memcached's text."""

    def __init__(self, number: int) -> None:
        self.number = b"%d" % number
        self.answer = b"$%d\r\n%s\r\n" % (len(self.number), self.number)
        self.requests = hiredis.Reader()
        self.lines = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.lines or data[:1] == b"g":
            *lines, self.lines = (self.lines + data).split(b"\r\n")
            self.transport.write(b"".join(self.values(line.split(b" ")[1:]) for line in lines))
            return
        self.requests.feed(data)
        count = 0
        while self.requests.gets() is not False:
            count += 1
        self.transport.write(self.answer * count)

    def values(self, keys: Sequence[bytes]) -> bytes:
        value = b" 0 %d\r\n%s\r\n" % (len(self.number), self.number)
        return b"".join(b"VALUE " + key + value for key in keys if key) + b"END\r\n"


@contextlib.asynccontextmanager
async def nodes(
    directory: Path, kind: str, weights: Sequence[int], aliases: Sequence[str | None]
) -> AsyncIterator[list[Server]]:
    """A listening node a weight. kind: "port", each on its own; "11211", each on its own host; or "unix"."""
    loop = asyncio.get_running_loop()
    # A network of its own within 127.0.0.0/8, so that parallel runs do not meet on port 11211
    network = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}"
    async with contextlib.AsyncExitStack() as stack:
        servers = []
        for number, (weight, alias) in enumerate(zip(weights, aliases, strict=True)):

            def node(number: int = number) -> Node:
                return Node(number)

            if kind == "unix":
                host, port = str(directory / f"{number}.sock"), None
                listener = await loop.create_unix_server(node, host)
            else:
                host = f"{network}.{number + 1}" if kind == "11211" else "127.0.0.1"
                listener = await loop.create_server(node, host, 11211 if kind == "11211" else 0)
                port = listener.sockets[0].getsockname()[1]
            await stack.enter_async_context(listener)
            servers.append(Server(alias, host, port, weight))
        yield servers


async def accepts(listen: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        _, writer = await asyncio.open_unix_connection(listen)
        writer.close()
        return True
    return False


@contextlib.asynccontextmanager
async def nutcracker(directory: Path, servers: Sequence[Server], **options: str) -> AsyncIterator[Path]:
    """A twemproxy over these servers; yields the socket it listens on."""
    program = shutil.which("nutcracker") or shutil.which("/usr/sbin/nutcracker")
    if program is None:
        pytest.fail("twemproxy is missing: apt-get install nutcracker")
    listen, config, log = (directory / f"nutcracker.{end}" for end in ("sock", "yml", "log"))
    pool = {"listen": str(listen), "redis": "true"} | {key: f'"{value}"' for key, value in options.items()}
    settings = [f"  {key}: {value}" for key, value in pool.items()]
    config.write_text("\n".join(["pool:", *settings, "  servers:", *(f"   - {s.line}" for s in servers), ""]))
    arguments = ("-c", str(config), "-o", str(log), "-a", "127.0.0.1", "-s")
    for _ in range(5):  # it cannot choose a port for its statistics by itself; ours may be taken meanwhile
        process = await asyncio.create_subprocess_exec(program, *arguments, str(free_port()))
        try:
            async with asyncio.timeout(20):
                while process.returncode is None and not await accepts(listen):
                    await asyncio.sleep(0.002)
            if process.returncode is None:
                yield listen
                return
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    pytest.fail(log.read_text())


async def ask(listen: Path, keys: Sequence[bytes], redis: bool = True) -> list[int]:
    """Where twemproxy sends these keys: the numbers of the servers."""
    if not redis:
        return await ask_memcached(listen, keys)
    reader, writer = await asyncio.open_unix_connection(listen)
    replies = hiredis.Reader()
    answers: list[int] = []
    try:
        for start in range(0, len(keys), 500):
            batch = keys[start : start + 500]
            writer.write(b"".join(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(key), key) for key in batch))
            while len(answers) < start + len(batch):
                data = await asyncio.wait_for(reader.read(1 << 16), 10)
                assert data, "twemproxy closed the connection"
                replies.feed(data)
                while (reply := replies.gets()) is not False:
                    if isinstance(reply, Exception):
                        raise reply
                    answers.append(int(reply))
    finally:
        writer.close()
    return answers


async def ask_memcached(listen: Path, keys: Sequence[bytes]) -> list[int]:
    reader, writer = await asyncio.open_unix_connection(listen)
    answers: list[int] = []
    try:
        for start in range(0, len(keys), 500):
            batch = keys[start : start + 500]
            writer.write(b"".join(b"get %s\r\n" % key for key in batch))
            for key in batch:
                lines = [(await asyncio.wait_for(reader.readline(), 10)).rstrip() for _ in range(3)]
                assert lines[0].split(b" ")[:2] == [b"VALUE", key] and lines[2] == b"END", lines
                answers.append(int(lines[1]))
    finally:
        writer.close()
    return answers


def random_keys(seed: str, count: int = KEYS, tag: str = "") -> list[bytes]:
    """Keys of random bytes; with a tag, half of them have its characters strewn in."""
    rng = random.Random(seed)
    keys = [rng.randbytes(rng.choice((1, 2, 3, 4, 7, 8, 12, 13, 16, 31, 33, 64, 100))) for _ in range(count)]
    if tag:
        marks = [character.encode() for character in tag]
        for index in range(0, count, 2):
            parts = [rng.choice([*marks, *marks, rng.randbytes(rng.randint(0, 3))]) for _ in range(6)]
            keys[index] = b"".join(parts) or b"{}"
    return keys


def memcached_keys(seed: str, count: int = KEYS, tag: str = "") -> list[bytes]:
    """The same, of bytes that memcached takes in a key."""
    allowed = bytes(byte for byte in range(256) if byte > 32 and byte != 127)
    table = bytes(allowed[byte % len(allowed)] for byte in range(256))
    keys = [key.translate(table) or b"x" for key in random_keys(seed, count)]
    if tag:
        keys[::2] = [b"%s{%s}%s" % (key[:3], key[3:], key[:5]) for key in keys[::2]]
    return keys


async def compare(directory: Path, servers: Sequence[Server], keys: Sequence[bytes], **options: str) -> Ring:
    async with nutcracker(directory, servers, **options) as listen:
        asked = await ask(listen, keys, options.get("redis") != "false")
    ring = Ring(
        [(server.name, server.weight) for server in servers],
        distribution=options.get("distribution", "ketama"),
        hash=options.get("hash"),
        hash_tag=options.get("hash_tag"),
    )
    agree(ring, servers, keys, asked)
    return ring


def agree(ring: Ring, servers: Sequence[Server], keys: Sequence[bytes], asked: Sequence[int]) -> None:
    differ = [(key, there, ring.locate(key)) for key, there in zip(keys, asked, strict=True)]
    differ = [found for found in differ if found[1] != found[2]]
    assert not differ, f"{len(differ)} of {len(keys)} keys differ over {servers}: {differ[:3]}"


@pytest.mark.parametrize("count", range(1, 31))
async def test_ketama_of_equal_servers(tmp_path: Path, count: int) -> None:
    async with nodes(tmp_path, "port", [1] * count, [None] * count) as servers:
        await compare(tmp_path, servers, random_keys(f"equal {count}"))


ALIASES = ["b", "alpha", "a", "Beta", "node-10", "node-9", "gamma"]


@pytest.mark.parametrize("distribution", ["ketama", "modula"])
@pytest.mark.parametrize("hash_tag", ["", "{}", "$$", "<>"])
@pytest.mark.parametrize(
    ("kind", "weights", "aliased"),
    [
        ("port", (1, 2, 3), False),
        ("port", (1, 1, 1, 10, 12), False),
        ("port", (1, 1, 1, 1, 1, 1, 1), True),
        ("port", (3, 1, 4, 1, 5, 9, 2), True),
        ("11211", (1, 1, 1, 1, 1), False),
        ("11211", (2, 1, 1), True),
        ("unix", (1, 3, 1), False),
        ("unix", (1, 1, 1), True),
    ],
)
async def test_names_weights_and_tags(
    tmp_path: Path, distribution: str, hash_tag: str, kind: str, weights: tuple[int, ...], aliased: bool
) -> None:
    aliases: list[str | None] = [*ALIASES[: len(weights)]] if aliased else [None] * len(weights)
    options = {"distribution": distribution} | ({"hash_tag": hash_tag} if hash_tag else {})
    async with nodes(tmp_path, kind, weights, aliases) as servers:
        keys = random_keys(f"{weights} {hash_tag}", tag=hash_tag or "{}")
        await compare(tmp_path, servers, keys, **options)


@pytest.mark.parametrize("distribution", ["ketama", "modula"])
@pytest.mark.parametrize("name", [name for name in KEY_HASHES if name != "xxh64"])
async def test_every_key_hash(tmp_path: Path, distribution: str, name: str) -> None:
    async with nodes(tmp_path, "port", [1, 1, 2, 1, 1], [None] * 5) as servers:
        await compare(tmp_path, servers, random_keys(name), distribution=distribution, hash=name)


@pytest.mark.parametrize("turned", [False, True])
async def test_equal_points_of_ketama(tmp_path: Path, turned: bool) -> None:
    # Among the points of 1500 names some are equal: those two names, in either order of configuration
    names = [f"n{number}" for number in range(1500)]
    points = Ring([(name, 1) for name in names], distribution="ketama").points()
    pairs = [
        (names[one], names[two], at)
        for (at, one), (after, two) in itertools.pairwise(points)
        if at == after and one != two
    ]
    assert pairs
    for case, (one, two, at) in enumerate(pairs[:3]):
        aliases = [two, one] if turned else [one, two]
        ring = Ring([(alias, 1) for alias in aliases], distribution="ketama")
        before = max(point for point, _ in ring.points() if point < at)
        candidates = random_keys("equal points", 40_000)
        keys = [key for key in candidates if before < ring.hash_of(key) <= at]
        assert len({ring.locate(key) for key in keys}) == 1
        directory = tmp_path / str(case)
        directory.mkdir()
        async with nodes(directory, "port", [1, 1], aliases) as servers:
            await compare(directory, servers, keys)


VECTORS = Path(__file__).parents[2] / "docs" / "placement-vectors.json"


@pytest.mark.parametrize("distribution", ["ketama", "modula"])
async def test_the_golden_vectors(tmp_path: Path, distribution: str) -> None:
    rings = json.loads(VECTORS.read_text(encoding="utf-8"))["rings"]
    chosen = [ring for ring in rings if ring["distribution"] == distribution]
    assert chosen
    for number, ring in enumerate(chosen):
        directory = tmp_path / str(number)
        directory.mkdir()
        names = [*ring["shards"]]
        options = {"distribution": distribution, "hash": ring["hash"]}
        options |= {"hash_tag": ring["hash_tag"]} if ring["hash_tag"] else {}
        async with (
            nodes(directory, "port", [*ring["shards"].values()], names) as servers,
            nutcracker(directory, servers, **options) as listen,
        ):
            asked = await ask(listen, [bytes.fromhex(key) for key in ring["keys"]])
        assert [names[answer] for answer in asked] == [*ring["keys"].values()]


# Of weights: all equal, of which 25 get 156 points each; uneven ones, whose points float arithmetic decides
WEIGHTS = [(1,), (1, 1, 1), (1,) * 25, (3, 1, 4, 1, 5, 9, 2), (1, 1, 1, 10, 12), (7, 7, 1)]


@pytest.mark.parametrize("kind", ["port", "11211"])
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
async def test_libmemcached(tmp_path: Path, kind: str, weights: tuple[int, ...]) -> None:
    keys = memcached_keys(f"libmemcached {weights}")
    async with nodes(tmp_path, kind, weights, [None] * len(weights)) as servers:
        asked = await asyncio.to_thread(ask_libmemcached, servers, keys)
        ring = Ring([(server.name, server.weight) for server in servers], distribution="ketama", hash="md5")
        agree(ring, servers, keys, asked)


def ask_libmemcached(servers: Sequence[Server], keys: Sequence[bytes]) -> list[int]:
    """Where weighted ketama, which hashes keys with MD5, sends these keys."""
    client = pylibmc.Client(
        [f"{server.host}:{server.port}:{server.weight}" for server in servers],
        behaviors={"ketama_weighted": True},
    )
    found: dict[bytes, bytes] = {}
    for start in range(0, len(keys), 200):
        found |= client.get_multi(keys[start : start + 200])
    client.disconnect_all()
    return [int(found[key]) for key in keys]


@pytest.mark.parametrize("distribution", ["ketama", "modula"])
@pytest.mark.parametrize(
    ("kind", "weights", "aliased", "options"),
    [
        ("11211", (1, 1, 1), False, {"hash": "md5"}),
        ("port", (3, 1, 4, 1, 5, 9, 2), True, {"hash_tag": "{}"}),
        ("11211", (1, 1, 1, 10, 12), False, {"hash": "crc32"}),
        ("unix", (1, 2, 1), False, {"hash": "one_at_a_time"}),
    ],
)
async def test_pools_of_memcached(
    tmp_path: Path,
    distribution: str,
    kind: str,
    weights: tuple[int, ...],
    aliased: bool,
    options: dict[str, str],
) -> None:
    aliases: list[str | None] = [*ALIASES[: len(weights)]] if aliased else [None] * len(weights)
    async with nodes(tmp_path, kind, weights, aliases) as servers:
        keys = memcached_keys(f"{kind} {weights}", tag=options.get("hash_tag", ""))
        await compare(tmp_path, servers, keys, redis="false", distribution=distribution, **options)
