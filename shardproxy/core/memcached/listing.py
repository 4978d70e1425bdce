"""SCAN and KEYS of a memcached node, from what `lru_crawler metadump` lists: all its keys, in no order.

A cursor is a place among the keys' hashes, so a scan needs nothing remembered, and finds each key that is
there all the time; every page costs a look at all keys. Pure.
"""

from typing import NamedTuple

from shardproxy.core import errors
from shardproxy.core.glob import matches
from shardproxy.core.hashing import xxh64
from shardproxy.core.memcached.expiry import number, word
from shardproxy.core.memcached.wire import Refused
from shardproxy.core.scan_cursor import NODE_BITS, NODE_MOST

PAGE_LEAST = 1000  # keys: each page takes the node the same work


class Wanted(NamedTuple):
    """Of SCAN's options."""

    pattern: bytes = b""  # empty: all
    most: int = PAGE_LEAST
    strings: bool = True  # a memcached has nothing else

    @classmethod
    def read(cls, arguments: list[bytes]) -> "Wanted":
        """[MATCH pattern] [COUNT count] [TYPE type] Raises Refused."""
        wanted, given = cls(), arguments
        while given:
            option = word(given[0])
            if len(given) < 2 or option not in ("match", "count", "type"):
                raise Refused(errors.SYNTAX)
            if option == "match":
                wanted = wanted._replace(pattern=given[1])
            elif option == "type":
                wanted = wanted._replace(strings=word(given[1]) == "string")
            else:
                count = number(given[1])
                if count < 1:
                    raise Refused(errors.SYNTAX)
                wanted = wanted._replace(most=max(count, PAGE_LEAST))
            given = given[2:]
        return wanted


class Page:
    """The keys that come next after a cursor; no more are kept than are wanted, twice."""

    def __init__(self, cursor: int, wanted: Wanted) -> None:
        self._cursor, self._wanted = cursor, wanted
        self._most = wanted.most
        self._found: list[tuple[int, bytes]] = []
        self._limit = NODE_MOST + 1  # places from here on are of later pages

    def add(self, key: bytes) -> None:
        place = xxh64(key) >> 64 - NODE_BITS
        if self._cursor <= place < self._limit:
            self._found.append((place, key))
            if len(self._found) >= 2 * self._most:
                self._cut()

    def _cut(self) -> None:
        self._found.sort()
        if len(self._found) > self._most:
            # whole places only: the last that is whole, if there is one
            self._limit = max(self._found[self._most][0], self._found[0][0] + 1)
            self._found = [each for each in self._found if each[0] < self._limit]

    def done(self) -> tuple[int, list[bytes]]:
        """The next cursor, 0 at the end, and what is wanted of this page."""
        self._cut()
        keys = [key for _, key in self._found if self._wanted.strings]
        if self._wanted.pattern:
            keys = [key for key in keys if matches(self._wanted.pattern, key)]
        return 0 if self._limit > NODE_MOST else self._limit, keys
