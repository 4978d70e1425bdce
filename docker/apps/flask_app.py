"""The example in Flask: `flask --app flask_app run`."""

import redis
from flask import Flask, redirect, request, session
from page import REDIS, SECRETS, TRUSTED, page, state
from werkzeug.wrappers import Response

from shardproxy.sessions import SessionStore
from shardproxy.sessions.flask import Sessions

app = Flask(__name__)
Sessions(app, SessionStore(redis.Redis.from_url(REDIS), SECRETS), trusted_proxies=TRUSTED)


@app.get("/")
def home() -> str:
    session.incr("visits")
    return page("Flask", session.user_id, session)


@app.get("/state")
def show() -> dict[str, object]:
    return state("Flask", session.user_id, session)


@app.post("/login")
def login() -> Response:
    session.login(request.form["user"])
    return redirect("/", 303)


@app.post("/logout")
def logout() -> Response:
    session.destroy()
    return redirect("/", 303)


@app.post("/cart")
def cart() -> Response:
    session.append("cart", request.form["item"])
    return redirect("/", 303)
