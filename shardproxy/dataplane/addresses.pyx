"""Addresses of clients' sockets in words, as Redis writes them: both ends, also where a PROXY header has announced others."""

from libc.stdint cimport uint32_t

from shardproxy.dataplane.engine cimport Client, Engine, sockaddr_storage
from shardproxy.dataplane.system cimport (
    AF_INET, AF_INET6, getpeername, getsockname, inet_ntop, ntohs, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_un,
)


cdef str numeric_text(sockaddr_storage *address):
    cdef char text[64]
    cdef sockaddr_in *four = <sockaddr_in *>address
    cdef sockaddr_in6 *six = <sockaddr_in6 *>address
    if address.ss_family == AF_INET:
        inet_ntop(AF_INET, &four.sin_addr, text, sizeof(text))
        return f"{text.decode()}:{ntohs(four.sin_port)}"
    inet_ntop(AF_INET6, &six.sin6_addr, text, sizeof(text))
    return f"[{text.decode()}]:{ntohs(six.sin6_port)}"


cdef str address_text(Engine e, Client *c, bint peer):
    cdef sockaddr_storage address
    cdef uint32_t size = sizeof(address)
    cdef int fd = c.fd, status
    cdef tuple announced = e.announced.get(c.id)
    if announced is not None:
        return announced[0 if peer else 1]
    status = getpeername(fd, <sockaddr *>&address, &size) if peer else getsockname(fd, <sockaddr *>&address, &size)
    if status < 0:
        return "?:0"
    if address.ss_family == AF_INET or address.ss_family == AF_INET6:
        return numeric_text(&address)
    # both ends of a unix socket are called by the listener's path, as Redis does
    size = sizeof(address)
    getsockname(fd, <sockaddr *>&address, &size)
    return (<sockaddr_un *>&address).sun_path.decode(errors="replace") + ":0"
