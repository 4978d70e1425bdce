"""Clients before their first command: who may come in, PROXY headers, TLS handshakes.

    accepted ─▶ [PROXY header] ─▶ may it come in? ─▶ [TLS handshake] ─▶ commands

Rules: a slow one holds up nobody. Few handshake steps are taken a tick, since each may cost a millisecond; so many clients
are at it at once; when there are more, one that has been at it for a second goes, else the listener rests; and each
has handshake_timeout for all of it. Nothing after a PROXY header is read with it.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from shardproxy.core.proxy_protocol import parse

from shardproxy.dataplane.addresses cimport numeric_text
from shardproxy.dataplane.arrivals cimport is_local
from shardproxy.dataplane.clients cimport client_readable
from shardproxy.dataplane.counters cimport BAD_HEADERS, CLIENTS_REFUSED, OPENING, TLS_FAILURES, TLS_HANDSHAKES
from shardproxy.dataplane.engine cimport OF_LISTENER, Client, Engine, Origin, sockaddr_storage
from shardproxy.dataplane.origins cimport admit, host_of
from shardproxy.dataplane.permissions cimport assign, note_login
from shardproxy.dataplane.slots cimport client_close
from shardproxy.dataplane.system cimport (
    AF_INET, AF_INET6, AF_UNIX, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLEXCLUSIVE, EPOLLIN, MSG_NOSIGNAL, MSG_PEEK, epoll_ctl,
    epoll_event, getpeername, htons, recv, send, sockaddr, sockaddr_in, sockaddr_in6, tag,
)
from shardproxy.dataplane.tls cimport GONE, MORE, Tls, tls_behind, tls_new, tls_shake, tls_why

cdef uint64_t SLOW = 1000000            # us after which an opening gives way to others
cdef bytes DENIED = (
    b"-DENIED shardproxy is running in protected mode because no users are configured: only clients on this machine "
    b"are served. Connect over the loopback interface or a unix socket, or set protected_mode = false in "
    b"shardproxy.toml if everybody who can reach this port may use it.\r\n"
)
cdef bytes TOO_MANY_THERE = b"-ERR max number of clients of this address reached\r\n"
cdef bytes NOT_ALLOWED = b"-DENIED the address of this client is not in the `allow` list of shardproxy\r\n"
cdef bytes NO_TLS = b"-ERR Protocol error: this port speaks TLS, and what came is plaintext\r\n"


cdef bytes refusal(Engine e, Entrance entrance, sockaddr_storage *address, Origin **origin):
    if entrance.protected and not e.guarded and not is_local(address):
        return DENIED
    if entrance.allow is not None and address.ss_family != AF_UNIX and not entrance.allow.holds(host_of(address)):
        return NOT_ALLOWED
    if e.budget.per_address or e.budget.address_requests or e.budget.address_bytes:
        origin[0] = admit(e, address)
        if origin[0] == NULL:
            return TOO_MANY_THERE
    return None


cdef bint may_open(Engine e, int listener) noexcept:
    cdef epoll_event ev
    cdef Opening oldest
    cdef Client *c
    if len(e.opening) < e.handshakes:
        return True
    try:
        oldest = next(iter(e.opening.values()))
        c = e.client_at(oldest.index, oldest.generation)
        if c != NULL and e.now > c.created + SLOW:
            fails(e, c, oldest, "its handshake takes long, and others wait")
            return True
    except Exception:
        pass
    epoll_ctl(e.epoll, EPOLL_CTL_DEL, listener, &ev)
    e.paused_listeners.append(listener)
    return False


cdef void wake_listeners(Engine e) noexcept:
    """Those that rested accept again."""
    cdef epoll_event ev
    for fd in e.paused_listeners:
        ev.events = EPOLLIN | EPOLLEXCLUSIVE
        ev.data.u64 = tag(OF_LISTENER, <uint32_t>fd, 0)
        epoll_ctl(e.epoll, EPOLL_CTL_ADD, fd, &ev)
    e.paused_listeners.clear()


cdef void opening_begins(Engine e, Client *c, Entrance entrance) noexcept:
    cdef Opening opening = Opening.__new__(Opening)
    opening.entrance = entrance
    opening.index, opening.generation = c.index, c.generation
    opening.header = b"" if entrance.announcers is not None else None
    e.opening[c.id] = opening
    c.opening = True
    e.count[<int>OPENING] = len(e.opening)


cdef void opening_ends(Engine e, Client *c) noexcept:
    """It may talk now, or is gone."""
    c.opening = False
    e.opening.pop(c.id, None)
    e.count[<int>OPENING] = len(e.opening)
    if e.paused_listeners and len(e.opening) + 1 == e.handshakes:
        wake_listeners(e)


cdef void fails(Engine e, Client *c, Opening opening, const char *why) noexcept:
    e.count[<int>(BAD_HEADERS if opening.header is not None else TLS_FAILURES)] += 1
    client_close(e, c, why)


cdef void openings_due(Engine e) noexcept:
    cdef Client *c
    cdef Opening opening
    for opening in list(e.opening.values()):
        c = e.client_at(opening.index, opening.generation)
        if c == NULL or c.dead:
            continue
        if e.now <= c.created + e.handshake_timeout:
            return
        fails(e, c, opening, "it sent no PROXY header in time" if opening.header is not None else
              "its TLS handshake was not done in time")


cdef void opening_readable(Engine e, Client *c) noexcept:
    cdef Opening opening = e.opening[c.id]
    cdef int status
    cdef char first
    try:
        if opening.header is not None and not take_header(e, c, opening):
            return
        if not opening.entrance.tls:
            opening_ends(e, c)
            return
        if c.tls == NULL:
            status = <int>recv(c.fd, &first, 1, MSG_PEEK)
            if status <= 0:
                if status == 0 or errno != EAGAIN and errno != EINTR:
                    client_close(e, c, NULL)
                return
            if first != 22:
                send(c.fd, <const char *>NO_TLS, len(NO_TLS), MSG_NOSIGNAL)
                c.leaving = True        # so that the text arrives
                fails(e, c, opening, "what it sent is plaintext, on a TLS port")
                return
            if e.turns == 0:
                return                  # epoll says so again in the next tick
            if e.tls is None:
                fails(e, c, opening, "there is no certificate")
                return
            c.tls = tls_new(e, e.tls, True, None)
            if c.tls == NULL:
                fails(e, c, opening, e.text)
                return
        if e.turns == 0:
            return
        e.turns -= 1
        c.active = e.now
        status = tls_shake(e, <Tls>c.tls, c.fd, False)
        if status == MORE:
            if tls_behind(c.tls):
                e.mark_dirty(c)
            return
        if status < 0:
            if status == GONE:
                client_close(e, c, NULL)
            else:
                fails(e, c, opening, tls_why(c.tls))
            return
        e.count[<int>TLS_HANDSHAKES] += 1
        if e.names_users:
            name_user(e, c)
        opening_ends(e, c)
        if tls_behind(c.tls):
            e.mark_dirty(c)
        if (<Tls>c.tls).whole:
            client_readable(e, c)
    except Exception as error:
        e.event("opening_failed", {"client": c.id, "error": type(error).__name__})
        client_close(e, c, "internal error")


cdef name_user(Engine e, Client *c):
    """The common name in its certificate, else its first DNS name."""
    found = (<Tls>c.tls).session.getpeercert()
    if not found:
        return
    # a user that is off, or has as many clients as it may, is not logged in: this client is who has not said who it is
    names = [value for part in found.get("subject", ()) for key, value in part if key == "commonName"]
    names += [value for key, value in found.get("subjectAltName", ()) if key == "DNS"]
    for name in names[:1]:
        user, limit = e.users.get(name), e.users.limits.get(name, 0)
        if user is not None and user.enabled and not (limit and e.logins_of.get(name.encode(), 0) >= limit):
            note_login(e, c, name.encode())
            assign(e, c)


cdef bint take_header(Engine e, Client *c, Opening opening) except -1:
    """Read its PROXY header, not a byte more; True when it is done and the client may come in."""
    cdef char data[128]
    cdef ssize_t got
    cdef size_t most
    cdef uint32_t peer
    cdef sockaddr_storage address
    cdef sockaddr_storage target
    cdef bytes text
    while True:
        try:
            found = parse(opening.header)
        except ValueError as error:
            text = str(error).encode()
            fails(e, c, opening, text)
            return False
        if not isinstance(found, int):
            break
        # of a line, whose length nobody says, no more is taken than is its
        got = recv(c.fd, data, sizeof(data), MSG_PEEK)
        if got <= 0:
            if got == 0 or errno != EAGAIN and errno != EINTR:
                client_close(e, c, NULL)
            return False
        most = found
        if found == 0:
            line_end = data[:got].find(b"\n")
            most = line_end + 1 if line_end >= 0 else got
        got = recv(c.fd, data, most if most < <size_t>got else got, 0)
        if got <= 0:
            return False
        opening.header += data[:got]
    if found.source:
        fill(&address, found.source, found.source_port)
        fill(&target, found.target, found.target_port)
        e.announced[c.id] = (numeric_text(&address), numeric_text(&target))
    else:
        peer = sizeof(address)
        if getpeername(c.fd, <sockaddr *>&address, &peer) < 0:
            client_close(e, c, NULL)
            return False
    text = refusal(e, opening.entrance, &address, &c.origin)
    if text is not None:
        e.count[<int>CLIENTS_REFUSED] += 1
        if not opening.entrance.tls:
            send(c.fd, <const char *>text, len(text), MSG_NOSIGNAL)
            c.leaving = True
        client_close(e, c, NULL)
        return False
    opening.header = None
    return True


cdef void fill(sockaddr_storage *address, bytes host, int port) noexcept:
    cdef sockaddr_in *four = <sockaddr_in *>address
    cdef sockaddr_in6 *six = <sockaddr_in6 *>address
    memset(address, 0, sizeof(sockaddr_storage))
    address.ss_family = AF_INET if len(host) == 4 else AF_INET6
    if len(host) == 4:
        memcpy(&four.sin_addr, <const char *>host, 4)
        four.sin_port = htons(port)
    else:
        memcpy(&six.sin6_addr, <const char *>host, 16)
        six.sin6_port = htons(port)
