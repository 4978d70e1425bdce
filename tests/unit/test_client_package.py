"""The client library as a package: what it imports, and what type checkers make of it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# As on macOS and Windows, where only the core is built; and without what only the proxy needs
ELSEWHERE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("shardproxy.dataplane", "shardproxy.proxy", "shardproxy.handlers")) or name in (
            "uvloop", "structlog", "starlette", "uvicorn", "prometheus_client", "rich", "fcntl", "resource"
        ):
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
import threading
before = threading.active_count()
from shardproxy import PartialError, ShardedRedis
client = ShardedRedis({"a": "redis://h:1", "b": "redis://h:2"})
assert client.locate("x").shard in "ab" and threading.active_count() == before
print(len([name for name in sys.modules if name.startswith("shardproxy.")]))
"""

PROGRAM = """
from shardproxy import PartialError, ShardedRedis
from shardproxy.client.errors import ShardError, UnknownOutcomeError
from shardproxy.client.health import Transition


def told(change: Transition) -> None:
    print(change.address, change.shards, change.new)


def main() -> None:
    client = ShardedRedis(
        {"a": "redis://h:1", "b": {"primary": "redis://h:2", "weight": 2}},
        pool={"kind": "cache", "on_shard_down": "rehash"},
        on_transition=told,
        decode_responses=True,
    )
    other = ShardedRedis.from_config("shardproxy.toml", protocol=3)
    with client, other:
        client.set("key", 1, ex=10)
        count: int = client.incr("key")
        client.hset("hash", mapping={"f": 1})
        pipe = client.pipeline(transaction=False)
        pipe.get("key")
        results: list[object] = pipe.execute()
        shard: str = client.locate("key").shard
        info = client.on_shard(shard).info()
        sizes: dict[str, int] = client.on_all("DBSIZE")
        print(count, results, info, sizes, client.topology.generation)
        try:
            client.mget("a", "b")
        except PartialError as error:
            print(error.results, error.errors)
        except UnknownOutcomeError as error:
            print(error.shard, error.address)
        except ShardError:
            pass
        with client.lock("lock", timeout=5, allow_cache_pool=True) as lock:
            print(lock.owned())
        messages = client.pubsub(ignore_subscribe_messages=True)
        messages.subscribe("channel")
        script = client.register_script("return 1")
        print(script(keys=["key"]), messages.get_message(timeout=1.0))
        client.apply(other.topology)


main()
"""


def test_it_is_imported_where_only_the_core_is_built() -> None:
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_users_program_is_checked_strictly(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--cache-dir=.mypy_cache",
        str(program),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
