"""PROXY RELOAD, DRAIN, UNDRAIN: what changes the proxy while it runs.

They act for all workers, so they are carried out where configuration and topology are owned
(`Server.operate`). Who has not logged in with a password may ask on this machine only.
"""

import ipaddress
from typing import TYPE_CHECKING, Any

import msgspec

from shardproxy.core import errors, reply
from shardproxy.core.acl import DEFAULT
from shardproxy.handlers.base import Outcome, Server, handles

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call


def is_local(address: str) -> bool:
    """Whether a client's address, as CLIENT LIST shows it, is of this machine."""
    if address.startswith("/"):
        return True  # a unix socket
    try:
        host = ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    mapped = getattr(host, "ipv4_mapped", None)
    return bool((mapped or host).is_loopback)


def _name(arg: bytes) -> str:
    """Of a shard; text that can be sent to another process, whatever a client sent."""
    return arg[:200].decode(errors="replace")


def trusted(server: Server, call: "Call") -> bool:
    """May do what concerns everybody: it has logged in with a password, or is on this machine."""
    user = server.users.get(call.client.user.decode(errors="surrogateescape") or DEFAULT)
    return (user is not None and not user.nopass) or is_local(call.client.addr)


async def change(server: Server, call: "Call", what: str, *args: Any) -> Outcome:
    if not trusted(server, call):
        return Outcome(errors.NOT_LOCAL)
    return await server.operate(what, *args)


async def _operate(server: Server, call: "Call", what: str, *args: Any) -> bytes:
    outcome = await change(server, call, what, *args)
    if outcome.error:
        return reply.error(outcome.error)
    return reply.bulk(msgspec.json.format(msgspec.json.encode(outcome.answer), indent=2))


@handles("proxy|reload")
async def reload(server: Server, call: "Call") -> bytes:
    return await _operate(server, call, "reload")


@handles("proxy|drain")
async def drain(server: Server, call: "Call") -> bytes:
    """PROXY DRAIN shard [FORCE]"""
    options = [arg.lower() for arg in call.args[3:]]
    if options not in ([], [b"force"]):
        return reply.error(errors.SYNTAX)
    return await _operate(server, call, "drain", _name(call.args[2]), bool(options))


@handles("proxy|undrain")
async def undrain(server: Server, call: "Call") -> bytes:
    return await _operate(server, call, "undrain", _name(call.args[2]))
