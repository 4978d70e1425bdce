"""What is answered here and not by a node: a family of commands a file.

across       RENAME, SUNION, ... over several shards, where they are emulated
asking       asking nodes: one, or all
base         the registry, the guard, and `Server`: what a handler may ask of the proxy
acl          ACL and its subcommands; accesslog: the entries of ACL LOG
connection   PING, ECHO, HELLO, AUTH, SELECT, RESET, QUIT, TIME
client       CLIENT and its subcommands
crowd        those that concern other clients: KILL, PAUSE, UNPAUSE
monitor      MONITOR
transaction  EXEC, when some of its commands are answered here
waiting      WAIT, CLIENT UNBLOCK
command      COMMAND and its subcommands, from the table
info         INFO
pubsub       SUBSCRIBE and its kin, PUBLISH, PUBSUB; subscriptions: whose they are, and the nodes' part
tracking     CLIENT TRACKING, CACHING, GETREDIR, TRACKINGINFO
proxy        PROXY and its subcommands that show
memcached    what the engine does not translate for memcached nodes
keyspace     SCAN, KEYS, DBSIZE, RANDOMKEY, FLUSHALL, FLUSHDB, SWAPDB
scripts      SCRIPT and FUNCTION, on every node
nodewide     what administrators ask of every node: CONFIG, SLOWLOG, MEMORY, DEBUG, ...; HELP texts
node         PROXY NODE: any command, to one
topology     PROXY TOPOLOGY, for programs that place keys themselves
operate      those that change something: RELOAD, DRAIN, UNDRAIN
"""

from shardproxy.handlers import (  # noqa: F401  # a family registers itself when it is imported
    acl,
    across,
    client,
    command,
    connection,
    crowd,
    info,
    keyspace,
    memcached,
    monitor,
    node,
    nodewide,
    operate,
    proxy,
    pubsub,
    scripts,
    topology,
    tracking,
    transaction,
    waiting,
)
from shardproxy.handlers.base import NodeInfo, Server, dispatch, do_part, handled, handles

__all__ = ["NodeInfo", "Server", "dispatch", "do_part", "handled", "handles"]
