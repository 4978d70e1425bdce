"""Who uses a node: every proxy says so on the node itself, so that none empties what another fills.

In a sorted set there: run_id → the second, of the node's clock, at which it last used it.
"""

import asyncio

from shardproxy.proxy.probe import Line

HEARTBEATS = b"shardproxy:heartbeats"
KEPT = 86400  # seconds that heartbeats stay
USED = 2.5  # probe intervals: who uses a node says so at least once in these


async def ensure_unused(line: Line, run_id: bytes, interval: float) -> None:
    """ValueError: others must be taken to use it, and why. interval: seconds between our probes."""
    now, before = await _others(line, run_id)
    if any(when > now - USED * interval for when in before.values()):
        # fresh, but maybe from before the node was lost for them as well
        await asyncio.sleep(USED * interval)
        _, after = await _others(line, run_id)
        if any(when > before.get(who, 0.0) for who, when in after.items()):
            raise ValueError("other proxies have been using it meanwhile")


async def _others(line: Line, run_id: bytes) -> tuple[float, dict[bytes, float]]:
    """The node's time, and when others have used it. Raises ValueError."""
    now, beats = await line.ask(("TIME",), ("ZRANGE", HEARTBEATS, 0, -1, "WITHSCORES"))
    if not isinstance(now, list) or not isinstance(beats, list):
        raise ValueError("it does not tell who else uses it")
    found = {who: float(when) for who, when in zip(beats[::2], beats[1::2], strict=True)}
    found.pop(run_id, None)
    return float(now[0]), found


async def tell_use(line: Line, run_id: bytes) -> None:
    """That we use it, now."""
    (now,) = await line.ask(("TIME",))
    if isinstance(now, list):
        when = int(now[0])
        # errors are its own: with a key of another type there, nobody empties it
        await line.ask(
            ("ZADD", HEARTBEATS, when, run_id),
            ("ZREMRANGEBYSCORE", HEARTBEATS, "-inf", when - KEPT),
            ("EXPIRE", HEARTBEATS, KEPT),
        )
