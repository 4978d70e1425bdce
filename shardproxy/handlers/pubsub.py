"""SUBSCRIBE and its kin, PUBLISH, PUBSUB. Who has subscribed to what is subscriptions'.

PUBLISH is an ordinary command for the shard of its channel and never comes here, unless what the node
answers, the number of receivers, has to be put right, or somebody is about to subscribe to that channel.
"""

from typing import TYPE_CHECKING

from shardproxy.core import errors, reply
from shardproxy.handlers.asking import Answer, ask_all, pack, value_of
from shardproxy.handlers.base import Answer as Reply
from shardproxy.handlers.base import Server, handles
from shardproxy.handlers.node_listeners import CHANNEL, PATTERN, SHARD
from shardproxy.handlers.subscriptions import Subscription

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call

KIND_OF = {"": CHANNEL, "p": PATTERN, "s": SHARD}


def told(verb: bytes, name: bytes | None, count: int, proto: int) -> bytes:
    """What a client is told of each name."""
    return reply.push([reply.bulk(verb), reply.bulk(name, proto), reply.integer(count)], proto)


def tell(call: "Call", frames: list[bytes]) -> None:
    """As a push, which CLIENT REPLY OFF does not keep back; all that was asked before is answered."""
    if call.in_exec:
        call.reply(b"".join(frames))
        return
    call.client.push(b"".join(frames))
    call.reply(reply.NOTHING)


@handles("subscribe", "psubscribe", "ssubscribe")
def subscribe(server: Server, call: "Call") -> Reply:
    verb, client = call.row.name, call.client
    kind = KIND_OF[verb.removesuffix("subscribe")]
    if shard := server.subscriptions.impossible(kind, call.args[1:]):
        return reply.error(errors.not_on_memcached(verb, shard))
    if not server.subscriptions.room_for(client, len(call.args) - 1):
        return reply.error(errors.TOO_MANY_SUBSCRIPTIONS)
    return _subscribe(server, call, kind, server.subscriptions.enlist(client, kind, call.args[1:]))


async def _subscribe(server: Server, call: "Call", kind: int, new: list[Subscription]) -> bytes | None:
    verb, client = call.row.name, call.client
    before = set(server.subscriptions.of(client).names[kind])
    count = counted(client.subscriptions, kind)
    if error := await server.subscriptions.subscribe(client, new):
        return error
    frames = []
    for name in call.args[1:]:
        count += name not in before
        before.add(name)
        frames.append(told(verb.encode(), name, count, call.proto))
    tell(call, frames)
    return None


def counted(counts: tuple[int, int, int], kind: int) -> int:
    """What confirmations count: channels and patterns together, shard channels alone."""
    channels, patterns, shards = counts
    return shards if kind == SHARD else channels + patterns


@handles("unsubscribe", "punsubscribe", "sunsubscribe")
async def unsubscribe(server: Server, call: "Call") -> bytes | None:
    verb, client = call.row.name, call.client
    kind = KIND_OF[verb.removesuffix("unsubscribe")]
    mine = server.subscriptions.subscribers.get(client.id)
    held = set(mine.names[kind]) if mine else set()
    count = counted(client.subscriptions, kind)
    names: list[bytes] = call.args[1:] or list(mine.names[kind] if mine else ())
    if held.intersection(names):
        await server.subscriptions.unsubscribe(client, kind, names)
    frames = []
    for name in names:
        count -= name in held
        held.discard(name)
        frames.append(told(verb.encode(), name, count, call.proto))
    tell(call, frames or [told(verb.encode(), None, count, call.proto)])
    return None


@handles("publish", "spublish")
def publish(server: Server, call: "Call") -> None:
    kind = SHARD if call.row.name == "spublish" else CHANNEL
    channel = call.args[1]

    def done(frame: bytes) -> None:
        if frame.startswith(b":"):
            frame = reply.integer(server.subscriptions.receivers.of_message(kind, channel, int(frame[1:-2])))
        call.reply(frame)

    def send() -> None:
        reactor = server.reactor
        reactor.ask(reactor.node_of(channel), pack(*call.args), done, client=call.client)

    server.subscriptions.receivers.when_heard(kind, channel, send)


# --- PUBSUB ---


def refused(answers: list[Answer]) -> bytes | None:
    return next((answer.frame for answer in answers if answer.failed), None)


@handles("pubsub|channels", "pubsub|shardchannels")
async def channels(server: Server, call: "Call") -> bytes:
    """PUBSUB CHANNELS [pattern]"""
    if len(call.args) > 3:
        return reply.error(errors.wrong_use("pubsub", call.args[1]))
    answers = await ask_all(server, call, *call.args, write=False)
    if error := refused(answers):
        return error
    found = dict.fromkeys(
        name for answer in answers for name in value_of(answer.frame, list) if isinstance(name, bytes)
    )
    return reply.bulks(found, call.proto)


@handles("pubsub|numsub", "pubsub|shardnumsub")
async def numsub(server: Server, call: "Call") -> bytes:
    """PUBSUB NUMSUB [channel ...]"""
    names = call.args[2:]
    kind = SHARD if call.row.name.endswith("shardnumsub") else CHANNEL
    answers = await ask_all(server, call, *call.args, write=False) if names else []
    if error := refused(answers):
        return error
    seen = dict.fromkeys(names, 0)
    for answer in answers:
        found = value_of(answer.frame, list)
        for name, count in zip(found[::2], found[1::2], strict=False):
            # a channel of keyspace notifications is on every node, which each count us
            if isinstance(name, bytes) and name in seen and isinstance(count, int):
                seen[name] = max(seen[name], count)
    frames = []
    for name in names:
        frames += [
            reply.bulk(name),
            reply.integer(max(0, seen[name] + server.subscriptions.receivers.surplus(kind, name))),
        ]
    return reply.array(frames)


@handles("pubsub|numpat")
async def numpat(server: Server, call: "Call") -> bytes:
    """Ours are on every node; with patterns of others there too this is a lower bound."""
    answers = await ask_all(server, call, *call.args, write=False)
    if error := refused(answers):
        return error
    return reply.integer(max(value_of(answer.frame, int) for answer in answers))


HELP = """\
PUBSUB <subcommand> [<arg> [value] [opt] ...]. Subcommands are:
CHANNELS [<pattern>]
    Return the currently active channels matching a <pattern> (default: '*').
NUMPAT
    Return number of subscriptions to patterns.
NUMSUB [<channel> ...]
    Return the number of subscribers for the specified channels, excluding
    pattern subscriptions(default: no channels).
SHARDCHANNELS [<pattern>]
    Return the currently active shard level channels matching a <pattern> (default: '*').
SHARDNUMSUB [<shardchannel> ...]
    Return the number of subscribers for the specified shard level channel(s)
HELP
    Prints this help."""


@handles("pubsub|help")
def help_(server: Server, call: "Call") -> bytes:
    return reply.simples(HELP.split("\n"))
