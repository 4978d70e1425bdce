"""Commands for memcached nodes: those that are one command of its meta protocol a key, written as that.

    GET k        mg k v            SET k v EX 5   ms k 1 T6\\r\\nv        DEL k   md k
    STRLEN k     mg k s            SETNX k v      ms k 1 ME\\r\\nv        EXISTS k     mg k

Rules: what is sent here is atomic and exact, key by key; whatever is not of that kind, or not written as usual (an
option that is wrong, a time that is none), is a handler's. So is EXPIRE: memcached's touch leaves the CAS value as it is,
and who writes that key again at the moment would take it back. A key or a value that the node cannot hold is refused before
anything is sent. A time to live gets two seconds more, in whole seconds: core/memcached/expiry says why.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport realloc
from libc.string cimport memchr, memcpy, memset

from shardproxy.core.buffers cimport buf_reserve, buf_tail
from shardproxy.core.commands cimport FLAG_READONLY, Row
from shardproxy.core.fanout cimport Fan, fan_widen
from shardproxy.core.memcached_wire cimport BINARY_MOST, KEY_MOST, from_base64, put_key, read_size
from shardproxy.core.resp cimport Request, put_number
from shardproxy.dataplane.absence cimport remember_key
from shardproxy.dataplane.answers cimport refuse
from shardproxy.dataplane.calls cimport call_memcached
from shardproxy.dataplane.counters cimport REHASHED
from shardproxy.dataplane.deliveries cimport deliver_error
from shardproxy.dataplane.engine cimport TEXT, TO_PART, Client, Engine, Entry, Node, Upstream, wall_us
from shardproxy.dataplane.memcached_replies cimport ALL, ARRAY, SIZE, STATUS, SUM, VALUE, rewind, too_large
from shardproxy.dataplane.routing cimport WAIT
from shardproxy.dataplane.sending cimport node_of, room_for_keys
from shardproxy.dataplane.slots cimport client_close, slot_at
from shardproxy.dataplane.upstreams cimport fit, give, promise, upstream_for

cdef enum Op:
    NONE = 0
    GET = 1
    GETEX = 2                   # without options
    STRLEN = 3
    MGET = 4
    EXISTS = 5                  # and TOUCH
    DEL = 6
    SET = 7
    SETEX = 8                   # and PSETEX
    SETNX = 9
    MSET = 10

OPS = {
    "get": GET, "getex": GETEX, "strlen": STRLEN, "mget": MGET, "exists": EXISTS, "touch": EXISTS, "del": DEL, "unlink": DEL,
    "set": SET, "setex": SETEX, "psetex": SETEX, "setnx": SETNX, "mset": MSET,
}

cdef enum:
    HEADER = 56                 # bytes of an item besides its key, which ends with a NUL, and its value, which ends with CRLF
    RELATIVE_MOST = 2592000     # seconds: a larger time is an absolute one to memcached
cdef int64_t LAST = 0x7fffffff  # the last second that it knows

# What a command is made into
cdef struct Plan:
    uint8_t form
    char verb                   # g, s, d
    const char *flags           # after the key, and the size of the value
    int value                   # which argument is the value; 0: none
    bint timed
    int64_t time                # seconds, as memcached takes it

cdef Plan planned               # from meta_ready to meta_send


cdef int install_ops(Engine e) except -1:
    cdef int i, n = len(e.table.names)
    cdef unsigned char *ops = <unsigned char *>realloc(e.ops, n + 1)
    if ops == NULL:
        raise MemoryError
    e.ops = ops
    for i in range(n):
        ops[i] = OPS.get(e.table.names[i], NONE)
    return 0


# --- what it is made into ---

cdef bint time_of(Node *node, const char *p, size_t n, bint ms, bint absolute, int64_t *time) noexcept:
    """What memcached is to be told; False: a handler says what is wrong with it."""
    cdef int64_t v = 0, now, left
    v = read_size(p, n)
    if v <= 0 or p[0] == c'0' or v > <int64_t>1 << (50 if ms else 40):
        return False
    if not ms:
        v *= 1000
    now = wall_us() // 1000
    left = v - now if absolute else v
    if left <= 0:
        time[0] = -1
        return True
    # from now on, as long as that can be said: `ahead` is as old as the connection, and clocks are set
    time[0] = left // 1000 + 2
    if time[0] <= RELATIVE_MOST:
        return True
    # its clock shows whole seconds, of up to a second ago: less than two more than `ahead` says
    time[0] = (now + left + node.ahead // 1000 + 999) // 1000 + 2
    return time[0] <= LAST


cdef inline bint word(const char *p, size_t n, const char *upper, size_t size) noexcept nogil:
    cdef size_t i
    if n != size:
        return False
    for i in range(n):
        if p[i] & ~32 != upper[i]:
            return False
    return True


cdef bint plan(Engine e, Node *node, Request *r, const Row *row, Plan *it) noexcept:
    """False: it is a handler's."""
    cdef uint8_t op = e.ops[row.id]
    memset(it, 0, sizeof(Plan))
    it.flags = ""
    it.verb = c'g'
    if op == GET or op == MGET:
        it.form = VALUE if op == GET else ARRAY
        it.flags = " v"
    elif op == SET:
        return plan_set(node, r, it)
    elif op == GETEX:
        it.form = VALUE
        it.flags = " v"
        return r.argc == 2
    elif op == STRLEN:
        it.form = SIZE
        it.flags = " s"
    elif op == EXISTS or op == DEL:
        it.form = SUM
        it.verb = c'g' if op == EXISTS else c'd'
    elif op == SETNX:
        it.form = SUM
        it.verb = c's'
        it.flags = " ME"
        it.value = 2
    elif op == SETEX:
        it.form = STATUS
        it.verb = c's'
        it.value = 3
        it.timed = True
        return time_of(node, r.argv[2], r.argl[2], row.name[0] == c'p', False, &it.time)
    elif op == MSET:
        it.form = ALL
        it.verb = c's'
        it.value = 2
    else:
        return False
    return True


cdef bint lifetime(Node *node, Request *r, int i, Plan *it) noexcept:
    """EX, PX, EXAT or PXAT at argument i."""
    cdef const char *p = r.argv[i]
    cdef size_t n = r.argl[i]
    cdef bint ms = n and p[0] & ~32 == c'P'
    if i + 1 >= r.argc or it.timed or not (n == 2 or n == 4) or not (
            word(p, 2, "PX" if ms else "EX", 2) and (n == 2 or word(p + 2, 2, "AT", 2))):
        return False
    it.timed = True
    return time_of(node, r.argv[i + 1], r.argl[i + 1], ms, n == 4, &it.time)


cdef bint plan_set(Node *node, Request *r, Plan *it) noexcept:
    cdef int i = 3
    it.form = STATUS
    it.verb = c's'
    it.value = 2
    while i < r.argc:
        if r.argl[i] == 2 and it.flags[0] == 0 and word(r.argv[i], 2, "NX", 2):
            it.flags = " ME"
        elif r.argl[i] == 2 and it.flags[0] == 0 and word(r.argv[i], 2, "XX", 2):
            it.flags = " MR"
        elif lifetime(node, r, i, it):
            i += 1
        else:
            return False        # KEEPTTL and GET need several steps; the rest is wrong
        i += 1
    return True


# --- what cannot be ---

cdef bint fits(Engine e, Node *node, const char *key, size_t n, int64_t value) noexcept:
    """Whether the node can have such a key, with a value of so many bytes (-1: none); else e.text says why not."""
    cdef size_t i
    if n == 0:
        e.text_size = snprintf(e.text, TEXT, "-ERR an empty key is not possible on memcached shard '%.80s' at %.80s\r\n",
                               node.shard, node.name)
        return False
    if n > BINARY_MOST:
        i = 0
        while i < n and <uint8_t>key[i] > 32 and key[i] != 127:
            i += 1
        if n > KEY_MOST or i < n:
            e.text_size = snprintf(
                e.text, TEXT, "-ERR the key is too long for memcached shard '%.80s' at %.80s: at most %d bytes, or %d with "
                "spaces or control characters in it\r\n", node.shard, node.name, KEY_MOST, BINARY_MOST)
            return False
    if value >= 0 and node.item_most and HEADER + <int64_t>n + 1 + value + 2 > node.item_most:
        too_large(e, node)
        return False
    return True


cdef bint meta_can(Engine e, Request *r, const Row *row, int keys) noexcept:
    cdef int i, at
    cdef Node *node
    for i in range(keys):
        node = e.node_list[e.owners[i]]
        at = row.first + i * row.step
        if node.memcached and not fits(e, node, r.argv[at], r.argl[at], <int64_t>r.argl[at + 1] if row.step == 2 else -1):
            fit(e)
            return False
    return True


# --- sending ---

cdef inline char *text(char *to, const char *what) noexcept nogil:
    while what[0]:
        to[0] = what[0]
        to += 1
        what += 1
    return to


cdef int put(Engine e, Upstream *u, const Plan *it, const char *key, size_t n, const char *value, size_t size) noexcept:
    """One command of the meta protocol, right behind the others."""
    cdef char *to
    cdef bint base64 = False
    cdef size_t written
    if buf_reserve(&u.out, KEY_MOST + 96 + size) < 0:
        u.doomed = True
        return -1
    to = buf_tail(&u.out)
    to[0] = c'm'
    to[1] = it.verb
    to[2] = c' '
    to += 3
    to += put_key(to, key, n, &base64)
    if it.value:
        to += put_number(to, c' ', size) - 2        # without its CRLF
    if base64:
        to = text(to, " b")
    if it.timed:
        to = text(to, " ")
        to += put_number(to, c'T', it.time) - 2
    to = text(text(to, it.flags), "\r\n")
    if it.value:
        memcpy(to, value, size)
        to = text(to + size, "\r\n")
    written = to - buf_tail(&u.out)
    u.out.len += written
    u.given += written
    e.mark_upstream(u)
    return 0


cdef inline Entry *shaped(Upstream *u, uint8_t form) noexcept nogil:
    """What was promised last, answered in this form."""
    cdef Entry *entry = &u.fifo[(u.tail - 1) & u.mask]
    entry.form = form
    entry.total = entry.frames
    return entry


cdef uint32_t meta_ready(Engine e, Client *c, Request *r, const Row *row, int node, int *taken) noexcept:
    cdef Plan *it = &planned
    cdef int i
    cdef uint32_t keys
    if not plan(e, e.node_list[node], r, row, it):
        # a handler's: it may take several steps, and what this client sends later comes after them
        if c.calls:
            taken[0] = WAIT
        else:
            call_memcached(e, c, r, row, node)
            c.holding = c.calls != 0
        return 0
    # all its keys are there: those of a command that is split, else the first one
    keys = (r.argc - row.first) // row.step if it.form == ALL or it.form == SUM and row.last < 0 else 1
    for i in range(row.first, row.first + <int>keys * row.step, row.step):
        if not fits(e, e.node_list[node], r.argv[i], r.argl[i], <int64_t>r.argl[i + it.value - 1] if it.value else -1):
            fit(e)
            refuse(e, c, e.text)
            return 0
    return keys


cdef void meta_send(Engine e, Upstream *u, Request *r, const Row *row) noexcept:
    cdef Plan *it = &planned
    cdef int i, keys = shaped(u, it.form).frames
    for i in range(row.first, row.first + keys * row.step, row.step):
        if put(e, u, it, r.argv[i], r.argl[i], r.argv[i + it.value - 1] if it.value else NULL,
               r.argl[i + it.value - 1] if it.value else 0) < 0:
            return


cdef void meta_share(Engine e, Client *c, Request *r, const Row *row, Upstream *u, uint32_t at, uint32_t end, uint32_t slot,
                     uint16_t part, uint8_t tries, uint64_t due) noexcept:
    cdef bint write = not row.flags & FLAG_READONLY
    cdef Plan it
    cdef int i
    plan(e, e.node_list[u.node], r, row, &it)
    if write:
        c.wrote |= <uint64_t>1 << (u.node & 63)
    e.retry_tokens += e.retry_share
    if promise(e, u, TO_PART, c.index, c.generation, slot, part, write, tries, end - at, due) < 0:
        client_close(e, c, "out of memory")
        return
    shaped(u, it.form)
    while at < end:
        i = row.first + e.positions[at] * row.step
        if put(e, u, &it, r.argv[i], r.argl[i], r.argv[i + 1] if it.value else NULL, r.argl[i + 1] if it.value else 0) < 0:
            return
        at += 1


# --- again ---

cdef size_t command_at(const char *p, size_t n, char *key, size_t *size) noexcept nogil:
    """The length of the command that p begins with, and its key; 0: it is none, which we never send."""
    cdef const char *end = <const char *>memchr(p, c'\n', n)
    cdef const char *space
    cdef size_t line, i
    cdef int64_t value = 0, length
    if end == NULL or end - p < 5 or p[2] != c' ':
        return 0
    line = end - p + 1
    space = <const char *>memchr(p + 3, c' ', line - 3)
    i = (space - p if space != NULL else <size_t>(line - 2)) - 3
    if i > KEY_MOST:
        return 0
    memcpy(key, p + 3, i)
    size[0] = i
    i += 3
    if p[1] == c's':
        i += 1
        length = 0
        while c'0' <= p[i + length] <= c'9':
            length += 1
        value = read_size(p + i, length)
        if value < 0:
            return 0
        i += length
        line += value + 2
    if p[i] == c' ' and p[i + 1] == c'b' and (p[i + 2] == c' ' or p[i + 2] == c'\r'):
        value = from_base64(key, key, size[0])
        if value < 0:
            return 0
        size[0] = value
    return line if line <= n else 0


cdef void meta_again(Engine e, Client *c, const Entry *entry, const char *p, size_t n) noexcept:
    cdef char key[KEY_MOST + 2]
    cdef size_t size = 0, at = 0, length
    cdef Entry anew = entry[0]
    cdef uint32_t i, k, total = entry.total
    cdef int node = -1, other, parts = 0, part
    cdef bint displaced = False
    cdef Fan *f
    e.text_size = snprintf(e.text, TEXT, "-SHARDDOWN its shard is down, and its keys have no other place in common\r\n")
    rewind(e, &anew)
    memset(e.shares, 0, e.node_count * sizeof(uint32_t))
    if room_for_keys(e, <int>total) < 0:
        deliver_error(e, entry, False)
        return
    # where each key is now
    for i in range(total):
        length = command_at(p + at, n - at, key, &size)
        if length == 0:
            deliver_error(e, entry, False)
            return
        e.displaced = False
        other = node_of(e, key, size)
        if not e.node_list[other].memcached:
            deliver_error(e, entry, False)
            return
        if e.displaced and entry.write:
            remember_key(e, key, size)
        displaced = displaced or e.displaced
        e.owners[i] = <uint16_t>other
        parts += e.shares[other] == 0
        e.shares[other] += 1
        at += length
    if entry.to != TO_PART and parts != 1:
        deliver_error(e, entry, False)
        return
    if entry.to == TO_PART:
        f = fan_widen(slot_at(c, entry.slot).fan, entry.part, <uint16_t>parts, e.owners)
        if f == NULL:
            deliver_error(e, entry, False)
            return
        slot_at(c, entry.slot).fan = f
        part = f.parts - parts + 1
    else:
        part = 0
    # the parts are numbered in the order in which their nodes first come among the keys
    for i in range(total):
        node = e.owners[i]
        if e.shares[node] == 0:
            continue
        k = e.shares[node]
        e.shares[node] = 0
        again_to(e, c, entry, p, n, node, i, k, <uint16_t>(entry.part if i == 0 or entry.to != TO_PART else part))
        if i and entry.to == TO_PART:
            part += 1
        if displaced:
            e.count[<int>REHASHED] += 1
        if c.dead or entry.to == TO_PART and slot_at(c, entry.slot).fan == NULL:
            return


cdef void again_to(Engine e, Client *c, const Entry *entry, const char *p, size_t n, int node, uint32_t first, uint32_t keys,
                   uint16_t part) noexcept:
    """The commands whose keys e.owners gives to this node, of which there are so many, from the one of number `first` on."""
    cdef char key[KEY_MOST + 2]
    cdef size_t size = 0, at = 0, length
    cdef uint32_t i
    cdef Entry mine = entry[0]
    cdef Upstream *u
    mine.part = part
    if entry.to == TO_PART:
        slot_at(c, entry.slot).fan.part[part].shard = <uint16_t>node
    u = upstream_for(e, node, c, entry.due)
    if u == NULL:
        deliver_error(e, &mine, False)
        return
    if promise(e, u, entry.to, c.index, c.generation, entry.slot, part, entry.write, entry.tries, keys, entry.due) < 0:
        client_close(e, c, "out of memory")
        return
    shaped(u, entry.form).asked = entry.asked
    for i in range(entry.total):
        length = command_at(p + at, n - at, key, &size)
        if e.owners[i] == node and give(e, u, p + at, length) < 0:
            return
        at += length
    u.again = u.given
