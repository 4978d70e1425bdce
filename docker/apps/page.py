"""What the three apps show: one page, from one session, whichever framework answers."""

import html
import os
from collections.abc import Mapping
from typing import Any

SECRETS = os.environ["SESSION_SECRETS"].split(",")
REDIS = os.environ["SESSION_REDIS"]
TRUSTED = tuple(filter(None, os.environ.get("TRUSTED_PROXIES", "").split(",")))


def state(framework: str, user: str | None, session: Mapping[str, Any]) -> dict[str, Any]:
    """The page for programs."""
    return {
        "framework": framework,
        "user": user,
        "visits": session.get("visits", 0),
        "cart": session.get("cart", []),
    }


def page(framework: str, user: str | None, session: Mapping[str, Any]) -> str:
    shown = {name: html.escape(str(value)) for name, value in state(framework, user, session).items()}
    login = (
        '<form method="post" action="/logout"><button>log out</button></form>'
        if user
        else '<form method="post" action="/login"><input name="user" value="ann"><button>log in</button>'
        "</form>"
    )
    return f"""<!doctype html><meta charset="utf-8"><title>shardproxy sessions</title>
<p>Answered by <b>{shown["framework"]}</b>. Reload: another one answers.
<p>You are <b>{shown["user"] if user else "nobody yet"}</b>; visits: {shown["visits"]}; cart: {shown["cart"]}
{login}
<form method="post" action="/cart"><input name="item" value="tea"><button>into the cart</button></form>
"""
