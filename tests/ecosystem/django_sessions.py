"""Django's own session tests on our engine: `python -m tests.ecosystem.django_sessions`.

The tests of the installed Django come from PyPI into build/django; nothing of them is committed. What Django
asks of every engine (SessionTestsMixin) runs in memory and over a Redis; its middleware tests run with its
own middleware over our engine, then with ours. OTHERWISE names what must differ and why: what is there and
passes fails the run.
"""

import io
import subprocess
import sys
import tarfile
import unittest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build" / "django"

COOKIE = "the cookie's name and attributes are ours, by where it goes"
DATABASE = "looks into Django's table of sessions"
# end of a test's id → why it is otherwise here
OTHERWISE = {
    "DjangosMiddleware.test_empty_session_saved": DATABASE,
    "OurMiddleware.test_session_update_error_redirect": "makes a session of the database's engine itself",
    "OurMiddleware.test_empty_session_saved": DATABASE,
    "OurMiddleware.test_secure_session_cookie": COOKIE,
    "OurMiddleware.test_httponly_session_cookie": COOKIE,
    "OurMiddleware.test_no_httponly_session_cookie": COOKIE,
    "OurMiddleware.test_samesite_session_cookie": COOKIE,
    "OurMiddleware.test_session_delete_on_end": "a cookie that is none of ours is not touched",
    "OurMiddleware.test_session_delete_on_end_with_custom_domain_and_path": COOKIE,
    "OurMiddleware.test_save_every_request_with_non_empty_session_renews_session_cookie": COOKIE,
}


def fetch() -> Path:
    """The folder of Django's tests, of the version installed here."""
    import django

    version = django.get_version()
    source = BUILD / f"django-{version}"
    if not source.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        wanted = [f"django=={version}", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        subprocess.run([sys.executable, "-m", "pip", "-q", "download", *wanted, "-d", str(BUILD)], check=True)
        with tarfile.open(BUILD / f"django-{version}.tar.gz") as archive:
            archive.extractall(BUILD, filter="data")
    return source / "tests"


def main() -> int:
    sys.path[:0] = [str(ROOT / "tests"), str(fetch())]
    import django
    import redis
    import redis.asyncio
    from django.conf import settings
    from servers import RedisNode

    from shardproxy.sessions import AsyncSessionStore, MemorySessionStore, SessionStore

    with RedisNode() as node:
        secrets = ["a secret of at least sixteen bytes"]

        class Fresh:
            """Every test has a loop of its own: no connection outlives a command."""

            async def execute_command(self, *args: Any) -> Any:
                async with redis.asyncio.Redis(port=node.port) as client:
                    return await client.execute_command(*args)

        real = {"STORE": SessionStore(redis.Redis(port=node.port), secrets)}
        both = real | {"ASYNC_STORE": AsyncSessionStore(Fresh(), secrets)}
        settings.configure(
            SECRET_KEY="of the tests", USE_TZ=False, ROOT_URLCONF="", DEBUG=False,
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
                       "other": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
            INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions",
                            "sessions_tests", "shardproxy.sessions.django.SessionsConfig"],
            SESSION_ENGINE="shardproxy.sessions.django", SHARDPROXY_SESSIONS={"STORE": MemorySessionStore()},
        )  # fmt: skip
        django.setup()
        from django.test import SimpleTestCase, TestCase, override_settings
        from django.test.runner import DiscoverRunner
        from sessions_tests import tests as theirs

        from shardproxy.sessions import django as ours

        class InMemory(theirs.SessionTestsMixin, SimpleTestCase):  # type: ignore[misc,name-defined]
            backend = ours.SessionStore

        @override_settings(SHARDPROXY_SESSIONS=real)
        class InRedis(InMemory):
            pass

        @override_settings(SHARDPROXY_SESSIONS=both)
        class AwaitingRedis(InMemory):
            pass

        class DjangosMiddleware(theirs.SessionMiddlewareTests):  # type: ignore[misc,name-defined]
            pass

        class OurMiddleware(theirs.SessionMiddlewareTests):  # type: ignore[misc,name-defined]
            def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
                usual, theirs.SessionMiddleware = theirs.SessionMiddleware, ours.SessionMiddleware
                try:
                    return super().run(result)  # type: ignore[no-any-return]
                finally:
                    theirs.SessionMiddleware = usual

        wanted = [InMemory, InRedis, AwaitingRedis, DjangosMiddleware, OurMiddleware]
        assert issubclass(DjangosMiddleware, TestCase)
        suite = unittest.TestSuite(map(unittest.defaultTestLoader.loadTestsFromTestCase, wanted))
        runner = DiscoverRunner(verbosity=1)
        runner.setup_test_environment()
        databases = runner.setup_databases()
        result = unittest.TextTestRunner(verbosity=1, stream=io.StringIO()).run(suite)
        runner.teardown_databases(databases)
    failed = {test.id().partition("<locals>.")[2]: text for test, text in [*result.failures, *result.errors]}
    print(f"{result.testsRun} tests of Django {django.get_version()}, {len(failed)} otherwise")
    for name in sorted(failed.keys() - OTHERWISE.keys()):
        print(f"\nFAILED {name}\n{failed[name]}")
    for name in sorted(OTHERWISE.keys() - failed.keys()):
        print(f"\nPASSED and is in OTHERWISE: {name}")
    return int(failed.keys() != OTHERWISE.keys())


if __name__ == "__main__":
    sys.exit(main())
