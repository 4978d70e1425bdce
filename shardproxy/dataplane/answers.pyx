"""Answers that the engine gives itself: errors, and the few fixed replies."""

from libc.string cimport strlen

from shardproxy.core.commands cimport Row
from shardproxy.dataplane.counters cimport REFUSED
from shardproxy.dataplane.engine cimport TX_BROKEN, Client, Engine
from shardproxy.dataplane.slots cimport slot_answer

from shardproxy.core import errors


UNBLOCKED = "-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)\r\n"


cdef void say(Engine e, Client *c, const char *text) noexcept:
    slot_answer(e, c, text, strlen(text))


cdef void refuse(Engine e, Client *c, const char *text) noexcept:
    """An error reply instead of the command; inside MULTI the transaction is lost."""
    e.count[<int>REFUSED] += 1
    if c.tx_state:
        c.tx_state = TX_BROKEN
    say(e, c, text)


cdef void refuse_bytes(Engine e, Client *c, bytes text) noexcept:
    refuse(e, c, text)


cdef bytes clean(const char *p, size_t n, size_t most):
    return p[:n if n < most else most].split(b"\0")[0].replace(b"\r", b" ").replace(b"\n", b" ")


cdef void refuse_row(Engine e, Client *c, const Row *row) noexcept:
    cdef bytes name = row.name
    refuse_bytes(e, c, b"-%b\r\n" % errors.not_supported(name.decode(), e.table.whys[row.id].decode()).encode())


cdef bytes spoken(const Row *row):
    cdef bytes name = row.name
    return name.replace(b"|", b" ").upper()
