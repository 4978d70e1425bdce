"""What this proxy does with each command: the decisions, in one table that wins over everything published.

A command that is not named here is forwarded, if it has keys. Whatever has none, or may block, administer or
change a connection, must be named: `decide` raises otherwise, so a new row cannot slip through. A decision
on a container holds for those of its subcommands that are not named themselves.

`why` completes the sentence  -ERR 'BLPOP' is not supported yet: <why>
"""

from collections.abc import Mapping
from typing import Any

from shardproxy.core.across import EMULATED
from shardproxy.core.command_rows import Row, facts, parse_line, specs, words

# Ours, and of Redis 7.2 what clients send in their handshake, and WAITAOF: lines as in commands.json
EXTRA = [
    ["client|no-touch", 3, "noscript loading stale", "slow connection", "", "", "connection", "7.2.0",
     "Sets whether this client's commands count as a use of the keys"],
    ["client|setinfo", 4, "noscript loading stale", "slow connection", "", "", "connection", "7.2.0",
     "Tells the name or version of the client's library"],
    ["waitaof", 4, "blocking", "slow blocking connection", "",
     "request_policy:all_shards response_policy:agg_min", "generic", "7.2.0",
     "Waits until disks, here and of replicas, have this connection's writes"],
    ["proxy", -2, "", "slow connection", "", "", "proxy", "0.1.0",
     "Shows this proxy: its nodes, its ring and its commands"],
    ["proxy|help", 2, "loading stale", "slow connection", "", "", "proxy", "0.1.0",
     "Lists the subcommands of PROXY"],
    ["proxy|info", -2, "loading stale", "slow connection", "", "", "proxy", "0.1.0",
     "Shows the proxy's counters and state"],
    ["proxy|nodes", 2, "loading stale", "slow connection", "", "", "proxy", "0.1.0",
     "Shows every node: address, state and reason"],
    ["proxy|locate", -3, "loading stale", "slow connection", "", "", "proxy", "0.1.0",
     "Shows the shard and the node that hold a key"],
    ["proxy|commands", -2, "loading stale", "slow connection", "", "", "proxy", "0.1.0",
     "Shows what is done with each command"],
    ["proxy|topology", -2, "loading stale", "slow connection", "", "", "proxy", "0.1.0",
     "Shows pools, shards and rings"],
    ["proxy|reload", 2, "admin loading stale", "admin slow dangerous", "", "", "proxy", "0.1.0",
     "Loads the configuration's file again"],
    ["proxy|drain", -3, "admin loading stale", "admin slow dangerous", "", "", "proxy", "0.1.0",
     "Takes a shard off the ring"],
    ["proxy|node", -4, "admin loading stale", "admin slow dangerous", "", "", "proxy", "0.1.0",
     "Runs a command on the node of one shard"],
    ["proxy|undrain", 3, "admin loading stale", "admin slow dangerous", "", "", "proxy", "0.1.0",
     "Puts a drained shard back on the ring"],
    ["session.create", -1, "noscript no_multi", "session slow", "", "", "session", "0.1.0",
     "Creates a session"],
    ["session.load", 2, "noscript no_multi", "session slow", "", "", "session", "0.1.0",
     "Shows a session"],
    ["session.save", -2, "noscript no_multi", "session slow", "", "", "session", "0.1.0",
     "Changes fields of a session, merged with what others have changed"],
    ["session.touch", 2, "noscript no_multi", "session slow", "", "", "session", "0.1.0",
     "Counts as a request: the session's idle time begins again"],
    ["session.rotate", -2, "noscript no_multi", "session slow", "", "", "session", "0.1.0",
     "Gives a session a new id, or makes it a user's"],
    ["session.destroy", 2, "noscript no_multi", "session slow", "", "", "session", "0.1.0",
     "Ends a session"],
    ["session.list", 2, "noscript no_multi", "session slow", "", "", "session", "0.1.0",
     "Shows a user's sessions"],
    ["session.revoke", 2, "noscript no_multi", "session slow", "", "", "session", "0.1.0",
     "Ends a session by its public handle"],
    ["session.revokeall", -2, "noscript no_multi", "session slow", "", "", "session", "0.1.0",
     "Ends all sessions of a user"],
]  # fmt: skip

FORWARD: dict[str, Any] = {"kind": "forward", "in_multi": True}
LOCAL: dict[str, Any] = {"kind": "local"}
# A handler that asks nodes: after all that the client sent before, and before all that it sends after
ASKS: dict[str, Any] = {"kind": "local", "barrier": True, "holds": True}
SUBSCRIBES = ASKS | {"listening": True}
# Forwarded, but to a handler when its reply, the number of receivers, has to be put right
PUBLISHES = FORWARD | {"channel": True}
MULTI: dict[str, Any] = {"kind": "multi"}

BLOCKS = "it may wait for data, and the connections to the nodes are shared by many clients"
PATTERN = "its BY or GET pattern reads keys that may live on other shards"
UNDECLARED = (
    "a script or function may touch the keys that it declares, and no others: those may live on other shards"
)


def _fanout(merge: str) -> dict[str, Any]:
    return {"kind": "fanout", "merge": merge, "in_multi": True}


def _refused(why: str) -> dict[str, Any]:
    return {"kind": "refused", "why": why}


_NODE = _refused("it acts on one node: an administrator says which with PROXY NODE")
_CLUSTER = _refused("the proxy is not a Redis Cluster node; it finds every key's node itself")
_DISABLED = _refused(
    "This instance has cluster support disabled"
)  # upper case: Redis's own words, all of them
_CONTAINER = _refused("name one of its subcommands")

# names → decision. Later lines win.
DECISIONS: list[tuple[str, dict[str, Any]]] = [
    # Keys of several shards: split, merged
    ("mget", _fanout("array")),
    ("mset", _fanout("ok")),
    ("del unlink exists touch", _fanout("sum")),
    # Forwarded although flags or key specs say little: a walk over their options finds the keys
    ("sort", FORWARD | {"walk": "sort", "why": PATTERN}),
    ("sort_ro", FORWARD | {"walk": "sort_ro", "why": PATTERN}),
    ("xread xreadgroup", FORWARD | {"walk": "xread"}),
    # Wait for data, on a connection of the client's own
    ("blmove blmpop blpop brpop brpoplpush bzmpop bzpopmax bzpopmin", FORWARD),
    ("georadius", FORWARD | {"walk": "georadius"}),
    ("georadiusbymember", FORWARD | {"walk": "georadiusbymember"}),
    ("eval eval_ro", FORWARD | {"calls": "text", "why": UNDECLARED}),
    ("evalsha evalsha_ro", FORWARD | {"calls": "sha", "why": UNDECLARED}),
    ("fcall fcall_ro", FORWARD | {"calls": "function", "why": UNDECLARED}),
    # Answered here
    ("ping", LOCAL | {"in_multi": True, "keyless": True, "listening": True}),
    ("echo time", LOCAL | {"in_multi": True, "keyless": True}),
    ("select", LOCAL | {"barrier": True}),
    ("auth hello", LOCAL | {"barrier": True, "holds": True}),  # what follows a login waits for it
    ("reset", SUBSCRIBES),
    # Asked of all nodes, and merged: handlers/keyspace, handlers/scripts, handlers/nodewide
    ("scan", ASKS),
    ("keys randomkey flushall flushdb swapdb", ASKS | {"spread": True}),
    ("script function", ASKS),
    ("script|load script|exists script|flush", ASKS | {"spread": True}),
    ("function|load function|delete function|flush function|restore", ASKS | {"spread": True}),
    ("config slowlog latency", ASKS),
    ("memory|doctor memory|malloc-stats memory|purge memory|stats", ASKS),
    ("bgrewriteaof bgsave save lastsave debug module|list", ASKS),
    ("object|help memory|help xinfo|help xgroup|help module|help", ASKS),
    ("role", LOCAL),
    ("proxy|node", ASKS),
    (
        "session.create session.load session.save session.touch session.rotate session.destroy session.list "
        "session.revoke session.revokeall",
        ASKS,
    ),
    ("move", FORWARD),
    ("dbsize", ASKS | {"spread": True}),
    ("wait waitaof lolwut", ASKS),
    ("monitor", LOCAL | {"barrier": True}),
    ("acl info client command proxy", LOCAL),
    ("quit", LOCAL | {"listening": True}),
    # Messages
    ("subscribe psubscribe ssubscribe unsubscribe punsubscribe sunsubscribe", SUBSCRIBES),
    ("publish spublish", PUBLISHES),
    ("pubsub", ASKS),
    ("pubsub|help", LOCAL),
    ("client|tracking", ASKS),
    ("acl|setuser acl|deluser acl|load", LOCAL | {"barrier": True, "holds": True}),
    ("multi exec discard watch", MULTI),
    ("unwatch", MULTI | {"in_multi": True, "keyless": True}),
    # Containers with subcommands that are forwarded
    ("object memory xinfo xgroup", _CONTAINER),
    ("object|encoding object|freq object|idletime object|refcount memory|usage", FORWARD),
    ("xinfo|consumers xinfo|groups xinfo|stream", FORWARD),
    ("xgroup|create xgroup|createconsumer xgroup|delconsumer xgroup|destroy xgroup|setid", FORWARD),
    # Refused
    (
        "migrate",
        _refused("it would move keys away from the shard that the ring gives them") | {"walk": "migrate"},
    ),
    ("cluster asking readonly readwrite", _DISABLED),
    ("restore-asking", _CLUSTER),
    ("shutdown module pfdebug pfselftest", _NODE),
    ("failover psync replconf replicaof slaveof sync", _NODE),
]

# With one of these a command is never forwarded because of its keys alone
UNSAFE_FLAGS = frozenset({"admin", "blocking", "pubsub", "noscript", "no_multi"})


def _by_name() -> dict[str, dict[str, Any]]:
    return {name: decision for names, decision in DECISIONS for name in names.split()}


def decide(line: list[Any], decisions: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What is done with a command of commands.json; ValueError when nothing was decided."""
    name, _, flags, _, keys, *_ = line
    decision = decisions.get(name) or decisions.get(name.partition("|")[0])
    if decision is not None:
        return decision
    if UNSAFE_FLAGS.isdisjoint(words(flags)) and any(spec.is_key for spec in specs(keys)):
        return FORWARD
    raise ValueError(f"what to do with {name!r} must be said in command_policy.DECISIONS")


def builtin_rows() -> list[Row]:
    """Every command of Redis 7.0, those of 7.2 that no node could teach, PROXY and SESSION; all decided.

    Made at each start, also of a client: every row is made once, with all that is said of it.
    """
    decisions, lines = _by_name(), [*facts(), *EXTRA]
    below: dict[str, list[Row]] = {}  # "config|get" in the row of "config"
    for line in lines:
        container, mark, _ = line[0].partition("|")
        if mark:
            row = parse_line(line, **decide(line, decisions))
            below.setdefault(container, []).append(row)
    return [
        parse_line(
            line,
            subcommands=tuple(below.get(line[0], ())),
            across=line[0] in EMULATED,
            **decide(line, decisions),
        )
        for line in lines
        if "|" not in line[0]
    ]
