"""admin/server: addresses, methods, headers and faults, by calling the ASGI application itself."""

import json
import subprocess
import sys
from typing import Any

import pytest
from fakes import FakeWatched

from shardproxy.admin.server import application


async def get(app: Any, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Status, headers, body."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "root_path": "", "scheme": "http", "query_string": b"", "headers": [],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 9380),
    }  # fmt: skip
    await app(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


async def test_the_four_addresses() -> None:
    app = application(FakeWatched())
    for path, kind in (
        ("/", "text/html"),
        ("/healthz", "application/json"),
        ("/readyz", "application/json"),
        ("/metrics", "text/plain"),
    ):
        status, headers, body = await get(app, path)
        assert status == 200, path
        assert headers["content-type"].startswith(kind)
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert body
        assert (await get(app, path, "HEAD"))[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_nothing_can_be_done_here(method: str) -> None:
    app = application(FakeWatched())
    for path in ("/", "/healthz", "/readyz", "/metrics"):
        assert (await get(app, path, method))[0] == 405


async def test_anything_else_is_not_found() -> None:
    for path in ("/x", "/metrics/", "//", "/../etc/passwd", "/\udcff".encode(errors="replace").decode()):
        assert (await get(application(FakeWatched()), path))[0] in (404, 307), path


async def test_unready_is_503_and_alive() -> None:
    watched = FakeWatched()
    watched.draining, watched.listening = True, False
    app = application(watched)
    status, _, body = await get(app, "/readyz")
    assert status == 503
    assert json.loads(body)["faults"] == ["draining"]
    assert (await get(app, "/healthz"))[0] == 200
    assert b"shardproxy_ready 0.0" in (await get(app, "/metrics"))[2]


async def test_degraded_is_200() -> None:
    watched = FakeWatched()
    watched.states({"127.0.0.1:7001": "out"}, "gone")
    status, _, body = await get(application(watched), "/readyz")
    assert (status, json.loads(body)["status"]) == (200, "degraded")


async def test_a_fault_here_is_answered_and_logged_without_details() -> None:
    watched = FakeWatched()

    def broken() -> dict[str, int]:
        raise ValueError("a secret")

    watched.counters = broken  # type: ignore[method-assign]
    app = application(watched)
    for path in ("/", "/metrics", "/readyz"):
        status, _, body = await get(app, path)
        assert status == 500
        assert b"secret" not in body
    assert watched.logged == ["admin_failed"] * 3
    assert (await get(app, "/healthz"))[0] == 200


def test_who_has_no_admin_port_imports_no_http_server() -> None:
    code = (
        "import sys, shardproxy.proxy.supervisor, shardproxy.cli.serve\n"
        "print({'starlette', 'uvicorn', 'prometheus_client', 'shardproxy.admin'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
