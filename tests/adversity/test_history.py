"""What many clients are told while nodes die, hang and return is consistent with each pool's policy.

A fixed number of troubles, one of each kind; `python -m tests.adversity.chaos`
goes on for as long as one likes.
"""

import pytest
from chaos import POOLS, Stage, stage


@pytest.mark.parametrize(
    ("pool", "workers", "protocol"),
    [
        *((pool, 1, "redis") for pool in POOLS),
        *(("invalidate", 2, "redis"), ("flush", 2, "redis")),
        *(("flush", 1, "memcached"), ("invalidate", 2, "mixed")),
    ],
)
def test_every_outcome_is_consistent_with_the_policy(pool: str, workers: int, protocol: str) -> None:
    with stage(pool, workers, workers, protocol) as made:
        run, mistakes = made.round("key", 12, pool != "durable", len(Stage.KINDS))
        assert not mistakes, "\n".join([*made.happened, *mistakes[:20]])
    # else the run has shown nothing
    assert run.seen["ok"] > 1000, run.seen
    assert run.seen.total() > run.seen["ok"], run.seen
    assert run.history.emptied
