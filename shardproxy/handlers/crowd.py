"""What one client does to others: CLIENT KILL, PAUSE, UNPAUSE. Of all workers, by parts."""

from typing import TYPE_CHECKING, Any

from shardproxy.core import errors, reply
from shardproxy.handlers.base import Server, handles, part
from shardproxy.handlers.client import TYPES, kind_of, record_of
from shardproxy.handlers.connection import integer_in
from shardproxy.handlers.waiting import timeout_in

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call

KILLED = "killed by CLIENT KILL"


def _filters(server: Server, options: list[bytes]) -> tuple[dict[str, Any], bool] | str:
    """What to look for, by field, and whether who asks is spared; or the error."""
    wanted: dict[str, Any] = {}
    spared = True
    if len(options) % 2:
        return errors.SYNTAX
    for option, value in zip(options[::2], options[1::2], strict=True):
        name, text = option.lower(), value.decode(errors="surrogateescape")
        if name in (b"id", b"maxage"):
            number = integer_in(value)
            if number is None or number <= 0:
                return errors.KILL_ID if name == b"id" else errors.KILL_MAXAGE
            wanted[name.decode()] = number
        elif name == b"type":
            if text.lower() not in TYPES:
                return errors.client_type(value)
            wanted["type"] = text.lower()
        elif name in (b"addr", b"laddr"):
            wanted[name.decode()] = text
        elif name == b"user":
            if server.users.get(text) is None:
                return errors.no_such_user(value)
            wanted["user"] = text
        elif name == b"skipme" and value.lower() in (b"yes", b"no"):
            spared = value.lower() == b"yes"
        else:
            return errors.SYNTAX
    return wanted, spared


def _matches(record: Any, wanted: dict[str, Any]) -> bool:
    for name, value in wanted.items():
        if name == "maxage":
            if record.age < value:
                return False
        elif name == "type":
            if kind_of(record) != ("replica" if value == "slave" else value):
                return False
        elif getattr(record, name) != value:
            return False
    return True


@handles("client|kill")
async def kill(server: Server, call: "Call") -> bytes:
    """CLIENT KILL addr | option value [option value ...]"""
    old = len(call.args) == 3
    found: tuple[dict[str, Any], bool] | str
    if old:
        found = {"addr": call.args[2].decode(errors="surrogateescape")}, False
    else:
        found = _filters(server, call.args[2:])
    if isinstance(found, str):
        return reply.error(found)
    wanted, spared = found
    killed = sum(await server.everywhere("kill", wanted, call.client.id))
    if not spared and _matches(record_of(call.client), wanted):
        killed += 1
        call.client.close_after_reply(KILLED)
    if old:
        return reply.OK if killed else reply.error(errors.NO_SUCH_CLIENT)
    return reply.integer(killed)


@part("kill")
def kill_here(server: Server, wanted: dict[str, Any], but: int) -> int:
    """How many; who asks is not among them."""
    found = [
        each for each in server.reactor.clients() if each.id != but and _matches(record_of(each), wanted)
    ]
    for each in found:
        each.kill(KILLED)
    return len(found)


@handles("client|pause")
async def pause(server: Server, call: "Call") -> bytes:
    """CLIENT PAUSE timeout [WRITE|ALL]"""
    what = call.args[3].lower() if len(call.args) == 4 else b"all"
    if len(call.args) > 4:
        return reply.error(errors.wrong_use("client", call.args[1]))
    if what not in (b"all", b"write"):
        return reply.error(errors.PAUSE_MODE)
    time = timeout_in(call.args[2])
    if isinstance(time, str):
        return reply.error(time)
    await server.everywhere("pause", what == b"all", time / 1000)
    return reply.OK


@part("pause")
def pause_here(server: Server, everything: bool, seconds: float) -> None:
    server.reactor.pause(everything, seconds)


@handles("client|unpause")
async def unpause(server: Server, call: "Call") -> bytes:
    await server.everywhere("unpause")
    return reply.OK


@part("unpause")
def unpause_here(server: Server) -> None:
    server.reactor.unpause()
