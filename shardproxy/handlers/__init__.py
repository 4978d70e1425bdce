"""What is answered here and not by a node: a family of commands a file.

across       RENAME, SUNION, ... over several shards, where they are emulated
asking       asking nodes: one, or all
base         the registry, the guard, and `Server`: what a handler may ask of the proxy
acl          ACL and its subcommands; accesslog: the entries of ACL LOG
connection   PING, ECHO, HELLO, AUTH, SELECT, RESET, QUIT, TIME
client       CLIENT and its subcommands
command      COMMAND and its subcommands, from the table
info         INFO
proxy        PROXY and its subcommands that show
keyspace     SCAN, KEYS, DBSIZE, RANDOMKEY, FLUSHALL, FLUSHDB, SWAPDB
scripts      SCRIPT and FUNCTION, on every node
nodewide     what administrators ask of every node: CONFIG, SLOWLOG, MEMORY, DEBUG, ...; HELP texts
node         PROXY NODE: any command, to one
operate      those that change something: RELOAD, DRAIN, UNDRAIN
"""

from shardproxy.handlers import (
    across,
    acl,
    client,
    command,
    connection,
    info,
    keyspace,
    node,
    nodewide,
    operate,
    proxy,
    scripts,
)
from shardproxy.handlers.base import NodeInfo, Server, dispatch, handled, handles

__all__ = [
    "NodeInfo", "Server", "acl", "across", "client", "command", "connection", "dispatch", "handled", "handles",
    "info", "keyspace", "node", "nodewide", "operate", "proxy", "scripts",
]  # fmt: skip
