from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcmp
from shardproxy.core.buffers cimport Buf

# How long "<mark><up to 9 digits>\r\n" is; 0: it is something else, or ends too near: to be read with care.
cdef inline size_t usual_header(const char *p, size_t n, int64_t *value) noexcept nogil:
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

# --- replies: where does a frame end? ---

cdef enum:
    SCAN_MORE = 0
    SCAN_DONE = 1
    SCAN_BAD = 2

# All zero: at the start of a frame. Needs no stack: only how many elements are still to come.
cdef struct Scan:
    int64_t left        # elements to come, the one being read included
    int64_t body        # bytes of a bulk body still to come
    int crlf            # bytes of the CRLF after a body still to come
    int line            # 1: inside a line whose content does not matter, 2: its last byte so far was CR

# Reads on from where the last call stopped; *used is how many of the n bytes belong to the frame and are done
# with (a header cut short is not). Frames are top level: a push or an attribute with its value is one frame.
cdef int scan_frame(Scan *s, const char *p, size_t n, size_t *used) noexcept nogil

# The same for what most replies are, when all of it is there: +OK, an integer, a bulk string. 0: ask scan_frame.
cdef inline size_t usual_frame(const char *p, size_t n) noexcept nogil:
    cdef int64_t v = 0
    cdef size_t size
    if p[0] == c'+':
        return 5 if n >= 5 and memcmp(p, "+OK\r\n", 5) == 0 else 0
    if p[0] != c'$' and p[0] != c':':
        return 0
    size = usual_header(p, n, &v)
    if size == 0 or p[0] == c':':
        return size
    if <int64_t>(n - size) < v + 2 or p[size + v] != c'\r' or p[size + v + 1] != c'\n':
        return 0
    return size + v + 2

# --- requests: one command ---

cdef enum:
    REQ_MORE = 0
    REQ_OK = 1
    REQ_EMPTY = 2       # nothing to answer (blank line, *0): skip `size` bytes
    REQ_BAD = 3         # `error` says why; the connection cannot go on

# What is remembered of a command that has not arrived whole, so that no byte is read twice. All zero: nothing.
cdef struct Progress:
    size_t pos          # where the next argument's header is
    size_t want         # nothing to do before this many bytes are there
    int64_t left        # arguments still to come

cdef struct RequestLimits:
    int64_t max_arguments
    int64_t max_value
    int64_t max_inline
    int64_t max_request
    bint stranger       # the client has not logged in: small requests only, as in Redis

cdef struct Request:
    int argc
    int room
    const char **argv
    size_t *argl
    const char *raw     # the command as RESP (for an inline command: made into RESP)
    size_t raw_size
    size_t size         # bytes it takes in the input
    const char *error
    char error_text[128]
    Buf inline_args
    Buf inline_raw
    RequestLimits limits

cdef int parse_request(Request *r, Progress *g, const char *p, size_t n) noexcept nogil
cdef void request_free(Request *r) noexcept nogil
# Bytes of argument i with its header and CRLF, as it stands in raw.
cdef const char *raw_argument(const Request *r, int i, size_t *n) noexcept nogil
cdef size_t put_number(char *to, char mark, int64_t value) noexcept nogil   # "$12\r\n": its length
