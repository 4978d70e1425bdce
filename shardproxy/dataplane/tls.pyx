"""TLS of clients and upstreams, by Python's own ssl module: the socket's bytes go through two memory BIOs.

    socket ─ recv ▶ incoming ─ SSL_read ▶ where plaintext was wanted
    socket ◀ send ─ outgoing ◀ SSL_write ─ what is to be sent

A plain socket pays one branch. An encrypted one pays four calls into `ssl` a turn, none of which makes an object that it
can do without: one `Window` is lent to all of them, and records are counted as they come, since asking OpenSSL for what
is not there costs an exception. Whatever OpenSSL says ends only its connection, with the reason in `why`.
"""

import ssl

from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.buffer cimport PyBuffer_FillInfo
from libc cimport errno
from libc.stdio cimport snprintf
from libc.string cimport memcpy

from shardproxy.core.buffers cimport buf_append, buf_consume, buf_head, buf_release
from shardproxy.dataplane.engine cimport CIPHER, TEXT, Engine
from shardproxy.dataplane.system cimport MSG_NOSIGNAL, recv, send

cdef enum:
    RECORD_MOST = 18437         # bytes of a record with its header, in any version
    CHUNK = 65536               # bytes encrypted at once: four records

cdef object WantRead = ssl.SSLWantReadError
cdef object ZeroReturn = ssl.SSLZeroReturnError


cdef class Window:
    """Memory that is lent to a call."""
    cdef char *p
    cdef Py_ssize_t n
    cdef bint fixed

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.p, self.n, self.fixed, flags)


cdef Window window = Window()


cdef inline Window lend(const char *p, size_t n, bint fixed):
    window.p = <char *>p
    window.n = <Py_ssize_t>n
    window.fixed = fixed
    return window


cdef void *tls_new(Engine e, context, bint server, str name) noexcept:
    cdef Tls t
    try:
        t = Tls.__new__(Tls)
        t.incoming = ssl.MemoryBIO()
        outgoing = ssl.MemoryBIO()
        t.session = context.wrap_bio(t.incoming, outgoing, server_side=server, server_hostname=name)
        # what SSLObject itself calls: a Python function less each time
        inner = getattr(t.session, "_sslobj", t.session)
        t.put, t.pull = t.incoming.write, outgoing.read
        t.read, t.write, t.shake = inner.read, inner.write, inner.do_handshake
        t.end = inner.shutdown if inner is not t.session else t.session.unwrap
    except Exception as error:
        text = reason(error)
        e.text_size = snprintf(e.text, TEXT, "%s", <const char *>text)
        return NULL
    Py_INCREF(t)
    return <void *>t


cdef void tls_free(void **tls) noexcept:
    cdef Tls t
    if tls[0] != NULL:
        t = <Tls>tls[0]
        buf_release(&t.sending)
        tls[0] = NULL
        Py_DECREF(t)


cdef bytes reason(error):
    """What OpenSSL says, in a few words. Never data, keys or passwords: none of its texts has any."""
    text = getattr(error, "verify_message", "") or (getattr(error, "reason", "") or "").lower().replace("_", " ")
    return f"TLS: {text or error}".encode(errors="replace")[:TEXT - 1]


cdef void breaks(Tls t, int fd, error) noexcept:
    """It cannot go on; the other side is told so by the alert that OpenSSL has made."""
    cdef bytes text = reason(error), alert
    t.broken = True
    t.whole = 0
    snprintf(t.why, TEXT, "%s", <const char *>text)
    try:
        if t.sending.len == 0:
            alert = t.pull()
            send(fd, <const char *>alert, len(alert), MSG_NOSIGNAL)
    except Exception:
        return


cdef void count(Tls t, const unsigned char *p, size_t n) noexcept:
    """How many records end in what has come."""
    cdef size_t step
    while n:
        if t.had < 5:
            t.header[t.had] = p[0]
            t.had += 1
            p += 1
            n -= 1
            if t.had < 5:
                continue
            t.missing = (<size_t>t.header[3] << 8) | t.header[4]
            if t.missing > RECORD_MOST - 5:
                t.whole += 1    # OpenSSL will say what that is
        step = n if n < t.missing else t.missing
        p += step
        n -= step
        t.missing -= step
        if t.missing == 0:
            t.had = 0
            t.whole += 1


cdef int tls_shake(Engine e, Tls t, int fd, bint first) noexcept:
    cdef ssize_t got
    if not first:
        got = recv(fd, e.cipher, TLS_ROOM - RECORD_MOST, 0)
        if got < 0 and (errno.errno == errno.EAGAIN or errno.errno == errno.EINTR):
            return MORE
        if got <= 0:
            return GONE
    try:
        if not first:
            t.put(lend(e.cipher, got, True))
            count(t, <const unsigned char *>e.cipher, got)
            if t.whole == 0:
                return MORE
        try:
            t.shake()
            t.ready = True
            if t.incoming.pending == 0:
                t.whole = 0     # else something came along: the first read looks for it
        except WantRead:
            t.whole = 0
        if pull(t, fd) < 0:
            return GONE
    except Exception as error:
        breaks(t, fd, error)
        return FAILED
    return SHAKEN if t.ready else MORE


cdef inline ssize_t flush(Tls t, int fd) noexcept:
    """0: all of `sending` is sent; else as send."""
    cdef ssize_t n
    while t.sending.len:
        n = send(fd, buf_head(&t.sending), t.sending.len, MSG_NOSIGNAL)
        if n < 0:
            if errno.errno == errno.EINTR:
                continue
            return -1
        buf_consume(&t.sending, n)
    buf_release(&t.sending)
    return 0


cdef inline ssize_t pull(Tls t, int fd) except? -1:
    """Send what OpenSSL has made; the rest waits in `sending`. -1: the connection is gone."""
    cdef bytes data = t.pull()
    cdef const char *p = data
    cdef ssize_t n = 0, size = len(data)
    if size == 0:
        return 0
    if t.sending.len == 0:
        n = send(fd, p, size, MSG_NOSIGNAL)
        if n < 0:
            if errno.errno != errno.EAGAIN and errno.errno != errno.EINTR:
                return -1
            n = 0
    if n < size and buf_append(&t.sending, p + n, size - n) < 0:
        raise MemoryError
    return 0


cdef ssize_t tls_recv(Engine e, Tls t, int fd, char *p, size_t room) noexcept:
    cdef ssize_t got = 0, n, total = 0
    cdef size_t most = room - RECORD_MOST
    if t.over:
        return 0
    # of what came before, less than a record is left: its plaintext and that of what is read now fit; what came with
    # the end of the handshake goes first
    if t.whole == 0:
        got = recv(fd, e.cipher, most if most < CIPHER else CIPHER, 0)
        if got <= 0:
            return got
    try:
        if got > 0:
            t.put(lend(e.cipher, got, True))
            count(t, <const unsigned char *>e.cipher, got)
        while t.whole:
            t.whole -= 1
            n = t.read(room - total, lend(p + total, room - total, False))
            if n == 0:          # close_notify; an exception if we have sent ours, which we do last
                t.over = True
                t.whole = 0
            total += n
    except WantRead:
        t.whole = 0             # what came was not for us, as a session ticket
    except ZeroReturn:
        t.over = True
        t.whole = 0
    except Exception as error:
        breaks(t, fd, error)
        errno.errno = errno.EPROTO
        return -1
    if total == 0 and not t.over:
        errno.errno = errno.EAGAIN
        return -1
    return total


cdef ssize_t tls_pass(Tls t, int fd, const char *p, size_t n) noexcept:
    if t.sending.len and flush(t, fd) < 0:
        return -1
    if n == 0:
        return 0
    if n > CHUNK:
        n = CHUNK
    try:
        n = t.write(lend(p, n, True))
        if pull(t, fd) < 0:
            return -1
    except Exception as error:
        breaks(t, fd, error)
        errno.errno = errno.EPROTO
        return -1
    return n


cdef ssize_t tls_send(Tls t, int fd, const char *p, size_t n) noexcept:
    cdef ssize_t taken = t.owed
    if taken == 0:
        taken = tls_pass(t, fd, p, n)
        if taken < 0:
            return taken
        if t.sending.len:
            t.owed = taken
            errno.errno = errno.EAGAIN
            return -1
        return taken
    if flush(t, fd) < 0:
        return -1
    t.owed = 0
    return taken


cdef void tls_end(Tls t, int fd) noexcept:
    if not t.ready or t.broken or t.sending.len:
        return
    try:
        try:
            t.end()
        except ssl.SSLError:
            pass                # it would wait for the other side's
        pull(t, fd)
    except Exception:
        return
