"""Growable byte buffers and queues, the only memory that requests and replies live in.

Small blocks (128 bytes, 1 KiB, 16 KiB) are recycled through spare lists, most recently used first, because most
buffers live for one tick; larger ones come from malloc and go back to it at once. `buf_total` counts what
buffers and queues own, spare blocks excluded: it is the figure that the process's memory budget is about. One thread.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

cdef enum:
    TINY = 128
    SMALL = 1024
    MEDIUM = 16384
    SIZES = 3

    KEPT = 8192                 # spare blocks of each size, at most

# None are kept under a sanitizer, which could not see who touches them
cdef extern from *:
    """
    #if defined(__SANITIZE_ADDRESS__)
    #define KEEP_SPARES 0
    #elif defined(__has_feature)
    #if __has_feature(address_sanitizer)
    #define KEEP_SPARES 0
    #endif
    #endif
    #ifndef KEEP_SPARES
    #define KEEP_SPARES 1
    #endif
    """
    bint KEEP_SPARES

# A stack of pointers, so that taking a block does not read it (a list through the blocks misses the cache)
cdef struct Spare:
    size_t count
    size_t most
    void *blocks[KEPT]

cdef Spare spares[SIZES]
cdef size_t *sizes = [TINY, SMALL, MEDIUM]
cdef size_t total = 0
spares[0].most = spares[1].most = KEPT if KEEP_SPARES else 0
spares[2].most = 1024 if KEEP_SPARES else 0


cdef inline Spare *spare_of(size_t size) noexcept nogil:
    return &spares[0] if size == TINY else &spares[1] if size == SMALL else &spares[2]


cdef inline void *take(size_t size) noexcept nogil:
    cdef Spare *s = spare_of(size)
    if s.count:
        s.count -= 1
        return s.blocks[s.count]
    return malloc(size)


cdef inline void give(void *p, size_t size) noexcept nogil:
    cdef Spare *s
    if size <= MEDIUM:
        s = spare_of(size)
        if s.count < s.most:
            s.blocks[s.count] = p
            s.count += 1
            return
    free(p)


cdef int buf_grow(Buf *b, size_t n) noexcept nogil:
    global total
    cdef size_t need = b.len + n, cap
    cdef char *p
    if need < n:
        return -1
    # the front has been consumed: moving down is cheaper than growing while at least half of the block is free
    if need <= b.cap and (b.off >= b.len or need <= b.cap // 2):
        memmove(b.p, b.p + b.off, b.len)
        b.off = 0
        return 0
    if need <= TINY:
        cap = TINY
    elif need <= SMALL:
        cap = SMALL
    elif need <= MEDIUM:
        cap = MEDIUM
    else:
        cap = 4 * MEDIUM
        while cap < need:
            cap *= 2
    if b.cap > MEDIUM and cap > b.cap and b.off == 0:
        p = <char *>realloc(b.p, cap)       # mremap moves pages, not bytes
        if p == NULL:
            return -1
    else:
        p = <char *>(take(cap) if cap <= MEDIUM else malloc(cap))
        if p == NULL:
            return -1
        if b.p != NULL:
            memcpy(p, b.p + b.off, b.len)
            give(b.p, b.cap)
    total += cap
    total -= b.cap
    b.p = p
    b.off = 0
    b.cap = cap
    return 0


cdef void buf_release(Buf *b) noexcept nogil:
    global total
    if b.p != NULL:
        give(b.p, b.cap)
        total -= b.cap
    b.p = NULL
    b.off = b.len = b.cap = 0


cdef size_t buf_total() noexcept nogil:
    return total


cdef void *counted_alloc(size_t n) noexcept nogil:
    global total
    cdef void *p = malloc(n)
    if p != NULL:
        total += n
    return p


cdef void counted_free(void *p, size_t n) noexcept nogil:
    global total
    if p != NULL:
        free(p)
        total -= n


cdef int queue_grow(void **items, uint32_t *mask, uint32_t head, uint32_t tail, size_t size, uint32_t room) \
        noexcept nogil:
    global total
    cdef char *more
    cdef uint32_t i = head
    if items[0] != NULL:
        room = 2 * (mask[0] + 1)
    more = <char *>malloc(room * size)
    if more == NULL:
        return -1
    while i != tail:
        memcpy(more + (i & (room - 1)) * size, <char *>items[0] + (i & mask[0]) * size, size)
        i += 1
    queue_free(items, mask, size)
    total += room * size
    items[0] = more
    mask[0] = room - 1
    return 0


cdef void queue_free(void **items, uint32_t *mask, size_t size) noexcept nogil:
    global total
    if items[0] != NULL:
        total -= (<size_t>mask[0] + 1) * size
        free(items[0])
    items[0] = NULL
    mask[0] = 0


cdef void buf_trim(size_t keep) noexcept nogil:
    cdef Spare *s
    cdef int i
    for i in range(SIZES):
        s = &spares[i]
        while s.count * sizes[i] > keep:
            s.count -= 1
            free(s.blocks[s.count])


def total_bytes() -> int:
    return total


def spare_blocks() -> tuple:
    return tuple(spares[i].count for i in range(SIZES))


cdef class Buffer:
    """A buffer for tests: append, consume, read back."""
    cdef Buf b

    def append(self, bytes data):
        if buf_append(&self.b, data, len(data)) < 0:
            raise MemoryError

    def consume(self, size_t n):
        if n > self.b.len:
            raise ValueError("more than there is")
        buf_consume(&self.b, n)

    def release(self):
        buf_release(&self.b)

    def __bytes__(self):
        return self.b.p[self.b.off:self.b.off + self.b.len] if self.b.p != NULL else b""

    def __dealloc__(self):
        buf_release(&self.b)
