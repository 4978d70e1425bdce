"""Commands that concern no key: which shards they are for, and how their replies become one. Pure.

    TABLE: name of the command → Everywhere(who, merge)

`merge` gets the replies as the reader gives them, in the order of the shards, before redis-py's callbacks
make of them what its users know. What is not here and has no key is refused: `on_all` and `on_shard` ask
what one likes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from redis.exceptions import ResponseError

Merge: TypeAlias = Callable[[Sequence[Any]], Any]


class Everywhere(NamedTuple):
    """who: all shards, or any one of them that answers; `writes`: it changes something."""

    who: Literal["all", "any", "scan", "random"]
    merge: Merge
    writes: bool = False


def first(replies: Sequence[Any]) -> Any:
    return replies[0]


def alike(replies: Sequence[Any]) -> Any:
    """What every shard answers the same; where they differ, nobody can say which is right."""
    if any(reply != replies[0] for reply in replies):
        raise ResponseError("the shards do not answer alike: ask them with on_all()")
    return replies[0]


def settings(replies: Sequence[Any]) -> Any:
    """CONFIG GET: where shards differ, the first one's, as with the proxy."""
    found: dict[Any, Any] = {}
    for reply in reversed(replies):
        found |= reply if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return found if isinstance(replies[0], dict) else [each for pair in found.items() for each in pair]


def joined(replies: Sequence[Any]) -> Any:
    return [each for reply in replies for each in reply]


def distinct(replies: Sequence[Any]) -> Any:
    return list(dict.fromkeys(joined(replies)))


def known_to_all(replies: Sequence[Any]) -> Any:
    """SCRIPT EXISTS."""
    return [int(all(each)) for each in zip(*replies, strict=True)]


def summed_by_name(replies: Sequence[Any]) -> Any:
    """PUBSUB NUMSUB: names and counts in turn, or a map."""
    counts: dict[Any, int] = {}
    for reply in replies:
        pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
        for name, count in pairs:
            counts[name] = counts.get(name, 0) + count
    return [each for pair in counts.items() for each in pair]


def greatest(replies: Sequence[Any]) -> Any:
    return max(replies)


def least(replies: Sequence[Any]) -> Any:
    return min(replies)


def total(replies: Sequence[Any]) -> Any:
    return sum(replies)


HELPFUL = (
    *("acl", "client", "command", "config", "function", "latency", "memory", "module"),
    *("object", "pubsub", "script", "slowlog", "xgroup", "xinfo"),
)
_ALL = Everywhere("all", alike, writes=True)
_FIRST = Everywhere("all", first, writes=True)
_ANY = Everywhere("any", first)

TABLE: Mapping[str, Everywhere] = {
    **dict.fromkeys(("ping", "echo", "time", "lolwut"), _ANY),
    **dict.fromkeys(("command", "command|count", "command|docs", "command|info", "command|list"), _ANY),
    **dict.fromkeys(("command|getkeys", "command|getkeysandflags", "acl|whoami", "acl|cat"), _ANY),
    **dict.fromkeys((f"{name}|help" for name in HELPFUL), _ANY),
    **dict.fromkeys(("acl|genpass", "acl|dryrun"), _ANY),
    **dict.fromkeys(("acl|list", "acl|users", "acl|getuser", "module|list"), Everywhere("all", alike)),
    **dict.fromkeys(("acl|setuser", "acl|deluser", "acl|load", "acl|save"), _ALL),
    **dict.fromkeys(("client|pause", "client|unpause"), _ALL),
    **dict.fromkeys(("function|list", "function|dump", "function|stats"), _ANY),
    "dbsize": Everywhere("all", total),
    "keys": Everywhere("all", joined),
    "scan": Everywhere("scan", first),
    "randomkey": Everywhere("random", first),
    **dict.fromkeys(("flushall", "flushdb", "swapdb"), _ALL),
    **dict.fromkeys(("script|load", "script|flush"), _ALL),
    **dict.fromkeys(("function|load", "function|delete", "function|flush", "function|restore"), _ALL),
    "script|exists": Everywhere("all", known_to_all),
    "config|get": Everywhere("all", settings),
    **dict.fromkeys(("config|set", "config|resetstat", "config|rewrite"), _ALL),
    **dict.fromkeys(("save", "bgsave", "bgrewriteaof", "memory|purge", "slowlog|reset"), _FIRST),
    "lastsave": Everywhere("all", least),
    "slowlog|len": Everywhere("all", total),
    "latency|reset": Everywhere("all", total, writes=True),
    "pubsub|channels": Everywhere("all", distinct),
    "pubsub|shardchannels": Everywhere("all", distinct),
    "pubsub|numsub": Everywhere("all", summed_by_name),
    "pubsub|shardnumsub": Everywhere("all", summed_by_name),
    "pubsub|numpat": Everywhere("all", greatest),
}
