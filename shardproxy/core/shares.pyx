"""Many keys at once, for the client library: whose each is, and one list of replies of the shards' lists. Pure.

    share ──▶ of one command with many keys: its arguments by shard      spread ──▶ its replies
    gather ─▶ of many commands with one key each: their requests by shard

What the engine does with a request's bytes (dataplane/sending, fanout) is done here with Python's objects.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy

from shardproxy.core.ring cimport Ring

cdef extern from "Python.h":
    void PyList_SET_ITEM(object list, Py_ssize_t at, object item)
    list PyList_New(Py_ssize_t size)


def share(Ring ring, args, int step, first):
    """Sorts arguments by the shards of their keys: every `step`-th is a key, with what follows it its own.

    Returns (the shard's number of each key, {shard's number: [first, arguments ...]} in the order of numbers).
    None when a key is neither bytes nor str (which is UTF-8 then), or the last has not all of its arguments.
    """
    cdef list items = list(args)
    cdef Py_ssize_t n = PyList_GET_SIZE(items), at, i
    cdef Py_ssize_t size
    cdef const char *text
    cdef int shard
    cdef list homes = [], parts = [None] * ring.shards, part
    if step < 1 or n % step:
        return None
    at = 0
    while at < n:
        key = items[at]
        if type(key) is str:
            text = PyUnicode_AsUTF8AndSize(key, &size)
        elif type(key) is bytes:
            text, size = PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)
        else:
            return None
        shard = ring.shard_of(text, size)
        homes.append(shard)
        part = parts[shard]
        if part is None:
            part = parts[shard] = [first]
        for i in range(at, at + step):
            part.append(items[i])
        at += step
    return homes, {number: found for number, found in enumerate(parts) if found is not None}


def spread(list homes, dict replies):
    """Lists of replies by shard's number → one list, of each key in turn. IndexError: a list is too short."""
    cdef Py_ssize_t n = PyList_GET_SIZE(homes), i, at
    cdef int shard, most = max(replies, default=-1) + 1
    cdef list lists = [None] * most, part
    cdef list found = PyList_New(n)
    cdef Py_ssize_t *following = <Py_ssize_t *>calloc(most + 1, sizeof(Py_ssize_t))
    if following == NULL:
        raise MemoryError
    try:
        for number, part in replies.items():
            lists[number] = part
        for i in range(n):
            shard = homes[i]
            part = lists[shard] if 0 <= shard < most else None
            if part is None:
                raise IndexError("a shard with a key has not answered")
            at = following[shard]
            if at >= PyList_GET_SIZE(part):
                raise IndexError("a shard has answered fewer replies than it has keys")
            following[shard] = at + 1
            item = <object>PyList_GET_ITEM(part, at)
            Py_INCREF(item)
            PyList_SET_ITEM(found, i, item)
    finally:
        free(following)
    return found


cdef struct Text:
    char *p
    Py_ssize_t size, room


cdef int put(Text *text, const char *p, Py_ssize_t n) except -1:
    cdef char *moved
    cdef Py_ssize_t room
    if text.size + n > text.room:
        room = 2 * (text.size + n) + 1024
        moved = <char *>realloc(text.p, room)
        if moved == NULL:
            raise MemoryError
        text.p, text.room = moved, room
    memcpy(text.p + text.size, p, n)
    text.size += n
    return 0


cdef int put_head(Text *text, char kind, Py_ssize_t number) except -1:
    # "*3\r\n", "$12\r\n"
    cdef char digits[24]
    cdef int at = 22
    digits[22], digits[23] = c"\r", c"\n"
    while True:
        at -= 1
        digits[at] = c"0" + number % 10
        number //= 10
        if number == 0:
            break
    at -= 1
    digits[at] = kind
    return put(text, digits + at, 24 - at)


cdef int put_item(Text *text, const char *p, Py_ssize_t n) except -1:
    put_head(text, c"$", n)
    put(text, p, n)
    return put(text, b"\r\n", 2)


cdef inline bint as_text(item, const char **p, Py_ssize_t *n) except -1:
    # Whether it is one whose bytes are at hand
    if type(item) is bytes:
        p[0], n[0] = PyBytes_AS_STRING(item), PyBytes_GET_SIZE(item)
        return True
    if type(item) is str:
        try:
            p[0] = PyUnicode_AsUTF8AndSize(item, n)
        except UnicodeEncodeError:  # half of a surrogate pair
            return False
        return True
    return False


cdef inline plain(item):
    return str(item) if type(item) is int or type(item) is float else item


@cython.boundscheck(True)
def gather(Ring ring, dict commands, list calls, list numbers, Py_ssize_t first, but):
    """Calls of one key each, as the requests that their shards are sent, in order.

    calls: (arguments, options), of which numbers[first:] are meant. commands: by name as it is written, with
    `words`, `key_at` and `reads`. It ends before the first call that is not as simple: whose command is not there,
    or has no `key_at`; whose options have `but`; whose arguments are not all str (as UTF-8), bytes, int or float.
    Returns (how far in `numbers` it has come, {shard's number: (requests, the calls' numbers, whether any writes)}).
    """
    cdef Py_ssize_t at = first, end = PyList_GET_SIZE(numbers), i, n, key_at = 0, words = 0, size = 0, back
    cdef const char *p = NULL
    cdef int shard
    cdef bint writes = False, whole
    cdef bytes head = b""
    cdef tuple args
    cdef dict options
    cdef list owners = [None] * ring.shards
    cdef Text *text
    cdef Text *texts = <Text *>calloc(ring.shards, sizeof(Text))
    cdef set writers = set()
    name = None
    if texts == NULL:
        raise MemoryError
    try:
        while at < end:
            number = numbers[at]
            args, options = calls[number]
            n = len(args)
            if n < 2 or (options and but in options):
                break
            if args[0] is not name:
                name = args[0]
                if type(name) is not str and type(name) is not bytes:
                    break
                command = commands.get(name)
                if command is None:
                    break
                key_at, writes, words = command.key_at, not command.reads, len(command.words)
                head = b"".join([b"$%d\r\n%s\r\n" % (len(word), word) for word in command.words])
            if not 0 < key_at < n:
                break
            item = plain(args[key_at])
            if not as_text(item, &p, &size):
                break
            shard = ring.shard_of(p, size)
            text = &texts[shard]
            back = text.size
            put_head(text, c"*", words + n - 1)
            put(text, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
            whole = True
            for i in range(1, n):
                item = plain(args[i])
                whole = as_text(item, &p, &size)
                if not whole:
                    break
                put_item(text, p, size)
            if not whole:
                text.size = back
                break
            if owners[shard] is None:
                owners[shard] = []
            (<list>owners[shard]).append(number)
            if writes:
                writers.add(shard)
            at += 1
        return at, {
            shard: (PyBytes_FromStringAndSize(texts[shard].p, texts[shard].size), owners[shard], shard in writers)
            for shard in range(ring.shards)
            if owners[shard] is not None
        }
    finally:
        for i in range(ring.shards):
            free(texts[i].p)
        free(texts)
