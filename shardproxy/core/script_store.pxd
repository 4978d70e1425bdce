from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    DIGEST = 20                 # bytes of a SHA1

# A script's text; it follows.
cdef struct Script:
    Script *next_digest         # in a chain of `digests`
    Script *next_text           # in a chain of `texts`
    Script *newer               # used later, of those that came as this one
    Script *older
    uint64_t hash               # of the text
    size_t size
    uint32_t number             # small, and its own while it is kept
    bint loaded                 # by SCRIPT LOAD: these go last
    unsigned char digest[DIGEST]

cdef struct Scripts:
    Script **digests            # chains by digest
    Script **texts              # chains by text
    uint32_t mask               # of both
    Script *newest[2]          # by `loaded`
    Script *oldest[2]
    size_t bytes
    size_t limit
    uint32_t count
    uint32_t numbers            # numbers up to here have been given
    uint32_t *spare             # those that are nobody's any more
    uint32_t spare_count
    uint32_t spare_room

cdef Scripts *scripts_new(size_t limit) noexcept        # NULL: no memory
cdef void scripts_free(Scripts *s) noexcept
cdef Script *script_by_digest(Scripts *s, const unsigned char *digest) noexcept nogil
cdef Script *script_by_text(Scripts *s, const char *p, size_t n, uint64_t hash) noexcept nogil      # hash: xxh64
cdef void script_touch(Scripts *s, Script *script) noexcept nogil       # it is used now
cdef void script_loaded(Scripts *s, Script *script) noexcept nogil      # it counts as brought by SCRIPT LOAD from now on
cdef Script *script_oldest(Scripts *s) noexcept nogil                   # who goes first; NULL: there is none
cdef void script_drop(Scripts *s, Script *script) noexcept
# A new one, also beyond the limit. NULL: no memory.
cdef Script *script_put(Scripts *s, const unsigned char *digest, const char *p, size_t n, bint loaded) noexcept
cdef bint unhex(const char *p, size_t n, unsigned char *digest) noexcept nogil

cdef inline size_t cost_of(size_t n) noexcept nogil:
    """Bytes that a text of n takes."""
    return sizeof(Script) + n

cdef inline char *script_text(Script *script) noexcept nogil:
    return <char *>(script + 1)
