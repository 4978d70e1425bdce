"""What is done to all clients: held back (CLIENT PAUSE, and while keys move), or what they send looked at (MONITOR).

Rules: nobody pays for either but by a look at a flag while nobody does it. Who is held back is not read, so that nothing
piles up; its earlier commands are answered. What is shown is what is run: commands of a transaction when it is sent.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport atoi
from libc.string cimport memcmp, memset

from shardproxy.core.buffers cimport buf_head
from shardproxy.core.commands cimport FLAG_CONTAINER, FLAG_UNSEEN, Row
from shardproxy.core.resp cimport REQ_OK, Progress, Request, parse_request
from shardproxy.dataplane.addresses cimport address_text
from shardproxy.dataplane.engine cimport Client, Engine


cdef void pause(Engine e, uint8_t what, uint64_t ends) noexcept:
    if what > e.pausing:
        e.pausing = what
    if ends > e.pause_ends:
        e.pause_ends = ends


cdef void unpause(Engine e) noexcept:
    e.pausing = 0
    e.pause_ends = 0
    resume(e)


cdef void hold(Engine e, uint64_t until) noexcept:
    e.held_until = until
    if not until:
        resume(e)


cdef void resume(Engine e) noexcept:
    """Everybody tries again: who is held back by something else as well still is."""
    cdef uint32_t i
    cdef Client *c
    for i in range(e.client_room):
        c = e.client_list[i]
        if c != NULL and c.paused and not c.dead:
            c.paused = False
            e.mark_dirty(c)


cdef void observe(Engine e, Client *c, Request *r, const Row *row) noexcept:
    show(e, c, r, row, c.db)


cdef void show(Engine e, Client *c, Request *r, const Row *row, int db) noexcept:
    cdef int i
    try:
        e.on_command(db, address_text(e, c, True), e.table.names[row.id], [r.argv[i][:r.argl[i]] for i in range(r.argc)])
    except Exception as error:
        e.event("handler_failed", {"command": "monitor", "error": type(error).__name__})


cdef void observe_run(Engine e, Client *c) noexcept:
    cdef Request *r = &e.again
    cdef Progress progress
    cdef const Row *row
    cdef const Row *sub
    cdef const char *p = buf_head(&c.tx)
    cdef size_t n = c.tx.len
    cdef bint first = True
    cdef int db = c.db
    r.limits = e.request.limits
    while n:
        memset(&progress, 0, sizeof(progress))
        if parse_request(r, &progress, p, n) != REQ_OK:
            return
        row = e.table.find(r.argv[0], r.argl[0])
        sub = e.table.find_sub(row, r.argv[1], r.argl[1]) if row != NULL and row.flags & FLAG_CONTAINER and r.argc > 1 else NULL
        row = sub if sub != NULL else row
        # MULTI has been shown
        if row != NULL and not first and not row.flags & FLAG_UNSEEN:
            if memcmp(row.name, "select", 7) == 0 and 0 < r.argl[1] < 5:
                db = atoi(r.argv[1])        # a digit or so, and then CRLF
            show(e, c, r, row, db)
        first = False
        p += r.size
        n -= r.size
