"""One app in every framework, for tests of sessions: /ACTION?name=value, the answer {"user", "data"}.

Actions: show, untouched, set, delete, push (inside a list), login, logout, renew, save (set, saved at once).
Of the query, `_status` is the response's, `_raise` raises after the action, `_cache` is its Cache-Control.
`during` runs inside the request, between reading and saving: what other requests do meanwhile; `afterwards`
when the action is done, before the response begins.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.urls import path

SECRETS = ["a secret of at least sixteen bytes"]
during: list[Callable[[], object]] = []
afterwards: list[Callable[[], object]] = []


class Deliberate(Exception):
    """What `_raise` raises."""


def act(session: Any, action: str, query: Mapping[str, str]) -> None:
    """What needs no store. `during` runs once."""
    fields = {name: value for name, value in query.items() if name[0] != "_"}
    if action in ("set", "save"):
        session.update(fields)
    elif action == "delete":
        for name in fields:
            session.pop(name, None)
    elif action == "push":
        session.setdefault("list", [])
        session["list"].append(fields["item"])
    elif action == "seen":
        session["seen"] = session.get("seen", 0) + 1
    while action != "untouched" and during:
        len(session.keys())  # it is read before the others come
        during.pop()()


def state(session: Any, action: str) -> dict[str, Any]:
    while afterwards:
        afterwards.pop()()
    if action == "untouched":
        return {}
    data = {name: value for name, value in session.items() if not name.startswith("_")}
    return {"user": session.user_id, "data": data}


def headers_of(query: Mapping[str, str]) -> dict[str, str]:
    return {"Cache-Control": query["_cache"]} if "_cache" in query else {}


def fastapi_app(store: Any, **options: Any) -> Any:
    from fastapi import BackgroundTasks, FastAPI, Request
    from fastapi.responses import JSONResponse, Response

    from shardproxy.sessions.asgi import SessionMiddleware

    app = FastAPI()
    app.add_middleware(SessionMiddleware, store=store, **options)

    @app.post("/{action}")
    @app.get("/{action}")
    async def run(request: Request, action: str, tasks: BackgroundTasks) -> Response:
        session, query = request.session, dict(request.query_params)
        act(session, action, query)
        if action == "login":
            await session.login(query["_user"], remember="_remember" in query)
        elif action == "logout":
            await session.destroy()
        elif action == "renew":
            await session.renew()
        elif action == "save":
            await session.save()
        if "_raise" in query:
            raise Deliberate
        status = int(query.get("_status", 200))
        return JSONResponse(state(session, action), status, headers_of(query))

    return app


def flask_app(store: Any, **options: Any) -> Any:
    from flask import Flask, jsonify, request, session

    from shardproxy.sessions.flask import Sessions

    app = Flask("webapps", root_path=str(Path(__file__).parent), static_folder="compat")
    app.logger.setLevel(logging.CRITICAL)
    Sessions(app, store, **options)

    @app.route("/<action>", methods=["GET", "POST"])
    def run(action: str) -> Any:
        query = request.args.to_dict()
        if action != "untouched":
            act(session, action, query)
        if action == "login":
            session.login(query["_user"], remember="_remember" in query)
        elif action == "logout":
            session.destroy()
        elif action == "renew":
            session.renew()
        elif action == "save":
            session.save()
        if "_raise" in query:
            raise Deliberate
        found = {} if action == "untouched" else state(session, action)
        return jsonify(found), int(query.get("_status", 200)), headers_of(query)

    return app


def wsgi_app(store: Any, **options: Any) -> Any:
    """Of no framework; it answers by a generator, as WSGI allows."""
    import json
    from urllib.parse import parse_qsl

    from shardproxy.sessions.wsgi import SessionMiddleware

    def app(environ: Any, start_response: Any) -> Any:
        session, action = environ["shardproxy.session"], environ["PATH_INFO"][1:]
        query = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
        act(session, action, query)
        if action == "login":
            session.login(query["_user"], remember="_remember" in query)
        elif action == "logout":
            session.destroy()
        elif action == "renew":
            session.renew()
        elif action == "save":
            session.save()
        if "_raise" in query:
            raise Deliberate
        headers = [("Content-Type", "application/json"), *headers_of(query).items()]
        body = json.dumps(state(session, action)).encode()
        start_response(f"{query.get('_status', 200)} Something", headers)
        yield body

    return SessionMiddleware(app, store, **options)


# --- Django: one for the process; what it keeps sessions in changes with the setting ---


def set_up_django() -> None:
    """Once a process: a database in memory, the users with keys 1 and 2."""
    if settings.configured:
        return
    settings.configure(
        SECRET_KEY="of the tests", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, LOGGING_CONFIG=None,
        USE_TZ=True,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3",
                               "NAME": "file:webapps?mode=memory&cache=shared"}},
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes",
                        "shardproxy.sessions.django.SessionsConfig"],
        MIDDLEWARE=["shardproxy.sessions.django.SessionMiddleware",
                    "django.contrib.auth.middleware.AuthenticationMiddleware"],
        SESSION_ENGINE="shardproxy.sessions.django", SHARDPROXY_SESSIONS={},
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    )  # fmt: skip
    django.setup()
    logging.getLogger("django").setLevel(logging.CRITICAL)
    from django.contrib.auth import get_user_model
    from django.core.management import call_command

    call_command("migrate", verbosity=0, skip_checks=True)
    for name in ("ann", "bob"):
        get_user_model().objects.create_user(name, password=name)


def _options(store: Any, options: dict[str, Any]) -> dict[str, Any]:
    return {"STORE": store, **{name.upper(): value for name, value in options.items()}}


def django_app(store: Any, **options: Any) -> Any:
    set_up_django()
    from django.core.handlers.wsgi import WSGIHandler

    settings.SHARDPROXY_SESSIONS = _options(store, options)
    handler = WSGIHandler()
    handler.get_response = _with_settings(handler, settings.SHARDPROXY_SESSIONS)
    return handler


def _with_settings(handler: Any, mine: dict[str, Any]) -> Any:
    """Several apps in one process: each has its own setting while it answers."""
    answer = handler.get_response

    def get_response(request: Any) -> Any:
        settings.SHARDPROXY_SESSIONS = mine
        return answer(request)

    return get_response


def django_asgi_app(store: Any, async_store: Any, **options: Any) -> Any:
    set_up_django()
    from django.core.handlers.asgi import ASGIHandler

    settings.SHARDPROXY_SESSIONS = mine = _options(store, options) | {"ASYNC_STORE": async_store}
    handler = ASGIHandler()
    answer = handler.get_response_async

    async def get_response(request: Any) -> Any:
        settings.SHARDPROXY_SESSIONS = mine
        request.urlconf = ASYNC_URLS
        return await answer(request)

    handler.get_response_async = get_response
    return handler


def view(request: Any, action: str) -> Any:
    from django.contrib.auth import get_user_model
    from django.contrib.auth import login as log_in
    from django.contrib.auth import logout as log_out
    from django.http import JsonResponse

    query = request.GET.dict()
    if action != "untouched":
        act(request.session, action, query)
    if action == "login":
        if "_remember" in query:
            request.session.set_expiry(30 * 86400)
        log_in(request, get_user_model().objects.get(pk=query["_user"]))
        request.session.save()
    elif action == "logout":
        log_out(request)
    elif action == "renew":
        request.session.cycle_key()
    elif action == "save":
        request.session.save()
    if "_raise" in query:
        raise Deliberate
    found = {} if action == "untouched" else state(request.session, action)
    if "_name" in query:
        found["name"] = request.user.username
    return JsonResponse(found, status=int(query.get("_status", 200)), headers=headers_of(query))


async def async_view(request: Any, action: str) -> Any:
    from django.contrib.auth import alogin, alogout, get_user_model
    from django.http import JsonResponse

    query, session = request.GET.dict(), request.session
    if action != "untouched":
        await session.ahas_key("")  # loads it, awaiting
        act(session, action, query)
    if action == "login":
        if "_remember" in query:
            await session.aset_expiry(30 * 86400)
        await alogin(request, await get_user_model().objects.aget(pk=query["_user"]))
        await session.asave()
    elif action == "logout":
        await alogout(request)
    elif action == "renew":
        await session.acycle_key()
    elif action == "save":
        await session.asave()
    if "_raise" in query:
        raise Deliberate
    found = {} if action == "untouched" else state(session, action)
    if "_name" in query:
        found["name"] = (await request.auser()).username
    return JsonResponse(found, status=int(query.get("_status", 200)), headers=headers_of(query))


urlpatterns = [path("<action>", view)]
ASYNC_URLS = (path("<action>", async_view),)
