"""cross_shard = "emulate" in both clients: the same results and errors as redis-py's on one Redis."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from redis.exceptions import RedisError
from servers import RedisNode, redis_nodes, urls_of
from test_across_shards import PROGRAM, SETUP, UNORDERED, one

from shardproxy import AsyncShardedRedis, ShardedRedis

__all__ = ["one"]
ANOTHER_DATABASE = ("SELECT", "COPY n1 n2 DB", "GET n2")  # a client has one
POOL = {"cross_shard": "emulate", "timeout": "5s"}


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(3) as nodes:
        yield nodes


def commands(salt: str) -> Iterator[list[str]]:
    """Keys with a salt are on other shards."""
    for line in f"{SETUP}|{PROGRAM}".split("|"):
        if not line.startswith(ANOTHER_DATABASE):
            words = line.split()
            yield [words[0], *(salt + word if word[:1].islower() and salt else word for word in words[1:])]


def asked(client: Any, words: list[str]) -> Any:
    try:
        return comparable(words, client.execute_command(*words))
    except RedisError as error:
        return type(error), str(error)


def comparable(words: list[str], found: Any) -> Any:
    if words[0] == "TTL":
        return min(found, 1)  # another second may have begun
    return sorted(found) if words[0] in UNORDERED else found


@pytest.mark.parametrize(("proto", "salt", "decode"), [(2, "", False), (3, "x", True), (3, "longer:", False)])
async def test_the_results_are_those_of_one_redis(
    one: RedisNode, nodes: list[RedisNode], proto: int, salt: str, decode: bool
) -> None:
    settings: dict[str, Any] = {"protocol": proto, "decode_responses": decode, "encoding": "latin-1"}
    with ExitStack() as stack:
        plain = stack.enter_context(redis.Redis(port=one.port, **settings))
        client = stack.enter_context(ShardedRedis(urls_of(nodes), pool=POOL, **settings))
        plain.flushall()
        client.flushall()
        wanted = [(words, asked(plain, words)) for words in commands(salt)]
        for words, result in wanted:
            assert asked(client, words) == result, words
        client.flushall()
        async with AsyncShardedRedis(urls_of(nodes), pool=POOL, **settings) as other:
            for words, result in wanted:
                try:
                    found = comparable(words, await other.execute_command(*words))
                except RedisError as error:
                    found = type(error), str(error)
                assert found == result, words
        assert not [key for key in client.scan_iter() if "temporary" in str(key)]


def test_in_pipelines_and_transactions(nodes: list[RedisNode]) -> None:
    with ShardedRedis(urls_of(nodes), pool=POOL) as client:
        client.flushall()
        pipe = client.pipeline(transaction=False)
        sets = [f"s{number}" for number in range(5)]
        for name in sets:
            pipe.sadd(name, "a", name)
        pipe.execute()
        assert pipe.sinter(*sets).smove(sets[0], sets[1], "s0").execute() == [{b"a"}, True]
        with pytest.raises(redis.ResponseError, match="same slot"):
            client.pipeline().sinter(*sets).execute()
    with ShardedRedis(urls_of(nodes)) as client, pytest.raises(redis.ResponseError, match="same slot"):
        client.sinter(*sets)  # refused, unless the pool says otherwise
