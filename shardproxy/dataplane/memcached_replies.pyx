"""What memcached nodes send: read, cut into frames, and made into what a Redis would have said.

Rules: as replies'. A request has as many replies as it has keys, and one answer: what the form of its entry says. A value
is passed on where it lies. What does not fit the form, and what says that the two sides have lost each other, resets the
upstream: nobody can tell whose the next one would be.
"""

from libc.stdint cimport uint8_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, strlen

from shardproxy.core.buffers cimport buf_consume, buf_head, buf_release
from shardproxy.core.memcached_wire cimport scan_meta
from shardproxy.core.resp cimport SCAN_BAD, SCAN_DONE, put_number
from shardproxy.dataplane.counters cimport ERROR_REPLIES
from shardproxy.dataplane.deliveries cimport deliver
from shardproxy.dataplane.engine cimport (
    STREAM_ABOVE, TEXT, TO_ASK, TO_CLIENT, TO_PART, UP, Client, Engine, Entry, Node, Upstream,
)
from shardproxy.dataplane.links cimport ask_forget, link_frame
from shardproxy.dataplane.losses cimport upstream_lost
from shardproxy.dataplane.replies cimport answered, quoted
from shardproxy.dataplane.slots cimport slot_at
from shardproxy.dataplane.upstreams cimport fit

cdef enum:
    # Entry.fault, the gravest last
    TOO_LARGE = 1
    FULL = 2
    REFUSED = 3

cdef const char *MISFIT = "its reply does not fit what was asked:"


cdef void meta_replies(Engine e, Upstream *u) noexcept:
    cdef Node *node = e.node_list[u.node]
    cdef Entry *entry
    cdef size_t used
    cdef int status
    cdef char *p
    cdef bint last
    while u.inp.len > u.scanned and u.state == UP:
        p = buf_head(&u.inp)
        if u.scanned == 0 and not u.midway and not u.stream and (
                u.head == u.tail or u.fifo[u.head & u.mask].start >= u.written):
            quoted(e, u, "it sent a reply that nothing had asked for:")
            return
        status = scan_meta(&u.scan, p + u.scanned, u.inp.len - u.scanned, &used)
        u.scanned += used
        if status == SCAN_BAD:
            quoted(e, u, "what it sends is not memcached's:")
            return
        if u.stream:
            if status != SCAN_DONE:
                return
            if u.linked:
                link_frame(e, u, p, u.scanned)
            buf_consume(&u.inp, u.scanned)
            u.scanned = 0
            continue
        entry = &u.fifo[u.head & u.mask]
        if status != SCAN_DONE:
            if u.scanned >= STREAM_ABOVE or u.midway and u.scanned:
                if not piece(e, node, entry, p, u.scanned, u.midway):
                    quoted(e, u, MISFIT)
                    return
                buf_consume(&u.inp, u.scanned)
                u.scanned = 0
                u.midway = True
            return
        last = entry.frames == 1
        if u.midway:
            deliver(e, entry, p, u.scanned, last)
        elif lost(p, u.scanned) or not translate(e, node, entry, p, u.scanned, last):
            quoted(e, u, MISFIT)
            return
        u.midway = False
        buf_consume(&u.inp, u.scanned)
        u.scanned = 0
        if last:
            answered(e, u, node, entry, False)
        else:
            entry.frames -= 1


cdef inline bint says(const char *p, size_t n, const char *words) noexcept nogil:
    return n >= strlen(words) and memcmp(p, words, strlen(words)) == 0


cdef bint lost(const char *p, size_t n) noexcept nogil:
    """Whether it says that it takes for commands what is none: then its replies are not those to our requests."""
    return p[0] == c'E' and says(p, n, "ERROR\r") or p[0] == c'C' and says(p, n, "CLIENT_ERROR bad data chunk")


cdef bint piece(Engine e, Node *node, Entry *entry, char *p, size_t n, bint midway) noexcept:
    """Part of a large value; False: it does not fit."""
    if midway or entry.form == RAW:
        deliver(e, entry, p, n, False)
        return True
    return p[0] == c'V' and translate(e, node, entry, p, n, False)


cdef bint translate(Engine e, Node *node, Entry *entry, char *p, size_t n, bint last) noexcept:
    """One reply, or the beginning of a value; False: it does not fit the form."""
    cdef char line[32]
    cdef Client *c
    cdef char a = p[0], b = p[1]
    cdef size_t size
    if entry.form == RAW or entry.to != TO_CLIENT and entry.to != TO_PART:
        deliver(e, entry, p, n, last)
        return True
    c = e.client_at(entry.client, entry.generation)
    if c == NULL:
        return True
    if entry.form == ARRAY and entry.frames == entry.total:
        size = put_number(line, c'*', entry.total)
        deliver(e, entry, line, size, False)
        if c.dead:
            return True
    if a == c'S' or a == c'C':
        return fault(e, node, entry, p, n, last)
    if p[2] != c' ' and p[2] != c'\r':
        return False
    if entry.form == VALUE or entry.form == ARRAY:
        if a == c'V' and bare(p + 3):
            p[2] = c'$'         # "VA 5\r\n" → "$5\r\n", where it lies
            deliver(e, entry, p + 2, n - 2, last)
        elif a == c'E' and b == c'N':
            nil(e, c, entry, last)
        else:
            return False
        return True
    if a == c'V' or b == c'A':
        return False
    if entry.form == STATUS:
        if a == c'H':
            deliver(e, entry, "+OK\r\n", 5, last)
        elif a == c'N' and b == c'S':
            nil(e, c, entry, last)
        else:
            return False
        return True
    if entry.form == SIZE:
        if a == c'E':
            deliver(e, entry, ":0\r\n", 4, last)
        elif n > 6 and p[3] == c's' and bare(p + 4):
            p[3] = c':'         # "HD s5\r\n" → ":5\r\n"
            deliver(e, entry, p + 3, n - 3, last)
        else:
            return False
        return True
    entry.tally += a == c'H'
    if last:
        conclude(e, node, entry)
    return True


cdef inline bint bare(const char *p) noexcept nogil:
    """Whether a line goes on with a number, and nothing else."""
    cdef size_t i = 0
    while c'0' <= p[i] <= c'9':
        i += 1
    return 0 < i < 20 and p[i] == c'\r'


cdef inline void nil(Engine e, Client *c, Entry *entry, bint last) noexcept:
    if c.proto == 3:
        deliver(e, entry, "_\r\n", 3, last)
    else:
        deliver(e, entry, "$-1\r\n", 5, last)


cdef void conclude(Engine e, Node *node, Entry *entry) noexcept:
    """The answer that is made of all replies."""
    cdef char line[32]
    if entry.fault:
        fault_text(e, node, entry.fault, NULL, 0)
        deliver(e, entry, e.text, e.text_size, True)
    elif entry.form == SUM:
        deliver(e, entry, line, put_number(line, c':', entry.tally), True)
    elif entry.tally == entry.total:
        deliver(e, entry, "+OK\r\n", 5, True)
    else:
        fault_text(e, node, REFUSED, NULL, 0)
        deliver(e, entry, e.text, e.text_size, True)


cdef bint fault(Engine e, Node *node, Entry *entry, const char *p, size_t n, bint last) noexcept:
    """SERVER_ERROR or CLIENT_ERROR."""
    cdef uint8_t what
    if not says(p, n, "SERVER_ERROR ") and not says(p, n, "CLIENT_ERROR "):
        return False
    what = TOO_LARGE if says(p + 13, n - 13, "object too large") else \
        FULL if says(p + 13, n - 13, "out of memory") else REFUSED
    e.count[<int>ERROR_REPLIES] += 1
    node.errors[entry.write] += 1
    if entry.form == SUM or entry.form == ALL:
        if what > entry.fault:
            entry.fault = what
        if last:
            conclude(e, node, entry)
        return True
    fault_text(e, node, what, p, n)
    deliver(e, entry, e.text, e.text_size, last)
    return True


cdef void fault_text(Engine e, Node *node, uint8_t what, const char *p, size_t n) noexcept:
    if what == TOO_LARGE:
        too_large(e, node)
        return
    if what == FULL:
        e.text_size = snprintf(e.text, TEXT, "-OOM command not allowed when used memory > 'maxmemory': shard '%.80s' at "
                               "%.80s is full\r\n", node.shard, node.name)
    elif p != NULL:
        e.text_size = snprintf(e.text, TEXT, "-ERR shard '%.80s' at %.80s answers '%.*s'\r\n", node.shard, node.name,
                               <int>(n - 2 if n < 120 else 120), p)
    else:
        e.text_size = snprintf(e.text, TEXT, "-ERR shard '%.80s' at %.80s has refused it\r\n", node.shard, node.name)
    fit(e)


cdef void too_large(Engine e, Node *node) noexcept:
    e.text_size = snprintf(e.text, TEXT, "-ERR the value is too large for memcached shard '%.80s' at %.80s: an item, with its "
                           "key and header, has at most %llu bytes\r\n", node.shard, node.name,
                           <unsigned long long>node.item_most)
    fit(e)


cdef void rewind(Engine e, Entry *entry) noexcept:
    cdef Client *c
    entry.frames = entry.total
    entry.tally = entry.fault = 0
    if entry.to == TO_ASK:
        ask_forget(e, entry.slot)
    elif entry.to == TO_PART:
        c = e.client_at(entry.client, entry.generation)
        if c != NULL and slot_at(c, entry.slot).fan != NULL:
            c.held -= slot_at(c, entry.slot).fan.part[entry.part].reply.len
            buf_release(&slot_at(c, entry.slot).fan.part[entry.part].reply)
