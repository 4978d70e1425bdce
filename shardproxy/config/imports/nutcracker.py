"""nutcracker.yml, the configuration of twemproxy → drafts of shardproxy.toml.

`READERS` is all that twemproxy 0.5 can be told of a pool; every one of them is either carried over by
`draft`, with a note where it means something else here, or named as lost. Placement is carried over exactly:
names, weights, hash, hash_tag and distribution, with what twemproxy does where a file says nothing.
"""

import re
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from shardproxy.config import text
from shardproxy.config.imports.drafts import MEMCACHED_CLIENTS, Draft, Reader, join, node_url, wrong
from shardproxy.core.ring import twemproxy_name

HASHES = tuple(each for each in typing.get_args(text.KeyHash) if each not in ("auto", "xxh64", "ch3"))
# of twemproxy, where its file says nothing
FAILURES, RETRY_MS = 2, 30_000
WAIT_MOST = 300  # seconds: our own default, which `wait` may not pass

# What a setting means here that it does not mean there
NOTES = {
    "redis": "no auto_eject_hosts: keys of a node that is down get errors, and none moves",
    "memcached": "no auto_eject_hosts: keys of a node that is down get errors, and none moves; "
    "a cache, since what a node has is lost with it",
    "on_shard_down": "auto_eject_hosts: keys of a node that is out go to the others, and no other key moves; "
    "twemproxy makes a new ring of those that are left, which moves some of theirs too",
    "on_return": "twemproxy serves what the node still had, old as it is; here what was changed meanwhile is "
    'deleted first. "keep" does as twemproxy',
    "redis_auth": "redis_auth: what nodes ask for. This command writes it nowhere: set the variable, or "
    "name a file with password_file",
    "users": "redis_auth is what clients have to send, too",
    "protected_mode": "as twemproxy does, clients of other machines are served without a login; true turns "
    "them away",
    "client_connections": "client_connections; twemproxy 0.5 reads it and then limits nothing",
    "tcpkeepalive": "of clients and nodes both: after so long a silence the other side is asked",
    "random": "random there; a key has one shard here",
    "timeout": "of a request in all, retries too; when it passes, others on that connection live on "
    "(twemproxy closes it)",
    "no timeout": "twemproxy waits for ever where no timeout is set; here every request has an end",
    "server_connections": "server_connections; here of each worker, 16 at most, and a client's commands "
    "never overtake each other",
    "server_failure_limit": "server_failure_limit: so many requests in a row that fail make a node suspect; "
    "it is out when a probe fails too",
    "server_retry_timeout": "server_retry_timeout: a node that is out stays so for as long at least, and is "
    "tried with probes, never with clients' requests as twemproxy does",
}
LOST = {
    "backlog": "backlog: {}; here it is as long as the system allows (net.core.somaxconn)",
    "random": "distribution: random, which sends every request to any server; here a key has one shard",
    "preconnect": "preconnect: {}; here probes connect to every node from the start",
    "redis_db": "redis_db: {0}; here connections begin in database 0: who needs the data of {0} sends "
    "SELECT {0} (clients do it for a URL that ends in /{0})",
}


class Server(NamedTuple):
    name: str  # what twemproxy hashes
    address: str  # "HOST:PORT", or "/PATH"
    weight: int


def number(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise ValueError("a whole number")
    return int(value)


def positive(value: str) -> int:
    if not (found := number(value)):
        raise ValueError("a whole number, not 0")
    return found


def boolean(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("true or false")
    return value == "true"


def choice(*allowed: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return value

    return read


def two_characters(value: str) -> str:
    if len(value) != 2:
        raise ValueError("two characters")
    return value


def host_port(host: str, port: str) -> str:
    """twemproxy writes IPv6 addresses without brackets."""
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError('"HOST:PORT" or "/PATH"')
    return f"[{host}]:{int(port)}" if ":" in host else f"{host}:{int(port)}"


def listen(value: str) -> str:
    if value.startswith("/"):
        path, _, mode = value.partition(" ")
        if mode and not re.fullmatch(r"0*[0-7]{1,3}", mode):
            raise ValueError('"HOST:PORT", "/PATH" or "/PATH MODE"')
        return f"unix://{path}" + (f"?mode={int(mode, 8):04o}" if mode else "")
    host, _, port = value.rpartition(":")
    return host_port(host, port)


def server(value: str) -> Server:
    """HOST:PORT:WEIGHT [NAME] or /PATH:WEIGHT [NAME]."""
    where, _, alias = value.partition(" ")
    address, _, weight = where.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,9}", weight) or not int(weight) or (alias and " " in alias):
        raise ValueError('"HOST:PORT:WEIGHT" or "/PATH:WEIGHT", and after a space the name, if it has one')
    if address.startswith("/"):
        return Server(twemproxy_name(alias or None, address, 0), address, int(weight))
    host, _, port = address.rpartition(":")
    written = host_port(host, port)
    return Server(twemproxy_name(alias or None, host, int(port)), written, int(weight))


def servers(values: list[str]) -> list[Server]:
    return [server(value) for value in values]


READERS: dict[str, Callable[[Any], Any]] = {
    "listen": listen,
    "hash": choice(*HASHES),
    "hash_tag": two_characters,
    "distribution": choice("ketama", "modula", "random"),
    "timeout": number,
    "backlog": number,
    "client_connections": number,
    "redis": boolean,
    "tcpkeepalive": boolean,
    "redis_auth": str,
    "redis_db": number,
    "preconnect": boolean,
    "auto_eject_hosts": boolean,
    "server_connections": positive,
    "server_retry_timeout": number,
    "server_failure_limit": number,
    "servers": servers,
}


def drafts(file: str, content: str) -> list[Draft]:
    """A draft a pool. Raises ConfigError with every mistake; ModuleNotFoundError without PyYAML."""
    reader = Reader(file)
    pools = {name: pool_of(name, said, reader) for name, said in tree(file, content).items()}
    listens = [pool["listen"] for pool, _ in pools.values() if "listen" in pool]
    for twice in sorted({each for each in listens if listens.count(each) > 1}):
        reader.mistake("", f"pools that listen on {twice}", "an address for each")
    reader.done()
    return [draft(name, pool, unknown, file) for name, (pool, unknown) in pools.items()]


def tree(file: str, content: str) -> dict[str, dict[str, str | list[str]]]:
    """Pools by name, and what is said of each; every value is text, as it is for twemproxy.

    Raises ConfigError for what is no YAML, or has another shape.
    """
    import yaml

    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise wrong(file + line, f"no YAML: {error.problem or error.context}", "a nutcracker.yml") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise wrong(file, f"no YAML: {type(error).__name__}", "a nutcracker.yml") from None

    def mapping(node: Any, what: str) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            line = f", line {node.start_mark.line + 1}" if node else ""
            raise wrong(file + line, "something else", what)
        found: dict[str, Any] = {}
        for key, value in node.value:
            where = f"{file}, line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise wrong(where, "a key that is no name", what)
            if key.value in found:
                raise wrong(where, f"{key.value} again", "each once")
            found[key.value] = value
        return found

    def plain(node: Any) -> str | list[str]:
        if isinstance(node, yaml.ScalarNode):
            return str(node.value)
        if isinstance(node, yaml.SequenceNode) and all(
            isinstance(each, yaml.ScalarNode) for each in node.value
        ):
            return [str(each.value) for each in node.value]
        raise wrong(f"{file}, line {node.start_mark.line + 1}", "a table", "a value, or a list of servers")

    pools = mapping(root, "pools by name, each with what is said of it")
    return {
        name: {key: plain(value) for key, value in mapping(said, f"settings of pool {name}").items()}
        for name, said in pools.items()
    }


def pool_of(name: str, said: dict[str, str | list[str]], reader: Reader) -> tuple[dict[str, Any], list[str]]:
    """What is said of a pool, read, and the keys that twemproxy does not know; mistakes go to the reader."""
    pool: dict[str, Any] = {}
    for key, value in said.items():
        where = join(name, key)
        if key not in READERS:
            continue
        if isinstance(value, list) is not (key == "servers"):
            reader.mistake(where, value, "a list of servers" if key == "servers" else "one value")
            continue
        if not isinstance(value, list):
            values = [(where, value)]
        else:
            values = [(f"{where}[{index}]", each) for index, each in enumerate(value)]
        for at, each in values:
            try:
                READERS[key]([each] if key == "servers" else each)
            except ValueError as error:
                reader.mistake(at, "a password" if key == "redis_auth" else each, str(error))
                break
        else:
            pool[key] = READERS[key](value)
    for key in ("listen", "servers"):
        if not said.get(key):
            reader.mistake(join(name, key), "nothing", "one, as twemproxy has it")
    names = [each.name for each in pool.get("servers", ())]
    for twice in sorted({each for each in names if names.count(each) > 1}):
        reader.mistake(join(name, "servers"), f"two servers named {twice}", "each name once")
    return pool, [key for key in said if key not in READERS]


def draft(name: str, pool: dict[str, Any], unknown: list[str], file: str) -> Draft:
    made = Draft(name, f"pool {name} of {file}")
    clients(made, pool)
    when_down(made, pool)
    placement(made, pool)
    requests(made, pool)
    nodes(made, pool)
    made.lost += [f"{key}, which twemproxy 0.5 does not know" for key in unknown]
    return made


def clients(made: Draft, pool: dict[str, Any]) -> None:
    """Where clients connect, and who may."""
    made.set("", "listen", [pool["listen"]])
    if "redis_auth" in pool:
        variable = made.password(NOTES["redis_auth"])
        user = {"acl": "on ~* &* +@all", "password_env": variable}
        made.set("users", "default", user, NOTES["users"])
    elif not text.is_local(pool["listen"]):
        made.set("", "protected_mode", False, NOTES["protected_mode"])
    if limit := pool.get("client_connections"):
        made.set("limits", "maxclients", limit, NOTES["client_connections"])
    if "tcpkeepalive" in pool:
        made.set("limits", "tcp_keepalive", "5m" if pool["tcpkeepalive"] else "0s", NOTES["tcpkeepalive"])
    if "backlog" in pool:
        made.lost.append(LOST["backlog"].format(pool["backlog"]))
    if not pool.get("redis"):
        made.lost.append(MEMCACHED_CLIENTS)


def when_down(made: Draft, pool: dict[str, Any]) -> None:
    """auto_eject_hosts, and what it goes by; without it twemproxy looks at no failure."""
    redis = pool.get("redis", False)
    if not pool.get("auto_eject_hosts"):
        made.set("pool", "kind", "durable" if redis else "cache", NOTES["redis" if redis else "memcached"])
        return
    made.set("pool", "kind", "cache")
    made.set("pool", "on_shard_down", "rehash", NOTES["on_shard_down"])
    made.set("pool", "on_return", "invalidate", NOTES["on_return"])
    failures = max(pool.get("server_failure_limit", FAILURES), 1)
    made.set("pool.health", "consecutive", failures, NOTES["server_failure_limit"])
    retry = max(pool.get("server_retry_timeout", RETRY_MS), 1) / 1000
    made.set("pool.health", "wait", text.write_duration(retry), NOTES["server_retry_timeout"])
    if retry > WAIT_MOST:
        made.set("pool.health", "wait_most", text.write_duration(retry))


def placement(made: Draft, pool: dict[str, Any]) -> None:
    distribution = pool.get("distribution", "ketama")
    if distribution == "random":
        made.lost.append(LOST["random"])
        made.set("pool", "distribution", "ketama", NOTES["random"])
    else:
        made.set("pool", "distribution", distribution)
    made.set("pool", "hash", pool.get("hash", "fnv1a_64"))
    if "hash_tag" in pool:
        made.set("pool", "hash_tag", pool["hash_tag"])


def requests(made: Draft, pool: dict[str, Any]) -> None:
    if timeout := pool.get("timeout", 0):
        duration = text.write_duration(timeout / 1000)
        made.set("pool", "timeout", duration, NOTES["timeout"])
        made.set("pool", "connect_timeout", duration)
    else:
        made.set("pool", "timeout", "1s", NOTES["no timeout"])
    if (connections := pool.get("server_connections", 1)) > 1:
        made.set("pool", "connections_per_node", min(connections, 16), NOTES["server_connections"])
    if "preconnect" in pool:
        made.lost.append(LOST["preconnect"].format(str(pool["preconnect"]).lower()))
    if pool.get("redis_db"):
        made.lost.append(LOST["redis_db"].format(pool["redis_db"]))


def nodes(made: Draft, pool: dict[str, Any]) -> None:
    for each in pool["servers"]:
        url = node_url("redis" if pool.get("redis") else "memcached", each.address)
        made.set(
            "pool.shards", each.name, url if each.weight == 1 else {"primary": url, "weight": each.weight}
        )
