"""The topology as the engine holds it: shards, nodes with their socket addresses, and what a new upstream says first."""

import os
import socket as sockets

from libc.stdint cimport uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc
from libc.string cimport memcmp, memcpy, memset

from shardproxy.dataplane.engine cimport DOWN, MAX_SHARED, Engine, Node, Shard, Upstream
from shardproxy.dataplane.system cimport (
    AF_INET, AF_INET6, AF_UNIX, htons, inet_pton, sockaddr_in, sockaddr_in6, sockaddr_un,
)


cdef int install(Engine e, topology, credentials) except -1:
    """Swap the topology in. credentials: shard name -> (username or None, password or None)."""
    pool = topology.pools[0]
    cdef int i, n = len(pool.shards)
    cdef bytes name
    cdef Shard *shards = <Shard *>calloc(n, sizeof(Shard))
    cdef const char **names = <const char **>calloc(n, sizeof(char *))
    cdef Node *nodes = <Node *>calloc(n, sizeof(Node))
    cdef uint32_t *shares = <uint32_t *>calloc(2 * n, sizeof(uint32_t))
    if e.topology is not None:
        raise NotImplementedError("the topology of a running engine cannot be changed yet")
    if shards == NULL or names == NULL or nodes == NULL or shares == NULL:
        raise MemoryError
    e.topology = topology
    e.ring = pool.ring
    e.partial_nil = pool.partial == "nil"
    e.timeout = int(pool.timeout * 1e6) or 1 << 60
    e.connect_timeout = int(pool.connect_timeout * 1e6)
    e.reset_after = int(pool.reset_after * 1e6) or 1 << 60
    e.connections = min(pool.connections_per_node, MAX_SHARED)
    for i, shard in enumerate(pool.shards):
        name = shard.name.encode()
        snprintf(shards[i].name, sizeof(shards[i].name), "%s", <const char *>name)
        names[i] = shards[i].name
        shards[i].node = i
        name = shard.node.address.encode()
        snprintf(nodes[i].name, sizeof(nodes[i].name), "%s", <const char *>name)
        snprintf(nodes[i].shard, sizeof(nodes[i].shard), "%s", shards[i].name)
        nodes[i].resolved = resolve(shard.node.address, &nodes[i])
        e.greetings[i] = tuple(greeting(proto, *credentials.get(shard.name, (None, None))) for proto in (2, 3))
    e.shards = shards
    e.shard_names = names
    e.shard_count = n
    e.node_list = nodes
    e.node_count = n
    e.shares = shares
    return 0


cdef void move(Engine e, str node, str address):
    cdef Node there
    cdef Node *here
    cdef Upstream *u
    cdef int i, k
    if not resolve(address, &there):
        return
    for i in range(e.node_count):
        here = &e.node_list[i]
        if here.name.decode() != node or (here.resolved and here.address_size == there.address_size
                                          and memcmp(&here.address, &there.address, there.address_size) == 0):
            continue
        here.address = there.address
        here.address_size = there.address_size
        here.resolved = True
        for k in range(2 * MAX_SHARED):
            u = here.shared[k // MAX_SHARED][k % MAX_SHARED]
            if u != NULL and u.state == DOWN:
                u.retry_at = 0


cdef bint resolve(str address, Node *node):
    """Fill in the node's socket address; False when its host name is not known now."""
    cdef sockaddr_in *four = <sockaddr_in *>&node.address
    cdef sockaddr_in6 *six = <sockaddr_in6 *>&node.address
    cdef sockaddr_un *path = <sockaddr_un *>&node.address
    cdef bytes text
    memset(&node.address, 0, sizeof(node.address))
    if address.startswith("/"):
        text = os.fsencode(address)
        if len(text) >= <Py_ssize_t>sizeof(path.sun_path):
            return False
        node.address.ss_family = AF_UNIX
        memcpy(path.sun_path, <const char *>text, len(text))
        node.address_size = sizeof(sockaddr_un)
        return True
    host, _, port = address.rpartition(":")
    try:
        found = sockets.getaddrinfo(host.strip("[]"), int(port), type=sockets.SOCK_STREAM)
    except OSError:
        return False
    family, _, _, _, where = found[0]
    text = where[0].encode()
    node.address.ss_family = family
    if family == AF_INET:
        inet_pton(AF_INET, text, &four.sin_addr)
        four.sin_port = htons(where[1])
        node.address_size = sizeof(sockaddr_in)
    else:
        inet_pton(AF_INET6, text, &six.sin6_addr)
        six.sin6_port = htons(where[1])
        node.address_size = sizeof(sockaddr_in6)
    return True


def greeting(proto, username, password):
    """What a new upstream says first, and how many replies that has: log in, choose the protocol, show life."""
    parts = []
    if proto == 3:
        parts.append([b"HELLO", b"3", *([b"AUTH", (username or "default").encode(), password.encode()]
                                        if password else [])])
    elif password:
        parts.append([b"AUTH", *([username.encode()] if username else []), password.encode()])
    parts.append([b"PING"])
    packed = b"".join(b"*%d\r\n" % len(part) + b"".join(b"$%d\r\n%b\r\n" % (len(a), a) for a in part)
                      for part in parts)
    return packed, len(parts)
