"""The Celery application of celery_job.py: broker and result back end are the Redis at CELERY_PORT.

CELERY_PREFIX goes before every key: with a hash tag in it all are on one shard, which several nodes need.
"""

import os

from celery import Celery

port, prefix = os.environ["CELERY_PORT"], os.environ["CELERY_PREFIX"]
app = Celery("jobs", broker=f"redis://127.0.0.1:{port}/0", backend=f"redis://127.0.0.1:{port}/0")
app.conf.broker_transport_options = {"global_keyprefix": prefix, "fanout_prefix": True}
app.conf.result_backend_transport_options = {"global_keyprefix": prefix}
app.conf.broker_connection_retry_on_startup = True


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(bind=True, max_retries=3)
def stubborn(self) -> int:
    """Fails twice; its retries go through the broker with a delay."""
    if self.request.retries < 2:
        raise self.retry(countdown=0.1)
    return self.request.retries
