"""Many keys at once, for the client library: whose each is, and one list of replies of the shards' lists. Pure.

What the engine does with a request's bytes (dataplane/sending, fanout) is done here with Python's objects.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdlib cimport calloc, free

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
