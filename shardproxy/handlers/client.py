"""CLIENT and its subcommands: what is known of the connections. Formats and texts are Redis 7's.

A client of another worker is known by its `ClientRecord`, which travels between processes; so CLIENT LIST is
made from records alone. Names and library names stay where they were set, for the life of a connection.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from shardproxy.core import errors, reply
from shardproxy.handlers.base import Server, gather, handles, part
from shardproxy.handlers.connection import integer_in, printable

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call
    from shardproxy.dataplane.client_handle import ClientHandle

AT_ONCE = 100  # records, between two turns of the loop
TYPES = ("normal", "master", "replica", "slave", "pubsub")


class ClientRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A client at one moment. Sizes are bytes, times whole seconds."""

    id: int
    addr: str
    laddr: str
    fd: int
    name: str = ""
    age: int = 0
    idle: int = 0
    flags: str = "N"
    db: int = 0
    sub: int = 0
    psub: int = 0
    ssub: int = 0
    multi: int = -1
    redirect: int = -1
    watch: int = 0
    query_buffer: int = 0
    multi_memory: int = 0
    output_bytes: int = 0
    pending: int = 0
    total_memory: int = 0
    command: str = "NULL"
    proto: int = 2
    user: str = "default"
    lib_name: str = ""
    lib_ver: str = ""


def record_of(client: "ClientHandle") -> ClientRecord:
    channels, patterns, shards = client.subscriptions
    tracked, redirect = client.tracked
    flags = ("O" if client.monitors else "") + ("P" if channels or patterns or shards else "")
    flags += ("x" if client.in_multi >= 0 else "") + ("b" if client.waiting else "") + tracked
    flags += "U" if client.laddr.startswith("/") else ""
    flags += ("e" if client.no_evict else "") + ("T" if client.no_touch else "")
    return ClientRecord(
        id=client.id,
        addr=client.addr,
        laddr=client.laddr,
        fd=client.fd,
        name=client.name.decode(),  # printable, see setname
        age=int(client.age),
        idle=int(client.idle),
        flags=flags or "N",
        db=client.db,
        sub=channels,
        psub=patterns,
        ssub=shards,
        multi=client.in_multi,
        redirect=redirect,
        watch=client.watched,
        query_buffer=client.query_buffer,
        multi_memory=client.multi_memory,
        output_bytes=client.output_bytes,
        pending=client.pending,
        total_memory=client.total_memory,
        command=client.last_command,
        proto=client.proto,
        user=client.user.decode(errors="replace") or "default",
        lib_name=client.lib_name.decode(),
        lib_ver=client.lib_ver.decode(),
    )


@part("clients")
async def clients(server: Server) -> list[ClientRecord]:
    """A few at a time: with thousands of clients the others would have to wait."""
    found = []
    for number, client in enumerate(server.reactor.clients(), 1):
        if client.alive:
            found.append(record_of(client))
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
    return found


async def all_clients(server: Server) -> list[ClientRecord]:
    """Of every worker, by id; a worker that does not answer in time is left out."""
    found = [record for records in await gather(server, "clients", list[ClientRecord]) for record in records]
    return sorted(found, key=lambda record: record.id)


def kind_of(record: ClientRecord) -> str:
    """Its type, as CLIENT LIST TYPE and CLIENT KILL TYPE name it."""
    return "pubsub" if "P" in record.flags else "normal"


def line(it: ClientRecord) -> bytes:
    """A line of CLIENT LIST, as Redis 7.4 writes it."""
    text = (
        f"id={it.id} addr={it.addr} laddr={it.laddr} fd={it.fd} name={it.name} age={it.age} idle={it.idle} "
        f"flags={it.flags} db={it.db} sub={it.sub} psub={it.psub} ssub={it.ssub} multi={it.multi} "
        f"watch={it.watch} qbuf={it.query_buffer} qbuf-free=0 argv-mem=0 multi-mem={it.multi_memory} "
        f"rbs=0 rbp=0 obl={it.output_bytes} oll={it.pending} omem={it.output_bytes} "
        f"tot-mem={it.total_memory} events=r cmd={it.command} "
        f"user={it.user} redir={it.redirect} resp={it.proto} lib-name={it.lib_name} lib-ver={it.lib_ver}\n"
    )
    return text.encode(errors="surrogateescape")


@handles("client|id")
def id_(server: Server, call: "Call") -> bytes:
    return reply.integer(call.client.id)


@handles("client|getname")
def getname(server: Server, call: "Call") -> bytes:
    return reply.bulk(call.client.name or None, call.proto)


@handles("client|setname")
def setname(server: Server, call: "Call") -> bytes:
    if not printable(call.args[2]):
        return reply.error(errors.CLIENT_NAME)
    call.client.name = call.args[2]
    return reply.OK


@handles("client|setinfo")
def setinfo(server: Server, call: "Call") -> bytes:
    """CLIENT SETINFO LIB-NAME|LIB-VER value"""
    option, value = call.args[2].lower(), call.args[3]
    if option not in (b"lib-name", b"lib-ver"):
        return reply.error(errors.client_option(call.args[2]))
    if not printable(value):
        return reply.error(errors.client_value(option))
    if option == b"lib-name":
        call.client.lib_name = value
    else:
        call.client.lib_ver = value
    return reply.OK


@handles("client|info")
def info(server: Server, call: "Call") -> bytes:
    return reply.verbatim(line(record_of(call.client)), call.proto)


@handles("client|list")
async def list_(server: Server, call: "Call") -> bytes:
    """CLIENT LIST [TYPE type | ID id [id ...]]"""
    options = call.args[2:]
    wanted: Callable[[ClientRecord], bool] = lambda _: True  # noqa: E731  # three ways to say it
    if options:
        option = options[0].lower()
        if option == b"type" and len(options) == 2:
            kind = options[1].decode(errors="replace").lower()
            if kind not in TYPES:
                return reply.error(errors.client_type(options[1]))
            wanted = lambda record: kind_of(record) == ("replica" if kind == "slave" else kind)  # noqa: E731
        elif option == b"id" and len(options) > 1:
            ids = {integer_in(text) for text in options[1:]}
            if None in ids:
                return reply.error(errors.CLIENT_ID)
            wanted = lambda record: record.id in ids  # noqa: E731
        else:
            return reply.error(errors.SYNTAX)
    lines = []
    for number, record in enumerate(await all_clients(server), 1):
        if wanted(record):
            lines.append(line(record))
        if number % 500 == 0:  # with thousands of clients the others would have to wait
            await asyncio.sleep(0)
    return reply.verbatim(b"".join(lines), call.proto)


def _switch(text: bytes) -> bool | None:
    return {b"on": True, b"off": False}.get(text.lower())


@handles("client|no-evict")
def no_evict(server: Server, call: "Call") -> bytes:
    on = _switch(call.args[2])
    if on is None:
        return reply.error(errors.SYNTAX)
    call.client.no_evict = on
    return reply.OK


@handles("client|no-touch")
def no_touch(server: Server, call: "Call") -> bytes:
    on = _switch(call.args[2])
    if on is None:
        return reply.error(errors.SYNTAX)
    call.client.no_touch = on
    return reply.OK


@handles("client|reply")
def reply_(server: Server, call: "Call") -> bytes:
    """CLIENT REPLY ON|OFF|SKIP"""
    client, mode = call.client, call.args[2].lower()
    if mode == b"on":
        client.reply_mode = "on"
        return reply.OK
    if mode == b"off":
        client.reply_mode = "off"
    elif mode == b"skip":
        if client.reply_mode != "off":
            client.reply_mode = "skip"
    else:
        return reply.error(errors.SYNTAX)
    return reply.NOTHING


HELP = """\
CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
GETNAME
    Return the name of the current connection.
ID
    Return the ID of the current connection.
INFO
    Return information about the current client connection.
LIST [options ...]
    Return information about client connections. Options:
    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)
      Return clients of specified type.
    * ID <id> [<id> ...]
      Return clients of the specified IDs.
REPLY (ON|OFF|SKIP)
    Control the replies sent to the current connection.
SETNAME <name>
    Assign the name <name> to the current connection.
SETINFO (LIB-NAME|LIB-VER) <value>
    Say which client library is used.
KILL <ip:port> | <option> <value> [...]
    Kill connections: ID, ADDR, LADDR, USER, TYPE, MAXAGE, SKIPME.
PAUSE <timeout> [WRITE|ALL]
    Suspend all, or just write, clients for <timeout> milliseconds.
UNPAUSE
    Stop the current client pause.
UNBLOCK <clientid> [TIMEOUT|ERROR]
    Unblock the specified blocked client.
NO-EVICT (ON|OFF)
    Protect current client connection from eviction.
NO-TOUCH (ON|OFF)
    Do not count this connection's commands as a use of the keys.
HELP
    Prints this help."""


@handles("client|help")
def help_(server: Server, call: "Call") -> bytes:
    return reply.simples(HELP.split("\n"))
