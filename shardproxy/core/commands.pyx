"""The command table, compiled: which command is this, and where are its keys?

Owns the lookup by name; the rows themselves, facts and decisions, come from command_rows and command_policy,
and command_keys looks for keys. Rules: a table never changes after it was made; the functions of the fast
path touch no Python object and allocate nothing.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from shardproxy.core.command_keys cimport BAD, fill_search, fill_spec, find_keys, same

from shardproxy.core import command_policy, command_rows

cdef dict KINDS = {
    "forward": KIND_FORWARD, "fanout": KIND_FANOUT, "local": KIND_LOCAL, "multi": KIND_MULTI, "refused": KIND_REFUSED,
}
cdef dict MERGES = {"none": MERGE_NONE, "array": MERGE_ARRAY, "sum": MERGE_SUM, "ok": MERGE_OK}
cdef dict CALLS = {"": 0, "text": FLAG_TEXT, "sha": FLAG_SHA, "function": FLAG_FUNCTION}

cdef enum:
    ANY = 0xFFFF        # find(): a command has no container


cdef inline uint64_t lower8(uint64_t x) noexcept nogil:
    """Eight bytes at once: A-Z to a-z, nothing else changes."""
    cdef uint64_t low = x & 0x7F7F7F7F7F7F7F7FULL
    # Bit 7 of each byte: at least "A", and not beyond "Z"; bytes over 127 are no letters
    cdef uint64_t upper = (low + 0x3F3F3F3F3F3F3F3FULL) & ~(low + 0x2525252525252525ULL) & ~x & 0x8080808080808080ULL
    return x | (upper >> 2)


cdef inline Name fold(const char *text, size_t n) noexcept nogil:
    cdef Name name = Name(0, 0)
    cdef uint32_t c, d
    if n >= 8:
        memcpy(&name.a, text, 8)
        memcpy(&name.b, text + n - 8, 8)
        name.b = lower8(name.b)
    elif n >= 4:
        memcpy(&c, text, 4)
        memcpy(&d, text + n - 4, 4)
        name.a = c | (<uint64_t> d << 32)
    elif n:
        name.a = (
            <uint64_t> <unsigned char> text[0]
            | (<uint64_t> <unsigned char> text[n >> 1] << 8)
            | (<uint64_t> <unsigned char> text[n - 1] << 16)
        )
    name.a = lower8(name.a)
    return name


cdef inline uint32_t hash_of(Name name, size_t n, uint32_t container) noexcept nogil:
    cdef uint64_t mixed = (name.a ^ (name.b << 23 | name.b >> 41) ^ (n + (<uint64_t> container << 8)))
    return <uint32_t> ((mixed * 0x9E3779B97F4A7C15ULL) >> 40)


cdef class CommandTable:
    """Commands by name. Immutable; a changed table is a new object.

    rows: command_rows.Row of every command, subcommands inside their containers. Raises ValueError for a
    name that is longer than 47 bytes, or that comes twice.
    """

    def __cinit__(self, rows):
        tops = list(rows)
        self.records = tuple(flat for row in tops for flat in row.flat())
        self.names = tuple(row.name for row in self.records)
        self.numbers = {name: number_of for number_of, name in enumerate(self.names)}
        self.whys = tuple(row.why.encode() for row in self.records)
        self.count = len(self.records)
        if len(self.numbers) != self.count or self.count >= ANY:
            raise ValueError("a command comes twice, or there are too many")
        specs = [spec for row in self.records for spec in row.key_specs]
        cdef uint32_t size = 64
        while size < <uint32_t> self.count * 2:
            size *= 2
        self.table = <Row *> calloc(self.count + 1, sizeof(Row))
        self.rest = <Rest *> calloc(self.count + 1, sizeof(Rest))
        self.specs = <Spec *> calloc(len(specs) + 1, sizeof(Spec))
        self.top.entries = <Entry *> calloc(size, sizeof(Entry))
        self.sub.entries = <Entry *> calloc(size, sizeof(Entry))
        if not (self.table and self.rest and self.specs and self.top.entries and self.sub.entries):
            raise MemoryError
        self.top.mask = self.sub.mask = size - 1
        for number_of, spec in enumerate(specs):
            fill_spec(&self.specs[number_of], spec)
        container = at = 0
        for number_of, row in enumerate(self.records):
            fill_row(&self.table[number_of], number_of, row)
            self.rest[number_of].offset = row.name.find("|") + 1
            fill_search(&self.rest[number_of].keys, at, row)
            at += len(row.key_specs)
            if "|" in row.name:
                enter(&self.sub, container, number_of, row.name.partition("|")[2].encode())
            else:
                container = number_of
                enter(&self.top, ANY, number_of, row.name.encode())

    def __dealloc__(self):
        free(self.table)
        free(self.rest)
        free(self.specs)
        free(self.top.entries)
        free(self.sub.entries)

    cdef const Row *look(self, const Index *index, uint32_t container, const char *name, size_t n) noexcept nogil:
        cdef Name folded
        cdef uint32_t at
        cdef const Entry *entry
        cdef const Row *row
        if n >= sizeof(row.name):
            return NULL
        folded = fold(name, n)
        at = hash_of(folded, n, container) & index.mask
        while True:
            entry = &index.entries[at]
            if entry.size == 0:
                return NULL
            if (entry.name.a == folded.a and entry.name.b == folded.b and entry.size == n
                    and entry.container == container):
                row = &self.table[entry.id]
                # What stands between the first and the last 8 bytes is not in the folded name
                if n <= 16 or same(name, row.name + self.rest[entry.id].offset, n):
                    return row
            at = (at + 1) & index.mask

    cdef const Row *find(self, const char *name, size_t n) noexcept nogil:
        return self.look(&self.top, ANY, name, n)

    cdef const Row *find_sub(self, const Row *container, const char *sub, size_t n) noexcept nogil:
        return self.look(&self.sub, container.id, sub, n)

    cdef int search(self, const Row *row, int argc, const char *const *argv, const size_t *argl,
                    Found *found) noexcept nogil:
        if argc < (row.arity if row.arity > 0 else -row.arity) or (row.arity > 0 and argc != row.arity):
            return BAD
        return find_keys(self.specs, &self.rest[row.id].keys, argc, argv, argl, found)

    cdef int keys(self, const Row *row, int argc, const char *const *argv, const size_t *argl,
                  int *out, int room) noexcept nogil:
        cdef Found found = Found(out, NULL, room, 0)
        cdef int status = self.search(row, argc, argv, argl, &found)
        if status == BAD and self.rest[row.id].keys.learned:
            return 0    # it is not known that the node refuses such arguments
        return status if status < 0 else found.n

    cdef int positions(self, const Row *row, int argc, const char *const *argv, const size_t *argl,
                       int *out, int *which, int room) noexcept nogil:
        cdef Found found = Found(out, which, room, 0)
        return BAD if self.search(row, argc, argv, argl, &found) == BAD else found.n

    def row(self, bytes name, *args):
        """The command's row, or the subcommand's when it is a container and args has one; None if unknown."""
        cdef const Row *found = self.find(name, len(name))
        cdef bytes sub
        if found != NULL and args and found.flags & FLAG_CONTAINER:
            sub = args[0]
            found = self.find_sub(found, sub, len(sub))
        return None if found == NULL else self.records[found.id]

    def rows(self):
        """Every command, subcommands inside their containers, in the order they were given."""
        return [row for row in self.records if "|" not in row.name]

    def check(self, args):
        """What the engine's keys() answers: the number of keys, or -1, -2, -3. Raises as keys_and_flags_of."""
        return self.examine(args, False)

    def keys_of(self, args):
        """Positions of a command's keys in args (args[0] is its name). Raises as keys_and_flags_of."""
        return [position for position, _ in self.examine(args, True)]

    def locate_keys(self, args):
        """[(position, number of the key spec that found it)] of a command's keys. Raises as keys_and_flags_of."""
        return self.examine(args, True)

    def keys_and_flags_of(self, args):
        """[(position, flags)] of a command's keys: (1, ("RW", "access", "update")).

        Raises ValueError with the words of COMMAND GETKEYS for an unknown command, one without keys, a wrong
        number of arguments, and arguments that its keys cannot be told from.
        """
        found = self.examine(args, True)
        row = self.row(*args[:2])
        return [(position, command_rows.key_flags(row, spec, args)) for position, spec in found]

    cdef object examine(self, args, bint wants_positions):
        cdef list items = [bytes(arg) for arg in args]
        cdef int argc = len(items)
        record = self.row(*items[:2]) if items else None
        if record is None:
            raise ValueError("Invalid command specified")
        if not record.has_keys:
            raise ValueError("The command has no key arguments")
        if argc < abs(record.arity) or (record.arity > 0 and argc != record.arity):
            raise ValueError("Invalid number of arguments specified for command")
        cdef const Row *row = &self.table[self.numbers[record.name]]
        cdef const char **argv = <const char **> calloc(argc, sizeof(char *))
        cdef size_t *argl = <size_t *> calloc(argc, sizeof(size_t))
        cdef int room = argc
        cdef int *out = <int *> calloc(2 * room, sizeof(int))
        cdef bytes item
        cdef int i, n
        try:
            if argv == NULL or argl == NULL or out == NULL:
                raise MemoryError
            for i in range(argc):
                item = items[i]
                argv[i] = item
                argl[i] = len(item)
            if not wants_positions:
                return self.keys(row, argc, argv, argl, out, room)
            n = self.positions(row, argc, argv, argl, out, out + room, room)
            if n < 0 and not self.rest[row.id].keys.mandatory:
                return []       # as Redis says of EVAL, whatever its arguments are
            if n < 0:
                raise ValueError("Invalid arguments specified for command")
            return [(out[i], out[room + i]) for i in range(n)]
        finally:
            free(argv)
            free(argl)
            free(out)

    def __len__(self):
        return self.count


cdef void enter(Index *index, int container, int number_of, bytes name) noexcept:
    cdef size_t n = len(name)
    cdef Name folded = fold(name, n)
    cdef uint32_t at = hash_of(folded, n, container) & index.mask
    while index.entries[at].size:
        at = (at + 1) & index.mask
    index.entries[at] = Entry(folded, n, number_of, container)


cdef int fill_row(Row *row, int number_of, record) except -1:
    cdef bytes name = record.name.encode()
    if not 0 < len(name) < 48 or name != name.lower():
        raise ValueError(f"a command's name is 1 to 47 lower-case bytes: {record.name!r}")
    cdef tuple flags = record.flags
    cdef bint writes = record.writes, waits = "blocking" in flags
    row.first, row.last, row.step = record.key_range
    memcpy(row.name, <const char *> name, len(name))
    row.id = number_of
    row.kind = KINDS[record.kind]
    row.merge = MERGES[record.merge]
    row.flags = (
        (FLAG_WRITE if writes else 0)
        | (FLAG_READONLY if "readonly" in flags else 0)
        | (FLAG_BLOCKING if waits else 0)
        | (FLAG_BARRIER if record.barrier else 0)
        | (FLAG_CONTAINER if record.subcommands else 0)
        | (FLAG_MOVABLE if "movablekeys" in flags or record.merge == "none" and not record.one_key else 0)
        | (FLAG_IN_MULTI if record.in_multi else 0)
        | (FLAG_KEYLESS if record.keyless else 0)
        | (FLAG_HOLDS if record.holds else 0)
        | (FLAG_CHANNEL if record.channel else 0)
        | (FLAG_LISTENING if record.listening else 0)
        | (FLAG_ACROSS if record.across else 0)
        | (FLAG_WAITS if waits and not record.walk else 0)
        | (FLAG_SCRIPT if "scripting" in record.categories else 0)
        | CALLS[record.calls]
        | (FLAG_NO_MULTI if "no_multi" in flags else 0)
        | (FLAG_REPLICATES if writes or "may_replicate" in flags else 0)
        | (FLAG_UNSEEN if "admin" in flags else 0)
    )
    row.arity = record.arity
    return 0


def builtin():
    """The table of every command of Redis 7.0 and of this proxy's own."""
    return CommandTable(command_policy.builtin_rows())


def learn(CommandTable table, replies):
    """The table extended by the nodes' replies to COMMAND, one a node, as hiredis parses them.

    See command_learning for the rules. Nothing raises; what a reply had wrong is in command_learning.study's
    faults. The same object comes back when nothing changed.
    """
    from shardproxy.core import command_learning   # of no use to most clients

    rows = command_learning.study(table.rows(), replies).rows
    return table if rows == table.rows() else CommandTable(rows)
