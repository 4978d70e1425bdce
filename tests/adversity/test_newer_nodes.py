"""Nodes newer than Debian's Redis, acted: what Redis 7.2 changed about WAIT; WAITAOF, which it brought."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from asking import key_on
from faults import FakeNode, Talk, bulk, obey
from servers import ProxyProcess, RedisNode, shards_of, toml, until


class NewNode(FakeNode):
    """Redis 7.4: a WAIT is about the last write of its connection; without one it is answered at once."""

    def __init__(self, version: bytes = b"7.4.1") -> None:
        super().__init__(
            self.act, {b"INFO": bulk(b"redis_version:%b\r\nmaxmemory_policy:noeviction\r\n" % version)}
        )
        self.disk = self.replicas = 0
        self.broken = b""
        self.wrote: set[Talk] = set()

    async def act(self, talk: Talk, args: list[bytes]) -> None:
        name = args[0].upper()
        if name == b"SWAPDB":
            self.wrote.add(talk)
            talk.write(b"+OK\r\n")
        elif name == b"WAIT":
            talk.write(b":%d\r\n" % (self.replicas if talk in self.wrote else 99))
        elif name == b"WAITAOF":
            numbers = (self.disk, self.replicas) if talk in self.wrote else (1, 99)
            talk.write(self.broken or b"*2\r\n:%d\r\n:%d\r\n" % numbers)
        else:
            await obey(talk, args)


class Both(NamedTuple):
    a: NewNode
    b: NewNode
    proxy: ProxyProcess


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    with NewNode() as a, NewNode() as b, ProxyProcess(toml({"a": a.address, "b": b.address})) as proxy:
        with proxy.raw() as raw:
            until(lambda: "redis_version:7.4.1" in str(raw.value("INFO", "server")), "they say what they are")
        yield Both(a, b, proxy)


def test_the_least_of_the_shards_that_were_written_to(both: Both) -> None:
    a, b, proxy = both
    with proxy.raw() as raw:
        a.disk, a.replicas, b.disk, b.replicas = 1, 2, 0, 3
        raw.ask("SET", key_on(raw, "a"), 1)
        assert raw.ask("WAIT", 2, 1000) == b":2\r\n"
        assert raw.ask("WAITAOF", 1, 2, 1000) == b"*2\r\n:1\r\n:2\r\n"
        assert not [args for args in b.seen if args[0].startswith(b"WAIT")]
        raw.ask("SET", key_on(raw, "b"), 1)
        assert raw.ask("WAIT", 1, 1000) == b":2\r\n"
        assert raw.ask("WAITAOF", 0, 0, 0) == b"*2\r\n:0\r\n:2\r\n"
        assert raw.ask("WAITAOF", 1, 2, 20) == b"*2\r\n:0\r\n:2\r\n"
        raw.send(b"WAITAOF 1 2 0\r\nPING\r\n")
        b.disk = 1
        assert raw.frames(2) == [b"*2\r\n:1\r\n:2\r\n", b"+PONG\r\n"]


def test_in_a_transaction_it_does_not_wait(both: Both) -> None:
    both.a.replicas = both.b.replicas = 0
    with both.proxy.raw() as raw:
        raw.ask("SET", key_on(raw, "a"), 1)
        raw.send(b"MULTI\r\nWAITAOF 1 1 0\r\nWAIT 1 0\r\nEXEC\r\n")
        assert raw.frames(3) == [b"+OK\r\n", b"+QUEUED\r\n", b"+QUEUED\r\n"]
        assert raw.frame() == b"*2\r\n*2\r\n:1\r\n:0\r\n:0\r\n"


ERRORS = {
    "1 0": b"-ERR wrong number of arguments for 'waitaof' command",
    "2 0 0": b"-ERR value is out of range, value must between 0 and 1",
    "-1 0 0": b"-ERR value is out of range, value must between 0 and 1",
    "one 0 0": b"-ERR value is not an integer or out of range",
    "1 -1 0": b"-ERR value is out of range, must be positive",
    "1 none 0": b"-ERR value is out of range, must be positive",
    "1 0 soon": b"-ERR timeout is not an integer or out of range",
    "1 0 -1": b"-ERR timeout is negative",
}


def test_what_is_wrong_is_said_as_redis_says_it(both: Both) -> None:
    """As Redis 7.4.1 was seen to."""
    with both.proxy.raw() as raw:
        for args, error in ERRORS.items():
            assert raw.ask("WAITAOF", *args.split()) == error + b"\r\n"


def test_what_is_not_two_numbers_is_nobodys_reply(both: Both) -> None:
    with both.proxy.raw() as raw:
        for answer in (b"*1\r\n:1\r\n", b"*2\r\n:1\r\n$1\r\n1\r\n", b":1\r\n", b"+OK\r\n"):
            both.a.broken = answer
            assert raw.ask("WAITAOF", 0, 0, 10).startswith(b"-ERR ")
        both.a.broken = b""
        assert raw.ask("PING") == b"+PONG\r\n"


def test_nodes_that_do_not_know_it_say_so() -> None:
    with RedisNode() as node, ProxyProcess(toml(shards_of([node]))) as proxy, proxy.raw() as raw:
        with node.raw() as direct:
            assert raw.ask("WaitAOF", 0, 0, 1) == direct.ask("WaitAOF", 0, 0, 1)
        assert raw.ask("WAITAOF", 0, 0, 1).startswith(b"-ERR unknown command 'WAITAOF'")
