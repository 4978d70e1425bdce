from libc.stdint cimport int64_t
from shardproxy.core.resp cimport Scan

cdef enum:
    KEY_MOST = 250              # bytes of a key in a command, text or base64
    BINARY_MOST = 186           # bytes of a key that has to be written as base64
    LINE_MOST = 4096            # of a reply's line

# As resp.scan_frame, of a memcached's replies: SCAN_MORE, SCAN_DONE, SCAN_BAD. A frame is a line; with VA its value;
# with STAT all lines until END. A line cut short is not used up.
cdef int scan_meta(Scan *s, const char *p, size_t n, size_t *used) noexcept nogil
# A key as memcached's commands take it, into to[0 .. KEY_MOST): its length; 0: it cannot be written. *base64: it is, and
# the command needs the flag b.
cdef size_t put_key(char *to, const char *key, size_t n, bint *base64) noexcept nogil
# The reverse of base64, into to[0 .. BINARY_MOST + 2); its length; -1: it is not base64.
cdef int64_t from_base64(char *to, const char *p, size_t n) noexcept nogil
# A decimal without sign, "n" of "VA n ...": its value; -1: it is none, or has more than 18 digits.
cdef int64_t read_size(const char *p, size_t n) noexcept nogil
