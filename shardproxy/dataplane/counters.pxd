from libc.stdint cimport uint64_t

# The order is that of TABLE in counters.pyx (a test compares them).
cpdef enum Counter:
    CLIENTS_ACCEPTED
    CLIENTS_REFUSED
    CLIENTS_CLOSED
    CLIENTS_KILLED
    COMMANDS
    FORWARDED
    FANNED_OUT
    ANSWERED_HERE
    REFUSED
    DENIED
    FAILED_LOGINS
    TRANSACTIONS
    PROTOCOL_ERRORS
    ERROR_REPLIES
    SHARD_DOWN
    TIMEOUTS
    LATE_REPLIES
    UNKNOWN_OUTCOMES
    RETRIES
    RETRY_BUDGET_EMPTY
    HELD
    REHASHED
    MISSES
    OVERLOADED
    REMEMBERED
    STALE_SERVED
    SCRIPTS_SENT
    UPSTREAM_CONNECTS
    UPSTREAM_LOSSES
    UPSTREAM_RESETS
    PUSHES_DROPPED
    CLIENT_BYTES_IN
    CLIENT_BYTES_OUT
    UPSTREAM_BYTES_IN
    UPSTREAM_BYTES_OUT
    STALLS
    TICKS
    ACCEPT_FAILURES
    TLS_HANDSHAKES
    TLS_FAILURES
    BAD_HEADERS
    CLIENTS
    BUFFER_BYTES
    RETRIES_LEFT
    SCRIPT_BYTES
    OPENING
    COUNTERS

cdef enum:
    BUCKETS = 112           # of a latency histogram: 4 to a doubling, from 1 us

cdef inline int bucket_of(uint64_t us) noexcept nogil:
    """Four buckets a doubling: bucket b starts at (4 + b % 4) << (b / 4) / 4 us."""
    cdef int top
    if us < 4:
        return <int>us
    top = 63 - __builtin_clzll(us)
    top = (top - 1) * 4 + <int>((us >> (top - 2)) & 3)
    return top if top < BUCKETS else BUCKETS - 1

cdef extern from *:
    int __builtin_clzll(unsigned long long) noexcept nogil
