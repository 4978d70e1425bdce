"""redis-py's Lock: `redis_py_lock.py PORT lock`. Ten threads that would lose counts without it."""

import sys
import threading

import redis
from redis.exceptions import LockError

client = redis.Redis(port=int(sys.argv[1]))
client.delete("counted", "lock:counted")


def count() -> None:
    for _ in range(10):
        with client.lock("lock:counted", timeout=10, blocking_timeout=30, sleep=0.001):
            now = int(client.get("counted") or 0)
            client.set("counted", now + 1)


threads = [threading.Thread(target=count) for _ in range(10)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert client.get("counted") == b"100", client.get("counted")

lock = client.lock("lock:counted", timeout=10)
assert lock.acquire()
assert lock.owned() and lock.locked()
assert lock.extend(20) and lock.reacquire()
assert not client.lock("lock:counted").acquire(blocking=False)
client.delete("lock:counted")
try:
    lock.release()
except LockError:
    pass
else:
    raise AssertionError("released what it no longer had")
