"""`serve --takeover` while a node is out: the new process knows which, and what was written elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from asking import node_of, shard_of
from servers import ProxyProcess, Raw, RedisNode, free_port, redis_nodes, shards_of, toml, until
from test_placement_changes import all_up, cache, undrained, values, write
from test_returning_nodes import becomes

KEYS = [f"key{number}" for number in range(400)]
LIBRARY = "#!lua name=lib\nredis.register_function('get', function(k) return redis.call('GET', k[1]) end)"


@contextmanager
def outage(workers: int, pool: str) -> Iterator[tuple[list[RedisNode], str, ProxyProcess, Raw, list[str]]]:
    """a is out, and all but two of its keys have been written elsewhere."""
    with redis_nodes(3) as nodes:
        config = toml(
            shards_of(nodes), listen=[f"127.0.0.1:{free_port()}"], top=f"workers = {workers}", pool=pool
        )
        with ProxyProcess(config) as old, old.raw() as raw:
            all_up(raw)
            mine = [key for key in KEYS if shard_of(raw, key) == "a"]
            write(raw, "first", mine)
            nodes[0].pause()
            until(lambda: node_of(raw, "a")["state"] == "out")
            write(raw, "second", mine[2:])
            yield nodes, config, old, raw, mine


@contextmanager
def client_of(new: ProxyProcess) -> Iterator[Raw]:
    """For a moment both accept."""

    def served() -> Raw | None:
        raw = new.raw()
        if f"process_id:{new.pid}\r\n" in raw.value("INFO", "server"):
            return raw
        raw.close()
        return None

    with until(served) as raw:
        yield raw


@pytest.mark.parametrize(
    ("on_return", "workers"), [("invalidate", 1), ("invalidate", 2), ("flush", 2), ("keep", 1)]
)
def test_a_node_that_returns_after_a_takeover(on_return: str, workers: int) -> None:
    """With "keep" the old values do come back: these steps can fail."""
    with outage(workers, cache(on_return)) as (nodes, config, old, raw, mine):
        raw.close()
        with ProxyProcess(config, "--takeover") as new, client_of(new) as other:
            assert old.wait() == 0
            assert node_of(other, "a")["state"] == "out" or on_return == "keep"
            if on_return != "keep":
                assert values(other, mine[2:]) == {"second"}
            nodes[0].resume()
            becomes(other, "a", "up")
            assert values(other, mine[2:]) == ({"first"} if on_return == "keep" else {None})
            assert values(other, mine[:2]) == ({None} if on_return == "flush" else {"first"})
            write(other, "third", mine)
            nodes[0].pause()
            until(lambda: node_of(other, "a")["state"] == "out")
            assert values(other, mine[2:]) == ({"second"} if on_return == "keep" else {None})
            nodes[0].resume()
            assert "Traceback" not in new.log_text() + old.log_text()


def test_what_the_last_clients_of_the_old_one_write() -> None:
    """It is told at its end, and the node returns once more if it was back before."""
    with (
        outage(1, cache("invalidate")) as (nodes, config, old, raw, mine),
        ProxyProcess(config, "--takeover") as new,
        client_of(new) as other,
    ):
        until(lambda: old.events("handed_over"))
        late = mine[:2]
        write(raw, "late", late)
        nodes[0].resume()
        becomes(other, "a", "up")
        assert values(other, mine[2:]) == {None}
        raw.close()
        assert old.wait() == 0
        until(lambda: set(values(other, late)) == {None}, "the late ones to be forgotten")
        becomes(other, "a", "up")
        assert values(other, late) == {None}


def test_a_drained_shard_after_a_takeover() -> None:
    with redis_nodes(2) as nodes:
        config = toml(shards_of(nodes), listen=[f"127.0.0.1:{free_port()}"], pool=cache("invalidate"))
        with ProxyProcess(config) as old, old.raw() as raw:
            all_up(raw, "ab")
            mine = [key for key in KEYS if shard_of(raw, key) == "a"]
            write(raw, "first", mine)
            raw.ask("PROXY", "DRAIN", "a")
            write(raw, "second", mine[2:])
            raw.close()
            with ProxyProcess(config, "--takeover") as new, client_of(new) as other:
                assert old.wait() == 0
                assert values(other, mine[2:]) == {"second"}
                undrained(other, "a")
                assert values(other, mine[2:]) == {None}
                assert values(other, mine[:2]) == {"first"}


@pytest.mark.parametrize("late", [False, True], ids=["before", "by a client that stays"])
def test_databases_and_code_that_changed_in_an_outage(late: bool) -> None:
    """A node that returns is tidied in all databases, and what it missed of code is made up for."""
    with redis_nodes(3) as nodes:
        config = toml(
            shards_of(nodes), listen=[f"127.0.0.1:{free_port()}"], pool=cache("invalidate"), top="workers = 2"
        )
        with ProxyProcess(config) as old, old.raw() as raw:
            all_up(raw)
            raw.ask("SELECT", 3)
            mine = [key for key in KEYS if shard_of(raw, key) == "a"]
            write(raw, "first", mine)
            raw.ask("FUNCTION", "LOAD", LIBRARY)
            script = raw.value("SCRIPT", "LOAD", "return 1")
            nodes[0].pause()
            until(lambda: node_of(raw, "a")["state"] == "out")

            def change() -> None:
                write(raw, "second", mine[2:])
                assert raw.ask("FUNCTION", "FLUSH") == b"+OK\r\n"
                assert raw.ask("SCRIPT", "FLUSH") == b"+OK\r\n"

            if not late:
                change()
                raw.close()
            with ProxyProcess(config, "--takeover") as new, client_of(new) as other:
                if late:
                    until(lambda: old.events("handed_over"))
                    change()
                    nodes[0].resume()
                    becomes(other, "a", "up")
                    raw.close()
                assert old.wait() == 0
                nodes[0].resume()
                becomes(other, "a", "up")
                other.ask("SELECT", 3)
                until(lambda: set(values(other, mine[2:])) == {None}, "the old values to be deleted")
                assert values(other, mine[:2]) == {"first"}
                with nodes[0].raw() as direct:
                    until(lambda: direct.ask("FUNCTION", "LIST") == b"*0\r\n", "the functions to be gone")
                    until(lambda: direct.value("SCRIPT", "EXISTS", script) == [0], "the script to be gone")
                assert "Traceback" not in new.log_text() + old.log_text()
