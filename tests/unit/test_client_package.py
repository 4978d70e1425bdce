"""The client library as a package: what it needs, where it is built and imported, what type checkers say."""

import inspect
import re
import runpy
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest

import shardproxy
from shardproxy.client import errors

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

# As on Windows, where only the core is built; and without what only the proxy needs
ELSEWHERE = """
import asyncio, importlib, os, pathlib, pkgutil, select, signal, socket, sys, tempfile, threading
import redis.asyncio  # others' modules are others' to take elsewhere
for module in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[module] = None
for name in [name for name in vars(select) if name.startswith(("epoll", "EPOLL", "poll", "POLL"))]:
    delattr(select, name)
for module, names in {
    socket: ["AF_UNIX", "SO_REUSEPORT", "TCP_KEEPIDLE", "TCP_USER_TIMEOUT", "SO_RCVTIMEO", "SO_SNDTIMEO"],
    os: ["register_at_fork", "fork", "getuid", "setsid", "sched_getaffinity"],
    signal: ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM"],
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
sys.platform = "win32"
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("shardproxy.dataplane", "shardproxy.proxy", "shardproxy.handlers")) or name in (
            "uvloop", "structlog", "starlette", "uvicorn", "prometheus_client", "rich"
        ):
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
before = threading.active_count()
from shardproxy import AsyncShardedRedis, PartialError, ShardedRedis
for part in ("client", "config", "core", "core.memcached", "core.sessions"):
    package = importlib.import_module(f"shardproxy.{part}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"shardproxy.{part}.{module.name}")
for name in ("store", "asgi", "wsgi"):
    importlib.import_module(f"shardproxy.sessions.{name}")
def no_socket(*args, **options):
    raise AssertionError("a socket")
socket.socket.__init__ = no_socket
client = ShardedRedis({"a": "redis://h:1", "b": "redis://h:2"}, probe=True)
AsyncShardedRedis({"a": "redis://h:1"}, probe=True)
ShardedRedis.from_url("shardproxy://h:1")
AsyncShardedRedis.from_url("shardproxy://h:1")
assert client.locate("x").shard in "ab" and threading.active_count() == before
"""
ON_FILES = """
path = pathlib.Path(tempfile.mkdtemp()) / "shardproxy.toml"
path.write_text('[pool.main]\\npassword = "p"\\n[pool.main.shards]\\na = "redis://h:1"\\n')
path.chmod(0o666)  # as every file is there
ShardedRedis.from_config(path)
"""

SYNC = """
from redis.exceptions import ConnectionError

from shardproxy import ConfigError, PartialError, ShardedRedis
from shardproxy.client.errors import ShardError, UnknownOutcomeError
from shardproxy.client.health import Transition


def told(change: Transition) -> None:
    print(change.address, change.shards, change.new)


def main() -> None:
    client = ShardedRedis(
        {"a": "redis://h:1", "b": {"primary": "redis://h:2", "weight": 2}},
        pool={"kind": "cache", "on_shard_down": "rehash"},
        on_transition=told,
        probe=True,
        telemetry=True,
        decode_responses=True,
    )
    try:
        other = ShardedRedis.from_config("shardproxy.toml", protocol=3)
    except ConfigError as error:
        raise SystemExit(str(error.mistakes[0].allowed)) from None
    with client, other, ShardedRedis.from_url("shardproxy://h:6380", on_transition=told) as following:
        following.ping()
        client.set("key", 1, ex=10)
        count: int = client.incr("key")
        client.hset("hash", mapping={"f": 1})
        pipe = client.pipeline(transaction=False)
        pipe.get("key")
        pipe.set("key", 1)
        pipe.expire("key", 10)
        results: list[object] = pipe.execute(raise_on_error=False)
        found = client.locate("key")
        shard: str = found.shard
        print(found.address, found.home, found.state == "up")
        info = client.on_shard(shard).info()
        sizes: dict[str, int] = client.on_all("DBSIZE")
        print(count, results, info, sizes, client.topology.generation)
        try:
            client.mget("a", "b")
        except PartialError as error:
            for key, reason in error.errors.items():
                print(key, reason, error.results.get(key))
        except UnknownOutcomeError as error:
            print(error.shard, error.address)
        except (ShardError, ConnectionError):
            pass
        with client.lock("lock", timeout=5, allow_cache_pool=True) as lock:
            print(lock.owned())
        messages = client.pubsub(ignore_subscribe_messages=True)
        messages.subscribe("channel")
        script = client.register_script("return 1")
        print(script(keys=["key"]), messages.get_message(timeout=1.0))
        for name in client.scan_iter(match="user:*"):
            print(name)
        client.apply(other.topology)


main()
"""

ASYNCIO = """
import asyncio

from shardproxy import AsyncShardedRedis, PartialError
from shardproxy.client.aio_pipeline import AsyncShardedPipeline
from shardproxy.client.errors import ShardDownError
from shardproxy.client.health import Transition
from shardproxy.client.telemetry import Telemetry


def told(change: Transition) -> None:
    print(change.address, change.reason)


async def take(pipe: AsyncShardedPipeline) -> None:
    stock = await pipe.get("{item}:stock")
    pipe.multi()
    pipe.set("{item}:stock", int(stock or 3) - 1)


async def main() -> None:
    async with (
        AsyncShardedRedis(
            {"a": "redis://h:1", "b": "memcached://h:2"},
            pool={"timeout": "500ms"},
            on_transition=told,
            probe=True,
            telemetry=Telemetry(),
            pipelining=False,
            decode_responses=True,
        ) as client,
        AsyncShardedRedis.from_config("shardproxy.toml", socket_timeout=1.0) as other,
        AsyncShardedRedis.from_url("shardproxy://h:6380") as following,
    ):
        await following.ping()
        await client.set("key", 1, ex=10)
        value = await client.get("key")
        count: int = await client.incr("key")
        many = await asyncio.gather(*(client.get(f"user:{n}") for n in range(3)))
        async with client.pipeline(transaction=False) as pipe:
            pipe.get("key")
            results: list[object] = await pipe.execute()
        await client.transaction(take, "{item}:stock")
        print(value, count, many, results, client.locate("key").shard)
        sizes: dict[str, int] = await client.on_all("DBSIZE")
        info = await client.on_shard("a").info()
        print(sizes, info)
        try:
            await client.mget("a", "b")
        except PartialError as error:
            print(error.results, error.errors)
        except ShardDownError as error:
            print(error.shard, error.address)
        async with client.pubsub(ignore_subscribe_messages=True) as messages:
            await messages.subscribe("channel")
            print(await messages.get_message(timeout=1.0))
        async with client.lock("lock", timeout=5):
            pass
        async for name in client.scan_iter(match="user:*"):
            print(name)
        client.apply(other.topology)


asyncio.run(main())
"""


# Calls whose types are compared with those of redis-py's own client
CALLS = """
get("k") set("k", 1) incr("k") mget("a", "b") mset({"a": 1}) delete("a") exists("a") expire("a", 1) ttl("a")
hget("h", "f") hgetall("h") hset("h", "f", 1) lpush("l", 1) lrange("l", 0, -1) lpop("l") blpop("l", 1)
sadd("s", 1) smembers("s") zadd("z", {"a": 1}) zrange("z", 0, -1) zscore("z", "a") scan_iter() hscan_iter("h")
keys() dbsize() flushall() ping() eval("return 1", 0) publish("c", 1) xadd("s", {"a": 1}) xread({"s": 0})
lock("l") pipeline() pipeline().execute() pipeline().get("a") pipeline().watch("a") transaction(print)
register_script("x") register_script("x")(keys=["a"]) script_load("x") pubsub_numsub("c") scan() info()
"""
KINDS = {"redis.Redis": "ShardedRedis", "redis.asyncio.Redis": "AsyncShardedRedis"}


@pytest.mark.parametrize("program", [ELSEWHERE, ELSEWHERE + ON_FILES], ids=["imports", "a file"])
def test_it_is_imported_where_only_the_core_is_built(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("platform", "parts", "flags"),
    [("linux", {"core", "dataplane"}, True), ("darwin", {"core"}, True), ("win32", {"core"}, False)],
)
def test_what_is_compiled(
    platform: str, parts: set[str], flags: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """setup.py, without compiling."""
    made: dict[str, Any] = {}
    build: Any = types.ModuleType("Cython.Build")
    build.cythonize = lambda modules, **options: modules
    monkeypatch.setitem(sys.modules, "Cython.Build", build)
    monkeypatch.setattr("setuptools.setup", lambda **options: made.update(options))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("SHARDPROXY_BUILT", raising=False)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    assert {module.name.split(".")[1] for module in made["ext_modules"]} == parts
    assert {bool(module.extra_compile_args) for module in made["ext_modules"]} == {flags}


def test_what_pip_brings_along() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=!~\[; ]", each, maxsplit=1)[0] for each in project["dependencies"]}
    assert names == {"redis", "hiredis", "xxhash", "click", "msgspec"}
    assert project["optional-dependencies"]["otel"]


def test_a_users_programs_are_checked_strictly(tmp_path: Path) -> None:
    programs = {"in_threads.py": SYNC, "in_a_loop.py": ASYNCIO}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=.mypy_cache"]
    command += [str(tmp_path / name) for name in programs]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_types_are_redis_pys(tmp_path: Path) -> None:
    """The same for commands; for the others a class of ours, and Any only where redis-py says no more."""
    calls = re.findall(r"\S.*?(?= [a-z_]+\(|\n)", CALLS)
    assert len(calls) == 43
    lines = ["import redis.asyncio", "from shardproxy import AsyncShardedRedis, ShardedRedis"]
    clients = [kind for pair in KINDS.items() for kind in pair]
    lines += [f"def made{number}() -> {kind}: ..." for number, kind in enumerate(clients)]
    first = len(lines) + 1
    lines += [f"reveal_type(made{number}().{call})" for call in calls for number in range(4)]
    program = tmp_path / "calls.py"
    program.write_text("\n".join(lines))
    command = [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir=.mypy_cache", str(program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = dict(re.findall(r"calls\.py:(\d+): note: Revealed type is \"(.*)\"", done.stdout))
    types = [said[str(first + number)] for number in range(4 * len(calls))]
    assert len(types) == 4 * len(calls), done.stdout
    for number in range(0, len(types), 2):
        theirs, ours = types[number : number + 2]
        call = calls[number // 4]
        if "shardproxy" not in ours and "Any" not in theirs:
            assert ours.replace("typing.Coroutine[Any, Any, ", "typing.Awaitable[") == theirs, call
        assert "Any" in theirs or "Any" not in ours.replace("Coroutine[Any, Any, ", ""), (call, theirs, ours)


def test_the_pages_name_every_option_and_every_exception() -> None:
    text = "".join((DOCS / f"{page}.md").read_text() for page in ("client", "client-asyncio"))
    made = (shardproxy.ShardedRedis, shardproxy.AsyncShardedRedis)
    calls = [call for each in made for call in (each.__init__, each.from_config, each.from_url)]
    options = {
        name
        for call in calls
        for name, option in inspect.signature(call).parameters.items()
        if option.kind is not option.VAR_KEYWORD and name != "self"
    }
    raised = {
        name
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, Exception) and each.__module__ == errors.__name__
    }
    assert {"pool", "probe", "telemetry", "pipelining"} < options and "PartialError" in raised
    missing = [name for name in sorted(options | raised) if not re.search(rf"`[^`]*\b{name}\b[^`]*`", text)]
    assert not missing


@pytest.mark.parametrize(
    ("missing", "wanted"), [("structlog", "shardproxy[proxy]"), ("shardproxy.dataplane", "Linux")]
)
def test_the_proxy_without_what_it_needs_says_so(missing: str, wanted: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from shardproxy import Proxy"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and wanted in done.stderr.splitlines()[-1], done.stderr
