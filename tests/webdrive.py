"""Web apps under test without a server: one httpx client over any of them, and websockets by hand."""

import asyncio
import io
import itertools
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Self

import httpx

Message = MutableMapping[str, Any]
AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]
PEER = ("127.0.0.1", 40000)


class Apps(httpx.BaseTransport):
    """A round-robin load balancer over WSGI and ASGI apps, without stickiness; asked for any host.

    An app that raises answers 500, as servers do.
    """

    def __init__(self, *apps: Any, asgi: Sequence[AsgiApp] = ()) -> None:
        self.loop = asyncio.new_event_loop()
        behind = [httpx.ASGITransport(app, raise_app_exceptions=False, client=PEER) for app in asgi]
        self.next = itertools.cycle([*apps, *behind]).__next__

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        chosen = self.next()
        if not isinstance(chosen, httpx.ASGITransport):
            return call_wsgi(chosen, request)

        async def ask() -> httpx.Response:
            response = await chosen.handle_async_request(request)
            await response.aread()
            return response

        found = self.loop.run_until_complete(ask())
        return httpx.Response(found.status_code, headers=found.headers, content=found.content)

    def close(self) -> None:
        self.loop.close()


def call_wsgi(app: Any, request: httpx.Request) -> httpx.Response:
    """As a server does it; httpx's own transport takes no header that is not ASCII."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method, "SCRIPT_NAME": "", "PATH_INFO": request.url.path,
        "QUERY_STRING": request.url.query.decode("ascii"), "SERVER_NAME": request.url.host,
        "SERVER_PORT": str(request.url.port or 80), "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": PEER[0],
        "wsgi.version": (1, 0), "wsgi.url_scheme": request.url.scheme, "wsgi.errors": io.StringIO(),
        "wsgi.input": io.BytesIO(request.read()), "wsgi.multithread": True, "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }  # fmt: skip
    for name, value in request.headers.raw:
        key = name.decode("latin-1").upper().replace("-", "_")
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value.decode("latin-1")
    started: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        started[:] = [int(status.split()[0]), headers]

    try:
        body = app(environ, start_response)
        content = b"".join(body)
        if hasattr(body, "close"):
            body.close()
    except Exception:  # a server's last resort
        return httpx.Response(500)
    return httpx.Response(started[0], headers=started[1], content=content)


def browser(*apps: Any, asgi: Sequence[AsgiApp] = (), base_url: str = "https://shop.example") -> httpx.Client:
    """A client with a cookie jar over the apps."""
    return httpx.Client(transport=Apps(*apps, asgi=asgi), base_url=base_url)


class WebSocket:
    """A websocket's client at an ASGI app: `async with WebSocket(app, cookie="…") as ws`."""

    def __init__(self, app: AsgiApp, path: str = "/ws", cookie: str = "", scheme: str = "wss") -> None:
        headers = [(b"host", b"shop.example")] + ([(b"cookie", cookie.encode("latin-1"))] if cookie else [])
        self.scope: dict[str, Any] = {
            "type": "websocket", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": scheme,
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": headers,
            "client": PEER, "server": ("shop.example", 443), "subprotocols": [], "state": {},
        }  # fmt: skip
        self.app = app
        self.to_app: asyncio.Queue[Message] = asyncio.Queue()
        self.from_app: asyncio.Queue[Message] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        self.task = asyncio.ensure_future(self.app(self.scope, self.to_app.get, self.from_app.put))
        await self.to_app.put({"type": "websocket.connect"})
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.to_app.put({"type": "websocket.disconnect", "code": 1001})
        await asyncio.wait([self.task], timeout=10)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def receive(self) -> Message:
        """The next thing that the app sends."""
        getting = asyncio.ensure_future(self.from_app.get())
        await asyncio.wait([getting, self.task], timeout=10, return_when=asyncio.FIRST_COMPLETED)
        if not getting.done():
            getting.cancel()
            raise AssertionError(f"the app sent nothing: {self.task!r}")
        return getting.result()

    async def send(self, text: str) -> None:
        await self.to_app.put({"type": "websocket.receive", "text": text})
