"""New clients: accepted in the reactor, or turned away with a reason.

Running out of descriptors never spins: one client is told and let go with a descriptor kept for that, then the listener
rests until the next cron.
"""

import os

from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EMFILE, ENFILE, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, realloc
from posix.unistd cimport close

from shardproxy.dataplane.connecting cimport keep_alive
from shardproxy.dataplane.counters cimport ACCEPT_FAILURES, CLIENTS, CLIENTS_ACCEPTED, CLIENTS_REFUSED
from shardproxy.dataplane.engine cimport OF_CLIENT, Client, Engine, Origin, sockaddr_storage
from shardproxy.dataplane.openings cimport Entrance, may_open, opening_begins, refusal
from shardproxy.dataplane.origins cimport admit, depart, host_of
from shardproxy.dataplane.slots cimport client_close
from shardproxy.dataplane.system cimport (
    AF_INET, AF_INET6, AF_UNIX, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLIN, IPPROTO_TCP, MSG_NOSIGNAL, SOCK_CLOEXEC,
    SOCK_NONBLOCK, TCP_NODELAY, accept4, epoll_ctl, epoll_event, send, setsockopt, sockaddr, sockaddr_in,
    sockaddr_in6, tag,
)

cdef enum:
    ACCEPTS = 64                # connections taken a tick

TOO_MANY = b"-ERR max number of clients reached\r\n"
NOT_ANNOUNCED = b"-DENIED this port takes connections from load balancers in `proxy_protocol_from` only\r\n"


cdef void take_connections(Engine e, int listener) noexcept:
    cdef sockaddr_storage address
    cdef uint32_t size
    cdef int i, fd
    cdef epoll_event ev
    cdef Entrance entrance = e.listeners.get(listener)
    cdef bint opens
    cdef bytes text
    cdef Origin *origin
    if entrance is None:
        return
    opens = entrance.tls or entrance.announcers is not None
    for i in range(ACCEPTS):
        if opens and not may_open(e, listener):
            return
        size = sizeof(address)
        fd = accept4(listener, <sockaddr *>&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd < 0:
            if errno == EINTR or errno == ECONNABORTED:
                continue
            if errno != EAGAIN:
                # out of descriptors: one client is told and let go, then the listener rests until the next cron
                e.count[<int>ACCEPT_FAILURES] += 1
                if (errno == EMFILE or errno == ENFILE) and e.spare_fd >= 0:
                    close(e.spare_fd)
                    fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
                    if fd >= 0:
                        turn_away(fd, TOO_MANY)
                    e.spare_fd = open_spare()
                epoll_ctl(e.epoll, EPOLL_CTL_DEL, listener, &ev)
                e.paused_listeners.append(listener)
            return
        origin = NULL
        if e.client_count >= e.budget.clients:
            text = TOO_MANY
        elif entrance.announcers is None:
            text = refusal(e, entrance, &address, &origin)
        elif address.ss_family == AF_UNIX or entrance.announcers.holds(host_of(&address)):
            text = None         # until it has said who the client is
        else:
            text = NOT_ANNOUNCED
        if text is None:
            take_client(e, fd, address.ss_family, origin, entrance if opens else None)
        else:
            e.count[<int>CLIENTS_REFUSED] += 1
            # who waits for a TLS handshake could not read it
            turn_away(fd, b"" if entrance.tls else text)


cdef void take_client(Engine e, int fd, int family, Origin *origin, Entrance entrance) noexcept:
    """entrance: where it has to do more than to connect."""
    cdef Client *c
    cdef epoll_event ev
    cdef int one = 1
    try:
        if e.free_count == 0:
            grow_clients(e, e.client_room * 2)
    except MemoryError:
        close(fd)
        if origin != NULL:
            depart(e, origin, NULL)
        return
    c = <Client *>calloc(1, sizeof(Client))
    if c == NULL:
        close(fd)
        if origin != NULL:
            depart(e, origin, NULL)
        return
    c.origin = origin
    if family != AF_UNIX:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
        keep_alive(e, fd)
    e.free_count -= 1
    c.index = e.free_clients[e.free_count]
    c.generation = e.client_generations[c.index]
    e.next_id += 1
    c.id = e.next_id
    c.fd = fd
    c.proto = 2
    c.tx_shard = c.watching = -1
    c.permit = e.newcomer
    c.created = c.active = e.now
    c.events = EPOLLIN
    e.client_list[c.index] = c
    e.client_count += 1
    e.count[<int>CLIENTS_ACCEPTED] += 1
    e.count[<int>CLIENTS] = e.client_count
    if entrance is not None:
        opening_begins(e, c, entrance)
    ev.events = EPOLLIN
    ev.data.u64 = tag(OF_CLIENT, c.index, c.generation)
    if epoll_ctl(e.epoll, EPOLL_CTL_ADD, fd, &ev) < 0:
        client_close(e, c, "epoll has no room for it")


cdef int grow_clients(Engine e, uint32_t room) except -1:
    cdef Client **clients = <Client **>realloc(e.client_list, room * sizeof(Client *))
    cdef uint32_t i
    if clients == NULL:
        raise MemoryError
    e.client_list = clients
    for name in range(5):
        grow_list(e, name, room)
    for i in range(e.client_room, room):
        e.client_list[i] = NULL
        e.client_generations[i] = 1
    # the lowest index is taken first
    for i in range(room - e.client_room):
        e.free_clients[i] = room - 1 - i
    e.free_count = room - e.client_room
    e.client_room = room
    return 0


cdef int grow_list(Engine e, int which, uint32_t room) except -1:
    cdef uint32_t **list_ = (
        &e.client_generations if which == 0 else &e.free_clients if which == 1
        else &e.dirty_clients if which == 2 else &e.resuming if which == 3 else &e.dead
    )
    # twice the clients: while the list of those to resume is worked off, each may be put on it again
    cdef uint32_t *more = <uint32_t *>realloc(list_[0], 2 * room * sizeof(uint32_t))
    if more == NULL:
        raise MemoryError
    list_[0] = more
    return 0


cdef int open_spare() noexcept:
    try:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


cdef void turn_away(int fd, bytes text) noexcept:
    if text:
        send(fd, <const char *>text, len(text), MSG_NOSIGNAL)
    close(fd)


cdef bint is_local(sockaddr_storage *address) noexcept nogil:
    cdef sockaddr_in *four = <sockaddr_in *>address
    cdef sockaddr_in6 *six = <sockaddr_in6 *>address
    cdef unsigned char *b
    if address.ss_family == AF_INET:
        return (<unsigned char *>&four.sin_addr)[0] == 127
    if address.ss_family == AF_INET6:
        b = six.sin6_addr.s6_addr
        for i in range(10):
            if b[i]:
                return False
        if b[10] == 0xff and b[11] == 0xff:
            return b[12] == 127             # an IPv4 address written as IPv6: ::ffff:127.x.x.x
        return not (b[10] or b[11] or b[12] or b[13] or b[14]) and b[15] == 1
    return address.ss_family == AF_UNIX
