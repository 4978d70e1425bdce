"""What a live Redis says to malformed requests: the same texts, and nothing passes here that it refuses."""

import random
import socket

import pytest
from programs import encode, spoil
from resp_cases import COMMANDS, ERRORS, STRICTER
from servers import Raw, RedisNode

from shardproxy.core.resp import ProtocolError, RequestParser, Scanner


def redis_says(node: RedisNode, data: bytes) -> list[bytes]:
    """Its replies to these bytes and an end of file."""
    with Raw(node.port) as raw:
        raw.send(data)
        raw.socket.shutdown(socket.SHUT_WR)
        return Scanner().feed(raw.rest())


def parsed(data: bytes) -> tuple[list[list[bytes]], str | None]:
    """Commands until the error, if any."""
    parser, commands = RequestParser(), []
    try:
        for at in range(len(data)):
            commands += parser.feed(data[at : at + 1])
    except ProtocolError as error:
        return commands, str(error)
    return commands, None


def refused(replies: list[bytes]) -> bool:
    return bool(replies) and replies[-1].startswith(b"-ERR Protocol error")


@pytest.mark.parametrize(("data", "error"), ERRORS.values(), ids=ERRORS)
def test_errors_have_the_texts_of_redis(redis: RedisNode, data: bytes, error: str) -> None:
    assert redis_says(redis, data) == [b"-ERR %b\r\n" % error.encode()]


@pytest.mark.parametrize(("data", "error"), STRICTER.values(), ids=STRICTER)
def test_where_the_parser_is_stricter_redis_says_something_else(
    redis: RedisNode, data: bytes, error: str
) -> None:
    """So that an entry that is needed no more is noticed."""
    assert redis_says(redis, data) != [b"-ERR %b\r\n" % error.encode()]


@pytest.mark.parametrize(("data", "commands"), COMMANDS.values(), ids=COMMANDS)
def test_redis_takes_the_same_commands(redis: RedisNode, data: bytes, commands: list[list[bytes]]) -> None:
    replies = redis_says(redis, data)
    assert len(replies) == len(commands)
    for reply, command in zip(replies, commands, strict=True):
        if command[0] == b"ECHO" and len(command) == 2:
            assert reply == b"$%d\r\n%b\r\n" % (len(command[1]), command[1])


def test_whatever_passes_here_passes_there(redis: RedisNode) -> None:
    """Spoilt requests: Redis finds the same commands, and refuses nothing that the parser lets through."""
    rnd, errors = random.Random(5), 0
    for _ in range(1500):
        words = [[b"ECHO", rnd.choice([b"", b"a", b"\r\n", b"x" * 30])] for _ in range(rnd.randrange(1, 4))]
        data = spoil(rnd, b"".join(encode(*each) for each in words), rnd.choice([1, 1, 2, 3]))
        if b"\x00" in data or b"HTTP" in data:
            continue  # after a NUL in a plain line Redis waits for ever; HTTP it closes without a word
        commands, error = parsed(data)
        replies = redis_says(redis, data)
        if refused(replies):
            replies.pop()
        errors += error is not None
        # it may be laxer, and go on; and it refuses some headers before their end
        assert len(replies) >= len(commands), data
        for command, reply in zip(commands, replies, strict=False):
            if command[0].upper() == b"ECHO" and len(command) == 2:
                assert reply == b"$%d\r\n%b\r\n" % (len(command[1]), command[1]), data
    assert errors > 200
