"""What a new upstream says to a Redis before it serves, and what it makes of the replies.

    HELLO or AUTH · CLIENT ID · CLIENT INFO · PING, the same for all of a node (nodes.greeting) · CLIENT KILL of
    connections that were lost with requests on them · SELECT, a link's own words, CLIENT TRACKING

Rules: nothing else is sent before all of it is answered. The replies are told apart by how many are still to come:
`greetings`, then `killing`, then `extras`.
"""

from libc.stdint cimport uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport strtoll
from libc.string cimport memchr, memcmp, memcpy

from shardproxy.core.buffers cimport buf_consume, buf_head
from shardproxy.core.resp cimport SCAN_BAD, SCAN_DONE, scan_frame
from shardproxy.dataplane.connecting cimport say, start, upstream_ready
from shardproxy.dataplane.engine cimport STREAM_ABOVE, TEXT, TRACKING, Client, Engine, Upstream, wall_us
from shardproxy.dataplane.losses cimport upstream_lost
from shardproxy.dataplane.private cimport owner_of, tracking_setup
from shardproxy.dataplane.replies cimport quoted
from shardproxy.dataplane.upstreams cimport upstream_leave

cdef extern from "<string.h>" nogil:
    void *memmem(const void *p, size_t n, const void *what, size_t size)

cdef enum:
    KILLED = 100                # lost connections that one greeting has killed on the node: the latest


cdef void greet(Engine e, Upstream *u) noexcept:
    cdef bytes greeting
    cdef Client *c
    u.raised = u.proto == 3 and e.node_list[u.node].speaks == 2
    if u.raised and u.lease & TRACKING:
        upstream_lost(e, u, "it speaks RESP2 only, which has no invalidations", False)
        return
    greeting, u.greetings = e.greetings[u.node][0 if u.raised else u.proto - 2]
    u.greeted = wall_us()
    u.extras = 0
    greeting += kills(e, u)
    if u.db:
        greeting += b"*2\r\n$6\r\nSELECT\r\n$%d\r\n%d\r\n" % (len(str(u.db)), u.db)
        u.extras += 1
    if u.linked:
        setup, count = e.links[u.index].setup
        greeting += setup
        u.extras += count
    c = owner_of(e, u)
    if u.lease & TRACKING and c != NULL and c.tracking:
        tracking = tracking_setup(e, c, u.node)
        if tracking is None:
            upstream_lost(e, u, "the connection for its invalidations is gone", False)
            return
        greeting += tracking[0]
        u.extras += tracking[1]
    say(e, u, greeting)


cdef bytes kills(Engine e, Upstream *u):
    """For the greeting: what was sent on connections that were lost must not run after what is to be sent on this one."""
    cdef bytes address = e.node_list[u.node].name
    cdef list known = e.ghosts.get(address.decode(errors="replace"), [])
    cdef list told = [each for each in known if " ADDR " in each][-KILLED:]
    if not told:
        return b""
    for each in told:
        known.remove(each)
    u.killing = <uint32_t>len(told)
    e.killed[u.index] = told
    return b"".join(
        b"*6\r\n$6\r\nCLIENT\r\n$4\r\nKILL\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in each.encode().split(b" "))
        for each in told)


cdef void killed(Engine e, Upstream *u, bint done) noexcept:
    """What the node says of the first of these; else it is told again, by another."""
    cdef bytes address = e.node_list[u.node].name
    cdef str each = e.killed[u.index].pop(0)
    u.killing -= 1
    if not done:
        e.ghosts.setdefault(address.decode(errors="replace"), []).append(each)


cdef void greeted(Engine e, Upstream *u) noexcept:
    """Replies to HELLO or AUTH, CLIENT ID and INFO, and to PING, which comes last: anything but what a Redis says ends the
    connection. Then those to what is said for this one."""
    cdef size_t used = 0
    cdef int status
    cdef char text[TEXT]
    cdef size_t n
    cdef const char *answer
    cdef const char *word
    while u.greetings + u.killing + u.extras and u.inp.len > u.scanned:
        status = scan_frame(&u.scan, buf_head(&u.inp) + u.scanned, u.inp.len - u.scanned, &used)
        u.scanned += used
        if status == SCAN_BAD or u.scanned > STREAM_ABOVE:
            quoted(e, u, "is not a Redis: it answered")
            return
        if status != SCAN_DONE:
            return
        answer = buf_head(&u.inp)
        if u.greetings == 0 and u.killing:
            killed(e, u, answer[0] == c':')
            taken(u)
            continue
        if u.greetings == 0:
            if answer[0] == c'-':
                snprintf(text, TEXT, "refuses us: %.*s", <int>(u.scanned - 3 if u.scanned < 200 else 200), answer + 1)
                upstream_lost(e, u, text, True)
                return
            taken(u)
            u.extras -= 1
            continue
        if u.greetings == 2:
            # CLIENT INFO: an error before Redis 6.2
            keep_address(u, answer, u.scanned)
            taken(u)
            u.greetings -= 1
            continue
        if u.greetings == 3 and (answer[0] == c':' or answer[0] == c'-'):
            # CLIENT ID: who may not ask, or a server that does not know it, is no worse for it
            u.id = strtoll(answer + 1, NULL, 10) if answer[0] == c':' else 0
            taken(u)
            u.greetings -= 1
            continue
        if u.greetings == 1 and u.scanned > 7 and answer[0] == c'-' and memcmp(answer + 1, "BUSY ", 5) == 0:
            # a script runs: what may be asked then (SCRIPT KILL) has to get there
            taken(u)
            u.greetings -= 1
            continue
        if u.proto == 3 and not u.raised and u.greetings > 3 and (
                no_hello(answer, u.scanned) or u.scanned > 8 and memcmp(answer + 1, "NOPERM ", 7) == 0):
            lower(e, u)
            return
        if answer[0] == c'-':
            # an error may quote what it is about, and that may be a password: only its first word is repeated then
            n = u.scanned - 3 if u.scanned < 200 else 200       # of a line: its "-" and its CRLF are there
            if u.greetings > 3 and not (n > 25 and memcmp(answer + 1, "ERR max number of clients", 25) == 0):
                word = <const char *>memchr(answer, c' ', n)
                n = word - answer - 1 if word != NULL else 0
                snprintf(text, TEXT, "refuses the login or the protocol: %.*s (`shardproxy check` says more)", <int>n,
                         answer + 1)
            else:
                snprintf(text, TEXT, "refuses us: %.*s", <int>n, answer + 1)
            upstream_lost(e, u, text, True)
            return
        if (answer[0] != c'%' if u.greetings > 3 and u.proto == 3 and not u.raised else
                u.scanned != 5 or memcmp(answer, "+OK\r\n", 5) if u.greetings > 3 else True if u.greetings == 3 else
                u.scanned != 7 or memcmp(answer, "+PONG\r\n", 7)):
            quoted(e, u, "is not a Redis: it answered")
            return
        taken(u)
        u.greetings -= 1
    if u.greetings + u.killing + u.extras == 0:
        upstream_ready(e, u)


cdef inline void taken(Upstream *u) noexcept nogil:
    """A reply of a greeting has been understood."""
    buf_consume(&u.inp, u.scanned)
    u.scanned = 0


cdef void keep_address(Upstream *u, const char *p, size_t n) noexcept nogil:
    """Of CLIENT INFO: "id=3 addr=127.0.0.1:60500 laddr=..."."""
    cdef const char *at = <const char *>memmem(p, n, " addr=", 6)
    cdef const char *end
    cdef size_t size
    if at == NULL or p[0] == c'-' or at[6] == c'/':    # all who come through a socket's file have the same
        return
    at += 6
    end = <const char *>memchr(at, c' ', n - (at - p))
    size = end - at if end != NULL else 0
    if 0 < size < sizeof(u.address):
        memcpy(u.address, at, size)
        u.address[size] = 0


cdef bint no_hello(const char *p, size_t n) noexcept nogil:
    """Whether an error says that the node does not speak RESP3."""
    return n > 27 and memcmp(p + 1, "ERR unknown command ", 20) == 0 and memcmp(p + 22, "HELLO", 5) == 0 or \
        n > 9 and memcmp(p + 1, "NOPROTO ", 8) == 0


cdef void lower(Engine e, Upstream *u) noexcept:
    """Begin again, in RESP2."""
    cdef int failures = u.failures
    e.node_list[u.node].speaks = 2
    upstream_leave(e, u)
    u.failures = failures
    start(e, u)
