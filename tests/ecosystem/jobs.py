"""The jobs: client, job, server. A server is a plain Redis, or a proxy in front of one node or of three.

On a plain Redis a job must come out right, or the job is wrong. NEVER is what fails through the proxy,
strictly: a job that comes out right and is listed there fails the test, so that its line is deleted.
"""

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.ecosystem.install import HERE, NODE_MODULES, PYTHON
from tests.servers import ProxyProcess, RedisNode, redis_nodes, shards_of, toml

NODE_JOBS = ("everyday", "transaction", "watch", "script", "blocking", "pubsub", "scan", "databases")
JOBS: dict[str, tuple[str, ...]] = {
    "ioredis.cjs": NODE_JOBS,
    "node_redis.cjs": NODE_JOBS,
    "redis_cli.py": ("everyday", "pipe", "eval", "scan", "databases", "pubsub"),
    "redis_py_lock.py": ("lock",),
    "celery_job.py": ("job", "job_tagged"),
    "rq_job.py": ("job",),
    "django_redis_job.py": ("cache", "pattern", "lock", "clear"),
    "flask_caching_job.py": ("cache", "clear"),
}

# (program, job) → on how many nodes it fails, and why; on a Redis Cluster it fails, too
NEVER: dict[tuple[str, str], tuple[str, str]] = {
    ("celery_job.py", "job"): (
        "three",
        "kombu asks for several queues in one MULTI; job_tagged says what to do",
    ),
    ("rq_job.py", "job"): ("three", "RQ's transactions have keys of several jobs, queues and workers"),
    ("django_redis_job.py", "cache"): ("three", "set_many is one MULTI over all keys"),
    ("django_redis_job.py", "pattern"): ("three", "delete_pattern is one MULTI over all keys that it found"),
}

CASES = [(program, job) for program, jobs in JOBS.items() for job in jobs]


def cases() -> Iterator[object]:
    for server in ("plain", "one", "three"):
        for program, job in CASES:
            marks = [
                pytest.mark.xfail(strict=True, reason=reason)
                for which, reason in [NEVER.get((program, job), ("", ""))]
                if server in which.split()
            ]
            yield pytest.param(server, program, job, marks=marks, id=f"{server}-{program}-{job}")


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    with (
        RedisNode() as plain,
        redis_nodes(1) as one,
        redis_nodes(3) as three,
        ProxyProcess(toml(shards_of(one))) as first,
        ProxyProcess(toml(shards_of(three))) as second,
    ):
        yield {"plain": plain.port, "one": first.port, "three": second.port}


@pytest.mark.parametrize(("server", "program", "job"), list(cases()))
def test_a_job_comes_out_right(server: str, program: str, job: str, ports: dict[str, int]) -> None:
    runner = ["node"] if program.endswith(".cjs") else [str(PYTHON)]
    done = subprocess.run(
        [*runner, str(HERE / "clients" / program), str(ports[server]), job],
        env=os.environ | {"NODE_PATH": str(NODE_MODULES), "PYTHONPATH": str(HERE / "clients")},
        capture_output=True,
        text=True,
        timeout=45,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
