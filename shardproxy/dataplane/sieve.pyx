"""Of the keys that a node lists, those that live there: what a GET through this proxy would find.

After a change of the ring, or an outage, a node may still have keys that are another's now. Nothing tells them from
others but the ring itself, and a list may have millions: so this is compiled. Keys of the proxy's own are no client's.
"""

from libc.stdint cimport int64_t
from libc.string cimport memcmp

from shardproxy.dataplane.engine cimport Engine
from shardproxy.dataplane.sending cimport node_of


cdef int64_t header(const char *p, Py_ssize_t n, Py_ssize_t *at, char mark) noexcept nogil:
    """The number of "$12\r\n" at p[at], and at past it; -1: that is not what stands there."""
    cdef Py_ssize_t i = at[0] + 1
    cdef int64_t value = 0
    if i >= n or p[i - 1] != mark or not c'0' <= p[i] <= c'9':
        return -1
    while i < n and c'0' <= p[i] <= c'9' and value < <int64_t>1 << 40:
        value = value * 10 + (p[i] - c'0')
        i += 1
    if i + 2 > n or p[i] != c'\r':
        return -1
    at[0] = i + 2
    return value


cdef inline bint ours(const char *p, int64_t n) noexcept nogil:
    """As handlers/keyspace's OURS."""
    if n < 17 or memcmp(p, "shardproxy:", 11):
        return False
    return memcmp(p + 11, "probe:", 6) == 0 or n == 21 and memcmp(p + 11, "heartbeats", 10) == 0 or \
        n > 21 and memcmp(p + 11, "temporary:", 10) == 0


cdef object sieve(Engine e, int number, bytes frame, Py_ssize_t at):
    """(how many, their bulk strings); None: at frame[at] is no array of bulk strings."""
    cdef const char *p = frame
    cdef Py_ssize_t n = len(frame), first, begin
    cdef int64_t left = header(p, n, &at, c'*'), size, kept = 0
    cdef list pieces = []
    if left < 0:
        return None
    first = at
    while left:
        left -= 1
        begin = at
        size = header(p, n, &at, c'$')
        if size < 0 or size + 2 > n - at:
            return None
        if node_of(e, p + at, size) == number and not ours(p + at, size):
            kept += 1
        else:
            if begin > first:
                pieces.append(p[first:begin])
            first = at + size + 2
        at += size + 2
    if at > first:
        pieces.append(p[first:at])
    return kept, b"".join(pieces)
