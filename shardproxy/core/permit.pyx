"""What a user may run, compiled: a command's row and arguments → a verdict.

Rules: the order of checks, and which of several reasons is told, are Redis's: command, keys, channels, for the user's own
permissions and then each selector. Nothing here touches a Python object or reads an argument beyond argc; whatever cannot
be checked is denied. Keys are found as routing finds them (core/commands); arguments that Redis itself refuses are let
through, since a node says so in its own words and touches nothing. What a node would do without these rules is denied:
scripts, which run there as whoever the proxy has logged in as, unless they are trusted.
"""

from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcmp

from shardproxy.core import acl_rules
from shardproxy.core.command_keys cimport BAD, PATTERN, Found, Search, is_word
from shardproxy.core.commands cimport CommandTable, Row
from shardproxy.core.glob cimport glob_match

VERDICTS = ("allowed", "command", "key", "auth", "channel", "by", "get", "script")

cdef enum:
    HERE = 64               # so many arguments are looked at without allocating

# What is special about a command, by its name
cdef enum:
    PLAIN = 0
    ALWAYS = 1              # AUTH, HELLO: allowed before the login
    SETS = 2                # SET: reads only with GET
    BITFIELD = 3            # writes only with SET or INCRBY
    SCRIPT = 4
    SORTS = 5
    CHANNELS = 6            # from argument 1 on
    PATTERNS = 7            # the same, patterns of channels
    CHANNEL = 8             # argument 1 alone

SPECIAL = {
    "set": SETS, "bitfield": BITFIELD, "sort": SORTS, "sort_ro": SORTS,
    "eval": SCRIPT, "eval_ro": SCRIPT, "evalsha": SCRIPT, "evalsha_ro": SCRIPT, "fcall": SCRIPT, "fcall_ro": SCRIPT,
    "subscribe": CHANNELS, "ssubscribe": CHANNELS, "psubscribe": PATTERNS, "publish": CHANNEL, "spublish": CHANNEL,
}


cdef class Permit:

    def __cinit__(self, user, CommandTable table, bint trust_scripts=False):
        cdef int number, i
        cdef list selectors = [] if user is None else [user.root, *user.selectors]
        self.user = user
        self.table = table
        self.trusted = trust_scripts
        self.everything = user is not None and user.everything
        self.kept = []
        self.special = <uint8_t *>calloc(len(table) + 1, 1)
        self.grants = <Grant *>calloc(len(selectors) + 1, sizeof(Grant))
        if self.special == NULL or self.grants == NULL:
            raise MemoryError
        for number, row in enumerate(table.records):
            self.special[number] = ALWAYS if "no_auth" in row.flags else SPECIAL.get(row.name, PLAIN)
        for i, selector in enumerate(selectors):
            self.count = i + 1      # what is made so far is freed, whatever happens
            self.fill(i, selector)

    cdef int fill(self, int number, selector) except -1:
        cdef Grant *grant = &self.grants[number]
        cdef int i
        names, first = acl_rules.allowed(selector, self.table.records)
        grant.commands = <uint8_t *>calloc(len(self.table) + 1, 1)
        grant.keys = <Pattern *>calloc(len(selector.keys) + 1, sizeof(Pattern))
        grant.channels = <Pattern *>calloc(len(selector.channels) + 1, sizeof(Pattern))
        grant.first = <First *>calloc(sum(map(len, first.values())) + 1, sizeof(First))
        if grant.commands == NULL or grant.keys == NULL or grant.channels == NULL or grant.first == NULL:
            raise MemoryError
        for i, name in enumerate(self.table.names):
            grant.commands[i] = name in names
            for text in first.get(name, ()):
                self.keep(text.lower(), &grant.first[grant.first_count].text, &grant.first[grant.first_count].size)
                grant.first[grant.first_count].row = i
                grant.first_count += 1
        for i, pattern in enumerate(selector.keys):
            self.keep(pattern.pattern, &grant.keys[i].text, &grant.keys[i].size)
            grant.keys[i].access = pattern.flags
        for i, text in enumerate(selector.channels):
            self.keep(text, &grant.channels[i].text, &grant.channels[i].size)
        grant.key_count = -1 if selector.all_keys else len(selector.keys)
        grant.channel_count = -1 if selector.all_channels else len(selector.channels)
        return 0

    cdef int keep(self, str text, const char **where, size_t *size) except -1:
        cdef bytes data = text.encode(errors="surrogateescape")
        self.kept.append(data)
        where[0] = data
        size[0] = len(data)
        return 0

    def __dealloc__(self):
        cdef int i
        for i in range(self.count):
            free(self.grants[i].commands)
            free(self.grants[i].keys)
            free(self.grants[i].channels)
            free(self.grants[i].first)
        free(self.grants)
        free(self.special)

    cdef int check(self, const Row *row, int argc, const char *const *argv, const size_t *argl,
                   int *at) noexcept nogil:
        cdef int here[2 * HERE]
        cdef int *keys = here
        cdef int i, verdict, where = 0, found = -1, status = 0, worst = DENIED_COMMAND
        at[0] = 0
        if self.special[row.id] == ALWAYS or self.everything:
            return ALLOWED
        if self.user is None:
            return NOT_LOGGED_IN
        for i in range(self.count):
            if not may_run(&self.grants[i], row, argc, argv, argl):
                continue
            if found < 0:
                if argc > HERE:
                    keys = <int *>malloc(2 * <size_t>argc * sizeof(int))
                    if keys == NULL:
                        return DENIED_COMMAND
                found = self.find_keys(row, argc, argv, argl, keys, keys + (argc if argc > HERE else HERE), &status)
            where = 0
            verdict = self.grant_check(&self.grants[i], row, argc, argv, argl, keys,
                                       keys + (argc if argc > HERE else HERE), found, &where)
            if verdict == ALLOWED and status == PATTERN and not reads_all(&self.grants[i]):
                verdict, where = DENIED_BY, 0
            if verdict == ALLOWED:
                worst = ALLOWED
                break
            if verdict > worst or verdict == worst and where > at[0]:
                worst = verdict
                at[0] = where
        if keys != here:
            free(keys)
        if worst == DENIED_BY:
            worst = pattern_option(argc, argv, argl)
        if worst == ALLOWED and self.special[row.id] == SCRIPT and not self.trusted:
            return DENIED_SCRIPT
        return worst

    cdef int find_keys(self, const Row *row, int argc, const char *const *argv, const size_t *argl,
                       int *keys, int *which, int *status) noexcept nogil:
        """How many there are; those of malformed arguments as far as Redis would find them."""
        cdef Found found = Found(keys, which, argc, 0)
        cdef const Search *how = &self.table.rest[row.id].keys
        cdef int last, at
        status[0] = self.table.search(row, argc, argv, argl, &found)
        if status[0] != BAD:
            if self.special[row.id] == SORTS and pattern_option(argc, argv, argl) == DENIED_GET:
                status[0] = PATTERN     # Redis forbids GET # as well
            return found.n if found.n <= argc else argc
        found.n = 0
        if how.specs == 1 and self.table.specs[how.spec].find == 0 and row.first > 0:    # MSET k v k
            last = row.last if row.last >= 0 else argc + row.last
            at = row.first
            while at <= last and at < argc:
                keys[found.n] = at
                which[found.n] = 0
                found.n += 1
                at += row.step
        elif how.learned:
            return -2
        return found.n

    cdef int grant_check(self, const Grant *grant, const Row *row, int argc, const char *const *argv,
                         const size_t *argl, const int *keys, const int *which, int found, int *at) noexcept nogil:
        cdef int i, k
        cdef uint8_t special = self.special[row.id]
        if grant.key_count >= 0:
            if found < 0:
                return DENIED_KEY       # a learned command whose keys cannot be told
            for i in range(found):
                k = keys[i]
                if not may_touch(grant, argv[k], argl[k], self.access_of(row, which[i], argc, argv, argl)):
                    at[0] = k
                    return DENIED_KEY
        if grant.channel_count >= 0 and special >= CHANNELS:
            for k in range(1, 2 if special == CHANNEL else argc):
                if not may_listen(grant, argv[k], argl[k], special == PATTERNS):
                    at[0] = k
                    return DENIED_CHANNEL
        return ALLOWED

    cdef int access_of(self, const Row *row, int spec, int argc, const char *const *argv,
                       const size_t *argl) noexcept nogil:
        """What is done with a key, as command_rows.key_flags says it."""
        cdef int i, size
        if self.special[row.id] == SETS:
            for i in range(3, argc):
                if is_word(argv[i], argl[i], b"get", 3):
                    return 3
            return 2
        if self.special[row.id] == BITFIELD:
            i = 2
            while i < argc:
                size = 3 if is_word(argv[i], argl[i], b"get", 3) else 2 if is_word(argv[i], argl[i], b"overflow", 8) else 0
                if size == 0:
                    return 3
                i += size
            return 1
        return self.table.specs[self.table.rest[row.id].keys.spec + spec].access

    def examine(self, args):
        cdef list items = [bytes(arg) for arg in args]
        cdef int argc = len(items), i, at = 0, verdict
        cdef bytes item = items[0] if items else b""
        cdef const Row *row = self.table.find(item, len(item))
        cdef const Row *sub
        if row == NULL:
            raise ValueError("not in the table")
        if argc > 1:
            item = items[1]
            sub = self.table.find_sub(row, item, len(item))
            row = row if sub == NULL else sub
        cdef const char **argv = <const char **>calloc(argc, sizeof(char *))
        cdef size_t *argl = <size_t *>calloc(argc, sizeof(size_t))
        try:
            if argv == NULL or argl == NULL:
                raise MemoryError
            for i in range(argc):
                item = items[i]
                argv[i] = item
                argl[i] = len(item)
            verdict = self.check(row, argc, argv, argl, &at)
            return VERDICTS[verdict], at
        finally:
            free(argv)
            free(argl)


cdef bint may_run(const Grant *grant, const Row *row, int argc, const char *const *argv,
                  const size_t *argl) noexcept nogil:
    cdef int i
    if grant.commands[row.id]:
        return True
    for i in range(grant.first_count):
        if grant.first[i].row == row.id and argc > 1 and is_word(
                argv[1], argl[1], grant.first[i].text, grant.first[i].size):
            return True
    return False


cdef bint may_touch(const Grant *grant, const char *key, size_t size, int access) noexcept nogil:
    cdef int i
    for i in range(grant.key_count):
        if (grant.keys[i].access & access) == access and glob_match(grant.keys[i].text, grant.keys[i].size, key, size):
            return True
    return False


cdef bint may_listen(const Grant *grant, const char *name, size_t size, bint pattern) noexcept nogil:
    """A pattern must be one of those that are allowed, to the letter."""
    cdef int i
    for i in range(grant.channel_count):
        if pattern:
            if grant.channels[i].size == size and memcmp(grant.channels[i].text, name, size) == 0:
                return True
        elif glob_match(grant.channels[i].text, grant.channels[i].size, name, size):
            return True
    return False


cdef bint reads_all(const Grant *grant) noexcept nogil:
    cdef int i
    for i in range(grant.key_count):
        if grant.keys[i].access & 1 and grant.keys[i].size == 1 and grant.keys[i].text[0] == c'*':
            return True
    return grant.key_count < 0


cdef int pattern_option(int argc, const char *const *argv, const size_t *argl) noexcept nogil:
    """SORT's first option that reads other keys: BY with a pattern, or any GET; ALLOWED: none."""
    cdef int i = 2
    while i + 1 < argc:
        if is_word(argv[i], argl[i], b"limit", 5):
            i += 3
        elif is_word(argv[i], argl[i], b"by", 2):
            if memchr(argv[i + 1], c'*', argl[i + 1]) != NULL:
                return DENIED_BY
            i += 2
        elif is_word(argv[i], argl[i], b"get", 3):
            return DENIED_GET
        elif is_word(argv[i], argl[i], b"store", 5):
            i += 2
        else:
            i += 1
    return ALLOWED
