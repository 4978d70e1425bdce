"""Where the keys of a command are, compiled: by its key specs, or by reading its options.

Keys are found as Redis finds them, by key specs (https://redis.io/docs/reference/key-specs/), except where
the published specs are incomplete, or can be led astray by a value that looks like a keyword (a consumer
group called "streams"): there `walk_*` reads the options one by one, as the command itself does. Nothing
here touches a Python object, allocates, or reads an argument beyond argc, whatever the arguments say.
"""

from libc.stdint cimport int64_t
from libc.string cimport memchr, memcpy

cdef dict BEGINS = {"index": 0, "keyword": 1, "unknown": 2}
cdef dict FINDS = {"range": 0, "keynum": 1, "unknown": 2}
cdef enum:
    WALK_SPECS = 0
    WALK_SORT = 1
    WALK_XREAD = 2
    WALK_GEORADIUS = 3
    WALK_GEOMEMBER = 4
    WALK_MIGRATE = 5
    WALK_SORT_RO = 6
cdef dict WALKS = {
    "": WALK_SPECS,
    "sort": WALK_SORT,
    "sort_ro": WALK_SORT_RO,
    "xread": WALK_XREAD,
    "georadius": WALK_GEORADIUS,
    "georadiusbymember": WALK_GEOMEMBER,
    "migrate": WALK_MIGRATE,
}


cdef inline int64_t number(const char *text, size_t n) noexcept nogil:
    # Redis's string2ll, for counts: digits without sign or leading zero; -1 for everything else
    cdef int64_t value = 0
    cdef size_t i
    if n == 0 or n > 9 or (text[0] == c'0' and n > 1):
        return -1
    for i in range(n):
        if not c'0' <= text[i] <= c'9':
            return -1
        value = value * 10 + (text[i] - c'0')
    return value


cdef inline void put(Found *found, int position, int spec) noexcept nogil:
    if found.n < found.room:
        found.out[found.n] = position
        if found.which != NULL:
            found.which[found.n] = spec
    found.n += 1


cdef int by_spec(const Spec *spec, int number_of, const Search *how, int argc, const char *const *argv,
                 const size_t *argl, Found *found) noexcept nogil:
    """0, or BAD."""
    cdef int begin = 0, i, stop, way
    cdef int64_t last
    cdef int64_t n
    if spec.begin == 0:
        begin = spec.index
    elif spec.begin == 1:
        if spec.index > 0:      # as Redis: the last argument is no keyword, for no key would follow it
            i, stop, way = spec.index, argc - 1, 1
        else:
            i, stop, way = argc + spec.index, 1, -1
        while 1 <= i < argc and (i < stop if way == 1 else i > stop):
            if is_word(argv[i], argl[i], spec.keyword, spec.size):
                begin = i + 1
                break
            i += way
        if begin == 0:
            return 0
    else:
        return 0
    if begin < 1:
        return BAD
    if spec.find == 0:
        if spec.last >= 0:
            last = begin + spec.last
        elif spec.limit == 0:
            last = argc + spec.last
        else:
            last = begin + (argc - begin) // spec.limit + spec.last
        if spec.last < 0 and last < begin:
            return 0        # PFMERGE key, without sources. GETKEYS calls that invalid; PFMERGE runs
        # The last group must be whole (MSET k v k): Redis notices when it executes, a split would not
        if spec.step > 1 and spec.last < 0 and not how.learned and (last - begin + 1) % spec.step != 0:
            return BAD
    elif spec.find == 1:
        if begin + spec.count >= argc:
            return BAD
        n = number(argv[begin + spec.count], argl[begin + spec.count])
        if n == 0 and not how.mandatory:
            return 0
        begin += spec.first
        if n <= 0 or n > argc:
            return BAD
        last = begin + (n - 1) * spec.step
    else:
        return 0
    if begin >= argc or last < begin or last >= argc:
        return BAD
    i = begin
    while i <= last:
        put(found, i, number_of)
        i += spec.step
    return 0


cdef int walk_sort(int argc, const char *const *argv, const size_t *argl, bint stores, Found *found) noexcept nogil:
    """SORT[_RO] key [BY pattern] [LIMIT offset count] [GET pattern ...] [ASC|DESC] [ALPHA] [STORE key]"""
    cdef int i = 2, store = 0, status = 0
    put(found, 1, 0)
    while i < argc:
        if is_word(argv[i], argl[i], b"limit", 5):
            i += 3
        elif is_word(argv[i], argl[i], b"by", 2) or is_word(argv[i], argl[i], b"get", 3):
            # Without a "*" Redis reads no other key: BY nosort, GET #
            if i + 1 < argc and memchr(argv[i + 1], c'*', argl[i + 1]) != NULL:
                status = PATTERN
            i += 2
        elif stores and is_word(argv[i], argl[i], b"store", 5) and i + 1 < argc:
            store = i + 1       # the last one counts
            i += 2
        else:
            i += 1
    if store:
        put(found, store, 2)
    return status


cdef int walk_xread(int argc, const char *const *argv, const size_t *argl, Found *found) noexcept nogil:
    """XREAD[GROUP GROUP group consumer] [COUNT n] [BLOCK ms] [NOACK] STREAMS key ... id ...

    A word that is none of these may be an option of a newer Redis: it is passed over, and BLOCK counts wherever it is.
    """
    cdef int i = 1, j, status = 0
    while i < argc:
        if is_word(argv[i], argl[i], b"count", 5):
            i += 2
        elif is_word(argv[i], argl[i], b"block", 5):
            status = WOULD_BLOCK
            i += 2
        elif is_word(argv[i], argl[i], b"group", 5):
            i += 3
        elif is_word(argv[i], argl[i], b"noack", 5):
            i += 1
        elif is_word(argv[i], argl[i], b"streams", 7):
            i += 1
            if i == argc or (argc - i) % 2 != 0:
                return status if status else BAD
            for j in range(i, i + (argc - i) // 2):
                put(found, j, 0)
            return status
        else:
            i += 1
    return status if status else BAD


cdef int walk_georadius(int argc, const char *const *argv, const size_t *argl, int options,
                        Found *found) noexcept nogil:
    """GEORADIUS key lon lat radius unit | GEORADIUSBYMEMBER key member radius unit, [COUNT n] [STORE key] ..."""
    cdef int i = options
    put(found, 1, 0)
    while i < argc:
        if is_word(argv[i], argl[i], b"count", 5):
            i += 2
        elif is_word(argv[i], argl[i], b"store", 5) or is_word(argv[i], argl[i], b"storedist", 9):
            if i + 1 >= argc:
                return BAD
            put(found, i + 1, 1 if argl[i] == 5 else 2)
            i += 2
        else:
            i += 1
    return 0


cdef int walk_migrate(int argc, const char *const *argv, const size_t *argl, Found *found) noexcept nogil:
    """MIGRATE host port key|"" db timeout [COPY] [REPLACE] [AUTH password] [AUTH2 user password] [KEYS key ...]"""
    cdef int i = 6, j
    while i < argc:
        if is_word(argv[i], argl[i], b"auth", 4):
            i += 2
        elif is_word(argv[i], argl[i], b"auth2", 5):
            i += 3
        elif is_word(argv[i], argl[i], b"keys", 4):
            if argl[3] != 0 or i + 1 >= argc:
                return BAD
            for j in range(i + 1, argc):
                put(found, j, 1)
            return 0
        else:
            i += 1
    put(found, 3, 0)
    return 0


cdef int find_keys(const Spec *specs, const Search *how, int argc, const char *const *argv, const size_t *argl,
                   Found *found) noexcept nogil:
    cdef int i
    if how.walk == WALK_SPECS:
        for i in range(how.specs):
            if specs[how.spec + i].is_key and by_spec(&specs[how.spec + i], i, how, argc, argv, argl, found) != 0:
                return BAD
        if found.n > argc:      # specs of a stranger may name arguments again and again
            return BAD
        return BAD if found.n == 0 and how.mandatory else 0
    if how.walk == WALK_SORT or how.walk == WALK_SORT_RO:
        return walk_sort(argc, argv, argl, how.walk == WALK_SORT, found)
    if how.walk == WALK_XREAD:
        return walk_xread(argc, argv, argl, found)
    if how.walk == WALK_GEORADIUS or how.walk == WALK_GEOMEMBER:
        return walk_georadius(argc, argv, argl, 6 if how.walk == WALK_GEORADIUS else 5, found)
    return walk_migrate(argc, argv, argl, found)


# --- from command_rows ---

cdef int fill_spec(Spec *spec, record) except -1:
    cdef bytes keyword = record.keyword.lower().encode()
    if len(keyword) > 24:
        raise ValueError(f"a keyword of a key spec is at most 24 bytes: {record.keyword!r}")
    spec.begin = BEGINS[record.begin]
    spec.find = FINDS[record.find]
    spec.is_key = record.is_key
    spec.access = record.access
    memcpy(spec.keyword, <const char *> keyword, len(keyword))
    spec.size = len(keyword)
    spec.index = record.index
    spec.last = record.last
    spec.step = record.step
    spec.limit = record.limit
    spec.count = record.count
    spec.first = record.first
    if spec.step < 1 or spec.limit < 0 or spec.count < 0 or spec.first < 0:
        raise ValueError(f"an impossible key spec: {record}")
    return 0


cdef int fill_search(Search *how, int spec, record) except -1:
    how.spec = spec
    how.specs = len(record.key_specs)
    how.walk = WALKS[record.walk]
    how.learned = record.learned
    how.mandatory = record.has_keys and "no_mandatory_keys" not in record.flags
    return 0
