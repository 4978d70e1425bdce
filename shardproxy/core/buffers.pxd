from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy, memmove


# Bytes p[off .. off+len) of a block of `cap`. All zero: empty and owning nothing.
cdef struct Buf:
    char *p
    size_t off
    size_t len
    size_t cap

cdef int buf_grow(Buf *b, size_t n) noexcept nogil       # room for n more at the end; -1: no memory
cdef void buf_release(Buf *b) noexcept nogil             # gives the block back; the buffer is empty again
cdef size_t buf_total() noexcept nogil                   # bytes in blocks that buffers own now
# Blocks of any size that are counted as buffers are; NULL: no memory. counted_free takes the same size.
cdef void *counted_alloc(size_t n) noexcept nogil
cdef void counted_free(void *p, size_t n) noexcept nogil
cdef void buf_trim(size_t keep) noexcept nogil           # leave at most `keep` bytes of spare blocks of each size

# A queue: items[head .. tail), numbers that count for ever, each at [number & mask]; NULL: no room yet.
# queue_grow doubles the room (first: `room`, a power of two), -1: no memory.
cdef int queue_grow(void **items, uint32_t *mask, uint32_t head, uint32_t tail, size_t size, uint32_t room) \
    noexcept nogil
cdef void queue_free(void **items, uint32_t *mask, size_t size) noexcept nogil

cdef inline int buf_reserve(Buf *b, size_t n) noexcept nogil:
    if b.off + b.len + n <= b.cap:
        return 0
    return buf_grow(b, n)

cdef inline char *buf_tail(Buf *b) noexcept nogil:
    return b.p + b.off + b.len

cdef inline char *buf_head(Buf *b) noexcept nogil:
    return b.p + b.off

cdef inline int buf_append(Buf *b, const char *data, size_t n) noexcept nogil:
    if b.off + b.len + n > b.cap:
        if buf_grow(b, n) < 0:
            return -1
    memcpy(b.p + b.off + b.len, data, n)
    b.len += n
    return 0

cdef inline void buf_consume(Buf *b, size_t n) noexcept nogil:
    b.len -= n
    if b.len == 0:
        b.off = 0
    else:
        b.off += n
