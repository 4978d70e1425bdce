"""Handlers and a live Redis 7.0, asked the same: the same bytes, after what must differ is taken out.

The handlers run on fakes, so every difference is theirs. Arity is checked by the engine in the proxy, and by
`fakes.ask` here.
"""

import re
from collections.abc import Callable

import pytest
from fakes import FakeClient, FakeServer, ask
from servers import Raw, RedisNode

from shardproxy.core import errors, reply

# What differs between any two servers: (pattern, put in its place)
MASKS = [
    (rb"id=\d+ addr=\S+ laddr=\S+ fd=\d+", b"id=# addr=# laddr=# fd=#"),
    (rb"age=\d+ idle=\d+", b"age=# idle=#"),
    (rb"(qbuf|qbuf-free|argv-mem|multi-mem|rbs|rbp|obl|oll|omem|tot-mem)=\d+", rb"\1=#"),
    (rb"cmd=\S+", b"cmd=#"),
    (rb" lib-name=\S* lib-ver=\S*\n", b"\n"),  # of 7.2
    (rb" watch=\d+", b""),  # of 7.4
    (rb"\$2\r\nid\r\n:\d+", b"$2\r\nid\r\n:#"),
    (rb"^([$=])\d+\r\n(txt:)?id=#", rb"\1#\r\n\2id=#"),
]


def masked(frame: bytes) -> bytes:
    for pattern, instead in MASKS:
        frame = re.sub(pattern, instead, frame)
    return frame


# Each is one connection's whole conversation.
CONVERSATIONS = [
    ["PING", "PING a", "PING a b", "ECHO", "ECHO a", "ECHO a b"],
    ["HELLO", "HELLO 2", "HELLO 3", "PING", "PING x", "HELLO", "HELLO 2"],
    ["HELLO 4", "HELLO 1", "HELLO x", "HELLO 03", "HELLO -1", "HELLO 9223372036854775808"],
    ["HELLO 3 AUTH", "HELLO 3 AUTH u", "HELLO 3 FOO", "HELLO 3 SETNAME", "HELLO 3 AUTH default"],
    ["HELLO 3 AUTH default pw", "HELLO 3 AUTH u p", "HELLO 3 AUTH default x SETNAME n", "CLIENT GETNAME"],
    ["HELLO 3 SETNAME ok AUTH u p", "CLIENT GETNAME", "HELLO 3 SETNAME a AUTH default b FOO x"],
    ["HELLO 2 SETNAME é", "HELLO 3 SETNAME ~!~", "CLIENT GETNAME"],
    ["AUTH", "AUTH p", "AUTH default", "AUTH default p", "AUTH u p", "AUTH u p q"],
    ["SELECT", "SELECT 0", "SELECT -1", "SELECT x", "SELECT 01", "SELECT 1 2", "SELECT 99999999999999"],
    ["SELECT 2147483648", "SELECT -2147483649", "SELECT 9223372036854775808"],
    ["HELLO 3", "CLIENT SETNAME x", "RESET", "CLIENT GETNAME", "CLIENT INFO", "HELLO"],
    ["RESET x"],
    ["CLIENT ID x", "CLIENT GETNAME", "CLIENT SETNAME a", "CLIENT GETNAME", "CLIENT SETNAME a b"],
    ["CLIENT SETNAME é", "CLIENT SETNAME a~!", "CLIENT GETNAME", "HELLO 3", "CLIENT GETNAME"],
    ["HELLO 3", "CLIENT GETNAME"],
    ["CLIENT FOO", "CLIENT INFO", "CLIENT INFO a", "HELLO 3", "CLIENT INFO"],
    ["CLIENT SETNAME me", "CLIENT LIST ID 0", "CLIENT LIST ID -1", "CLIENT LIST ID x", "CLIENT LIST ID 0 x"],
    [
        "CLIENT LIST ID",
        "CLIENT LIST TYPE",
        "CLIENT LIST FOO",
        "CLIENT LIST TYPE foo",
        "CLIENT LIST TYPE normal x",
    ],
    [
        "CLIENT LIST TYPE master",
        "CLIENT LIST TYPE replica",
        "CLIENT LIST TYPE slave",
        "CLIENT LIST TYPE PUBSUB",
    ],
    ["CLIENT NO-EVICT", "CLIENT NO-EVICT on", "CLIENT INFO", "CLIENT NO-EVICT OFF", "CLIENT INFO"],
    ["CLIENT NO-EVICT x", "CLIENT REPLY", "CLIENT REPLY x", "CLIENT REPLY on"],
    ["TIME a", "INFO nonexist", "INFO a b"],
    ["COMMAND FOO", "COMMAND COUNT x", "COMMAND HELP", "COMMAND HELP x"],
    ["COMMAND GETKEYS", "COMMAND GETKEYS GET", "COMMAND GETKEYS GET a", "COMMAND GETKEYS GET a b"],
    ["COMMAND GETKEYS FOO a", "COMMAND GETKEYS CLIENT FOO", "COMMAND GETKEYS CONFIG GET x"],
    ["COMMAND GETKEYS MSET a b c", "COMMAND GETKEYS MSETNX a", "COMMAND GETKEYSANDFLAGS MSETNX a b c d e"],
    ["COMMAND GETKEYS MSET a b c d", "COMMAND GETKEYS EVAL s 1 k", "COMMAND GETKEYS CLIENT ID"],
    [
        "COMMAND GETKEYS ZUNIONSTORE d 2 a",
        "COMMAND GETKEYS ZINTERCARD 2 a b",
        "COMMAND GETKEYS MEMORY USAGE k",
    ],
    ["COMMAND GETKEYS XREAD STREAMS a b 0 0", "COMMAND GETKEYS SORT a BY x GET y STORE z"],
    ["COMMAND GETKEYSANDFLAGS LMOVE a b left left", "COMMAND GETKEYSANDFLAGS SORT a STORE b"],
    ["HELLO 3", "COMMAND GETKEYSANDFLAGS SET a b", "COMMAND GETKEYSANDFLAGS PING a"],
    [
        "COMMAND INFO get",
        "COMMAND INFO GET foo",
        "COMMAND INFO config|get",
        "COMMAND INFO get|foo",
    ],
    ["HELLO 3", "COMMAND INFO get foo", "COMMAND INFO xread georadius eval mset zinterstore"],
    ["COMMAND DOCS foo", "HELLO 3", "COMMAND DOCS foo"],
    [
        "COMMAND LIST x",
        "COMMAND LIST FILTERBY",
        "COMMAND LIST FILTERBY FOO a",
        "COMMAND LIST FILTERBY MODULE a",
    ],
    [
        "COMMAND LIST FILTERBY MODULE",
        "COMMAND LIST FILTERBY ACLCAT nope",
        "COMMAND LIST FILTERBY ACLCAT @fast",
    ],
    ["COMMAND LIST FILTERBY PATTERN a b", "COMMAND LIST FILTERBY PATTERN *AA*"],
]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=[" / ".join(each)[:60] for each in CONVERSATIONS])
async def test_the_same_bytes(conversation: list[str], redis: RedisNode) -> None:
    client, server = FakeClient(), FakeServer()
    server.clients.append(client)
    with redis.raw() as raw:
        for command in conversation:
            args = command.split()
            ours = await ask(server, client, *args)
            assert masked(ours) == masked(without_notes(raw.ask(*args))), command


# Lists in an order of Redis's own (a hash table): compared as sets of frames
@pytest.mark.parametrize(
    "command",
    [
        "COMMAND LIST FILTERBY PATTERN s*",
        "COMMAND LIST FILTERBY PATTERN [^a-w]*",
        "COMMAND LIST FILTERBY ACLCAT FAST",
    ],
)
async def test_the_same_names(command: str, redis: RedisNode) -> None:
    ours = _names(await ask(FakeServer(), FakeClient(), *command.split()))
    with redis.raw() as raw:
        theirs = _names(raw.ask(*command.split()))
    later = {b"client|no-touch", b"client|setinfo", b"waitaof"}
    assert {name for name in ours if not name.startswith((b"proxy", b"session."))} - later == theirs


def _names(frame: bytes) -> set[bytes]:
    return set(frame.split(b"\r\n")[2::2]) - {b""}


async def test_every_command_is_described_as_redis_describes_it(redis: RedisNode) -> None:
    """COMMAND INFO of each, in both protocols, but for the notes on key specs, which are prose.

    Subcommands are asked for by name: their order within a container is that of a hash table of Redis's.
    """
    server = FakeServer()
    names = [flat.name for row in server.commands.rows() for flat in row.flat() if not flat.subcommands]
    names = [
        name
        for name in names
        if not name.startswith(("proxy", "session."))
        and name not in ("client|no-touch", "client|setinfo", "waitaof")
    ]
    for proto in ("2", "3"):
        client = FakeClient(proto=int(proto))
        with redis.raw() as raw:
            raw.ask("HELLO", proto)
            for name in names:
                ours = await ask(server, client, "COMMAND", "INFO", name)
                assert ours == without_notes(raw.ask("COMMAND", "INFO", name)), name


def without_notes(frame: bytes) -> bytes:
    """A key spec's map is then one pair smaller: of 4 in RESP3, of 8 items in RESP2."""
    pattern = rb"(?:%4|\*8)\r\n\$5\r\nnotes\r\n\$\d+\r\n[^\r]*\r\n"
    return re.sub(pattern, lambda found: (b"%3" if found[0][:1] == b"%" else b"*6") + b"\r\n", frame)


FORMS: list[tuple[str, Callable[[int], bytes]]] = [
    ("string", lambda proto: reply.bulk("Hello World", proto)),
    ("integer", lambda proto: reply.integer(12345, proto)),
    ("double", lambda proto: reply.double(3.141, proto)),
    ("null", reply.null),
    ("array", lambda proto: reply.array([reply.integer(n) for n in range(3)], proto)),
    ("set", lambda proto: reply.set_([reply.integer(n) for n in range(3)], proto)),
    (
        "map",
        lambda proto: reply.mapping(
            [(reply.integer(n), reply.boolean(n == 1, proto)) for n in range(3)], proto
        ),
    ),
    ("verbatim", lambda proto: reply.verbatim("This is a verbatim\nstring", proto)),
    ("true", lambda proto: reply.boolean(True, proto)),
    ("false", lambda proto: reply.boolean(False, proto)),
    ("bignum", lambda proto: reply.big_number(1234567999999999999999999999999999999, proto)),
]


@pytest.mark.parametrize("proto", [2, 3])
@pytest.mark.parametrize(("name", "form"), FORMS, ids=[name for name, _ in FORMS])
def test_every_form_is_as_redis_writes_it(
    name: str, form: Callable[[int], bytes], proto: int, redis: RedisNode
) -> None:
    with redis.raw() as raw:
        raw.ask("HELLO", proto)
        assert form(proto) == raw.ask("DEBUG", "PROTOCOL", name)


def test_error_texts(redis: RedisNode) -> None:
    """Texts of core/errors that the engine has C strings for, or that handlers on fakes cannot meet."""
    with redis.raw() as raw:
        assert reply.error(errors.unknown_subcommand("client", b"F\r\nO")) == raw.ask("CLIENT", "F\r\nO")
        assert reply.error(errors.wrong_arity("get")) == raw.ask("GET")
        assert reply.error(errors.wrong_arity("client|id")) == raw.ask("CLIENT", "ID", "x")


def test_a_quit_client_is_gone(redis: RedisNode) -> None:
    """What QUIT does in Redis, so that the proxy's test of it has a model."""
    with Raw(redis.port) as raw:
        assert raw.ask("QUIT") == b"+OK\r\n"
        assert raw.rest() == b""
