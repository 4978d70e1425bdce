"""RESP, as far as a proxy needs it: where a reply frame ends, and what the arguments of a request are.

Rules: nothing is copied and nothing is built; both readers stop anywhere and go on where they stopped; a
length or count is checked against its limit before anything is taken for it. The reply scanner keeps no
stack (an aggregate only adds to the number of elements still to come), so nesting costs nothing. It knows
no client, no command and no socket.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memset

from shardproxy.core.buffers cimport buf_append, buf_consume, buf_release, buf_reserve

cdef enum:
    STRANGERS_ARGUMENTS = 10
    STRANGERS_VALUE = 16384

cdef enum:
    MAX_HEADER = 32                     # "*-9223372036854775808\r\n"
cdef int64_t MAX_ELEMENTS = <int64_t>1 << 40
cdef int64_t MAX_BODY = <int64_t>1 << 40


cdef inline int read_number(const char *p, size_t n, int64_t *value) noexcept nogil:
    """A signed decimal as Redis takes it (no "+1", "01" or "-0"), up to 18 digits; -1 when it is something else.

    As strict as Redis, because what passes here goes to a shared upstream as it is, and Redis hangs up on such.
    """
    cdef size_t i = 0
    cdef int64_t v = 0
    cdef bint minus = False
    if n and p[0] == c'-':
        minus = True
        i = 1
    if i == n or n - i > 18 or p[i] == c'0' and n > 1:
        return -1
    while i < n:
        if p[i] < c'0' or p[i] > c'9':
            return -1
        v = v * 10 + (p[i] - c'0')
        i += 1
    value[0] = -v if minus else v
    return 0


cdef inline size_t usual_header(const char *p, size_t n, int64_t *value) noexcept nogil:
    """How long "<mark><up to 9 digits>\r\n" is; 0: it is something else, or ends too near: to be read with care."""
    cdef size_t i = 1
    cdef uint32_t v = 0, digit
    if n < 12:
        return 0
    while i < 10:
        digit = <uint32_t>p[i] - <uint32_t>c'0'
        if digit > 9:
            break
        v = v * 10 + digit
        i += 1
    if p[i] != c'\r' or p[i + 1] != c'\n' or i == 1 or p[1] == c'0' and i > 2:
        return 0
    value[0] = v
    return i + 2


cdef int scan_frame(Scan *s, const char *p, size_t n, size_t *used) noexcept nogil:
    cdef size_t i = 0, line
    cdef int64_t v
    cdef const char *end
    cdef char kind
    if s.left == 0:
        s.left = 1
    while True:
        if s.body:
            if <int64_t>(n - i) < s.body:
                s.body -= n - i
                used[0] = n
                return SCAN_MORE
            i += s.body
            s.body = 0
        while s.crlf:
            if i == n:
                used[0] = i
                return SCAN_MORE
            if p[i] != (c'\r' if s.crlf == 2 else c'\n'):
                used[0] = i
                return SCAN_BAD
            i += 1
            s.crlf -= 1
            if s.crlf == 0:
                s.left -= 1
        if s.line:
            end = <const char *>memchr(p + i, c'\n', n - i)
            if end == NULL:
                if n > i:
                    s.line = 2 if p[n - 1] == c'\r' else 1
                used[0] = n
                return SCAN_MORE
            if (s.line != 2) if end == p + i else ((end - 1)[0] != c'\r'):
                used[0] = i
                return SCAN_BAD
            i = end - p + 1
            s.line = 0
            s.left -= 1
        if s.left == 0:
            used[0] = i
            return SCAN_DONE
        if i == n:
            used[0] = i
            return SCAN_MORE
        kind = p[i]
        if kind == c'+' or kind == c'-' or kind == c':' or kind == c'_' or kind == c',' or kind == c'#' \
                or kind == c'(':
            i += 1
            s.line = 1
            continue
        line = usual_header(p + i, n - i, &v)
        if line == 0:
            end = <const char *>memchr(p + i, c'\n', n - i if n - i < MAX_HEADER else MAX_HEADER)
            if end == NULL:
                used[0] = i
                return SCAN_MORE if n - i < MAX_HEADER else SCAN_BAD
            line = end - (p + i) + 1
            if line < 3 or (end - 1)[0] != c'\r' or read_number(p + i + 1, line - 3, &v) < 0 or v < -1:
                used[0] = i
                return SCAN_BAD
        if kind == c'$' or kind == c'!' or kind == c'=':
            if v > MAX_BODY:
                used[0] = i
                return SCAN_BAD
            if v >= 0 and <int64_t>(n - i - line) > v + 1 and p[i + line + v] == c'\r' and p[i + line + v + 1] == c'\n':
                line += v + 2           # all of it is here
                s.left -= 1
            elif v >= 0:
                s.body = v
                s.crlf = 2
            else:
                s.left -= 1
        elif kind == c'*' or kind == c'~' or kind == c'>':
            s.left += (v if v > 0 else 0) - 1
        elif kind == c'%':
            s.left += 2 * (v if v > 0 else 0) - 1
        elif kind == c'|':
            s.left += 2 * (v if v > 0 else 0)      # the value that it describes is still to come
        else:
            used[0] = i
            return SCAN_BAD
        if v > MAX_ELEMENTS or s.left > MAX_ELEMENTS:
            used[0] = i
            return SCAN_BAD
        i += line


# --- requests ---

cdef int refuse(Request *r, const char *text) noexcept nogil:
    r.error = text
    return REQ_BAD


cdef int room_for(Request *r, int64_t n) noexcept nogil:
    cdef const char **argv
    cdef size_t *argl
    cdef int64_t room
    if n <= r.room:
        return 0
    room = r.room if r.room else 64
    while room < n:
        room *= 2
    argv = <const char **>realloc(r.argv, room * sizeof(char *))
    if argv == NULL:
        return -1
    r.argv = argv
    argl = <size_t *>realloc(r.argl, room * sizeof(size_t))
    if argl == NULL:
        return -1
    r.argl = argl
    r.room = <int>room
    return 0


cdef void request_free(Request *r) noexcept nogil:
    free(r.argv)
    free(r.argl)
    buf_release(&r.inline_args)
    buf_release(&r.inline_raw)
    r.argv = NULL
    r.argl = NULL
    r.room = 0


cdef int header(Request *r, const char *p, size_t n, int64_t *value, size_t *size, const char *wrong,
                const char *too_long) noexcept nogil:
    """Reads "<mark><number>\r\n" at p, which is not a usual header; p[0] has been looked at."""
    cdef const char *end = <const char *>memchr(p, c'\n', n if n < MAX_HEADER else MAX_HEADER)
    if end == NULL:
        return REQ_MORE if n < MAX_HEADER else refuse(r, too_long)
    if end - p < 2 or (end - 1)[0] != c'\r' or read_number(p + 1, end - p - 2, value) < 0:
        return refuse(r, wrong)
    size[0] = end - p + 1
    return REQ_OK


cdef int parse_request(Request *r, Progress *g, const char *p, size_t n) noexcept nogil:
    cdef int64_t left, length = 0
    cdef size_t pos, size = 0
    cdef int status, argc = 0
    cdef bint store
    if n == 0 or n < g.want:
        return REQ_MORE
    if p[0] != c'*':
        return parse_inline(r, p, n)
    if g.left:
        pos = g.pos
        left = g.left
        store = False
    else:
        size = usual_header(p, n, &length)
        if size == 0:
            status = header(r, p, n, &length, &size, "Protocol error: invalid multibulk length",
                            "Protocol error: too big mbulk count string")
            if status != REQ_OK:
                return status
        left = length
        if left > r.limits.max_arguments:
            return refuse(r, "Protocol error: invalid multibulk length")
        if r.limits.stranger and left > STRANGERS_ARGUMENTS:
            return refuse(r, "Protocol error: unauthenticated multibulk length")
        if left <= 0:
            r.size = size
            return REQ_EMPTY
        pos = size
        store = True
    if store and left <= 1024 and room_for(r, left) < 0:
        return refuse(r, "out of memory")
    while left:
        if pos == n:
            break
        if p[pos] != c'$':
            snprintf(r.error_text, sizeof(r.error_text), "Protocol error: expected '$', got '%c'",
                     c' ' if p[pos] == c'\r' or p[pos] == c'\n' else p[pos] if p[pos] else c'?')
            return refuse(r, r.error_text)
        size = usual_header(p + pos, n - pos, &length)
        if size == 0:
            status = header(r, p + pos, n - pos, &length, &size, "Protocol error: invalid bulk length",
                            "Protocol error: too big bulk count string")
            if status == REQ_MORE:
                break
            if status == REQ_BAD:
                return status
        if length < 0 or length > r.limits.max_value:
            return refuse(r, "Protocol error: invalid bulk length")
        if r.limits.stranger and length > STRANGERS_VALUE:
            return refuse(r, "Protocol error: unauthenticated bulk length")
        if <int64_t>pos + length > r.limits.max_request:
            return refuse(r, "Protocol error: the request is larger than max_request")
        if n - pos < size + length + 2:
            g.want = pos + size + length + 2
            break
        if store:
            if argc == r.room and room_for(r, argc + 1) < 0:
                return refuse(r, "out of memory")
            r.argv[argc] = p + pos + size
            r.argl[argc] = length
            argc += 1
        pos += size + length + 2
        if p[pos - 2] != c'\r' or p[pos - 1] != c'\n':
            return refuse(r, "Protocol error: a bulk string does not end with CRLF")
        left -= 1
    if left:
        g.pos = pos
        g.left = left
        if g.want <= n:
            g.want = n + 1
        return REQ_MORE
    g.left = 0
    g.pos = g.want = 0
    if not store:
        return parse_request(r, g, p, n)        # all of it is there: read it once more, for its arguments
    r.argc = argc
    r.raw = p
    r.raw_size = r.size = pos
    return REQ_OK


cdef inline bint blank(char c) noexcept nogil:
    return c == c' ' or c == c'\t' or c == c'\r' or c == c'\v' or c == c'\f' or c == 0


cdef inline int hex_digit(char c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    if c'a' <= c <= c'f':
        return c - c'a' + 10
    if c'A' <= c <= c'F':
        return c - c'A' + 10
    return -1


cdef int parse_inline(Request *r, const char *p, size_t n) noexcept nogil:
    """Words with Redis's quoting ("a\\x00b", 'c d'), made into a RESP array."""
    cdef const char *end = <const char *>memchr(p, c'\n', n)
    cdef size_t i = 0, line, start
    cdef int argc = 0
    cdef char quote, c
    cdef char *to
    cdef char number[32]
    cdef size_t digits
    if end == NULL:
        return refuse(r, "Protocol error: too big inline request") if <int64_t>n > r.limits.max_inline else REQ_MORE
    line = end - p
    if <int64_t>line > r.limits.max_inline:
        return refuse(r, "Protocol error: too big inline request")
    r.size = line + 1
    if line and p[line - 1] == c'\r':
        line -= 1
    buf_consume(&r.inline_args, r.inline_args.len)
    buf_consume(&r.inline_raw, r.inline_raw.len)
    # an argument is never longer than the line: pointers into this block stay true
    if buf_reserve(&r.inline_args, line + 1) < 0:
        return refuse(r, "out of memory")
    to = r.inline_args.p
    while True:
        while i < line and blank(p[i]):
            i += 1
        if i == line:
            break
        if room_for(r, argc + 1) < 0:
            return refuse(r, "out of memory")
        start = to - r.inline_args.p
        quote = 0
        while i < line:
            c = p[i]
            if quote == 0:
                if c == c' ' or c == c'\t' or c == c'\r' or c == 0:
                    break
                if c == c'"' or c == c"'":
                    quote = c
                    i += 1
                    continue
            elif c == quote:
                i += 1
                quote = 0
                if i < line and not blank(p[i]):
                    return refuse(r, "Protocol error: unbalanced quotes in request")
                break
            elif c == c'\\' and quote == c'"' and i + 1 < line:
                if p[i + 1] == c'x' and i + 3 < line and hex_digit(p[i + 2]) >= 0 and hex_digit(p[i + 3]) >= 0:
                    to[0] = <char>(hex_digit(p[i + 2]) * 16 + hex_digit(p[i + 3]))
                    i += 4
                else:
                    c = p[i + 1]
                    to[0] = (c'\n' if c == c'n' else c'\r' if c == c'r' else c'\t' if c == c't'
                             else c'\b' if c == c'b' else c'\a' if c == c'a' else c)
                    i += 2
                to += 1
                continue
            elif c == c'\\' and quote == c"'" and i + 1 < line and p[i + 1] == c"'":
                i += 1
                c = c"'"
            to[0] = c
            to += 1
            i += 1
        if quote:
            return refuse(r, "Protocol error: unbalanced quotes in request")
        r.argv[argc] = r.inline_args.p + start
        r.argl[argc] = to - r.inline_args.p - start
        argc += 1
    if argc == 0:
        return REQ_EMPTY
    r.argc = argc
    digits = put_number(number, c'*', argc)
    if buf_append(&r.inline_raw, number, digits) < 0:
        return refuse(r, "out of memory")
    for i in range(<size_t>argc):
        digits = put_number(number, c'$', r.argl[i])
        if buf_append(&r.inline_raw, number, digits) < 0 \
                or buf_append(&r.inline_raw, r.argv[i], r.argl[i]) < 0 \
                or buf_append(&r.inline_raw, "\r\n", 2) < 0:
            return refuse(r, "out of memory")
    # from here on the arguments are those of the RESP form, so that raw_argument holds for both kinds
    to = r.inline_raw.p + put_number(number, c'*', argc)
    for i in range(<size_t>argc):
        to += put_number(number, c'$', r.argl[i])
        r.argv[i] = to
        to += r.argl[i] + 2
    r.raw = r.inline_raw.p
    r.raw_size = r.inline_raw.len
    return REQ_OK


cdef const char *raw_argument(const Request *r, int i, size_t *n) noexcept nogil:
    cdef const char *start
    if i:
        start = r.argv[i - 1] + r.argl[i - 1] + 2
    else:
        start = <const char *>memchr(r.raw, c'\n', r.raw_size) + 1
    n[0] = r.argv[i] + r.argl[i] + 2 - start
    return start


cdef size_t put_number(char *to, char mark, int64_t value) noexcept nogil:
    cdef char digits[24]
    cdef int i = 0
    cdef size_t n = 0
    cdef bint minus = value < 0
    cdef uint64_t rest = -<uint64_t>value if minus else <uint64_t>value
    while True:
        digits[i] = <char>(c'0' + rest % 10)
        i += 1
        rest //= 10
        if rest == 0:
            break
    to[0] = mark
    n = 1
    if minus:
        to[1] = c'-'
        n = 2
    while i:
        i -= 1
        to[n] = digits[i]
        n += 1
    to[n] = c'\r'
    to[n + 1] = c'\n'
    return n + 2


# --- the same from Python, for tests and tools ---

class ProtocolError(Exception):
    """Bytes that are not RESP."""


cdef class Scanner:
    cdef Scan s
    cdef bytes rest
    cdef list frame

    def __cinit__(self):
        memset(&self.s, 0, sizeof(Scan))
        self.rest = b""
        self.frame = []

    def feed(self, bytes data):
        cdef list frames = []
        cdef size_t used = 0, at = 0
        cdef int status
        cdef bytes have = self.rest + data
        cdef const char *p = have
        cdef size_t n = len(have)
        while at < n:
            status = scan_frame(&self.s, p + at, n - at, &used)
            if status == SCAN_BAD:
                raise ProtocolError(f"not RESP: {have[at + used:at + used + 40]!r}")
            self.frame.append(have[at:at + used])
            at += used
            if status == SCAN_MORE:
                break
            frames.append(b"".join(self.frame))
            self.frame = []
        self.rest = have[at:]
        return frames


cdef class RequestParser:
    cdef Request r
    cdef Progress g
    cdef bytes rest

    def __cinit__(self, max_arguments=1048576, max_value=536870912, max_inline=65536, max_request=1073741824):
        memset(&self.r, 0, sizeof(Request))
        memset(&self.g, 0, sizeof(Progress))
        self.r.limits.max_arguments = max_arguments
        self.r.limits.max_value = max_value
        self.r.limits.max_inline = max_inline
        self.r.limits.max_request = max_request
        self.rest = b""

    def feed(self, bytes data):
        cdef list commands = []
        cdef bytes have = self.rest + data
        cdef const char *p = have
        cdef size_t n = len(have), at = 0
        cdef int status, i
        while at < n:
            status = parse_request(&self.r, &self.g, p + at, n - at)
            if status == REQ_MORE:
                break
            if status == REQ_BAD:
                raise ProtocolError(self.r.error.decode(errors="replace"))
            if status == REQ_OK:
                commands.append([self.r.argv[i][:self.r.argl[i]] for i in range(self.r.argc)])
            at += self.r.size
        self.rest = have[at:]
        return commands

    def __dealloc__(self):
        request_free(&self.r)
