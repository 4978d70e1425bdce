from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

# One reply that is kept. Its bytes follow: what was asked, then the frame.
cdef struct Kept:
    Kept *newer
    Kept *older
    Kept *next_asked            # in a chain of `asked`; `slot` is what points here
    Kept **slot_asked
    Kept *next_key              # in a chain of `keys`
    Kept **slot_key
    uint64_t asked              # hashes
    uint64_t key
    uint64_t at                 # when it came
    uint64_t sent               # when it was asked for
    uint32_t question           # bytes of what was asked: all arguments but the name
    uint32_t frame
    uint32_t room               # bytes of this block
    uint8_t kind                # which command
    uint8_t proto

# Times are those of the engine: us, monotonic.
cdef struct Stale:
    Kept **asked                # chains by what was asked
    Kept **keys                 # chains by key
    uint32_t mask               # of both
    uint64_t *written           # when a key with such a hash was last written, or any key: WORDS
    bint shared                 # with other workers: a write may be there that was not seen here
    uint64_t cut                # bits of a hash that are used: all, but in tests
    Kept *newest
    Kept *oldest
    size_t count
    size_t bytes                # of all this, as buf_total counts it
    size_t tables               # the part that is always there
    size_t limit
    uint64_t max_age
    uint64_t settle

# Words that say when what was written: one a hash, and one for writes of nobody knows which keys.
cdef enum:
    STAMPS = 262144
    WORDS = STAMPS + 1

# stamps: WORDS of them in memory that all workers share; NULL: there is one worker.
# limit: bytes, tables included; max_age: of what may be served; settle: how long after a write has come it may still
# be on its way to the node: twice the pool's timeout. NULL: no memory.
cdef Stale *stale_new(size_t limit, uint64_t max_age, uint64_t settle, uint64_t *stamps) noexcept nogil
cdef void stale_free(Stale *s) noexcept nogil
# A request and its reply, whole, as they were on the wire; sent: when the request was read. What is not of GET's
# class, or an error, is not kept. What was read too close to a write, or is too large (m alone says so: frame may be
# NULL then), only ends what was kept before.
cdef void stale_put(Stale *s, const char *request, size_t n, uint8_t proto, const char *frame, size_t m, uint64_t sent,
                    uint64_t now) noexcept nogil
# The reply that was kept for such a request, valid until the next call, and its size in *m; NULL: none, or too old.
cdef const char *stale_get(Stale *s, const char *request, size_t n, uint8_t proto, uint64_t now,
                           size_t *m) noexcept nogil
# This key is being written.
cdef void stale_drop(Stale *s, const char *key, size_t n, uint64_t now) noexcept nogil
# Any key may be written now.
cdef void stale_clear(Stale *s, uint64_t now) noexcept nogil
# Forget what is too old, some at a time; call it in cron.
cdef void stale_expire(Stale *s, uint64_t now) noexcept nogil
# Forget the oldest until `bytes` are given back: memory is short.
cdef void stale_shrink(Stale *s, size_t bytes) noexcept nogil
