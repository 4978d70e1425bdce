"""The proxy's log: on stderr, for people on a terminal and in JSON elsewhere, one event a line.

Rules: nothing global is configured, since a program may run a proxy inside itself; a line names what happened
and where, and never holds a key, a value or a secret. An exception is therefore logged by type and place:
its text and its variables may quote what a client sent.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog

from shardproxy.config import Log

LEVELS = {
    "node_down": "warning",
    "node_up": "info",
    "node_failing": "debug",
    "node_state": "warning",
    "node_answers": "debug",
    "node_refuses": "warning",
    "node_not_returned": "warning",
    "not_buried": "warning",
    "connections_remain": "warning",
    "not_swept": "warning",
    "flush_refused": "warning",
    "fail_open": "error",
    "keeper_failed": "error",
    "node_learnt": "debug",
    "upstream_lost": "warning",
    "client_closed": "info",
    "protocol_error": "info",
    "handler_failed": "error",
    "descriptors_limited": "warning",
    "worker_died": "error",
    "worker_silent": "warning",
    "supervisor_gone": "error",
    "cannot_start": "error",
    "drain_incomplete": "warning",
    "configuration_broken": "error",
    "reload_refused": "error",
    "change_failed": "error",
    "state_refused": "warning",
    "not_drained": "warning",
    "no_takeover": "warning",
    "takeover_failed": "warning",
    "node_moved": "warning",
    "admin_failed": "error",
    "on_transition_failed": "warning",
    "on_transition_behind": "warning",
}
# Everything else is told at this level
OTHERWISE = "info"


def trace(error: BaseException) -> list[str]:
    """Where it came from, innermost last: "base.py:103 dispatch"."""
    return [
        f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]


def _place(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """An exception as its type and place."""
    error = fields.pop("exc_info", None)
    if isinstance(error, BaseException):
        fields["error"] = type(error).__name__
        fields["trace"] = trace(error)
    return fields


class Logger:
    """Says events by name; the level comes from the table above."""

    def __init__(
        self, config: Log, stream: TextIO | None = None, context: Mapping[str, object] | None = None
    ) -> None:
        stream = stream or sys.stderr
        human = config.format == "human" or (config.format == "auto" and stream.isatty())
        last: Any = (
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
            if human
            else structlog.processors.JSONRenderer()
        )
        self._log = structlog.wrap_logger(
            structlog.WriteLogger(stream),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="%H:%M:%S" if human else "iso", utc=not human),
                _place,
                last,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(config.level),
        ).bind(**(context or {}))

    def __call__(self, event: str, **fields: object) -> None:
        """A line; a log that cannot be written stops nothing."""
        with contextlib.suppress(OSError, ValueError):
            getattr(self._log, LEVELS.get(event, OTHERWISE))(event, **fields)
