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

    def run(code: str) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "quick_start"}
        assert code.count("(port=6379)") > 0
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


def test_wsgi(run: Any) -> None:
    with browser(run(quick_start("WSGI"))["app"]) as visitor:
        assert [visitor.get("/").text for _ in range(3)] == ["1", "2", "3"]


def test_djangos_settings(run: Any) -> None:
    import webapps

    webapps.set_up_django()
    from django.test.utils import override_settings

    from shardproxy.sessions.django import check_settings

    names = run(quick_start("Django"))
    given = {name: names[name] for name in ("SESSION_ENGINE", "SHARDPROXY_SESSIONS")}
    for name in ("INSTALLED_APPS", "MIDDLEWARE"):
        given[name] = [each for each in names[name] if each is not ...]
    with override_settings(**given):
        assert check_settings() == []
