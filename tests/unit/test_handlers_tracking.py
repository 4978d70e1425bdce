"""CLIENT TRACKING: what is left to a task of its own ends well, whatever the nodes do."""

import asyncio
from types import SimpleNamespace
from typing import Any

from shardproxy.handlers.tracking import Options, Tracker


async def test_a_node_that_is_not_there_in_time_after_hello_is_no_error() -> None:
    """The clients' protocol changes while a node hangs: nobody waits for what comes of it."""
    pool = SimpleNamespace(timeout=0.01)
    server = SimpleNamespace(topology=SimpleNamespace(pools=[pool]))
    kept: list[Any] = []
    home = SimpleNamespace(server=server, keep=kept.append)
    client = SimpleNamespace(
        proto=2, tracking=True, tracked=None, track=lambda *_: None, track_everywhere=lambda: False
    )
    Tracker(home, client, Options(bcast=True)).proto_changed()  # type: ignore[arg-type]  # fakes
    assert len(kept) == 1
    assert await asyncio.wait_for(kept[0], 30) is None
