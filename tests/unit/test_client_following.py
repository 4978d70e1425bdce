"""Following proxies, pure: URLs, whose turn it is, what is taken and warned of, when it is asked again."""

import json

import pytest
from fakes import CONFIG

from shardproxy.client.following import AGAIN_MOST, ASK, SOONEST, Following, Proxies, read_url
from shardproxy.core.topology import Topology

TOPOLOGY = Topology.from_config(CONFIG)


def answer(topology: Topology = TOPOLOGY, run_id: str = "r1") -> bytes:
    return topology.as_json(run_id=run_id)


def out(topology: Topology = TOPOLOGY, shard: int = 0) -> Topology:
    return topology.with_node_state(topology.pools[0].shards[shard].node.address, "out", "gone")


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("shardproxy://a:6380,b:6381", Proxies(("a:6380", "b:6381"))),
        ("shardproxy://a", Proxies(("a:6380",))),
        ("shardproxy://a,a:6380/", Proxies(("a:6380",))),
        ("shardproxys://me:p%40ss@[::1],h:1", Proxies(("[::1]:6380", "h:1"), "me", "p@ss", True)),
        ("shardproxy://:secret@h", Proxies(("h:6380",), "", "secret")),
    ],
)
def test_urls(url: str, found: Proxies) -> None:
    assert read_url(url) == found


@pytest.mark.parametrize(
    "url", ["redis://a", "shardproxy:a", "shardproxy://", "shardproxy://s3cret@", "shardproxy://u:s3cret@a:x"]
)
def test_wrong_urls_say_what_is_right_and_show_no_password(url: str) -> None:
    with pytest.raises(ValueError, match="shardproxy://") as found:
        read_url(url)
    assert "s3cret" not in str(found.value)
    assert "s3cret" not in repr(read_url("shardproxy://u:s3cret@a"))


def test_one_proxy_is_asked_until_it_fails_then_the_next() -> None:
    it = Following(Proxies(("a:1", "b:1", "c:1")), first=4)
    assert it.proxy == "b:1"
    assert it.wanted(0.0)
    assert it.heard(0.0, 0.5, answer()).topology == TOPOLOGY
    assert it.proxy == "b:1"
    assert it.failed(1.0, 0.5, "refused") == 0.0
    assert (it.proxy, it.reason, it.all_failed) == ("c:1", "b:1: refused", False)
    assert it.failed(1.0, 0.5, "refused") == 0.0
    assert 0 < it.failed(1.0, 0.5, "refused") < 0.2
    assert it.all_failed
    assert it.topology == TOPOLOGY, "the last good one is kept"
    assert it.heard(2.0, 0.5, answer(out())).topology == out()
    assert not it.all_failed


def test_it_is_asked_again_later_and_later_while_none_answers() -> None:
    it = Following(Proxies(("a:1",)))
    waits = [it.failed(0.0, 1.0, "refused") for _ in range(20)]
    assert waits == sorted(waits)
    assert waits[-1] == AGAIN_MOST
    assert not it.wanted(AGAIN_MOST - 0.01, doubt=True)
    assert it.wanted(AGAIN_MOST)


def test_in_line_with_calls_it_is_asked_seldom_and_sooner_in_doubt() -> None:
    it = Following(Proxies(("a:1",)), poll=4.0)
    it.asking(10.0)
    assert not it.wanted(10.0 + ASK - 0.01, doubt=True), "somebody is asking"
    it.heard(10.5, 0.0, answer())
    assert not it.wanted(10.5 + SOONEST / 2, doubt=True)
    assert it.wanted(10.5 + SOONEST, doubt=True)
    assert not it.wanted(10.5 + SOONEST)
    assert it.wanted(10.5 + 3.0), "three quarters of it, with no jitter"
    it.heard(20.0, 0.999, answer())
    assert not it.wanted(20.0 + 4.9)


def test_an_older_snapshot_of_the_same_run_is_not_taken_one_of_another_run_is() -> None:
    it, newer = Following(Proxies(("a:1",))), out(out(), 1)
    assert it.heard(0.0, 0.0, answer(newer)).topology == newer
    assert it.heard(0.0, 0.0, answer(out())).topology is None
    assert it.heard(0.0, 0.0, answer(newer)).topology is None
    assert it.topology == newer
    assert it.generation == 2
    assert it.heard(0.0, 0.0, answer(TOPOLOGY, "r2")).topology == TOPOLOGY
    assert it.generation == 0


@pytest.mark.parametrize("what", [b"nonsense", b"{}", b'{"generation": 1, "pools": []', 7, None, ["x"]])
def test_what_is_no_snapshot_changes_nothing(what: object) -> None:
    it = Following(Proxies(("a:1",)))
    it.heard(0.0, 0.0, answer())
    with pytest.raises(ValueError, match="it does not tell a topology"):
        it.heard(1.0, 0.0, what)
    assert it.topology == TOPOLOGY


def test_a_ring_unlike_ours_and_a_ring_unlike_the_last_proxys_are_warned_of() -> None:
    it = Following(Proxies(("a:1", "b:1")))
    assert it.heard(0.0, 0.0, answer()).warnings == ()
    document = json.loads(answer(out()))
    document["pools"][0]["fingerprint"] = "0123456789abcdef"
    (warning,) = it.heard(0.0, 0.0, json.dumps(document)).warnings
    assert "a:1" in warning and "0123456789abcdef" in warning and "this version" in warning
    it.failed(0.0, 0.0, "gone")
    (warning,) = it.heard(0.0, 0.0, answer(run_id="r2")).warnings
    assert "b:1" in warning and "a:1" in warning and "differently" in warning
    it.failed(0.0, 0.0, "gone")
    assert it.heard(0.0, 0.0, answer(out(), "r3")).warnings == ()
