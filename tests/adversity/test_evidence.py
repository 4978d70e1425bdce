"""What counts against a node, and what does not: each kind of evidence from a real proxy and its log."""

import asyncio
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from asking import key_on, node_of
from faults import FakeNode, Talk, obey
from servers import ProxyProcess, Raw, pack, redis_nodes, shards_of, toml, until

HEALTH = "\nhealth = {{ fail_open_ratio = 1.0, {} }}"


def states(proxy: ProxyProcess, address: str) -> list[tuple[str, str]]:
    """What has happened to a node, with the reasons."""
    return [(each["state"], each["reason"]) for each in proxy.events("node_state") if each["node"] == address]


def pings(node: Raw) -> int:
    stats = str(node.value("INFO", "commandstats"))
    return int(stats.partition("cmdstat_ping:calls=")[2].partition(",")[0])


@contextmanager
def before(
    behave: Callable[[Talk, list[bytes]], object], pool: str
) -> Iterator[tuple[FakeNode, ProxyProcess, Raw]]:
    with ExitStack() as stack:
        node = stack.enter_context(FakeNode(behave))  # type: ignore[arg-type]
        proxy = stack.enter_context(ProxyProcess(toml({"a": node.address}, pool=pool)))
        raw = stack.enter_context(proxy.raw())
        until(lambda: node_of(raw, "a")["state"] == "up")
        yield node, proxy, raw


@pytest.mark.parametrize("on_shard_down", ["error", "rehash"])
def test_who_has_become_a_replica_is_out_until_it_is_a_primary_again(on_shard_down: str) -> None:
    """Its PING is as good as ever."""
    policy = 'kind = "cache"\non_shard_down = "rehash"' if on_shard_down == "rehash" else ""
    with redis_nodes(3) as nodes, ProxyProcess(toml(shards_of(nodes), pool=policy)) as proxy:
        address = nodes[0].address
        with proxy.raw() as raw, nodes[0].raw() as node:
            key = key_on(raw, "a")
            assert raw.ask("SET", key, "1") == b"+OK\r\n"
            node.ask("REPLICAOF", "127.0.0.1", nodes[1].port)
            assert raw.ask("SET", key, "2").startswith(b"-READONLY")
            until(lambda: "out" in dict(states(proxy, address)))
            assert "it is read-only; a probe: it is a replica" in dict(states(proxy, address))["out"]
            answer = raw.ask("SET", key, "3")
            assert answer == b"+OK\r\n" if policy else answer.startswith(b"-SHARDDOWN")
            so_far = pings(node)
            until(lambda: pings(node) >= so_far + 4, "probes, of which two would bring it back")
            seen = [state for state, _ in states(proxy, address)]
            assert seen.count("out") == 1 and "up" not in seen
            node.ask("REPLICAOF", "NO", "ONE")
            until(lambda: states(proxy, address)[-1][0] == "up")
            assert raw.ask("SET", key, "4") == b"+OK\r\n"


def test_a_queue_behind_one_slow_command_is_one_slow_call() -> None:
    async def behave(talk: Talk, args: list[bytes]) -> None:
        if args[1] == b"slow":
            await asyncio.sleep(0.3)
        await obey(talk, args)

    pool = 'timeout = "5s"' + HEALTH.format('slow_call = "100ms", minimum = 5')
    with before(behave, pool) as (node, proxy, raw):
        for _ in range(3):
            raw.send(pack("GET", "slow") + pack("GET", "key") * 100)
            raw.frames(101)
        # slow as such, one after the other: five are enough
        assert states(proxy, node.address) == []
        for _ in range(60):
            raw.ask("GET", "slow")
            if states(proxy, node.address):
                break
        state, reason = states(proxy, node.address)[0]
        assert (state, reason[-24:]) == ("suspect", "requests took over 0.1 s")


def test_what_we_were_late_for_ourselves_is_not_slow() -> None:
    async def soon(talk: Talk, args: list[bytes]) -> None:
        await asyncio.sleep(0.02)
        await obey(talk, args)

    pool = 'timeout = "1s"' + HEALTH.format('slow_call = "300ms", minimum = 2')
    with before(soon, pool) as (node, proxy, raw):
        for _ in range(3):
            raw.send(pack("GET", "key"))
            until(lambda: any(args[0] == b"GET" for args in node.seen))
            node.seen.clear()
            proxy.signal(signal.SIGSTOP)
            time.sleep(0.8)
            proxy.signal(signal.SIGCONT)
            raw.frame()
        assert states(proxy, node.address) == []


def test_what_we_lack_ourselves_is_not_held_against_nodes() -> None:
    """There is no descriptor left for a connection to them: neither for requests nor for probes."""
    with redis_nodes(1) as nodes:
        pool = HEALTH.format('interval = "200ms"')
        with ProxyProcess(toml(shards_of(nodes), pool=pool)) as proxy, proxy.raw() as raw:
            assert raw.ask("SET", "key", "1") == b"+OK\r\n"
            until(lambda: node_of(raw, "a")["state"] == "up")
            usual = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)
            open_now = max(int(each.name) for each in Path(f"/proc/{proxy.pid}/fd").iterdir())
            resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (4, usual[1]))
            assert open_now > 4
            with nodes[0].raw() as node:
                node.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            until(
                lambda: (
                    raw.ask("GET", "key").startswith(b"-SHARDDOWN") and len(proxy.events("not_probed")) > 5
                )
            )
            assert "Too many open files" in raw.ask("GET", "key").decode()
            assert states(proxy, nodes[0].address) == []
            resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, usual)
            until(lambda: raw.ask("GET", "key") == b"$1\r\n1\r\n")
            assert states(proxy, nodes[0].address) == []
