"""django-redis as Django's cache: `django_redis_job.py PORT JOB`."""

import sys

import django
from django.conf import settings

PORT, JOB = sys.argv[1:3]
settings.configure(
    CACHES={
        "default": {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": f"redis://127.0.0.1:{PORT}/0",
            "OPTIONS": {"CLIENT_CLASS": "django_redis.client.DefaultClient"},
            "KEY_PREFIX": "dj",
        }
    }
)
django.setup()

from django.core.cache import cache  # noqa: E402  # after the settings


def everyday() -> None:
    cache.set("a", {"x": [1, 2, 3]}, timeout=100)
    assert cache.get("a") == {"x": [1, 2, 3]}
    assert 90 < cache.ttl("a") <= 100
    assert cache.add("b", 1) and not cache.add("b", 2)
    assert cache.incr("b") == 2 and cache.decr("b", 2) == 0
    values = {f"many:{n}": n for n in range(50)}
    cache.set_many({key: str(value) for key, value in values.items()})
    assert cache.get_many(values) == {key: str(value) for key, value in values.items()}
    assert cache.touch("a", 50) and cache.persist("a") and cache.ttl("a") is None
    assert cache.get_or_set("c", lambda: "made", 10) == "made"
    cache.delete_many([*values, "a", "b", "c"])
    assert cache.get("a") is None and cache.has_key("b") is False


def pattern() -> None:
    for number in range(30):
        cache.set(f"pattern:{number}", number)
    assert len(cache.keys("pattern:*")) == 30
    assert len(list(cache.iter_keys("pattern:*"))) == 30
    assert cache.delete_pattern("pattern:*") == 30


def lock() -> None:
    with cache.lock("locked", timeout=10):
        assert not cache.lock("locked", timeout=10).acquire(blocking=False)
    assert cache.lock("locked", timeout=10).acquire(blocking=False)
    cache.delete("locked")


def clear() -> None:
    cache.set("a", 1)
    cache.clear()
    assert cache.get("a") is None


{"cache": everyday}.get(JOB, globals().get(JOB))()
