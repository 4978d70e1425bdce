"""What nodes send: read, cut into frames, and handed to whoever the upstream's FIFO says is next.

Rules: a frame takes the FIFO's head, a push takes nothing. A frame over 64 KB is passed on as it comes. What is
not RESP, and a reply that nothing asked for, reset the upstream: nobody can tell whose the next one would be.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp

from shardproxy.core.buffers cimport Buf, buf_consume, buf_head, buf_release, buf_reserve, buf_tail
from shardproxy.core.resp cimport SCAN_BAD, SCAN_DONE, scan_frame, usual_frame
from shardproxy.dataplane.absence cimport drop_stale_run
from shardproxy.dataplane.connecting cimport shake
from shardproxy.dataplane.counters cimport (
    BUCKETS, COUNTERS, ERROR_REPLIES, PUSHES_DROPPED, UPSTREAM_BYTES_IN, bucket_of,
)
from shardproxy.dataplane.deliveries cimport deliver
from shardproxy.dataplane.engine cimport (
    KEPT, GREETING, QUEUED, STREAM_ABOVE, TEXT, TO_NOBODY, TRACKING, UP, WAITING, Client, Engine, Entry, Node, Upstream,
)
from shardproxy.dataplane.greetings cimport greeted, no_hello
from shardproxy.dataplane.stale cimport stale_put
from shardproxy.dataplane.system cimport recv
from shardproxy.dataplane.links cimport link_frame
from shardproxy.dataplane.losses cimport blame, upstream_lost
from shardproxy.dataplane.memcached_greetings cimport meta_greeted
from shardproxy.dataplane.memcached_replies cimport meta_replies
from shardproxy.dataplane.private cimport owner_of, tracked, unlease
from shardproxy.dataplane.scripts cimport unlearn, unlearn_node
from shardproxy.dataplane.tls cimport Tls, tls_recv, tls_why
from shardproxy.dataplane.upstreams cimport upstream_done
from shardproxy.dataplane.waiting cimport wait_elsewhere

cdef extern from "<string.h>" nogil:
    const char *strerror(int number)
    void *memmem(const void *p, size_t n, const void *what, size_t size)

cdef enum:
    READ = 262144               # one read from a node
    PUSH_MOST = 1 << 29         # bytes of a push, as Redis's longest bulk


cdef void upstream_readable(Engine e, Upstream *u) noexcept:
    cdef ssize_t got
    cdef size_t n, used
    cdef int status
    cdef Entry *entry
    cdef Client *owner
    cdef char *p
    cdef Node *node = e.node_list[u.node]
    cdef bint last
    cdef const char *sick = NULL
    cdef bytes made
    if u.tls != NULL and not (<Tls>u.tls).ready and not shake(e, u, False):
        return
    if buf_reserve(&u.inp, READ // 4) < 0:
        upstream_lost(e, u, "out of memory", True)
        return
    n = u.inp.cap - u.inp.off - u.inp.len
    if n > READ:
        n = READ
    got = recv(u.fd, buf_tail(&u.inp), n, 0) if u.tls == NULL else tls_recv(e, <Tls>u.tls, u.fd, buf_tail(&u.inp), n)
    u.more = got == <ssize_t>n
    if got <= 0:
        if got < 0 and (errno == EAGAIN or errno == EINTR):
            return
        if got == 0:
            upstream_lost(e, u, "it closed the connection", False)
        else:
            upstream_lost(e, u, strerror(errno) if tls_why(u.tls) == NULL else tls_why(u.tls), False)
        return
    u.inp.len += got
    e.count[<int>UPSTREAM_BYTES_IN] += got
    if u.state == GREETING:
        if node.memcached:
            meta_greeted(e, u)
        else:
            greeted(e, u)
        if u.state != UP:
            return
    u.progress = e.now
    if node.memcached:
        meta_replies(e, u)
        if u.state == UP:
            read_out(e, u)
        return
    while u.inp.len > u.scanned and u.state == UP:
        p = buf_head(&u.inp)
        if u.scanned == 0 and not u.midway:
            u.push = p[0] == c'>' or u.stream
            # nor can a reply be to a request of which nothing has been written
            if not u.push and (u.head == u.tail or u.fifo[u.head & u.mask].start >= u.written):
                quoted(e, u, "it sent a reply that nothing had asked for:")
                return
        used = usual_frame(p, u.inp.len) if u.scan.left == 0 else 0
        status = SCAN_DONE if used else scan_frame(&u.scan, p + u.scanned, u.inp.len - u.scanned, &used)
        u.scanned += used
        if status == SCAN_BAD:
            quoted(e, u, "what it sends is not RESP:")
            return
        if u.push:
            if status == SCAN_DONE:
                u.push = False
                u.midway = False
                if u.linked:
                    link_frame(e, u, p, u.scanned)
                elif u.lease & TRACKING and u.owned:
                    owner = owner_of(e, u)
                    if owner != NULL and owner.tracking:
                        tracked(e, owner, p, u.scanned)
                else:
                    e.count[<int>PUSHES_DROPPED] += 1
            elif u.scanned < <size_t>(PUSH_MOST if u.linked or u.lease & TRACKING else STREAM_ABOVE):
                break
            else:
                u.midway = True
            buf_consume(&u.inp, u.scanned)
            u.scanned = 0
            continue
        entry = &u.fifo[u.head & u.mask]
        if status != SCAN_DONE:
            if u.raised and p[0] == c'*' and not u.midway and not entry.skip:
                if u.scanned < e.budget.hard:
                    break       # what it is made of has to be whole
                too_large_to_raise(e, node, entry)
            if u.scanned >= STREAM_ABOVE or u.midway and u.scanned:
                if not entry.skip:
                    deliver(e, entry, p, u.scanned, False)
                buf_consume(&u.inp, u.scanned)
                u.scanned = 0
                u.midway = True
            break
        if entry.skip:
            # of a SCRIPT LOAD: what went wrong with it the EVALSHA behind it will say
            if p[0] == c'-':
                unlearn(u)
            entry.skip -= 1
            u.midway = False
            buf_consume(&u.inp, u.scanned)
            u.scanned = 0
            continue
        if entry.trusting and not u.midway and no_script(p, u.scanned):
            unlearn_node(node)
        if p[0] == c'-' and not u.midway:
            e.count[<int>ERROR_REPLIES] += 1
            node.errors[entry.write] += 1
            if entry.to == TO_NOBODY and entry.part == QUEUED:
                keep_refusal(u, p, u.scanned)
            elif entry.to == TO_NOBODY and u.proto == 3 and not u.raised and no_hello(p, u.scanned):
                u.raised = True                 # what was told to change its protocol: see private.tune
                node.speaks = 2
            sick = sickness(p, u.scanned)
            if sick != NULL:
                blame(e, node, sick, False)
        last = entry.frames == 1
        n = u.scanned
        if u.raised and not u.midway and (p[0] == c'*' or p[0] == c'$'):
            made = raised(e, u, entry, p[:n])
            p = made
            n = len(made)
        if e.stale != NULL and not entry.write and u.db == 0:
            keep_reply(e, u, entry, NULL if u.midway else p, n)
        elif e.stale != NULL and u.lease & WAITING:
            run_now(e, u, entry)
        if (u.moving or u.recalled) and u.lease & WAITING and not u.midway and is_nil(p, n):
            wait_elsewhere(e, u, entry)
        if u.refusal[0] and entry.to != TO_NOBODY:
            refused(e, u, entry, p, n)
        else:
            deliver(e, entry, p, n, last)
        u.midway = False
        buf_consume(&u.inp, u.scanned)
        u.scanned = 0
        if not last:
            entry.frames -= 1
            continue
        answered(e, u, node, entry, sick != NULL)
        sick = NULL
    if u.state == UP:
        read_out(e, u)


cdef inline void answered(Engine e, Upstream *u, Node *node, const Entry *entry, bint sick) noexcept:
    """The FIFO's head has all that it was promised."""
    cdef uint64_t us = e.now - entry.asked
    u.done += 1
    if not sick:
        node.streak = 0
        # what may take longer than others, or blocks, is not slow when it does; nor is who answers what another did not
        if e.now - entry.at <= e.slow_call or entry.due > entry.asked + e.timeout or entry.at <= e.lagged:
            node.ok += 1
        elif entry.at > node.slowed:
            node.slowed = e.now     # all that waits behind it is slow as well: one piece of evidence, as in `overdue`
            node.ok += 1
            node.slow += 1
    if not u.lease & (WAITING | KEPT):      # what is asked apart may take its time
        node.latency[entry.write][bucket_of(us)] += 1
        e.count[<int>COUNTERS + (BUCKETS if entry.write else 0) + bucket_of(us)] += 1
    u.proved = True
    if u.late == u.head:
        u.late += 1
    u.head += 1


cdef inline void read_out(Engine e, Upstream *u) noexcept:
    """What has come is dealt with."""
    upstream_done(u)
    if u.again > u.written:
        e.mark_upstream(u)
    if u.owned and u.head == u.tail:
        unlease(e, u, WAITING)
    if u.inp.len == 0 and u.inp.cap > 2 * READ:
        buf_release(&u.inp)


cdef void keep_reply(Engine e, Upstream *u, const Entry *entry, const char *frame, size_t n) noexcept:
    """For when this shard is down; what came in pieces is too large."""
    cdef uint64_t end = u.given if u.head + 1 == u.tail else u.fifo[(u.head + 1) & u.mask].start
    stale_put(e.stale, buf_head(&u.out) + (entry.start - u.base), end - entry.start, u.proto, frame,
              n if frame != NULL else STREAM_ABOVE + 1, entry.at, e.now)


cdef void run_now(Engine e, Upstream *u, const Entry *entry) noexcept:
    """What blocked writes when it ends: what was read while it waited, of the keys that it writes, is old."""
    cdef size_t start = entry.start + entry.prefix - u.base
    cdef uint64_t end = u.given if u.head + 1 == u.tail else u.fifo[(u.head + 1) & u.mask].start
    drop_stale_run(e, buf_head(&u.out) + start, end - u.base - start)


cdef bytes raised(Engine e, Upstream *u, const Entry *entry, bytes frame):
    """A reply in RESP2, for who speaks RESP3."""
    cdef size_t start = entry.start + entry.prefix - u.base
    cdef uint64_t end = u.given if u.head + 1 == u.tail else u.fifo[(u.head + 1) & u.mask].start
    try:
        return e.raised((buf_head(&u.out) + start)[:end - u.base - start], entry.frames, frame)
    except Exception as error:
        e.event("handler_failed", {"command": "", "error": type(error).__name__})
        return frame


cdef void too_large_to_raise(Engine e, Node *node, Entry *entry) noexcept:
    e.text_size = snprintf(e.text, TEXT, "-ERR the reply is too large to be made RESP3 of: shard '%.100s' at %.100s speaks "
                           "RESP2 only\r\n", node.shard, node.name)
    deliver(e, entry, e.text, e.text_size, True)
    entry.to = TO_NOBODY


cdef bint no_script(const char *p, size_t n) noexcept nogil:
    """Whether a reply says NOSCRIPT, or one of a transaction's replies does."""
    return p[0] == c'-' and n > 10 and memcmp(p + 1, "NOSCRIPT ", 9) == 0 or \
        p[0] == c'*' and memmem(p, n, "\r\n-NOSCRIPT ", 12) != NULL


cdef void keep_refusal(Upstream *u, const char *p, size_t n) noexcept nogil:
    """A command was not queued, though its client has been told that it was: EXEC will say why."""
    if not u.refusal[0]:
        snprintf(u.refusal, sizeof(u.refusal), "%.*s", <int>(n - 3), p + 1)


cdef void refused(Engine e, Upstream *u, const Entry *entry, const char *p, size_t n) noexcept:
    if n > 10 and memcmp(p, "-EXECABORT", 10) == 0:
        e.text_size = snprintf(e.text, TEXT, "-EXECABORT Transaction discarded because of: %s\r\n", u.refusal)
        deliver(e, entry, e.text, e.text_size, True)
    else:
        deliver(e, entry, p, n, entry.frames == 1)
    u.refusal[0] = 0


cdef inline bint is_nil(const char *p, size_t n) noexcept nogil:
    return p[0] == c'_' or n == 5 and p[1] == c'-' and p[2] == c'1'


cdef const char *sickness(const char *p, size_t n) noexcept nogil:
    """Of an error reply: what it says of the node, not of the request; NULL: nothing."""
    if n > 9 and memcmp(p + 1, "LOADING ", 8) == 0:
        return "it is loading its data"
    if n > 10 and memcmp(p + 1, "READONLY ", 9) == 0:
        return "it is read-only"
    if n > 12 and memcmp(p + 1, "MASTERDOWN ", 11) == 0:
        return "it has lost its master"
    return NULL


cdef void quoted(Engine e, Upstream *u, const char *why) noexcept:
    cdef char text[TEXT]
    snprintf(text, TEXT, "%s '%s'", why, printable(e, &u.inp))
    upstream_lost(e, u, text, True)


cdef const char *printable(Engine e, Buf *b) noexcept:
    """The beginning of what a node sent, fit for an error line."""
    cdef size_t i = 0
    cdef char ch
    while i < 40 and i < b.len:
        ch = b.p[b.off + i]
        if ch == c'\r' or ch == c'\n':
            break
        e.scratch[i] = ch if 32 <= ch < 127 else c'?'
        i += 1
    e.scratch[i] = 0
    return e.scratch
