"""Flask-Caching: `flask_caching_job.py PORT cache|clear`."""

import sys

from flask import Flask
from flask_caching import Cache

PORT, JOB = sys.argv[1:3]
app = Flask(__name__)
cache = Cache(
    app,
    config={
        "CACHE_TYPE": "RedisCache",
        "CACHE_REDIS_HOST": "127.0.0.1",
        "CACHE_REDIS_PORT": int(PORT),
        "CACHE_KEY_PREFIX": "fl:",
        "CACHE_DEFAULT_TIMEOUT": 100,
    },
)
calls = []


@app.route("/")
@cache.cached(timeout=50)
def index() -> str:
    calls.append("index")
    return "hello"


@cache.memoize(50)
def double(number: int) -> int:
    calls.append(number)
    return 2 * number


def everyday() -> None:
    client = app.test_client()
    assert [client.get("/").text for _ in range(3)] == ["hello"] * 3
    assert [double(4), double(4), double(5)] == [8, 8, 10]
    assert calls == ["index", 4, 5]
    cache.delete_memoized(double, 4)
    assert double(4) == 8 and calls == ["index", 4, 5, 4]
    values = {f"k{n}": n for n in range(20)}
    cache.set_many(values)
    assert cache.get_dict(*values) == values
    assert cache.add("once", 1) and not cache.add("once", 2)
    assert cache.has("once")
    cache.delete_many(*values, "once", "view//")
    assert cache.get_many("k1", "once") == [None, None]


def clear() -> None:
    cache.set("a", 1)
    cache.clear()
    assert cache.get("a") is None


with app.app_context():
    {"cache": everyday, "clear": clear}[JOB]()
