"""SCAN's cursor: every shard once, whatever the ring becomes in between."""

import random

from shardproxy.core.scan_cursor import NODE_MOST, SHARDS, Position, after, numbers, place, ring_of


def laps(rings: list[set[str]], pages: int = 3, known: bool = True) -> list[str]:
    """The shards that a whole scan finishes; rings: of each step, then the last one."""
    history: dict[int, set[str]] = {}
    cursor, done, step = 0, [], 0
    while True:
        names = rings[min(step, len(rings) - 1)]
        step += 1
        assert step < 1000
        if known:
            history[ring_of(names)] = names
        at = Position.unpack(cursor) if cursor else Position(ring=ring_of(names))
        found = place(at, names, history)
        if found is None:
            return done
        at, name = found
        if (node := at.node + 1) == pages:
            node = 0
            done.append(name)
        following = place(after(at, node), names, history)
        if following is None:
            return done
        cursor = following[0].pack()
        assert 0 < cursor < 1 << 63


def test_a_position_survives_packing() -> None:
    for at in (Position(), Position(1, 127, SHARDS - 1, NODE_MOST), Position(0, 3, 77, 12345)):
        assert Position.unpack(at.pack()) == at
        assert at.pack() < 1 << 63


def test_every_shard_once() -> None:
    for count in (1, 2, 3, 40):
        names = {f"shard{i}" for i in range(count)}
        assert sorted(laps([names])) == sorted(names)


def test_shards_that_come_and_go_are_scanned_once() -> None:
    rnd = random.Random(4)
    before = {f"s{i}" for i in range(6)}
    marks = set()
    for _ in range(300):
        after_ = set(rnd.sample(sorted(before), rnd.randrange(1, 7))) | {
            f"n{rnd.randrange(1000)}" for _ in range(2)
        }
        step = rnd.randrange(1, 15)
        done = laps([before] * step + [after_])
        marks.add(ring_of(after_))
        if ring_of(after_) != ring_of(before):
            assert after_ <= set(done)
            assert len(done) == len(set(done))
        assert before & after_ <= set(done)
    assert len(marks) > 8


def test_who_does_not_know_the_old_ring_scans_all_again() -> None:
    before, then = {"a", "b", "c"}, {"a", "b", "c", "d"}
    assert ring_of(before) != ring_of(then)
    done = laps([before] * 4 + [then], known=False)
    assert then <= set(done)
    assert len(done) <= len(before) + len(then) + 1


def test_numbers_are_the_names_own() -> None:
    some = numbers([f"shard-{i}" for i in range(200)])
    assert len(some) == 200
    assert list(some) == sorted(some)
    assert set(numbers(["a", "b"])) == set(numbers(["a"])) | set(numbers(["b"]))
