"""Sessions beside Flask-Session and starsessions: `python -m tests.bench.sessions`. About a minute.

One Redis, the same data, everything as shipped. A request goes through the whole app, without a server: CPU
is this process's for a request that reads and writes its session, less that of the same app
without sessions. Round trips are counted where redis-py reads, writes by the node. Of the race table, all ten
requests have read the session before any of them saves.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from flask import Flask, session
from flask.sessions import SecureCookieSession, SessionInterface

sys.path.insert(0, str(Path(__file__).parent.parent))
from servers import RedisNode

from shardproxy.sessions import AsyncSessionStore, SessionStore
from shardproxy.sessions.asgi import SessionMiddleware
from shardproxy.sessions.flask import Sessions
from tests.bench.report import markdown

SECRETS = ["a secret of at least sixteen bytes"]
TOGETHER = 10
DATA = {
    "csrf": "e5b1f0c7d2a94c53b7c2",
    "locale": "de_AT",
    "cart": [{"sku": f"A-{number}", "count": number} for number in range(5)],
    "last_seen": ["/shop/tea", "/shop/cups", "/checkout"],
    "flags": {"beta": True, "dark": False},
    "n": 0,
}


def act(store: Any, path: str) -> None:
    """One request's work: /seed, /read, /set/FIELD/VALUE, /del/FIELD, /count, /append/ITEM, /end."""
    _, what, *rest = path.split("/")
    if what == "seed":
        store.update(DATA)
    elif what == "read":
        store.get("n")
    elif what == "set":
        store[rest[0]] = rest[1]
    elif what == "del":
        store.pop(rest[0], None)
    elif what == "count":
        if hasattr(store, "incr"):
            store.incr("n")
        else:
            store["n"] = store.get("n", 0) + 1
    elif what == "append":
        if hasattr(store, "append"):
            store.append("last_seen", rest[0])
        else:
            store["last_seen"] = [*store.get("last_seen", []), rest[0]]


# --- who is compared ---


class Contender:
    """An app with one kind of sessions. cookie: of its browser, "name=value"."""

    name = ""
    cookie = ""

    def ask(self, path: str) -> str:
        """One request; the body."""
        raise NotImplementedError

    def together(self, paths: Sequence[str]) -> None:
        """All at once: every one has read before one saves."""
        raise NotImplementedError

    def _keep(self, headers: Sequence[tuple[str, str]]) -> None:
        for name, value in headers:
            if name.lower() == "set-cookie":
                self.cookie = value.split(";")[0]


class Nothing(SessionInterface):
    """Flask without sessions: what is subtracted."""

    def open_session(self, app: Flask, request: Any) -> SecureCookieSession:
        return SecureCookieSession()

    def save_session(self, app: Flask, session: Any, response: Any) -> None:
        pass


class OnFlask(Contender):
    def __init__(self, port: int) -> None:
        self.app = Flask(self.name)
        self.barrier: threading.Barrier | None = None
        self.client = redis.Redis(port=port)
        self.install()

        @self.app.route("/<path:path>")
        def view(path: str) -> str:
            if self.barrier is not None:
                len(session)
                self.barrier.wait(10)
            act(session, f"/{path}")
            if path == "end":
                self.end()
            return repr({**session}) if path == "show" else "ok"

    def install(self) -> None:
        self.app.session_interface = Nothing()

    def end(self) -> None:
        session.clear()

    def ask(self, path: str) -> str:
        environ = {
            "REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "localhost", "SERVER_PORT": "443",
            "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "localhost", "HTTP_COOKIE": self.cookie,
            "REMOTE_ADDR": "127.0.0.1", "wsgi.url_scheme": "https", "HTTP_USER_AGENT": "bench",
        }  # fmt: skip
        headers: list[tuple[str, str]] = []
        body = b"".join(self.app.wsgi_app(environ, lambda status, got, *rest: headers.extend(got)))  # type: ignore[arg-type,return-value]
        self._keep(headers)
        return body.decode()

    def together(self, paths: Sequence[str]) -> None:
        self.barrier = threading.Barrier(len(paths))
        kept = self.cookie
        threads = [threading.Thread(target=self.ask, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.barrier, self.cookie = None, kept


class FlaskBare(OnFlask):
    name = "Flask, no sessions"


class FlaskSession(OnFlask):
    name = "Flask-Session"

    def install(self) -> None:
        import flask_session

        self.app.config.update(SESSION_TYPE="redis", SESSION_REDIS=self.client)
        flask_session.Session(self.app)


class OursOnFlask(OnFlask):
    name = "shardproxy, Flask"

    def install(self) -> None:
        Sessions(self.app, SessionStore(self.client, SECRETS))

    def end(self) -> None:
        session.destroy()  # type: ignore[attr-defined]


class OnAsgi(Contender):
    loop = asyncio.new_event_loop()

    def __init__(self, port: int) -> None:
        self.waiting: list[asyncio.Future[None]] | None = None
        self.client = redis.asyncio.Redis(port=port)
        self.app = self.wrapped(self._app)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        store, path = scope.get("session", {}), scope["path"]
        if self.waiting is not None:
            len(store)
            mine = self.loop.create_future()
            self.waiting.append(mine)
            await mine
        act(store, path)
        if path == "/end":
            await self.end(store)
        body = repr({**store}) if path == "/show" else "ok"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body.encode()})

    def wrapped(self, app: Any) -> Any:
        return app

    async def end(self, store: Any) -> None:
        store.clear()

    async def _ask(self, path: str) -> str:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "GET", "path": path, "scheme": "https", "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"cookie", self.cookie.encode())], "root_path": "",
            "client": ("127.0.0.1", 1), "server": ("localhost", 443),
        }  # fmt: skip
        await self.app(scope, None, send)
        self._keep([(name.decode(), value.decode()) for name, value in sent[0]["headers"]])
        return str(sent[1]["body"].decode())

    def ask(self, path: str) -> str:
        return self.loop.run_until_complete(self._ask(path))

    def together(self, paths: Sequence[str]) -> None:
        async def all_of_them() -> None:
            self.waiting = []
            asked = [asyncio.ensure_future(self._ask(path)) for path in paths]
            while len(self.waiting) < len(paths):
                await asyncio.sleep(0.001)
            for each in self.waiting:
                each.set_result(None)
            await asyncio.gather(*asked)

        kept = self.cookie
        self.loop.run_until_complete(all_of_them())
        self.waiting, self.cookie = None, kept


class AsgiBare(OnAsgi):
    name = "ASGI, no sessions"


class Starsessions(OnAsgi):
    name = "starsessions"

    def wrapped(self, app: Any) -> Any:
        import starsessions
        from starsessions.stores.redis import RedisStore

        return starsessions.SessionMiddleware(
            starsessions.SessionAutoloadMiddleware(app), store=RedisStore(connection=self.client),
            lifetime=1800, rolling=True,
        )  # fmt: skip


class OursOnAsgi(OnAsgi):
    name = "shardproxy, ASGI"

    def wrapped(self, app: Any) -> Any:
        return SessionMiddleware(app, AsyncSessionStore(self.client, SECRETS))

    async def end(self, store: Any) -> None:
        await store.destroy()


PAIRS = [(FlaskBare, FlaskSession, OursOnFlask), (AsgiBare, Starsessions, OursOnAsgi)]


# --- what is measured ---


def cpu(contender: Contender, requests: int, path: str) -> float:
    """Microseconds of this process a request; # in the path: another each time."""
    began = time.process_time()
    for number in range(requests):
        contender.ask(path.replace("#", str(number)))
    return (time.process_time() - began) / requests * 1e6


def compared(trio: Sequence[Contender], rounds: int, requests: int, path: str) -> list[str]:
    """Of the peer and of ours, without the bare app's; ours with the ratio. Rounds alternate."""
    samples = [[cpu(each, requests, path) for each in trio] for _ in range(rounds)]
    peer, ours = (statistics.median(sample[number] - sample[0] for sample in samples) for number in (1, 2))
    ratio = statistics.median((ours - bare) / (peer - bare) for bare, peer, ours in samples)
    return [f"{peer:.0f}", f"{ours:.0f} ({ratio:.2f})"]


def round_trips(work: Callable[[], object]) -> int:
    """How often redis-py waits for an answer while that runs."""
    count = 0
    sync, asynchronous = redis.connection.AbstractConnection, redis.asyncio.connection.AbstractConnection
    read, aread = sync.read_response, asynchronous.read_response

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return read(self, *args, **options)

    async def acounted(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return await aread(self, *args, **options)

    sync.read_response, asynchronous.read_response = counted, acounted  # type: ignore[method-assign]
    try:
        work()
    finally:
        sync.read_response, asynchronous.read_response = read, aread  # type: ignore[method-assign]
    return count


WRITES = ("set", "hset", "pexpire", "expire", "setex", "hdel", "zadd")


def writes(node: redis.Redis, work: Callable[[], object]) -> int:
    """Commands that write, inside scripts too, that the node runs meanwhile."""
    node.config_resetstat()
    work()
    stats = node.info("commandstats")
    return sum(stats[f"cmdstat_{name}"]["calls"] for name in WRITES if f"cmdstat_{name}" in stats)


def payload(node: redis.Redis) -> int:
    """Bytes stored for the one session that there is: names of fields and values."""
    total = 0
    for key in node.scan_iter():
        if node.type(key) == b"hash":
            total += sum(len(name) + len(value) for name, value in node.hgetall(key).items())
        elif node.type(key) == b"string":
            total += int(node.strlen(key))
    return total


# --- races: what survives ---


def shown(contender: Contender) -> dict[str, Any]:
    found: dict[str, Any] = eval(contender.ask("/show"))  # what repr has made, here
    return found


def different_fields(contender: Contender) -> str:
    contender.together([f"/set/f{number}/x" for number in range(TOGETHER)])
    return f"{sum(f'f{number}' in shown(contender) for number in range(TOGETHER))} of {TOGETHER}"


def same_field(contender: Contender) -> str:
    contender.together([f"/set/same/{number}" for number in range(TOGETHER)])
    after = shown(contender)
    return "one of them, the rest whole" if "same" in after and "cart" in after else "damaged"


def counting(contender: Contender) -> str:
    contender.together(["/count"] * TOGETHER)
    return f"counts {shown(contender)['n']}"


def appending(contender: Contender) -> str:
    contender.together([f"/append/i{number}" for number in range(TOGETHER)])
    return f"{sum(item[0] == 'i' for item in shown(contender)['last_seen'])} of {TOGETHER}"


def delete_against_set(contender: Contender) -> str:
    half = TOGETHER // 2
    contender.together([*["/del/cart"] * half, *(f"/set/f{number}/x" for number in range(half))])
    after = shown(contender)
    kept = sum(f"f{number}" in after for number in range(half))
    return f"{'comes back' if 'cart' in after else 'stays deleted'}; {kept} of {half} set"


def destroy_against_save(contender: Contender) -> str:
    contender.together(["/end", *(f"/set/f{number}/x" for number in range(TOGETHER - 1))])
    return "logged in again" if shown(contender) else "logged out"


RACES = {
    "10 set a field each": different_fields,
    "10 set the same field": same_field,
    "10 count up": counting,
    "10 append to a list": appending,
    "5 delete a field, 5 set others": delete_against_set,
    "1 logs out, 9 save": destroy_against_save,
}


def race(kind: type[Contender], port: int, node: redis.Redis, run: Callable[[Any], str]) -> str:
    """The worst of five: who saves last is chance."""
    results: dict[str, int] = {}
    for _ in range(5):
        node.flushall()
        contender = kind(port)  # type: ignore[call-arg]
        contender.ask("/seed")
        found = run(contender)
        results[found] = results.get(found, 0) + 1
        close(contender)
    return " / ".join(sorted(results))


def close(contender: Any) -> None:
    done = contender.client.close() if isinstance(contender, OnFlask) else contender.client.aclose()
    if isinstance(done, Awaitable):
        OnAsgi.loop.run_until_complete(done)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.sessions", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--requests", type=int, default=1000, help="of a sample")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with RedisNode() as server, redis.Redis(port=server.port) as node:
        costs = [["", "CPU µs: read", "read and write", "round trips: read", "read and write",
                  "writes of 10 reads", "bytes stored"]]  # fmt: skip
        for kinds in PAIRS:
            trio = [kind(server.port) for kind in kinds]
            for each in trio:
                each.ask("/seed")
                cpu(each, options.requests // 4, "/set/n/#")
            spent = {
                path: compared(trio, options.rounds, options.requests, path) for path in ("/read", "/set/n/#")
            }
            for number, each in enumerate(trio[1:]):
                node.flushall()
                each.cookie = ""
                each.ask("/seed")
                each.ask("/read")
                costs.append([
                    each.name, *(column[number] for column in spent.values()),
                    str(round_trips(lambda each=each: each.ask("/read"))),  # type: ignore[misc]
                    str(round_trips(lambda each=each: each.ask("/set/n/1"))),  # type: ignore[misc]
                    str(writes(node, lambda each=each: [each.ask("/read") for _ in range(10)])),  # type: ignore[misc]
                    str(payload(node)),
                ])  # fmt: skip
            for each in trio:
                close(each)
        print(markdown(costs[0], costs[1:]), "\n")
        racing = [kind for kinds in PAIRS for kind in kinds[1:]]
        rows = [
            [name, *(race(kind, server.port, node, run) for kind in racing)] for name, run in RACES.items()
        ]
        print(markdown(["", *(kind.name for kind in racing)], rows))


if __name__ == "__main__":
    main()
