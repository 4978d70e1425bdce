"""Web apps under test without a server: one httpx client over any of them, and websockets by hand."""

import asyncio
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
        self.wsgi = [httpx.WSGITransport(app, raise_app_exceptions=False) for app in apps]
        self.asgi = [httpx.ASGITransport(app, raise_app_exceptions=False, client=PEER) for app in asgi]
        self.next = itertools.cycle([*self.wsgi, *self.asgi]).__next__

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        transport = self.next()
        if isinstance(transport, httpx.WSGITransport):
            try:
                return transport.handle_request(request)
            except Exception:  # a server's last resort
                return httpx.Response(500)

        async def ask() -> httpx.Response:
            response = await transport.handle_async_request(request)
            await response.aread()
            return response

        found = self.loop.run_until_complete(ask())
        return httpx.Response(found.status_code, headers=found.headers, content=found.content)

    def close(self) -> None:
        self.loop.close()


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
