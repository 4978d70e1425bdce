"""The topology as the engine holds it: shards, nodes with their socket addresses, and what a new upstream says first."""

import os
import socket as sockets

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memset

from shardproxy.dataplane.engine cimport (
    DOWN, FAIL, HOLD, MAX_SHARED, MISS, MOVE, NOWHERE, SERVE, UP, WAITING, Engine, Node, Upstream,
)
from shardproxy.dataplane.losses cimport leave
from shardproxy.dataplane.stale cimport stale_free, stale_new
from shardproxy.dataplane.system cimport (
    AF_INET, AF_INET6, AF_UNIX, htons, inet_pton, sockaddr_in, sockaddr_in6, sockaddr_un,
)
from shardproxy.dataplane.upstreams cimport release
from shardproxy.dataplane.waiting cimport follow_keys


MODES = {"serve": SERVE, "fail": FAIL, "miss": MISS, "hold": HOLD, "move": MOVE}


cdef int install(Engine e, topology, credentials, tls) except -1:
    """Swap the topology in. credentials: shard name -> (username or None, password or None); tls: shard name ->
    (ssl.SSLContext, the name that its certificate must have), of those that speak it."""
    pool = topology.pools[0]
    cdef bint first = e.topology is None
    cdef int i, number, n = len(pool.shards)
    cdef uint16_t *shards = <uint16_t *>calloc(n, sizeof(uint16_t))
    cdef unsigned char *absent = <unsigned char *>calloc(n, 1)
    cdef Node *node
    cdef dict numbers = {}, before = {shard: number for (shard, _), number in e.numbers.items()}
    cdef bint moved
    cdef uint32_t before_placement = e.placement
    cdef set gone
    if shards == NULL or absent == NULL:
        raise MemoryError
    for shard in pool.shards:
        key = (shard.name, shard.node.address)
        number = e.numbers.get(key, -1)
        meta = shard.protocol == "memcached"
        if number < 0 or e.node_list[number].memcached != meta:
            number = node_new(e, shard.name, shard.node.address, first, before.get(shard.name, NOWHERE))
            e.node_list[number].memcached = meta
        numbers[key] = number
        e.secured.pop(number, None)
        if shard.name in tls:
            e.secured[number] = tls[shard.name]
        login = credentials.get(shard.name, (None, None))
        e.greetings[number] = meta_greeting(*login) if meta else tuple(greeting(proto, *login) for proto in (2, 3))
    for i, shard in enumerate(pool.shards):
        number = numbers[shard.name, shard.node.address]
        shards[i] = <uint16_t>number
        absent[i] = pool.elsewhere(shard)
        if (old := before.get(shard.name, number)) != number and old in e.written_bytes:
            # another node takes its place, and has to be told as well what was written elsewhere
            e.written[number] = e.written.pop(old, set())
            e.written_bytes[number] = e.written_bytes.pop(old)
    shares_for(e)
    moved = e.ring is not pool.ring or n != e.shard_count or memcmp(e.shards, shards, n * sizeof(uint16_t)) != 0 \
        or memcmp(e.absent, absent, n) != 0
    free(e.shards)
    free(e.absent)
    e.shards = shards
    e.absent = absent
    e.shard_count = n
    e.placement += moved
    e.ring = pool.ring
    e.topology = topology
    keep_apart(e)
    e.displacing = False
    take_policy(e, pool)
    gone = set(e.numbers.values()) - set(numbers.values())
    for number in gone:
        e.node_list[number].gone = True
        e.written.pop(number, None)
        e.written_bytes.pop(number, None)
    e.numbers = numbers
    for shard in pool.shards:
        number = numbers[shard.name, shard.node.address]
        set_mode(e, e.node_list[number], MODES[pool.mode(shard)], shard.node)
        e.displacing = e.displacing or e.node_list[number].mode == MOVE
    # only now, when all is in its new place, does anything move
    for shard in pool.shards:
        node = e.node_list[<int>numbers[shard.name, shard.node.address]]
        if node.out:
            leave(e, node)
        elif node.mode != HOLD:
            release(e, node)
    for number in gone:
        if e.node_list[number].mode == HOLD:
            leave(e, e.node_list[number])       # no verdict will come: what was held goes where its keys are now
    if e.placement != before_placement:
        follow_keys(e)
    here = {shard.node.address for shard in pool.shards}
    e.ghosts = {address: ids for address, ids in e.ghosts.items() if address in here}
    set_fence(e)
    e.wake()
    return 0


cdef int keep_apart(Engine e) except -1:
    """Who may stand in for a shard of each protocol."""
    cdef int i, k
    cdef unsigned char *apart
    e.memcached = False
    if e.apart == NULL:
        e.apart = <unsigned char **>calloc(2, sizeof(unsigned char *))
        if e.apart == NULL:
            raise MemoryError
    for k in range(2):
        apart = <unsigned char *>realloc(e.apart[k], e.shard_count)
        if apart == NULL:
            raise MemoryError
        e.apart[k] = apart
        for i in range(e.shard_count):
            apart[i] = e.absent[i] or e.node_list[e.shards[i]].memcached != k
            e.memcached = e.memcached or e.node_list[e.shards[i]].memcached
    return 0


cdef take_policy(Engine e, pool):
    e.partial_nil = pool.partial == "nil"
    e.emulates = pool.cross_shard == "emulate"
    e.timeout = int(pool.timeout * 1e6) or 1 << 60
    e.allowed = [int(each * 1e6) or e.timeout for each in (pool.timeouts.read, pool.timeouts.write, pool.timeouts.script)]
    e.longest = int(pool.longest * 1e6) or e.timeout
    e.patience = min(e.timeout, *e.allowed) // 4
    e.attempt_timeout = int(pool.attempt_timeout * 1e6) or e.timeout
    e.lag_most = min(e.attempt_timeout, e.allowed[0], e.allowed[1], e.allowed[2]) // 4
    e.connect_timeout = int(pool.connect_timeout * 1e6)
    e.reset_after = int(pool.reset_after * 1e6) or 1 << 60
    e.connections = min(pool.connections_per_node, MAX_SHARED)
    e.retries = pool.retries
    e.retry_share = pool.retry_budget
    e.slow_call = int(pool.health.slow_call * 1e6)
    e.remember = pool.remember
    e.holds = pool.on_shard_down == "rehash"
    e.reads_miss = pool.on_shard_down == "miss"
    # a write may be on its way for as long as its deadline, and some more until its bytes have run
    terms = (pool.stale_memory, int(pool.stale_while_down * 1e6), 2 * e.longest)
    if terms != e.stale_terms:
        if e.stale != NULL:
            stale_free(e.stale)
        e.stale = stale_new(terms[0], terms[1], terms[2], e.stamps) if terms[1] else NULL
        e.stale_terms = terms


cdef void set_mode(Engine e, Node *node, uint8_t mode, record):
    cdef bytes reason = record.reason.encode() or b"it is down"
    cdef Upstream *u = node.first
    if (mode == MOVE) != (node.mode == MOVE):
        e.placement += 1        # a transaction that is being held may belong elsewhere now
    node.mode = mode
    node.out = record.state == "out"
    node.stays = record.stays
    if mode != SERVE:
        snprintf(node.why, sizeof(node.why), "%s", <const char *>reason)
    elif record.state == "up":
        node.why[0] = 0
    if record.state == "up":
        while u != NULL:
            if u.state == DOWN:
                u.failures = 0
                u.retry_at = 0
            u = u.after


cdef void set_fence(Engine e) noexcept:
    """What is in flight now was sent by the old topology: see Reactor.settled."""
    cdef uint32_t i
    cdef Upstream *u
    for i in range(e.upstream_count):
        u = e.upstreams[i]
        if u.node == NOWHERE:
            continue
        u.fence = u.tail
        # what blocks is not waited for: its keys are the client's to fear for, as on a Redis that fails over
        u.fenced = u.late != u.tail and e.node_list[u.node].mode != HOLD and not u.lease & WAITING
    e.fence_ends = e.now + e.longest


cdef bint settled(Engine e) noexcept:
    cdef uint32_t i
    cdef Upstream *u
    if e.now >= e.fence_ends:
        return True
    for i in range(e.upstream_count):
        u = e.upstreams[i]
        if u.node != NOWHERE and u.fenced:
            if <int>(u.late - u.fence) < 0 and u.state == UP:
                return False
            u.fenced = False
    return True


cdef bint answered(Engine e, int node) noexcept:
    """Whether it owes no reply to what was sent before the last topology; what blocks is not waited for."""
    cdef Upstream *u = e.node_list[node].first
    while u != NULL:
        if u.state == UP and u.head != u.tail and not u.lease & WAITING and <int>(u.head - u.fence) < 0:
            return False
        u = u.after
    return True


cdef int node_new(Engine e, str shard, str address, bint may_wait, int follows) except -1:
    """A number that is free, for a node; memory that was another's is used again, never given back."""
    cdef Node *node = NULL
    cdef Node **more
    cdef const char **names
    cdef int number
    cdef bytes text
    for number in range(e.node_count):
        if not e.node_list[number].used:
            node = e.node_list[number]
            break
    else:
        number = e.node_count
        if number == NOWHERE:
            raise ValueError("too many nodes")
        more = <Node **>realloc(e.node_list, (number + 1) * sizeof(Node *))
        if more == NULL:
            raise MemoryError
        e.node_list = more
        names = <const char **>realloc(e.shard_names, (number + 1) * sizeof(char *))
        if names == NULL:
            raise MemoryError
        e.shard_names = names
        node = <Node *>calloc(1, sizeof(Node))
        if node == NULL:
            raise MemoryError
        e.node_list[number] = node
        e.node_count += 1
    memset(node, 0, sizeof(Node))
    node.used = True
    node.follows = <uint16_t>follows
    text = address.encode()
    snprintf(node.name, sizeof(node.name), "%s", <const char *>text)
    text = shard.encode()
    snprintf(node.shard, sizeof(node.shard), "%s", <const char *>text)
    e.shard_names[number] = node.shard
    # a name is looked up by the server, which tells us (`move`); at the start there is nobody to hold up
    node.resolved = resolve(address, node, may_wait)
    return number


cdef int shares_for(Engine e) except -1:
    cdef uint32_t *shares
    if e.share_room < e.node_count:
        shares = <uint32_t *>realloc(e.shares, 2 * e.node_count * sizeof(uint32_t))
        if shares == NULL:
            raise MemoryError
        e.shares = shares
        e.share_room = e.node_count
    return 0


cdef void move(Engine e, str node, str address):
    cdef Node there
    cdef Node *here
    cdef Upstream *u
    cdef int i
    if not resolve(address, &there, False):
        return
    for i in range(e.node_count):
        here = e.node_list[i]
        if not here.used or here.name.decode() != node or (
                here.resolved and here.address_size == there.address_size
                and memcmp(&here.address, &there.address, there.address_size) == 0):
            continue
        here.address = there.address
        here.address_size = there.address_size
        here.resolved = True
        u = here.first
        while u != NULL:
            if u.state == DOWN:
                u.retry_at = 0
            u = u.after


cdef bint resolve(str address, Node *node, bint names):
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
        found = sockets.getaddrinfo(host.strip("[]"), int(port), type=sockets.SOCK_STREAM,
                                    flags=0 if names else sockets.AI_NUMERICHOST)
    except OSError:
        return False
    # of several addresses the one that all workers take, see proxy/resolve.choose
    family, _, _, _, where = min((each for each in found if each[0] == found[0][0]), key=lambda each: each[4][0])
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


def meta_greeting(username, password):
    """The same for a memcached: its version, life, limits, clock and connections; and what it is told once it has asked for a login.

    Only then: one that does not ask would keep the password as a value, for everybody to read.
    """
    login = f"{username or ''} {password}".encode() if password else b""
    asked = b"version\r\nmn\r\nstats settings\r\nstats\r\nstats conns\r\n"
    if not login:
        return (asked, 5), (b"", 0)
    return (b"mn\r\n", 7), (b"set login 0 0 %d\r\n%b\r\n%b" % (len(login), login, asked), 6)


def greeting(proto, username, password):
    """What a new upstream says first, and how many replies that has: log in, choose the protocol, ask who we are and where
    from, show life."""
    parts = []
    if proto == 3:
        parts.append([b"HELLO", b"3", *([b"AUTH", (username or "default").encode(), password.encode()]
                                        if password else [])])
    elif password:
        parts.append([b"AUTH", *([username.encode()] if username else []), password.encode()])
    parts.append([b"CLIENT", b"ID"])
    parts.append([b"CLIENT", b"INFO"])
    parts.append([b"PING"])
    packed = b"".join(b"*%d\r\n" % len(part) + b"".join(b"$%d\r\n%b\r\n" % (len(a), a) for a in part)
                      for part in parts)
    return packed, len(parts)
