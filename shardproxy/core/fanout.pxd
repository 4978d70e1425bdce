from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from shardproxy.core.buffers cimport Buf

cdef enum:
    PART_OPEN = 0
    PART_ANSWERED = 1
    PART_FAILED = 2         # its reply is an error line of ours: the node did not answer

# What one shard answers to its share of a command.
cdef struct Part:
    Buf reply
    uint16_t shard
    uint8_t state

# One command that was split: which part each key is in, and the parts' replies.
cdef struct Fan:
    uint8_t merge           # core/commands: Merge
    uint8_t proto
    bint nil                # the pool's partial = "nil"
    uint16_t parts
    uint16_t open           # parts not answered yet
    uint32_t keys
    Part *part
    uint16_t *owner         # of each key: its part

cdef Fan *fan_new(uint8_t merge, uint8_t proto, bint nil, uint16_t parts, uint32_t keys) noexcept nogil
# A part's keys are divided: owners[i] says whose its i-th key is now, of `into` in all. The first of them keeps the part,
# the others get new ones, in the order in which they come. NULL: no memory, and f as it was.
cdef Fan *fan_widen(Fan *f, uint16_t part, uint16_t into, const uint16_t *owners) noexcept nogil
cdef void fan_free(Fan *f) noexcept nogil
# Appends the client's reply to out; names: of the shards. -1: no memory.
cdef int fan_merge(Fan *f, const char *const *names, Buf *out) noexcept nogil
