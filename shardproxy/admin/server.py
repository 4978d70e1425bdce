"""The admin port: a small HTTP server around a proxy, in the process that owns the topology.

Rules: it shows and never acts; it has no say in the proxy's life (no signals; what fails here is logged and
answered 500); it starts before the proxy and ends after it, so that /healthz and /readyz tell of both.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeAlias

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from shardproxy.admin.metrics import CONTENT_TYPE_LATEST, render
from shardproxy.admin.page import page
from shardproxy.admin.view import Watch, ready_json
from shardproxy.proxy import listeners
from shardproxy.proxy.listeners import Listener, StartError
from shardproxy.proxy.watched import Watched

CONNECTIONS = 64  # at once; for one more the oldest idle one goes: who forgets them shuts nobody out
BIRTHS = itertools.count()
LIFE = 30.0  # seconds; then a connection is closed when it is idle, after as much again in any case
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
RETRY = 0.05  # seconds between two looks at whether the port is free
JSON = "application/json"
OPTION = 'admin = "HOST:PORT"'

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


def application(watched: Watched) -> Starlette:
    """The four addresses; anything else is 404, and every method but GET and HEAD 405."""
    watch = Watch(watched)

    async def healthz(_: Request) -> Response:
        return Response(b'{"status":"alive"}', media_type=JSON)

    async def readyz(_: Request) -> Response:
        view = await watch.look()
        return Response(ready_json(view), 503 if view.faults else 200, media_type=JSON)

    async def metrics(_: Request) -> Response:
        return Response(await render(await watch.look()), media_type=CONTENT_TYPE_LATEST)

    async def overview(_: Request) -> Response:
        return HTMLResponse(page(await watch.look()))

    def guarded(endpoint: Endpoint) -> Endpoint:
        async def guard(request: Request) -> Response:
            try:
                response = await endpoint(request)
            except Exception as error:
                watched.log("admin_failed", path=request.url.path, exc_info=error)
                response = Response(
                    "internal error: see the log of shardproxy\n", 500, media_type="text/plain"
                )
            response.headers.update(HEADERS)
            return response

        return guard

    paths = {"/": overview, "/healthz": healthz, "/readyz": readyz, "/metrics": metrics}
    return Starlette(routes=[Route(path, guarded(endpoint)) for path, endpoint in paths.items()])


class Connection(H11Protocol):
    """uvicorn's, with an end: it would wait forever for a request, or for an answer to be read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        ends = ((LIFE, self.shutdown), (2 * LIFE, transport.abort))
        self._ends = [self.loop.call_later(delay, end) for delay, end in ends]
        self._born = next(BIRTHS)  # not the loop's time: many are born in one turn of it
        # one that was told to go may still be among them: many may come in one turn of the loop
        others = [each for each in self.connections if each is not self and not each.transport.is_closing()]
        if len(others) >= CONNECTIONS:
            min(others, key=lambda each: (each.busy, each._born)).transport.abort()  # type: ignore[union-attr]

    @property
    def busy(self) -> bool:
        """A request of it is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_lost(self, error: Exception | None) -> None:
        for end in self._ends:
            end.cancel()
        super().connection_lost(error)


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the proxy's."""
        yield


@contextlib.asynccontextmanager
async def admin(watched: Watched) -> AsyncIterator[None]:
    """Serves on `config.admin` within the block. Raises StartError."""
    bound = bind(watched)
    if bound is None:
        watched.log(
            "admin_waits", address=watched.config.admin, reason="another listens there: the one before?"
        )
    config = uvicorn.Config(
        application(watched),
        http=Connection,
        ws="none",
        loop="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = Server(config)
    serving = asyncio.create_task(serve(watched, server, bound))
    serving.add_done_callback(lambda task: _ended(watched, task))
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)


def bind(watched: Watched) -> Listener | None:
    """None: the port is still the predecessor's. Raises StartError."""
    assert watched.config.admin is not None
    try:
        bound = listeners.bind(watched.config.admin, option=OPTION)
    except StartError:
        if watched.inherits:
            return None
        raise
    watched.log("admin_listening", address=bound.address)
    return bound


async def serve(watched: Watched, server: Server, bound: Listener | None) -> None:
    """Until `server` is told to end, or another process goes on for this one: the port is that one's then."""
    while bound is None:
        await asyncio.sleep(RETRY)
        if server.should_exit:
            return
        bound = bind(watched)
    leaving = asyncio.create_task(_leave(watched, server))
    try:
        await server.serve(sockets=list(bound.sockets[0]))
    finally:
        leaving.cancel()
        bound.close()


async def _leave(watched: Watched, server: Server) -> None:
    await watched.handed_over.wait()
    server.should_exit = True


def _ended(watched: Watched, task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()):
        watched.log("admin_failed", exc_info=error)
