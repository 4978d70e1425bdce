"""The quick start of docs/sessions.md as a newcomer runs it: the code as it is printed, over a real Redis."""

import re
from pathlib import Path
from typing import Any

import pytest
from servers import RedisNode
from webdrive import browser

TEXT = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text()


def quick_start(heading: str) -> str:
    """The first block of Python under it."""
    found = re.search(rf"^### {heading}\n.*?^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def run(redis: RedisNode, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a block, whose Redis is this test's; what it has defined."""
    monkeypatch.setenv("SESSION_SECRET", "of this test, and long enough")

    def run(code: str, **given: Any) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "quick_start", **given}
        assert "(port=6379)" in code
        exec(code.replace("(port=6379)", f"(port={redis.port})"), names)
        return names

    return run


@pytest.mark.parametrize("heading", ["FastAPI and Starlette", "Flask"])
def test_a_login_and_a_cart(run: Any, heading: str) -> None:
    app = run(quick_start(heading))["app"]
    fastapi = heading != "Flask"
    with browser(*[app] * (not fastapi), asgi=[app] * fastapi) as visitor:
        path = "/cart?item={}" if fastapi else "/cart/{}"
        assert visitor.post(path.format("tea")).json() == {"user": None, "cart": ["tea"]}
        assert visitor.post("/login").status_code == 200
        assert visitor.post(path.format("milk")).json() == {"user": "42", "cart": ["tea", "milk"]}
        assert visitor.post("/logout").status_code == 200
        assert visitor.post(path.format("tea")).json() == {"user": None, "cart": ["tea"]}


def test_form_post(run: Any) -> None:
    """The provider's POST brings no cookie; who has not begun the login here is nobody after it."""
    begin = """
import secrets
from hmac import compare_digest
from urllib.parse import parse_qs
from fastapi import HTTPException
from fastapi.responses import RedirectResponse

async def ask_the_provider(code):
    return "user of " + code

@app.get("/begin")
async def begin(request: Request):
    request.session["oidc_state"] = "the state"

@app.get("/me")
async def me(request: Request):
    return request.session.user_id

client = shared()
"""
    from redis.asyncio import Redis

    class Fresh:
        """Each request of this browser has a loop of its own."""

        def __init__(self, port: int) -> None:
            self.port = port

        def __getattr__(self, name: str) -> Any:
            async def call(*args: Any, **options: Any) -> Any:
                async with Redis(port=self.port) as client:
                    return await getattr(client, name)(*args, **options)

            return call

    code = quick_start("FastAPI and Starlette") + begin + quick_start("form_post")
    names = run(code.replace("client = shared()", "client = Fresh(port=6379)"), Fresh=Fresh)
    provider = "/oidc/callback"
    with browser(asgi=[names["app"]]) as visitor, browser(asgi=[names["app"]]) as other:

        def posted(state: str) -> str:
            answer = other.post(provider, content=f"code=c1&state={state}")  # without the visitor's cookie
            assert answer.status_code == 303 and "set-cookie" not in answer.headers
            return answer.headers["location"]

        for state in ("-", "", "None", "the state", "%C3%A4"):
            assert visitor.get(posted(state)).status_code == 400, "nobody has begun a login here"
        visitor.get("/begin")
        assert visitor.get(posted("another")).status_code == 400
        visitor.get("/begin")
        finish = posted("the state")
        assert visitor.get(finish).status_code == 200
        assert visitor.get("/me").json() == "user of c1"
        assert visitor.get(finish).status_code == 400, "a ticket counts once"


def test_wsgi(run: Any) -> None:
    with browser(run(quick_start("WSGI"))["app"]) as visitor:
        assert [visitor.get("/").text for _ in range(3)] == ["1", "2", "3"]


def test_djangos_settings(run: Any) -> None:
    import webapps

    webapps.set_up_django()
    from django.test.utils import override_settings

    from shardproxy.sessions.django_settings import check_settings

    names = run(quick_start("Django"))
    given = {name: names[name] for name in ("SESSION_ENGINE", "SHARDPROXY_SESSIONS")}
    for name in ("INSTALLED_APPS", "MIDDLEWARE"):
        given[name] = [each for each in names[name] if each is not ...]
    with override_settings(**given):
        assert check_settings() == []
