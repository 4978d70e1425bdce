"""Commands over several shards, emulated: which shard does it, and what has to be brought there first.

Pure: who owns a key is a function that the caller gives. A command whose other keys are only read runs where
its destination lives, or where most of its keys do; copies of the others are brought there, under temporary
keys. What this can promise is said in docs/across-shards.md: it is not atomic.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

FIRST, LAST, NOWHERE = 0, -1, None

# Which of a command's keys is written, and so says where it runs; the others are read
GATHERED: dict[str, int | None] = {
    **dict.fromkeys(("sinter", "sunion", "sdiff", "sintercard"), NOWHERE),
    **dict.fromkeys(("zinter", "zunion", "zdiff", "zintercard", "pfcount", "lcs"), NOWHERE),
    **dict.fromkeys(("sinterstore", "sunionstore", "sdiffstore", "bitop", "pfmerge"), FIRST),
    **dict.fromkeys(("zinterstore", "zunionstore", "zdiffstore", "zrangestore", "geosearchstore"), FIRST),
    **dict.fromkeys(("georadius", "georadiusbymember", "sort"), LAST),
}
# Moves from one key to another: each done in its own way
MOVED = ("rename", "renamenx", "copy", "smove", "lmove", "rpoplpush")
# Take from the first key that has something
FIRST_OF = ("lmpop", "zmpop")
EMULATED = frozenset((*GATHERED, *MOVED, *FIRST_OF))

TEMPORARY = b"shardproxy:temporary:"
TEMPORARY_LIFE = 60_000  # ms
MOVES = 5  # tries of a list's move, when others take from it meanwhile
# The end of a list, if it is still what has been copied: 1, else 0
TAKE = (
    "local at = ARGV[1] == 'LEFT' and 0 or -1 "
    "if redis.call('LINDEX', KEYS[1], at) ~= ARGV[2] then return 0 end "
    "redis.call(ARGV[1] == 'LEFT' and 'LPOP' or 'RPOP', KEYS[1]) return 1"
)
TRIES = 4096  # names that are tried for one that lands on a shard


class Plan(NamedTuple):
    node: int  # where it runs
    args: list[bytes]  # with the temporary keys in
    copies: dict[bytes, tuple[int, bytes]]  # key → (its node, its temporary name)


def plan(
    name: str,
    args: Sequence[bytes],
    positions: Sequence[int],
    node_of: Callable[[bytes], int],
    token: str,
) -> Plan:
    """How to run one of GATHERED. positions: of its keys in args; token: makes temporary names unique."""
    homes = {args[at]: node_of(args[at]) for at in positions}
    written = GATHERED[name]
    if written is None:
        node = Counter(homes[args[at]] for at in positions).most_common(1)[0][0]
    else:
        node = homes[args[positions[written]]]
    names = temporary_names(node, node_of, token, sum(home != node for home in homes.values()))
    copies = {key: (home, names.pop()) for key, home in homes.items() if home != node}
    new = list(args)
    for at in positions:
        if args[at] in copies:
            new[at] = copies[args[at]][1]
    return Plan(node, new, copies)


def temporary_names(node: int, node_of: Callable[[bytes], int], token: str, count: int) -> list[bytes]:
    """Keys that live on that node, so that whoever looks through it does not take them for strays.

    Raises ValueError when there are none to be found: no ring gives a shard so small a part.
    """
    found: list[bytes] = []
    for number in range(TRIES * max(count, 1)):
        if len(found) == count:
            break
        name = b"%b%b:%d" % (TEMPORARY, token.encode(), number)
        if node_of(name) == node:
            found.append(name)
    else:
        raise ValueError("no name lands on that shard")
    return found
