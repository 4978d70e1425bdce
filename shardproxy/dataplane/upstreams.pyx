"""Connections to nodes: requests go out in the order they were promised, replies come back in it.

Rules: the FIFO's head says whose the next reply is, and only a reply, or the loss of the connection, takes an
entry from it. A deadline that passes answers the client and leaves the entry, marked late, so that the reply is
counted off when it comes. An upstream is reset when it makes no progress at all, or when what it sends is not
RESP or was never asked for. A push takes no entry. What is lost with a connection is answered at once: `SHARDDOWN`
where nothing of the request was written, `UNKNOWN outcome` where it may have run.
"""

from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset, strlen
from posix.unistd cimport close

from shardproxy.core.buffers cimport (
    Buf, buf_append, buf_consume, buf_head, buf_release, buf_reserve, buf_tail,
)
from shardproxy.core.fanout cimport PART_ANSWERED, PART_FAILED, Fan, fan_free, fan_merge
from shardproxy.core.resp cimport SCAN_BAD, SCAN_DONE, Scan, scan_frame
from shardproxy.dataplane.counters cimport (
    BUCKETS, COUNTERS, ERROR_REPLIES, LATE_REPLIES, PUSHES_DROPPED, SHARD_DOWN, TIMEOUTS, UNKNOWN_OUTCOMES,
    UPSTREAM_BYTES_IN, UPSTREAM_BYTES_OUT, UPSTREAM_CONNECTS, UPSTREAM_LOSSES, UPSTREAM_RESETS, bucket_of,
)
from shardproxy.dataplane.engine cimport (
    CONNECTING, DOWN, GREETING, OF_UPSTREAM, STREAM_ABOVE, TEXT, TO_ASKER, TO_CLIENT, TO_LATE, TO_NOBODY, TO_PART,
    UP, Client, Engine, Entry, Node, Slot, Upstream,
)
from shardproxy.dataplane.slots cimport client_close, slot_at, slot_feed
from shardproxy.dataplane.system cimport (
    AF_UNIX, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, IPPROTO_TCP, MSG_NOSIGNAL, SO_ERROR, SO_KEEPALIVE,
    SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_NODELAY, TCP_USER_TIMEOUT, connect, epoll_ctl, epoll_event, getsockopt,
    recv, send, setsockopt, sockaddr, socket, tag,
)

cdef extern from "<string.h>" nogil:
    const char *strerror(int number)

cdef enum:
    READ = 262144               # one read from a node
    BACKOFF_FIRST = 50000       # us
    BACKOFF_MOST = 5000000
    MAX_QUEUE = 4194304         # requests on one upstream


# --- connecting ---

cdef void keep_alive(Engine e, int fd) noexcept:
    """TCP notices a peer that is gone without a word, while idle and while bytes wait for its acknowledgement."""
    cdef int on = e.keepalive > 0, third = e.keepalive // 3 + 1, count = 3, ms = 30000
    if on:
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on))
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &e.keepalive, sizeof(int))
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &third, sizeof(int))
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(int))
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms))


cdef void set_why(Engine e, Upstream *u, const char *why) noexcept:
    cdef Node *node = &e.node_list[u.node]
    snprintf(u.why, TEXT, "%s", why)
    if strlen(node.why) == 0:
        e.event("node_down", {"node": node.name.decode(), "reason": why.decode(errors="replace")})
    snprintf(node.why, TEXT, "%s", why)


cdef void start(Engine e, Upstream *u) noexcept:
    cdef Node *node = &e.node_list[u.node]
    cdef epoll_event ev
    cdef int one = 1, fd, status
    cdef char text[TEXT]
    u.wanted = True
    u.progress = e.now
    if not node.resolved:
        failed(e, u, "its host name cannot be resolved")
        return
    fd = socket(node.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        failed(e, u, strerror(errno))
        return
    if node.address.ss_family != AF_UNIX:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
        keep_alive(e, fd)
    status = connect(fd, <const sockaddr *>&node.address, node.address_size)
    if status < 0 and errno != EINPROGRESS:
        snprintf(text, TEXT, "%s", strerror(errno))
        close(fd)
        failed(e, u, text)
        return
    u.fd = fd
    u.state = CONNECTING
    u.events = EPOLLOUT
    ev.events = EPOLLOUT
    ev.data.u64 = tag(OF_UPSTREAM, u.index, u.generation)
    if epoll_ctl(e.epoll, EPOLL_CTL_ADD, fd, &ev) < 0:
        upstream_lost(e, u, strerror(errno), False)


cdef void failed(Engine e, Upstream *u, const char *why) noexcept:
    """A connection that did not come about: the next try is later, and later each time."""
    cdef uint64_t wait = BACKOFF_FIRST
    cdef int i
    for i in range(u.failures if u.failures < 10 else 10):
        wait *= 2
    if wait > BACKOFF_MOST:
        wait = BACKOFF_MOST
    u.failures += 1
    u.retry_at = e.now + wait // 2 + e.random() % (wait // 2 + 1)
    set_why(e, u, why)


cdef void ready(Engine e, Upstream *u) noexcept:
    cdef Node *node = &e.node_list[u.node]
    u.state = UP
    u.failures = 0
    u.progress = e.now
    e.count[<int>UPSTREAM_CONNECTS] += 1
    if node.why[0]:
        node.why[0] = 0
        e.event("node_up", {"node": node.name.decode()})
    if u.out.len:
        dirty(e, u)


cdef void upstream_writable(Engine e, Upstream *u) noexcept:
    cdef int error = 0
    cdef uint32_t size = sizeof(error)
    cdef bytes greeting
    if u.state == CONNECTING:
        getsockopt(u.fd, SOL_SOCKET, SO_ERROR, &error, &size)
        if error:
            upstream_lost(e, u, strerror(error), False)
            return
        greeting, u.greetings = e.greetings[u.node][u.proto - 2]
        u.state = GREETING
        watch(e, u, EPOLLIN)
        # small, and the first bytes on a new connection: it always fits
        if send(u.fd, <const char *>greeting, len(greeting), MSG_NOSIGNAL) != len(greeting):
            upstream_lost(e, u, "could not write to it", False)
        return
    dirty(e, u)


cdef void greeted(Engine e, Upstream *u) noexcept:
    """Replies to HELLO and AUTH: any error ends the connection."""
    cdef size_t used = 0
    cdef int status
    cdef char text[TEXT]
    cdef size_t n
    while u.greetings and u.inp.len > u.scanned:
        status = scan_frame(&u.scan, buf_head(&u.inp) + u.scanned, u.inp.len - u.scanned, &used)
        u.scanned += used
        if status == SCAN_BAD or u.scanned > STREAM_ABOVE:
            snprintf(text, TEXT, "is not a Redis: it answered '%s'", printable(e, &u.inp))
            upstream_lost(e, u, text, True)
            return
        if status != SCAN_DONE:
            return
        if buf_head(&u.inp)[0] == c'-':
            n = u.scanned - 3 if u.scanned < 200 else 200
            snprintf(text, TEXT, "refuses us: %.*s", <int>n, buf_head(&u.inp) + 1)
            upstream_lost(e, u, text, True)
            return
        buf_consume(&u.inp, u.scanned)
        u.scanned = 0
        u.greetings -= 1
    if u.greetings == 0:
        ready(e, u)


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


cdef inline void watch(Engine e, Upstream *u, uint32_t events) noexcept:
    cdef epoll_event ev
    if events != u.events:
        u.events = events
        ev.events = events
        ev.data.u64 = tag(OF_UPSTREAM, u.index, u.generation)
        epoll_ctl(e.epoll, EPOLL_CTL_MOD, u.fd, &ev)


cdef inline void dirty(Engine e, Upstream *u) noexcept:
    u.dirty = True


# --- requests ---

cdef Upstream *upstream_for(Engine e, int shard, uint8_t proto, uint32_t spread) noexcept:
    cdef int number = e.shards[shard].node
    cdef Node *node = &e.node_list[number]
    cdef int k = <int>(spread % e.connections)
    cdef Upstream *u = node.shared[proto - 2][k]
    if u == NULL:
        u = upstream_new(e, number, proto)
        if u == NULL:
            e.text_size = snprintf(e.text, TEXT, "-ERR out of memory\r\n")
            return NULL
        node.shared[proto - 2][k] = u
    if u.state == UP and not u.doomed:
        if u.out.len > e.budget.queue or u.tail - u.head > MAX_QUEUE:
            e.text_size = snprintf(e.text, TEXT, "-OVERLOADED shard '%.100s' at %.100s: %llu bytes wait for it\r\n",
                                   e.shards[shard].name, node.name, <unsigned long long>u.out.len)
            return NULL
        node.requests += 1
        return u
    if u.state == DOWN and e.now >= u.retry_at and u.failures == 0:
        start(e, u)
    if (u.state == CONNECTING or u.state == GREETING) and u.failures == 0 and not u.doomed:
        node.requests += 1
        return u
    shard_down(e, shard, u)
    return NULL


cdef void shard_down(Engine e, int shard, Upstream *u) noexcept:
    e.count[<int>SHARD_DOWN] += 1
    e.text_size = snprintf(e.text, TEXT, "-SHARDDOWN shard '%.100s' at %.100s is down: %.90s\r\n",
                           e.shards[shard].name, e.node_list[u.node].name, u.why)
    fit(e)


cdef inline void fit(Engine e) noexcept:
    """snprintf says how long the text would have been."""
    if e.text_size >= TEXT:
        memcpy(e.text + TEXT - 3, "\r\n", 3)
        e.text_size = TEXT - 1


cdef Upstream *upstream_new(Engine e, int node, uint8_t proto) noexcept:
    cdef Upstream *u = <Upstream *>calloc(1, sizeof(Upstream))
    if u == NULL:
        return NULL
    if e.upstream_count == 65536:
        free(u)
        return NULL
    u.index = e.upstream_count
    e.upstreams[u.index] = u
    e.upstream_count += 1
    u.node = <uint16_t>node
    u.proto = proto
    u.fd = -1
    return u


cdef int promise(Engine e, Upstream *u, uint8_t to, uint32_t client, uint32_t generation, uint32_t slot,
                 uint16_t part, bint write, uint32_t frames) noexcept:
    cdef Entry *fifo
    cdef Entry *entry
    cdef uint32_t room, i
    if u.fifo == NULL or u.tail - u.head > u.mask:
        room = 2 * (u.mask + 1) if u.fifo != NULL else 64
        fifo = <Entry *>malloc(room * sizeof(Entry))
        if fifo == NULL:
            return -1
        i = u.head
        while i != u.tail:
            fifo[i & (room - 1)] = u.fifo[i & u.mask]
            i += 1
        free(u.fifo)
        u.fifo = fifo
        u.mask = room - 1
    if u.head == u.tail:
        u.progress = e.now
    entry = &u.fifo[u.tail & u.mask]
    u.tail += 1
    entry.client = client
    entry.generation = generation
    entry.slot = slot
    entry.part = part
    entry.to = to
    entry.write = write
    entry.frames = frames
    entry.at = e.now
    entry.start = u.given
    return 0


cdef int give(Engine e, Upstream *u, const char *p, size_t n) noexcept:
    if buf_append(&u.out, p, n) < 0:
        u.doomed = True         # part of a request cannot be left in there
        return -1
    u.given += n
    u.dirty = True
    return 0


cdef void upstream_flush(Engine e, Upstream *u) noexcept:
    cdef ssize_t n
    u.dirty = False
    if u.state != UP:
        return
    while u.out.len:
        n = send(u.fd, buf_head(&u.out), u.out.len, MSG_NOSIGNAL)
        if n < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                watch(e, u, EPOLLIN | EPOLLOUT)
                return
            upstream_lost(e, u, "connection lost", False)
            return
        u.written += n
        e.count[<int>UPSTREAM_BYTES_OUT] += n
        buf_consume(&u.out, n)
    if u.out.cap > 65536:
        buf_release(&u.out)
    watch(e, u, EPOLLIN)


# --- replies ---

cdef void fan_done(Engine e, Client *c, uint32_t slot, uint16_t part) noexcept:
    """A part is complete; with the last one the client gets its reply."""
    cdef Slot *s = slot_at(c, slot)
    cdef Fan *f = s.fan
    cdef Buf out
    f.open -= 1
    if f.open:
        return
    s.fan = NULL
    out.p = NULL
    out.off = out.len = out.cap = 0
    if not s.discard and fan_merge(f, e.shard_names, &out) < 0:
        fan_free(f)
        buf_release(&out)
        client_close(e, c, "out of memory")
        return
    fan_free(f)
    slot_feed(e, c, slot, out.p, out.len, True)
    buf_release(&out)


cdef void fan_fail(Engine e, Client *c, uint32_t slot, uint16_t part) noexcept:
    """A part that no node will answer: e.text is its error line."""
    cdef Fan *f = slot_at(c, slot).fan
    buf_release(&f.part[part].reply)
    buf_append(&f.part[part].reply, e.text, e.text_size)
    f.part[part].state = PART_FAILED
    fan_done(e, c, slot, part)


cdef inline void deliver(Engine e, Upstream *u, Entry *entry, const char *p, size_t n, bint last) noexcept:
    """Bytes of the reply at the FIFO's head; `last`: its final frame is complete."""
    cdef Client *c
    cdef Slot *s
    if entry.to == TO_CLIENT:
        c = e.client_at(entry.client, entry.generation)
        if c != NULL:
            slot_feed(e, c, entry.slot, p, n, last)
    elif entry.to == TO_PART:
        c = e.client_at(entry.client, entry.generation)
        if c == NULL:
            return
        s = slot_at(c, entry.slot)
        if buf_append(&s.fan.part[entry.part].reply, p, n) < 0:
            client_close(e, c, "out of memory")
            return
        c.held += n
        if c.out.len + c.held > e.budget.hard:
            client_close(e, c, "more reply bytes are waiting than client_output_hard allows")
            return
        if last:
            c.held -= s.fan.part[entry.part].reply.len
            s.fan.part[entry.part].state = PART_ANSWERED
            fan_done(e, c, entry.slot, entry.part)
    elif entry.to == TO_ASKER:
        asker(e, u, p, n, last)
    elif entry.to == TO_LATE and last:
        e.count[<int>LATE_REPLIES] += 1


cdef void asker(Engine e, Upstream *u, const char *p, size_t n, bint last) noexcept:
    cdef tuple key = (u.index, u.generation, u.head)
    try:
        e.asked[key] = e.asked.get(key, b"") + p[:n]
        if last:
            e.askers.pop(key)(e.asked.pop(key))
    except Exception as error:
        e.event("handler_failed", {"error": repr(error)})


cdef void upstream_readable(Engine e, Upstream *u) noexcept:
    cdef ssize_t got
    cdef size_t n, used
    cdef int status
    cdef Entry *entry
    cdef char *p
    cdef Node *node = &e.node_list[u.node]
    cdef char text[TEXT]
    cdef uint64_t us
    cdef bint last
    if buf_reserve(&u.inp, READ // 4) < 0:
        upstream_lost(e, u, "out of memory", True)
        return
    n = u.inp.cap - u.inp.off - u.inp.len
    got = recv(u.fd, buf_tail(&u.inp), n if n < READ else READ, 0)
    if got <= 0:
        if got < 0 and (errno == EAGAIN or errno == EINTR):
            return
        if got == 0:
            upstream_lost(e, u, "it closed the connection", False)
        else:
            upstream_lost(e, u, strerror(errno), False)
        return
    u.inp.len += got
    e.count[<int>UPSTREAM_BYTES_IN] += got
    u.progress = e.now
    if u.state == GREETING:
        greeted(e, u)
        if u.state != UP:
            return
    while u.inp.len > u.scanned and u.state == UP:
        p = buf_head(&u.inp)
        if u.scanned == 0 and not u.midway:
            u.push = p[0] == c'>'
            if not u.push and u.head == u.tail:
                snprintf(text, TEXT, "it sent a reply that nothing had asked for: '%s'", printable(e, &u.inp))
                upstream_lost(e, u, text, True)
                return
        status = scan_frame(&u.scan, p + u.scanned, u.inp.len - u.scanned, &used)
        u.scanned += used
        if status == SCAN_BAD:
            snprintf(text, TEXT, "what it sends is not RESP: '%s'", printable(e, &u.inp))
            upstream_lost(e, u, text, True)
            return
        if u.push:
            if status == SCAN_DONE:
                u.push = False
                u.midway = False
                e.count[<int>PUSHES_DROPPED] += 1
            elif u.scanned < STREAM_ABOVE:
                break
            else:
                u.midway = True
            buf_consume(&u.inp, u.scanned)
            u.scanned = 0
            continue
        entry = &u.fifo[u.head & u.mask]
        if status != SCAN_DONE:
            if u.scanned < STREAM_ABOVE and not u.midway:
                break
            if u.scanned:
                deliver(e, u, entry, p, u.scanned, False)
                buf_consume(&u.inp, u.scanned)
                u.scanned = 0
                u.midway = True
            break
        if p[0] == c'-' and not u.midway:
            e.count[<int>ERROR_REPLIES] += 1
            node.errors += 1
        entry.frames -= 1
        last = entry.frames == 0
        if last:
            us = e.now - entry.at
            node.latency[entry.write][bucket_of(us)] += 1
            e.count[<int>COUNTERS + (BUCKETS if entry.write else 0) + bucket_of(us)] += 1
        deliver(e, u, entry, p, u.scanned, last)    # an asker may make the FIFO grow: entry is not valid after it
        if last:
            if u.late == u.head:
                u.late += 1
            u.head += 1
        u.midway = False
        buf_consume(&u.inp, u.scanned)
        u.scanned = 0
    if u.inp.len == 0 and u.inp.cap > 2 * READ:
        buf_release(&u.inp)


# --- what goes wrong ---

cdef void fail_entry(Engine e, Upstream *u, Entry *entry, bint begun) noexcept:
    """e.text is the error line for whoever waits; `begun`: part of the reply has been passed on."""
    cdef Client *c
    if entry.to == TO_CLIENT or entry.to == TO_PART:
        c = e.client_at(entry.client, entry.generation)
        if c == NULL:
            return
        if entry.to == TO_PART:
            fan_fail(e, c, entry.slot, entry.part)
        elif begun:
            client_close(e, c, "a node was lost in the middle of its reply")
        else:
            slot_feed(e, c, entry.slot, e.text, e.text_size, True)
    elif entry.to == TO_ASKER:
        asker(e, u, e.text, e.text_size, True)


cdef void upstream_lost(Engine e, Upstream *u, const char *why, bint reset) noexcept:
    """Close it, answer everybody who waits on it, and say when it may be tried again."""
    cdef uint8_t was = u.state
    cdef bint begun = u.midway and not u.push
    cdef Entry entry
    cdef Node *node = &e.node_list[u.node]
    cdef char reason[TEXT]
    if was == DOWN:
        return
    snprintf(reason, TEXT, "%s", why)
    # the descriptor of an upstream is not named by anything but its own events, which carry the generation
    if u.fd >= 0:
        close(u.fd)
        u.fd = -1
    u.state = DOWN
    u.doomed = False
    u.events = 0
    buf_release(&u.inp)
    buf_release(&u.out)
    u.scanned = 0
    u.midway = u.push = False
    memset(&u.scan, 0, sizeof(Scan))
    e.count[<int>(UPSTREAM_RESETS if reset else UPSTREAM_LOSSES)] += 1
    if was == UP:
        u.retry_at = e.now
        snprintf(u.why, TEXT, "%s", reason)
        node.lost += 1
        e.event("upstream_lost", {"node": node.name.decode(), "reason": reason.decode(errors="replace"),
                                  "in_flight": u.tail - u.head})
    else:
        failed(e, u, reason)
    while u.head != u.tail:
        entry = u.fifo[u.head & u.mask]
        if entry.start >= u.written:
            e.text_size = snprintf(e.text, TEXT, "-SHARDDOWN shard '%.100s' at %.100s is down: %.90s\r\n",
                                   node.shard, node.name, reason)
        else:
            e.count[<int>UNKNOWN_OUTCOMES] += 1
            e.text_size = snprintf(e.text, TEXT, "-UNKNOWN outcome: shard '%.80s' at %.80s was lost before it "
                                   "answered (%.60s); the command may have run\r\n", node.shard, node.name, reason)
        fit(e)
        fail_entry(e, u, &entry, begun)
        begun = False
        u.head += 1
    u.late = u.head
    u.given = u.written = 0
    u.generation += 1


cdef void deadlines(Engine e, Upstream *u) noexcept:
    cdef Entry *entry
    cdef Node *node = &e.node_list[u.node]
    while u.late != u.tail:
        entry = &u.fifo[u.late & u.mask]
        if entry.at + e.timeout > e.now:
            return
        if not (u.late == u.head and u.midway) and (entry.to == TO_CLIENT or entry.to == TO_PART):
            e.count[<int>TIMEOUTS] += 1
            e.text_size = snprintf(e.text, TEXT, "-TIMEOUT shard '%.80s' at %.80s did not answer within %llu ms; "
                                   "the command may still run\r\n", node.shard, node.name, <unsigned long long>(e.timeout // 1000))
            fail_entry(e, u, entry, False)
            entry.to = TO_LATE
        u.late += 1


cdef void upstreams_due(Engine e) noexcept:
    cdef Upstream *u
    cdef uint32_t i
    for i in range(e.upstream_count):
        u = e.upstreams[i]
        if u == NULL:
            continue
        if u.state == DOWN:
            if u.wanted and e.now >= u.retry_at and not e.draining:
                start(e, u)
        elif u.state != UP:
            if e.now > u.progress + e.connect_timeout:
                upstream_lost(e, u, "it does not accept the connection in time" if u.state == CONNECTING
                              else "it accepts the connection and says nothing", True)
        elif u.doomed:
            upstream_lost(e, u, "out of memory", True)
        if u.head != u.tail:
            deadlines(e, u)
            if u.state == UP and u.head != u.tail and e.now > u.progress + e.reset_after:
                upstream_lost(e, u, "it makes no progress at all", True)


cdef void upstream_free(Engine e, Upstream *u) noexcept:
    upstream_lost(e, u, "shardproxy is closing the connection", False)
    free(u.fifo)
    e.upstreams[u.index] = NULL
    free(u)
