"""Celery with Redis as broker and result back end: `celery_job.py PORT job|job_tagged`.

A worker of its own; results, a chain, a chord, retries, a delayed task, the worker's remote control.
"""

import os
import subprocess
import sys
import tempfile

PORT, JOB = sys.argv[1:3]
os.environ["CELERY_PORT"], os.environ["CELERY_PREFIX"] = (
    PORT,
    "{celery}:" if JOB == "job_tagged" else f"c{PORT}:",
)

from celery import chain, chord, group  # noqa: E402  # the application reads the environment
from celery_app import add, app, stubborn, total  # noqa: E402

with tempfile.TemporaryFile() as log:
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "celery_app", "worker", "-P", "threads", "-c", "2"],
        cwd=os.path.dirname(__file__), stdout=log, stderr=log,
    )  # fmt: skip
    try:
        assert add.delay(2, 3).get(timeout=20) == 5
        assert chain(add.s(1, 2), add.s(10)).delay().get(timeout=10) == 13
        assert group(add.s(n, n) for n in range(20)).delay().get(timeout=10) == [2 * n for n in range(20)]
        assert chord([add.s(n, n) for n in range(5)], total.s()).delay().get(timeout=15) == 20
        assert stubborn.delay().get(timeout=15) == 2
        assert add.apply_async((1, 1), countdown=0.2).get(timeout=10) == 2
        result = add.delay(4, 4)
        assert result.get(timeout=10) == 8
        result.forget()
        assert app.control.ping(timeout=5), "no worker answered"
        assert len(app.control.inspect(timeout=5).registered() or {}) == 1
    except BaseException:
        log.seek(0)
        print(log.read().decode()[-4000:])
        raise
    finally:
        worker.terminate()
        try:
            worker.wait(10)
        except subprocess.TimeoutExpired:
            worker.kill()
