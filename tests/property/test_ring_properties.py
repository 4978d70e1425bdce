"""What a change of shards moves, exactly: over every arc of the circle, and over keys."""

import bisect
import random

from hypothesis import given
from hypothesis import strategies as st

from shardproxy.core.hashing import KEY_HASHES
from shardproxy.core.ring import Ring

Shards = dict[str, int]

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
shards = st.dictionaries(names, st.integers(1, 6), min_size=1, max_size=8)
keys = st.lists(st.binary(max_size=40), max_size=40)


def ring_of(members: Shards, virtual_nodes: int = 20) -> Ring:
    return Ring([*members.items()], virtual_nodes=virtual_nodes)


def moves(before: Ring, after: Ring, sample: list[bytes]) -> set[tuple[str, str]]:
    """(from, to) of everything that two rings place differently.

    Owners change only at points, so one hash in each arc between the points of both rings is all of them.
    """

    def owner(ring: Ring, points: list[tuple[int, int]], at: int) -> str:
        return ring.names[points[bisect.bisect_left(points, (at, -1)) % len(points)][1]]

    one, two = before.points(), after.points()
    places = [(owner(before, one, at), owner(after, two, at)) for at, _ in one + two]
    for key in sample:
        here, there = before.locate(key), after.locate(key)
        assert here is not None and there is not None
        places.append((before.names[here], after.names[there]))
    return {(source, target) for source, target in places if source != target}


@given(shards, names, st.integers(1, 6), keys)
def test_a_new_shard_takes_keys_and_nothing_else_moves(
    members: Shards, name: str, weight: int, sample: list[bytes]
) -> None:
    members.pop(name, None)
    if not members:
        members = {name + "'": 1}
    moved = moves(ring_of(members), ring_of(members | {name: weight}), sample)
    assert moved and {target for _, target in moved} == {name}


@given(shards.filter(lambda members: len(members) > 1), st.data(), keys)
def test_a_removed_shard_gives_up_its_keys_and_nothing_else_moves(
    members: Shards, data: st.DataObject, sample: list[bytes]
) -> None:
    name = data.draw(st.sampled_from(sorted(members)))
    rest = {other: weight for other, weight in members.items() if other != name}
    moved = moves(ring_of(members), ring_of(rest), sample)
    assert moved and {source for source, _ in moved} == {name}


@given(shards, st.data(), st.integers(1, 6), keys)
def test_a_weight_moves_keys_only_to_or_from_its_shard(
    members: Shards, data: st.DataObject, weight: int, sample: list[bytes]
) -> None:
    name = data.draw(st.sampled_from(sorted(members)))
    moved = moves(ring_of(members), ring_of(members | {name: weight}), sample)
    if weight >= members[name]:
        assert {target for _, target in moved} <= {name}
    if weight <= members[name]:
        assert {source for source, _ in moved} <= {name}


@given(shards, st.data(), keys)
def test_stand_ins_are_the_owners_on_a_ring_without_those_that_are_out(
    members: Shards, data: st.DataObject, sample: list[bytes]
) -> None:
    ring = ring_of(members)
    out = data.draw(st.sets(st.integers(0, len(members) - 1)))
    rest = {name: weight for number, (name, weight) in enumerate(members.items()) if number not in out}
    for key in sample:
        found = ring.locate(key, out)
        if rest:
            smaller = ring_of(rest)
            there = smaller.locate(key)
            assert found is not None and there is not None
            assert ring.names[found] == smaller.names[there]
        else:
            assert found is None


@given(
    shards,
    st.randoms(use_true_random=False),
    st.sampled_from(["ring", "ketama", "modula", "ch3"]),
    st.sampled_from(KEY_HASHES[:12]),
    st.sampled_from(["", "{}", "$$", "<>", "\0\x7f"]),
    keys,
)
def test_order_of_configuration_moves_nothing(
    members: Shards, rng: random.Random, distribution: str, key_hash: str, tag: str, sample: list[bytes]
) -> None:
    turned = [*members.items()]
    rng.shuffle(turned)
    key_hash = {"ring": "xxh64", "ch3": "ch3"}.get(distribution, key_hash)
    one = Ring([*members.items()], distribution, 20, key_hash, tag)
    two = Ring(turned, distribution, 20, key_hash, tag)
    assert one.fingerprint == two.fingerprint
    for key in sample:
        here, there = one.locate(key), two.locate(key)
        assert here is not None and there is not None
        assert one.names[here] == two.names[there]


@given(shards, st.binary(max_size=20), st.binary(min_size=1, max_size=20), st.binary(max_size=20))
def test_keys_of_one_tag_live_together(members: Shards, before: bytes, tag: bytes, after: bytes) -> None:
    before, tag = before.replace(b"{", b""), tag.replace(b"}", b"")
    if tag:
        ring = ring_of(members)
        assert ring.hash_of(before + b"{" + tag + b"}" + after) == ring.hash_of(b"{" + tag + b"}")
