"""What concerns one connection: its protocol, its login, its end; and the questions any server answers.

A login that fails is answered late, later each time for its address; what that client sends meanwhile
waits, and nobody else does. No password is kept, logged or shown, wrong ones neither.
"""

import asyncio
import time
from typing import TYPE_CHECKING

from shardproxy.core import errors, reply
from shardproxy.core.acl import DEFAULT
from shardproxy.handlers.asking import ask, redis_places
from shardproxy.handlers.base import Answer, Server, handles

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call
    from shardproxy.dataplane.client_handle import ClientHandle

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
    told = server.node_info.values()
    versions = {info.version for info in told if info.version and info.protocol == "redis"}
    return min(versions, key=version_order, default="7.0.15")


def databases(server: Server) -> int:
    """So many has every node, as far as they have said; Redis's default before that. A memcached has one."""
    if server.topology.pools[0].memcached:
        return 1
    return min((info.databases for info in server.node_info.values() if info.databases), default=16)


def version_order(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")]


@handles("ping")
def ping(server: Server, call: "Call") -> bytes:
    if len(call.args) > 2:
        return reply.error(errors.wrong_arity("ping"))
    if call.proto == 2 and any(call.client.subscriptions):
        return reply.bulks([b"pong", *(call.args[1:] or [b""])])
    return reply.bulk(call.args[1]) if len(call.args) == 2 else reply.PONG


@handles("echo")
def echo(server: Server, call: "Call") -> bytes:
    return reply.bulk(call.args[1])


@handles("time")
def time_(server: Server, call: "Call") -> bytes:
    seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
    return reply.bulks([str(seconds), str(micros)])


MOST_FAILURES = 1024  # failed logins that wait for their answer; more are answered at once and closed


def may_log_in(server: Server, client: "ClientHandle", name: bytes, password: bytes) -> str:
    """ "", or the error."""
    user = server.users.login(name.decode(errors="surrogateescape"), password)
    if user is None:
        return errors.WRONGPASS
    limit = server.users.limits.get(user.name, 0)
    if limit and client.user != name and server.reactor.logins(name) >= limit:
        return errors.too_many_of_user(user.name)
    return ""


def login(server: Server, call: "Call", name: bytes, password: bytes) -> str:
    """Logs the client in, if it may: "", or the error."""
    error = may_log_in(server, call.client, name, password)
    if error == errors.WRONGPASS:
        user = name[:128].decode(errors="replace")
        server.access_log.denied(time.time(), call.client, user, "auth", "toplevel", call.args[0].upper())
    elif not error:
        call.client.login(name)
    return error


def login_in(server: Server, args: list[bytes]) -> tuple[bytes, bytes] | None:
    """Whom an AUTH or HELLO would log in, and the password; None: nobody."""
    if args[0].lower() == b"auth":
        if len(args) > 3 or (len(args) == 2 and server.users.default.nopass):
            return None
        return (args[1] if len(args) == 3 else DEFAULT.encode()), args[-1]
    options = args[2:] if len(args) > 1 and integer_in(args[1]) in (2, 3) else []
    if len(options) > 2 and options[0].lower() == b"setname" and printable(options[1]):
        options = options[2:]
    return (options[1], options[2]) if len(options) > 2 and options[0].lower() == b"auth" else None


def failed(server: Server, call: "Call", text: str) -> Answer:
    """The answer to a login that failed, now or later."""
    if text != errors.WRONGPASS:
        return reply.error(text)
    wait = server.failures.failed(call.client.addr.rpartition(":")[0], asyncio.get_running_loop().time())
    call.client.login_failed()
    if server.failures.waiting >= MOST_FAILURES:
        call.client.close_after_reply("too many failed logins at once")
        return reply.error(text)
    return _later(server, call, wait, text)


async def _later(server: Server, call: "Call", wait: float, text: str) -> bytes:
    server.failures.waiting += 1
    try:
        await asyncio.sleep(wait)
    finally:
        server.failures.waiting -= 1
    return reply.error(text)


def may_enter(server: Server, call: "Call") -> bool:
    """It has logged in, or need not."""
    return bool(call.client.user) or server.users.default.open


@handles("hello")
def hello(server: Server, call: "Call") -> Answer:
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
            if error := login(server, call, options[1], options[2]):
                return failed(server, call, error)
            options = options[3:]
        elif option == b"setname" and len(options) >= 2:
            if not printable(options[1]):
                return reply.error(errors.CLIENT_NAME)
            client.name = options[1]
            options = options[2:]
        else:
            return reply.error(errors.hello_option(options[0]))
    if not may_enter(server, call):
        return reply.error(errors.HELLO_NOAUTH)
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
def auth(server: Server, call: "Call") -> Answer:
    """AUTH [username] password"""
    if len(call.args) > 3:
        return reply.error(errors.SYNTAX)
    if len(call.args) == 2 and server.users.default.nopass:
        return reply.error(errors.NO_PASSWORD_SET)
    name = call.args[1] if len(call.args) == 3 else DEFAULT.encode()
    error = login(server, call, name, call.args[-1])
    return failed(server, call, error) if error else reply.OK


def database_in(server: Server, text: bytes) -> int | str:
    """The number of a database that there is, or the error that Redis answers."""
    number = integer_in(text)
    if number is None:
        return errors.NOT_AN_INTEGER
    if number not in INT32:
        return errors.NOT_AN_INT
    return number if 0 <= number < databases(server) else errors.DB_RANGE


@handles("select")
def select(server: Server, call: "Call") -> bytes:
    number = database_in(server, call.args[1])
    if isinstance(number, str):
        return reply.error(number)
    call.client.db = number
    return reply.OK


@handles("reset")
def reset(server: Server, call: "Call") -> Answer:
    if any(call.client.subscriptions):
        return _reset_later(server, call)
    return _reset(server, call.client)


async def _reset_later(server: Server, call: "Call") -> bytes:
    await server.subscriptions.fence(call.client)
    return _reset(server, call.client)


def _reset(server: Server, client: "ClientHandle") -> bytes:
    server.subscriptions.leave(client.id)
    server.trackers.off(client.id)
    client.reset()
    return reply.simple("RESET")


@handles("lolwut")
async def lolwut(server: Server, call: "Call") -> bytes:
    node, _ = redis_places(server)[0]
    return await ask(server, node, *call.args, client=call.client, write=False)


@handles("quit")
def quit_(server: Server, call: "Call") -> None:
    call.reply(reply.OK)
    call.client.close_after_reply()
