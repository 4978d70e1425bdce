"""A pytest plugin for redis-py's suite: one JSON line a test begun, one a phase ended, written as they come.

COMPAT_RESULTS names the file. COMPAT_NODES are the ports of the Redis servers at the far end: each test
begins with all of them empty and configured as at their start, whatever the test before it left behind.
Imports nothing of this project: it runs in the suite's own environment.
"""

import json
import os
import socket
import sys

import pytest

RESULTS = open(os.environ["COMPAT_RESULTS"], "a", buffering=1)  # noqa: SIM115  # as long as the process
PORTS = [int(port) for port in os.environ["COMPAT_NODES"].split(",")]
RESET = (
    b"FLUSHALL\r\nSCRIPT FLUSH\r\nFUNCTION FLUSH\r\nACL LOG RESET\r\nCLIENT UNPAUSE\r\n"
    b"CONFIG SET notify-keyspace-events '' maxmemory 0 timeout 0 slowlog-log-slower-than 10000\r\n"
)
nodes = [socket.create_connection(("127.0.0.1", port)) for port in PORTS]


def write(**record):
    RESULTS.write(json.dumps(record) + "\n")


def reset():
    for number, port in enumerate(PORTS):
        try:
            nodes[number].sendall(RESET)
            got = b""
            while got.count(b"\r\n") < RESET.count(b"\r\n"):
                more = nodes[number].recv(4096)
                if not more:
                    raise ConnectionError
                got += more
        except OSError:  # a test may have killed every connection
            nodes[number] = socket.create_connection(("127.0.0.1", port))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    write(begun=item.nodeid)
    reset()


def pytest_runtest_logreport(report):
    text = ""
    if report.failed or hasattr(report, "wasxfail"):
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash else str(report.longrepr)
    seconds = report.duration
    write(test=report.nodeid, when=report.when, outcome=report.outcome, seconds=seconds, text=text[:2000])


def by_fixture():
    """Is it the suite's conftest.py that calls, not a test?"""
    frame, depth = sys._getframe(2), 0
    while frame is not None and depth < 6:
        if frame.f_code.co_filename.endswith("conftest.py"):
            return True
        frame, depth = frame.f_back, depth + 1
    return False


def pytest_configure(config):
    """While the proxy has no FLUSHDB: fixtures get on without, for the nodes are emptied; tests see it."""
    import redis
    import redis.asyncio

    def forgiving(flush):
        def flushdb(self, *args, **kwargs):
            try:
                return flush(self, *args, **kwargs)
            except redis.ResponseError as error:
                if "not supported" not in str(error) or not by_fixture():
                    raise
                return True

        return flushdb

    def forgiving_async(flush):
        async def flushdb(self, *args, **kwargs):
            try:
                return await flush(self, *args, **kwargs)
            except redis.ResponseError as error:
                if "not supported" not in str(error) or not by_fixture():
                    raise
                return True

        return flushdb

    redis.Redis.flushdb = forgiving(redis.Redis.flushdb)
    redis.asyncio.Redis.flushdb = forgiving_async(redis.asyncio.Redis.flushdb)
