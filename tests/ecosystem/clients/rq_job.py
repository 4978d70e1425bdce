"""RQ: `rq_job.py PORT job`. Jobs, one that depends on another, one that fails, a worker until all is done."""

import os
import subprocess
import sys

import redis
from rq import Queue
from rq_tasks import add, fail

connection = redis.Redis(port=int(sys.argv[1]))
queue = Queue(connection=connection)
queue.empty()
first = queue.enqueue(add, 2, 3)
after = queue.enqueue(add, 10, 20, depends_on=first)
bad = queue.enqueue(fail)
assert queue.count == 2
done = subprocess.run(
    [sys.executable, "-m", "rq.cli", "worker", "--burst", "--url", f"redis://127.0.0.1:{sys.argv[1]}/0"],
    cwd=os.path.dirname(__file__), capture_output=True, text=True, timeout=60,
)  # fmt: skip
try:
    for job in (first, after, bad):
        job.refresh()
    assert (first.return_value(), after.return_value()) == (5, 30)
    assert bad.is_failed and "on purpose" in bad.latest_result().exc_string
    assert queue.count == 0 and queue.failed_job_registry.count == 1
except BaseException:
    print(done.stdout[-2000:], done.stderr[-3000:])
    raise
