from libc.stdint cimport uint8_t, uint32_t
from shardproxy.core.commands cimport Row
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.engine cimport Client, Engine, Entry

cdef enum:
    NO_KEY = -1                 # instead of a node
    MALFORMED = -2
    ANSWERED = -3               # with an error

# In e.positions and e.owners; -1: no memory.
cdef int room_for_keys(Engine e, int n) noexcept
# TAKEN, or WAIT: see routing
cdef int send_to(Engine e, Client *c, Request *r, const Row *row, int node) noexcept
cdef int forward(Engine e, Client *c, Request *r, const Row *row) noexcept
cdef int split(Engine e, Client *c, Request *r, const Row *row) noexcept
# The number of the node that has a key now; sets e.displaced when that is not its home.
cdef int node_of(Engine e, const char *key, size_t n) noexcept
# The same of all keys of a command; sets e.blocks too. NO_KEY, MALFORMED, or less: what else stands in its way.
cdef int locate(Engine e, Request *r, const Row *row) noexcept
# The number of the node that has all keys of a command, NO_KEY, MALFORMED, or ANSWERED.
cdef int node_of_command(Engine e, Client *c, Request *r, const Row *row) noexcept
# The number on the ring of a shard that serves its own keys.
cdef int anywhere(Engine e) noexcept
# Where its keys are: fills e.positions and says how many; negative: what is wrong.
cdef int find_keys(Engine e, Request *r, const Row *row) noexcept
# A request that was on a node that is out goes where its keys are now: p[0 .. n) is it, for entry's slot.
cdef void send_again(Engine e, Client *c, const Entry *entry, const char *p, size_t n) noexcept
