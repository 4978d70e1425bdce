"""Reload, drain and the state file, through a running proxy: what is taken, what is refused, who is told."""

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hiredis
import pytest
from servers import ProxyProcess, Raw, RedisNode, shards_of, toml, until

CACHE = 'kind = "cache"'


def rewrite(process: ProxyProcess, text: str) -> None:
    """As a careful editor does it: the file is never half there."""
    beside = process.config_path.with_suffix(".new")
    beside.write_text(text)
    beside.chmod(0o600)
    os.replace(beside, process.config_path)


def reload(process: ProxyProcess, raw: Raw, text: str) -> Any:
    """What PROXY RELOAD answers to this file: parsed JSON, or the error's text."""
    before = len(process.events("reloaded"))
    rewrite(process, text)
    found = answer(raw, "RELOAD")
    if isinstance(found, dict) and len(process.events("reloaded")) > before + 1:
        return found | process.events("reloaded")[before]  # the file's watch was quicker than we
    return found


def answer(raw: Raw, *args: str) -> Any:
    found = raw.value("PROXY", *args)
    return str(found) if isinstance(found, hiredis.ReplyError) else json.loads(found)


def shard_of(raw: Raw, key: str) -> str:
    return str(answer(raw, "LOCATE", key)["shard"])


def key_on(raw: Raw, shard: str) -> str:
    """A key that lives there."""
    return next(key for number in range(1000) if shard_of(raw, key := f"key{number}") == shard)


def info(raw: Raw) -> Any:
    return json.loads(raw.value("PROXY", "INFO"))


@contextmanager
def serving(
    nodes: Sequence[RedisNode], workers: int = 1, top: str = "", pool: str = CACHE
) -> Iterator[tuple[ProxyProcess, list[Raw], dict[str, str]]]:
    """A proxy, clients on each of its workers, its shards."""
    shards = shards_of(nodes)
    with ProxyProcess(toml(shards, top=f"workers = {workers}\n{top}", pool=pool)) as process:
        raws = [process.raw()]
        while len({int(raw.value("CLIENT", "ID")) >> 32 for raw in raws}) < workers:
            raws.append(process.raw())
        try:
            yield process, raws, shards
        finally:
            for raw in raws:
                raw.close()


def text_of(shards: dict[str, str], workers: int = 1, top: str = "", pool: str = CACHE) -> str:
    return toml(shards, top=f"workers = {workers}\n{top}", pool=pool)


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_come_change_and_go(nodes3: list[RedisNode], workers: int) -> None:
    with serving(nodes3[:2], workers) as (process, raws, shards):
        before = info(raws[0])
        more = {**shards, "c": nodes3[2].address}
        found = reload(process, raws[-1], text_of(more, workers))
        assert found["changed"] == ["pool.main.shards.c added"]
        assert found["needs_restart"] == found["not_acknowledged"] == []
        fingerprints = set()
        for raw in raws:  # all workers had it before the answer came
            now = info(raw)
            assert now["generation"] >= found["generation"] > before["generation"]
            assert now["pools"]["main"]["shards"] == 3
            fingerprints.add(now["pools"]["main"]["fingerprint"])
        assert len(fingerprints) == 1
        key = key_on(raws[0], "c")
        for raw in raws:
            assert raw.ask("SET", key, "there") == b"+OK\r\n"
        with nodes3[2].raw() as node:
            assert node.ask("GET", key) == b"$5\r\nthere\r\n"
        # another weight, another address
        heavier = text_of(more, workers).replace(
            f'"redis://{more["a"]}"', f'{{ primary = "redis://{more["a"]}", weight = 3 }}'
        )
        assert reload(process, raws[0], heavier)["changed"] == ["pool.main.shards.a.weight: 1 → 3"]
        swapped = {**more, "a": more["b"], "b": more["a"]}
        found = reload(process, raws[0], text_of(swapped, workers))
        assert [each.split(":")[0] for each in found["changed"]] == [
            "pool.main.shards.a.primary",
            "pool.main.shards.a.weight",
            "pool.main.shards.b.primary",
        ]
        key = key_on(raws[0], "a")
        for raw in raws:
            assert raw.ask("SET", key, "moved") == b"+OK\r\n"
        with nodes3[1].raw() as node:
            assert node.ask("GET", key) == b"$5\r\nmoved\r\n"
        # and one goes
        found = reload(process, raws[0], text_of({"a": swapped["a"]}, workers))
        assert found["changed"] == ["pool.main.shards.b removed", "pool.main.shards.c removed"]
        for raw in raws:
            assert shard_of(raw, key) == "a"
            assert raw.ask("GET", key) == b"$5\r\nmoved\r\n"
        assert process.events("reload_refused") == []
        assert process.events("handler_failed") == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_file_is_refused_with_all_its_mistakes(nodes3: list[RedisNode], workers: int) -> None:
    with serving(nodes3, workers) as (process, raws, shards):
        before = info(raws[0])["pools"]
        bad = text_of(shards, workers, pool='kind = "cash"\ntimeuot = "1s"\nretries = 77')
        found = reload(process, raws[-1], bad)
        assert found.startswith("ERR the configuration is refused, generation ")
        assert "3 mistakes" in found
        for part in (
            "shardproxy.toml: pool.main.kind",
            "did you mean timeout?",
            "pool.main.retries: found 77",
        ):
            assert part in found
        assert len(process.events("reload_refused")[0]["mistakes"]) == 3
        for text in (
            "",
            "\x00",
            "[pool.main.shards]\n",
            text_of(shards, workers, pool='on_return = "flush"'),
        ):
            assert reload(process, raws[0], text).startswith("ERR the configuration is refused")
        process.config_path.unlink()
        assert "No such file" in answer(raws[0], "RELOAD")
        for raw in raws:
            assert raw.ask("SET", "k", "v") == b"+OK\r\n"
            assert info(raw)["pools"] == before
        refused = [each for each in process.events("reload_refused") if each["why"] == "PROXY RELOAD"]
        assert len(refused) == 6


def test_what_needs_a_restart_is_named_and_the_rest_is_taken(nodes3: list[RedisNode]) -> None:
    with serving(nodes3) as (process, raws, shards):
        text = toml(
            shards,
            listen=["127.0.0.1:1"],
            top="workers = 3\nprotected_mode = false",
            pool=f'{CACHE}\ntimeout = "2s"',
        )
        found = reload(process, raws[0], text + "\n[limits]\nmaxclients = 5\n")
        assert {each.split(":")[0] for each in found["needs_restart"]} == {
            "listen", "workers", "protected_mode", "limits.maxclients",
        }  # fmt: skip
        assert "pool.main.timeout: 1s" in found["changed"][0].replace('"', "")
        assert json.loads(raws[0].value("PROXY", "TOPOLOGY"))["pools"][0]["timeout"] == 2.0
        again = answer(raws[0], "RELOAD")
        assert again["changed"] == []
        assert again["needs_restart"] == found["needs_restart"]
        assert again["generation"] == info(raws[0])["generation"]


def test_a_hangup_reloads(nodes3: list[RedisNode]) -> None:
    with serving(nodes3[:2], 2) as (process, raws, _):
        # only the signal: the file looks as it did, to who looks at its time and size
        process.signal(signal.SIGHUP)
        until(lambda: process.events("reloaded"), "the reload to be logged")
        assert process.events("reloaded")[0]["why"] == "SIGHUP"
        for raw in raws:
            assert raw.ask("PING") == b"+PONG\r\n"


def test_a_changed_file_is_noticed(nodes3: list[RedisNode]) -> None:
    with serving(nodes3[:2]) as (process, raws, shards):
        rewrite(process, text_of({**shards, "c": nodes3[2].address}))
        until(lambda: info(raws[0])["pools"]["main"]["shards"] == 3, "the file to be taken")
        assert process.events("reloaded")[0]["why"] == "the file changed"
        rewrite(process, "broken = ")
        until(lambda: process.events("reload_refused"), "the broken file to be refused")
        rewrite(process, text_of(shards))
        until(lambda: info(raws[0])["pools"]["main"]["shards"] == 2, "the good file to be taken")


@pytest.mark.parametrize("workers", [1, 2])
def test_passwords_change(nodes3: list[RedisNode], tmp_path: Path, workers: int) -> None:
    secret = tmp_path / "secret"
    secret.write_text("first")
    pool = f'{CACHE}\npassword_file = "{secret}"'
    with (
        RedisNode("--requirepass", "first") as node,
        serving([node], workers, pool=pool) as (process, raws, _),
    ):
        assert raws[0].ask("SET", "k", "v") == b"+OK\r\n"
        assert answer(raws[0], "RELOAD")["changed"] == []
        with node.raw() as direct:
            direct.ask("AUTH", "first")
            direct.ask("CONFIG", "SET", "requirepass", "second")
            secret.write_text("second")
            assert answer(raws[0], "RELOAD")["changed"] == ["the passwords of nodes"]
            direct.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        for raw in raws:
            until(lambda raw=raw: raw.ask("GET", "k") == b"$1\r\nv\r\n", "it to log in with the new one")
        secret.unlink()
        assert "cannot be read" in answer(raws[0], "RELOAD")
        # what is in use does not need the file: other changes, and a worker in the place of one that died
        assert answer(raws[0], "DRAIN", "a") == "ERR pool main: no shard would be left for its keys (a)"
        rewrite(process, process.config_path.read_text() + "# changed\n")
        until(lambda: len(process.events("reload_refused")) > 1)
        if workers > 1:
            os.kill(process.events("worker_ready")[0]["pid"], signal.SIGKILL)
            until(lambda: len(process.events("worker_ready")) > workers, "it to be replaced")
        assert not process.events("change_failed")
        assert "second" not in process.log_text()


# --- drain ---


@pytest.mark.parametrize("workers", [1, 2])
def test_a_drained_shard_gets_no_keys(nodes3: list[RedisNode], workers: int) -> None:
    with serving(nodes3, workers) as (_, raws, _):
        keys = [f"drain:{workers}:{number}" for number in range(60)]
        for key in keys:
            raws[0].ask("SET", key, "v")
        before = {key: shard_of(raws[0], key) for key in keys}
        found = answer(raws[-1], "DRAIN", "b")
        assert found["draining"] == ["b"]
        assert found["not_acknowledged"] == []
        for raw in raws:
            for key in keys:
                home = shard_of(raw, key)
                assert home != "b"
                assert before[key] in (home, "b")
                expected = b"$-1\r\n" if before[key] == "b" and raw is raws[0] else None
                assert expected in (None, raw.ask("GET", key))
        assert raws[0].ask("MSET", *(part for key in keys for part in (key, "w"))) == b"+OK\r\n"
        with nodes3[1].raw() as node:
            assert all(node.ask("GET", key) != b"$1\r\nw\r\n" for key in keys)
        assert json.loads(raws[0].value("PROXY", "TOPOLOGY"))["pools"][0]["shards"][1]["draining"] is True
        assert [node["draining"] for node in answer(raws[0], "NODES")] == [False, True, False]
        assert answer(raws[0], "DRAIN", "b")["generation"] == info(raws[0])["generation"]
        # a reload does not bring it back
        answer(raws[0], "RELOAD")
        assert shard_of(raws[0], keys[0]) != "b"
        assert answer(raws[0], "UNDRAIN", "b")["draining"] == []
        for raw in raws:
            assert {key: shard_of(raw, key) for key in keys} == before


def test_who_may_not_be_drained(nodes3: list[RedisNode]) -> None:
    with serving(nodes3[:2]) as (_, raws, _):
        raw = raws[0]
        assert answer(raw, "DRAIN", "x") == "ERR no shard 'x'; there are a, b"
        assert answer(raw, "UNDRAIN", "x") == "ERR no shard 'x'; there are a, b"
        answer(raw, "DRAIN", "a")
        assert "no shard would be left" in answer(raw, "DRAIN", "b")
        assert "no shard would be left" in answer(raw, "DRAIN", "b", "FORCE")


def test_a_durable_pool_is_drained_only_by_force(nodes3: list[RedisNode]) -> None:
    with serving(nodes3, pool="") as (process, raws, shards):
        raw = raws[0]
        assert "is durable" in answer(raw, "DRAIN", "a")
        assert "PROXY DRAIN a FORCE" in answer(raw, "DRAIN", "a")
        assert answer(raw, "DRAIN", "a", "FORCE")["draining"] == ["a"]
        found = reload(process, raw, text_of({"a": shards["a"], "b": shards["b"]}, pool=""))
        assert "durable" in found["warnings"][0]
        found = reload(process, raw, text_of({"a": shards["a"]}, pool=""))
        assert "no shard would be left" in found


# --- the last good configuration ---


def test_a_broken_file_at_the_start(nodes3: list[RedisNode], tmp_path: Path) -> None:
    path = tmp_path / "state"
    top = f'state = "{path}"'
    good = text_of(shards_of(nodes3), top=top)
    with ProxyProcess(good) as process, process.raw() as raw:
        until(path.exists, "the state to be kept")
        assert path.stat().st_mode & 0o777 == 0o600
        answer(raw, "DRAIN", "b")
        reload(process, raw, good + "# changed\n")
        reload(process, raw, "broken = ")
    kept = json.loads(path.read_text())
    assert kept["text"] == good + "# changed\n"
    assert kept["drained"] == {"main": ["b"]}
    broken = f"{top}\nworkers = many\n"
    with ProxyProcess(broken) as process, process.raw() as raw:
        log = process.log_text()
        assert "STARTING WITH THE LAST GOOD CONFIGURATION" in log
        assert str(path) in log
        assert "1 mistake in the configuration" in log
        assert answer(raw, "TOPOLOGY")["pools"][0]["shards"][1]["draining"] is True
        assert "refused" in answer(raw, "RELOAD")
        assert json.loads(path.read_text()) == kept
        # the file is followed: once it is good it is taken
        rewrite(process, text_of(shards_of(nodes3[:2]), top=top))
        until(lambda: len(answer(raw, "TOPOLOGY")["pools"][0]["shards"]) == 2, "the mended file to be taken")
        until(lambda: json.loads(path.read_text()) != kept, "it to be kept")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"garbage", "not a state file of shardproxy"),
        (b'{"kind":"shardproxy state","format":99,"by":"9.9"}', "written by a newer shardproxy (9.9)"),
    ],
)
def test_a_state_file_that_is_not_ours(
    nodes3: list[RedisNode], tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    top = f'state = "{path}"'
    process = ProxyProcess(f"{top}\nworkers = many\n")
    try:
        assert process.launch().wait() == 2
        assert "mistake" in process.log_text()
        assert said in process.log_text()
    finally:
        process.stop()
    # with a good file it serves, and says what is wrong with the other
    with ProxyProcess(text_of(shards_of(nodes3), top=top)) as process, process.raw() as raw:
        assert raw.ask("PING") == b"+PONG\r\n"
        assert said in until(lambda: process.events("state_refused"))[0]["reason"]
    assert path.read_bytes() == content


async def test_inside_a_program_there_is_no_file_to_reload(nodes3: list[RedisNode]) -> None:
    import shardproxy

    config = shardproxy.load(text_of(shards_of(nodes3)).encode())
    async with shardproxy.Proxy(config) as proxy:
        assert "given its configuration by a program" in (await proxy.operate("reload")).error
        assert (await proxy.operate("drain", "a", False)).answer["draining"] == ["a"]
