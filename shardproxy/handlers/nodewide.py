"""What administrators ask of every node, merged: CONFIG, SLOWLOG, LATENCY, MEMORY, DEBUG, saving,
HELP.

    MERGES: name of the command → what becomes of the nodes' answers

Rules: with one node, or when all answer the same, the client gets that node's own frame. What every node
must do is done by all, or answers an error that names those that have not. What a node may take long for is
asked on connections of its own, with ten minutes for it. Options of CONFIG that are the proxy's are answered
from its configuration; a node's password never is.
"""

import fnmatch
import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from shardproxy.core import errors, reply
from shardproxy.core.sessions.scripts import SCRIPTS
from shardproxy.handlers.asking import (
    Answer,
    all_or_error,
    ask,
    ask_all,
    ask_all_apart,
    ask_apart,
    redis_places,
    usable,
    value_of,
)
from shardproxy.handlers.base import BadReply, Server, handles
from shardproxy.handlers.monitor import REDACTED
from shardproxy.handlers.operate import trusted

if TYPE_CHECKING:
    from shardproxy.dataplane.calls import Call

Merge: TypeAlias = "Callable[[Server, Call, list[Answer]], bytes]"


def encode(value: Any, proto: int) -> bytes:
    """What hiredis has read, as a frame again; a status becomes a bulk string."""
    if isinstance(value, bool):
        return reply.boolean(value, proto)
    if isinstance(value, int):
        return reply.integer(value)
    if isinstance(value, float):
        return reply.double(value, proto)
    if isinstance(value, list):
        return reply.array(encode(each, proto) for each in value)
    if isinstance(value, dict):
        return reply.mapping(
            [(encode(key, proto), encode(each, proto)) for key, each in value.items()], proto
        )
    if value is None or isinstance(value, bytes):
        return reply.bulk(value, proto)
    raise BadReply(errors.bad_reply(b"%r" % type(value).__name__.encode()))


def pairs(value: Any) -> dict[Any, Any]:
    """A map of RESP3, or of RESP2: keys and values in turn."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, list) or len(value) % 2:
        raise BadReply(errors.bad_reply(b"no map"))
    return dict(zip(value[::2], value[1::2], strict=True))


# --- merges ---


def first(server: Server, call: "Call", answers: list[Answer]) -> bytes:
    return answers[0].frame


def least(server: Server, call: "Call", answers: list[Answer]) -> bytes:
    """Of LASTSAVE: since then every node has saved."""
    return reply.integer(min(value_of(answer.frame, int) for answer in answers))


def total(server: Server, call: "Call", answers: list[Answer]) -> bytes:
    return reply.integer(sum(value_of(answer.frame, int) for answer in answers))


def texts(server: Server, call: "Call", answers: list[Answer]) -> bytes:
    """One under the other, each with its shard's name."""
    parts = [(answer.shard, value_of(answer.frame, bytes)) for answer in answers]
    text = b"\n".join(b"# shard %b\n%b" % (shard.encode(), text.rstrip(b"\n")) for shard, text in parts)
    return reply.verbatim(text + b"\n", call.proto)


def settings(server: Server, call: "Call", answers: list[Answer]) -> bytes:
    """CONFIG GET: where nodes differ, the first one's, and the log says so."""
    found: dict[bytes, bytes] = {}
    differ = set()
    for answer in answers:
        for name, value in pairs(value_of(answer.frame)).items():
            if found.setdefault(name, value) != value:
                differ.add(name)
    found |= {
        name: value for name, value in own_settings(server).items() if _asked(call, name) or name in found
    }
    if differ := differ - own_settings(server).keys():
        server.log("config_differs", options=sorted(name.decode(errors="replace") for name in differ))
    shown = [(reply.bulk(name), reply.bulk(value)) for name, value in found.items()]
    return reply.mapping(shown, call.proto)


def _asked(call: "Call", name: bytes) -> bool:
    patterns = [pattern.decode(errors="replace").lower() for pattern in call.args[2:]]
    return any(fnmatch.fnmatchcase(name.decode(), pattern) for pattern in patterns)


def own_settings(server: Server) -> dict[bytes, bytes]:
    """Options of a Redis that are this proxy's own; those that would tell a node's secret are empty."""
    limits = server.config.limits
    shown = {
        "port": server.tcp_port,
        "maxclients": limits.maxclients,
        "timeout": int(limits.idle_timeout),
        "tcp-keepalive": int(limits.tcp_keepalive),
        "proto-max-bulk-len": limits.max_value,
        "requirepass": "",
        "masterauth": "",
        "masteruser": "",
        "tls-key-file-pass": "",
        "tls-client-key-file-pass": "",
    }
    return {name.encode(): str(value).encode() for name, value in shown.items()}


# A node's slow log has the scripts of sessions, by text or name, and what they do to a record: whatever comes
# after that is somebody's session
HEAD = 60
RECORD = re.compile(rb"[^{}]*s:\{[\w-]{20}\}:[\w-]{24}", re.ASCII).fullmatch
SCRIPTS_OF_SESSIONS = {
    text[:HEAD].encode()
    for script in SCRIPTS.values()
    for text in (script.sha, script.plain_sha, script.text, script.plain)
}


def slow_entries(server: Server, call: "Call", answers: list[Answer]) -> bytes:
    """SLOWLOG GET [count]: the latest of all, as many as were asked for."""
    entries = [entry for answer in answers for entry in value_of(answer.frame, list)]
    try:
        count = int(call.args[2]) if len(call.args) > 2 else 10
        entries.sort(key=lambda entry: entry[1], reverse=True)
        for entry in entries:
            if any(each[:HEAD] in SCRIPTS_OF_SESSIONS or RECORD(each) for each in entry[3][1:2]):
                entry[3][2:] = [REDACTED]
    except (TypeError, IndexError, ValueError):
        raise BadReply(errors.bad_reply(answers[0].frame)) from None
    return encode(entries[: None if count < 0 else count], call.proto)


def spikes(server: Server, call: "Call", answers: list[Answer]) -> bytes:
    """LATENCY LATEST: of each event the latest, and the longest ever."""
    found: dict[bytes, list[Any]] = {}
    for answer in answers:
        for entry in value_of(answer.frame, list):
            if not isinstance(entry, list) or len(entry) < 4:
                raise BadReply(errors.bad_reply(answer.frame))
            known = found.setdefault(entry[0], entry)
            longest = max(known[3], entry[3])
            found[entry[0]] = [*max(known, entry, key=lambda it: it[1])[:3], longest]
    return encode(list(found.values()), call.proto)


def history(server: Server, call: "Call", answers: list[Answer]) -> bytes:
    """LATENCY HISTORY event"""
    return encode(sorted(entry for answer in answers for entry in value_of(answer.frame, list)), call.proto)


def histograms(server: Server, call: "Call", answers: list[Answer]) -> bytes:
    """LATENCY HISTOGRAM: they are cumulative, and have only buckets in which something is."""
    commands: dict[bytes, list[dict[Any, Any]]] = {}
    for answer in answers:
        for name, found in pairs(value_of(answer.frame)).items():
            commands.setdefault(name, []).append(pairs(found))
    merged = {}
    for name, parts in commands.items():
        counts = [pairs(part[b"histogram_usec"]) for part in parts]
        summed = {
            bucket: sum(max((n for b, n in each.items() if b <= bucket), default=0) for each in counts)
            for bucket in sorted({bucket for each in counts for bucket in each})
        }
        merged[name] = _flat({b"calls": sum(part[b"calls"] for part in parts),
                              b"histogram_usec": _flat(summed, call)}, call)  # fmt: skip
    return encode(_flat(merged, call), call.proto)


def _flat(value: Mapping[Any, Any], call: "Call") -> Any:
    return dict(value) if call.proto == 3 else [each for pair in value.items() for each in pair]


def figures(server: Server, call: "Call", answers: list[Answer]) -> bytes:
    """MEMORY STATS: sums of what can be added, means of ratios and percentages, each database's map."""
    return encode(
        _flat(_summed([pairs(value_of(answer.frame)) for answer in answers], call), call), call.proto
    )


def _summed(parts: Sequence[Mapping[Any, Any]], call: "Call") -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        if all(isinstance(value, int) for value in values):
            found[name] = sum(values)
        elif all(isinstance(value, float) for value in values):
            found[name] = sum(values) / len(values)
        elif all(isinstance(value, list | dict) for value in values):
            found[name] = _flat(_summed([pairs(value) for value in values], call), call)
        else:
            numbers = [float(value) for value in values if isinstance(value, bytes)]  # of RESP2
            found[name] = b"%.17g" % (sum(numbers) / max(len(numbers), 1))
    return found


def modules(server: Server, call: "Call", answers: list[Answer]) -> bytes:
    """MODULE LIST: those that every node has."""
    lists = [{pairs(entry)[b"name"]: entry for entry in value_of(answer.frame, list)} for answer in answers]
    common = [entry for name, entry in lists[0].items() if all(name in other for other in lists[1:])]
    return encode(common, call.proto)


def digest(server: Server, call: "Call", answers: list[Answer]) -> bytes:
    """DEBUG DIGEST: that of a database is the XOR of its keys'."""
    numbers = [int(value_of(answer.frame, bytes), 16) for answer in answers]
    return reply.simple(f"{functools.reduce(operator.xor, numbers):040x}")


MERGES: dict[str, Merge] = {
    "config|get": settings,
    "slowlog|get": slow_entries,
    "slowlog|len": total,
    "latency|latest": spikes,
    "latency|history": history,
    "latency|histogram": histograms,
    "latency|reset": total,
    "latency|doctor": texts,
    "latency|graph": texts,
    "memory|doctor": texts,
    "memory|malloc-stats": texts,
    "memory|stats": figures,
    "module|list": modules,
    "lastsave": least,
}
# Done by all: +OK, or what the first one says
EVERYWHERE = ("slowlog|reset", "memory|purge", "config|set", "config|resetstat", "config|rewrite")
SAVING = ("bgsave", "save", "bgrewriteaof")
HELPS = (
    "config|help", "function|help", "latency|help", "memory|help", "module|help", "object|help",
    "script|help",
    "slowlog|help", "xgroup|help", "xinfo|help",
)  # fmt: skip
# DEBUG's: to all, or to the key's shard; everything else is refused
DEBUG_ALL: dict[str, Merge] = {
    "sleep": first, "jmap": first, "reload": first, "loadaof": first, "set-active-expire": first,
    "set-disable-deny-scripts": first, "quicklist-packed-threshold": first, "stringmatch-len": first,
    "change-repl-id": first, "replicate": first, "config-rewrite-force-all": first, "digest": digest,
    "listpack-entries": first, "dict-resizing": first, "script": first,
}  # fmt: skip
DEBUG_KEY = ("object", "sdslen", "ziplist", "listpack", "quicklist", "htstats-key", "stringmatch")


@handles(*MERGES)
async def merged(server: Server, call: "Call") -> bytes:
    if error := refusal(server, call):
        return error
    answers = usable(server, await ask_all(server, call, *call.args, write=False))
    if isinstance(answers, bytes):
        return answers
    return _merge(server, call, answers, MERGES[call.row.name])


def _merge(server: Server, call: "Call", answers: list[Answer], merge: Merge) -> bytes:
    if len(answers) == 1 and merge is not settings:
        return answers[0].frame
    try:
        return merge(server, call, answers)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ):  # a node may answer anything
        raise BadReply(errors.bad_reply(answers[0].frame)) from None


def refusal(server: Server, call: "Call") -> bytes | None:
    """An administrator's command, from who may not be one."""
    return reply.error(errors.NOT_LOCAL) if "admin" in call.row.flags and not trusted(server, call) else None


@handles(*EVERYWHERE)
async def everywhere(server: Server, call: "Call") -> bytes:
    if error := refusal(server, call):
        return error
    if call.row.name == "config|set":
        mine = own_settings(server)
        for option in call.args[2::2]:
            if option.lower() in mine:
                return reply.error(errors.proxys_own(option.decode(errors="replace")[:64]))
    answers = await ask_all_apart(server, call, *call.args)
    if call.row.name == "config|resetstat":
        await server.everywhere("reset statistics")
    return all_or_error(call.row.name.replace("|", " ").upper(), answers) or answers[0].frame


@handles(*SAVING)
async def save(server: Server, call: "Call") -> bytes:
    if error := refusal(server, call):
        return error
    answers = await ask_all_apart(server, call, *call.args)
    return all_or_error(call.row.name.upper(), answers) or answers[0].frame


@handles(*HELPS)
async def help_(server: Server, call: "Call") -> bytes:
    return await _help(server, call)


async def _help(server: Server, call: "Call") -> bytes:
    """A node's own words."""
    frame = reply.error(errors.NO_SHARDS)
    for node, _ in redis_places(server):
        frame = await ask(server, node, *call.args, client=call.client, write=False)
        if not frame.startswith((b"-SHARDDOWN ", b"-TIMEOUT ", b"-OVERLOADED ")):
            break
    return frame


@handles("debug")
async def debug(server: Server, call: "Call") -> bytes:
    """DEBUG subcommand ...: few of them, see DEBUG_ALL and DEBUG_KEY."""
    if error := refusal(server, call):
        return error
    name = call.args[1].decode(errors="replace").lower()
    if name == "help":
        return await _help(server, call)
    if name == "digest-value" or (name in DEBUG_KEY and len(call.args) > 2):
        nodes = {server.reactor.node_of(key) for key in call.args[2 : None if name == "digest-value" else 3]}
        if len(nodes) != 1:
            return reply.error(errors.debug(name) if nodes else errors.wrong_arity("debug"))
        return await ask_apart(server, nodes.pop(), *call.args, proto=call.proto, db=call.client.db)
    if name not in DEBUG_ALL:
        return reply.error(errors.debug(name))
    answers = await ask_all_apart(server, call, *call.args)
    return all_or_error("DEBUG", answers) or _merge(server, call, answers, DEBUG_ALL[name])


@handles("role")
def role(server: Server, call: "Call") -> bytes:
    """As INFO says: a master, of whose replicas nothing is told."""
    return reply.array([reply.bulk("master"), reply.integer(0), reply.array([])])
