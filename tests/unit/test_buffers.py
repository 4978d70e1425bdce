"""Buffers hold what was appended and not consumed, and count what they own."""

import random

import pytest

from shardproxy.core.buffers import Buffer, total_bytes


def test_append_and_consume() -> None:
    buffer = Buffer()
    assert bytes(buffer) == b""
    buffer.append(b"hello ")
    buffer.append(b"world")
    buffer.consume(6)
    assert bytes(buffer) == b"world"
    buffer.consume(5)
    assert bytes(buffer) == b""


def test_nothing_appended_takes_nothing() -> None:
    before = total_bytes()
    buffer = Buffer()
    buffer.append(b"")
    assert bytes(buffer) == b""
    assert total_bytes() == before


def test_consuming_more_than_there_is_is_refused() -> None:
    buffer = Buffer()
    buffer.append(b"abc")
    with pytest.raises(ValueError, match="more than there is"):
        buffer.consume(4)
    assert bytes(buffer) == b"abc"


@pytest.mark.parametrize(
    "size", [1, 127, 128, 129, 1023, 1024, 1025, 16383, 16384, 16385, 65536, 65537, 1 << 20]
)
def test_content_survives_growth_over_every_size_of_block(size: int) -> None:
    data = random.Random(size).randbytes(size)
    buffer = Buffer()
    for at in range(0, size, 777):
        buffer.append(data[at : at + 777])
    assert bytes(buffer) == data
    buffer.consume(size // 2)
    buffer.append(data)
    assert bytes(buffer) == data[size // 2 :] + data


def test_blocks_are_counted_and_given_back() -> None:
    before = total_bytes()
    buffers = [Buffer() for _ in range(10)]
    for number, buffer in enumerate(buffers):
        buffer.append(b"x" * 10**number if number < 7 else b"x")
    owned = total_bytes() - before
    assert sum(len(bytes(buffer)) for buffer in buffers) <= owned < 20_000_000
    for buffer in buffers[::2]:
        buffer.release()
        assert bytes(buffer) == b""
    del buffer, buffers
    assert total_bytes() == before


def test_a_buffer_that_is_emptied_as_it_fills_stays_small() -> None:
    """The front that was consumed is used again: a long-lived connection does not grow."""
    before, buffer = total_bytes(), Buffer()
    expected = b""
    for number in range(20_000):
        piece = b"%d," % number
        buffer.append(piece)
        expected += piece
        if len(expected) > 300:
            buffer.consume(250)
            expected = expected[250:]
    assert bytes(buffer) == expected
    assert total_bytes() - before <= 2048


def test_a_released_buffer_can_be_used_again() -> None:
    buffer = Buffer()
    buffer.append(b"x" * 5000)
    buffer.release()
    buffer.release()
    buffer.append(b"new")
    assert bytes(buffer) == b"new"


def test_random_use_agrees_with_a_model() -> None:
    rnd, before = random.Random(1), total_bytes()
    buffers = [Buffer() for _ in range(5)]
    models = [b""] * 5
    for _ in range(5_000):
        at = rnd.randrange(5)
        if rnd.random() < 0.5:
            data = rnd.randbytes(rnd.choice([0, 1, 100, 900, 5000, 40_000]))
            buffers[at].append(data)
            models[at] += data
        elif rnd.random() < 0.95:
            size = rnd.randrange(len(models[at]) + 1)
            buffers[at].consume(size)
            models[at] = models[at][size:]
        else:
            buffers[at].release()
            models[at] = b""
        assert bytes(buffers[at]) == models[at]
    del buffers
    assert total_bytes() == before
