"""Sessions for web applications behind a load balancer: docs/sessions.md.

store       SessionStore, AsyncSessionStore, and their twins in memory
executors   running an operation's calls: a client that blocks, one that awaits, a dictionary
"""

from shardproxy.core.sessions.errors import (
    BadSecrets,
    NotANumber,
    NotStorable,
    SessionConflict,
    SessionError,
    SessionGone,
    SessionTooLarge,
    SessionUnavailable,
    TooManySessions,
    UnfitPool,
)
from shardproxy.core.sessions.operations import Event, SessionInfo
from shardproxy.core.sessions.records import Timeouts
from shardproxy.sessions.executors import AwaitingMemory, Memory
from shardproxy.sessions.store import (
    AsyncMemorySessionStore,
    AsyncSession,
    AsyncSessionStore,
    MemorySessionStore,
    Session,
    SessionStore,
)

__all__ = [
    "AsyncMemorySessionStore",
    "AsyncSession",
    "AsyncSessionStore",
    "AwaitingMemory",
    "BadSecrets",
    "Event",
    "Memory",
    "MemorySessionStore",
    "NotANumber",
    "NotStorable",
    "Session",
    "SessionConflict",
    "SessionError",
    "SessionGone",
    "SessionInfo",
    "SessionStore",
    "SessionTooLarge",
    "SessionUnavailable",
    "Timeouts",
    "TooManySessions",
    "UnfitPool",
]
