"""What a call of the client library may raise, by whose fault it is.

A node's own errors, and refusals, are redis-py's classes, made from the text as redis-py makes them: what
works with the proxy works here. The classes below are for what one Redis cannot do: be there in part. They
are redis-py's ConnectionError or TimeoutError too, so that what catches those catches these. Texts are the
proxy's (core/errors.ENGINE; a test compares), and name the shard and the reason, never a key or a value.
"""

from collections.abc import Mapping
from typing import Any

from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError

from shardproxy.client.wire import parse_error

DOWN = "SHARDDOWN shard '{}' at {} is down: {}"
NO_PLACE = "SHARDDOWN its shard is down, and its keys have no other place in common"
NOT_ASKED = "TIMEOUT shard '{}' at {} could not be asked within {} ms; the command has not run"
TIMED_OUT = "TIMEOUT shard '{}' at {} did not answer within {} ms; the command may still run"
UNKNOWN = "UNKNOWN outcome: shard '{}' at {} was lost before it answered ({}); the command may have run"
CROSS_SHARD = "CROSSSLOT Keys in request don't hash to the same slot"
PATTERN = "ERR '{}' with a BY or GET pattern reads keys of other shards: not supported"
NO_KEY = "ERR '{}' without a key is not supported yet: it says no shard"
UNKNOWN_COMMAND = "ERR unknown command '{}', with args beginning with: "


class ShardError(RedisError):
    """One shard did not do its part. `.shard` is its name, `.address` its node's."""

    def __init__(self, message: str, shard: str = "", address: str = "") -> None:
        super().__init__(message)
        self.shard, self.address = shard, address


class ShardDownError(ShardError, ConnectionError):
    """Its node is down; nothing has run."""


class ShardTimeoutError(ShardError, TimeoutError):
    """It did not answer in time. Only reads raise this: of a write it is not known whether it has run."""


class UnknownOutcomeError(ShardError, ConnectionError):
    """A write was sent and not answered: it may have run, or may run yet. It was not sent again."""


class UnknownOutcomeTimeoutError(UnknownOutcomeError, TimeoutError):
    """The same, because its time was over."""


class NotAskedError(ShardError, TimeoutError):
    """Its time was over before anything was sent; nothing has run."""


class PartialError(RedisError):
    """A command concerned several shards, and some failed.

    `.results`: what was answered; `.errors`: the exceptions; both by key, of MSET, DEL and their like as well
    (there the result of a key is that of its shard's part). By shard's name for what concerns no key.
    """

    def __init__(self, results: Mapping[Any, Any], errors: Mapping[Any, Exception]) -> None:
        self.results, self.errors = dict(results), dict(errors)
        said = list(dict.fromkeys(map(str, self.errors.values())))
        more = f" (and {len(said) - 3} more)" if len(said) > 3 else ""
        super().__init__(f"{len(self.errors)} of {len(self.errors) + len(self.results)} failed: "
                         + "; ".join(said[:3]) + more)  # fmt: skip


def refusal(text: str) -> ResponseError:
    """The exception that redis-py makes of the proxy's error."""
    return parse_error(text)


def down(shard: str, address: str, why: str) -> ShardDownError:
    return ShardDownError(DOWN.format(shard, address, why), shard, address)


def not_asked(shard: str, address: str, seconds: float) -> NotAskedError:
    return NotAskedError(NOT_ASKED.format(shard, address, round(seconds * 1000)), shard, address)


def timed_out(shard: str, address: str, seconds: float, wrote: bool) -> ShardError:
    """wrote: what was sent may change something."""
    text = TIMED_OUT.format(shard, address, round(seconds * 1000))
    return (UnknownOutcomeTimeoutError if wrote else ShardTimeoutError)(text, shard, address)


def lost(shard: str, address: str, why: str, wrote: bool) -> ShardError:
    """After it was sent."""
    if wrote:
        return UnknownOutcomeError(UNKNOWN.format(shard, address, why), shard, address)
    return down(shard, address, why)
