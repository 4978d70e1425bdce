"""Clients by the address they come from: counted, and held back together.

Rules: an address over its requests or bytes in flight is not refused anything: its clients are not read until it has
room, in the order in which they came to wait. A client's part is brought up to date around each of its
commands and after its replies, so that nothing else has to know; without a limit no client has an origin.
"""

from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from shardproxy.core.buffers cimport queue_free, queue_grow
from shardproxy.dataplane.engine cimport Client, Engine, Origin, Waiter, sockaddr_storage
from shardproxy.dataplane.slots cimport bytes_of, client_close, in_flight
from shardproxy.dataplane.system cimport AF_INET, AF_INET6, sockaddr_in, sockaddr_in6


cdef bytes host_of(sockaddr_storage *address):
    """An address without its port; all unix sockets are one."""
    if address.ss_family == AF_INET:
        return (<const char *>&(<sockaddr_in *>address).sin_addr)[:4]
    if address.ss_family == AF_INET6:
        return (<const char *>&(<sockaddr_in6 *>address).sin6_addr)[:16]
    return b""


cdef Origin *admit(Engine e, sockaddr_storage *address) noexcept:
    cdef bytes where = host_of(address)
    cdef Origin *o = <Origin *><uintptr_t>e.origins.get(where, 0)
    if o == NULL:
        o = <Origin *>calloc(1, sizeof(Origin))
        if o == NULL:
            return NULL
        memcpy(o.address, <const char *>where, len(where))
        o.size = <int>len(where)
        e.origins[where] = <uintptr_t>o
    elif e.budget.per_address and o.clients >= e.budget.per_address:
        return NULL
    o.clients += 1
    return o


cdef void depart(Engine e, Origin *o, Client *c) noexcept:
    if c != NULL:
        account(c)              # of what it has let go of
    o.clients -= 1
    if o.clients == 0:
        e.origins.pop(o.address[:o.size], None)
        queue_free(<void **>&o.waiting, &o.mask, sizeof(Waiter))
        free(o)
    elif let_in(e, o):
        e.wake()                # this tick is done with those that had waited


cdef void account(Client *c) noexcept nogil:
    cdef Origin *o = c.origin
    cdef uint64_t requests = 0 if c.waiting else in_flight(c)       # what waits for data holds up nobody
    o.requests += requests - c.counted_requests
    o.bytes += bytes_of(c) - c.counted_bytes
    c.counted_requests = requests
    c.counted_bytes = bytes_of(c)


cdef inline bint full(Engine e, const Origin *o) noexcept nogil:
    return (e.budget.address_requests and o.requests >= e.budget.address_requests
            or e.budget.address_bytes and o.bytes >= e.budget.address_bytes)


cdef bint is_full(Engine e, Client *c) noexcept nogil:
    account(c)
    return full(e, c.origin)


cdef bint has_room(Engine e, Client *c) noexcept:
    cdef Origin *o = c.origin
    account(c)
    if not full(e, o):
        return True
    if not c.in_line:
        if o.tail - o.head > 2 * o.clients + 8:
            forget_gone(e, o)
        if o.waiting == NULL or o.tail - o.head > o.mask:
            if queue_grow(<void **>&o.waiting, &o.mask, o.head, o.tail, sizeof(Waiter), 4) < 0:
                client_close(e, c, "out of memory")
                return False
        o.waiting[o.tail & o.mask].index = c.index
        o.waiting[o.tail & o.mask].generation = c.generation
        o.tail += 1
        c.in_line = True
    return False


cdef void forget_gone(Engine e, Origin *o) noexcept:
    """Those in line that have left without having been let in."""
    cdef uint32_t i = o.head, w = o.head
    cdef Waiter each
    while i != o.tail:
        each = o.waiting[i & o.mask]
        i += 1
        if e.client_at(each.index, each.generation) != NULL:
            o.waiting[w & o.mask] = each
            w += 1
    o.tail = w


cdef bint let_in(Engine e, Origin *o) noexcept:
    cdef Waiter first
    cdef Client *c
    while o.head != o.tail and not full(e, o):
        first = o.waiting[o.head & o.mask]
        o.head += 1
        c = e.client_at(first.index, first.generation)
        if c != NULL:
            # one at a time: what it takes is known when it is flushed, and the next has its turn then
            c.in_line = False
            e.mark_resuming(c)
            return True
    return False


cdef void flushed(Engine e, Client *c) noexcept:
    account(c)
    let_in(e, c.origin)
