"""Which shard a key belongs to: our own ring, twemproxy's ketama and modula, mcrouter's ch3.

Owns: the points, and the walk from a key to a shard. Must never know addresses, commands or node states
(those come in as `out`). A Ring is immutable, and a lookup touches no Python object and cannot fail: it is
a binary search in a flat array between two bounds that the upper bits of the hash look up, so it takes one
or two steps whatever the number of points.

docs/placement.md says the same for those who write it in another language. Sources: Karger et al.,
"Consistent hashing and random trees" (STOC 1997); ketama, https://github.com/RJ/ketama, in the form that
https://github.com/twitter/twemproxy gave it.
"""

from libc.math cimport floorf
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdio cimport sprintf
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcpy

from shardproxy.core.hashing cimport hash_tag as tagged
from shardproxy.core.hashing cimport ch3, key_hash, md5, xxh64

DISTRIBUTIONS = ("ring", "ketama", "modula", "ch3")
# Which hash is meant where none is said; ring and ch3 have no other
USUAL_HASH = {"ring": "xxh64", "ketama": "fnv1a_64", "modula": "fnv1a_64", "ch3": "ch3"}
MAX_SHARDS = 0xFFFF  # `owner` has 16 bits
MAX_POINTS = 1 << 20  # 6553 shards of 160 points; 18 MB
MAX_WEIGHT = 0x7FFFFFFF  # of all shards together


cdef int by_place(const void *a, const void *b) noexcept nogil:
    cdef const Point *p = <const Point *>a
    cdef const Point *q = <const Point *>b
    if p.at != q.at:
        return -1 if p.at < q.at else 1
    return -1 if p.rank < q.rank else p.rank > q.rank


cdef uint32_t ketama_groups(uint32_t weight, uint32_t total, uint32_t shards) noexcept nogil:
    # Four points each. Every step rounds to 32 bits, as in twemproxy: 25 equal shards get 39 groups, not 40.
    cdef float part = <float>weight / <float>total
    part = part * <float>160
    part = part / <float>4
    part = part * <float>shards
    return <uint32_t>floorf(<float>(<double>part + 0.0000000001))


cdef class Ring:
    """Shards on a circle of hashes; a key belongs to the first point at or after its own.

    shards: (name, weight) in the order of configuration, which numbers them from 0; a weight is at least 1.
    For ketama and modula the name is the server's as twemproxy has it: see `twemproxy_name`.
    distribution: "ring" (default), "ketama", "modula" or "ch3". virtual_nodes: points per weight, on a "ring" only.
    hash: of keys; None is "xxh64" (which "ring" always uses), for ketama and modula twemproxy's "fnv1a_64",
    for ch3 "ch3" (always).
    hash_tag: two characters, or "" for none; None is "{}" on a ring, else "".

    Raises ValueError for shards, names or options that make no ring.
    """

    def __cinit__(self, shards, str distribution="ring", int virtual_nodes=160, hash=None, hash_tag=None):
        ring = distribution == "ring"
        hash = USUAL_HASH.get(distribution, "") if hash is None else hash
        hash_tag = ("{}" if ring else "") if hash_tag is None else hash_tag
        self.names = tuple([name for name, _ in shards])
        self.weights = tuple([weight for _, weight in shards])
        check(self.names, self.weights, distribution, virtual_nodes, hash, hash_tag)
        self.distribution = distribution
        self.virtual_nodes = virtual_nodes
        self.hash = hash
        self.hash_tag = hash_tag
        self.shards = len(self.names)
        self.listed = distribution in ("modula", "ch3")
        self.hasher = NULL if ring or distribution == "ch3" else key_hash(hash)
        self.opening, self.closing = map(ord, hash_tag) if hash_tag else (-1, -1)

        total = sum(self.weights)
        if ring:
            counts = [weight * virtual_nodes for weight in self.weights]
        elif self.listed:
            counts = self.weights
        else:
            counts = [4 * ketama_groups(weight, total, self.shards) for weight in self.weights]
        self.size = min(sum(counts), 0xFFFFFFFF)
        if self.size > MAX_POINTS:
            raise ValueError(
                f"a ring of {sum(counts)} points; at most {MAX_POINTS}: lower the weights or virtual_nodes"
            )
        points = <Point *>malloc(self.size * sizeof(Point))
        if points == NULL:
            raise MemoryError
        try:
            place_points(points, self.names, counts, distribution)
            self.lay_out(points)
        finally:
            free(points)
        self.fingerprint = fingerprint(self)

    def __dealloc__(self):
        free(self.at)
        free(self.owner)
        free(self.index)

    cdef int lay_out(self, Point *points) except -1:
        # Sorts the points into the arrays that a lookup reads
        cdef int bits = max(1, int(self.size).bit_length())
        cdef uint32_t i, slot, slots = <uint32_t>1 << bits
        self.shift = 64 - bits
        self.at = <uint64_t *>malloc(self.size * sizeof(uint64_t))
        self.owner = <uint16_t *>malloc(self.size * sizeof(uint16_t))
        self.index = <uint32_t *>malloc((slots + 1) * sizeof(uint32_t))
        if self.at == NULL or self.owner == NULL or self.index == NULL:
            raise MemoryError
        qsort(points, self.size, sizeof(Point), by_place)
        for i in range(self.size):
            self.at[i] = points[i].at
            self.owner[i] = points[i].owner
        i = 0
        for slot in range(slots):
            while i < self.size and (self.at[i] >> self.shift) < slot:
                i += 1
            self.index[slot] = i
        self.index[slots] = self.size
        return 0

    cdef uint64_t place(self, const char *key, size_t n) noexcept nogil:
        if self.opening >= 0:
            key = tagged(key, &n, self.opening, self.closing)
        if self.hasher == NULL:
            return ch3(key, n, self.size) if self.listed else xxh64(key, n)
        return self.hasher(key, n) if self.listed else <uint64_t>self.hasher(key, n) << 32

    cdef uint32_t point_of(self, uint64_t place) noexcept nogil:
        cdef uint32_t low, high, middle
        if self.listed:
            return place % self.size
        low = self.index[place >> self.shift]
        high = self.index[(place >> self.shift) + 1]
        while low < high:
            middle = (low + high) >> 1
            if self.at[middle] < place:
                low = middle + 1
            else:
                high = middle
        return low if low < self.size else 0

    cdef int shard_of(self, const char *key, size_t n) noexcept nogil:
        if self.shards == 1:
            return 0
        return self.owner[self.point_of(self.place(key, n))]

    cdef int stand_in(self, const char *key, size_t n, const unsigned char *out) noexcept nogil:
        cdef uint32_t start, i
        cdef int shard
        if out == NULL:
            return self.shard_of(key, n)
        start = self.point_of(self.place(key, n))
        if not out[self.owner[start]]:
            return self.owner[start]
        for shard in range(self.shards):
            if not out[shard]:
                break
        else:
            return -1
        for i in range(1, self.size):
            shard = self.owner[(start + i) % self.size]
            if not out[shard]:
                return shard
        return -1  # those left have no points (ketama, with a very small weight)

    def locate(self, bytes key, out=()):
        """The number of the shard that holds this key while the shards numbered in `out` are out.

        None when none is left. Raises ValueError for a number that is no shard's.
        """
        cdef bytearray flags = bytearray(self.shards)
        for shard in out:
            if not 0 <= shard < self.shards:
                raise ValueError(f"no shard {shard}; there are {self.shards}")
            flags[shard] = 1
        cdef int found = self.stand_in(key, len(key), flags)
        return None if found < 0 else found

    def hash_of(self, bytes key):
        """The hash that places this key, its hash tag applied: 64 bits on a ring, else 32; of ch3 the entry."""
        return self.place(key, len(key)) >> (32 if self.distribution == "ketama" else 0)

    def points(self):
        """(point, shard's number), in the order of a search; of modula and ch3 the point is the entry, from 0."""
        cdef uint32_t i
        cdef int down = 32 if self.distribution == "ketama" else 0
        return [(self.at[i] >> down, self.owner[i]) for i in range(self.size)]

    def __repr__(self):
        return f"<Ring {self.distribution} of {self.shards} shards, {self.fingerprint}>"


def check(names, weights, distribution, virtual_nodes, hash, hash_tag):
    """Raises ValueError for what cannot be a ring."""
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"no distribution {distribution!r}; there are {', '.join(DISTRIBUTIONS)}")
    if distribution in ("ring", "ch3"):
        if hash != USUAL_HASH[distribution]:
            raise ValueError(f"distribution {distribution} hashes keys with {USUAL_HASH[distribution]}, not {hash!r}")
    else:
        key_hash(hash)
    if distribution == "ring" and virtual_nodes < 1:
        raise ValueError(f"virtual_nodes is {virtual_nodes}; at least 1")
    if not 0 < len(names) <= MAX_SHARDS:
        raise ValueError(f"a ring of {len(names)} shards; from 1 to {MAX_SHARDS}")
    if len(hash_tag) not in (0, 2) or not hash_tag.isascii():
        raise ValueError(f"hash_tag is {hash_tag!r}; two ASCII characters, or none")
    seen = set()
    for name, weight in zip(names, weights):
        if not isinstance(name, str) or not name:
            raise ValueError(f"a shard is named {name!r}; a text that is not empty")
        if name in seen:
            raise ValueError(f"two shards are named {name!r}")
        if type(weight) is not int or weight < 1:
            raise ValueError(f"shard {name!r} has weight {weight!r}; a whole number from 1")
        seen.add(name)
    if sum(weights) > MAX_WEIGHT:
        raise ValueError(f"the weights add up to {sum(weights)}; at most {MAX_WEIGHT}")


def ranked(names, distribution):
    """Names in the order that decides between equal points, and of the entries of modula and ch3.

    twemproxy sorts its servers by the length of their names, then bytewise (and its qsort is stable).
    """
    if distribution == "ring":
        return sorted(names, key=str.encode)
    return sorted(names, key=lambda name: (len(name.encode()), name.encode()))


cdef place_points(Point *points, names, counts, distribution):
    cdef uint32_t n = 0, i, word, count, rank
    cdef uint16_t owner
    cdef uint32_t digest[4]
    cdef bytearray label
    cdef char *text
    cdef size_t prefix, length
    order = ranked(names, distribution)
    numbers = {name: number for number, name in enumerate(names)}
    for rank, name in enumerate(order):
        owner = numbers[name]
        count = counts[owner]
        label = bytearray(name.encode() + b"-" + bytes(11))
        text = label
        prefix = len(label) - 11
        if distribution in ("modula", "ch3"):
            for i in range(count):
                points[n] = Point(n, rank, owner)
                n += 1
        elif distribution == "ring":
            for i in range(count):
                length = prefix + sprintf(text + prefix, "%u", i)
                points[n] = Point(xxh64(text, length), rank, owner)
                n += 1
        else:
            for i in range(count // 4):
                length = prefix + sprintf(text + prefix, "%u", i)
                md5(text, length, digest)
                for word in range(4):
                    points[n] = Point(<uint64_t>digest[word] << 32, rank, owner)
                    n += 1


cdef str fingerprint(Ring ring):
    # Over text, so that any language can make it: docs/placement.md
    lines = [f"{ring.distribution} {ring.hash} {ring.hash_tag}\n"]
    lines += [f"{at} {ring.names[owner]}\n" for at, owner in ring.points()]
    text = "".join(lines).encode()
    return f"{xxh64(text, len(text)):016x}"


def twemproxy_name(alias, host, port):
    """The name that twemproxy hashes for a server: what to call its shard so that no key moves.

    alias: the name after the address in twemproxy's configuration, or None. host: as written there, or the
    path of a unix socket (its port is ignored; twemproxy includes the colon before the weight).
    """
    if alias is not None:
        return alias
    if host.startswith("/"):
        return host + ":"
    return host if port == 11211 else f"{host}:{port}"
