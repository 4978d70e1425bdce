"""mcrouter's configuration (JSON with comments) → drafts of shardproxy.toml, as far as its pools go.

What a pool is, is carried over: servers, times, weights. Keys stay where they are by Ch3, mcrouter's default,
and by Crc32 where ours is equal; its other hashes are not spoken here. Of the route handles only a route to a
single pool means the same; all the others are named as lost, in every pool that they use.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from shardproxy.config import text
from shardproxy.config.imports.drafts import MEMCACHED_CLIENTS, Draft, Reader, join, wrong

TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/|,(?=\s*[}\]])', re.DOTALL)
ROUTES_TO_A_POOL = ("PoolRoute", "HashRoute")
# of a pool, and of a PoolRoute; the first ones are carried over, of the others the name is all we know
KNOWN = (
    "servers", "protocol", "server_timeout", "connect_timeout", "hash", "weights", "hash_weights",
    "hash_salt",
)  # fmt: skip
ROUTE_KNOWN = ("type", "pool", "hash", "hash_func", "weights", "children")
SERVER = '"HOST:PORT" or "HOST:PORT:ascii"'
TIMEOUT_MS = 1000  # --server-timeout, where the file says nothing
WEIGHT_STEPS = 100  # mcrouter's weights are parts of 1, ours whole numbers
POINTS = 200  # on the ring, of the heaviest server

NOTES = {
    "listen": "mcrouter has it on its command line (--port)",
    "on_shard_down": "as mcrouter: reads of a server that is down are misses, writes are errors; "
    '"rehash" sends both to other shards',
    "server_timeout": "server_timeout; of a request in all, retries too",
    "no server_timeout": "mcrouter's --server-timeout, if its command line does not change it",
    "same": "every key stays where mcrouter has it; the names are positions, which is what it goes by",
    "ring": "KEYS MOVE: mcrouter's {} is not spoken here. The cache begins cold",
    "weights": f"mcrouter's weights are parts of 1, here they are parts of {WEIGHT_STEPS}",
}
LOST_KEYS = "routing prefixes (/region/cluster/key) and |#| in keys: here both are parts of the key"


class Route(NamedTuple):
    """A route handle with a pool in it."""

    hash: str
    weights: list[float] | None
    above: tuple[str, ...]  # the handles that it is in, outermost first
    lost: tuple[str, ...]  # its settings that are not carried over


def drafts(file: str, content: str) -> list[Draft]:
    """A draft a pool. Raises ConfigError with every mistake."""
    root = parsed(file, content)
    reader = Reader(file)
    pools = root.get("pools", {})
    if not isinstance(pools, dict):
        raise wrong(f"{file}: pools", text.shown("pools", pools), "pools by name")
    for key in sorted({"macros", "named_handles"} & root.keys()):
        reader.mistake(key, "something that mcrouter replaces before it reads on", "what it stands for")
    try:
        routes = list(handles([root.get("route"), root.get("routes")]))
    except RecursionError:
        raise wrong(file, "routes nested too deeply", "a mcrouter configuration") from None
    found = [draft(name, pool, routes, reader, file) for name, pool in pools.items()]
    reader.done()
    return found


def parsed(file: str, content: str) -> dict[str, Any]:
    """JSON, with // and /* */ comments and a comma before a closing bracket, as mcrouter takes it."""

    def keep(match: re.Match[str]) -> str:
        # comments leave their line ends, so that a mistake is told with its line
        return match[0] if match[0].startswith('"') else re.sub(r"[^\n]", " ", match[0])

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            twice = next(name for at, (name, _) in enumerate(pairs) if name in dict(pairs[:at]))
            raise wrong(file, f"{text.toml_value(twice)} twice in a table", "each once")
        return table

    # commas second: a comment may stand between one and its bracket
    plain = TOKEN.sub(keep, TOKEN.sub(lambda match: match[0] if match[0] == "," else keep(match), content))
    try:
        root = json.loads(plain, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise wrong(
            f"{file}, line {error.lineno}", f"no JSON: {error.msg}", "a mcrouter configuration"
        ) from None
    except RecursionError:
        raise wrong(file, "JSON nested too deeply", "a mcrouter configuration") from None
    if not isinstance(root, dict):
        raise wrong(file, "something else", "a mcrouter configuration: { pools, route }")
    return root


def handles(node: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Route]]:
    """Every pool that a route leads to, and how; through all that may stand in between."""
    if isinstance(node, str):
        handle, _, rest = node.partition("|")
        if handle in ROUTES_TO_A_POOL and rest:
            yield rest.removeprefix("Pool|"), Route("Ch3", None, above, ())
    elif isinstance(node, list):
        for each in node:
            yield from handles(each, above)
    elif isinstance(node, dict):
        kind = node.get("type")
        pool = node.get("pool", node.get("children"))
        if kind in ROUTES_TO_A_POOL and isinstance(pool, str):
            lost = tuple(str(key) for key in node if key not in ROUTE_KNOWN)
            yield pool.removeprefix("Pool|"), Route(*hash_of(node), above, lost)
            return
        inside = (*above, kind) if isinstance(kind, str) else above
        for key, each in node.items():
            if key not in ("type", "aliases"):
                yield from handles(each, inside)


def hash_of(said: dict[str, Any]) -> tuple[str, list[float] | None]:
    """The name of the hash, and its weights, of a pool or a route: written out, or as a table."""
    hashed = said.get("hash", said.get("hash_func", "Ch3"))
    table = hashed if isinstance(hashed, dict) else {"hash_func": hashed}
    weights = table.get("weights", said.get("weights", said.get("hash_weights")))
    usable = isinstance(weights, list) and all(
        type(each) in (int, float) and 0 <= each <= 1e9 for each in weights
    )
    salt = " with a salt" if table.get("salt") or said.get("hash_salt") else ""
    return str(table.get("hash_func", "Ch3")) + salt, weights if usable else None


def draft(name: str, pool: Any, routes: list[tuple[str, Route]], reader: Reader, file: str) -> Draft:
    made, where = Draft(name, f"pool {name} of {file}"), join("pools", name)
    if not isinstance(pool, dict) or not isinstance(pool.get("servers"), list) or not pool["servers"]:
        reader.mistake(
            join(where, "servers"), "no list", f"a list of {SERVER} (nothing is inherited or imported)"
        )
        return made
    addresses = [
        address_of(each, f"{join(where, 'servers')}[{at}]", reader) for at, each in enumerate(pool["servers"])
    ]
    for twice in sorted({each for each in addresses if each and addresses.count(each) > 1}):
        reader.mistake(join(where, "servers"), f"{twice} twice", "a server for every shard")
    if pool.get("protocol", "ascii") != "ascii":
        reader.mistake(join(where, "protocol"), pool["protocol"], '"ascii", the one that memcached speaks')
    mine = [route for pool_name, route in routes if pool_name == name]
    made.set("", "listen", ["127.0.0.1:6380"], NOTES["listen"])
    made.set("pool", "kind", "cache")
    made.set("pool", "on_shard_down", "miss", NOTES["on_shard_down"])
    times(made, pool, where, reader)
    nodes(made, pool, mine, addresses)
    losses(made, pool, mine)
    return made


def address_of(server: Any, where: str, reader: Reader) -> str:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\s/]+):([0-9]{1,5})(?::ascii(?::plain)?)?", str(server))
    if not isinstance(server, str) or not match or not 0 < int(match[2]) < 65536:
        reader.mistake(where, server, SERVER)
        return ""
    return f"{match[1]}:{int(match[2])}"


def times(made: Draft, pool: dict[str, Any], where: str, reader: Reader) -> None:
    timeout = pool.get("server_timeout", TIMEOUT_MS)
    connect = pool.get("connect_timeout", timeout)
    for key, value in (("server_timeout", timeout), ("connect_timeout", connect)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**9:
            reader.mistake(join(where, key), value, "milliseconds")
            return
    note = NOTES["server_timeout" if "server_timeout" in pool else "no server_timeout"]
    made.set("pool", "timeout", text.write_duration(timeout / 1000), note)
    made.set("pool", "connect_timeout", text.write_duration(connect / 1000))


def nodes(made: Draft, pool: dict[str, Any], routes: list[Route], addresses: list[str]) -> None:
    """The shards, and where keys go."""
    said = [(route.hash, route.weights) for route in routes if route.hash != "Ch3"]
    hashed, weights = said[0] if said else hash_of(pool)
    count = len(addresses)
    if same := same_here(hashed, weights, count):
        made.set("pool", "distribution", same[0], NOTES["same"])
        made.set("pool", "hash", same[1])
        for number, address in enumerate(addresses):
            made.set("pool.shards", str(number), f"memcached://{address}")
        return
    made.set("pool", "distribution", "ring", NOTES["ring"].format(hashed))
    shares = [1] * count
    if weights and len(weights) == count and max(weights):
        shares = [round(each / max(weights) * WEIGHT_STEPS) for each in weights]
        made.set("pool", "virtual_nodes", POINTS // WEIGHT_STEPS, NOTES["weights"])
    for address, weight in zip(addresses, shares, strict=True):
        url, name = f"memcached://{address}", address.removesuffix(":11211")
        if weight:
            made.set("pool.shards", name, url if weight == 1 else {"primary": url, "weight": weight})
        else:
            made.lost.append(f"server {address}: its weight is 0, so it has no keys")


def same_here(hashed: str, weights: list[float] | None, count: int) -> tuple[str, str] | None:
    """The distribution and the hash by which every key stays where it is; None when there are none."""
    if hashed.lower() in ("ch3", "weightedch3", "wch3") and all(each == 1 for each in weights or ()):
        return "ch3", "ch3"
    # 31 bits of the CRC modulo the number of servers: when that is a power of two, the same as of 32
    return ("modula", "crc32a") if hashed.lower() == "crc32" and count & (count - 1) == 0 else None


def losses(made: Draft, pool: dict[str, Any], routes: list[Route]) -> None:
    made.lost += [MEMCACHED_CLIENTS, LOST_KEYS]
    made.lost += [f"{key}, a setting of the pool" for key in pool if key not in KNOWN]
    if not routes:
        made.lost.append("how requests come to this pool: no route names it as its pool")
    for kind in dict.fromkeys(kind for route in routes for kind in route.above):
        made.lost.append(f"{kind}, which leads to this pool: here the pool is all there is")
    for key in dict.fromkeys(key for route in routes for key in route.lost):
        made.lost.append(f"{key}, of the route to this pool")
    if len({(route.hash, tuple(route.weights or ())) for route in routes}) > 1:
        made.lost.append(
            "that several routes hash differently over this pool: the first one that says how is taken"
        )
