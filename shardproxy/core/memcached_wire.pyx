"""The meta protocol of memcached, as far as a proxy needs it: where a reply ends, and how a key is written.

Rules: as core/resp's: nothing is copied, a reader stops anywhere and goes on there, a length is checked before anything is
taken for it. What begins as no reply of memcached does is refused at its first line, so that nothing else is ever taken
for one.
"""

from libc.stdint cimport int64_t, uint32_t, uint8_t
from libc.string cimport memchr, memcmp, memcpy, memset

from shardproxy.core.resp cimport SCAN_BAD, SCAN_DONE, SCAN_MORE, Scan

cdef enum:
    MORE_LINES = 1              # Scan.line: the frame ends with END
    CLOSING = 2                 # Scan.crlf: of a value's CRLF, bytes to come

cdef int64_t VALUE_MOST = <int64_t>1 << 31      # no item is larger: item_size_max is at most 1 GB

cdef const char *DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

# What the line of a reply may begin with; each ends with a space or the line
cdef const char **WORDS = [
    "HD", "EN", "NF", "NS", "EX", "MN", "ME", "VA", "OK", "END", "STAT", "RESET", "VERSION", "ERROR", "CLIENT_ERROR",
    "SERVER_ERROR", "STORED", "NOT_STORED", "EXISTS", "NOT_FOUND", "DELETED", "TOUCHED", "BUSY", "BADCLASS", "NOTFULL",
    "UNSAFE", "SAME", NULL,
]


cdef inline bint word_is(const char *p, size_t n, const char *word) noexcept nogil:
    """Whether a line of n bytes begins with this word."""
    cdef size_t i = 0
    while word[i]:
        if i == n or p[i] != word[i]:
            return False
        i += 1
    return i == n or p[i] == c' '


cdef bint known(const char *p, size_t n) noexcept nogil:
    cdef int i = 0
    if n > 4 and memcmp(p, "key=", 4) == 0:         # of lru_crawler metadump
        return True
    while WORDS[i] != NULL:
        if word_is(p, n, WORDS[i]):
            return True
        i += 1
    return False


cdef int64_t read_size(const char *p, size_t n) noexcept nogil:
    cdef size_t i
    cdef int64_t v = 0
    if n == 0 or n > 18:
        return -1
    for i in range(n):
        if p[i] < c'0' or p[i] > c'9':
            return -1
        v = v * 10 + (p[i] - c'0')
    return v


cdef int scan_meta(Scan *s, const char *p, size_t n, size_t *used) noexcept nogil:
    cdef size_t i = 0, line, after, room
    cdef const char *end
    cdef int64_t size
    used[0] = 0
    while True:
        if s.body:
            if <int64_t>(n - i) < s.body:
                s.body -= n - i
                used[0] = n
                return SCAN_MORE
            i += s.body
            s.body = 0
            s.crlf = CLOSING
        while s.crlf:
            if i == n:
                used[0] = i
                return SCAN_MORE
            if p[i] != (c'\r' if s.crlf == 2 else c'\n'):
                return SCAN_BAD
            i += 1
            s.crlf -= 1
            if s.crlf == 0:
                used[0] = i
                return SCAN_DONE
        room = n - i
        end = <const char *>memchr(p + i, c'\n', room if room < LINE_MOST else LINE_MOST) if room else NULL
        if end == NULL:
            used[0] = i
            # the first bytes say already what it cannot be
            if room >= LINE_MOST or room > 16 and not known_start(p + i):
                return SCAN_BAD
            return SCAN_MORE
        line = end - (p + i)
        after = i + line + 1
        if line and p[i + line - 1] == c'\r':
            line -= 1
        if not known(p + i, line):
            return SCAN_BAD
        if line > 2 and memcmp(p + i, "VA ", 3) == 0 and not s.line:
            end = <const char *>memchr(p + i + 3, c' ', line - 3)
            size = read_size(p + i + 3, end - (p + i + 3) if end != NULL else line - 3)
            if size < 0 or size > VALUE_MOST:
                return SCAN_BAD
            i = after
            s.body = size
            if size == 0:
                s.crlf = CLOSING
            continue
        if word_is(p + i, line, "STAT"):
            s.line = MORE_LINES
            i = after
            continue
        if s.line and not word_is(p + i, line, "END"):
            return SCAN_BAD
        s.line = 0
        used[0] = after
        return SCAN_DONE


cdef bint known_start(const char *p) noexcept nogil:
    """Of a line that has not come whole: its first word, of 16 bytes at most."""
    cdef size_t i = 0
    while i < 16 and p[i] != c' ' and p[i] != c'\r':
        i += 1
    return known(p, i) or memcmp(p, "key=", 4) == 0


# --- keys ---

cdef size_t put_key(char *to, const char *key, size_t n, bint *base64) noexcept nogil:
    cdef size_t i, w = 0
    cdef uint32_t three
    base64[0] = False
    if n == 0 or n > KEY_MOST:
        return 0
    for i in range(n):
        if <uint8_t>key[i] <= 32 or key[i] == 127:
            break
    else:
        memcpy(to, key, n)
        return n
    if n > BINARY_MOST:
        return 0
    base64[0] = True
    i = 0
    while i < n:
        three = <uint32_t>(<uint8_t>key[i]) << 16
        if i + 1 < n:
            three |= <uint32_t>(<uint8_t>key[i + 1]) << 8
        if i + 2 < n:
            three |= <uint8_t>key[i + 2]
        to[w] = DIGITS[three >> 18]
        to[w + 1] = DIGITS[three >> 12 & 63]
        to[w + 2] = DIGITS[three >> 6 & 63] if i + 1 < n else c'='
        to[w + 3] = DIGITS[three & 63] if i + 2 < n else c'='
        i += 3
        w += 4
    return w


cdef inline int digit(char ch) noexcept nogil:
    if c'A' <= ch <= c'Z':
        return ch - c'A'
    if c'a' <= ch <= c'z':
        return ch - c'a' + 26
    if c'0' <= ch <= c'9':
        return ch - c'0' + 52
    return 62 if ch == c'+' else 63 if ch == c'/' else -1


cdef int64_t from_base64(char *to, const char *p, size_t n) noexcept nogil:
    cdef size_t i = 0, w = 0
    cdef int k, value, padding
    cdef uint32_t four
    if n % 4 or n > KEY_MOST:
        return -1
    while i < n:
        four = 0
        padding = 0
        for k in range(4):
            value = digit(p[i + k])
            if value < 0 or padding:
                if p[i + k] != c'=' or k < 2 or i + 4 != n:
                    return -1
                padding += 1
                value = 0
            four = four << 6 | <uint32_t>value
        to[w] = <char>(four >> 16)
        if padding < 2:
            to[w + 1] = <char>(four >> 8 & 255)
        if padding < 1:
            to[w + 2] = <char>(four & 255)
        i += 4
        w += 3 - padding
    return w


# --- from Python ---

class ProtocolError(Exception):
    pass


cdef class Scanner:
    cdef Scan scan
    cdef bytearray held
    cdef size_t scanned

    def __init__(self):
        memset(&self.scan, 0, sizeof(Scan))
        self.held = bytearray()
        self.scanned = 0

    def feed(self, bytes data):
        cdef list found = []
        cdef size_t used = 0
        cdef int status
        cdef bytes held
        self.held += data
        while <size_t>len(self.held) > self.scanned:
            held = bytes(self.held)
            status = scan_meta(&self.scan, <const char *>held + self.scanned, len(held) - self.scanned, &used)
            self.scanned += used
            if status == SCAN_BAD:
                raise ProtocolError(held[:80])
            if status != SCAN_DONE:
                break
            found.append(held[:self.scanned])
            del self.held[:self.scanned]
            self.scanned = 0
        return found


def encode_key(bytes key):
    cdef char to[KEY_MOST]
    cdef bint base64 = False
    cdef size_t n = put_key(to, key, len(key), &base64)
    return None if n == 0 else (to[:n], bool(base64))
