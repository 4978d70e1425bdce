"""What a memcached says to a new upstream before that serves.

    where there is a login, `mn`, refused, and the login · version · mn · stats settings · stats · stats conns

The last one again and again, until none of our connections that were lost with requests on them is there any more. A
memcached can kill none, and has threads: one may still have to read them when another has long answered; what they hold
would run over what is to be sent on this one. Who reads to their end closes them.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport strtoll
from libc.string cimport memcmp, memcpy, strlen

from shardproxy.core.buffers cimport buf_consume, buf_head
from shardproxy.core.memcached_wire cimport scan_meta
from shardproxy.core.resp cimport SCAN_BAD, SCAN_DONE
from shardproxy.dataplane.addresses cimport numeric_text
from shardproxy.dataplane.connecting cimport say, upstream_ready
from shardproxy.dataplane.engine cimport GREETING, STREAM_ABOVE, TEXT, Engine, Node, Upstream, sockaddr_storage, wall_us
from shardproxy.dataplane.losses cimport upstream_lost
from shardproxy.dataplane.replies cimport quoted
from shardproxy.dataplane.system cimport AF_INET, AF_INET6, getsockname, sockaddr

from shardproxy.core.memcached.connections import REQUEST, asker, connections

cdef extern from "<string.h>" nogil:
    void *memmem(const void *p, size_t n, const void *what, size_t size)

cdef enum:
    OLDEST = 1006               # of the versions that speak the meta protocol: 1.6
    LISTING_MOST = 16777216     # bytes of `stats conns`: 100,000 connections
    LOOKS = 5                   # for our own address
    PAUSE = 10000               # us between two looks for those that were lost
    PATIENCE = 2000000          # us: a network may keep one open for hours of which nothing comes any more

cdef int64_t STAT_MOST = <int64_t>1 << 40

cdef const char *STRANGER = "is not a memcached: it answered"


cdef void meta_greeted(Engine e, Upstream *u) noexcept:
    cdef Node *node = e.node_list[u.node]
    cdef size_t used = 0
    cdef int status
    cdef char *p
    cdef char text[TEXT]
    while u.greetings and u.inp.len > u.scanned:
        p = buf_head(&u.inp)
        status = scan_meta(&u.scan, p + u.scanned, u.inp.len - u.scanned, &used)
        u.scanned += used
        if status == SCAN_BAD or u.scanned > <size_t>(LISTING_MOST if u.greetings == 1 else STREAM_ABOVE):
            quoted(e, u, STRANGER)
            return
        if status != SCAN_DONE:
            return
        text[0] = 0
        if u.greetings == 7:
            if says(p, u.scanned, "CLIENT_ERROR unauth"):
                u.greeted = wall_us()
                say(e, u, e.greetings[u.node][1][0])
            else:
                snprintf(text, TEXT, "it asks for no login, but the configuration gives one")
        elif u.greetings == 6 and not says(p, u.scanned, "STORED\r"):
            # what it says may quote the login
            snprintf(text, TEXT, "refuses the login")
        elif u.greetings == 5 and not says(p, u.scanned, "VERSION "):
            if says(p, u.scanned, "CLIENT_ERROR unauth"):
                snprintf(text, TEXT, "it needs a login: give username and password")
            else:
                quoted(e, u, STRANGER)
        elif u.greetings == 5 and version_of(p + 8) < OLDEST:
            snprintf(text, TEXT, "is memcached %.*s: a shard's must be 1.6 or newer, which speaks the meta protocol",
                     <int>(u.scanned - 10 if u.scanned < 42 else 32), p + 8)
        elif u.greetings == 4 and not says(p, u.scanned, "MN\r"):
            quoted(e, u, "does not speak memcached's meta protocol: it answered")
        elif u.greetings == 3:
            node.item_most = stat_of(p, u.scanned, "STAT item_size_max ")
        elif u.greetings == 2:
            node.ahead = stat_of(p, u.scanned, "STAT time ") * 1000000
            node.clock_known = node.ahead != 0
            node.ahead -= u.greeted
        elif u.greetings == 1 and not alone(e, u, p[:u.scanned]):
            u.greetings += 1    # the same again
        if text[0]:
            upstream_lost(e, u, text, True)
        if u.state != GREETING:
            return
        buf_consume(&u.inp, u.scanned)
        u.scanned = 0
        u.greetings -= 1
    if u.greetings == 0:
        upstream_ready(e, u)


cdef bint alone(Engine e, Upstream *u, bytes listing) noexcept:
    """None of ours that was lost is in it; otherwise there is another look, at once or by look_again."""
    cdef bytes name = e.node_list[u.node].name
    cdef str where = name.decode(errors="replace")
    there = connections(listing)
    if not u.address[0] and there:
        own = asker(there, local_name(u.fd)).encode()
        if not own and u.extras < LOOKS:
            u.extras += 1
            say(e, u, REQUEST)
            return False
        if <size_t>len(own) < sizeof(u.address):
            memcpy(u.address, <const char *>own, len(own) + 1)
    if not u.killing:
        e.killed[u.index] = e.ghosts.pop(where, [])
        u.asked = e.now
    e.killed[u.index] = left = [each for each in e.killed[u.index] if each.rpartition(" ")[2] in there]
    u.killing = <uint32_t>len(left)
    if left and e.now > u.asked + PATIENCE:
        e.event("connections_remain", {"node": where, "connections": len(left)})
        e.killed[u.index] = []
        u.killing = 0
    u.progress = e.now          # it answers
    u.looking = False
    return not u.killing


cdef str local_name(int fd):
    """Empty of what has no IP address."""
    cdef sockaddr_storage address
    cdef uint32_t size = sizeof(address)
    if getsockname(fd, <sockaddr *>&address, &size) < 0 or address.ss_family not in (AF_INET, AF_INET6):
        return ""
    return numeric_text(&address)


cdef void look_again(Engine e, Upstream *u) noexcept:
    if u.killing and not u.looking and e.now > u.progress + PAUSE:
        u.looking = True
        say(e, u, REQUEST)


cdef inline bint says(const char *p, size_t n, const char *words) noexcept nogil:
    return n >= strlen(words) and memcmp(p, words, strlen(words)) == 0


cdef int version_of(const char *p) noexcept nogil:
    """Of "1.6.18": 1006; of what is no version: 0. There is a CRLF behind it."""
    cdef char *end
    cdef int64_t major = strtoll(p, &end, 10)
    if end == p or end[0] != c'.' or major < 0 or major > 1000:
        return 0
    return <int>(major * 1000 + strtoll(end + 1, NULL, 10) % 1000)


cdef int64_t stat_of(const char *p, size_t n, const char *name) noexcept nogil:
    """A line's number; 0: it is not there, or none that can be. There is a CRLF behind every one."""
    cdef const char *found = <const char *>memmem(p, n, name, strlen(name))
    cdef int64_t value = strtoll(found + strlen(name), NULL, 10) if found != NULL else 0
    return value if 0 < value < STAT_MOST else 0
