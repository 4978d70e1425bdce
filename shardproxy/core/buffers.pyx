"""Growable byte buffers, the only memory that requests and replies live in.

Small blocks (1 KiB, 16 KiB) are recycled through two spare lists, most recently used first, because most
buffers live for one tick; larger ones come from malloc and go back to it at once. `buf_total` counts what
buffers own, spare blocks excluded: it is the figure that the process's memory budget is about. One thread.
"""

from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove

cdef enum:
    SMALL = 1024
    MEDIUM = 16384
    MAX_SPARE = 4096            # blocks of each size kept between trims

cdef struct Spare:
    void *head                  # a spare block's first word points to the next one
    size_t count

cdef Spare spare_small, spare_medium
cdef size_t total = 0


cdef void *take(size_t size) noexcept nogil:
    cdef Spare *s = &spare_small if size == SMALL else &spare_medium
    cdef void *p = s.head
    if p != NULL:
        s.head = (<void **>p)[0]
        s.count -= 1
        return p
    return malloc(size)


cdef void give(void *p, size_t size) noexcept nogil:
    cdef Spare *s
    if size > MEDIUM:
        free(p)
        return
    s = &spare_small if size == SMALL else &spare_medium
    if s.count >= MAX_SPARE:
        free(p)
        return
    (<void **>p)[0] = s.head
    s.head = p
    s.count += 1


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
    if need <= SMALL:
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


cdef void buf_trim(size_t keep) noexcept nogil:
    cdef Spare *s
    cdef void *p
    cdef int i
    for i in range(2):
        s = &spare_small if i == 0 else &spare_medium
        while s.count > keep:
            p = s.head
            s.head = (<void **>p)[0]
            s.count -= 1
            free(p)


def total_bytes() -> int:
    return total


def spare_blocks() -> tuple:
    return spare_small.count, spare_medium.count


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
