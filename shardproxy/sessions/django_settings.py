"""What Django's settings say of sessions: SHARDPROXY_SESSIONS, and system checks that find what is wrong.

What settings name is in sessions/django.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from django.conf import settings
from django.core import checks
from django.utils.module_loading import import_string

from shardproxy.core.sessions.errors import UnfitPool
from shardproxy.sessions import store as stores
from shardproxy.sessions.store import AsyncSessionStore
from shardproxy.sessions.web import Web

ENGINE = "shardproxy.sessions.django"
# Django's settings that somebody may count on, and that mean nothing here
NOT_READ = [
    *(
        f"SESSION_COOKIE_{name}"
        for name in ("NAME", "SECURE", "HTTPONLY", "SAMESITE", "DOMAIN", "PATH", "AGE")
    ),
    *("SESSION_SERIALIZER", "SESSION_EXPIRE_AT_BROWSER_CLOSE", "SESSION_SAVE_EVERY_REQUEST"),
]
KEYS = {"STORE", "ASYNC_STORE", "COOKIE", "TRUSTED_PROXIES", "PREVIOUS"}


class Configured:
    """SHARDPROXY_SESSIONS, read once for each value that the setting has had."""

    _of: ClassVar[tuple[Any, "Configured"] | None] = None

    def __init__(self, options: Mapping[str, Any]) -> None:
        if unknown := set(options) - KEYS:
            raise ValueError(f"SHARDPROXY_SESSIONS: {sorted(unknown)} is none of {sorted(KEYS)}")
        if "STORE" not in options:
            raise ValueError('SHARDPROXY_SESSIONS needs "STORE": a SessionStore, or where to import one')
        self.store: stores.SessionStore = _imported(options["STORE"])
        if not isinstance(self.store, stores.SessionStore):
            raise ValueError('SHARDPROXY_SESSIONS["STORE"] is no SessionStore')
        self.async_store: AsyncSessionStore | None = _imported(options.get("ASYNC_STORE"))
        previous = _imported(options.get("PREVIOUS"))
        self.web = Web(self.store, options.get("COOKIE"), options.get("TRUSTED_PROXIES", ()), previous)

    @classmethod
    def now(cls) -> "Configured":
        options = getattr(settings, "SHARDPROXY_SESSIONS", {})
        if cls._of is None or cls._of[0] is not options:
            cls._of = options, cls(options)
        return cls._of[1]


def _imported(what: Any) -> Any:
    """A dotted path → what is there, called if it is a function that takes nothing."""
    return import_string(what) if isinstance(what, str) else what


def check_place(databases: Sequence[str] | None = None, **options: Any) -> list[checks.CheckMessage]:
    """Where sessions are kept, asked as databases are: by `migrate` and `check --database default`."""
    try:
        if databases:
            Configured.now().store.check_at_start()
    except UnfitPool as error:
        return [checks.Error(str(error), id="shardproxy.E006")]
    except (ValueError, TypeError, ImportError):
        pass  # told by check_settings
    return []


def check_settings(**options: Any) -> list[checks.CheckMessage]:
    """What is wrong with the settings, by name."""
    found: list[checks.CheckMessage] = []
    here, usual = f"{ENGINE}.SessionMiddleware", "django.contrib.sessions.middleware.SessionMiddleware"
    middleware = list(settings.MIDDLEWARE)
    if settings.SESSION_ENGINE != ENGINE:
        found.append(checks.Error(f'SESSION_ENGINE is not "{ENGINE}"', id="shardproxy.E001"))
    if usual in middleware:
        found.append(checks.Error(f"MIDDLEWARE has {usual}: put {here} in its place", id="shardproxy.E002"))
    elif here not in middleware:
        found.append(checks.Error(f"MIDDLEWARE has no {here}", id="shardproxy.E003"))
    try:
        configured = Configured.now()
    except (ValueError, TypeError, ImportError) as error:
        return [*found, checks.Error(str(error), id="shardproxy.E004")]
    if configured.async_store is not None and (
        configured.async_store.rules.keyring.newest.kid != configured.store.rules.keyring.newest.kid
    ):
        found.append(checks.Error("STORE and ASYNC_STORE have different secrets", id="shardproxy.E005"))
    for name in NOT_READ:
        if settings.is_overridden(name):
            hint = 'the cookie: SHARDPROXY_SESSIONS["COOKIE"]; timeouts: the store\'s classes'
            found.append(
                checks.Warning(f"{name} is not read by this engine", hint=hint, id="shardproxy.W001")
            )
    return found
