"""A command that left the fast path, as handlers get it: `Call`.

It is a handle (index and generation), like its client's: it stays safe to use after the client is gone, when a reply goes
nowhere.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from shardproxy.core.commands cimport Row
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.client_handle cimport make_handle
from shardproxy.dataplane.counters cimport ANSWERED_HERE
from shardproxy.dataplane.engine cimport Client, Engine
from shardproxy.dataplane.slots cimport slot_feed, slot_open


cdef void call_handler(Engine e, Client *c, Request *r, const Row *row, object held) noexcept:
    call(e, c, r, row, held, -1)


cdef void call_memcached(Engine e, Client *c, Request *r, const Row *row, int node) noexcept:
    call(e, c, r, row, None, node)


cdef void call(Engine e, Client *c, Request *r, const Row *row, object held, int node) noexcept:
    cdef int64_t slot = slot_open(e, c)
    cdef Call it
    cdef int i
    if slot < 0:
        return
    e.count[<int>ANSWERED_HERE] += 1
    try:
        it = Call.__new__(Call)
        it.engine = e
        it.index = c.index
        it.generation = c.generation
        it.slot = <uint32_t>slot
        it.proto = c.proto
        it.args = [r.argv[i][:r.argl[i]] for i in range(r.argc)]
        it.row = e.table.records[row.id]
        it.held = held
        it.memcached = node
        e.dispatch(it)
        if not it.done:
            it.pending = True
            c.calls += 1
    except Exception as error:
        e.event("handler_failed", {"command": e.table.names[row.id], "error": type(error).__name__})
        if not it.done:
            it.reply(b"-ERR internal error: see the log of shardproxy\r\n")


cdef class Call:
    """One command that left the fast path."""
    cdef Engine engine
    cdef uint32_t index, generation, slot
    cdef readonly bint done
    cdef bint pending
    cdef readonly uint8_t proto
    cdef readonly list args
    cdef readonly object row
    cdef readonly object held
    cdef readonly int memcached

    def __init__(self):
        raise TypeError("only the engine makes calls")

    @property
    def answered(self):
        return {}

    @property
    def in_exec(self):
        return False

    @property
    def client(self):
        return make_handle(self.engine, self.index, self.generation)

    def reply(self, bytes data):
        """Fill the slot with a complete RESP reply; does nothing when the client has left."""
        cdef Client *c
        if self.done:
            raise RuntimeError("a call is answered once")
        self.done = True
        if self.engine.closed:
            return
        c = self.engine.client_at(self.index, self.generation)
        if c != NULL:
            c.calls -= self.pending
            slot_feed(self.engine, c, self.slot, data, len(data), True)
            if not self.engine.in_tick:
                self.engine.wake()
