"""Merging what several shards answered to one command.

A Fan says which part every key went to; a part is one shard's raw reply. Merging splices raw frames in the
order of the keys (MGET), adds integers (DEL, EXISTS, ...), or asks that all say OK (MSET): nothing is decoded
but integers. A failed part makes an error that names the shards, or nils where the pool says so; MSET is always
an error, since part of it was written. Sending the parts and waiting for them is the data plane's.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, strlen

from shardproxy.core.buffers cimport Buf, buf_append, buf_release
from shardproxy.core.commands cimport MERGE_ARRAY, MERGE_OK, MERGE_SUM
from shardproxy.core.resp cimport Scan, put_number, scan_frame, usual_frame


cdef Fan *fan_new(uint8_t merge, uint8_t proto, bint nil, uint16_t parts, uint32_t keys) noexcept nogil:
    cdef size_t head = sizeof(Fan) + parts * sizeof(Part)
    cdef Fan *f = <Fan *>calloc(1, head + (keys * sizeof(uint16_t) if merge == MERGE_ARRAY else 0))
    if f == NULL:
        return NULL
    f.merge = merge
    f.proto = proto
    f.nil = nil
    f.parts = f.open = parts
    f.keys = keys
    f.part = <Part *>(f + 1)
    f.owner = <uint16_t *>(f.part + parts)
    return f


cdef Fan *fan_widen(Fan *f, uint16_t part, uint16_t into, const uint16_t *owners) noexcept nogil:
    cdef Fan *wide
    cdef uint16_t *numbers
    cdef uint32_t k, mine = 0
    cdef uint16_t next = f.parts
    if into <= 1:
        return f
    wide = fan_new(f.merge, f.proto, f.nil, <uint16_t>(f.parts + into - 1), f.keys) if f.parts + into < 65536 else NULL
    numbers = <uint16_t *>calloc(65536, sizeof(uint16_t))      # owner -> its part and one
    if wide == NULL or numbers == NULL:
        free(wide)
        free(numbers)
        return NULL
    memcpy(wide.part, f.part, f.parts * sizeof(Part))
    wide.open = f.open + into - 1
    if f.merge == MERGE_ARRAY:
        memcpy(wide.owner, f.owner, f.keys * sizeof(uint16_t))
        for k in range(f.keys):
            if f.owner[k] != part:
                continue
            if numbers[owners[mine]] == 0:
                numbers[owners[mine]] = (part if mine == 0 else next) + 1
                next += mine != 0
            wide.owner[k] = numbers[owners[mine]] - 1
            mine += 1
    free(numbers)
    free(f)
    return wide


cdef void fan_free(Fan *f) noexcept nogil:
    cdef int i
    for i in range(f.parts):
        buf_release(&f.part[i].reply)
    free(f)


cdef int integer_of(const Buf *b, int64_t *value) noexcept nogil:
    """Of ":12\r\n"; -1 when the reply is something else."""
    cdef const char *p = b.p + b.off
    cdef size_t i = 1
    cdef int64_t v = 0
    if b.len < 4 or b.len > 21 or p[0] != c':' or p[b.len - 2] != c'\r' or p[b.len - 1] != c'\n':
        return -1
    while i < b.len - 2:
        if p[i] < c'0' or p[i] > c'9':
            return -1
        v = v * 10 + (p[i] - c'0')
        i += 1
    value[0] = v
    return 0


cdef bint answered(Fan *f, Part *part, uint32_t expected) noexcept nogil:
    """Whether this part's reply is of the form that the merge needs."""
    cdef int64_t v = 0
    cdef char line[32]
    cdef size_t n
    cdef const char *p = part.reply.p + part.reply.off
    if part.state != PART_ANSWERED:
        return False
    if f.merge == MERGE_SUM:
        return integer_of(&part.reply, &v) == 0
    if f.merge == MERGE_OK:
        return part.reply.len >= 3 and p[0] == c'+'
    n = put_number(line, c'*', expected)
    if part.reply.len < n:
        return False
    for i in range(n):
        if p[i] != line[i]:
            return False
    return True


cdef int say(Buf *out, const char *text) noexcept nogil:
    return buf_append(out, text, strlen(text))


cdef int gravity(const Buf *b) noexcept nogil:
    """What may have happened comes before what surely has not."""
    cdef const char *p = b.p + b.off
    if b.len > 8 and memcmp(p, "-UNKNOWN", 8) == 0:
        return 2
    return 1 if b.len > 8 and memcmp(p, "-TIMEOUT", 8) == 0 else 0


cdef int merge_error(Fan *f, const char *const *names, const uint8_t *good, Buf *out) noexcept nogil:
    """The gravest of the failed parts' errors, then which shards failed and which did their share."""
    cdef int i, side, grade, worst = -1, bad = 0
    cdef bint first
    cdef const char *p
    cdef size_t n
    for i in range(f.parts):
        if not good[i]:
            grade = gravity(&f.part[i].reply)
            if grade > worst:
                worst = grade
                bad = i
    p = f.part[bad].reply.p + f.part[bad].reply.off
    n = f.part[bad].reply.len
    if n > 2 and p[0] == c'-':
        if buf_append(out, p, n - 2) < 0:
            return -1
    elif say(out, "-ERR a node's reply does not fit the command") < 0:
        return -1
    for side in range(2):
        first = True
        for i in range(f.parts):
            if good[i] != side:
                continue
            if say(out, (" [failed on: " if side == 0 else "; done on: ") if first else ", ") < 0:
                return -1
            if say(out, names[f.part[i].shard]) < 0:
                return -1
            first = False
    return say(out, "]\r\n")


cdef int fan_merge(Fan *f, const char *const *names, Buf *out) noexcept nogil:
    cdef uint64_t total = 0             # unsigned, so that a hostile node's figures may wrap
    cdef int64_t v = 0
    cdef uint32_t k
    cdef int i, bad = 0, status
    cdef char line[32]
    cdef size_t used = 0
    cdef Scan s
    cdef Part *part
    cdef uint32_t *share = <uint32_t *>calloc(f.parts, sizeof(uint32_t) + sizeof(size_t) + 1)
    cdef size_t *at = <size_t *>share         # where the next frame of each part starts
    cdef uint8_t *good
    if share == NULL:
        return -1
    share = <uint32_t *>(at + f.parts)
    good = <uint8_t *>(share + f.parts)
    if f.merge == MERGE_ARRAY:
        for k in range(f.keys):
            share[f.owner[k]] += 1
    for i in range(f.parts):
        good[i] = answered(f, &f.part[i], share[i])
        bad += not good[i]
        if f.merge == MERGE_ARRAY and good[i]:
            at[i] = put_number(line, c'*', share[i])
    if bad and (not f.nil or f.merge == MERGE_OK or (f.merge == MERGE_SUM and bad == f.parts)):
        status = merge_error(f, names, good, out)
    elif f.merge == MERGE_OK:
        status = say(out, "+OK\r\n")
    elif f.merge == MERGE_SUM:
        for i in range(f.parts):
            if good[i]:
                integer_of(&f.part[i].reply, &v)
                total += v
        status = buf_append(out, line, put_number(line, c':', <int64_t>total))
    else:
        status = buf_append(out, line, put_number(line, c'*', f.keys))
        for k in range(f.keys):
            if status < 0:
                break
            i = f.owner[k]
            part = &f.part[i]
            if not good[i]:
                status = say(out, "_\r\n" if f.proto == 3 else "$-1\r\n")
                continue
            # the engine has scanned the whole reply: every frame is there
            used = usual_frame(part.reply.p + part.reply.off + at[i], part.reply.len - at[i])
            if used == 0:
                s.left = s.body = 0
                s.crlf = 0
                s.line = 0
                scan_frame(&s, part.reply.p + part.reply.off + at[i], part.reply.len - at[i], &used)
            status = buf_append(out, part.reply.p + part.reply.off + at[i], used)
            at[i] += used
    free(at)
    return status


def merge(str how, list owner, list replies, names, int proto=2, bint nil=False) -> bytes:
    """The same from Python, for tests: replies are (shard number, raw reply, whether the shard answered)."""
    cdef Fan *f = fan_new({"array": MERGE_ARRAY, "sum": MERGE_SUM, "ok": MERGE_OK}[how], proto, nil,
                          len(replies), len(owner))
    cdef Buf out
    cdef const char *texts[256]
    cdef int i
    cdef list keep = [n.encode() for n in names]
    cdef bytes b
    if f == NULL:
        raise MemoryError
    out.p = NULL
    out.off = out.len = out.cap = 0
    try:
        for i, b in enumerate(keep):
            texts[i] = b
        if how == "array":
            for i, part in enumerate(owner):
                f.owner[i] = part
        for i, (shard, raw, ok) in enumerate(replies):
            f.part[i].shard = shard
            f.part[i].state = PART_ANSWERED if ok else PART_FAILED
            b = raw
            buf_append(&f.part[i].reply, b, len(b))
        if fan_merge(f, texts, &out) < 0:
            raise MemoryError
        return out.p[out.off:out.off + out.len]
    finally:
        fan_free(f)
        buf_release(&out)
