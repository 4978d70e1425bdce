"""Private upstreams: WATCH and blocking commands, on connections of the client's own that come and go."""

import json
import time
from collections.abc import Iterator

import pytest
from impostors import Relay
from servers import ProxyProcess, Raw, RedisNode, redis_nodes, shards_of, toml, until


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisNode]]:
    with redis_nodes(2) as nodes:
        yield nodes


@pytest.fixture
def proxy(nodes: list[RedisNode]) -> Iterator[ProxyProcess]:
    with ProxyProcess(toml(shards_of(nodes))) as proxy:
        yield proxy


def privates(raw: Raw) -> int:
    """How many private upstreams there are, in use or pooled."""
    found = json.loads(raw.value("PROXY", "NODES"))
    return sum(node["private"] for node in found)


def keys_apart(raw: Raw) -> tuple[str, str]:
    """Two keys of different shards."""
    home = json.loads(raw.value("PROXY", "LOCATE", "k0"))["shard"]
    for number in range(1, 100):
        if json.loads(raw.value("PROXY", "LOCATE", f"k{number}"))["shard"] != home:
            return "k0", f"k{number}"
    raise AssertionError("all keys are on one shard")


# --- WATCH ---


@pytest.mark.parametrize("proto", [2, 3])
def test_a_watched_key_that_changes_aborts_the_transaction(proxy: ProxyProcess, proto: int) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        raw.ask("HELLO", proto)
        raw.ask("SET", "w", 1)
        assert raw.ask("WATCH", "w") == b"+OK\r\n"
        assert raw.value("GET", "w") == "1"
        other.ask("SET", "w", 2)
        raw.ask("MULTI")
        assert raw.ask("SET", "w", 3) == b"+QUEUED\r\n"
        assert raw.ask("EXEC") == (b"_\r\n" if proto == 3 else b"*-1\r\n")
        assert raw.value("GET", "w") == "2"
        # and what is not watched any more does not
        raw.ask("MULTI")
        raw.ask("SET", "w", 4)
        assert raw.ask("EXEC") == b"*1\r\n+OK\r\n"


@pytest.mark.parametrize("end", ["EXEC", "DISCARD", "UNWATCH"])
def test_what_ends_a_watch_gives_the_connection_back(proxy: ProxyProcess, end: str) -> None:
    with proxy.raw() as raw, proxy.raw() as other:
        for turn in range(5):
            assert raw.ask("WATCH", "w") == b"+OK\r\n"
            other.ask("SET", "w", turn)
            if end != "UNWATCH":
                raw.ask("MULTI")
                raw.ask("SET", "w", "mine")
            assert raw.ask(end) in (b"+OK\r\n", b"*-1\r\n")
            raw.ask("MULTI")
            raw.ask("SET", "w", "mine")
            assert raw.ask("EXEC") == b"*1\r\n+OK\r\n"
        until(lambda: privates(raw) == 1, "one, when what a proxy asks at its start is answered")


def test_a_pipeline_with_watch_keeps_its_order(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw:
        for turn in range(50):
            raw.send(
                (
                    b"SET w %d|WATCH w|INCR w|GET w|UNWATCH|INCR w|WATCH w|MULTI|INCR w|EXEC|GET w|" % turn
                ).replace(b"|", b"\r\n")
            )
            replies = raw.frames(11)
            assert replies[2] == b":%d\r\n" % (turn + 1)
            assert replies[5] == b":%d\r\n" % (turn + 2)
            assert replies[9] == b"*1\r\n:%d\r\n" % (turn + 3), replies
            assert replies[10].endswith(b"\r\n%d\r\n" % (turn + 3))


def test_watched_keys_share_a_shard_with_the_transaction(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw:
        here, there = keys_apart(raw)
        assert raw.ask("WATCH", here, there).startswith(b"-CROSSSLOT")
        assert raw.ask("WATCH", here) == b"+OK\r\n"
        assert raw.ask("WATCH", there).startswith(b"-CROSSSLOT")
        raw.ask("MULTI")
        assert raw.ask("SET", there, 1).startswith(b"-CROSSSLOT")
        assert raw.ask("EXEC").startswith(b"-EXECABORT")


def test_a_watch_that_is_lost_with_its_connection_aborts(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    with proxy.raw() as raw:
        raw.ask("SET", "w", 1)
        raw.ask("WATCH", "w")
        for node in nodes:
            with node.raw() as direct:
                direct.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        until(lambda: privates(raw) == 0, "the loss was seen")
        raw.ask("MULTI")
        raw.ask("SET", "w", 2)
        assert raw.ask("EXEC") == b"*-1\r\n"
        raw.ask("MULTI")
        raw.ask("SET", "w", 2)
        assert raw.ask("EXEC") == b"*1\r\n+OK\r\n"


# --- what blocks ---


def test_a_blocking_command_waits_and_holds_up_nobody(proxy: ProxyProcess) -> None:
    with proxy.raw() as waiting, proxy.raw() as other:
        waiting.send(b"BLPOP list 0\r\nPING\r\nGET after\r\n")
        for _ in range(20):
            assert other.ask("SET", "after", 1) == b"+OK\r\n"
        other.ask("RPUSH", "list", "a")
        assert waiting.frames(3) == [b"*2\r\n$4\r\nlist\r\n$1\r\na\r\n", b"+PONG\r\n", b"$1\r\n1\r\n"]


def test_blocking_commands_wait_no_longer_than_asked_and_not_by_our_deadline(nodes: list[RedisNode]) -> None:
    with ProxyProcess(toml(shards_of(nodes), pool='timeout = "200ms"')) as proxy, proxy.raw() as raw:
        for command in (
            "BLPOP q 1",
            "BRPOP q 0.6",
            "BLMOVE {q}a {q}b LEFT RIGHT 0.5",
            "BLMPOP 0.5 2 {q}a {q}b LEFT",
            "BZPOPMIN z 0.5",
            "BZMPOP 0.5 1 z MIN",
            "BRPOPLPUSH {q}a {q}b 0.5",
            "XREAD BLOCK 500 STREAMS s $",
        ):
            raw.send(command.encode() + b"\r\n")
            assert raw.frame() in (b"*-1\r\n", b"$-1\r\n"), command
        assert privates(raw) <= 2


def test_a_client_that_leaves_waits_no_more(proxy: ProxyProcess, nodes: list[RedisNode]) -> None:
    """Also with more commands behind it, unread or not."""

    def waiting() -> int:
        found = 0
        for node in nodes:
            with node.raw() as direct:
                found += int(direct.value("INFO", "clients").partition("blocked_clients:")[2].split()[0])
        return found

    for more in (b"", b"PING\r\n", b"PING\r\n" * 50_000):
        with proxy.raw() as raw:
            raw.send(b"BLPOP nothing 0\r\n" + more)
            until(lambda: waiting() == 1, "it waits")
        until(lambda: waiting() == 0, "the node knows that nobody waits")
    with proxy.raw() as raw:
        raw.ask("RPUSH", "nothing", "kept")
        assert raw.value("LLEN", "nothing") == 1


def test_many_wait_on_few_connections_to_come_back(proxy: ProxyProcess) -> None:
    with proxy.raw() as other:
        crowd = [proxy.raw() for _ in range(60)]
        for each in crowd:
            each.send(b"BLPOP crowd 0\r\n")
        until(lambda: privates(other) >= 60, "all wait")
        for number in range(60):
            other.ask("RPUSH", "crowd", number)
        got = sorted(int(each.frame().split(b"\r\n")[4]) for each in crowd)
        assert got == list(range(60))
        until(lambda: privates(other) <= 16, "most are closed")
        for each in crowd:
            each.close()


def test_blocking_inside_a_transaction_does_not_block(proxy: ProxyProcess) -> None:
    with proxy.raw() as raw:
        raw.ask("MULTI")
        assert raw.ask("BLPOP", "none", 0) == b"+QUEUED\r\n"
        assert raw.ask("XREAD", "BLOCK", 0, "STREAMS", "none", "$") == b"+QUEUED\r\n"
        start = time.monotonic()
        assert raw.ask("EXEC").startswith((b"*2\r\n*-1\r\n*-1\r\n", b"-CROSSSLOT", b"-EXECABORT"))
        assert time.monotonic() - start < 5


def test_a_push_that_nobody_asked_for_is_dropped_on_a_handlers_connection_too() -> None:
    said = b"$6\r\npushme\r\n"
    with (
        RedisNode() as node,
        Relay(node.port, (b"\0", b"\0"), (said, b">1\r\n+x\r\n" + said)) as relay,
        ProxyProcess(toml({"a": relay.address})) as proxy,
        proxy.raw() as raw,
    ):
        raw.ask("SET", "k", "pushme")
        assert raw.ask("PROXY", "NODE", "a", "GET", "k") == said
        assert raw.ask("GET", "k") == said
        assert not proxy.events("handler_failed")
