"""The engines' counters in memory that all processes share: a page a worker slot, and one for workers past.

Behind them the times of writes, for `stale_while_down`: written and read by all engines, see dataplane/stale.

The engine of a worker writes its page in C; everybody reads all of them, also when a worker is dead or busy.
Words are 64 bits and aligned, so that none is ever seen half written.
"""

import mmap
import os
from typing import Self

from shardproxy.dataplane.counters import BUCKET_COUNT, HISTOGRAMS, PAGE_BYTES, TABLE
from shardproxy.dataplane.stale import STAMP_BYTES

STRIDE = -(-PAGE_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
GAUGES = {number for number, (_, kind, _) in enumerate(TABLE) if kind == "gauge"}


class CounterPages:
    """`fd` may be passed to a process that attaches to it; the memory lives as long as somebody has it."""

    def __init__(self, fd: int, slots: int) -> None:
        self.fd, self.slots = fd, slots
        self._memory = memoryview(mmap.mmap(fd, STRIDE * (slots + 1) + STAMP_BYTES))
        self._words = [self._memory[n * STRIDE : n * STRIDE + PAGE_BYTES].cast("Q") for n in range(slots + 1)]

    @classmethod
    def create(cls, slots: int) -> Self:
        fd = os.memfd_create("shardproxy-counters", os.MFD_CLOEXEC)
        os.truncate(fd, STRIDE * (slots + 1) + STAMP_BYTES)
        return cls(fd, slots)

    def page(self, slot: int) -> memoryview:
        """What the reactor of this slot is given."""
        return self._memory[slot * STRIDE : slot * STRIDE + PAGE_BYTES]

    @property
    def stamps(self) -> memoryview:
        """What every reactor is given; memory that none of them uses is never there."""
        return self._memory[-STAMP_BYTES:]

    def counters(self) -> dict[str, int]:
        """The sum over all workers, also past ones."""
        return {name: sum(words[n] for words in self._words) for n, (name, _, _) in enumerate(TABLE)}

    def latency(self) -> dict[str, list[int]]:
        """The same for the histograms."""
        found = {}
        for number, name in enumerate(HISTOGRAMS):
            start = len(TABLE) + number * BUCKET_COUNT
            columns = zip(*(words[start : start + BUCKET_COUNT] for words in self._words), strict=True)
            found[name] = [sum(column) for column in columns]
        return found

    def retire(self, slot: int) -> None:
        """The slot's worker is gone: what it has counted stays counted, what it had is no more."""
        words, past = self._words[slot], self._words[-1]
        for number in range(len(words)):
            if number not in GAUGES:
                past[number] += words[number]
            words[number] = 0
