"""How a node is doing: one state machine a node, fed with evidence and probes; it decides, others act."""

import msgspec


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What `[pool.NAME.health]` says, with the pool's own timeout. Times are seconds."""

    probe: str = "ping"
    interval: float = 5.0
    timeout: float = 2.0
    failures: int = 3
    successes: int = 2
    consecutive: int = 3
    failure_rate: float = 0.5
    slow_rate: float = 0.5
    slow_call: float = 0.5
    window: float = 10.0
    minimum: int = 20
    wait: float = 30.0
    wait_most: float = 300.0
    fail_open_ratio: float = 0.5
    max_memory_percent: float = 1.0
