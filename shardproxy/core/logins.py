"""Logins that failed: how long each address waits for the answer to the next wrong password.

Pure: `now` is an argument, in seconds of any clock that only goes forward. The wait doubles with every
failure of an address and is forgotten some time after the last one; of all addresses only so many are
remembered.
"""

from collections import OrderedDict

FIRST, MOST = 0.05, 1.6  # seconds; less than clients wait for a reply: redis-py 5 s, go-redis 3 s, Jedis 2 s
FORGET = 60.0  # seconds after an address's last failure
ADDRESSES = 4096


class Failures:
    """waiting: how many are waiting for their answer now; who makes them wait counts them."""

    def __init__(self) -> None:
        self.waiting = 0
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()  # address → how often, when last

    def failed(self, address: str, now: float) -> float:
        """Another one: seconds until it may be told. address: without the port."""
        count, last = self._failed.pop(address, (0, now))
        count = count + 1 if now - last < FORGET else 1
        self._failed[address] = count, now
        if len(self._failed) > ADDRESSES:
            self._failed.popitem(last=False)
        return float(min(FIRST * 2.0 ** min(count - 1, 32), MOST))

    def __len__(self) -> int:
        return len(self._failed)
