from libc.stdint cimport uint32_t
from shardproxy.core.buffers cimport Buf
from shardproxy.dataplane.engine cimport TEXT, Engine

cdef enum:
    TLS_ROOM = 40960            # a read needs at least so much room: see tls_recv
    FAILED = -1                 # of tls_shake; Tls.why says why
    GONE = -2                   # the other side has closed
    MORE = 0
    SHAKEN = 1

# The TLS of one connection, client or upstream; what the socket carries is ciphertext.
cdef class Tls:
    cdef readonly object session            # ssl.SSLObject
    cdef object put, pull, read, write, shake, end
    cdef object incoming
    cdef Buf sending            # ciphertext that the socket has not taken
    cdef size_t owed            # of a client: plaintext in it that is not reported as sent
    cdef unsigned char header[5]            # of the record that is coming
    cdef int had                # bytes of it that are there
    cdef size_t missing         # bytes of its body that are not
    cdef uint32_t whole         # records that have come, and may hold something
    cdef bint ready             # the handshake is done
    cdef bint over              # the other side has said that nothing more will come
    cdef bint broken
    cdef char why[TEXT]

# A connection's Tls, to be kept in its struct; NULL: why is in e.text.
cdef void *tls_new(Engine e, context, bint server, str name) noexcept
cdef void tls_free(void **tls) noexcept
# Go on with the handshake, after reading what has come; `first`: nothing has, it begins.
cdef int tls_shake(Engine e, Tls t, int fd, bint first) noexcept
# As recv, of plaintext: room must be TLS_ROOM at least, so that nothing is left behind that no epoll would tell of.
cdef ssize_t tls_recv(Engine e, Tls t, int fd, char *p, size_t room) noexcept
# As send, of plaintext: what it takes may still wait in `sending`, before which nothing more is taken. n = 0: only that.
cdef ssize_t tls_pass(Tls t, int fd, const char *p, size_t n) noexcept
# As send, of plaintext: what it says is sent has been taken by the socket; p must begin with the same bytes until then.
cdef ssize_t tls_send(Tls t, int fd, const char *p, size_t n) noexcept
# Tell the other side that it is over, as far as the socket takes that at once.
cdef void tls_end(Tls t, int fd) noexcept

cdef inline bint tls_behind(void *tls) noexcept:
    """Whether ciphertext waits for the socket."""
    return tls != NULL and (<Tls>tls).sending.len > 0

cdef inline bint tls_midway(void *tls) noexcept:
    """Whether part of a record has come."""
    return tls != NULL and (<Tls>tls).had > 0

cdef inline const char *tls_why(void *tls) noexcept:
    """Why it is broken; NULL: it is not, or there is none."""
    return (<Tls>tls).why if tls != NULL and (<Tls>tls).broken else NULL
