"""ACL: the users of this proxy, in Redis's words. They are read from the configuration; SETUSER and DELUSER
change them where it is owned, for all workers, until it is read again.

What is shown of a password is its SHA-256 digest, as in Redis, and to nobody whose rules do not name ACL.
"""

import secrets
import time
from typing import TYPE_CHECKING, Any

from shardproxy.core import acl, acl_rules, errors, reply
from shardproxy.core.permit import Permit
from shardproxy.handlers.accesslog import AccessEntry, all_entries
from shardproxy.handlers.base import Outcome, Server, handles
from shardproxy.handlers.connection import integer_in
from shardproxy.handlers.operate import change, trusted

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call

SHOWN = 10  # entries of ACL LOG, when it is not said how many
GENPASS_MOST = 4096  # bits


def name_in(arg: bytes) -> str:
    return arg.decode(errors="surrogateescape")


def bytes_of(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


@handles("acl|whoami")
def whoami(server: Server, call: "Call") -> bytes:
    return reply.bulk(call.client.user or acl.DEFAULT)


@handles("acl|users")
def users(server: Server, call: "Call") -> bytes:
    return reply.bulks([bytes_of(user.name) for user in server.users.listed()])


@handles("acl|list")
def list_(server: Server, call: "Call") -> bytes:
    return reply.bulks([bytes_of(user.describe()) for user in server.users.listed()])


def _selector(selector: acl.Selector) -> list[tuple[bytes, bytes]]:
    texts = (
        ("commands", selector.command_text),
        ("keys", selector.key_text),
        ("channels", selector.channel_text),
    )
    return [(reply.bulk(name), reply.bulk(bytes_of(text))) for name, text in texts]


@handles("acl|getuser")
def getuser(server: Server, call: "Call") -> bytes:
    user = server.users.get(name_in(call.args[2]))
    if user is None:
        return reply.null(call.proto)
    flags = [reply.bulk(flag) for flag in user.flags]
    selectors = [reply.mapping(_selector(each), call.proto) for each in user.selectors]
    return reply.mapping(
        [
            (reply.bulk("flags"), reply.set_(flags, call.proto)),
            (reply.bulk("passwords"), reply.bulks(list(user.passwords))),
            *_selector(user.root),
            (reply.bulk("selectors"), reply.array(selectors)),
        ],
        call.proto,
    )


@handles("acl|cat")
def cat(server: Server, call: "Call") -> bytes:
    """ACL CAT [category]"""
    if len(call.args) == 2:
        return reply.bulks(list(acl_rules.CATEGORIES))
    if len(call.args) > 3:
        return reply.error(errors.wrong_use("acl", call.args[1]))
    rows = [flat for row in server.commands.rows() for flat in row.flat()]
    asked = name_in(call.args[2]).lower()
    if asked not in acl_rules.CATEGORIES and not any(asked in row.categories for row in rows):
        return reply.error(errors.acl_category(call.args[2]))
    return reply.bulks([row.name for row in rows if asked in row.categories])


@handles("acl|dryrun")
def dryrun(server: Server, call: "Call") -> bytes:
    """ACL DRYRUN user command [arg ...]"""
    user, args = server.users.get(name_in(call.args[2])), call.args[3:]
    if user is None:
        return reply.error(errors.acl_no_user(call.args[2]))
    row = server.commands.row(args[0])
    if row is not None and row.subcommands and len(args) > 1:
        row = server.commands.row(*args[:2])
    if row is None:
        return reply.error(errors.acl_no_command(args[0]))
    if len(args) < abs(row.arity) or (row.arity > 0 and len(args) != row.arity):
        return reply.error(errors.wrong_arity(row.name))
    verdict, at = Permit(user, server.commands, server.users.trust_scripts).examine(args)
    if verdict == "allowed" and acl_rules.APART in row.categories:
        verdict, at = "allowed" if acl_rules.grants_apart(user, row.name, server.commands) else "command", 0
    if verdict == "allowed":
        return reply.OK
    return reply.bulk(errors.acl_dry(verdict, row.name, args[at]))


@handles("acl|log")
async def log(server: Server, call: "Call") -> bytes:
    """ACL LOG [count | RESET]: what was refused, by all workers, the latest first"""
    if len(call.args) > 3:
        return reply.error(errors.wrong_use("acl", call.args[1]))
    count = SHOWN
    if len(call.args) == 3:
        if call.args[2].lower() == b"reset":
            await server.everywhere("forget denials")
            return reply.OK
        asked = integer_in(call.args[2])
        if asked is None:
            return reply.error(errors.NOT_AN_INTEGER)
        count = max(asked, 0)
    now, entries = time.time(), await all_entries(server)
    return reply.array([_entry(entry, now, call.proto) for entry in entries[:count]])


def _entry(entry: AccessEntry, now: float, proto: int) -> bytes:
    return reply.mapping(
        [
            (reply.bulk("count"), reply.integer(entry.count)),
            (reply.bulk("reason"), reply.bulk(entry.reason)),
            (reply.bulk("context"), reply.bulk(entry.context)),
            (reply.bulk("object"), reply.bulk(entry.object)),
            (reply.bulk("username"), reply.bulk(bytes_of(entry.user))),
            (reply.bulk("age-seconds"), reply.double(round(now - entry.updated, 3), proto)),
            (reply.bulk("client-info"), reply.bulk(bytes_of(entry.client))),
        ],
        proto,
    )


@handles("acl|genpass")
def genpass(server: Server, call: "Call") -> bytes:
    """ACL GENPASS [bits]"""
    bits = 256
    if len(call.args) > 3:
        return reply.error(errors.wrong_use("acl", call.args[1]))
    if len(call.args) == 3:
        asked = integer_in(call.args[2])
        if asked is None:
            return reply.error(errors.NOT_AN_INTEGER)
        if not 0 < asked <= GENPASS_MOST:
            return reply.error(errors.ACL_GENPASS)
        bits = asked
    digits = -(-bits // 4)
    return reply.bulk(secrets.token_hex(-(-digits // 2))[:digits])


@handles("acl|load")
async def load(server: Server, call: "Call") -> bytes:
    """As PROXY RELOAD, which reads the users again too."""
    outcome = await change(server, call, "reload")
    return reply.error(outcome.error) if outcome.error else reply.OK


async def _change(server: Server, call: "Call", what: str, *args: Any) -> Outcome:
    return await change(server, call, what, (call.client.user or b"default").decode(errors="replace"), *args)


@handles("acl|setuser")
async def setuser(server: Server, call: "Call") -> bytes:
    """ACL SETUSER username [rule ...]"""
    outcome = await _change(server, call, "setuser", call.args[2], call.args[3:])
    return reply.error(outcome.error) if outcome.error else reply.OK


@handles("acl|deluser")
async def deluser(server: Server, call: "Call") -> bytes:
    """ACL DELUSER username [username ...]"""
    names, client = call.args[2:], call.client
    if client.user in names and b"default" not in names and trusted(server, call):
        client.close_after_reply("its user was removed")  # it is still told how many there were
    outcome = await _change(server, call, "deluser", names)
    return reply.error(outcome.error) if outcome.error else reply.integer(outcome.answer["changed"])


@handles("acl|save")
async def save(server: Server, call: "Call") -> bytes:
    """To the acl_file."""
    outcome = await _change(server, call, "saveusers")
    return reply.error(outcome.error) if outcome.error else reply.OK


HELP = """\
ACL <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
CAT [<category>]
    List all commands that belong to <category>, or all command categories
    when no category is specified.
DELUSER <username> [<username> ...]
    Delete a list of users.
DRYRUN <username> <command> [<arg> ...]
    Returns whether the user can execute the given command without executing the command.
GETUSER <username>
    Get the user's details.
GENPASS [<bits>]
    Generate a secure 256-bit user password. The optional `bits` argument can
    be used to specify a different size.
LIST
    Show users details in config file format.
LOAD
    Load the configuration's file again, as PROXY RELOAD does.
LOG [<count> | RESET]
    Show the ACL log entries.
SAVE
    Save the current config to the ACL file.
SETUSER <username> <attribute> [<attribute> ...]
    Create or modify a user with the specified attributes.
USERS
    List all the registered usernames.
WHOAMI
    Return the current connection username.
HELP
    Prints this help."""


@handles("acl|help")
def help_(server: Server, call: "Call") -> bytes:
    return reply.simples(HELP.split("\n"))
