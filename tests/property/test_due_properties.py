"""Deadlines of several classes in one FIFO: as a plain list that looks at everything, every time."""

from hypothesis import given, settings
from hypothesis import strategies as st

from shardproxy.dataplane.dues import DueQueue

# how long requests of a class may take; 0: for ever
# and no look is put off by more than the least wait, with so few of them
CLASSES = st.sampled_from([[500], [500, 1000], [500, 1000, 5000], [10, 0], [0]])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("promise"), st.integers(0, 2)),
        st.tuples(st.just("again"), st.integers(1, 400)),
        st.tuples(st.just("answer"), st.integers(1, 4)),
        st.tuples(st.just("wait"), st.integers(10, 700)),
        st.tuples(st.just("prune"), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=400, deadline=None)
@given(CLASSES, STEPS)
def test_each_falls_due_once_at_its_time(classes: list[int], steps: list[tuple[str, int]]) -> None:
    queue, model, now, names = DueQueue(), list[list[int]](), 1_000, 0  # model: [name, due, late]
    for step, number in steps:
        if step in ("promise", "again"):
            # what is sent again has used up some of its time
            used = number if step == "again" else 0
            allowed = classes[number % len(classes)]
            due = max(now + 1, now + allowed - used) if allowed else 0
            names += 1
            queue.promise(names, due)
            model.append([names, due, False])
        elif step == "answer":
            for _ in range(min(number, len(model))):
                name, _, late = model.pop(0)
                assert queue.answer() == (name, bool(late))
        elif step == "prune":
            model = [entry for entry in model if not entry[2]]
            queue.prune()
        else:
            now += number
        expected = [entry for entry in model if entry[1] and entry[1] <= now and not entry[2]]
        assert queue.fall_due(now) == [entry[0] for entry in expected]
        for entry in expected:
            entry[2] = True
        front = next((n for n, entry in enumerate(model) if not entry[2]), len(model))
        assert (len(queue), queue.late) == (len(model), front)
        # the next look is no later than the next that falls due
        assert queue.look <= min((entry[1] for entry in model if entry[1] and not entry[2]), default=1 << 64)


def test_one_class_is_not_walked_beyond_the_first_in_time() -> None:
    queue = DueQueue()
    for number in range(1000):
        queue.promise(number, 1_000_000 + number)
    assert queue.fall_due(1_000_099) == list(range(100))
    # had it looked at all 1,000, the next look would be later for that
    assert queue.look == 1_000_099 + 101 // 16


def test_a_long_walk_puts_the_next_one_off() -> None:
    queue = DueQueue()
    queue.promise(0, 10**9)
    for number in range(1, 1_000_001):
        queue.promise(number, 10**8 + number)
    assert queue.fall_due(10**8 + 1) == [1]
    assert queue.fall_due(10**8 + 50_000) == []
    assert queue.look == 10**8 + 1 + 1_000_001 // 16
    later = queue.look - 10**8
    assert queue.fall_due(queue.look) == list(range(2, later + 1))
    # those behind are all that are looked at, again and again, and still each is found once
    assert queue.fall_due(10**9) == [0, *range(later + 1, 1_000_001)]
