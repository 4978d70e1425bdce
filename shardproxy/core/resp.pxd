from libc.stdint cimport int64_t
from shardproxy.core.buffers cimport Buf

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
