from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from shardproxy.core.commands cimport CommandTable, Row

# As Redis orders them: of what several selectors say, the largest is told
cdef enum Verdict:
    ALLOWED = 0
    DENIED_COMMAND = 1
    DENIED_KEY = 2
    NOT_LOGGED_IN = 3
    DENIED_CHANNEL = 4
    DENIED_BY = 5           # SORT's pattern reads keys that it does not name
    DENIED_GET = 6
    DENIED_SCRIPT = 7       # a node would run it without these rules

cdef struct Pattern:
    const char *text
    size_t size
    uint8_t access          # 1: for reading, 2: for writing

cdef struct First:          # a command that is allowed with this first argument
    int row
    const char *text
    size_t size

cdef struct Grant:          # acl.Selector, against one table
    uint8_t *commands       # by Row.id
    Pattern *keys
    int key_count           # -1: all
    Pattern *channels
    int channel_count       # -1: all
    First *first
    int first_count

cdef class Permit:
    """What one user may run. Immutable: another table or other rules are another object."""
    cdef readonly object user           # acl.User; None: nobody has logged in
    cdef readonly bint everything
    cdef bint trusted
    cdef CommandTable table
    cdef uint8_t *special               # by Row.id
    cdef Grant *grants
    cdef int count
    cdef list kept                      # what the patterns' texts belong to
    cdef int fill(self, int number, selector) except -1
    cdef int keep(self, str text, const char **where, size_t *size) except -1
    # A verdict; *at: the argument that was denied.
    cdef int check(self, const Row *row, int argc, const char *const *argv, const size_t *argl,
                   int *at) noexcept nogil
    cdef int grant_check(self, const Grant *grant, const Row *row, int argc, const char *const *argv,
                         const size_t *argl, const int *keys, const int *which, int found, int *at) noexcept nogil
    cdef int access_of(self, const Row *row, int spec, int argc, const char *const *argv,
                       const size_t *argl) noexcept nogil
    cdef int find_keys(self, const Row *row, int argc, const char *const *argv, const size_t *argl,
                       int *keys, int *which, int *status) noexcept nogil
