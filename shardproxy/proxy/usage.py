"""What a process uses: memory, CPU, and how late its loop is."""

import contextlib
import os
import resource

from shardproxy.handlers.base import ProcessRecord

SPAN = 10.0  # seconds


class LoopLag:
    """The longest that a regular call came late, in the last one to two SPANs, so that one look a SPAN misses
    none. Times are arguments."""

    def __init__(self, every: float) -> None:
        self.every = every
        self._last: float | None = None
        self._since = 0.0
        self._now = self._before = 0.0

    def note(self, now: float) -> None:
        """The call has come."""
        if self._last is None:
            self._since = now
        else:
            self._now = max(self._now, now - self._last - self.every)
        self._last = now
        if now - self._since >= SPAN:
            self._since, self._before, self._now = now, self._now, 0.0

    @property
    def most(self) -> float:
        return max(self._now, self._before)


def process_record(lag: LoopLag, blocked: int = 0) -> ProcessRecord:
    """Of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    peak = rss = usage.ru_maxrss * 1024
    with contextlib.suppress(OSError), open("/proc/self/statm", "rb") as file:
        rss = int(file.read().split()[1]) * resource.getpagesize()
    return ProcessRecord(os.getpid(), rss, max(rss, peak), usage.ru_utime, usage.ru_stime, lag.most, blocked)
