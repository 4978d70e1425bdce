cimport cython
from libc.stdint cimport int16_t, uint8_t, uint16_t, uint32_t, uint64_t

from shardproxy.core.command_keys cimport Found, Search, Spec

cdef enum Kind:
    KIND_FORWARD = 0    # its keys share a shard: request and reply pass untouched
    KIND_FANOUT = 1     # split by shard, replies merged (see `merge`)
    KIND_LOCAL = 2      # answered here: a handler
    KIND_MULTI = 3      # MULTI, EXEC, DISCARD: the engine's own
    KIND_REFUSED = 4    # not supported (yet); `why` says why

cdef enum Merge:
    MERGE_NONE = 0
    MERGE_ARRAY = 1     # MGET: one frame a key, spliced in the keys' order
    MERGE_SUM = 2       # DEL, UNLINK, EXISTS, TOUCH: integers are added
    MERGE_OK = 3        # MSET: +OK when all say so

cdef enum:
    FLAG_WRITE = 1
    FLAG_READONLY = 2
    FLAG_BLOCKING = 4       # may block: refused when it would (BLOCK option); never on a shared upstream
    FLAG_BARRIER = 8        # waits until everything the client sent before is answered (HELLO, RESET)
    FLAG_CONTAINER = 16     # has subcommands: look args[1] up with find_sub
    FLAG_MOVABLE = 32       # keys are not at fixed positions: use keys()
    FLAG_IN_MULTI = 64      # may stand between MULTI and EXEC
    FLAG_HOLDS = 128        # a handler's: the client's later commands wait until it is answered
    FLAG_WAITS = 256        # always waits for data: goes on an upstream of the client's own
    FLAG_ACROSS = 512       # over several shards a handler does it, if the pool says so
    FLAG_KEYLESS = 1024     # forwarded although it has no key (only inside MULTI, e.g. PING, TIME)
    FLAG_SCRIPT = 2048      # runs code of the client's, for as long as that takes: EVAL, FCALL
    FLAG_TEXT = 4096        # its first argument is a script: EVAL
    FLAG_SHA = 8192         # or a script's SHA1: EVALSHA
    FLAG_FUNCTION = 16384   # or a function's name: FCALL
    ANY_CALL = 28672        # these three
    FLAG_NO_MULTI = 32768   # refused between MULTI and EXEC, in Redis's words
    FLAG_REPLICATES = 65536 # it writes, or may: held back by CLIENT PAUSE ... WRITE
    FLAG_UNSEEN = 131072    # not shown to MONITOR
    FLAG_CHANNEL = 262144   # its first argument is a channel: it goes where a key of that name would
    FLAG_LISTENING = 524288 # a RESP2 client that has subscribed may send it

cdef struct Row:
    char name[48]           # lower case, "config|get" for a subcommand
    uint16_t id             # index into CommandTable.names
    uint8_t kind            # Kind
    uint8_t merge           # Merge
    uint32_t flags          # FLAG_*
    int16_t arity           # as Redis: negative means at least
    int16_t first           # position of the first key; 0: none (or movable)
    int16_t last            # position of the last key; negative counts from the end
    int16_t step            # keys are `step` arguments apart (MSET: 2)

# What a row needs beyond its one cache line
cdef struct Rest:
    uint16_t offset         # where a subcommand's own name begins in Row.name
    Search keys

# A name in lower case, folded into two words that tell all names of up to 16 bytes apart
cdef struct Name:
    uint64_t a
    uint64_t b

cdef struct Entry:
    Name name
    uint32_t size           # of the name; 0: this place is free
    uint16_t id             # Row.id
    uint16_t container      # Row.id of a subcommand's container

# Open addressing, linear probing; a power of two, at most half full
cdef struct Index:
    Entry *entries
    uint32_t mask

@cython.final
cdef class CommandTable:
    """Immutable; a changed table is a new object."""
    cdef readonly tuple names       # by Row.id: "get", "config|get"
    cdef readonly tuple records     # by Row.id: command_rows.Row
    cdef readonly tuple whys        # by Row.id: bytes
    cdef dict numbers               # name -> Row.id
    cdef Row *table
    cdef Rest *rest
    cdef Spec *specs
    cdef Index top
    cdef Index sub
    cdef int count
    cdef object examine(self, args, bint wants_positions)
    cdef const Row *look(self, const Index *index, uint32_t container, const char *name, size_t n) noexcept nogil
    # As command_keys.find_keys, of a command with this number of arguments.
    cdef int search(self, const Row *row, int argc, const char *const *argv, const size_t *argl,
                    Found *found) noexcept nogil
    # As keys(), but never -2 or -3, and -1 for learned commands too; `which` (NULL: not wanted) gets the number
    # of the key spec of each.
    cdef int positions(self, const Row *row, int argc, const char *const *argv, const size_t *argl,
                       int *out, int *which, int room) noexcept nogil
    # Case-insensitive; NULL when unknown.
    cdef const Row *find(self, const char *name, size_t n) noexcept nogil
    # The row of "container|sub"; NULL when that container has no such subcommand.
    cdef const Row *find_sub(self, const Row *container, const char *sub, size_t n) noexcept nogil
    # Writes the argument positions of all keys to out (at most `room`) and returns how many there are, which is
    # never more than argc;
    # -1: the arguments are malformed: Redis refuses them and touches nothing, so any node may say it in its own
    #     words (a test sends thousands). Of a learned command that is not known: it returns 0 instead;
    # -2: a key the command reads is named by a pattern (SORT BY/GET) that may live elsewhere,
    # -3: it would block (XREAD BLOCK). Positions are right only when the count is <= room.
    cdef int keys(self, const Row *row, int argc, const char *const *argv, const size_t *argl,
                  int *out, int room) noexcept nogil
