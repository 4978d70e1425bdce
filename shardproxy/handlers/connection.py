"""What concerns one connection: its protocol, its login, its end; and the questions any server answers.

There are no users: everybody is `default`, who has no password, and AUTH answers as Redis does then.
"""

import time
from typing import TYPE_CHECKING

from shardproxy.core import errors, reply
from shardproxy.handlers.base import Server, handles

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call

INT64 = range(-(1 << 63), 1 << 63)
INT32 = range(-(1 << 31), 1 << 31)


def integer_in(text: bytes) -> int | None:
    """As Redis reads an integer: no sign but "-", no leading zero, 64 bits; None for anything else."""
    digits = text.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 19 or (digits[:1] == b"0" and text != b"0"):
        return None
    value = int(text)
    return value if value in INT64 else None


PRINTABLE = bytes(range(0x21, 0x7F))
LONGEST_NAME = 4096  # bytes; names are kept for as long as the client stays


def printable(value: bytes) -> bool:
    """Fit for a field of CLIENT LIST: no spaces, nothing special, not too long."""
    return len(value) <= LONGEST_NAME and not value.translate(None, PRINTABLE)


def lowest_version(server: Server) -> str:
    """Of the nodes, as far as they have said; before that, the version whose commands are built in."""
    versions = {info.version for info in server.node_info.values() if info.version}
    return min(versions, key=version_order, default="7.0.15")


def databases(server: Server) -> int:
    """So many has every node, as far as they have said; Redis's default before that."""
    return min((info.databases for info in server.node_info.values() if info.databases), default=16)


def version_order(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")]


@handles("ping")
def ping(server: Server, call: "Call") -> bytes:
    if len(call.args) > 2:
        return reply.error(errors.wrong_arity("ping"))
    if call.proto == 2 and any(call.client.subscriptions):
        return reply.bulks(["pong", *(call.args[1:] or [""])])
    return reply.bulk(call.args[1]) if len(call.args) == 2 else reply.PONG


@handles("echo")
def echo(server: Server, call: "Call") -> bytes:
    return reply.bulk(call.args[1])


@handles("time")
def time_(server: Server, call: "Call") -> bytes:
    seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
    return reply.bulks([str(seconds), str(micros)])


@handles("hello")
def hello(server: Server, call: "Call") -> bytes:
    """HELLO [2|3 [AUTH username password] [SETNAME name]]"""
    client = call.client
    version = client.proto
    if len(call.args) > 1:
        asked = integer_in(call.args[1])
        if asked is None:
            return reply.error(errors.PROTOCOL_VERSION)
        if asked not in (2, 3):
            return reply.error(errors.NOPROTO)
        version = asked
    options = call.args[2:]
    while options:
        option = options[0].lower()
        if option == b"auth" and len(options) >= 3:
            # as Redis, which knows no user but `default`, who needs no password: any one is right
            if options[1] != b"default":
                return reply.error(errors.WRONGPASS)
            options = options[3:]
        elif option == b"setname" and len(options) >= 2:
            if not printable(options[1]):
                return reply.error(errors.CLIENT_NAME)
            client.name = options[1]
            options = options[2:]
        else:
            return reply.error(errors.hello_option(options[0]))
    if version != client.proto:
        client.proto = version
        if tracking := server.trackers.of(client):
            tracking.proto_changed()
    return reply.mapping(
        [
            (reply.bulk("server"), reply.bulk("redis")),
            (reply.bulk("version"), reply.bulk(lowest_version(server))),
            (reply.bulk("proto"), reply.integer(version)),
            (reply.bulk("id"), reply.integer(client.id)),
            (reply.bulk("mode"), reply.bulk("standalone")),
            (reply.bulk("role"), reply.bulk("master")),
            (reply.bulk("modules"), reply.array([])),
        ],
        version,
    )


@handles("auth")
def auth(server: Server, call: "Call") -> bytes:
    """AUTH [username] password"""
    if len(call.args) > 3:
        return reply.error(errors.SYNTAX)
    if len(call.args) == 2:
        return reply.error(errors.NO_PASSWORD_SET)
    return reply.OK if call.args[1] == b"default" else reply.error(errors.WRONGPASS)


@handles("select")
def select(server: Server, call: "Call") -> bytes:
    number = integer_in(call.args[1])
    if number is None:
        return reply.error(errors.NOT_AN_INTEGER)
    if number not in INT32:
        return reply.error(errors.NOT_AN_INT)
    if number < 0:
        return reply.error(errors.DB_RANGE)
    most = databases(server)
    if number >= most:
        return reply.error(errors.DB_RANGE)
    call.client.db = number
    return reply.OK


@handles("reset")
async def reset(server: Server, call: "Call") -> bytes:
    client = call.client
    if any(client.subscriptions):
        await server.subscriptions.fence(client)
    server.subscriptions.leave(client.id)
    server.trackers.off(client.id)
    client.reset()
    return reply.simple("RESET")


@handles("quit")
def quit_(server: Server, call: "Call") -> None:
    call.reply(reply.OK)
    call.client.close_after_reply()
