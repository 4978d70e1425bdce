"""Redis's commands on a memcached node: each is a program, which does no I/O itself.

    program = start("incr", [b"INCR", b"hits"], Node(time.time))
    ask = next(program)             # StopIteration.value: the reply, at once
    ask = program.send(replies)     # what ask.data was answered, parsed: ask.replies of them
    # (before ask.data is sent, ask.pause seconds pass)

wire     requests and replies as bytes
items    reading, and compare-and-swap
expiry   TTLs, and the options that set them
numbers  integers, and long doubles
strings  programs of GET, SET, INCR, ...
keys     programs of DEL, EXPIRE, TTL, ...

A program's reply is None, an int, bytes, a Status, a Failure or a list of these; `encode` makes RESP of it.
Arity is the command table's, and checked before. A command that is not in PROGRAMS is not possible.
"""

from collections.abc import Callable

from shardproxy.core import errors, reply
from shardproxy.core.memcached import keys, strings
from shardproxy.core.memcached.expiry import Node
from shardproxy.core.memcached.items import Ask, Steps
from shardproxy.core.memcached.strings import Failure, Status, Value
from shardproxy.core.memcached.wire import Frames, OfNode, Refused, Reply, parse

__all__ = [
    "PROGRAMS",
    "Ask",
    "Failure",
    "Frames",
    "Node",
    "OfNode",
    "Reply",
    "Status",
    "Steps",
    "Value",
    "encode",
    "parse",
    "start",
]

# By names of the command table
PROGRAMS: dict[str, Callable[[Node, str, list[bytes]], Steps[Value]]] = {
    "get": strings.get,
    "mget": strings.mget,
    "set": strings.set_,
    "mset": strings.mset,
    "setnx": strings.setnx,
    **dict.fromkeys(("setex", "psetex"), strings.setex),
    "getset": strings.getset,
    "getdel": strings.getdel,
    "getex": strings.getex,
    "strlen": strings.strlen,
    "append": strings.append,
    "getrange": strings.getrange,
    "setrange": strings.setrange,
    **dict.fromkeys(("incr", "decr", "incrby", "decrby"), strings.incr),
    "incrbyfloat": strings.incrbyfloat,
    **dict.fromkeys(("del", "unlink"), keys.del_),
    **dict.fromkeys(("exists", "touch"), keys.exists),
    "type": keys.type_,
    "object|encoding": keys.object_encoding,
    "memory|usage": keys.memory_usage,
    **dict.fromkeys(("expire", "pexpire", "expireat", "pexpireat"), keys.expire),
    "persist": keys.persist,
    **dict.fromkeys(("ttl", "pttl", "expiretime", "pexpiretime"), keys.ttl),
    "dbsize": keys.dbsize,
    **dict.fromkeys(("flushall", "flushdb"), keys.flush),
    "ping": keys.ping,
}


def start(name: str, args: list[bytes], node: Node) -> Steps[Value]:
    """A command's program. name: of the command table, "object|encoding"; args: with the name itself."""
    program = PROGRAMS.get(name)
    if program is None:
        return Failure(errors.not_on_memcached(name, node.shard))
    try:
        return (yield from program(node, name, args))
    except OfNode as error:
        return Failure(str(error).replace("{}", node.where(), 1))
    except Refused as error:
        return Failure(str(error))


def encode(value: Value, proto: int = 2) -> bytes:
    """A program's reply as RESP."""
    match value:
        case Status(text):
            return reply.simple(text, proto)
        case Failure(text):
            return reply.error(text, proto)
        case int():
            return reply.integer(value, proto)
        case list():
            return reply.array([encode(each, proto) for each in value], proto)
    return reply.bulk(value, proto)
