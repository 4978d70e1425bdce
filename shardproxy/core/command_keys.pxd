from libc.stdint cimport int16_t, uint8_t, uint16_t

cdef enum:
    BAD = -1            # malformed arguments: Redis refuses them and touches nothing
    PATTERN = -2        # a key that the command reads is named by a pattern (SORT BY/GET)
    WOULD_BLOCK = -3    # XREAD BLOCK

# A key spec, as command_rows.KeySpec says it
cdef struct Spec:
    uint8_t begin           # 0: at `index`; 1: after `keyword`, looked for from `index` on; 2: unknown
    uint8_t find            # 0: range; 1: keynum; 2: unknown
    uint8_t is_key          # 0: it only looks like a key (a channel)
    uint8_t size            # of `keyword`
    uint8_t access          # what is done with its keys: 1 they are read, 2 written (as acl.READ and acl.WRITE)
    int16_t index
    int16_t last
    int16_t step
    int16_t limit
    int16_t count
    int16_t first
    char keyword[24]        # lower case

# How a command's keys are found
cdef struct Search:
    uint16_t spec           # index of its first Spec
    uint8_t specs
    uint8_t walk            # finds the keys by walking the options; 0: by key specs
    uint8_t mandatory       # 0: may have no keys at all (EVAL)
    uint8_t learned

# Where keys go as they are found
cdef struct Found:
    int *out
    int *which              # NULL: not wanted
    int room
    int n                   # found so far, also past `room`

# 0, BAD, PATTERN or WOULD_BLOCK; the positions are in `found`, except when BAD. specs: those of the whole table.
cdef int find_keys(const Spec *specs, const Search *how, int argc, const char *const *argv, const size_t *argl,
                   Found *found) noexcept nogil
# From command_rows.KeySpec, and from a Row of there whose first spec has this number. ValueError.
cdef int fill_spec(Spec *spec, record) except -1
cdef int fill_search(Search *how, int spec, record) except -1

# Whether a text is this one, which is in lower case.
cdef inline bint same(const char *text, const char *lower, size_t n) noexcept nogil:
    cdef size_t i
    cdef unsigned char c
    for i in range(n):
        c = text[i]
        if c'A' <= c <= c'Z':
            c += 32
        if c != <unsigned char> lower[i]:
            return False
    return True

cdef inline bint is_word(const char *text, size_t n, const char *word, size_t size) noexcept nogil:
    return n == size and same(text, word, n)
