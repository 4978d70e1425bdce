"""The properties that fuzzing checks of core/resp, core/memcached_wire, core/fanout and core/buffers.

A broken one aborts the process.

    one_input(bytes): byte 0 chooses what is tested, byte 1 limits and sizes, the others are what it reads

Scanner and request parser: input that comes in pieces gives the same frames, commands and errors as input that comes
whole; nothing is read beyond the end (every piece is a block of its own, so that a sanitizer sees it). Both are
linear: the scanner leaves less than a header to be read again, and the parser is not called again, or returns at once,
before there is more than it has seen, and goes on from there. An accepted request is, byte
for byte, what its arguments encode to: it is forwarded as it is, and Redis takes nothing else; its keys are among its
arguments. Merge: a client gets
one frame, whatever the nodes answered. Buffers: they hold what a model holds.

Built and run by tests/fuzz/run (libFuzzer) and tests/fuzz/test_fuzz_smoke.py.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport fprintf, stderr
from libc.stdlib cimport abort, free, malloc
from libc.string cimport memcmp, memcpy, memset

from shardproxy.core.buffers cimport Buf, buf_append, buf_consume, buf_head, buf_release, buf_reserve, buf_total, buf_trim
from shardproxy.core.commands cimport (
    FLAG_CONTAINER, FLAG_MOVABLE, MERGE_ARRAY, MERGE_OK, MERGE_SUM, CommandTable, Row,
)
from shardproxy.core.fanout cimport PART_ANSWERED, PART_FAILED, Fan, fan_free, fan_merge, fan_new
from shardproxy.core.memcached_wire cimport BINARY_MOST, KEY_MOST, LINE_MOST, from_base64, put_key, scan_meta
from shardproxy.core.resp cimport (
    REQ_BAD, REQ_EMPTY, REQ_MORE, REQ_OK, SCAN_BAD, SCAN_DONE, SCAN_MORE, Progress, Request, Scan, parse_request,
    put_number, raw_argument, request_free, scan_frame,
)

from shardproxy.core.commands import builtin

cdef enum:
    MAX_HEADER = 32             # core/resp
    BYTEWISE = 400              # inputs up to here are also fed byte by byte
    EVERYWHERE = 48             # and up to here split at every point

cdef uint64_t SPREAD = <uint64_t>0x2545f4914f6cdd1d
cdef CommandTable TABLE = builtin()
cdef const char *NAMES[4]
NAMES[0] = "a"
NAMES[1] = "b"
NAMES[2] = "c"
NAMES[3] = "d"


cdef void check(bint holds, const char *what) noexcept nogil:
    if not holds:
        fprintf(stderr, "PROPERTY BROKEN: %s\n", what)
        abort()


cdef void note(Buf *log, char what, int64_t value) noexcept nogil:
    buf_append(log, &what, 1)
    buf_append(log, <const char *>&value, sizeof(value))


cdef char *alone(const char *p, size_t n) noexcept nogil:
    """A copy with nothing behind it."""
    cdef char *copy = <char *>malloc(n if n else 1)
    memcpy(copy, p, n)
    return copy


# --- pieces: where the input is cut ---

cdef struct Cuts:
    size_t step                 # a piece's length; 0: random
    size_t first                # the first piece's, when not 0; the rest follows whole
    uint64_t state


cdef size_t next_cut(Cuts *cuts, size_t at, size_t n) noexcept nogil:
    cdef size_t size
    if cuts.first:
        size = cuts.first if at == 0 else n
    elif cuts.step:
        size = cuts.step
    else:
        cuts.state ^= cuts.state << 13
        cuts.state ^= cuts.state >> 7
        cuts.state ^= cuts.state << 17
        size = 1 + cuts.state % (1 + n // 4)
    return n if size >= n - at else at + size


ctypedef void (*Reader)(const char *p, size_t n, Cuts *cuts, const uint8_t *how, Buf *log) noexcept nogil


cdef void in_pieces(Reader reader, const char *p, size_t n, const uint8_t *how) noexcept nogil:
    """What `reader` notes must not depend on how the input is cut."""
    cdef Buf whole, cut
    cdef Cuts cuts
    cdef size_t i, turn, turns = 4
    memset(&whole, 0, sizeof(Buf))
    memset(&cuts, 0, sizeof(Cuts))
    cuts.step = n + 1
    reader(p, n, &cuts, how, &whole)
    if 1 < n <= EVERYWHERE:
        turns += n - 1
    for turn in range(turns):
        memset(&cuts, 0, sizeof(Cuts))
        cuts.state = SPREAD + turn * SPREAD + n
        for i in range(n if n < 16 else 16):
            cuts.state = cuts.state * 31 + <uint8_t>p[i]
        cuts.state |= 1
        if turn == 0:
            if n > BYTEWISE:
                continue
            cuts.step = 1
        elif turn >= 4:
            cuts.first = turn - 3
        memset(&cut, 0, sizeof(Buf))
        reader(p, n, &cuts, how, &cut)
        check(cut.len == whole.len, "input in pieces gives another number of results than whole input")
        check(memcmp(buf_head(&cut), buf_head(&whole), whole.len) == 0 if whole.len else True,
              "input in pieces gives other results than whole input")
        buf_release(&cut)
    buf_release(&whole)


# --- the scanner ---

cdef void read_frames(const char *p, size_t n, Cuts *cuts, const uint8_t *how, Buf *log) noexcept nogil:
    scan_all(p, n, cuts, log, scan_frame, MAX_HEADER)


cdef void read_meta(const char *p, size_t n, Cuts *cuts, const uint8_t *how, Buf *log) noexcept nogil:
    scan_all(p, n, cuts, log, scan_meta, LINE_MOST)


ctypedef int (*Scanner)(Scan *s, const char *p, size_t n, size_t *used) noexcept nogil


cdef void scan_all(const char *p, size_t n, Cuts *cuts, Buf *log, Scanner scan, size_t most) noexcept nogil:
    cdef Scan s
    cdef size_t at = 0, fed = 0, start = 0, used, i
    cdef int status
    cdef char *piece
    memset(&s, 0, sizeof(Scan))
    while fed < n:
        fed = next_cut(cuts, fed, n)
        piece = alone(p + at, fed - at)
        i = 0
        status = SCAN_DONE
        while at + i < fed:
            used = <size_t>-1
            status = scan(&s, piece + i, fed - at - i, &used)
            check(used <= fed - at - i, "the scanner used more bytes than there were")
            i += used
            if status != SCAN_DONE:
                break
            check(used > 0 or at + i > start, "an empty frame")
            check(s.left == 0 and s.body == 0 and s.crlf == 0 and not s.line, "the scanner is not at rest after a frame")
            start = at + i
            note(log, c'F', start)
        at += i
        free(piece)
        if status == SCAN_BAD:
            note(log, c'B', start)      # within the frame, how far it got depends on the pieces
            return
        if status == SCAN_MORE:
            check(fed - at < most, "the scanner leaves more than a header to be read again")
            check(s.left > 0 or scan == scan_meta, "the scanner wants more for no frame")
            check(s.body >= 0 and s.left >= 0, "negative")
    note(log, c'M', at)


# --- keys of memcached ---

cdef void name_key(const char *key, size_t n) noexcept nogil:
    cdef char to[KEY_MOST]
    cdef char back[BINARY_MOST + 2]
    cdef bint base64 = False
    cdef size_t size, i
    cdef char *mine = alone(key, n)
    size = put_key(to, mine, n, &base64)
    check(size <= KEY_MOST, "a key is too long for memcached")
    for i in range(size):
        check(<uint8_t>to[i] > 32 and to[i] != 127, "a key would end the word it is in")
    if base64:
        check(from_base64(back, to, size) == <int64_t>n and memcmp(back, mine, n) == 0, "a key comes back as another")
    elif size:
        check(size == n and memcmp(to, mine, n) == 0, "a key is not what it was")
    free(mine)


# --- requests ---

cdef void set_limits(Request *r, uint8_t how) noexcept nogil:
    cdef bint small = how & 1
    r.limits.max_arguments = 6 if small else 1048576
    r.limits.max_value = 40 if small else 536870912
    r.limits.max_inline = 60 if small else 65536
    r.limits.max_request = 120 if small else 1073741824


cdef void check_request(const Request *r, Buf *log) noexcept nogil:
    cdef Buf again
    cdef char number[32]
    cdef int i
    cdef size_t size, together
    cdef const char *raw
    memset(&again, 0, sizeof(Buf))
    check(r.argc > 0, "a command without arguments")
    note(log, c'C', r.argc)
    buf_append(&again, number, put_number(number, c'*', r.argc))
    together = again.len
    for i in range(r.argc):
        note(log, c'A', r.argl[i])
        buf_append(log, r.argv[i], r.argl[i])
        raw = raw_argument(r, i, &size)
        check(raw == r.raw + together, "raw arguments do not follow each other")
        together += size
        buf_append(&again, number, put_number(number, c'$', r.argl[i]))
        check(raw + size == r.argv[i] + r.argl[i] + 2, "a raw argument does not end where the argument does")
        buf_append(&again, r.argv[i], r.argl[i])
        buf_append(&again, "\r\n", 2)
    check(together == r.raw_size, "raw arguments are not all of the request")
    check(again.len == r.raw_size and memcmp(buf_head(&again), r.raw, again.len) == 0,
          "an accepted request is not what its arguments encode to: Redis would refuse it")
    buf_release(&again)


cdef void check_keys(const Request *r) noexcept nogil:
    """The positions of a request's keys, for which there is exactly as much room as the engine gives."""
    cdef const Row *row = TABLE.find(r.argv[0], r.argl[0])
    cdef const Row *sub
    cdef int *out
    cdef int n, i
    if row != NULL and row.flags & FLAG_CONTAINER and r.argc > 1:
        sub = TABLE.find_sub(row, r.argv[1], r.argl[1])
        row = sub if sub != NULL else row
    if row == NULL or (row.arity > 0 and r.argc != row.arity) or r.argc < -row.arity:
        return
    if row.first and not row.flags & FLAG_MOVABLE and row.last == row.first:
        check(row.first < r.argc, "the only key is beyond the arguments")
    out = <int *>malloc(r.argc * sizeof(int))
    n = TABLE.keys(row, r.argc, r.argv, r.argl, out, r.argc)
    check(-3 <= n <= r.argc, "more keys than arguments")
    for i in range(n):
        check(0 < out[i] < r.argc, "a key is beyond the arguments")
    n = TABLE.positions(row, r.argc, r.argv, r.argl, out, NULL, r.argc)
    check(-1 <= n <= r.argc, "more keys than arguments, patterns included")
    for i in range(n):
        check(0 < out[i] < r.argc, "a key of a pattern is beyond the arguments")
    free(out)


cdef void read_requests(const char *p, size_t n, Cuts *cuts, const uint8_t *how, Buf *log) noexcept nogil:
    cdef Request r
    cdef Progress g
    cdef size_t at = 0, fed = 0, i
    cdef int status, k
    cdef char *piece
    memset(&r, 0, sizeof(Request))
    memset(&g, 0, sizeof(Progress))
    set_limits(&r, how[0])
    while fed < n:
        fed = next_cut(cuts, fed, n)
        piece = alone(p + at, fed - at)
        i = 0
        status = REQ_OK
        while at + i < fed:
            status = parse_request(&r, &g, piece + i, fed - at - i)
            if status == REQ_MORE or status == REQ_BAD:
                break
            check(0 < r.size <= fed - at - i, "a request of no bytes, or of more than there were")
            check(g.left == 0 and g.pos == 0 and g.want == 0, "progress is kept after a whole request")
            if status == REQ_OK:
                check(r.argc <= r.limits.max_arguments or piece[i] != c'*', "more arguments than allowed")
                for k in range(r.argc):
                    check(<int64_t>r.argl[k] <= r.limits.max_value or piece[i] != c'*', "a larger argument than allowed")
                check_request(&r, log)
                check_keys(&r)
            i += r.size
            note(log, c'E', at + i)
        if status == REQ_BAD:
            note(log, c'B', at + i)
            k = 0
            while r.error[k]:
                k += 1
            check(0 < k < 200, "no reason, or an endless one")
            buf_append(log, r.error, k)
        if status == REQ_MORE:
            if g.left:
                check(g.want > fed - at - i, "an incomplete request is looked at again for nothing")
                check(g.pos <= fed - at - i, "progress is beyond the input")
                check(g.left <= r.limits.max_arguments, "more arguments to come than allowed")
            else:
                check(g.want == 0, "waiting for bytes of no request")
                check(fed - at - i < MAX_HEADER or <int64_t>(fed - at - i) <= r.limits.max_inline,
                      "a first line that never ends")
        free(piece)
        at += i
        # what is promised costs nothing before it is there: 4 bytes are the least that an argument takes
        check(r.room <= 1024 or <size_t>r.room <= 2 * (n // 2 + 64), "room is made for arguments that have not come")
        check(r.inline_args.cap <= 2 * n + 16384 and r.inline_raw.cap <= 16 * n + 65536, "an inline request takes too much")
        if status == REQ_BAD:
            break
    note(log, c'.', at)
    request_free(&r)


# --- merging ---

cdef void merge(const char *p, size_t n, uint8_t how) noexcept nogil:
    """Whole frames of the input are the parts' replies; the first two bytes say which failed and who owns which key."""
    cdef int kind = how % 3, parts = 1 + (how >> 2) % 4, keys = 1 + (how >> 4), i
    cdef uint8_t merge_kind = MERGE_ARRAY if kind == 0 else MERGE_SUM if kind == 1 else MERGE_OK
    cdef Fan *f
    cdef Scan s
    cdef Buf out
    cdef size_t used = 0
    cdef uint32_t seed
    cdef const char *down = "-SHARDDOWN shard 'x' is down\r\n"
    if n < 2:
        return
    seed = <uint8_t>p[1]
    f = fan_new(merge_kind, 3 if seed & 64 else 2, seed >> 7, <unsigned short>parts, keys)
    if merge_kind == MERGE_ARRAY:
        for i in range(keys):
            f.owner[i] = <unsigned short>(i * (1 + seed % 3) % parts)
    seed = <uint8_t>p[0]
    p += 2
    n -= 2
    for i in range(parts):
        f.part[i].shard = <unsigned short>i
        memset(&s, 0, sizeof(Scan))
        if n == 0 or seed >> i & 1 or scan_frame(&s, p, n, &used) != SCAN_DONE:
            f.part[i].state = PART_FAILED
            buf_append(&f.part[i].reply, down, 30)
            continue
        f.part[i].state = PART_ANSWERED
        buf_append(&f.part[i].reply, p, used)
        p += used
        n -= used
    memset(&out, 0, sizeof(Buf))
    check(fan_merge(f, NAMES, &out) == 0, "merging failed")
    memset(&s, 0, sizeof(Scan))
    check(out.len > 0 and scan_frame(&s, buf_head(&out), out.len, &used) == SCAN_DONE and used == out.len,
          "a merged reply is not exactly one frame")
    buf_release(&out)
    fan_free(f)


# --- buffers ---

cdef void use_buffers(const char *p, size_t n) noexcept nogil:
    """Each byte is an operation on one of two buffers that hold a counting sequence."""
    cdef Buf b[2]
    cdef size_t size[2]
    cdef size_t taken[2]
    cdef size_t i, k, much, before = buf_total()
    cdef uint8_t op
    cdef char value
    memset(b, 0, sizeof(b))
    memset(size, 0, sizeof(size))
    memset(taken, 0, sizeof(taken))
    for i in range(n if n < 64 else 64):
        op = <uint8_t>p[i]
        k = op & 1
        much = <size_t>1 << (op >> 4)
        much += i
        if op >> 1 & 7 < 4:
            check(buf_reserve(&b[k], much) == 0, "no memory")
            check(b[k].off + b[k].len + much <= b[k].cap, "less room than was asked for")
            while much:
                value = <char>(size[k] & 0x7f)
                check(buf_append(&b[k], &value, 1) == 0, "no memory")
                size[k] += 1
                much -= 1
        elif op >> 1 & 7 < 7:
            much = much if much < b[k].len else b[k].len
            buf_consume(&b[k], much)
            taken[k] += much
        else:
            buf_release(&b[k])
            buf_trim(op >> 6)
            taken[k] = size[k]
        check(b[k].len == size[k] - taken[k], "a buffer has another length than its model")
        check(b[0].cap + b[1].cap + before == buf_total(), "buf_total does not count what buffers own")
        for much in range(b[k].len if b[k].len < 64 else 64):
            check(buf_head(&b[k])[much] == <char>((taken[k] + much) & 0x7f), "a buffer holds other bytes than its model")
            check(buf_head(&b[k])[b[k].len - 1 - much] == <char>((size[k] - 1 - much) & 0x7f), "so at its end")
    buf_release(&b[0])
    buf_release(&b[1])


cdef int one_input(const uint8_t *data, size_t n) noexcept nogil:
    cdef size_t before = buf_total()
    if n < 2:
        return 0
    if data[0] % 8 == 4:
        in_pieces(read_meta, <const char *>data + 2, n - 2, data + 1)
    elif data[0] % 8 == 5:
        name_key(<const char *>data + 1, n - 1)
    elif data[0] % 4 == 0:
        in_pieces(read_frames, <const char *>data + 2, n - 2, data + 1)
    elif data[0] % 4 == 1:
        in_pieces(read_requests, <const char *>data + 2, n - 2, data + 1)
    elif data[0] % 4 == 2:
        merge(<const char *>data + 2, n - 2, data[1])
    else:
        use_buffers(<const char *>data + 1, n - 1)
    check(buf_total() == before, "memory is not given back")
    return 0


def address():
    """Of one_input, for a program that calls it without Python."""
    return <uint64_t><size_t><void *>one_input


def run(bytes data):
    """One input, from Python."""
    one_input(<const uint8_t *><const char *>data, len(data))
