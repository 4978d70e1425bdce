"""The example in Django, in one file: `uvicorn django_app:app`."""

import redis
import redis.asyncio
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.urls import path
from page import REDIS, SECRETS, TRUSTED, page, state

from shardproxy.sessions import AsyncSessionStore, SessionStore

settings.configure(
    SECRET_KEY=SECRETS[0],
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["shardproxy.sessions.django.SessionsConfig"],
    MIDDLEWARE=["shardproxy.sessions.django.SessionMiddleware"],
    SESSION_ENGINE="shardproxy.sessions.django",
    SHARDPROXY_SESSIONS={
        "STORE": SessionStore(redis.Redis.from_url(REDIS), SECRETS),
        "ASYNC_STORE": AsyncSessionStore(redis.asyncio.from_url(REDIS), SECRETS),
        "TRUSTED_PROXIES": TRUSTED,
    },
)


async def home(request: HttpRequest) -> HttpResponse:
    session = await request.session.abound()
    session.incr("visits")
    return HttpResponse(page("Django", session.user_id, session))


async def show(request: HttpRequest) -> JsonResponse:
    session = await request.session.abound()
    return JsonResponse(state("Django", session.user_id, session))


async def login(request: HttpRequest) -> HttpResponse:
    # with django.contrib.auth it is alogin(request, user), as ever
    await request.session.alogin(request.POST["user"])
    return HttpResponseRedirect("/", status=303)


async def logout(request: HttpRequest) -> HttpResponse:
    await request.session.aflush()
    return HttpResponseRedirect("/", status=303)


async def cart(request: HttpRequest) -> HttpResponse:
    session = await request.session.abound()
    session.append("cart", request.POST["item"])
    return HttpResponseRedirect("/", status=303)


urlpatterns = [
    path("", home),
    path("state", show),
    path("login", login),
    path("logout", logout),
    path("cart", cart),
]
app = get_asgi_application()
