"""Where a command goes, by its row of the command table.

    row ──▶ one shard: forward            (sending)
        ├──▶ several shards: split        (sending)
        ├──▶ MULTI, EXEC, DISCARD, or between them: held, then one run        (transactions)
        └──▶ anything else: a handler, or an error        (calls, answers)

Rules: a command that is taken from the input opens exactly one slot, in order, before the next is looked at. One that
is a barrier waits until all before it are answered. Errors have Redis's own texts where Redis has one.
"""

from libc.stdio cimport snprintf
from libc.string cimport memcmp

from shardproxy.core.commands cimport (
    FLAG_BARRIER, FLAG_CHANNEL, FLAG_CONTAINER, FLAG_HOLDS, FLAG_LISTENING, FLAG_REPLICATES, FLAG_UNSEEN, KIND_FANOUT,
    KIND_FORWARD, KIND_LOCAL, KIND_MULTI, KIND_REFUSED, Row,
)
from shardproxy.core.resp cimport Request
from shardproxy.dataplane.answers cimport clean, refuse, refuse_bytes, refuse_row
from shardproxy.dataplane.calls cimport call_handler
from shardproxy.dataplane.engine cimport PAUSE_ALL, TEXT, Client, Engine
from shardproxy.dataplane.observing cimport observe
from shardproxy.dataplane.permissions cimport permitted
from shardproxy.dataplane.sending cimport forward, split
from shardproxy.dataplane.transactions cimport abort_exec, queue, transaction


cdef int route(Engine e, Client *c, Request *r) noexcept:
    cdef const Row *row = e.table.find(r.argv[0], r.argl[0])
    cdef const Row *sub
    cdef int status
    if row == NULL:
        unknown(e, c, r)
        return TAKEN
    if row.flags & FLAG_CONTAINER and r.argc > 1:
        sub = e.table.find_sub(row, r.argv[1], r.argl[1])
        if sub != NULL:
            row = sub
        elif row.kind != KIND_LOCAL or row.arity < 0 and row.arity < -1:
            unknown_sub(e, c, r, row)
            return TAKEN
    if (row.arity > 0 and r.argc != row.arity) or r.argc < -row.arity:
        wrong_number(e, c, row)
        return TAKEN
    if (row.flags & FLAG_BARRIER or c.holding) and c.head != c.tail:
        return WAIT
    c.holding = False
    if c.permit != NULL and not permitted(e, c, r, row):
        return TAKEN
    if c.subscriber and c.proto == 2 and not row.flags & FLAG_LISTENING:
        only_listens(e, c, row)
        return TAKEN
    if (e.pausing or e.held_until) and paused(e, c, row):
        return WAIT
    c.last_row = row.id
    status = run(e, c, r, row)
    if e.on_command is not None and status == TAKEN and not row.flags & FLAG_UNSEEN and row.kind != KIND_REFUSED and (
            not c.tx_state or row.kind == KIND_MULTI and row.name[0] != c'u'):
        observe(e, c, r, row)
    return status


cdef int run(Engine e, Client *c, Request *r, const Row *row) noexcept:
    if row.kind == KIND_MULTI:
        return transaction(e, c, r, row)
    if c.tx_state and not immediate(row):
        queue(e, c, r, row)
        return TAKEN
    if row.kind == KIND_FORWARD:
        if row.flags & FLAG_CHANNEL and counted(e, r, row):
            call_handler(e, c, r, row, None)    # it asks at once, so that order holds
            return TAKEN
        return forward(e, c, r, row)
    elif row.kind == KIND_FANOUT:
        return split(e, c, r, row)
    elif row.kind == KIND_LOCAL:
        if c.calls:
            return WAIT         # a client has one handler at work at a time
        call_handler(e, c, r, row, None)
        c.holding = row.flags & FLAG_HOLDS != 0
    else:
        refuse_row(e, c, row)
    return TAKEN


cdef bint counted(Engine e, Request *r, const Row *row) noexcept:
    """Whether the node's count of receivers is not what the client is to see: it takes each of our links for one."""
    if row.name[0] == c's':
        return len(e.counted_shards) != 0 and r.argv[1][:r.argl[1]] in e.counted_shards
    return e.counted_patterns or len(e.counted_channels) != 0 and r.argv[1][:r.argl[1]] in e.counted_channels


cdef bint paused(Engine e, Client *c, const Row *row) noexcept:
    """CLIENT PAUSE holds it back, or keys are about to move."""
    cdef bint writes = row.flags & FLAG_REPLICATES or row.kind == KIND_MULTI and row.name[0] == c'e' and c.tx_replicates
    c.paused = e.now < e.held_until or e.now < e.pause_ends and (e.pausing == PAUSE_ALL or writes)
    return c.paused


cdef inline bint immediate(const Row *row) noexcept nogil:
    """Run even between MULTI and EXEC, as Redis does."""
    return memcmp(row.name, "reset", 6) == 0 or memcmp(row.name, "quit", 5) == 0


cdef void wrong_number(Engine e, Client *c, const Row *row) noexcept:
    cdef char text[TEXT]
    if row.kind == KIND_MULTI and row.name[0] == c'e':
        abort_exec(e, c, "wrong number of arguments for 'exec' command")
        return
    snprintf(text, TEXT, "-ERR wrong number of arguments for '%s' command\r\n", row.name)
    refuse(e, c, text)


cdef void only_listens(Engine e, Client *c, const Row *row) noexcept:
    cdef char text[TEXT]
    snprintf(text, TEXT, "-ERR Can't execute '%s': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are "
             "allowed in this context\r\n", row.name)
    refuse(e, c, text)


cdef void unknown(Engine e, Client *c, Request *r) noexcept:
    cdef bytes text = b"-ERR unknown command '%b', with args beginning with: " % clean(r.argv[0], r.argl[0], 128)
    cdef bytes args = b""
    cdef int i
    for i in range(1, r.argc):
        if len(args) >= 128:
            break
        args += b"'%b' " % clean(r.argv[i], r.argl[i], 128 - len(args))
    refuse_bytes(e, c, text + args + b"\r\n")


cdef void unknown_sub(Engine e, Client *c, Request *r, const Row *row) noexcept:
    cdef bytes name = row.name
    refuse_bytes(e, c, b"-ERR unknown subcommand '%b'. Try %b HELP.\r\n"
                  % (clean(r.argv[1], r.argl[1], 128), name.upper()))
