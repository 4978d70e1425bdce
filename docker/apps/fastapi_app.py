"""The example in FastAPI: `uvicorn fastapi_app:app`."""

from urllib.parse import parse_qs

import redis.asyncio
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from page import REDIS, SECRETS, TRUSTED, page, state

from shardproxy.sessions import AsyncSessionStore
from shardproxy.sessions.asgi import SessionMiddleware

app = FastAPI()
app.add_middleware(
    SessionMiddleware,
    store=AsyncSessionStore(redis.asyncio.from_url(REDIS), SECRETS),
    trusted_proxies=TRUSTED,
)


async def field(request: Request, name: str) -> str:
    """Of a form; `Form()` does it where python-multipart is installed."""
    return parse_qs((await request.body()).decode())[name][0]


@app.get("/")
async def home(request: Request) -> HTMLResponse:
    request.session.incr("visits")
    return HTMLResponse(page("FastAPI", request.session.user_id, request.session))


@app.get("/state")
async def show(request: Request) -> dict[str, object]:
    return state("FastAPI", request.session.user_id, request.session)


@app.post("/login")
async def login(request: Request) -> RedirectResponse:
    await request.session.login(await field(request, "user"))
    return RedirectResponse("/", 303)


@app.post("/logout")
async def logout(request: Request) -> RedirectResponse:
    await request.session.destroy()
    return RedirectResponse("/", 303)


@app.post("/cart")
async def cart(request: Request) -> RedirectResponse:
    request.session.append("cart", await field(request, "item"))
    return RedirectResponse("/", 303)
